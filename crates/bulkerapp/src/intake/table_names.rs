//! Which tables' names are labels of `/bulk`'s metrics: a series stays for the life of the process.
//!
//! Invariant: of each destination there are as many as it may have topics; the others share one.

use std::{
    collections::{HashMap, HashSet},
    sync::{Mutex, PoisonError},
};

/// What stands for the others.
const NO_NAME: &str = "other";
/// Bytes of a name that is a label.
const LONGEST: usize = 249;

/// The names so far, by destination.
pub struct TableNames {
    limit: usize,
    known: Mutex<HashMap<String, HashSet<String>>>,
}

impl TableNames {
    /// So many for each destination.
    pub fn new(limit: usize) -> TableNames {
        TableNames { limit, known: Mutex::default() }
    }

    /// The label of a table that was loaded.
    pub(crate) fn label<'a>(&self, destination_id: &str, table: &'a str) -> &'a str {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let names = known.entry(destination_id.to_owned()).or_default();
        if names.contains(table) {
            return table;
        }
        if names.len() >= self.limit || table.len() > LONGEST {
            return NO_NAME;
        }
        names.insert(table.to_owned());
        table
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_beyond_the_limit_share_one_label() {
        let names = TableNames::new(2);
        let labels = ["a", "b", "c", "a", "d"].map(|table| names.label("d", table));
        assert_eq!(labels, ["a", "b", "other", "a", "other"]);
        assert_eq!(names.label("e", "c"), "c");
        assert_eq!(names.label("e", &"x".repeat(250)), "other");
    }
}
