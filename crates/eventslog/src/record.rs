//! What is read, and how it is asked for.

use std::{fmt, str::FromStr};

use serde_json::value::RawValue;

use crate::LogMetrics;

/// Digits of a time in milliseconds, from 2001 to 2286.
const TIME_DIGITS: usize = 13;

/// Place of a record in its stream, `<milliseconds since 1970>-<number>`. Later ones are greater.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct RecordId {
    pub millis: u64,
    pub number: u64,
}

/// Why a text is no [`RecordId`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not the id of a record: 13 digits, - and a number")]
pub struct NoRecordId;

impl fmt::Display for RecordId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.millis, self.number)
    }
}

impl FromStr for RecordId {
    type Err = NoRecordId;

    /// Without a number it is the last one of its millisecond.
    fn from_str(text: &str) -> Result<RecordId, NoRecordId> {
        let (time, number) = text.split_once('-').map_or((text, None), |(t, n)| (t, Some(n)));
        if time.len() != TIME_DIGITS {
            return Err(NoRecordId);
        }
        let digits = |text: &str| {
            let all = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
            all.then(|| text.parse().ok()).flatten().ok_or(NoRecordId)
        };
        let number = number.map_or(Ok(u64::MAX), digits)?;
        Ok(RecordId { millis: digits(time)?, number })
    }
}

/// All events of one kind and actor.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct StreamName {
    /// As in [`EventType::as_str`](crate::EventType::as_str); others may have written kinds of
    /// their own.
    pub kind: String,
    pub actor: String,
}

/// A record of several streams: those of a lesser id come after it, and those of the same id in
/// lesser streams.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position {
    pub id: RecordId,
    pub stream: StreamName,
}

/// Which records to read: the newest ones of these streams that are in the range.
#[derive(Debug, Clone, Default)]
pub struct Query {
    pub streams: Vec<StreamName>,
    /// Failures only.
    pub errors_only: bool,
    /// Milliseconds since 1970, inclusive.
    pub start: Option<i64>,
    /// Milliseconds since 1970, inclusive.
    pub end: Option<i64>,
    /// Only what comes after this one.
    pub after: Option<Position>,
    /// How many at most.
    pub limit: Option<usize>,
    /// Bytes of their contents at most, but for the first one.
    pub max_bytes: Option<usize>,
}

/// What a query found.
#[derive(Debug, Default)]
pub struct Found {
    /// Newest first.
    pub records: Vec<Record>,
    /// [`Query::max_bytes`] left some out that [`Query::limit`] did not.
    pub is_cut: bool,
}

impl Found {
    /// Takes the next record, unless it would be one too many or one byte too many; `false`: it
    /// was, and nothing more is wanted.
    pub(crate) fn push(&mut self, record: Record, query: &Query, bytes: &mut usize) -> bool {
        *bytes = bytes.saturating_add(record.content.get().len());
        self.is_cut = !self.records.is_empty() && query.max_bytes.is_some_and(|max| *bytes > max);
        if !self.is_cut {
            self.records.push(record);
        }
        !self.is_cut && query.limit.is_none_or(|limit| self.records.len() < limit)
    }
}

/// One event as it was stored.
#[derive(Debug)]
pub struct Record {
    /// Its stream, as an index into [`Query::streams`].
    pub stream: usize,
    pub id: RecordId,
    /// As it was stored; null where that is not JSON.
    pub content: Box<RawValue>,
}

impl Record {
    /// Content that is not there is counted. The record stays, for pages are counted in records.
    pub(crate) fn new(
        stream: usize,
        id: RecordId,
        content: Option<Box<RawValue>>,
        metrics: &LogMetrics,
    ) -> Record {
        let content = content.unwrap_or_else(|| {
            metrics.error("unmarshal_error");
            RawValue::NULL.to_owned()
        });
        Record { stream, id, content }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_thirteen_digits_and_a_number() {
        let id = |millis, number| Ok(RecordId { millis, number });
        let cases = [
            ("1700000000000-0", id(1_700_000_000_000, 0)),
            ("1700000000000-18446744073709551615", id(1_700_000_000_000, u64::MAX)),
            ("1700000000000", id(1_700_000_000_000, u64::MAX)),
            ("1700000000000-", Err(NoRecordId)),
            ("1700000000000-+1", Err(NoRecordId)),
            ("+700000000000-1", Err(NoRecordId)),
            ("1700000000000-18446744073709551616", Err(NoRecordId)),
            ("170000000000-1", Err(NoRecordId)),
            ("17000000000000-1", Err(NoRecordId)),
            ("-", Err(NoRecordId)),
            ("", Err(NoRecordId)),
        ];
        for (text, expected) in cases {
            assert_eq!(text.parse::<RecordId>(), expected, "{text}");
        }
        let text = "1700000000000-7";
        assert_eq!(text.parse::<RecordId>().unwrap().to_string(), text);
    }

    #[test]
    fn positions_go_by_id_and_then_by_stream() {
        let position = |id: &str, actor: &str| Position {
            id: id.parse().unwrap(),
            stream: StreamName { kind: "k".to_owned(), actor: actor.to_owned() },
        };
        assert!(position("1700000000000-9", "a") < position("1700000000000-10", "a"));
        assert!(position("1700000000000-9", "b") < position("1700000000000-10", "a"));
        assert!(position("1700000000000-9", "a") < position("1700000000000-9", "b"));
    }
}
