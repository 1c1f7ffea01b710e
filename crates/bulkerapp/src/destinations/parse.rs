//! One destination from its hjson text.
//!
//! Problems never quote the text: it holds credentials.

use kafkabase::is_topic_part;
use serde_json::{Map, Value};

use super::DestinationConfig;

/// Why a text is not a destination.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum DestinationProblem {
    #[error("not an hjson object")]
    Syntax,
    #[error("`{0}` is not {1}")]
    Field(&'static str, &'static str),
    #[error("id {0:?} cannot be part of a topic's name: letters, digits, `_` and `-` can")]
    Id(String),
}

/// `fallback_id` is the id of a destination that names none.
pub(super) fn parse(
    text: &str,
    fallback_id: &str,
) -> Result<DestinationConfig, DestinationProblem> {
    let mut object: Map<String, Value> =
        deser_hjson::from_str(text).map_err(|_| DestinationProblem::Syntax)?;
    let id = string(&mut object, "id")?.filter(|id| !id.is_empty());
    let id = id.unwrap_or_else(|| fallback_id.to_owned());
    if !is_topic_part(&id) {
        return Err(DestinationProblem::Id(id));
    }
    let options = match object.remove("options") {
        None | Some(Value::Null) => Map::new(),
        Some(Value::Object(options)) => options,
        Some(_) => return Err(DestinationProblem::Field("options", "an object")),
    };
    Ok(DestinationConfig {
        id,
        kind: string(&mut object, "type")?.unwrap_or_default(),
        credentials: object.remove("credentials").unwrap_or_default(),
        options,
        updated_at: string(&mut object, "updatedAt")?,
    })
}

fn string(
    object: &mut Map<String, Value>,
    field: &'static str,
) -> Result<Option<String>, DestinationProblem> {
    match object.remove(field) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(_) => Err(DestinationProblem::Field(field, "a string")),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn hjson_and_json_are_read() {
        let hjson = "{
            # a comment
            id: pg
            type: postgres
            credentials: { host: \"localhost\", port: 5432 }
            options: { deduplicate: true, primaryKey: \"id\" }
            unknown: [1, 2]
        }";
        let config = parse(hjson, "X").unwrap();
        assert_eq!((config.id.as_str(), config.kind.as_str()), ("pg", "postgres"));
        assert_eq!(config.credentials, json!({"host": "localhost", "port": 5432}));
        assert_eq!(config.options["deduplicate"], true);
        let json = r#"{"id":"pg","type":"postgres","credentials":{"password":"a, b"}}"#;
        assert_eq!(parse(json, "X").unwrap().credentials["password"], "a, b");
    }

    #[test]
    fn a_destination_without_an_id_is_named_by_its_variable() {
        assert_eq!(parse("{type: \"postgres\"}", "MY_PG").unwrap().id, "MY_PG");
    }

    #[test]
    fn what_is_not_a_destination_says_why_without_quoting() {
        let cases = [
            ("[1]", "not an hjson object"),
            ("{\"id\": \"s3cret", "not an hjson object"),
            ("{\"id\": 5}", "`id` is not a string"),
            ("{\"id\": \"pg\", \"type\": []}", "`type` is not a string"),
            ("{\"id\": \"pg\", \"options\": \"s3cret\"}", "`options` is not an object"),
        ];
        for (text, expected) in cases {
            let problem = parse(text, "X").map(|config| config.id).unwrap_err().to_string();
            assert_eq!(problem, expected, "{text}");
        }
    }

    #[test]
    fn an_id_that_no_topic_can_carry_is_refused() {
        for id in ["a.b", "a b", "ü"] {
            let problem = parse(&json!({ "id": id }).to_string(), "X").map(|_| ()).unwrap_err();
            assert_eq!(problem, DestinationProblem::Id(id.to_owned()));
        }
    }
}
