//! The walk over one event: flattening, names, the kinds of values.
//!
//! The quick walk reads the event once, front to back. A repeated key or a type hint, which both change what was
//! read before them, make it start over, the careful way.

use std::{borrow::Cow, sync::LazyLock};

use memchr::memmem::Finder;

use crate::{
    batch::Batch,
    hints::{self, Hints},
    identifier::{NameOf, UNNAMED, identifier, same_case},
    json::{self, HINT_PREFIX, MAX_DEPTH},
    path::{PathId, ROOT},
    row::{Flags, Kind, RowError},
    sql_type::SqlType,
    timestamp,
};

/// A top-level key that other destinations use; it never becomes a column.
const TABLE_NAME_KEY: &str = "JITSU_TABLE_NAME";
/// The column of the partition that a batch replaces.
pub(crate) const PARTITION: &str = "__partition_id";
/// Not the slot of any column.
pub(crate) const NO_SLOT: u32 = u32::MAX;

static HINT_FINDER: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new(HINT_PREFIX));

/// Working space of one event, kept between events for its allocations.
#[derive(Debug, Default)]
pub(crate) struct Scratch {
    pub(crate) values: Vec<PendingValue>,
    /// Texts that are not slices of the event.
    pub(crate) texts: String,
    /// By slot: index into `values` plus one, of the row that is being made.
    value_of_slot: Vec<usize>,
    /// Whether the first of `values` is the partition that the options name.
    has_partition: bool,
}

#[derive(Debug)]
pub(crate) struct PendingValue {
    pub(crate) slot: u32,
    pub(crate) flags: Flags,
    pub(crate) text: TextAt,
    /// What the event or `columnTypes` says of the column's type.
    pub(crate) sql_type: Option<SqlType>,
}

#[derive(Debug, Clone, Copy)]
pub(crate) enum TextAt {
    /// Byte range of the event.
    Event(usize, usize),
    /// Byte range of the scratch texts.
    Scratch(usize, usize),
}

impl TextAt {
    pub(crate) fn of<'a>(self, event: &'a str, texts: &'a str) -> &'a str {
        match self {
            TextAt::Event(start, end) => &event[start..end],
            TextAt::Scratch(start, end) => &texts[start..end],
        }
    }
}

impl Scratch {
    fn clear(&mut self) {
        for value in self.values.drain(..) {
            if let Some(at) = self.value_of_slot.get_mut(value.slot as usize) {
                *at = 0;
            }
        }
        self.texts.clear();
        self.has_partition = false;
    }

    fn keep(&mut self, text: &str) -> TextAt {
        let start = self.texts.len();
        self.texts.push_str(text);
        TextAt::Scratch(start, self.texts.len())
    }

    /// Adds a value to the row that is being made. Of two values of one column the later one stays.
    fn add(&mut self, slot: u32, flags: Flags, text: TextAt, sql_type: Option<SqlType>) {
        let value = PendingValue { slot, flags, text, sql_type };
        if self.value_of_slot.len() <= slot as usize {
            self.value_of_slot.resize(slot as usize + 1, 0);
        }
        match self.value_of_slot[slot as usize] {
            0 => {
                self.values.push(value);
                self.value_of_slot[slot as usize] = self.values.len();
            }
            earlier => self.values[earlier - 1] = value,
        }
    }

    /// The event has a partition of its own, which is no value.
    fn forget_partition(&mut self) {
        if std::mem::take(&mut self.has_partition) {
            let partition = &mut self.values[0];
            self.value_of_slot[partition.slot as usize] = 0;
            partition.slot = NO_SLOT;
        }
    }
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

/// Leaves the event's values in the batch's scratch space and answers the event's text.
pub(crate) fn walk<'a>(batch: &mut Batch, event: &'a [u8]) -> Result<&'a str, RowError> {
    let object = json::one_object(event)?;
    if HINT_FINDER.find(object.as_bytes()).is_none() {
        match walk_event(batch, object, &Hints::new(), false) {
            Ok(()) => return Ok(object),
            Err(Stop::Error(error)) => return Err(error),
            Err(Stop::Careful) => {}
        }
    }
    let hints = hints::collect(object)?;
    match walk_event(batch, object, &hints, true) {
        Ok(()) => Ok(object),
        Err(Stop::Error(error)) => Err(error),
        Err(Stop::Careful) => Err(RowError::json("keys that contradict each other")),
    }
}

fn walk_event(batch: &mut Batch, object: &str, hints: &Hints, careful: bool) -> Result<(), Stop> {
    batch.scratch.clear();
    if let Some(whole) = hints.get("") {
        // the event itself is one value
        let mut text = String::new();
        json::compact(object, true, 0, &mut text)?;
        let slot = batch.slot(UNNAMED);
        let at = batch.scratch.keep(&text);
        batch.scratch.add(slot, Flags::new(Kind::Json), at, Some(whole.clone()));
        return Ok(());
    }
    let mut walk = Walk { batch, event: object, hints, careful };
    walk.partition()?;
    walk.object(ROOT, object, 0)
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
    /// The partition comes first; the event may replace its value.
    fn partition(&mut self) -> Result<(), RowError> {
        let Some(partition) = self.batch.partition().map(ToOwned::to_owned) else {
            return Ok(());
        };
        let path = self.child(ROOT, PARTITION, &mut 0)?;
        let slot = self.slot(path)?;
        let (mut flags, mut text) = (Flags::new(Kind::Timestamp), String::new());
        if !timestamp::canonical(&partition, &mut text) {
            (flags, text) = (Flags::new(Kind::String), partition);
            flags.set_escaped();
        }
        let hint = if self.careful { self.hint(path) } else { self.column_type(path) };
        let at = self.batch.scratch.keep(&text);
        self.batch.scratch.add(slot, flags, at, hint);
        self.batch.scratch.has_partition = true;
        Ok(())
    }

    fn object(&mut self, path: PathId, object: &str, depth: usize) -> Result<(), Stop> {
        if depth > MAX_DEPTH {
            return Err(RowError::TooDeep.into());
        }
        if self.careful {
            for (cursor, (key, value)) in json::last_values(object)?.into_iter().enumerate() {
                if !key.starts_with(HINT_PREFIX) {
                    let child = self.child(path, &key, &mut cursor.clone())?;
                    self.value(child, &key, value, depth)?;
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
        if depth == 0 && key == PARTITION && matches!(value.as_bytes().first(), Some(b'n' | b'{')) {
            self.batch.scratch.forget_partition();
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
        self.batch.scratch.add(slot, flags, text, hint);
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
        if slot == NO_SLOT { Err(RowError::TooManyColumns) } else { Ok(slot) }
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
            text => self.batch.scratch.keep(&text),
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
