//! Events become rows: parsed once, flattened, typed; no database is needed for it.
//!
//! Invariant: a batch holds whole rows only. An event that cannot be taken leaves no trace but, at most,
//! knowledge of its paths. What a column's type will be in the table is decided when the batch is loaded,
//! against the table as it is then, so a batch may be filled while another one changes the table.

use std::{
    borrow::Cow,
    collections::HashMap,
    sync::{Arc, LazyLock},
};

use memchr::memmem::Finder;

use crate::{
    data_type::DataType,
    hints::{self, Hints},
    identifier::{NameOf, identifier, same_case},
    json::{self, HINT_PREFIX, MAX_DEPTH},
    options::{OptionError, StreamOptions},
    path::{PathId, Paths, ROOT},
    row::{Cell, Flags, Kind, RowError, Rows},
    sql_type::SqlType,
    timestamp,
};

/// A top-level key that other destinations use; it never becomes a column.
const TABLE_NAME_KEY: &str = "JITSU_TABLE_NAME";

static HINT_FINDER: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new(HINT_PREFIX));

/// Rows of one table and one set of options, waiting to be loaded.
#[derive(Debug)]
pub struct Batch {
    pub(crate) table: String,
    pub(crate) options: Arc<StreamOptions>,
    pub(crate) columns: Vec<Column>,
    /// Slots in the order of their first appearance in a row; declared columns come first.
    pub(crate) order: Vec<u32>,
    pub(crate) rows: Rows,
    by_name: HashMap<Box<str>, u32>,
    paths: Paths,
    scratch: Scratch,
    objects: u64,
}

/// A column, as the batch knows it.
#[derive(Debug)]
pub(crate) struct Column {
    pub(crate) name: Box<str>,
    /// Set of the kinds of its values.
    pub(crate) kinds: u8,
    /// The type that the values of this batch have in common.
    pub(crate) inferred: Option<DataType>,
    pub(crate) definition: Option<Definition>,
    is_ordered: bool,
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

/// Working space of one event, kept between events for its allocations.
#[derive(Debug, Default)]
struct Scratch {
    values: Vec<PendingValue>,
    /// Texts that are not slices of the event.
    texts: String,
    /// By slot: index into `values` plus one, of the row that is being made.
    value_of_slot: Vec<usize>,
}

#[derive(Debug)]
struct PendingValue {
    slot: u32,
    flags: Flags,
    text: TextAt,
    /// What the event or `columnTypes` says of the column's type.
    sql_type: Option<SqlType>,
}

#[derive(Debug, Clone, Copy)]
enum TextAt {
    /// Byte range of the event.
    Event(usize, usize),
    /// Byte range of the scratch texts.
    Scratch(usize, usize),
}

/// Why the quick walk over an event ended.
enum Stop {
    Error(RowError),
    /// A repeated key or an unexpected hint: walk again, the careful way.
    Careful,
}

impl From<RowError> for Stop {
    fn from(error: RowError) -> Stop {
        Stop::Error(error)
    }
}

impl Batch {
    /// An empty batch for `table` (a raw name). Refuses options that do not fit together.
    pub fn new(table: &str, options: Arc<StreamOptions>) -> Result<Batch, OptionError> {
        options.validate()?;
        let name = same_case(table, options.to_same_case);
        let table = identifier(&name, NameOf::Table).into_owned();
        let mut batch = Batch {
            table,
            columns: Vec::new(),
            order: Vec::new(),
            rows: Rows::default(),
            by_name: HashMap::new(),
            paths: Paths::default(),
            scratch: Scratch::default(),
            objects: 0,
            options: options.clone(),
        };
        for field in &options.schema {
            let name = same_case(&field.name, options.to_same_case);
            let slot = batch.slot(&identifier(&name, NameOf::Column));
            let column = &mut batch.columns[slot as usize];
            let given = Given::Declared(field.data_type);
            column.definition = Some(Definition { given, since_row: 0 });
            if !std::mem::replace(&mut column.is_ordered, true) {
                batch.order.push(slot);
            }
        }
        Ok(batch)
    }

    /// Adds one event (JSON). A refused one leaves the rows as they were.
    pub fn push(&mut self, event: &[u8]) -> Result<(), RowError> {
        let object = json::one_object(event)?;
        let mut hints = Hints::new();
        let mut is_careful = HINT_FINDER.find(object.as_bytes()).is_some();
        if !is_careful {
            match self.walk_event(object, &hints, false) {
                Ok(()) => return self.commit(object),
                Err(Stop::Error(error)) => return Err(error),
                Err(Stop::Careful) => is_careful = true,
            }
        }
        debug_assert!(is_careful);
        hints.extend(hints::collect(object)?);
        match self.walk_event(object, &hints, true) {
            Ok(()) => self.commit(object),
            Err(Stop::Error(error)) => Err(error),
            Err(Stop::Careful) => Err(RowError::json("keys that contradict each other")),
        }
    }

    /// Events taken so far.
    pub fn row_count(&self) -> usize {
        self.rows.len()
    }

    pub fn is_empty(&self) -> bool {
        self.rows.len() == 0
    }

    /// Bytes of heap that the batch holds, roughly.
    pub fn byte_size(&self) -> usize {
        self.rows.byte_size() + self.paths.byte_size() + self.columns.len() * 128
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

    fn walk_event(&mut self, object: &str, hints: &Hints, careful: bool) -> Result<(), Stop> {
        for value in self.scratch.values.drain(..) {
            if let Some(at) = self.scratch.value_of_slot.get_mut(value.slot as usize) {
                *at = 0;
            }
        }
        self.scratch.texts.clear();
        if let Some(whole) = hints.get("") {
            // the event itself is one value
            let mut text = String::new();
            json::compact(object, true, 0, &mut text)?;
            let slot = self.slot(crate::identifier::UNNAMED);
            let at = self.keep(&text);
            self.add(slot, Flags::new(Kind::Json), at, Some(whole.clone()));
            return Ok(());
        }
        let mut walk = Walk { batch: self, event: object, hints, careful };
        walk.object(ROOT, object, 0)
    }

    /// Moves the pending values into the rows and lets the columns learn from them.
    fn commit(&mut self, event: &str) -> Result<(), RowError> {
        let row = self.rows.len();
        let Scratch { values, texts, .. } = &mut self.scratch;
        for value in values.iter_mut() {
            let column = &mut self.columns[value.slot as usize];
            if !std::mem::replace(&mut column.is_ordered, true) {
                self.order.push(value.slot);
            }
            column.learn(
                &mut value.flags,
                text_at(value.text, event, texts),
                value.sql_type.take(),
                row,
            );
        }
        let cells = values.iter().map(|value| Cell {
            slot: value.slot,
            flags: value.flags,
            text: text_at(value.text, event, texts),
        });
        self.rows.push(cells);
        Ok(())
    }

    /// The slot of the column of this (final) name.
    fn slot(&mut self, name: &str) -> u32 {
        if let Some(slot) = self.by_name.get(name) {
            return *slot;
        }
        let slot = u32::try_from(self.columns.len()).unwrap_or(u32::MAX);
        self.columns.push(Column {
            name: name.into(),
            kinds: 0,
            inferred: None,
            definition: None,
            is_ordered: false,
        });
        self.by_name.insert(name.into(), slot);
        slot
    }

    fn keep(&mut self, text: &str) -> TextAt {
        let start = self.scratch.texts.len();
        self.scratch.texts.push_str(text);
        TextAt::Scratch(start, self.scratch.texts.len())
    }

    /// Adds a value to the row that is being made. Of two values of one column the later one stays.
    fn add(&mut self, slot: u32, flags: Flags, text: TextAt, sql_type: Option<SqlType>) {
        let Scratch { values, value_of_slot, .. } = &mut self.scratch;
        let value = PendingValue { slot, flags, text, sql_type };
        if value_of_slot.len() <= slot as usize {
            value_of_slot.resize(slot as usize + 1, 0);
        }
        match value_of_slot[slot as usize] {
            0 => {
                values.push(value);
                value_of_slot[slot as usize] = values.len();
            }
            earlier => values[earlier - 1] = value,
        }
    }
}

impl Column {
    /// Takes one more value into account; may mark the value for how it is to be read.
    fn learn(&mut self, flags: &mut Flags, text: &str, sql_type: Option<SqlType>, row: usize) {
        let kind = flags.kind();
        self.kinds |= kind.bit();
        if let Some(sql_type) = sql_type {
            let given = Given::Sql(sql_type);
            match &self.definition {
                None => {
                    self.definition = Some(Definition { given, since_row: row });
                    flags.set_hinted(true);
                }
                // a hint that contradicts an earlier definition counts as none: the value is converted
                Some(definition) => flags.set_hinted(definition.given == given),
            }
            return;
        }
        if self.definition.is_some() {
            return;
        }
        self.inferred = Some(match self.inferred {
            None => kind.data_type(),
            Some(DataType::Timestamp) if kind == Kind::String && is_date(text) => {
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

fn text_at<'a>(at: TextAt, event: &'a str, texts: &'a str) -> &'a str {
    match at {
        TextAt::Event(start, end) => &event[start..end],
        TextAt::Scratch(start, end) => &texts[start..end],
    }
}

/// The walk over one event.
struct Walk<'a> {
    batch: &'a mut Batch,
    event: &'a str,
    hints: &'a Hints,
    /// Hints and repeated keys are handled; slower.
    careful: bool,
}

impl Walk<'_> {
    fn object(&mut self, path: PathId, object: &str, depth: usize) -> Result<(), Stop> {
        if depth > MAX_DEPTH {
            return Err(RowError::TooDeep.into());
        }
        if self.careful {
            for (cursor, (key, value)) in json::last_values(object)?.into_iter().enumerate() {
                if !key.starts_with(HINT_PREFIX) {
                    self.entry(path, &mut cursor.clone(), &key, value, depth)?;
                }
            }
            return self.check_end(object, depth);
        }
        self.batch.objects += 1;
        let this = self.batch.objects;
        let (mut cursor, mut last) = (0, None);
        for entry in json::entries(object) {
            let (key, value) = entry?;
            last = Some(value);
            if key.starts_with(HINT_PREFIX) {
                return Err(Stop::Careful);
            }
            let child = self.child(path, &key, &mut cursor)?;
            if !self.batch.paths.see(child, this) {
                return Err(Stop::Careful); // repeated key
            }
            self.value(child, &key, value, depth)?;
        }
        if depth == 0 {
            json::ends_after(object, last)?;
        }
        Ok(())
    }

    fn check_end(&self, object: &str, depth: usize) -> Result<(), Stop> {
        if depth == 0 {
            let last = json::entries(object).last().transpose()?.map(|(_, value)| value);
            json::ends_after(object, last)?;
        }
        Ok(())
    }

    fn entry(
        &mut self,
        path: PathId,
        cursor: &mut usize,
        key: &str,
        value: &str,
        depth: usize,
    ) -> Result<(), Stop> {
        let child = self.child(path, key, cursor)?;
        self.value(child, key, value, depth)
    }

    fn child(&mut self, parent: PathId, key: &str, cursor: &mut usize) -> Result<PathId, RowError> {
        let batch = &mut *self.batch;
        if let Some(found) = batch.paths.find(parent, key, cursor) {
            return Ok(found);
        }
        let options = &batch.options;
        let key_part = same_case(key, options.to_same_case);
        let joined = match &*batch.paths.get(parent).joined {
            "" => key_part.into_owned(),
            parent => format!("{parent}_{key_part}"),
        };
        let column_type = options.column_types.iter().position(|(name, _)| *name == joined);
        let is_declared = options.schema.iter().any(|field| field.name == joined);
        let id = batch.paths.add(parent, key, joined);
        if id == PathId::MAX {
            return Err(RowError::TooManyColumns);
        }
        let path = batch.paths.get_mut(id);
        path.column_type = column_type.and_then(|index| u32::try_from(index).ok());
        path.is_whole = column_type.is_some() || is_declared;
        Ok(id)
    }

    fn value(&mut self, path: PathId, key: &str, value: &str, depth: usize) -> Result<(), Stop> {
        if depth == 0 && key == TABLE_NAME_KEY {
            return Ok(());
        }
        let hint = if self.careful { self.hint(path) } else { None };
        let (flags, text) = match value.as_bytes().first() {
            Some(b'{') if hint.is_none() && !self.batch.paths.get(path).is_whole => {
                return self.object(path, value, depth + 1);
            }
            Some(b'{') => {
                if value[1..].trim_start().starts_with('}') {
                    return Ok(()); // an object without keys is no column
                }
                self.nested(value, depth)?
            }
            Some(b'[') => self.nested(value, depth)?,
            Some(b'"') => self.string(&value[1..value.len() - 1])?,
            Some(b't' | b'f') => (Flags::new(Kind::Bool), self.slice(value)),
            Some(b'n') if self.batch.options.omit_nils => return Ok(()),
            Some(b'n') => {
                let field = self.batch.paths.get(path).joined.to_string();
                return Err(RowError::Null { field }.into());
            }
            _ => self.number(value),
        };
        let slot = self.slot(path)?;
        let hint = hint.or_else(|| self.column_type(path));
        self.batch.add(slot, flags, text, hint);
        Ok(())
    }

    /// What the event says of the type at this path; `columnTypes` wins over it.
    fn hint(&self, path: PathId) -> Option<SqlType> {
        let hinted = || self.hints.get(&*self.batch.paths.get(path).joined).cloned();
        self.column_type(path).or_else(hinted)
    }

    fn column_type(&self, path: PathId) -> Option<SqlType> {
        let index = self.batch.paths.get(path).column_type?;
        let (_, sql_type) = self.batch.options.column_types.get(index as usize)?;
        Some(sql_type.clone())
    }

    fn slot(&mut self, path: PathId) -> Result<u32, RowError> {
        if let Some(slot) = self.batch.paths.get(path).slot {
            return Ok(slot);
        }
        let joined = std::mem::take(&mut self.batch.paths.get_mut(path).joined);
        let slot = self.batch.slot(&identifier(&joined, NameOf::Column));
        let path = self.batch.paths.get_mut(path);
        path.joined = joined;
        path.slot = Some(slot);
        if slot == u32::MAX { Err(RowError::TooManyColumns) } else { Ok(slot) }
    }

    fn nested(&mut self, value: &str, depth: usize) -> Result<(Flags, TextAt), RowError> {
        let start = self.batch.scratch.texts.len();
        json::compact(value, self.careful, depth + 1, &mut self.batch.scratch.texts)?;
        let mut flags = Flags::new(Kind::Json);
        flags.set_escaped(); // its own escapes hold backslashes
        Ok((flags, TextAt::Scratch(start, self.batch.scratch.texts.len())))
    }

    fn string(&mut self, inner: &str) -> Result<(Flags, TextAt), RowError> {
        let start = self.batch.scratch.texts.len();
        if memchr::memchr(b'\\', inner.as_bytes()).is_some() {
            json::unescape(inner, &mut self.batch.scratch.texts)?;
            let end = self.batch.scratch.texts.len();
            let plain = self.batch.scratch.texts[start..].to_owned();
            if timestamp::canonical(&plain, &mut self.batch.scratch.texts) {
                let end_of_both = self.batch.scratch.texts.len();
                return Ok((Flags::new(Kind::Timestamp), TextAt::Scratch(end, end_of_both)));
            }
            let mut flags = Flags::new(Kind::String);
            flags.set_escaped();
            return Ok((flags, TextAt::Scratch(start, end)));
        }
        if timestamp::canonical(inner, &mut self.batch.scratch.texts) {
            let end = self.batch.scratch.texts.len();
            return Ok((Flags::new(Kind::Timestamp), TextAt::Scratch(start, end)));
        }
        Ok((Flags::new(Kind::String), self.slice(inner)))
    }

    fn number(&mut self, literal: &str) -> (Flags, TextAt) {
        let is_float = literal.bytes().any(|byte| matches!(byte, b'.' | b'e' | b'E'));
        let (kind, text) = if is_float { float(literal) } else { integer(literal) };
        let at = match text {
            Cow::Borrowed(text) if text.len() == literal.len() => self.slice(literal),
            text => self.batch.keep(&text),
        };
        (Flags::new(kind), at)
    }

    /// A slice of the event, by its position in it.
    fn slice(&self, text: &str) -> TextAt {
        let start = text.as_ptr() as usize - self.event.as_ptr() as usize;
        TextAt::Event(start, start + text.len())
    }
}

/// A number without fraction or exponent: an integer where it fits, else the text of its literal.
fn integer(literal: &str) -> (Kind, Cow<'_, str>) {
    match literal.parse::<i64>() {
        Ok(0) => (Kind::Int, Cow::Borrowed("0")), // also `-0`
        Ok(_) => (Kind::Int, Cow::Borrowed(literal)),
        Err(_) => (Kind::String, Cow::Borrowed(literal)),
    }
}

/// A number with fraction or exponent: a float where it is finite, else the text of its literal.
fn float(literal: &str) -> (Kind, Cow<'_, str>) {
    match literal.parse::<f64>() {
        // also `-0.0`, and what is too small for a float, which the database would refuse
        Ok(0.0) => (Kind::Float, Cow::Borrowed("0")),
        Ok(value) if value.is_finite() => (Kind::Float, Cow::Borrowed(literal)),
        _ => (Kind::String, Cow::Borrowed(literal)),
    }
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
            |cell: Cell<'_>| format!("{}:{:?}={}", name(cell.slot), cell.flags.kind(), cell.text);
        batch.rows.iter().map(|row| row.cells().map(show).collect()).collect()
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
