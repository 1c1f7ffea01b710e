//! From events to rows: parsed once (`scan`, `walk`), flattened, typed (`columns`, `data_type`,
//! `hints`), kept in memory or on disk (`row_store`). No database is needed for any of it, and none
//! is asked.

pub(crate) mod batch;
pub(crate) mod columns;
pub(crate) mod convert;
pub(crate) mod data_type;
pub(crate) mod dedup;
pub(crate) mod disk_limit;
mod escape;
mod hints;
pub(crate) mod identifier;
pub(crate) mod json;
pub(crate) mod micro_batch;
pub(crate) mod options;
pub(crate) mod own_table;
mod parser;
mod path;
pub(crate) mod postgres_rules;
pub(crate) mod row;
pub(crate) mod row_store;
mod scan;
mod scratch;
pub(crate) mod sql_type;
pub(crate) mod timestamp;
pub(crate) mod type_names;
mod walk;
