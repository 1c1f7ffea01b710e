//! Which rows of a batch survive when rows with equal keys are merged.

use std::{cmp::Ordering, collections::HashMap, io};

use crate::rows::{
    batch::Batch,
    identifier::{NameOf, identifier},
    row::{Cell, Kind, Row},
};

const SEPARATOR: &str = "_###_";

/// One flag per row: whether it survives. The later of two rows wins, or, with a discriminator, the
/// one with the greater value. `key` are the columns that rows are told apart by. `refused` rows,
/// in order, do not take part, and rows without a value in some key column all survive: each is
/// refused for that, or gets a value of its own. Rows of different parts, of so many rows each, are
/// not compared; 0 is one part.
///
/// `stored` appends the text that a value (of a row, by number) has in its column, equal numbers
/// spelled equally, and answers what it is there; `None` if it does not get there. Rows are
/// compared by what is stored because the database does: two rows that it takes for one would fail
/// the whole merge.
pub(crate) fn survivors(
    batch: &Batch,
    key: &[String],
    refused: &[usize],
    part: usize,
    stored: impl Fn(usize, &Cell<'_>, &mut String) -> Option<Kind>,
) -> io::Result<Vec<bool>> {
    let key: Vec<Option<u32>> = key.iter().map(|name| batch.columns().slot_of(name)).collect();
    let discriminator = discriminator_slot(batch);
    let mut kept: HashMap<Box<str>, (usize, Option<Value>)> =
        HashMap::with_capacity(batch.row_count());
    let mut survives = vec![true; batch.row_count()];
    let mut identity = String::new();
    batch.rows.visit(0..batch.row_count(), |number, row| {
        if refused.binary_search(&number).is_ok() {
            survives[number] = false;
            return true;
        }
        if part > 0 && number % part == 0 {
            kept.clear();
        }
        if !write_identity(number, row, &key, &stored, &mut identity) {
            return true;
        }
        let value = discriminator.and_then(|slot| row.cell(slot?)).and_then(|cell| {
            let mut text = String::new();
            let kind = stored(number, &cell, &mut text)?;
            Some(Value { kind, text: text.into() })
        });
        match kept.get_mut(identity.as_str()) {
            None => {
                kept.insert(identity.as_str().into(), (number, value));
            }
            Some((earlier, greatest)) => {
                let is_older = discriminator.is_some()
                    && compare(value.as_ref(), greatest.as_ref()) == Ordering::Less;
                if is_older {
                    survives[number] = false;
                } else {
                    survives[*earlier] = false;
                    (*earlier, *greatest) = (number, value);
                }
            }
        }
        true
    })?;
    Ok(survives)
}

/// `None`: no discriminator is set. `Some(None)`: no row has it.
fn discriminator_slot(batch: &Batch) -> Option<Option<u32>> {
    let path = &batch.options.discriminator_field;
    if path.is_empty() {
        return None;
    }
    Some(batch.columns().slot_of(&identifier(&path.join("_"), NameOf::Column)))
}

/// `false`: part of the key is missing.
fn write_identity(
    number: usize,
    row: Row<'_>,
    key: &[Option<u32>],
    stored: impl Fn(usize, &Cell<'_>, &mut String) -> Option<Kind>,
    identity: &mut String,
) -> bool {
    identity.clear();
    key.iter().enumerate().all(|(index, slot)| {
        if index > 0 {
            identity.push_str(SEPARATOR);
        }
        let cell = slot.and_then(|slot| row.cell(slot));
        cell.and_then(|cell| stored(number, &cell, identity)).is_some()
    })
}

struct Value {
    kind: Kind,
    text: Box<str>,
}

/// Missing is less than present; values of different types count as equal.
fn compare(a: Option<&Value>, b: Option<&Value>) -> Ordering {
    let (a, b) = match (a, b) {
        (Some(a), Some(b)) if a.kind == b.kind => (a, b),
        (Some(_), Some(_)) => return Ordering::Equal,
        (a, b) => return a.is_some().cmp(&b.is_some()),
    };
    match a.kind {
        Kind::Int => a.text.parse::<i64>().ok().cmp(&b.text.parse().ok()),
        Kind::Float => {
            let number = |value: &Value| value.text.parse::<f64>().unwrap_or(f64::NAN);
            number(a).total_cmp(&number(b))
        }
        // canonical texts without their `Z` sort like the moments they name
        Kind::Timestamp => a.text.trim_end_matches('Z').cmp(b.text.trim_end_matches('Z')),
        Kind::String | Kind::Json | Kind::Number => a.text.cmp(&b.text),
        Kind::Bool => Ordering::Equal,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::json;

    use super::*;
    use crate::{StreamOptions, rows::convert::key_text};

    fn surviving(options: &[(&str, &str)], events: &[&str]) -> Vec<bool> {
        surviving_but(&[], 0, options, events)
    }

    fn surviving_but(
        refused: &[usize],
        part: usize,
        options: &[(&str, &str)],
        events: &[&str],
    ) -> Vec<bool> {
        let mut stream_options = StreamOptions::default();
        stream_options.set("deduplicate", &json!(true)).unwrap();
        for (key, value) in options {
            stream_options.set(key, &json!(value)).unwrap();
        }
        let mut batch = Batch::new("t", Arc::new(stream_options)).unwrap();
        for event in events {
            batch.push(event.as_bytes()).unwrap();
        }
        let survivors = survivors(&batch, &batch.key_columns(), refused, part, |_, cell, out| {
            key_text(cell.flags.kind(), cell.text(), out);
            Some(cell.flags.kind())
        });
        survivors.unwrap()
    }

    #[test]
    fn a_refused_row_gives_its_place_to_the_one_before() {
        let events = [r#"{"id":1,"a":1}"#, r#"{"id":1,"a":2}"#, r#"{"id":1,"a":3}"#];
        let options = [("primaryKey", "id")];
        assert_eq!(surviving_but(&[2], 0, &options, &events), [false, true, false]);
    }

    #[test]
    fn rows_of_different_parts_are_not_compared() {
        let events = [r#"{"id":1}"#, r#"{"id":1}"#, r#"{"id":1}"#];
        assert_eq!(surviving_but(&[], 2, &[("primaryKey", "id")], &events), [false, true, true]);
    }

    #[test]
    fn the_later_of_two_rows_with_one_key_survives_whole() {
        let events = [r#"{"id":7,"a":1}"#, r#"{"id":"7"}"#, r#"{"id":7.0}"#, r#"{"id":"07"}"#];
        assert_eq!(surviving(&[("primaryKey", "id")], &events), [false, false, true, true]);
    }

    #[test]
    fn a_discriminator_keeps_the_greatest_and_of_equals_the_later() {
        let options = [("primaryKey", "id"), ("discriminatorField", "v,at")];
        let events = [
            r#"{"id":1,"v":{"at":"2022-01-01T00:00:00.5Z"}}"#,
            r#"{"id":1,"v":{"at":"2022-01-01T00:00:00Z"}}"#,
            r#"{"id":1}"#,
            r#"{"id":1,"v":{"at":"2022-01-01T00:00:00.500Z"}}"#,
        ];
        assert_eq!(surviving(&options, &events), [false, false, false, true]);
    }

    #[test]
    fn a_row_without_part_of_its_key_is_like_no_other() {
        let events = [r#"{"a":1}"#, r#"{"a":1,"b":null}"#, r#"{"a":1,"b":2}"#, r#"{"a":1,"b":2}"#];
        assert_eq!(surviving(&[("primaryKey", "a,b")], &events), [true, true, false, true]);
    }
}
