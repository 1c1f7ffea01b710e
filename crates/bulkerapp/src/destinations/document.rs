//! What a source says at one moment: all destinations, whole, so that what is missing from a
//! document was really removed.

use std::collections::HashSet;

use appbase::repository;
use kafkabase::is_topic_part;
use serde_json::{Map, Value, json};

use super::parse::{DestinationProblem, id_of};

/// All destinations of a source, readable or not. Later ones win over earlier ones of the same id.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Document(pub(super) Vec<Found>);

/// A destination where it was found.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Found {
    /// Where an operator finds it: a variable, a field, a row.
    pub(super) place: String,
    /// The id that the place itself names.
    pub(super) id: Option<String>,
    pub(super) object: Result<Map<String, Value>, DestinationProblem>,
}

/// How a document is written down in a copy of ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Format {
    /// `[{"id": …}, …]`
    #[default]
    Array,
    /// `{"destinations": {"<id>": {…}, …}}`
    ById,
}

impl Found {
    /// Which destination this is, where that is known and topics can carry the id.
    pub(super) fn id(&self) -> Option<&str> {
        match &self.id {
            Some(id) => Some(id.as_str()).filter(|id| is_topic_part(id)),
            None => self.object.as_ref().ok().and_then(id_of),
        }
    }
}

impl Document {
    /// The destinations of a JSON array. An element that is no object is one unreadable
    /// destination.
    pub(super) fn of_array(elements: Vec<Value>) -> Document {
        let found = elements.into_iter().enumerate().map(|(index, value)| Found {
            place: format!("element {index}"),
            id: None,
            object: object(value),
        });
        Document(found.collect())
    }

    /// The destinations of a field `destinations`, by id.
    pub(super) fn of_ids(by_id: Map<String, Value>) -> Document {
        let found = by_id.into_iter().map(|(id, value)| Found {
            place: format!("destinations.{id}"),
            id: Some(id),
            object: object(value),
        });
        Document(found.collect())
    }

    /// These destinations together with those of `document`, which win.
    pub(super) fn beside(&self, document: &Document) -> Document {
        let ids: HashSet<&str> = document.0.iter().filter_map(Found::id).collect();
        let is_free = |found: &&Found| found.id().is_none_or(|id| !ids.contains(id));
        let own = self.0.iter().filter(is_free);
        Document(own.chain(&document.0).cloned().collect())
    }
}

impl repository::Document for Document {
    type Format = Format;

    /// What can be kept of it; unreadable destinations cannot.
    fn encode(&self, format: Format) -> Vec<u8> {
        let readable = self.0.iter().filter_map(|found| Some((found, found.object.as_ref().ok()?)));
        let value = match format {
            Format::Array => readable.map(|(_, object)| Value::Object(object.clone())).collect(),
            Format::ById => {
                let by_id: Map<_, _> = readable
                    .filter_map(|(found, object)| {
                        Some((found.id()?.to_owned(), Value::Object(object.clone())))
                    })
                    .collect();
                json!({ "destinations": by_id })
            }
        };
        value.to_string().into_bytes()
    }

    fn decode(bytes: &[u8], format: Format) -> Option<Document> {
        match format {
            Format::Array => serde_json::from_slice(bytes).ok().map(Document::of_array),
            Format::ById => {
                let mut root: Map<String, Value> = serde_json::from_slice(bytes).ok()?;
                let Value::Object(by_id) = root.remove("destinations")? else { return None };
                Some(Document::of_ids(by_id))
            }
        }
    }
}

/// A value that should be an object.
fn object(value: Value) -> Result<Map<String, Value>, DestinationProblem> {
    match value {
        Value::Object(object) => Ok(object),
        _ => Err(DestinationProblem::Syntax("an object")),
    }
}

#[cfg(test)]
mod tests {
    use appbase::repository::Document as _;

    use super::*;

    #[test]
    fn a_document_comes_back_from_both_formats() {
        let text = br#"[{"id":"one","type":"postgres"},{"id":"two"}]"#;
        let document = Document::decode(text, Format::Array).unwrap();
        assert_eq!(document.encode(Format::Array), text);
        let by_id = document.encode(Format::ById);
        let expected =
            br#"{"destinations":{"one":{"id":"one","type":"postgres"},"two":{"id":"two"}}}"#;
        assert_eq!(by_id, expected);
        let again = Document::decode(&by_id, Format::ById).unwrap();
        assert_eq!(again.0.iter().filter_map(Found::id).collect::<Vec<_>>(), ["one", "two"]);
    }

    #[test]
    fn an_element_that_is_no_object_is_one_unreadable_destination() {
        let document = Document::decode(br#"[7, {"id":"one"}]"#, Format::Array).unwrap();
        assert_eq!(document.0[0].object, Err(DestinationProblem::Syntax("an object")));
        assert_eq!(document.0[1].id(), Some("one"));
        assert_eq!(document.encode(Format::Array), br#"[{"id":"one"}]"#);
    }

    #[test]
    fn the_place_names_a_destination_unless_topics_cannot_carry_that() {
        let by_id = br#"{"destinations":{"one":{"id":"inside"},"a.b":{"id":"inside"},"two":7}}"#;
        let document = Document::decode(by_id, Format::ById).unwrap();
        let ids: Vec<_> = document.0.iter().map(Found::id).collect();
        assert_eq!(ids, [Some("one"), None, Some("two")]);
    }

    #[test]
    fn half_a_document_is_none() {
        assert_eq!(Document::decode(br#"[{"id":"one"}"#, Format::Array), None);
        assert_eq!(Document::decode(br#"{"other":{}}"#, Format::ById), None);
        assert_eq!(Document::decode(b"[]", Format::ById), None);
    }
}
