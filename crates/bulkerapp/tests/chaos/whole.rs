//! Whether a row has what its event said: each value in its column, or in `_unmapped_data` where
//! the column takes no such value, or in what the customer made of the column.

use std::collections::HashSet;

use serde_json::{Map, Value};

use crate::{customer::SPARE, tables::Table};

const UNMAPPED: &str = "_unmapped_data";
/// Fields that say something about other fields.
const HINT: &str = "__sql_type_";

pub(crate) type Object = Map<String, Value>;

/// The first field of an event whose value its row does not have, with what is there instead.
/// `dropped`: tables that lost the values of the spare column.
pub(crate) fn missing(
    event: &Object,
    row: &Object,
    table: Table,
    dropped: &HashSet<Table>,
) -> Option<String> {
    let unmapped = row.get(UNMAPPED).and_then(Value::as_object);
    for (field, value) in event {
        if field.starts_with(HINT) || (field == SPARE && dropped.contains(&table)) {
            continue;
        }
        let renamed = format!("{field}_");
        let places = row.iter().filter(|(name, _)| *name == field || name.starts_with(&renamed));
        let mut values = places.map(|(_, found)| found).chain(unmapped.and_then(|u| u.get(field)));
        if !values.any(|found| is_same(value, found)) {
            return Some(format!("{field} is {value} in the event, and its row is {row:?}"));
        }
    }
    None
}

/// Whether a column of any type that takes the value has it.
fn is_same(sent: &Value, found: &Value) -> bool {
    let text = |value: &Value| match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    let (sent, found) = (text(sent), text(found));
    let as_number = |text: &str| text.parse::<f64>().ok();
    sent == found || as_number(&sent).is_some_and(|sent| Some(sent) == as_number(&found))
}
