//! What travels with a refused event: why it was refused, how often, when it comes again, and where
//! it was read first.
//!
//! Invariant: key and value reach the table unchanged however often the event is refused, and its
//! *origin* (the place where it was read first) is the same in every copy. Headers that the
//! original knows have its names and formats.

use jiff::Timestamp;
use kafkabase::{Message, Record, headers};
use uuid::Uuid;
use warehouse::Origin;

const ERROR: &str = headers::ERROR.as_str();
pub(crate) const ORIGINAL_TOPIC: &str = headers::ORIGINAL_TOPIC.as_str();
pub(crate) const RETRIES: &str = headers::RETRIES.as_str();
const RETRY_TIME: &str = headers::RETRY_TIME.as_str();
const ORIGIN: &str = headers::ORIGIN.as_str();
const KEY: &str = headers::KEY.as_str();
/// Code points of an error's text that a header keeps.
const ERROR_LENGTH: usize = 256;
/// Attempts that are told apart. Others write to our topics too: a larger number is this one.
const MOST_ATTEMPTS: u32 = 1_000_000;
/// Bytes that Kafka allows a topic's name, and that we allow a cluster's id.
const LONGEST_NAME: usize = 249;

/// An event with all that travels with it, in memory of our own.
#[derive(Debug, Clone, Default)]
pub(crate) struct Envelope {
    key: Option<Vec<u8>>,
    value: Option<Vec<u8>>,
    headers: Vec<(String, Option<Vec<u8>>)>,
}

impl Envelope {
    pub(crate) fn of(message: &Message) -> Envelope {
        let own =
            |(name, value): (&str, Option<&[u8]>)| (name.to_owned(), value.map(<[u8]>::to_vec));
        Envelope {
            key: message.key().map(<[u8]>::to_vec),
            value: (!message.is_tombstone()).then(|| message.payload().to_vec()),
            headers: message.headers().into_iter().map(own).collect(),
        }
    }

    /// A header's text; `None` where it is absent or no text.
    pub(crate) fn text(&self, name: &str) -> Option<&str> {
        let (_, value) = self.headers.iter().rev().find(|(found, _)| found == name)?;
        std::str::from_utf8(value.as_deref()?).ok()
    }

    /// Sets the one header of this name, where the first one stands. Whoever made the record may
    /// have written the header twice: readers differ in which of them counts.
    pub(crate) fn set(&mut self, name: &str, value: &str) {
        let value = Some(value.as_bytes().to_vec());
        let Some(at) = self.headers.iter().position(|(found, _)| found == name) else {
            return self.headers.push((name.to_owned(), value));
        };
        self.headers[at].1 = value;
        let mut index = 0;
        self.headers.retain(|(found, _)| {
            index += 1;
            index - 1 == at || found != name
        });
    }

    fn remove(&mut self, name: &str) {
        self.headers.retain(|(found, _)| found != name);
    }

    /// How often the event was sent back to its topic, [`MOST_ATTEMPTS`] at most. `None`: the
    /// header is no number.
    pub(crate) fn attempt(&self) -> Option<u32> {
        let header = self.headers.iter().rev().find(|(found, _)| found == RETRIES);
        parse_attempts(header.and_then(|(_, value)| value.as_deref()))
    }

    /// The same of a message, read without a copy of the event.
    pub(crate) fn attempts_of(message: &Message) -> Option<u32> {
        parse_attempts(message.header(headers::RETRIES))
    }

    pub(crate) fn origin(&self) -> Option<Origin> {
        parse_origin(self.text(ORIGIN)?)
    }

    /// The origin that a message carries, read without a copy of the event.
    pub(crate) fn origin_of(message: &Message) -> Option<Origin> {
        parse_origin(std::str::from_utf8(message.header(headers::ORIGIN)?).ok()?)
    }

    /// `None`: nobody could judge an origin when the event comes back, so it carries none.
    pub(crate) fn set_origin(&mut self, origin: Option<&Origin>) {
        let Some(origin) = origin else {
            return self.remove(ORIGIN);
        };
        let text = serde_json::to_string(origin).expect("numbers and texts only");
        self.set(ORIGIN, &text);
    }

    pub(crate) fn set_error(&mut self, error: &str) {
        let cut = error.char_indices().nth(ERROR_LENGTH).map(|(at, _)| at);
        match cut {
            Some(at) => self.set(ERROR, &format!("{}...", &error[..at])),
            None => self.set(ERROR, error),
        }
    }

    pub(crate) fn set_retry_time(&mut self, at: Timestamp) {
        self.set(RETRY_TIME, &format!("{at:.6}"));
    }

    /// When the event is due again. Without a readable time it is due at once.
    pub(crate) fn retry_time(&self) -> Option<Timestamp> {
        self.text(RETRY_TIME)?.parse().ok()
    }

    /// Gives the copy a key that no other record has: topics of copies are compacted, which keeps
    /// only the last record of a key. The event's own key goes into a header until the event is
    /// back in its topic: also one that looks unique, for it may be the id of a user.
    pub(crate) fn make_key_unique(&mut self) {
        let key = self.key.replace(Uuid::new_v4().to_string().into_bytes());
        if self.headers.iter().all(|(name, _)| name != KEY) {
            self.headers.push((KEY.to_owned(), key));
        }
    }

    /// Gives the event its own key back.
    pub(crate) fn restore_key(&mut self) {
        if let Some(at) = self.headers.iter().position(|(name, _)| name == KEY) {
            self.key = self.headers.remove(at).1;
        }
    }

    pub(crate) fn into_record(self, topic: &str) -> Record {
        Record { topic: topic.to_owned(), key: self.key, value: self.value, headers: self.headers }
    }
}

fn parse_attempts(header: Option<&[u8]>) -> Option<u32> {
    let Some(text) = header else {
        return Some(0);
    };
    let text = std::str::from_utf8(text).ok()?;
    let is_number = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    // more digits than a number has are a large number all the same
    is_number.then(|| text.parse().unwrap_or(MOST_ATTEMPTS).min(MOST_ATTEMPTS))
}

/// An origin that can be one: a place in a topic, under names that fit a ledger's index.
fn parse_origin(text: &str) -> Option<Origin> {
    let origin: Origin = serde_json::from_str(text).ok()?;
    let is_place = origin.partition >= 0 && origin.offset >= 0;
    let fits = |name: &str| name.len() <= LONGEST_NAME && !name.contains('\0');
    (is_place && fits(&origin.topic) && fits(&origin.cluster)).then_some(origin)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn origin() -> Origin {
        Origin {
            cluster: "c".to_owned(),
            topic: "in.id.pg.m.batch.t.t".to_owned(),
            topic_id: Some(Uuid::from_u128(7)),
            partition: 0,
            offset: 42,
        }
    }

    #[test]
    fn a_header_is_replaced_where_it_stands() {
        let mut envelope = Envelope {
            headers: vec![("retries".to_owned(), Some(b"1".to_vec())), ("x".to_owned(), None)],
            ..Envelope::default()
        };
        envelope.set(RETRIES, "2");
        envelope.set(ORIGINAL_TOPIC, "t");
        let names: Vec<_> = envelope.headers.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["retries", "x", "original_topic"]);
        assert_eq!(envelope.attempt(), Some(2));
    }

    #[test]
    fn no_retries_is_none_so_far_and_anything_else_is_not_known() {
        let mut envelope = Envelope::default();
        assert_eq!(envelope.attempt(), Some(0));
        envelope.set(RETRIES, "many");
        assert_eq!(envelope.attempt(), None);
    }

    #[test]
    fn an_origin_survives_its_way() {
        let mut envelope = Envelope::default();
        envelope.set_origin(Some(&origin()));
        assert_eq!(envelope.origin(), Some(origin()));
        let expected = r#"{"cluster":"c","topic":"in.id.pg.m.batch.t.t","topicId":"00000000-0000-0000-0000-000000000007","partition":0,"offset":42}"#;
        assert_eq!(envelope.text(ORIGIN), Some(expected));
    }

    #[test]
    fn an_error_is_cut_between_characters_after_256() {
        let mut envelope = Envelope::default();
        envelope.set_error(&"é".repeat(256));
        assert_eq!(envelope.text(ERROR).unwrap(), "é".repeat(256));
        envelope.set_error(&"é".repeat(257));
        assert_eq!(envelope.text(ERROR).unwrap(), format!("{}...", "é".repeat(256)));
    }

    #[test]
    fn times_are_written_with_six_digits_and_read_back() {
        let mut envelope = Envelope::default();
        let at: Timestamp = "2026-11-24T10:00:00.5Z".parse().unwrap();
        envelope.set_retry_time(at);
        assert_eq!(envelope.text(RETRY_TIME), Some("2026-11-24T10:00:00.500000Z"));
        assert_eq!(envelope.retry_time(), Some(at));
        envelope.set(RETRY_TIME, "soon");
        assert_eq!(envelope.retry_time(), None);
    }

    #[test]
    fn a_key_that_may_be_shared_is_set_aside_and_comes_back() {
        for key in [None, Some(b"user-1".to_vec())] {
            let mut envelope = Envelope { key: key.clone(), ..Envelope::default() };
            envelope.make_key_unique();
            assert!(Uuid::try_parse_ascii(envelope.key.as_deref().unwrap()).is_ok());
            envelope.restore_key();
            assert_eq!(envelope.key, key);
            assert!(envelope.headers.is_empty());
        }
    }

    #[test]
    fn events_that_share_a_uuid_as_their_key_have_copies_with_different_keys() {
        let user = Some(b"5b1f7a3e-6f0a-4c57-9d5e-2f6c7b0f4a11".to_vec());
        let mut copies = [(); 2].map(|()| Envelope { key: user.clone(), ..Envelope::default() });
        copies.iter_mut().for_each(Envelope::make_key_unique);
        assert_ne!(copies[0].key, copies[1].key);
        copies[0].restore_key();
        assert_eq!(copies[0].key, user);
    }

    #[test]
    fn a_copy_of_a_copy_keeps_the_events_own_key() {
        let mut envelope = Envelope { key: Some(b"user-1".to_vec()), ..Envelope::default() };
        envelope.make_key_unique();
        envelope.make_key_unique();
        envelope.restore_key();
        assert_eq!(envelope.key.as_deref(), Some(b"user-1".as_slice()));
    }

    #[test]
    fn of_two_headers_of_a_name_one_is_left_and_it_is_the_one_that_was_set() {
        let header = |value: &str| (RETRIES.to_owned(), Some(value.as_bytes().to_vec()));
        let other = ("x".to_owned(), None);
        let headers = vec![header("0"), other.clone(), header("7")];
        let mut envelope = Envelope { headers, ..Envelope::default() };
        envelope.set(RETRIES, "8");
        assert_eq!(envelope.headers, [header("8"), other]);
    }

    #[test]
    fn a_number_of_attempts_by_somebody_else_is_never_too_large_to_count_on() {
        for text in ["2147483647", "4294967295", "99999999999999999999"] {
            let mut envelope = Envelope::default();
            envelope.set(RETRIES, text);
            assert_eq!(envelope.attempt(), Some(MOST_ATTEMPTS), "{text}");
        }
        for text in ["-1", "", "1.5", "many"] {
            let mut envelope = Envelope::default();
            envelope.set(RETRIES, text);
            assert_eq!(envelope.attempt(), None, "{text}");
        }
    }

    #[test]
    fn an_origin_that_is_no_place_in_a_topic_is_none() {
        let readable = |origin: &Origin| {
            let mut envelope = Envelope::default();
            envelope.set_origin(Some(origin));
            envelope.origin().is_some()
        };
        assert!(readable(&origin()));
        assert!(!readable(&Origin { offset: i64::MIN, ..origin() }));
        assert!(!readable(&Origin { partition: -1, ..origin() }));
        assert!(!readable(&Origin { topic: "t".repeat(2800), ..origin() }));
        assert!(!readable(&Origin { cluster: "c".repeat(250), ..origin() }));
        assert!(!readable(&Origin { topic: "a\0b".to_owned(), ..origin() }));
    }
}
