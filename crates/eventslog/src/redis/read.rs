//! Reading streams from their ends, one or many at a time.
//!
//! Invariant: what is held of many streams is about what was asked for, not that many times the
//! streams, however large records are: of each stream a small piece is read first, and more only of
//! the one that runs out; an answer of Redis has few records; and of pieces that are large together
//! only the places are kept until their turn comes.

use std::collections::{BinaryHeap, VecDeque};

use ::redis::{FromRedisValue, Pipeline, Value, cmd, pipe, streams::StreamRangeReply};
use serde_json::value::RawValue;

use super::{FIELD, RedisLog, stream_key};
use crate::{
    StoreError,
    record::{Found, Position, Query, Record, RecordId, StreamName},
};

/// Records that Redis is asked for in one go.
const RECORDS_PER_CALL: usize = 32;
/// Bytes of first pieces that are held until their turn comes.
const HELD_BYTES: usize = 8 << 20;

impl RedisLog {
    pub(crate) async fn read(&self, query: &Query) -> Result<Found, StoreError> {
        let streams = query.streams.as_slice();
        if streams.is_empty() || query.limit == Some(0) {
            return Ok(Found::default());
        }
        let mut pages = self.first_pages(query).await?;
        let mut heads: BinaryHeap<_> =
            (0..streams.len()).filter_map(|i| Some((pages[i].head()?, &streams[i], i))).collect();
        let (mut found, mut bytes) = (Found::default(), 0);
        while let Some((head, stream, i)) = heads.pop() {
            if pages[i].is_given_back() {
                let handed = pages[i].handed;
                pages[i] = self.next_page(query, i, Upper::UpTo(head), handed).await?;
                if pages[i].head() != Some(head) {
                    heads.extend(pages[i].head().map(|head| (head, stream, i))); // trimmed meanwhile
                    continue;
                }
            }
            let page = &mut pages[i];
            let Some(record) = page.records.pop_front() else { continue };
            if !found.push(record, query, &mut bytes) {
                break;
            }
            page.handed += 1;
            if page.records.is_empty()
                && let Some(next) = page.next
            {
                let handed = page.handed;
                pages[i] = self.next_page(query, i, Upper::Before(next), handed).await?;
            }
            heads.extend(pages[i].head().map(|head| (head, stream, i)));
        }
        Ok(found)
    }

    /// The first piece of each stream.
    async fn first_pages(&self, query: &Query) -> Result<Vec<Page>, StoreError> {
        let streams = query.streams.as_slice();
        let count = query.limit.map_or(RECORDS_PER_CALL, |limit| limit / streams.len());
        let count = count.clamp(1, RECORDS_PER_CALL);
        let uppers: Vec<_> =
            streams.iter().enumerate().map(|(i, stream)| (i, Upper::of(query, stream))).collect();
        let mut pages: Vec<Page> = Vec::with_capacity(streams.len());
        let mut held = 0;
        for wanted in uppers.chunks(RECORDS_PER_CALL / count) {
            let new = self.pages(query, wanted, count).await?;
            held += new.iter().map(Page::bytes).sum::<usize>();
            pages.extend(new);
            if held > HELD_BYTES {
                pages.iter_mut().for_each(Page::give_back);
                held = 0;
            }
        }
        Ok(pages)
    }

    /// As much of a stream as was wanted of it so far, and one: few calls, and little that is not
    /// wanted.
    async fn next_page(
        &self,
        query: &Query,
        stream: usize,
        upper: Upper,
        handed: usize,
    ) -> Result<Page, StoreError> {
        let count = (handed + 1).min(RECORDS_PER_CALL);
        let pages = self.pages(query, &[(stream, upper)], count).await?;
        Ok(Page { handed, ..pages.into_iter().next().unwrap_or_default() })
    }

    /// The newest records of some streams, `count` of each at most.
    async fn pages(
        &self,
        query: &Query,
        wanted: &[(usize, Upper)],
        count: usize,
    ) -> Result<Vec<Page>, StoreError> {
        let mut pipeline = pipe();
        pipeline.ignore_errors();
        for (stream, upper) in wanted {
            add_range(&mut pipeline, query, &query.streams[*stream], *upper, count);
        }
        let replies = self.call(&pipeline).await?;
        if replies.len() != wanted.len() {
            return Err(StoreError::Redis("answered some of the questions".to_owned()));
        }
        wanted
            .iter()
            .zip(replies)
            .map(|((stream, _), reply)| self.page(*stream, reply, count))
            .collect()
    }

    fn page(&self, stream: usize, reply: Value, count: usize) -> Result<Page, StoreError> {
        if let Value::ServerError(error) = &reply {
            return Err(StoreError::Redis(format!("answered {}", error.code())));
        }
        let reply = StreamRangeReply::from_redis_value(reply)
            .map_err(|_| StoreError::Redis("answered no stream".to_owned()))?;
        let is_full = reply.ids.len() >= count;
        let mut page = Page::default();
        for mut entry in reply.ids {
            let Ok(id) = entry.id.parse::<RecordId>() else {
                self.metrics.error("parse_timestamp_error");
                continue;
            };
            page.next = is_full.then_some(id);
            let content = entry.map.remove(FIELD).and_then(content);
            page.records.push_back(Record::new(stream, id, content, &self.metrics));
        }
        Ok(page)
    }
}

/// What was read of a stream and is not handed out yet, newest first.
#[derive(Default)]
struct Page {
    records: VecDeque<Record>,
    /// Where to go on; `None` where the stream ends.
    next: Option<RecordId>,
    /// How many records of the stream were handed out.
    handed: usize,
    /// The first record, where the records are to be read again.
    given_back: Option<RecordId>,
}

impl Page {
    fn head(&self) -> Option<RecordId> {
        self.records.front().map(|record| record.id).or(self.given_back)
    }

    fn bytes(&self) -> usize {
        self.records.iter().map(|record| record.content.get().len()).sum()
    }

    fn is_given_back(&self) -> bool {
        self.given_back.is_some()
    }

    /// Keeps the place alone.
    fn give_back(&mut self) {
        self.given_back = self.head();
        self.records = VecDeque::new();
    }
}

/// The newest record that is wanted of a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Upper {
    None,
    UpTo(RecordId),
    Before(RecordId),
}

impl Upper {
    fn of(query: &Query, stream: &StreamName) -> Upper {
        match &query.after {
            None => Upper::None,
            Some(Position { id, stream: after }) if stream < after => Upper::UpTo(*id),
            Some(Position { id, .. }) => Upper::Before(*id),
        }
    }

    fn millis(self) -> Option<u64> {
        match self {
            Upper::None => None,
            Upper::UpTo(id) | Upper::Before(id) => Some(id.millis),
        }
    }
}

fn add_range(
    pipeline: &mut Pipeline,
    query: &Query,
    stream: &StreamName,
    upper: Upper,
    count: usize,
) {
    let mut command = cmd("XREVRANGE");
    command.arg(stream_key(&stream.kind, query.errors_only, &stream.actor));
    // a time alone stands for its last id as an end, for its first one as a start; times before
    // 1970 hold nothing
    let millis = |millis: i64| u64::try_from(millis).unwrap_or(0);
    let end = query.end.map(millis).filter(|end| upper.millis().is_none_or(|upper| *end < upper));
    match (end, upper) {
        (Some(end), _) => command.arg(end),
        (None, Upper::None) => command.arg("+"),
        (None, Upper::UpTo(id)) => command.arg(id.to_string()),
        (None, Upper::Before(id)) => command.arg(format!("({id}")),
    };
    match query.start {
        Some(start) => command.arg(millis(start)),
        None => command.arg("-"),
    };
    command.arg("COUNT").arg(count);
    pipeline.add_command(command);
}

fn content(value: Value) -> Option<Box<RawValue>> {
    let text = String::from_redis_value(value).ok()?;
    RawValue::from_string(text).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_ends_where_the_first_of_its_ends_is() {
        let id = |millis| RecordId { millis, number: 7 };
        let (early, late) = (1_700_000_000_000_i64, 1_700_000_000_001_u64);
        let cases = [
            (None, None, Upper::None, "+ -"),
            (Some(early), None, Upper::None, "+ 1700000000000"),
            (None, Some(early), Upper::None, "1700000000000 -"),
            (None, None, Upper::Before(id(late)), "(1700000000001-7 -"),
            (None, None, Upper::UpTo(id(late)), "1700000000001-7 -"),
            (None, Some(early), Upper::Before(id(late)), "1700000000000 -"),
            (None, Some(early), Upper::Before(id(1_700_000_000_000)), "(1700000000000-7 -"),
            (None, Some(early + 9), Upper::Before(id(late)), "(1700000000001-7 -"),
            (Some(-5), Some(-1), Upper::None, "0 0"),
        ];
        for (start, end, upper, expected) in cases {
            let stream = StreamName { kind: "k".to_owned(), actor: "a".to_owned() };
            let query = Query { start, end, ..Query::default() };
            let mut pipeline = pipe();
            add_range(&mut pipeline, &query, &stream, upper, 3);
            let packed = String::from_utf8(pipeline.get_packed_pipeline()).unwrap();
            let words: Vec<_> = packed.split("\r\n").skip(2).step_by(2).collect();
            assert_eq!(words.join(" "), format!("XREVRANGE events_log:k.all#a {expected} COUNT 3"));
        }
    }
}
