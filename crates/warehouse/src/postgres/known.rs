//! What is remembered of a destination's tables between loads, so that what cannot succeed is not
//! tried each time.
//!
//! Invariant: all of it may be forgotten at any time; a load is slower then, and nothing else.

use std::{
    collections::{HashMap, HashSet},
    sync::{Mutex, PoisonError},
};

use super::catalog::{Table, TableName};
use crate::error::ServerError;

/// Keys that the rows of a table refused, until something changes there.
#[derive(Default)]
pub(super) struct RefusedKeys(Mutex<HashMap<(TableName, Vec<String>), Refusal>>);

struct Refusal {
    /// What the table was when the key was refused.
    state: String,
    error: ServerError,
}

impl RefusedKeys {
    pub(super) fn get(&self, name: &TableName, key: &[String], state: &str) -> Option<ServerError> {
        let refused = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let refusal = refused.get(&(name.clone(), key.to_vec()))?;
        (refusal.state == state).then(|| refusal.error.clone())
    }

    pub(super) fn insert(
        &self,
        name: &TableName,
        key: &[String],
        state: String,
        error: ServerError,
    ) {
        let mut refused = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        refused.insert((name.clone(), key.to_vec()), Refusal { state, error });
    }
}

/// Tables that have no room for more columns.
#[derive(Default)]
pub(super) struct FullTables(Mutex<HashSet<TableName>>);

impl FullTables {
    /// Whether this was not known of the table.
    pub(super) fn is_new(&self, name: &TableName) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(name.clone())
    }
}

/// Tables that took a row, each as it was then: under the same rules an error of unknown kind is a
/// row's, and not the table's.
#[derive(Default)]
pub(super) struct Taken(Mutex<HashMap<TableName, String>>);

impl Taken {
    /// Whether the table took a row while it was what it is now.
    pub(super) fn has(&self, name: &TableName, table: &Table) -> bool {
        let taken = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        taken.get(name) == Some(&table.version)
    }

    pub(super) fn insert(&self, name: &TableName, table: &Table) {
        let mut taken = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match taken.get_mut(name) {
            Some(version) if *version == table.version => {}
            Some(version) => version.clone_from(&table.version),
            None => drop(taken.insert(name.clone(), table.version.clone())),
        }
    }
}

/// Tables that took too long with more rows at a time than this.
#[derive(Default)]
pub(super) struct Paces(Mutex<HashMap<TableName, usize>>);

impl Paces {
    pub(super) fn get(&self, name: &TableName) -> Option<usize> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(name).copied()
    }

    /// Takes note of how many rows at a time a load had to send, and whether none of that took too
    /// long: then the next load tries some more.
    pub(super) fn went(&self, name: &TableName, pace: Option<(usize, bool)>) {
        let Some((rows, went_well)) = pace else {
            return;
        };
        let rows = if went_well { rows + rows / 4 + 1 } else { rows };
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(name.clone(), rows);
    }
}

const FIRST_PAUSE: u32 = 1;
const MAX_PAUSE: u32 = 1024;

/// Tables that had repeats.
#[derive(Default)]
pub(super) struct Repeats(Mutex<HashMap<TableName, Pause>>);

#[derive(Default)]
struct Pause {
    /// Loads that are merged without a try.
    left: u32,
    /// How many those were after the last vain try.
    last: u32,
}

impl Repeats {
    /// Whether it is worth trying that all keys are new.
    pub(super) fn is_worth_a_try(&self, table: &TableName) -> bool {
        let tables = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        tables.get(table).is_none_or(|pause| pause.left == 0)
    }

    /// Rows were merged without a try.
    pub(super) fn merged(&self, table: &TableName) {
        let mut tables = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(pause) = tables.get_mut(table) {
            pause.left = pause.left.saturating_sub(1);
        }
    }

    pub(super) fn tried(&self, table: &TableName, all_were_new: bool) {
        let mut tables = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if all_were_new {
            tables.remove(table);
            return;
        }
        let pause = tables.entry(table.clone()).or_default();
        pause.last = (pause.last * 2).clamp(FIRST_PAUSE, MAX_PAUSE);
        pause.left = pause.last;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many loads are merged before the next try.
    fn merges(repeats: &Repeats, table: &TableName) -> usize {
        let mut count = 0;
        while !repeats.is_worth_a_try(table) {
            repeats.merged(table);
            count += 1;
        }
        count
    }

    #[test]
    fn a_pace_that_was_kept_grows_and_one_that_was_not_is_what_went() {
        let table = TableName { schema: "s".to_owned(), table: "t".to_owned() };
        let paces = Paces::default();
        paces.went(&table, None);
        assert_eq!(paces.get(&table), None, "all rows went at once");
        paces.went(&table, Some((100, false)));
        assert_eq!(paces.get(&table), Some(100));
        paces.went(&table, Some((100, true)));
        assert_eq!(paces.get(&table), Some(126));
    }

    #[test]
    fn after_a_repeat_more_and_more_loads_are_merged_at_once() {
        let table = TableName { schema: "s".to_owned(), table: "t".to_owned() };
        let repeats = Repeats::default();
        for expected in [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 1024] {
            assert!(repeats.is_worth_a_try(&table));
            repeats.tried(&table, false);
            assert_eq!(merges(&repeats, &table), expected);
        }
        repeats.tried(&table, true);
        repeats.tried(&table, false);
        assert_eq!(merges(&repeats, &table), 1, "a load of new keys starts over");
    }
}
