//! Dead letters that their topic does not take as they are: what is left out so that it does.
//!
//! Invariant: a letter keeps what says which event it is and why it is dead, whatever its size was.
//! The event itself lies in its own topic as long as that keeps it.

use kafkabase::{Record, headers};
use serde_json::json;

use super::envelope::{ORIGINAL_TOPIC, RETRIES};

/// Headers that we wrote; their lengths are bounded.
const OWN: [&str; 5] = [
    headers::ERROR.as_str(),
    ORIGINAL_TOPIC,
    RETRIES,
    headers::RETRY_TIME.as_str(),
    headers::ORIGIN.as_str(),
];

/// Leaves out what others wrote beside the event.
pub(super) fn keep_own_headers(record: &mut Record) {
    record.headers.retain(|(name, _)| OWN.contains(&name.as_str()));
}

/// Leaves out the event: its place and its size stand for it.
pub(super) fn keep_place_only(record: &mut Record) {
    let header = |name: &str| {
        let (_, value) = record.headers.iter().find(|(found, _)| found == name)?;
        std::str::from_utf8(value.as_deref()?).ok()
    };
    let origin = header(headers::ORIGIN.as_str()).and_then(|text| serde_json::from_str(text).ok());
    let note = json!({
        "bulker_too_large": true,
        "bytes": record.value.as_ref().map_or(0, Vec::len),
        "topic": header(ORIGINAL_TOPIC),
        "origin": origin.unwrap_or(serde_json::Value::Null),
    });
    record.value = Some(note.to_string().into_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    fn letter() -> Record {
        let header = |name: &str, value: &[u8]| (name.to_owned(), Some(value.to_vec()));
        Record {
            topic: "dead".to_owned(),
            key: Some(b"k".to_vec()),
            value: Some(vec![b'x'; 3_000_000]),
            headers: vec![
                header("somebody", &[0; 900_000]),
                header("original_topic", b"t"),
                header("bulker_origin", br#"{"offset":7}"#),
            ],
        }
    }

    #[test]
    fn headers_of_others_go_before_the_event_does() {
        let mut record = letter();
        keep_own_headers(&mut record);
        let names: Vec<_> = record.headers.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["original_topic", "bulker_origin"]);
        assert_eq!(record.value.map(|value| value.len()), Some(3_000_000));
    }

    #[test]
    fn a_letter_without_its_event_says_where_that_lies() {
        let mut record = letter();
        keep_place_only(&mut record);
        let value: serde_json::Value = serde_json::from_slice(&record.value.unwrap()).unwrap();
        let origin = json!({"offset": 7});
        assert_eq!(
            value,
            json!({"bulker_too_large": true, "bytes": 3_000_000, "topic": "t", "origin": origin})
        );
    }
}
