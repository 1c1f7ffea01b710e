//! What a topic's name says, and back.
//!
//! `<prefix>in.id.<destination>.m.<mode>.<encoding>.<table>[.p.<N>]`: names are shared with
//! deployments of the original, so they are pinned byte for byte. Invariant: a name that
//! [`TopicId::name`] returns parses to the same id. What the plain encoding could not carry (a
//! table with `.p.` in it) is encoded, which the original reads as well.

use std::fmt::Write;

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};

/// Kafka's limit, in bytes.
pub const MAX_TOPIC_NAME: usize = 249;
/// The table of topics that carry all tables of a destination.
pub const ALL_TABLES: &str = "_all_";
const MARKER: &str = "in.id.";
const PARTITION: &str = ".p.";

/// What a topic is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum TopicMode {
    /// Events of a table that are loaded as they come.
    Stream,
    /// Events of a table that are loaded in batches.
    Batch,
    /// Refused events of a destination that are tried again.
    Retry,
    /// Refused events of a destination that are not tried again.
    Dead,
    /// Events of a profile builder; the table is a priority.
    Profiles,
}

impl TopicMode {
    /// As it stands in a topic's name.
    pub fn as_str(self) -> &'static str {
        match self {
            TopicMode::Stream => "stream",
            TopicMode::Batch => "batch",
            TopicMode::Retry => "retry",
            TopicMode::Dead => "dead",
            TopicMode::Profiles => "profiles",
        }
    }

    /// From a topic's name. `None`: another text.
    pub fn parse(text: &str) -> Option<TopicMode> {
        [
            TopicMode::Stream,
            TopicMode::Batch,
            TopicMode::Retry,
            TopicMode::Dead,
            TopicMode::Profiles,
        ]
        .into_iter()
        .find(|mode| mode.as_str() == text)
    }
}

/// One of our topics, as its name tells it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct TopicId {
    /// The destination, or the profile builder.
    pub destination_id: String,
    /// What the topic is for.
    pub mode: TopicMode,
    /// The table; [`ALL_TABLES`] where the topic carries them all.
    pub table: String,
    /// Part of the name, not a partition of Kafka; 0 is not written.
    pub partition: u32,
}

/// Why an id has no topic name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TopicNameError {
    /// Longer than [`MAX_TOPIC_NAME`].
    #[error(
        "topic name {name} length {} exceeds limit ({MAX_TOPIC_NAME}). Please choose shorter table name. \
         Recommended table name length is <= 63 symbols",
        name.len()
    )]
    TooLong {
        /// The name that is too long.
        name: String,
    },
    /// Kafka or the way back would not take it.
    #[error("destination id {0:?} cannot be part of a topic name")]
    Destination(String),
}

impl TopicId {
    /// Modes that carry all tables get the table [`ALL_TABLES`], whatever is given.
    pub fn new(destination_id: &str, mode: TopicMode, table: &str, partition: u32) -> TopicId {
        let table = match mode {
            TopicMode::Retry | TopicMode::Dead => ALL_TABLES,
            TopicMode::Stream | TopicMode::Batch | TopicMode::Profiles => table,
        };
        TopicId {
            destination_id: destination_id.to_owned(),
            mode,
            table: table.to_owned(),
            partition,
        }
    }

    /// The topic's name.
    pub fn name(&self, prefix: &str) -> Result<String, TopicNameError> {
        let name = topic_name(prefix, &self.destination_id, self.mode, &self.table, self.partition);
        check(&self.destination_id, name)
    }

    /// What `name` stands for; `None` if it is not one of ours under this prefix.
    pub fn parse(prefix: &str, name: &str) -> Option<TopicId> {
        let rest = name.strip_prefix(prefix)?.strip_prefix(MARKER)?;
        if rest.contains(MARKER) {
            return None;
        }
        let mut parts = rest.splitn(5, '.');
        let (destination_id, m) = (parts.next()?, parts.next()?);
        let mode = TopicMode::parse(parts.next()?)?;
        let (encoding, remainder) = (parts.next()?, parts.next()?);
        let (table, partition) = match remainder.split_once(PARTITION) {
            Some((table, number)) => (table, number.parse().ok()?),
            None => (remainder, 0),
        };
        let table = match encoding {
            "t" => table.to_owned(),
            "b64" => String::from_utf8(URL_SAFE_NO_PAD.decode(table).ok()?).ok()?,
            _ => return None,
        };
        (m == "m").then(|| TopicId {
            destination_id: destination_id.to_owned(),
            mode,
            table,
            partition,
        })
    }
}

/// The name of a topic without the detour over an id: requests come often.
///
/// `destination_id` has passed [`is_topic_part`].
pub fn topic_name(
    prefix: &str,
    destination_id: &str,
    mode: TopicMode,
    table: &str,
    partition: u32,
) -> String {
    let mut name = String::with_capacity(
        prefix.len() + MARKER.len() + destination_id.len() + table.len() + 24,
    );
    name.push_str(prefix);
    name.push_str(MARKER);
    name.push_str(destination_id);
    name.push_str(".m.");
    name.push_str(mode.as_str());
    if is_plain(table, partition) {
        name.push_str(".t.");
        name.push_str(table);
    } else {
        name.push_str(".b64.");
        URL_SAFE_NO_PAD.encode_string(table, &mut name);
    }
    if partition > 0 {
        let written = write!(name, "{PARTITION}{partition}");
        debug_assert!(written.is_ok(), "writing to a String does not fail");
    }
    name
}

/// Whether a destination's id can be part of a topic's name: what Kafka takes, but no dot.
pub fn is_topic_part(id: &str) -> bool {
    !id.is_empty() && id.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-'))
}

/// The name, if it is not too long for Kafka.
pub fn check_length(name: String) -> Result<String, TopicNameError> {
    if name.len() > MAX_TOPIC_NAME { Err(TopicNameError::TooLong { name }) } else { Ok(name) }
}

fn check(destination_id: &str, name: String) -> Result<String, TopicNameError> {
    if !is_topic_part(destination_id) {
        return Err(TopicNameError::Destination(destination_id.to_owned()));
    }
    check_length(name)
}

/// Whether a table can stand in a name as it is and be found there again.
fn is_plain(table: &str, partition: u32) -> bool {
    let is_allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.');
    let would_be_cut = table.contains(PARTITION)
        || table.contains(MARKER)
        || (partition > 0 && table.ends_with(".p"));
    table.bytes().all(is_allowed) && !would_be_cut
}

/// The 32-bit FNV-1a hash of a name: which shard a topic belongs to, when in its period it runs.
pub fn fnv1a(text: &str) -> u32 {
    text.bytes().fold(0x811c_9dc5, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193))
}

/// Whether Kafka makes no topic of one name beside one of the other: dots and underscores are one
/// in its metrics. A name does not collide with itself.
pub fn names_collide(one: &str, other: &str) -> bool {
    let folded = |byte: u8| if byte == b'.' { b'_' } else { byte };
    one.len() == other.len()
        && one != other
        && one.bytes().map(folded).eq(other.bytes().map(folded))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(destination_id: &str, mode: TopicMode, table: &str, partition: u32) -> String {
        TopicId::new(destination_id, mode, table, partition).name("").unwrap()
    }

    #[test]
    fn names_collide_that_differ_in_dots_and_underscores_only() {
        let cases = [
            ("page.view", "page_view", true),
            ("a.b_c", "a_b.c", true),
            ("a.b", "a.b", false),
            ("a.b", "a.B", false),
            ("a.b", "a-b", false),
            ("a.b", "a..b", false),
        ];
        for (one, other, is_so) in cases {
            assert_eq!(names_collide(one, other), is_so, "{one} {other}");
            assert_eq!(names_collide(other, one), is_so, "{other} {one}");
        }
    }

    #[test]
    fn names_are_those_of_the_original() {
        let cases = [
            ("clyzlw-", TopicMode::Batch, "events", 0, "in.id.clyzlw-.m.batch.t.events"),
            (
                "clyzlw-",
                TopicMode::Batch,
                "Account Deactivated User",
                0,
                "in.id.clyzlw-.m.batch.b64.QWNjb3VudCBEZWFjdGl2YXRlZCBVc2Vy",
            ),
            ("pg", TopicMode::Stream, "a.b-c_D", 0, "in.id.pg.m.stream.t.a.b-c_D"),
            ("pg", TopicMode::Batch, "", 0, "in.id.pg.m.batch.t."),
            ("pg", TopicMode::Batch, "events", 3, "in.id.pg.m.batch.t.events.p.3"),
            ("pg", TopicMode::Batch, "é", 3, "in.id.pg.m.batch.b64.w6k.p.3"),
            ("pg", TopicMode::Retry, "events", 0, "in.id.pg.m.retry.t._all_"),
            ("pg", TopicMode::Dead, "events", 0, "in.id.pg.m.dead.t._all_"),
        ];
        for (destination_id, mode, table, partition, expected) in cases {
            assert_eq!(name(destination_id, mode, table, partition), expected);
        }
    }

    #[test]
    fn a_name_parses_to_the_id_it_was_made_of() {
        let tables = [
            "events",
            "",
            "a.b",
            "a.p.1",
            ".p.",
            "a.p",
            "in.id.x",
            "id.x",
            "b64.x",
            "t",
            "m.batch.t.x",
            "é",
            "a b",
            "\"; drop table x; --",
            "\0",
            "🦀",
            "_all_",
            "..",
            "p.1",
        ];
        for table in tables {
            for partition in [0, 1, 17] {
                for prefix in ["", "dev-", "dev.", "in.id."] {
                    let id = TopicId::new("pg-1_x", TopicMode::Batch, table, partition);
                    let name = id.name(prefix).unwrap();
                    let legal = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
                    assert!(name.bytes().all(legal), "{name}");
                    assert_eq!(TopicId::parse(prefix, &name), Some(id), "{name}");
                }
            }
        }
    }

    #[test]
    fn a_prefix_is_compared_exactly() {
        let with_prefix = "dev-in.id.pg.m.batch.t.events";
        assert!(TopicId::parse("dev-", with_prefix).is_some());
        assert_eq!(TopicId::parse("", with_prefix), None);
        assert_eq!(TopicId::parse("prod-", with_prefix), None);
    }

    #[test]
    fn other_names_are_not_ours() {
        let others = [
            "",
            "__consumer_offsets",
            "destination-messages",
            "in.id.",
            "in.id.pg",
            "in.id.pg.m.batch",
            "in.id.pg.m.batch.t",
            "in.id.pg.m.upsert.t.events",
            "in.id.pg.x.batch.t.events",
            "in.id.pg.m.batch.hex.00",
            "in.id.pg.m.batch.b64.***",
            "in.id.pg.m.batch.b64._w",
            "in.id.pg.m.batch.t.events.p.x",
            "in.id.pg.m.batch.t.in.id.events",
        ];
        for other in others {
            assert_eq!(TopicId::parse("", other), None, "{other}");
        }
    }

    #[test]
    fn a_name_is_at_most_249_bytes() {
        let fixed = "in.id.pg.m.batch.t.".len();
        let longest = "a".repeat(MAX_TOPIC_NAME - fixed);
        assert_eq!(name("pg", TopicMode::Batch, &longest, 0).len(), MAX_TOPIC_NAME);
        let error =
            TopicId::new("pg", TopicMode::Batch, &format!("{longest}a"), 0).name("").unwrap_err();
        let text = error.to_string();
        assert!(text.starts_with("topic name in.id.pg.m.batch.t.aaa"), "{text}");
        assert!(
            text.ends_with(
                " length 250 exceeds limit (249). Please choose shorter table name. Recommended table name \
                 length is <= 63 symbols"
            ),
            "{text}"
        );
    }

    #[test]
    fn destination_ids_that_would_not_be_found_again_are_refused() {
        for id in ["", "a.b", "a b", "ü", "a/b", "a\0"] {
            assert!(!is_topic_part(id), "{id:?}");
            assert!(TopicId::new(id, TopicMode::Batch, "t", 0).name("").is_err(), "{id:?}");
        }
    }

    #[test]
    fn shards_come_from_fnv_1a() {
        assert_eq!(fnv1a("in.id.clyzlw-.m.batch.t.events"), 174_768_485);
        assert_eq!(fnv1a("in.id.batch_postgres.m.batch.t.events"), 974_098_857);
        assert_eq!(fnv1a("batch_postgres"), 3_791_846_115);
    }
}
