//! Events become rows: parsed once, flattened, typed; no database is needed for it.
//!
//! Invariant: a batch holds whole rows only. An event that cannot be taken leaves no trace but, at most,
//! knowledge of its paths. What a column's type will be in the table is decided when the batch is loaded,
//! against the table as it is then, so a batch may be filled while another one changes the table.

use std::{collections::HashMap, sync::Arc};

use crate::{
    data_type::DataType,
    identifier::{NameOf, identifier, same_case},
    options::{OptionError, StreamOptions},
    path::Paths,
    row::{Cell, Flags, Kind, RowError},
    rows::{MemoryLimit, Rows},
    scratch::{NO_SLOT, Scratch},
    sql_type::SqlType,
    timestamp,
    walk::{self, PARTITION},
};

/// What happens to the rows that are in the table already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Replaces {
    /// They stay; with `deduplicate` those of equal key are updated.
    Nothing,
    /// They all go.
    Table,
    /// Those of the `partitionId` go.
    Partition,
}

/// Rows of one table and one set of options, waiting to be loaded.
#[derive(Debug)]
pub struct Batch {
    pub(crate) table: String,
    pub(crate) options: Arc<StreamOptions>,
    pub(crate) replaces: Replaces,
    pub(crate) columns: Vec<Column>,
    /// Slots in the order of their first appearance in a row; declared columns come first.
    pub(crate) order: Vec<u32>,
    pub(crate) rows: Rows,
    pub(crate) paths: Paths,
    pub(crate) scratch: Scratch,
    /// Objects walked so far.
    pub(crate) objects: u64,
    /// What the rows have in common, if they were pushed by [`Batch::push_alike`].
    shape: Option<u64>,
    by_name: HashMap<Box<str>, u32>,
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

impl Batch {
    /// An empty batch for `table` (a raw name) whose rows are added to those that are there. Refuses options that do
    /// not fit together.
    pub fn new(table: &str, options: Arc<StreamOptions>) -> Result<Batch, OptionError> {
        Batch::replacing(Replaces::Nothing, table, options)
    }

    /// The same, for rows that take the place of others.
    pub fn replacing(
        replaces: Replaces,
        table: &str,
        options: Arc<StreamOptions>,
    ) -> Result<Batch, OptionError> {
        let has_partition = options.partition_id.as_deref().is_some_and(|id| !id.is_empty());
        if replaces == Replaces::Partition && !has_partition {
            return Err(OptionError::PartitionWithoutId);
        }
        options.validate()?;
        let name = same_case(table, options.to_same_case);
        let table = identifier(&name, NameOf::Table).into_owned();
        let mut batch = Batch {
            table,
            replaces,
            columns: Vec::new(),
            order: Vec::new(),
            rows: Rows::default(),
            by_name: HashMap::new(),
            paths: Paths::default(),
            scratch: Scratch::default(),
            objects: 0,
            shape: None,
            options: options.clone(),
        };
        for field in &options.schema {
            let name = same_case(&field.name, options.to_same_case);
            let slot = batch.slot(&identifier(&name, NameOf::Column));
            let column = &mut batch.columns[slot as usize];
            let given = Given::Declared(field.data_type);
            column.definition = Some(Definition { given, since_row: 0 });
            if !std::mem::replace(&mut column.is_declared, true) {
                batch.order.push(slot);
            }
        }
        Ok(batch)
    }

    /// Keeps rows beyond the limit on disk. To be called before the first row.
    #[must_use]
    pub fn with_memory_limit(mut self, limit: MemoryLimit) -> Batch {
        if self.is_empty() {
            self.rows = Rows::with_limit(limit);
        }
        self
    }

    /// Adds one event (JSON). A refused one leaves the rows as they were.
    pub fn push(&mut self, event: &[u8]) -> Result<(), RowError> {
        let event = walk::walk(self, event)?;
        self.commit(event);
        Ok(())
    }

    /// Adds one event if it has the columns, and kinds of values in them, that all events before it have. `false`: it has
    /// not, and belongs into another batch. Loading such a batch does what inserting event by event would do.
    pub fn push_alike(&mut self, event: &[u8]) -> Result<bool, RowError> {
        let event = walk::walk(self, event)?;
        let shape = self.scratch.shape().ok_or(RowError::NoColumn)?;
        if *self.shape.get_or_insert(shape) != shape {
            return Ok(false);
        }
        self.commit(event);
        Ok(true)
    }

    /// Events taken so far. The first event's row has the number 0.
    pub fn row_count(&self) -> usize {
        self.rows.len()
    }

    pub fn is_empty(&self) -> bool {
        self.rows.len() == 0
    }

    /// Bytes of heap that the batch holds, roughly.
    pub fn byte_size(&self) -> usize {
        self.rows.held_bytes() + self.paths.byte_size() + self.columns.len() * 128
    }

    /// The partition whose rows this batch replaces.
    pub(crate) fn partition(&self) -> Option<&str> {
        match self.replaces {
            Replaces::Partition => self.options.partition_id.as_deref(),
            Replaces::Nothing | Replaces::Table => None,
        }
    }

    /// The final name of the column that holds the partition.
    pub(crate) fn partition_column(&self) -> String {
        self.column_name(PARTITION)
    }

    /// The final name of the schema that the options name.
    pub(crate) fn namespace(&self) -> Option<String> {
        let name = same_case(self.options.namespace.as_deref()?, self.options.to_same_case);
        Some(identifier(&name, NameOf::Table).into_owned())
    }

    /// Final names of the key columns, in key order.
    pub(crate) fn key_columns(&self) -> Vec<String> {
        self.options.primary_key.iter().map(|name| self.column_name(name)).collect()
    }

    /// The final name of a column that an option names.
    pub(crate) fn column_name(&self, name: &str) -> String {
        identifier(&same_case(name, self.options.to_same_case), NameOf::Column).into_owned()
    }

    pub(crate) fn slot_of(&self, name: &str) -> Option<u32> {
        self.by_name.get(name).copied()
    }

    /// The slot of the column of this (final) name.
    pub(crate) fn slot(&mut self, name: &str) -> u32 {
        if let Some(slot) = self.by_name.get(name) {
            return *slot;
        }
        let slot = u32::try_from(self.columns.len()).unwrap_or(NO_SLOT);
        self.columns.push(Column {
            name: name.into(),
            kinds: 0,
            has_hints: false,
            first_row: None,
            inferred: None,
            definition: None,
            is_declared: false,
        });
        self.by_name.insert(name.into(), slot);
        slot
    }

    /// Moves the pending values into the rows and lets the columns learn from them.
    fn commit(&mut self, event: &str) {
        let row = self.rows.len();
        let Scratch { values, hints, texts, .. } = &mut self.scratch;
        let mut hints = hints.drain(..).peekable();
        for (index, value) in values.iter_mut().enumerate() {
            if value.slot == NO_SLOT {
                continue;
            }
            let column = &mut self.columns[value.slot as usize];
            if column.first_row.is_none() {
                column.first_row = Some(row);
                if !column.is_declared {
                    self.order.push(value.slot);
                }
            }
            let sql_type = hints.next_if(|(of, _)| *of == index).map(|(_, sql_type)| sql_type);
            let text = || value.text.of(event, texts);
            column.learn(&mut value.flags, text, sql_type, row);
        }
        let filled = values.iter().filter(|value| value.slot != NO_SLOT);
        self.rows.push(filled.map(|value| Cell {
            slot: value.slot,
            flags: value.flags,
            bytes: value.text.bytes_of(event, texts),
        }));
    }
}

impl Column {
    pub(crate) fn is_declared(&self) -> bool {
        self.is_declared
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
            if self.definition.is_none() && self.inferred != Some(sql_type.data_type) {
                let given = Given::Sql(sql_type);
                self.definition = Some(Definition { given, since_row: row });
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

#[cfg(test)]
mod tests {
    use super::*;

    /// The columns of a batch of these events, as `name:kind=text` per value.
    fn rows(events: &[&str]) -> Vec<Vec<String>> {
        let mut batch = Batch::new("t", Arc::new(StreamOptions::default())).unwrap();
        for event in events {
            batch.push(event.as_bytes()).unwrap();
        }
        let name = |slot: u32| batch.columns[slot as usize].name.clone();
        let show =
            |cell: Cell<'_>| format!("{}:{:?}={}", name(cell.slot), cell.flags.kind(), cell.text());
        let mut rows = Vec::new();
        let all = 0..batch.row_count();
        let visited = batch.rows.visit(all, |_, row| {
            rows.push(row.cells().map(show).collect());
            true
        });
        visited.unwrap();
        rows
    }

    #[test]
    fn nested_objects_become_columns_of_their_paths() {
        let event = r#"{"a":{"b":1,"c":{"":2}},"":{"d":"x"},"e":[1, {"f":2}],"g":{},"h":null}"#;
        assert_eq!(
            rows(&[event]),
            [["a_b:Int=1", "a_c_:Int=2", "d:String=x", r#"e:Json=[1,{"f":2}]"#]]
        );
    }

    #[test]
    fn numbers_keep_their_literal_until_a_type_is_chosen() {
        let event =
            r#"{"i":-0,"big":9223372036854775808,"f":1.0,"e":1e3,"inf":1e999,"tiny":1e-999}"#;
        assert_eq!(
            rows(&[event]),
            [[
                "i:Int=0",
                "big:String=9223372036854775808",
                "f:Float=1.0",
                "e:Float=1e3",
                "inf:String=1e999",
                "tiny:Float=0",
            ]]
        );
    }

    #[test]
    fn events_are_alike_if_they_have_the_same_columns_and_kinds_in_any_order() {
        let first = r#"{"a":1,"b":{"c":"x"}}"#;
        let cases = [
            (r#"{"b":{"c":"y"},"a":2,"d":null}"#, true),
            (r#"{"a":1.5,"b":{"c":"x"}}"#, false),
            (r#"{"a":1}"#, false),
            (r#"{"a":1,"b":{"c":"x"},"d":1}"#, false),
            (r#"{"a":1,"b":{"c":"x"},"__sql_type_a":"text"}"#, false),
        ];
        for (event, alike) in cases {
            let mut batch = Batch::new("t", Arc::new(StreamOptions::default())).unwrap();
            assert_eq!(batch.push_alike(first.as_bytes()), Ok(true));
            assert_eq!(batch.push_alike(event.as_bytes()), Ok(alike), "{event}");
            assert_eq!(batch.row_count(), 1 + usize::from(alike), "{event}");
        }
    }

    #[test]
    fn an_event_without_a_column_is_like_none() {
        let mut batch = Batch::new("t", Arc::new(StreamOptions::default())).unwrap();
        assert_eq!(batch.push_alike(br#"{"a":null}"#), Err(RowError::NoColumn));
        assert_eq!(batch.push_alike(br#"{"a":1}"#), Ok(true));
    }

    #[test]
    fn a_repeated_key_has_its_last_value_and_nothing_of_the_first() {
        assert_eq!(rows(&[r#"{"a":{"x":1},"b":1,"a":{"y":2}}"#]), [["a_y:Int=2", "b:Int=1"]]);
        assert_eq!(rows(&[r#"{"a":1,"a":null}"#]), [Vec::<String>::new()]);
    }

    #[test]
    fn paths_that_meet_in_one_column_leave_the_later_value() {
        assert_eq!(rows(&[r#"{"a_b":1,"c":2,"a":{"b":"x"}}"#]), [["a_b:String=x", "c:Int=2"]]);
    }

    #[test]
    fn a_refused_event_leaves_no_row_behind() {
        let mut batch = Batch::new("t", Arc::new(StreamOptions::default())).unwrap();
        batch.push(br#"{"a":1}"#).unwrap();
        for broken in [r#"{"a":1,"b":}"#, r#"{"a":1} {"#, r#"{"a":"\x"}"#, r#"{"b":"\ud8"}"#, "[]"]
        {
            assert!(batch.push(broken.as_bytes()).is_err(), "{broken}");
        }
        batch.push(br#"{"c":2}"#).unwrap();
        assert_eq!(batch.row_count(), 2);
        let names: Vec<_> =
            batch.order.iter().map(|slot| &*batch.columns[*slot as usize].name).collect();
        assert_eq!(names, ["a", "c"], "columns of refused events are not made");
    }

    /// Whatever makes the walk step over a value: a repeated key, a hint, a name that is not for us.
    #[test]
    fn what_nobody_takes_apart_is_checked_too() {
        for text in [
            r#"{"__sql_type":"jsonb","a":1} x"#,
            r#"{"__sql_type":"jsonb","a":1}{"a":2}"#,
            r#"{"JITSU_TABLE_NAME":"\uzzzz"}"#,
            r#"{"JITSU_TABLE_NAME":{"a":["\uzzzz"]},"b":1}"#,
            r#"{"a":[{"d":"\uzzzz","d":1}]}"#,
            r#"{"a":1,"a":2,"d":"\uzzzz","d":1}"#,
            r#"{"__sql_type_a":"text","d":"\uzzzz","d":1}"#,
            r#"{"__sql_type":"json","d":"\uzzzz","d":1}"#,
            r#"{"d":"\u"\"zz","d":1,"a":"__sql_type"}"#,
        ] {
            let mut batch = Batch::new("t", StreamOptions::default().into()).unwrap();
            assert!(batch.push(text.as_bytes()).is_err(), "{text}");
        }
    }

    /// Deterministic damage: a byte replaced, removed or doubled, again and again.
    #[test]
    fn what_is_checked_at_intake_can_be_parsed_and_the_rest_is_refused() {
        const INTACT: &str = r#"{"a":{"b":[1,-2.5e3,{"c":"x\"\u00e9\\"}],"d":null},"e":true,"f":"é","g":[],"h":{},"i":[[],"]"]}"#;
        const BYTES: &[u8] = b"{}[]:,\"\\ 0129.-+eEtruefalsn\x00\x1f\x80\xc3/";
        let mut seed = 1_u64;
        let mut random = |below: usize| {
            seed = seed
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (seed >> 33) as usize % below
        };
        for _ in 0..200_000 {
            let mut text = INTACT.as_bytes().to_vec();
            for _ in 0..=random(3) {
                let at = random(text.len());
                match random(3) {
                    0 => text[at] = BYTES[random(BYTES.len())],
                    1 => drop(text.remove(at)),
                    _ => text.insert(at, BYTES[random(BYTES.len())]),
                }
            }
            let is_object =
                serde_json::from_slice::<serde_json::Map<String, serde_json::Value>>(&text).is_ok();
            let checked = crate::check_event(&text);
            let mut batch = Batch::new("t", StreamOptions::default().into()).unwrap();
            let pushed = batch.push(&text);
            let shown = String::from_utf8_lossy(&text);
            assert_eq!(checked.is_ok(), is_object, "checked: {checked:?}: {shown}");
            assert_eq!(pushed.is_ok(), is_object, "pushed: {pushed:?}: {shown}");
        }
    }
}
