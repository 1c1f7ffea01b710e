//! What is PostgreSQL's about rows: the limits, spellings and type names that hold while events are
//! parsed and fitted, before a connection is there to ask.
//!
//! All of it is constants, so it costs an event nothing. The next kind of warehouse finds here what
//! it has to say for itself; what reads them are `identifier`, `type_names`, `sql_type` and
//! `convert`. What PostgreSQL alone knows of fitted rows is in `postgres` (`types`, `encode`,
//! `binary`).

use crate::rows::data_type::DataType;

/// The longest name, in bytes; longer ones would be cut by the server (`NAMEDATALEN` - 1).
pub(super) const MAX_NAME_BYTES: usize = 63;
/// The ledger's table of positions.
pub(crate) const OFFSETS_TABLE: &str = "bulker_offsets";
/// The ledger's table of refused events' states.
pub(crate) const ORIGINS_TABLE: &str = "bulker_origins";
/// The precision of timestamps, in digits of a second.
pub(crate) const TIMESTAMP_DIGITS: usize = 6;
/// What no text can hold.
pub(super) const NOT_IN_TEXT: &str = "\0";
/// The same as JSON spells it, which no JSON value can hold.
pub(super) const NOT_IN_JSON: &str = "\\u0000";
/// How a float is written that is no number, or beyond all numbers.
pub(super) const NAN: &str = "NaN";
/// See [`NAN`]; negative with a minus before it.
pub(super) const INFINITY: &str = "Infinity";

/// Type names of each of our types; the first is the one of new columns.
pub(super) const TYPES: [(DataType, &[&str]); 6] = [
    (DataType::String, &["text", "varchar", "uuid"]),
    (DataType::Int64, &["bigint"]),
    (DataType::Float64, &["double precision"]),
    (
        DataType::Timestamp,
        &["timestamp with time zone", "timestamp", "timestamp without time zone", "date"],
    ),
    (DataType::Bool, &["boolean"]),
    (DataType::Json, &["jsonb", "json"]),
];

/// Words that begin something else than a type.
pub(super) const NOT_IN_A_TYPE: [&str; 12] = [
    "check",
    "collate",
    "compression",
    "constraint",
    "default",
    "exclude",
    "generated",
    "not",
    "null",
    "primary",
    "references",
    "unique",
];

/// Names that stand for a type with a sequence behind it, and that type.
pub(super) const SERIALS: [(&str, &str); 6] = [
    ("serial", "integer"),
    ("serial2", "smallint"),
    ("serial4", "integer"),
    ("serial8", "bigint"),
    ("smallserial", "smallint"),
    ("bigserial", "bigint"),
];

/// Those of the [`DEFAULTS`] that differ from row to row.
pub(super) const VOLATILE_DEFAULTS: [&str; 2] = ["clock_timestamp()", "gen_random_uuid()"];

/// Functions and constants that a default may be, besides literals.
pub(super) const DEFAULTS: [&str; 12] = [
    "true",
    "false",
    "null",
    "current_timestamp",
    "current_date",
    "current_time",
    "localtimestamp",
    "now()",
    "clock_timestamp()",
    "statement_timestamp()",
    "transaction_timestamp()",
    "gen_random_uuid()",
];
