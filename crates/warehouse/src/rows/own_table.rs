//! The tables that the ledger is kept in: no event may name them.
//!
//! Invariant: no batch is opened for one of them, in whichever schema: a namespace may be the
//! default schema of another destination. Otherwise a client with an ordinary token could move
//! positions, and events of others would be lost or doubled.

use crate::rows::{
    identifier::{NameOf, identifier, same_case},
    postgres_rules::{OFFSETS_TABLE, ORIGINS_TABLE},
};

/// What the names of all of them begin with, in small letters or capital ones; no other character
/// has one of these as its small letter.
const START: &str = "bul";

/// Whether a table of this name, as a client gives it, is one of the ledger's or could be by the
/// options of its events (`toSameCase`).
pub fn is_own_table(name: &str) -> bool {
    // asked for each event, and nearly always answered here
    if !name.get(..START.len()).is_some_and(|start| start.eq_ignore_ascii_case(START)) {
        return false;
    }
    [false, true].iter().any(|to_same_case| {
        is_ledger_table(&identifier(&same_case(name, *to_same_case), NameOf::Table))
    })
}

/// Whether the ledger is kept in the table of this name, to which all rules were applied.
pub(super) fn is_ledger_table(table: &str) -> bool {
    [OFFSETS_TABLE, ORIGINS_TABLE].contains(&table)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ledgers_tables_are_found_however_their_names_are_spelled() {
        for name in [
            "bulker_offsets",
            "bulker_origins",
            "bulker.offsets",
            "bulker!offsets",
            "bulker\u{1f642}\u{1f642}offsets",
            "bulker\"\0origins",
            "BULKER_OFFSETS",
            "Bulker.Origins",
            "bul\u{212a}er_offsets", // the sign for kelvin, whose small letter is k
        ] {
            assert!(is_own_table(name), "{name}");
        }
    }

    #[test]
    fn tables_of_similar_names_are_the_customers() {
        let long = "bulker_offsets_".repeat(20);
        for name in [
            "",
            "bul",
            "bulk",
            "offsets",
            "bulker_offset",
            "bulker_offsets_2",
            "bulker__offsets",
            "bulker offsets",
            "bulker-offsets",
            "_bulker_offsets",
            " bulker_offsets",
            ".bulker_offsets",
            "bulker_offsets.",
            "bu\u{301}lker_offsets",
            &long,
        ] {
            assert!(!is_own_table(name), "{name}");
        }
    }
}
