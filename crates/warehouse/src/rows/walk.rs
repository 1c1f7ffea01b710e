//! The walk over one event: flattening, names, the kinds of values.
//!
//! The quick walk reads the event once, front to back (`scan`). A repeated key or a type hint,
//! which both change what was read before them, make it start over, the careful way, over the
//! entries of each object.

use std::borrow::Cow;

use crate::rows::{
    escape::unescape,
    hints::{self, Hints},
    identifier::{NameId, UNNAMED, same_case},
    json::{self, HINT_PREFIX},
    parser::Parser,
    path::{PathId, ROOT, Role},
    row::{Flags, Kind, MAX_DEPTH, RowError},
    scan::Scan,
    scratch::{NO_SLOT, TextAt},
    sql_type::SqlType,
    timestamp,
};

/// A top-level key that other destinations use; it never becomes a column.
const TABLE_NAME_KEY: &str = "JITSU_TABLE_NAME";
/// The column of the partition that a batch replaces.
pub(super) const PARTITION: &str = "__partition_id";

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
pub(super) fn walk<'a>(parser: &mut Parser, event: &'a [u8]) -> Result<&'a str, RowError> {
    let object = json::one_object(event)?;
    match walk_quickly(parser, object) {
        Ok(()) => return Ok(object),
        Err(Stop::Error(error)) => return Err(error),
        Err(Stop::Careful) => {}
    }
    // what is stepped over from here on is not looked at in full
    let mut scan = Scan::new(object);
    scan.skip(0)?;
    scan.end()?;
    let hints = hints::collect(object)?;
    walk_carefully(parser, object, &hints)?;
    Ok(object)
}

fn walk_quickly(parser: &mut Parser, object: &str) -> Result<(), Stop> {
    parser.scratch.clear();
    let mut scan = Scan::new(object);
    let mut walk = Walk { parser, event: object, hints: None };
    walk.partition()?;
    walk.quick_object(&mut scan, ROOT, 0)?;
    Ok(scan.end()?)
}

fn walk_carefully(parser: &mut Parser, object: &str, hints: &Hints) -> Result<(), RowError> {
    parser.scratch.clear();
    if let Some(whole) = hints.get(&NameId::of("")) {
        // the event itself is one value
        let mut text = String::new();
        json::compact(object, true, 0, &mut text)?;
        let slot = parser.columns.slot(UNNAMED);
        let at = parser.scratch.keep(&text);
        parser.scratch.add(slot, Flags::new(Kind::Json), at, Some(whole.clone()));
        return Ok(());
    }
    let mut walk = Walk { parser, event: object, hints: Some(hints) };
    walk.partition()?;
    walk.object(ROOT, object, 0)
}

/// The walk over one event.
struct Walk<'a> {
    parser: &'a mut Parser,
    event: &'a str,
    /// The event's; `None` on the quick walk, which stops where one is.
    hints: Option<&'a Hints>,
}

impl<'a> Walk<'a> {
    /// The partition comes first; the event may replace its value.
    fn partition(&mut self) -> Result<(), RowError> {
        let Some(partition) = self.parser.partition.clone() else {
            return Ok(());
        };
        let path = self.child(ROOT, PARTITION, &mut 0)?;
        let slot = self.slot(path)?;
        let (mut flags, mut text) = (Flags::new(Kind::Timestamp), String::new());
        if !timestamp::canonical(&partition, &mut text) {
            (flags, text) = (Flags::new(Kind::String), partition);
            flags.set_escaped();
        }
        let hint = self.hint(path);
        let at = self.parser.scratch.keep(&text);
        self.parser.scratch.add(slot, flags, at, hint);
        self.parser.scratch.has_partition = true;
        Ok(())
    }

    /// An object that is next in `scan`.
    fn quick_object(
        &mut self,
        scan: &mut Scan<'a>,
        path: PathId,
        depth: usize,
    ) -> Result<(), Stop> {
        if depth >= MAX_DEPTH {
            return Err(RowError::TooDeep.into());
        }
        scan.expect(b'{', "an object is missing")?;
        if scan.take(b'}') {
            return Ok(());
        }
        self.parser.objects += 1;
        let this = self.parser.objects;
        let mut cursor = 0;
        loop {
            let (key, has_escapes) = scan.string()?;
            let child = if has_escapes {
                let mut plain = String::with_capacity(key.len());
                unescape(key, &mut plain)?;
                self.quick_child(path, &plain, &mut cursor)?
            } else {
                self.quick_child(path, key, &mut cursor)?
            };
            if !self.parser.paths.see(child, this) {
                return Err(Stop::Careful); // repeated key
            }
            scan.expect(b':', "a colon is missing")?;
            self.quick_value(scan, child, depth)?;
            if scan.take(b'}') {
                return Ok(());
            }
            scan.expect(b',', "a comma is missing")?;
            scan.peek();
        }
    }

    #[inline]
    fn quick_child(
        &mut self,
        parent: PathId,
        key: &str,
        cursor: &mut usize,
    ) -> Result<PathId, Stop> {
        if key.starts_with(HINT_PREFIX) {
            return Err(Stop::Careful);
        }
        Ok(self.child(parent, key, cursor)?)
    }

    fn quick_value(&mut self, scan: &mut Scan<'a>, path: PathId, depth: usize) -> Result<(), Stop> {
        let role = self.parser.paths.get(path).role;
        let first = scan.peek();
        if role == Role::TableName {
            scan.skip(depth)?;
            return Ok(());
        }
        if role == Role::Partition && matches!(first, Some(b'n' | b'{')) {
            self.parser.scratch.forget_partition();
        }
        let (flags, text) = match first {
            Some(b'"') => {
                let (inner, has_escapes) = scan.string()?;
                if has_escapes { self.escaped(inner)? } else { self.plain(inner) }
            }
            Some(b'{') if !self.parser.paths.get(path).is_whole => {
                return self.quick_object(scan, path, depth + 1);
            }
            Some(b'{') => {
                let value = scan.skip(depth)?;
                if value.contains(HINT_PREFIX) {
                    return Err(Stop::Careful);
                }
                if is_empty(value) {
                    return Ok(());
                }
                self.nested(value, depth)?
            }
            Some(b'[') => {
                let value = scan.skip(depth)?;
                self.nested(value, depth)?
            }
            Some(b't') => (Flags::new(Kind::Bool), self.slice(scan.word("true")?)),
            Some(b'f') => (Flags::new(Kind::Bool), self.slice(scan.word("false")?)),
            Some(b'n') => {
                scan.word("null")?;
                return Ok(self.null(path)?);
            }
            _ => {
                let (literal, is_float) = scan.number()?;
                self.number(literal, is_float)
            }
        };
        Ok(self.add(path, flags, text, None)?)
    }

    /// An object, the careful way.
    fn object(&mut self, path: PathId, object: &str, depth: usize) -> Result<(), RowError> {
        if depth > MAX_DEPTH {
            return Err(RowError::TooDeep);
        }
        for (cursor, (key, value)) in json::last_values(object)?.into_iter().enumerate() {
            if !key.starts_with(HINT_PREFIX) {
                let child = self.child(path, &key, &mut cursor.clone())?;
                self.value(child, value, depth)?;
            }
        }
        Ok(())
    }

    fn value(&mut self, path: PathId, value: &str, depth: usize) -> Result<(), RowError> {
        let role = self.parser.paths.get(path).role;
        let first = value.as_bytes().first();
        if role == Role::TableName {
            return Ok(());
        }
        if role == Role::Partition && matches!(first, Some(b'n' | b'{')) {
            self.parser.scratch.forget_partition();
        }
        let hint = self.hint(path);
        let (flags, text) = match first {
            Some(b'{') if hint.is_none() && !self.parser.paths.get(path).is_whole => {
                return self.object(path, value, depth + 1);
            }
            Some(b'{') if is_empty(value) => return Ok(()),
            Some(b'{' | b'[') => self.nested(value, depth)?,
            Some(b'"') => {
                let inner = &value[1..value.len() - 1];
                if inner.contains('\\') { self.escaped(inner)? } else { self.plain(inner) }
            }
            Some(b't' | b'f') => (Flags::new(Kind::Bool), self.slice(value)),
            Some(b'n') => return self.null(path),
            _ => {
                let is_float = value.bytes().any(|byte| matches!(byte, b'.' | b'e' | b'E'));
                self.number(value, is_float)
            }
        };
        self.add(path, flags, text, hint)
    }

    fn child(&mut self, parent: PathId, key: &str, cursor: &mut usize) -> Result<PathId, RowError> {
        let parser = &mut *self.parser;
        if let Some(found) = parser.paths.find(parent, key, cursor) {
            return Ok(found);
        }
        let options = &parser.options;
        let name = parser.paths.get(parent).name.child(&same_case(key, options.to_same_case));
        let is_named = |by: &str| NameId::of(by) == name.id();
        let column_type = options.column_types.iter().position(|(by, _)| is_named(by));
        let is_declared = options.schema.iter().any(|field| is_named(&field.name));
        let id = parser.paths.add(parent, key, name);
        if id == PathId::MAX {
            return Err(RowError::TooManyColumns);
        }
        let path = parser.paths.get_mut(id);
        path.column_type = column_type.and_then(|index| u32::try_from(index).ok());
        path.is_whole = column_type.is_some() || is_declared;
        path.role = match key {
            TABLE_NAME_KEY if parent == ROOT => Role::TableName,
            PARTITION if parent == ROOT => Role::Partition,
            _ => Role::Value,
        };
        Ok(id)
    }

    #[inline]
    fn add(
        &mut self,
        path: PathId,
        flags: Flags,
        text: TextAt,
        hint: Option<SqlType>,
    ) -> Result<(), RowError> {
        let slot = self.slot(path)?;
        let hint = hint.or_else(|| self.column_type(path));
        self.parser.scratch.add(slot, flags, text, hint);
        Ok(())
    }

    fn null(&self, path: PathId) -> Result<(), RowError> {
        if self.parser.options.omit_nils {
            return Ok(());
        }
        Err(RowError::Null { field: self.parser.paths.get(path).name.start().to_owned() })
    }

    /// What the event says of the type at this path; `columnTypes` wins over it.
    fn hint(&self, path: PathId) -> Option<SqlType> {
        let hinted = || self.hints?.get(&self.parser.paths.get(path).name.id()).cloned();
        self.column_type(path).or_else(hinted)
    }

    fn column_type(&self, path: PathId) -> Option<SqlType> {
        let index = self.parser.paths.get(path).column_type?;
        let (_, sql_type) = self.parser.options.column_types.get(index as usize)?;
        Some(sql_type.clone())
    }

    fn slot(&mut self, path: PathId) -> Result<u32, RowError> {
        if let Some(slot) = self.parser.paths.get(path).slot {
            return Ok(slot);
        }
        let Parser { paths, columns, options, .. } = &mut *self.parser;
        let at = paths.get(path);
        let slot = columns.slot(&at.name.column(&same_case(&at.key, options.to_same_case)));
        paths.get_mut(path).slot = Some(slot);
        if slot == NO_SLOT { Err(RowError::TooManyColumns) } else { Ok(slot) }
    }

    fn nested(&mut self, value: &str, depth: usize) -> Result<(Flags, TextAt), RowError> {
        let start = self.parser.scratch.texts.len();
        json::compact(value, self.hints.is_some(), depth + 1, &mut self.parser.scratch.texts)?;
        let mut flags = Flags::new(Kind::Json);
        flags.set_escaped(); // its own escapes hold backslashes
        Ok((flags, TextAt::Scratch(start, self.parser.scratch.texts.len())))
    }

    /// A string with escapes; `inner` is its text between the quotes.
    fn escaped(&mut self, inner: &str) -> Result<(Flags, TextAt), RowError> {
        let texts = &mut self.parser.scratch.texts;
        let start = texts.len();
        unescape(inner, texts)?;
        let end = texts.len();
        let plain = texts[start..].to_owned();
        if timestamp::canonical(&plain, texts) {
            return Ok((Flags::new(Kind::Timestamp), TextAt::Scratch(end, texts.len())));
        }
        let mut flags = Flags::new(Kind::String);
        flags.set_escaped();
        Ok((flags, TextAt::Scratch(start, end)))
    }

    /// A string without escapes.
    #[inline]
    fn plain(&mut self, inner: &str) -> (Flags, TextAt) {
        let texts = &mut self.parser.scratch.texts;
        let start = texts.len();
        if timestamp::canonical(inner, texts) {
            return (Flags::new(Kind::Timestamp), TextAt::Scratch(start, texts.len()));
        }
        (Flags::new(Kind::String), self.slice(inner))
    }

    fn number(&mut self, literal: &str, is_float: bool) -> (Flags, TextAt) {
        let (kind, text) = if is_float { float(literal) } else { integer(literal) };
        let at = match text {
            Cow::Borrowed(text) if text.len() == literal.len() => self.slice(literal),
            text => self.parser.scratch.keep(&text),
        };
        (Flags::new(kind), at)
    }

    /// A slice of the event, by its position in it.
    fn slice(&self, text: &str) -> TextAt {
        let start = text.as_ptr() as usize - self.event.as_ptr() as usize;
        TextAt::Event(start, start + text.len())
    }
}

/// Whether an object has no key.
fn is_empty(object: &str) -> bool {
    object[1..].trim_start().starts_with('}')
}

/// A number without fraction or exponent: an integer where it fits, else its literal.
fn integer(literal: &str) -> (Kind, Cow<'_, str>) {
    match literal.parse::<i64>() {
        Ok(0) => (Kind::Int, Cow::Borrowed("0")), // also `-0`
        Ok(_) => (Kind::Int, Cow::Borrowed(literal)),
        Err(_) => (Kind::Number, Cow::Borrowed(literal)),
    }
}

/// A number with fraction or exponent: a float where it is finite, else its literal.
fn float(literal: &str) -> (Kind, Cow<'_, str>) {
    match literal.parse::<f64>() {
        // also `-0.0`, and what is too small for a float, which the database would refuse
        Ok(0.0) => (Kind::Float, Cow::Borrowed("0")),
        Ok(value) if value.is_finite() => (Kind::Float, Cow::Borrowed(literal)),
        _ => (Kind::Number, Cow::Borrowed(literal)),
    }
}
