//! Names of SQL types: which of ours they stand for, and how ours are made.
//!
//! Events name types while they are parsed, before it is known which table they go to.

use crate::rows::{data_type::DataType, postgres_rules::TYPES};

/// Our type for an SQL type as the catalog prints it, or as a hint spells it: exact, else by its
/// beginning.
pub(crate) fn data_type(sql_type: &str) -> DataType {
    let exact = TYPES.iter().find(|(_, names)| names.contains(&sql_type));
    let found = exact.or_else(|| {
        TYPES.iter().find(|(_, names)| names.iter().any(|name| sql_type.starts_with(name)))
    });
    found.map_or(DataType::Unknown, |(data_type, _)| *data_type)
}

/// The SQL type of a new column.
pub(crate) fn sql_type(data_type: DataType) -> &'static str {
    TYPES.iter().find(|(ours, _)| *ours == data_type).map_or("text", |(_, names)| names[0])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sql_types_are_recognised_by_name_and_by_beginning() {
        let cases = [
            ("text", DataType::String),
            ("text[]", DataType::String),
            ("bigint[]", DataType::Int64),
            ("timestamp(6) with time zone", DataType::Timestamp),
            ("jsonb", DataType::Json),
            ("character varying(50)", DataType::Unknown),
            ("integer", DataType::Unknown),
            ("numeric(10,2)", DataType::Unknown),
        ];
        for (sql, expected) in cases {
            assert_eq!(data_type(sql), expected, "{sql}");
        }
    }
}
