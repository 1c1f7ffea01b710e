//! Type hints: keys of an event that name the SQL type of one of its fields.

use std::collections::HashMap;

use crate::rows::{
    escape::unescape,
    identifier::{NameId, NameOf, identifier},
    json::{HINT_PREFIX, entries},
    row::{MAX_DEPTH, RowError},
    sql_type::SqlType,
};

/// The hints of one event, by the joined path of the field; the empty path is the event itself.
pub(super) type Hints = HashMap<NameId, SqlType>;

/// Collects the hints of an event at every object level. Arrays are not searched.
pub(super) fn collect(object: &str) -> Result<Hints, RowError> {
    let mut hints = Hints::new();
    collect_into(&mut hints, NameId::of(""), object, 0)?;
    Ok(hints)
}

fn collect_into(
    hints: &mut Hints,
    parent: NameId,
    object: &str,
    depth: usize,
) -> Result<(), RowError> {
    if depth > MAX_DEPTH {
        return Err(RowError::TooDeep);
    }
    for entry in entries(object) {
        let (key, value) = entry?;
        if let Some(field) = key.strip_prefix(HINT_PREFIX) {
            let field = field.strip_prefix('_').unwrap_or(field);
            let Some(sql_type) = read(value)? else {
                let field = identifier(field, NameOf::Column).into_owned();
                return Err(RowError::SqlType { field });
            };
            hints.insert(join_filled(parent, field), sql_type);
        } else if value.starts_with('{') {
            collect_into(hints, join_filled(parent, &key), value, depth + 1)?;
        }
    }
    Ok(())
}

/// Joined by `_`; empty parts leave none.
fn join_filled(parent: NameId, key: &str) -> NameId {
    match (parent.is_empty(), key.is_empty()) {
        (true, _) => NameId::of(key),
        (false, true) => parent,
        (false, false) => parent.with("_").with(key),
    }
}

/// A hint's value: a string, or an array of one or two. `None`: it names no type.
fn read(value: &str) -> Result<Option<SqlType>, RowError> {
    let parsed: Vec<String> = match value.as_bytes().first() {
        Some(b'"') => {
            let mut text = String::new();
            unescape(&value[1..value.len() - 1], &mut text)?;
            return Ok(SqlType::plain(&text));
        }
        Some(b'[') => serde_json::from_str(value).map_err(|_| RowError::Hint { kind: "array" })?,
        Some(b'{') => return Err(RowError::Hint { kind: "object" }),
        Some(b't' | b'f') => return Err(RowError::Hint { kind: "bool" }),
        Some(b'n') => return Err(RowError::Hint { kind: "null" }),
        _ => return Err(RowError::Hint { kind: "number" }),
    };
    match parsed.as_slice() {
        [] => Err(RowError::Hint { kind: "empty array" }),
        [cast] => Ok(SqlType::plain(cast)),
        [cast, ddl, ..] => Ok(SqlType::new(cast, ddl)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hints_are_found_at_every_level_under_the_path_of_their_field() {
        let event = r#"{"__sql_type_a":"bigint","__sql_type_b_c":["numeric","numeric default 1"],
            "d":{"__sql_type_e":"text","__sql_type":"json"},"__sql_typef":["date"],
            "g":[{"__sql_type_h":"x"}]}"#;
        let hints = collect(event).unwrap();
        let expected = [
            ("a", "bigint", "bigint"),
            ("b_c", "numeric", "numeric default 1"),
            ("d", "json", "json"),
            ("d_e", "text", "text"),
            ("f", "date", "date"),
        ];
        assert_eq!(hints.len(), expected.len());
        for (field, cast, ddl) in expected {
            let found = hints.get(&NameId::of(field)).map(|t| (t.cast.as_str(), t.ddl.as_str()));
            assert_eq!(found, Some((cast, ddl)), "{field}");
        }
    }

    #[test]
    fn a_hint_of_another_type_is_an_error() {
        let not_a_type = r#"{"__sql_type_a":"bigint; drop table t"}"#;
        let field = "a".to_owned();
        assert_eq!(collect(not_a_type), Err(RowError::SqlType { field }));
        for value in ["5", "true", "null", "{}", "[]", "[5]"] {
            let event = format!(r#"{{"__sql_type_a":{value}}}"#);
            assert!(matches!(collect(&event), Err(RowError::Hint { .. })), "{value}");
        }
    }
}
