//! PostgreSQL: the table as it is (`table`), how a batch fits it (`fit`), what has to change (`ddl`, `prepare`,
//! `key`), what rows become for COPY (`encode`, `binary`) and reach the table (`transfer`, one by one: `insert`), which rows are refused
//! (`isolate`), and the transaction that carries all of it (`load`).

mod binary;
mod client;
mod credentials;
mod ddl;
mod encode;
mod error;
mod fit;
mod insert;
mod isolate;
mod key;
mod load;
mod new_keys;
mod prepare;
mod table;
mod transfer;
mod types;

pub use client::{Connection, Postgres, Settings, probe};
pub use credentials::Credentials;
pub use error::{LoadError, ServerError};
pub use load::{
    Advance, Checkpoint, LoadCounts, LoadOptions, LoadReport, LoadedTable, Refusals, RefusedRow,
    RowsOf, SchemaChanges,
};
pub(crate) use table::Table;
pub use transfer::copy_text;
pub(crate) use types::data_type;

/// A name as SQL takes it. The only way for a name into a statement.
pub fn quote_ident(name: &str) -> String {
    format!("\"{}\"", name.replace('\0', "").replace('"', "\"\""))
}

/// A text as SQL takes it. Statements go by the simple protocol, which has no parameters.
pub fn quote_literal(text: &str) -> String {
    let text = text.replace('\0', "");
    let quoted = text.replace('\'', "''");
    // with a backslash the meaning would depend on `standard_conforming_strings`
    if text.contains('\\') {
        format!("E'{}'", quoted.replace('\\', "\\\\"))
    } else {
        format!("'{quoted}'")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotes_cannot_be_left() {
        assert_eq!(quote_ident("a\"b\0"), "\"a\"\"b\"");
        assert_eq!(quote_literal("it's"), "'it''s'");
        assert_eq!(quote_literal("a\\'b"), "E'a\\\\''b'");
    }
}
