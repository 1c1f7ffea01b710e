//! What the spool's files are made of: records with a length and a checksum, each whole or not
//! there.
//!
//! A record is an event, or a mark that says what became of events written before it. Numbers are
//! little-endian: `magic u32, length of the body u32, crc32 of the body u32, body`. The body starts
//! with its kind and, in an event, with the number that the spool gives it when it is queued.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Starts every record, so that what follows a damaged one can be found.
const MAGIC: [u8; 4] = *b"BSP1";
/// Bytes before the body.
pub(super) const HEADER: usize = 12;
/// Where an event's number stands.
const SEQ_AT: usize = HEADER + 1;
/// No body is larger; a length beyond it is damage.
const MAX_BODY: usize = 1 << 30;

const EVENT: u8 = 1;
const HANDED: u8 = 2;
const REMOVED: u8 = 3;
const QUARANTINED: u8 = 4;
const RELEASED: u8 = 5;
const DISCARDED: u8 = 6;

/// An event as it goes to Kafka, and what the spool knows of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SpooledEvent {
    /// The topic that it goes to.
    pub(crate) topic: String,
    /// Its own: it is looked for by it.
    pub(crate) key: Vec<u8>,
    /// Names and values, in their order.
    pub(crate) headers: Vec<(String, Vec<u8>)>,
    /// The event.
    pub(crate) value: Vec<u8>,
    pub(super) facts: Facts,
}

impl SpooledEvent {
    pub(crate) fn seq(&self) -> u64 {
        self.facts.seq
    }

    /// When it was first handed to librdkafka.
    pub(crate) fn handed_at(&self) -> SystemTime {
        UNIX_EPOCH + Duration::from_millis(self.facts.handed_at)
    }

    pub(crate) fn headers(&self) -> Vec<(&str, &[u8])> {
        self.headers.iter().map(|(name, value)| (name.as_str(), value.as_slice())).collect()
    }
}

/// What is known of an event besides its content. Times are milliseconds since 1970.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Facts {
    pub(super) seq: u64,
    pub(super) received_at: u64,
    /// When it was first handed to librdkafka; 0 is never.
    pub(super) handed_at: u64,
    /// Why Kafka refused it for good; empty: it did not.
    pub(super) reason: String,
}

/// What became of events.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Mark {
    /// Handed to librdkafka, at this time.
    Handed(u64),
    /// Kafka has them.
    Removed,
    /// Kafka refused them for good, for this reason.
    Quarantined(String),
    /// Out of the quarantine, to be sent again.
    Released,
    /// Out of the quarantine, for good. Says nothing of an event that is not in it.
    Discarded,
}

/// One record.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Record {
    Event(SpooledEvent),
    Mark(Mark, Vec<u64>),
}

/// Borrowed parts of an event that is to be written.
#[derive(Debug, Clone, Copy)]
pub(crate) struct EventParts<'a> {
    pub(crate) topic: &'a str,
    pub(crate) key: &'a [u8],
    pub(crate) headers: &'a [(&'a str, &'a [u8])],
    pub(crate) value: &'a [u8],
}

/// An event as a record that lacks its number and its checksum: see [`seal`]. `None`: a part is too
/// large.
pub(super) fn encode_event(event: EventParts<'_>, facts: &Facts) -> Option<Vec<u8>> {
    let capacity = HEADER + 64 + event.topic.len() + event.key.len() + event.value.len();
    let mut out = Vec::with_capacity(capacity);
    out.resize(HEADER, 0);
    out.push(EVENT);
    out.extend(facts.seq.to_le_bytes());
    out.extend(facts.received_at.to_le_bytes());
    out.extend(facts.handed_at.to_le_bytes());
    put(&mut out, facts.reason.as_bytes())?;
    put(&mut out, event.topic.as_bytes())?;
    put(&mut out, event.key)?;
    out.extend(u32::try_from(event.headers.len()).ok()?.to_le_bytes());
    for (name, value) in event.headers {
        put(&mut out, name.as_bytes())?;
        put(&mut out, value)?;
    }
    put(&mut out, event.value)?;
    (out.len() - HEADER <= MAX_BODY).then_some(out)
}

/// Gives an encoded event its number.
pub(super) fn set_seq(record: &mut [u8], seq: u64) {
    record[SEQ_AT..SEQ_AT + 8].copy_from_slice(&seq.to_le_bytes());
}

/// A mark as a record, sealed.
pub(super) fn encode_mark(mark: &Mark, seqs: &[u64]) -> Vec<u8> {
    let mut out = vec![0; HEADER];
    match mark {
        Mark::Handed(at) => {
            out.push(HANDED);
            out.extend(at.to_le_bytes());
        }
        Mark::Removed => out.push(REMOVED),
        Mark::Quarantined(reason) => {
            out.push(QUARANTINED);
            // a reason is a line of ours or librdkafka's
            let _ = put(&mut out, reason.as_bytes());
        }
        Mark::Released => out.push(RELEASED),
        Mark::Discarded => out.push(DISCARDED),
    }
    seqs.iter().for_each(|seq| out.extend(seq.to_le_bytes()));
    seal(&mut out);
    out
}

/// Fills in the header of a finished record.
pub(super) fn seal(record: &mut [u8]) {
    let (header, body) = record.split_at_mut(HEADER);
    header[..4].copy_from_slice(&MAGIC);
    header[4..8].copy_from_slice(&(body.len() as u32).to_le_bytes()); // at most MAX_BODY
    header[8..].copy_from_slice(&crc32fast::hash(body).to_le_bytes());
}

/// The record at the start of `bytes` and its length; `None` if there is no whole and undamaged
/// one.
pub(super) fn decode(bytes: &[u8]) -> Option<(Record, usize)> {
    let length = length_of(bytes)?;
    let body = bytes.get(HEADER..length)?;
    if crc32fast::hash(body) != u32_at(bytes, 8)? {
        return None;
    }
    Some((decode_body(body)?, length))
}

/// Bytes of the record that starts here, header included, if its header looks right.
fn length_of(bytes: &[u8]) -> Option<usize> {
    if bytes.get(..4)? != MAGIC {
        return None;
    }
    let body = u32_at(bytes, 4)? as usize;
    (body <= MAX_BODY).then_some(HEADER + body)
}

/// Where the next undamaged record starts, at `from` or behind it.
pub(super) fn find_next(bytes: &[u8], from: usize) -> Option<usize> {
    let last = bytes.len().checked_sub(HEADER)?;
    (from..=last).find(|at| bytes[*at..].starts_with(&MAGIC) && decode(&bytes[*at..]).is_some())
}

fn decode_body(body: &[u8]) -> Option<Record> {
    let mut rest = Reader(body);
    let mark = match rest.take(1)?[0] {
        EVENT => return decode_event(rest).map(Record::Event),
        HANDED => Mark::Handed(rest.u64()?),
        REMOVED => Mark::Removed,
        QUARANTINED => Mark::Quarantined(rest.text()?),
        RELEASED => Mark::Released,
        DISCARDED => Mark::Discarded,
        _ => return None,
    };
    let mut seqs = Vec::with_capacity(rest.0.len() / 8);
    while !rest.0.is_empty() {
        seqs.push(rest.u64()?);
    }
    Some(Record::Mark(mark, seqs))
}

fn decode_event(mut rest: Reader<'_>) -> Option<SpooledEvent> {
    let (seq, received_at, handed_at) = (rest.u64()?, rest.u64()?, rest.u64()?);
    let reason = rest.text()?;
    let topic = rest.text()?;
    let key = rest.part()?.to_vec();
    let count = rest.u32()?;
    let mut headers = Vec::new();
    for _ in 0..count {
        headers.push((rest.text()?, rest.part()?.to_vec()));
    }
    let value = rest.part()?.to_vec();
    let facts = Facts { seq, received_at, handed_at, reason };
    Some(SpooledEvent { topic, key, headers, value, facts })
}

fn put(out: &mut Vec<u8>, part: &[u8]) -> Option<()> {
    out.extend(u32::try_from(part.len()).ok()?.to_le_bytes());
    out.extend(part);
    Some(())
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

/// Takes a body apart from its front.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }

    fn u32(&mut self) -> Option<u32> {
        Some(u32::from_le_bytes(self.take(4)?.try_into().ok()?))
    }

    fn u64(&mut self) -> Option<u64> {
        Some(u64::from_le_bytes(self.take(8)?.try_into().ok()?))
    }

    fn part(&mut self) -> Option<&'a [u8]> {
        let length = self.u32()? as usize;
        self.take(length)
    }

    fn text(&mut self) -> Option<String> {
        String::from_utf8(self.part()?.to_vec()).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event() -> Vec<u8> {
        let parts = EventParts {
            topic: "in.id.a.m.batch.t.t",
            key: b"key",
            headers: &[("metrics_meta", b"{}"), ("empty", b"")],
            value: br#"{"id":1}"#,
        };
        let facts = Facts { received_at: 5, handed_at: 6, reason: "why".to_owned(), seq: 0 };
        let mut record = encode_event(parts, &facts).unwrap();
        set_seq(&mut record, 42);
        seal(&mut record);
        record
    }

    #[test]
    fn an_event_comes_back_as_it_was_written() {
        let record = event();
        let (Record::Event(read), length) = decode(&record).unwrap() else { panic!("no event") };
        assert_eq!(length, record.len());
        assert_eq!(
            (read.topic.as_str(), read.key.as_slice()),
            ("in.id.a.m.batch.t.t", &b"key"[..])
        );
        assert_eq!(read.value, br#"{"id":1}"#);
        let headers = [("metrics_meta".to_owned(), b"{}".to_vec()), ("empty".to_owned(), vec![])];
        assert_eq!(read.headers, headers);
        let facts = Facts { seq: 42, received_at: 5, handed_at: 6, reason: "why".to_owned() };
        assert_eq!(read.facts, facts);
    }

    #[test]
    fn marks_come_back_as_they_were_written() {
        for mark in [
            Mark::Handed(7),
            Mark::Removed,
            Mark::Quarantined("no right".to_owned()),
            Mark::Released,
            Mark::Discarded,
        ] {
            let record = encode_mark(&mark, &[1, 2, 9]);
            let expected = Record::Mark(mark, vec![1, 2, 9]);
            assert_eq!(decode(&record), Some((expected, record.len())));
        }
    }

    #[test]
    fn a_record_that_is_cut_or_has_a_changed_bit_is_none() {
        let record = event();
        for length in 0..record.len() {
            assert!(decode(&record[..length]).is_none(), "{length} bytes");
        }
        for bit in 0..record.len() * 8 {
            let mut damaged = record.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(decode(&damaged).is_none(), "bit {bit}");
        }
    }

    #[test]
    fn behind_damage_the_next_record_is_found() {
        let mut bytes = event();
        let second = bytes.len();
        bytes.extend(event());
        bytes[20] ^= 1;
        assert_eq!(find_next(&bytes, 1), Some(second));
        assert_eq!(find_next(&bytes, second + 1), None);
    }
}
