//! The row that the server points at when it refuses some: a hint of where to look first.

use crate::{
    error::{KeyHint, LoadError, ServerError},
    postgres::{prepared::Prepared, selection::Selection},
    rows::batch::Batch,
};

/// The row of `failed` that the server points at.
pub(super) fn row_pointed_at(
    prepared: &Prepared,
    failed: &Selection,
    error: &ServerError,
) -> Result<Option<usize>, LoadError> {
    let by_line = error.copy_line.and_then(|line| failed.row_of_line(line));
    match (by_line, key_hint(prepared, error)) {
        (Some(row), _) => Ok(Some(row)),
        (None, Some(key)) => row_with_key(&prepared.batch, failed, &key),
        (None, None) => Ok(None),
    }
}

/// The values that the server said it was at: those of a key, or of the whole row, by its first
/// column.
fn key_hint(prepared: &Prepared, error: &ServerError) -> Option<KeyHint> {
    let of_row = || {
        let columns = prepared.table.as_ref()?.columns.first()?.name.clone();
        Some(KeyHint { columns, values: error.first_value.clone()? })
    };
    error.key.clone().or_else(of_row)
}

/// The last of the rows that have the values of a violated key: the earlier ones may be why it
/// is violated.
fn row_with_key(
    batch: &Batch,
    piece: &Selection,
    key: &KeyHint,
) -> Result<Option<usize>, LoadError> {
    let slots: Option<Vec<u32>> =
        key.columns.split(", ").map(|column| batch.columns().slot_of(column)).collect();
    let Some(slots) = slots else {
        return Ok(None);
    };
    let mut found = None;
    let kept = piece.kept.clone();
    batch.rows.visit(piece.range.clone(), |number, row| {
        let is_sent = kept.as_ref().is_none_or(|kept| kept[number]);
        let texts: Option<Vec<_>> =
            slots.iter().map(|slot| row.cell(*slot).map(|cell| cell.text())).collect();
        if is_sent && texts.is_some_and(|texts| texts.join(", ") == key.values) {
            found = Some(number);
        }
        true
    })?;
    Ok(found)
}
