//! What each kind of source answers, as a document.
//!
//! Problems say where they are and quote nothing: what is read holds credentials.

use appbase::repository::{HashFields, HttpAnswer, TextRow};
use serde_json::{Map, Value};

use crate::destinations::{
    document::{Document, Found},
    parse::{Syntax, read_object},
};

/// The hash in Redis that has a field for each destination.
pub(super) const HASH: &str = "enrichedConnections";

/// YAML: the top key `destinations` maps ids to them.
pub(super) fn of_file(content: &[u8]) -> Result<Document, String> {
    let text = std::str::from_utf8(content).map_err(|_| "not UTF-8".to_owned())?;
    let root: Option<Map<String, Value>> = serde_saphyr::from_str(text).map_err(|error| {
        let place = error.location();
        let place = place.map(|at| format!(" (line {}, column {})", at.line(), at.column()));
        format!("not a YAML object{}", place.unwrap_or_default())
    })?;
    match root.and_then(|mut root| root.remove("destinations")) {
        None | Some(Value::Null) => Ok(Document::default()),
        Some(Value::Object(by_id)) => Ok(Document::of_ids(by_id)),
        Some(_) => Err("`destinations` does not map ids to destinations".to_owned()),
    }
}

/// A JSON array, as a console exports it.
pub(super) fn of_http(answer: &HttpAnswer) -> Result<Document, String> {
    let elements: Vec<Value> = serde_json::from_slice(&answer.body).map_err(|error| {
        let place = format!("line {}, column {}", error.line(), error.column());
        format!("the answer is not a JSON array ({place})")
    })?;
    Ok(Document::of_array(elements))
}

/// JSON or YAML of each destination that uses Bulker; the fields are ids.
pub(super) fn of_hash(fields: HashFields) -> Result<Document, String> {
    let found = fields.into_iter().filter_map(|(id, value)| {
        let id = String::from_utf8_lossy(&id).into_owned();
        let object = read_object(&String::from_utf8_lossy(&value), Syntax::JsonOrYaml);
        let is_for_us = object
            .as_ref()
            .map_or(true, |object| object.get("usesBulker") == Some(&Value::Bool(true)));
        let place = format!("{HASH}.{id}");
        is_for_us.then_some(Found { place, id: Some(id), object })
    });
    Ok(Document(found.collect()))
}

/// Rows of id, kind and JSON.
pub(super) fn of_rows(rows: &[TextRow]) -> Result<Document, String> {
    Ok(of_cells(rows.iter().map(|row| [row.text(0), row.text(1), row.text(2)])))
}

fn of_cells<'a>(rows: impl Iterator<Item = [Option<&'a str>; 3]>) -> Document {
    let found = rows.filter_map(|[id, kind, json]| {
        let object = read_object(json.unwrap_or_default(), Syntax::Json);
        let is_for_us = object.as_ref().map_or(true, |object| {
            object.get("usesBulker") == Some(&Value::Bool(true)) || kind == Some("sync")
        });
        // the id inside counts; the row's is the next best
        let has_id = object.as_ref().is_ok_and(|object| object.contains_key("id"));
        let place = format!("row {}", id.unwrap_or("without an id"));
        let id = id.filter(|_| !has_id).map(str::to_owned);
        is_for_us.then_some(Found { place, id, object })
    });
    Document(found.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(text: &str) -> Vec<String> {
        let document = of_file(text.as_bytes()).unwrap();
        document.0.iter().filter_map(Found::id).map(str::to_owned).collect()
    }

    #[test]
    fn keys_are_ids() {
        let text = "
            destinations:
              one: {type: postgres, id: other}
              2: {type: postgres}
              three: 7
        ";
        assert_eq!(ids(text), ["one", "2", "three"]);
        let document = of_file(text.as_bytes()).unwrap();
        let configs = document.0.iter().map(|found| found.config().map(|config| config.id));
        let configs: Vec<_> = configs.map(|config| config.map_err(|e| e.to_string())).collect();
        assert_eq!(
            configs,
            [Ok("one".to_owned()), Ok("2".to_owned()), Err("not an object".to_owned())]
        );
    }

    #[test]
    fn a_file_without_destinations_has_none() {
        for text in ["", "# nothing yet\n", "destinations:\n", "other: {a: 1}\n"] {
            assert!(ids(text).is_empty(), "{text:?}");
        }
    }

    #[test]
    fn a_problem_says_where_and_quotes_nothing() {
        let text = "destinations:\n  one: {credentials: {password: s3cret\n";
        let problem = of_file(text.as_bytes()).unwrap_err();
        assert!(problem.contains("line ") && !problem.contains("s3cret"), "{problem}");
        assert!(of_file(b"destinations: s3cret").is_err());
    }

    #[test]
    fn fields_are_ids_and_values_json_or_yaml_of_those_that_use_bulker() {
        let fields = [
            ("a", r#"{"id":"inside","type":"postgres","usesBulker":true}"#),
            ("b", "type: postgres\nusesBulker: true\n"),
            ("c", r#"{"type":"postgres"}"#),
            ("d", r#"{"type":"postgres","usesBulker":false}"#),
            ("e", r#"{"type":"#),
            ("no id", r#"{"usesBulker":true}"#),
        ];
        let fields = fields.map(|(id, text)| (id.as_bytes().to_vec(), text.as_bytes().to_vec()));
        let document = of_hash(fields.into()).unwrap();
        let read = document.0.iter().map(|found| {
            found.config().map_or_else(|problem| problem.to_string(), |config| config.id)
        });
        let read: Vec<_> = read.collect();
        assert_eq!(read[..3], ["a", "b", "not a JSON object"]);
        assert!(read[3].starts_with("id \"no id\" cannot be part"), "{read:?}");
        assert_eq!(document.0[2].place, "enrichedConnections.e");
    }

    #[test]
    fn rows_count_when_they_use_bulker_or_are_syncs() {
        let rows = [
            ("a", "destination", r#"{"id":"inside","usesBulker":true}"#),
            ("b", "sync", r#"{"type":"postgres"}"#),
            ("c", "destination", r#"{"id":"c"}"#),
            ("d", "destination", r#"{"id":"#),
        ];
        let document = of_cells(rows.iter().map(|(id, kind, json)| [*id, *kind, *json].map(Some)));
        let ids: Vec<_> = document.0.iter().map(|found| found.id()).collect();
        assert_eq!(ids, [Some("inside"), Some("b"), Some("d")]);
        assert_eq!(document.0[2].place, "row d");
    }
}
