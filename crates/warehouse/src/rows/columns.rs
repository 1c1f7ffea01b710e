//! The columns of a batch, and what its values teach about their types.
//!
//! Invariant: a column has the same slot for as long as its batch lives. Its type is not decided
//! here but when the batch is fitted to its table; what is kept is what that decision needs.

use std::{collections::HashMap, ops::Deref};

use crate::rows::{
    data_type::DataType,
    row::{Flags, Kind},
    scratch::NO_SLOT,
    sql_type::SqlType,
    timestamp,
};

/// Bytes of heap that a column takes beside itself and its name, roughly: its places in the index
/// and in the order, and what the allocator adds.
const ENTRY_BYTES: usize = 128;

/// Bytes of a hint that differs from its column's.
const HINT_BYTES: usize = 128;

/// All columns, by their slots.
#[derive(Debug, Default)]
pub(crate) struct Columns {
    all: Vec<Column>,
    /// Slots in the order of their first appearance in a row; declared columns come first.
    order: Vec<u32>,
    by_name: HashMap<Box<str>, u32>,
    /// Hints that differ from their column's.
    other_hints: usize,
    bytes: usize,
}

impl Deref for Columns {
    type Target = [Column];

    fn deref(&self) -> &[Column] {
        &self.all
    }
}

impl Columns {
    /// Slots in the order of their first appearance in a row; declared columns come first.
    pub(crate) fn order(&self) -> &[u32] {
        &self.order
    }

    /// The slot of the column of this (final) name; `None`: no event has named it.
    pub(crate) fn slot_of(&self, name: &str) -> Option<u32> {
        self.by_name.get(name).copied()
    }

    /// The slot of the column of this (final) name, made where it is new.
    pub(super) fn slot(&mut self, name: &str) -> u32 {
        if let Some(slot) = self.by_name.get(name) {
            return *slot;
        }
        let slot = u32::try_from(self.all.len()).unwrap_or(NO_SLOT);
        self.all.push(Column::named(name.into()));
        self.by_name.insert(name.into(), slot);
        self.bytes += size_of::<Column>() + 2 * name.len() + ENTRY_BYTES;
        slot
    }

    /// Declares a column: it is there before any row has it, and of this type.
    pub(super) fn declare(&mut self, name: &str, data_type: DataType) {
        let slot = self.slot(name);
        let column = &mut self.all[slot as usize];
        let given = Given::Declared(data_type);
        column.definition = Some(Definition { given, since_row: 0 });
        if !std::mem::replace(&mut column.is_declared, true) {
            self.order.push(slot);
        }
    }

    /// Takes one more value into account; may mark the value for how it is to be read.
    #[inline]
    pub(super) fn learn<'a>(
        &mut self,
        slot: u32,
        flags: &mut Flags,
        text: impl FnOnce() -> &'a str,
        sql_type: Option<SqlType>,
        row: usize,
    ) {
        let column = &mut self.all[slot as usize];
        if column.first_row.is_none() {
            column.first_row = Some(row);
            if !column.is_declared {
                self.order.push(slot);
            }
        }
        let other_hints = column.other_hints.len();
        column.learn(flags, text, sql_type, row);
        self.other_hints += column.other_hints.len() - other_hints;
    }

    /// Bytes of heap that the columns take, roughly.
    pub(super) fn byte_size(&self) -> usize {
        self.bytes + self.other_hints * HINT_BYTES
    }
}

/// A column, as the batch knows it.
#[derive(Debug)]
pub(crate) struct Column {
    pub(crate) name: Box<str>,
    /// Set of the kinds of its values.
    pub(crate) kinds: u8,
    /// Whether a value has a type that its event, or `columnTypes`, gave it.
    pub(crate) has_hints: bool,
    /// The first row with a value; `None`: the column is declared and has none.
    pub(crate) first_row: Option<usize>,
    /// The type that the values of this batch have in common.
    pub(crate) inferred: Option<DataType>,
    pub(crate) definition: Option<Definition>,
    /// Rows that want another type than the definition's, with what they want.
    other_hints: Vec<(usize, SqlType)>,
    is_declared: bool,
}

/// A type that was given instead of found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Definition {
    pub(crate) given: Given,
    /// The first row that it holds for.
    pub(crate) since_row: usize,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Given {
    /// By a hint or by `columnTypes`.
    Sql(SqlType),
    /// By the `schema` option.
    Declared(DataType),
}

impl Given {
    pub(crate) fn data_type(&self) -> DataType {
        match self {
            Given::Sql(sql_type) => sql_type.data_type,
            Given::Declared(data_type) => *data_type,
        }
    }
}

impl Column {
    pub(crate) fn is_declared(&self) -> bool {
        self.is_declared
    }

    /// The type that an event, or `columnTypes`, defined the column by.
    pub(crate) fn hint(&self) -> Option<&SqlType> {
        match &self.definition.as_ref()?.given {
            Given::Sql(sql_type) => Some(sql_type),
            Given::Declared(_) => None,
        }
    }

    /// The type that a row wants for the column, if its value has a hint.
    pub(crate) fn hint_of(&self, row: usize) -> Option<&SqlType> {
        if let Ok(index) = self.other_hints.binary_search_by_key(&row, |(row, _)| *row) {
            return Some(&self.other_hints[index].1);
        }
        let since_row = self.definition.as_ref()?.since_row;
        self.hint().filter(|_| row >= since_row)
    }

    /// A column before any row.
    fn named(name: Box<str>) -> Column {
        Column {
            name,
            kinds: 0,
            has_hints: false,
            first_row: None,
            inferred: None,
            definition: None,
            other_hints: Vec::new(),
            is_declared: false,
        }
    }

    /// The same column before any row.
    pub(crate) fn without_rows(&self) -> Column {
        Column { is_declared: self.is_declared, ..Column::named(self.name.clone()) }
    }

    /// Takes the value of a row that is in the batch already into account; `hint` is the type that
    /// the row wants. A date among timestamps was not marked as one, so it makes the column text.
    pub(crate) fn learn_again(&mut self, mut flags: Flags, hint: Option<SqlType>, row: usize) {
        self.first_row.get_or_insert(row);
        self.learn(&mut flags, || "", hint, row);
    }

    /// Takes one more value into account; may mark the value for how it is to be read.
    #[inline]
    fn learn<'a>(
        &mut self,
        flags: &mut Flags,
        text: impl FnOnce() -> &'a str,
        sql_type: Option<SqlType>,
        row: usize,
    ) {
        let kind = flags.kind();
        self.kinds |= kind.bit();
        if let Some(sql_type) = sql_type {
            self.has_hints = true;
            flags.set_hint(sql_type.data_type);
            // a definition stays; so does a type that was found, if it is the hint's
            match &self.definition {
                None if self.inferred != Some(sql_type.data_type) => {
                    let given = Given::Sql(sql_type);
                    self.definition = Some(Definition { given, since_row: row });
                }
                Some(Definition { given: Given::Sql(defined), .. }) if *defined != sql_type => {
                    self.other_hints.push((row, sql_type));
                }
                _ => {}
            }
            return;
        }
        if self.definition.is_some() {
            return;
        }
        self.inferred = Some(match self.inferred {
            None => kind.data_type(),
            Some(known) if known == kind.data_type() => return,
            Some(DataType::Timestamp) if kind == Kind::String && is_date(text()) => {
                flags.set_date();
                DataType::Timestamp
            }
            Some(known) => known.common(kind.data_type()),
        });
    }
}

fn is_date(text: &str) -> bool {
    timestamp::canonical_date(text, &mut String::new())
}
