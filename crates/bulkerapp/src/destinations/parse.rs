//! One destination from its text.
//!
//! Problems never quote the text: it holds credentials.

use kafkabase::is_topic_part;
use serde_json::{Map, Value};

use super::config::DestinationConfig;

/// Why a text is not a destination.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum DestinationProblem {
    #[error("not {0}")]
    Syntax(&'static str),
    #[error("`{0}` is not {1}")]
    Field(&'static str, &'static str),
    #[error("no `id`")]
    NoId,
    #[error("id {0:?} cannot be part of a topic's name: letters, digits, `_` and `-` can")]
    Id(String),
}

/// How a destination is written down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Syntax {
    Hjson,
    Json,
    /// JSON when the text starts with a brace, else YAML.
    JsonOrYaml,
}

/// The object that a text holds.
pub(super) fn read_object(
    text: &str,
    syntax: Syntax,
) -> Result<Map<String, Value>, DestinationProblem> {
    let is_json = syntax == Syntax::Json || text.trim_start().starts_with('{');
    match syntax {
        Syntax::Hjson => {
            deser_hjson::from_str(text).map_err(|_| DestinationProblem::Syntax("an hjson object"))
        }
        Syntax::Json | Syntax::JsonOrYaml if is_json => {
            serde_json::from_str(text).map_err(|_| DestinationProblem::Syntax("a JSON object"))
        }
        Syntax::Json | Syntax::JsonOrYaml => {
            serde_saphyr::from_str(text).map_err(|_| DestinationProblem::Syntax("a YAML object"))
        }
    }
}

/// The id inside of an object, if it names a usable one.
pub(super) fn id_of(object: &Map<String, Value>) -> Option<&str> {
    object.get("id")?.as_str().filter(|id| is_topic_part(id))
}

/// The destination that an object describes. `known_id` is the id that the place names where the
/// object was found.
pub(super) fn read_config(
    mut object: Map<String, Value>,
    known_id: Option<&str>,
) -> Result<DestinationConfig, DestinationProblem> {
    let id = match known_id {
        Some(id) => id.to_owned(),
        None => string(&mut object, "id")?
            .filter(|id| !id.is_empty())
            .ok_or(DestinationProblem::NoId)?,
    };
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
        special: string(&mut object, "special")?.unwrap_or_default(),
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

    fn parse(text: &str, syntax: Syntax) -> Result<DestinationConfig, DestinationProblem> {
        read_config(read_object(text, syntax)?, None)
    }

    #[test]
    fn hjson_json_and_yaml_are_read() {
        let hjson = "{
            # a comment
            id: pg
            type: postgres
            credentials: { host: \"localhost\", port: 5432 }
            options: { deduplicate: true, primaryKey: \"id\" }
            unknown: [1, 2]
        }";
        let config = parse(hjson, Syntax::Hjson).unwrap();
        assert_eq!((config.id.as_str(), config.kind.as_str()), ("pg", "postgres"));
        assert_eq!(config.credentials, json!({"host": "localhost", "port": 5432}));
        assert_eq!(config.options["deduplicate"], true);
        let yaml = "
            id: pg
            type: postgres
            credentials: { host: localhost, port: 5432 }
            options:
              deduplicate: true
              primaryKey: id
            updatedAt: 2024-01-02T03:04:05Z
        ";
        let same = parse(yaml, Syntax::JsonOrYaml).unwrap();
        assert_eq!(same.updated_at.as_deref(), Some("2024-01-02T03:04:05Z"));
        assert!(same == DestinationConfig { updated_at: same.updated_at.clone(), ..config });
        let json = r#"{"id":"pg","type":"postgres","credentials":{"password":"a, b"}}"#;
        for syntax in [Syntax::Hjson, Syntax::Json, Syntax::JsonOrYaml] {
            assert_eq!(parse(json, syntax).unwrap().credentials["password"], "a, b");
        }
    }

    #[test]
    fn a_place_that_names_an_id_wins() {
        let object = json!({"id": "inside", "type": "postgres"});
        let Value::Object(object) = object else { panic!("an object") };
        assert_eq!(read_config(object.clone(), Some("outside")).unwrap().id, "outside");
        assert_eq!(read_config(object, None).unwrap().id, "inside");
    }

    #[test]
    fn what_is_not_a_destination_says_why_without_quoting() {
        let cases = [
            ("[1]", Syntax::Hjson, "not an hjson object"),
            ("{\"id\": \"s3cret", Syntax::Hjson, "not an hjson object"),
            ("{\"id\": \"s3cret", Syntax::Json, "not a JSON object"),
            ("id: [s3cret", Syntax::JsonOrYaml, "not a YAML object"),
            ("s3cret", Syntax::JsonOrYaml, "not a YAML object"),
            ("{\"id\": 5}", Syntax::Json, "`id` is not a string"),
            ("{\"type\": \"postgres\"}", Syntax::Json, "no `id`"),
            ("{\"id\": \"pg\", \"type\": []}", Syntax::Json, "`type` is not a string"),
            (
                "{\"id\": \"pg\", \"options\": \"s3cret\"}",
                Syntax::Json,
                "`options` is not an object",
            ),
        ];
        for (text, syntax, expected) in cases {
            let problem = parse(text, syntax).map(|config| config.id).unwrap_err().to_string();
            assert_eq!(problem, expected, "{text}");
        }
    }

    #[test]
    fn an_id_that_no_topic_can_carry_is_refused() {
        for id in ["a.b", "a b", "ü"] {
            let text = json!({ "id": id }).to_string();
            let problem = parse(&text, Syntax::Json).map(|_| ()).unwrap_err();
            assert_eq!(problem, DestinationProblem::Id(id.to_owned()));
        }
    }
}
