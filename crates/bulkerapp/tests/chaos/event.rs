//! What events look like, and what is to become of each: decided by its id alone, so that the
//! account can ask again.
//!
//! One event in a hundred is bad. Its parent row is not there yet, its name is longer than its
//! table allows, its amount is negative, a trigger refuses it with a code that means something
//! else, or it asks for a column that cannot be, or not yet. Others name a column of PostgreSQL's
//! own, which costs them nothing.

use std::time::Duration;

use crate::tables::{TABLES, Table};

/// One event in so many is bad.
const BAD_EVERY: u64 = 100;
/// One event in so many has a key that is the name of a system column.
const SYSTEM_COLUMN_EVERY: u64 = 50;
/// One event in so many brings a new column.
const NEW_COLUMN_EVERY: u64 = 400;
/// A type that is there after half of the time.
pub(crate) const LATE_TYPE: &str = "latetype";
/// Codes that a trigger refuses events with. None says that the event is to blame, and some would
/// be waited for if the server had not said it by a function.
const CODES: [&str; 10] =
    ["53400", "55000", "XX001", "42P01", "0A000", "40001", "57014", "08006", "42501", "42703"];
/// Columns of PostgreSQL's own.
const SYSTEM_COLUMNS: [&str; 5] = ["xmin", "ctid", "tableoid", "cmax", "xmax"];
/// Hints for columns that nobody can make: of a type that is not there, in a schema of another
/// database, and without a NULL in a table that has rows.
const IMPOSSIBLE_HINTS: [&str; 3] =
    [r#""nosuchtype""#, r#""a.b.c""#, r#"["text","text not null"]"#];

/// What its table makes of an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Fate {
    Accepted,
    /// Once its parent row is there.
    NeedsParent,
    /// Once names may be longer.
    NeedsWidth,
    /// Once the type that it asks for is there.
    NeedsType,
    /// Never: its amount is negative.
    Hopeless,
    /// Never: a trigger refuses it with this code.
    Odd(&'static str),
    /// Never: this is no column that can be made.
    Impossible(&'static str),
}

impl Fate {
    pub(crate) fn of(id: u64) -> Fate {
        if Table::of(id).is_invented() {
            return Fate::Accepted; // nobody made it, so it has no rules
        }
        // tables differ in their phase, so that bad events come at all times
        let (number, table) = (id / TABLES, id % TABLES);
        let phase = number + table * (BAD_EVERY / TABLES);
        if phase % BAD_EVERY != 7 {
            return Fate::Accepted;
        }
        let turn = (phase / BAD_EVERY + table) as usize;
        match turn % 10 {
            0..=2 => Fate::NeedsParent,
            3 | 4 => Fate::NeedsWidth,
            5 | 6 => Fate::Hopeless,
            7 => Fate::Odd(CODES[turn / 10 % CODES.len()]),
            8 => Fate::Impossible(IMPOSSIBLE_HINTS[turn / 10 % IMPOSSIBLE_HINTS.len()]),
            _ => Fate::NeedsType,
        }
    }

    pub(crate) fn may_be_refused(self) -> bool {
        self != Fate::Accepted
    }

    pub(crate) fn may_be_loaded(self) -> bool {
        !matches!(self, Fate::Hopeless | Fate::Odd(_) | Fate::Impossible(_))
    }
}

/// The system column that an event names as a key of its own.
pub(crate) fn system_column(id: u64) -> Option<&'static str> {
    let number = id / TABLES + id;
    let turn = (number / SYSTEM_COLUMN_EVERY) as usize;
    (number % SYSTEM_COLUMN_EVERY == 31).then(|| SYSTEM_COLUMNS[turn % SYSTEM_COLUMNS.len()])
}

/// An event's text. `age`: of the run; parents are named by the second in which their children are
/// sent.
pub(crate) fn event(id: u64, age: Duration) -> String {
    let fate = Fate::of(id);
    let name = if fate == Fate::NeedsWidth { "longer than it may be" } else { "short" };
    let parent = if fate == Fate::NeedsParent { age.as_secs() + 1 } else { 0 };
    let amount = if fate == Fate::Hopeless { -1 } else { 5 };
    let score = 100 + id % 900;
    let mut event = format!(
        r#"{{"id":{id},"name":"{name}","parent":{parent},"amount":{amount},"score":{score},"note":"note of {id}","spare":"x""#
    );
    match fate {
        Fate::Odd(code) => event += &format!(r#","odd":"{code}""#),
        Fate::Impossible(hint) => {
            event += &format!(r#","impossible":"x","__sql_type_impossible":{hint}"#);
        }
        Fate::NeedsType => event += &format!(r#","late":"x","__sql_type_late":"{LATE_TYPE}""#),
        Fate::Accepted | Fate::NeedsParent | Fate::NeedsWidth | Fate::Hopeless => {}
    }
    if let Some(column) = system_column(id) {
        event += &format!(r#","{column}":"mine""#);
    }
    let number = id / TABLES;
    if number % NEW_COLUMN_EVERY == NEW_COLUMN_EVERY - 1 {
        event += &format!(r#","extra_{}":"new""#, number / NEW_COLUMN_EVERY);
    }
    event.push('}');
    event
}
