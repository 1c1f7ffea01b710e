//! Events become rows: parsed once, flattened, typed; no database is needed for it.
//!
//! Invariant: a batch holds whole rows only. An event that cannot be taken leaves no trace but, at
//! most, knowledge of its paths. What a column's type will be in the table is decided when the
//! batch is loaded, against the table as it is then, so a batch may be filled while another one
//! changes the table.

use std::sync::Arc;

use crate::rows::{
    columns::Columns,
    identifier::{NameOf, identifier, same_case},
    options::{OptionError, StreamOptions},
    own_table::is_ledger_table,
    parser::Parser,
    row::{Cell, RowError},
    row_store::{MemoryLimit, Rows, SpillError},
    scratch::{NO_SLOT, Scratch},
    sql_type::SqlType,
    walk::{self, PARTITION},
};

/// Columns of more than this are those of events with ever new names: a table has 1,600 columns at
/// most, and these are ten times as many and more.
pub(super) const MANY_COLUMN_BYTES: usize = 8 << 20;

/// What happens to the rows that are in the table already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Replaces {
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
    pub(crate) rows: Rows,
    /// Whether the options came with the events, so that what they ask for is the events' to
    /// answer for.
    pub(crate) has_event_options: bool,
    parser: Parser,
    /// What the rows have in common, if they were pushed by [`Batch::push_alike`].
    shape: Option<u64>,
}

impl Batch {
    /// An empty batch for `table` (a raw name) whose rows are added to those that are there.
    /// Refuses options that do not fit together, and the tables of the ledger.
    pub fn new(table: &str, options: Arc<StreamOptions>) -> Result<Batch, OptionError> {
        Batch::replacing(Replaces::Nothing, table, options)
    }

    /// The same, for rows that take the place of others.
    pub(crate) fn replacing(
        replaces: Replaces,
        table: &str,
        options: Arc<StreamOptions>,
    ) -> Result<Batch, OptionError> {
        let has_partition = options.partition_id.as_deref().is_some_and(|id| !id.is_empty());
        if replaces == Replaces::Partition && !has_partition {
            return Err(OptionError::PartitionWithoutId);
        }
        options.validate()?;
        let table = table_name(table, &options)?;
        let partition = options.partition_id.clone().filter(|_| replaces == Replaces::Partition);
        let mut parser = Parser::new(options.clone(), partition);
        for field in &options.schema {
            let name = same_case(&field.name, options.to_same_case);
            parser.columns.declare(&identifier(&name, NameOf::Column), field.data_type);
        }
        Ok(Batch {
            table,
            options,
            replaces,
            rows: Rows::default(),
            has_event_options: false,
            parser,
            shape: None,
        })
    }

    /// Keeps rows beyond the limit on disk. To be called before the first row.
    #[must_use]
    pub fn with_memory_limit(mut self, limit: MemoryLimit) -> Batch {
        if self.is_empty() {
            self.rows = Rows::with_limit(limit);
        }
        self
    }

    /// Says that the options came with the events. What they ask for and cannot be had (a schema, a
    /// key, a type) refuses the events of this batch instead of failing the load, where refused
    /// rows are isolated.
    #[must_use]
    pub fn with_event_options(mut self) -> Batch {
        self.has_event_options = true;
        self
    }

    /// Adds one event (JSON).
    ///
    /// Errors: [`RowError`] for what is no JSON object, or cannot become a row; the rows are as
    /// they were.
    pub fn push(&mut self, event: &[u8]) -> Result<(), RowError> {
        let walked = walk::walk(&mut self.parser, event).map(|event| self.commit(event));
        self.parser.rest();
        walked
    }

    /// Adds one event if it has the columns, and kinds of values in them, that all events before it
    /// have. `false`: it has not, and belongs into another batch. Loading such a batch does what
    /// inserting event by event would do.
    pub(super) fn push_alike(&mut self, event: &[u8]) -> Result<bool, RowError> {
        let pushed = self.push_if_alike(event);
        self.parser.rest();
        pushed
    }

    fn push_if_alike(&mut self, event: &[u8]) -> Result<bool, RowError> {
        let event = walk::walk(&mut self.parser, event)?;
        let shape = self.parser.scratch.shape().ok_or(RowError::NoColumn)?;
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

    /// Whether no event was taken so far.
    pub fn is_empty(&self) -> bool {
        self.rows.len() == 0
    }

    /// Whether it should be loaded before it takes more: its events bring ever new columns.
    pub fn is_full(&self) -> bool {
        self.column_bytes() > MANY_COLUMN_BYTES
    }

    /// Bytes of heap that the columns hold, roughly.
    pub(super) fn column_bytes(&self) -> usize {
        self.columns().byte_size()
    }

    /// Bytes of heap that the batch holds, roughly.
    pub fn byte_size(&self) -> usize {
        self.rows.held_bytes() + self.parser.byte_size()
    }

    /// Why it holds more in memory than its limit, if it does.
    pub fn spill_error(&self) -> Option<SpillError> {
        self.rows.spill_error()
    }

    /// The partition whose rows this batch replaces.
    pub(crate) fn partition(&self) -> Option<&str> {
        self.parser.partition.as_deref()
    }

    /// The columns, as the rows so far have them.
    pub(crate) fn columns(&self) -> &Columns {
        &self.parser.columns
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

    /// Final names of the key columns, in key order, each once.
    pub(crate) fn key_columns(&self) -> Vec<String> {
        let mut columns = Vec::with_capacity(self.options.primary_key.len());
        for name in &self.options.primary_key {
            let column = self.column_name(name);
            if !columns.contains(&column) {
                columns.push(column);
            }
        }
        columns
    }

    /// Whether `columnTypes` wants this type for some column, so that it may not be an event's own.
    pub(crate) fn is_column_type(&self, sql_type: &SqlType) -> bool {
        self.options.column_types.iter().any(|(_, wanted)| wanted == sql_type)
    }

    /// The final name of a column that an option names.
    pub(crate) fn column_name(&self, name: &str) -> String {
        identifier(&same_case(name, self.options.to_same_case), NameOf::Column).into_owned()
    }

    /// Moves the pending values into the rows and lets the columns learn from them.
    fn commit(&mut self, event: &str) {
        let row = self.rows.len();
        let Parser { columns, scratch, .. } = &mut self.parser;
        let Scratch { values, hints, texts, .. } = scratch;
        let mut hints = hints.drain(..).peekable();
        for (index, value) in values.iter_mut().enumerate() {
            if value.slot == NO_SLOT {
                continue;
            }
            let sql_type = hints.next_if(|(of, _)| *of == index).map(|(_, sql_type)| sql_type);
            let text = || value.text.of(event, texts);
            columns.learn(value.slot, &mut value.flags, text, sql_type, row);
        }
        let filled = values.iter().filter(|value| value.slot != NO_SLOT);
        self.rows.push(filled.map(|value| Cell {
            slot: value.slot,
            flags: value.flags,
            bytes: value.text.bytes_of(event, texts),
        }));
    }
}

/// The final name of the table that a raw name stands for.
pub(super) fn table_name(name: &str, options: &StreamOptions) -> Result<String, OptionError> {
    let name = same_case(name, options.to_same_case);
    let table = identifier(&name, NameOf::Table).into_owned();
    if is_ledger_table(&table) { Err(OptionError::OwnTable(table)) } else { Ok(table) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rows::micro_batch::MicroBatch;

    /// The columns of a batch of these events, as `name:kind=text` per value.
    fn rows(events: &[&str]) -> Vec<Vec<String>> {
        let mut batch = Batch::new("t", Arc::new(StreamOptions::default())).unwrap();
        for event in events {
            batch.push(event.as_bytes()).unwrap();
        }
        let name = |slot: u32| batch.columns()[slot as usize].name.clone();
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
    fn no_batch_is_opened_for_the_tables_of_the_ledger_whatever_the_schema() {
        let small = |namespace: Option<&str>, to_same_case| StreamOptions {
            namespace: namespace.map(ToOwned::to_owned),
            to_same_case,
            ..StreamOptions::default()
        };
        for (table, namespace, to_same_case, is_refused) in [
            ("bulker_offsets", None, false, true),
            ("bulker!origins", Some("elsewhere"), false, true),
            ("BULKER_OFFSETS", None, true, true),
            // in quotes, another table for PostgreSQL
            ("BULKER_OFFSETS", None, false, false),
            ("bulker_offsets_2", None, false, false),
        ] {
            let options = Arc::new(small(namespace, to_same_case));
            let of_rows = Batch::new(table, options.clone()).err();
            let of_events = MicroBatch::new(table, &options).err();
            assert_eq!(of_rows.is_some(), is_refused, "{table} {to_same_case}");
            assert_eq!(of_rows, of_events, "{table} {to_same_case}");
        }
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
                "big:Number=9223372036854775808",
                "f:Float=1.0",
                "e:Float=1e3",
                "inf:Number=1e999",
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
            (r#"{"a":1,"b":{"c":"x\u00e9\""}}"#, true),
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
        let names: Vec<_> = batch
            .columns()
            .order()
            .iter()
            .map(|slot| &*batch.columns()[*slot as usize].name)
            .collect();
        assert_eq!(names, ["a", "c"], "columns of refused events are not made");
    }

    /// All that makes the walk step over a value: a repeated key, a hint, a name for other
    /// destinations.
    #[test]
    fn what_is_stepped_over_is_checked_too() {
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
