//! Which failed events a request wants to see.

use kafkabase::{ALL_TABLES, Message, TopicId, TopicMode, headers};
use memchr::memmem;

use crate::routes::query::{self, ParameterError, time};

/// Why a request cannot be answered.
#[derive(Debug, thiserror::Error)]
pub(super) enum BadRequest {
    #[error("unknown status: {0} (should be 'retry' or 'dead')")]
    Status(String),
    #[error("unknown mode: {0} (should be 'batch' or 'stream')")]
    Mode(String),
    #[error("unknown details: {0} (should be 'true' or 'false')")]
    Details(String),
    #[error(transparent)]
    Time(#[from] ParameterError),
}

/// Where failed events are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Status {
    /// In the retry topic of their destination: they will be tried again.
    Retry,
    /// In the dead letter topic.
    Dead,
}

/// What is asked for.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Filter {
    destination_id: String,
    /// `None`: any.
    mode: Option<TopicMode>,
    /// `None`: all.
    table: Option<String>,
    /// What the error's text has in it.
    reason: String,
    /// Milliseconds, both inclusive, of when they failed.
    start: Option<i64>,
    end: Option<i64>,
    /// Each event with its reason instead of the bare event.
    pub(super) has_details: bool,
}

impl Filter {
    pub(super) fn read(destination_id: &str, query: &str) -> Result<(Status, Filter), BadRequest> {
        let mut status = Status::Dead;
        let mut filter = Filter {
            destination_id: destination_id.to_owned(),
            mode: None,
            table: None,
            reason: String::new(),
            start: None,
            end: None,
            has_details: false,
        };
        for (name, value) in query::filled_parameters(query) {
            match (name.as_ref(), value.as_ref()) {
                ("status", "dead") => status = Status::Dead,
                ("status", "retry") => status = Status::Retry,
                ("status", _) => return Err(BadRequest::Status(value.into_owned())),
                ("mode", "batch") => filter.mode = Some(TopicMode::Batch),
                ("mode", "stream") => filter.mode = Some(TopicMode::Stream),
                ("mode", _) => return Err(BadRequest::Mode(value.into_owned())),
                ("tableName", ALL_TABLES) => filter.table = None,
                ("tableName", _) => filter.table = Some(value.into_owned()),
                ("reason", _) => filter.reason = value.into_owned(),
                ("start", text) => filter.start = time("start", text)?,
                ("end", text) => filter.end = time("end", text)?,
                ("details", "true") => filter.has_details = true,
                ("details", "false") => filter.has_details = false,
                ("details", _) => return Err(BadRequest::Details(value.into_owned())),
                _ => {}
            }
        }
        if filter.table.is_some() {
            filter.mode = filter.mode.or(Some(TopicMode::Batch));
        }
        Ok((status, filter))
    }

    /// Whether the request wants to see this record.
    pub(super) fn wants(&self, prefix: &str, message: &Message) -> bool {
        let text = |name| message.header(name).unwrap_or_default();
        self.is_from(prefix, text(headers::ORIGINAL_TOPIC))
            && self.is_between(message.timestamp_ms())
            && memmem::find(text(headers::ERROR), self.reason.as_bytes()).is_some()
    }

    /// Whether it comes from a topic of the destination, and of the table if one is named.
    fn is_from(&self, prefix: &str, topic: &[u8]) -> bool {
        let topic = std::str::from_utf8(topic).ok().and_then(|name| TopicId::parse(prefix, name));
        topic.is_some_and(|topic| {
            topic.destination_id == self.destination_id
                && self.mode.is_none_or(|mode| mode == topic.mode)
                && self
                    .table
                    .as_ref()
                    .is_none_or(|table| *table == topic.table && topic.partition == 0)
        })
    }

    fn is_between(&self, timestamp: Option<i64>) -> bool {
        let at_least = |limit| timestamp.is_some_and(|at| at >= limit);
        let at_most = |limit| timestamp.is_some_and(|at| at <= limit);
        self.start.is_none_or(at_least) && self.end.is_none_or(at_most)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filter(query: &str) -> Filter {
        Filter::read("pg", query).unwrap().1
    }

    #[test]
    fn a_table_means_its_batch_topic_unless_a_mode_is_named() {
        let wants = |query: &str, topic: &str| filter(query).is_from("dev-", topic.as_bytes());
        let cases = [
            ("tableName=t", "dev-in.id.pg.m.batch.t.t", true),
            ("tableName=t", "dev-in.id.pg.m.stream.t.t", false),
            ("tableName=t&mode=stream", "dev-in.id.pg.m.stream.t.t", true),
            ("tableName=t", "dev-in.id.pg.m.batch.t.t.p.1", false),
            ("tableName=t", "dev-in.id.pg.m.batch.t.other", false),
            ("tableName=a+b", "dev-in.id.pg.m.batch.b64.YSBi", true),
            ("tableName=t", "dev-in.id.other.m.batch.t.t", false),
            ("tableName=t", "in.id.pg.m.batch.t.t", false),
            ("", "dev-in.id.pg.m.batch.t.t", true),
            ("tableName=_all_", "dev-in.id.pg.m.stream.t.t.p.1", true),
            ("mode=batch", "dev-in.id.pg.m.stream.t.t", false),
            ("", "dev-in.id.other.m.batch.t.t", false),
            ("", "", false),
        ];
        for (query, topic, expected) in cases {
            assert_eq!(wants(query, topic), expected, "{query} {topic}");
        }
    }

    #[test]
    fn times_are_inclusive_and_a_record_without_one_is_outside() {
        let between = filter("start=1700000000000&end=2023-11-15");
        let midnight = 1_700_006_400_000;
        for (at, expected) in [
            (Some(1_699_999_999_999), false),
            (Some(1_700_000_000_000), true),
            (Some(midnight), true),
            (Some(midnight + 1), false),
            (None, false),
        ] {
            assert_eq!(between.is_between(at), expected, "{at:?}");
        }
        assert!(filter("").is_between(None));
    }

    #[test]
    fn bad_parameters_are_named() {
        let refused = |query| Filter::read("pg", query).unwrap_err().to_string();
        assert_eq!(refused("status=x"), "unknown status: x (should be 'retry' or 'dead')");
        assert_eq!(refused("mode=x"), "unknown mode: x (should be 'batch' or 'stream')");
        assert_eq!(refused("details=x"), "unknown details: x (should be 'true' or 'false')");
        assert_eq!(
            refused("end=x"),
            "'end' parameter must be either unix timestamp or date in '2006-01-02' format"
        );
        assert_eq!(Filter::read("pg", "status=").unwrap().0, Status::Dead);
        assert_eq!(Filter::read("pg", "status=retry").unwrap().0, Status::Retry);
    }
}
