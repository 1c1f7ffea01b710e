//! Expectations of a step against what the database holds. The first difference is the answer.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use crate::{
    case::Step,
    inspect::{Inspector, TableShape},
};

/// Compares the table, its key and indexes, and its rows.
pub(crate) async fn table(
    step: &Step,
    inspector: &mut Inspector,
    schema: &str,
    table: &str,
) -> Result<(), String> {
    let in_database = |error: sqlx::Error| format!("looking at the table: {error}");
    let shape = inspector.shape(schema, table).await.map_err(in_database)?;
    self::shape(step, &shape)?;
    if !shape.columns.is_empty() && (step.expect_rows.is_some() || step.expect_row_count.is_some())
    {
        let rows =
            inspector.rows(schema, table, &shape, &step.order_by).await.map_err(in_database)?;
        if let Some(count) = step.expect_row_count {
            same("row count", &count, &rows.len())?;
        }
        for (index, (expected, found)) in step.expect_rows.iter().flatten().zip(&rows).enumerate() {
            same(&format!("row {index}"), expected, found)?;
        }
        if let Some(expected) = &step.expect_rows {
            same("row count", &expected.len(), &rows.len())?;
        }
    }
    let leftovers = inspector.leftovers(table).await.map_err(in_database)?;
    same("tables left behind", &Vec::<String>::new(), &leftovers)
}

fn shape(step: &Step, shape: &TableShape) -> Result<(), String> {
    let columns: BTreeMap<_, _> = shape.columns.iter().cloned().collect();
    same("columns", &step.expect_columns, &columns)?;
    if let Some(expected) = &step.expect_column_order {
        let order: Vec<_> = shape.columns.iter().map(|(name, _)| name.clone()).collect();
        same("column order", expected, &order)?;
    }
    if let Some(expected) = &step.expect_not_null {
        same("not null", expected, &shape.not_null)?;
    }
    if let Some(expected) = &step.expect_primary_key {
        same("primary key", expected, &shape.key)?;
    }
    if let Some(expected) = &step.expect_primary_key_name {
        let name = shape.key_name.as_deref().unwrap_or_default();
        if !matches(expected, name) {
            return Err(format!("primary key name: expected {expected}, found {name}"));
        }
    }
    if let Some(expected) = &step.expect_indexes {
        let mut expected = expected.clone();
        expected.sort();
        same("indexes", &expected, &shape.indexes)?;
    }
    Ok(())
}

/// The fields that the case names, among those of the state.
pub(crate) fn state(expected: &Map<String, Value>, found: &Value) -> Result<(), String> {
    for (field, value) in expected {
        same(&format!("state {field}"), value, found.get(field).unwrap_or(&Value::Null))?;
    }
    Ok(())
}

/// Whether `name` fits `pattern`, in which `*` stands for anything.
fn matches(pattern: &str, name: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == name,
        Some((start, end)) => name.strip_prefix(start).is_some_and(|rest| {
            (0..=rest.len()).any(|at| rest.is_char_boundary(at) && matches(end, &rest[at..]))
        }),
    }
}

fn same<T: PartialEq + std::fmt::Debug>(what: &str, expected: &T, found: &T) -> Result<(), String> {
    if expected == found {
        return Ok(());
    }
    Err(format!("{what}: expected {expected:?}, found {found:?}"))
}
