//! The types that values and columns have, apart from any database.

use serde_json::Value;

/// The type of a column, as far as fitting events to it is concerned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DataType {
    /// An SQL type that none of the others stands for.
    Unknown,
    Bool,
    Int64,
    Float64,
    String,
    Timestamp,
    Json,
}

use DataType::{Bool, Float64, Int64, Json, String, Timestamp, Unknown};

impl DataType {
    /// The narrowest type that takes the values of both: the common ancestor in the tree
    /// STRING → (FLOAT64 → INT64 → BOOL, TIMESTAMP).
    pub fn common(self, other: DataType) -> DataType {
        if self == other {
            return self;
        }
        match (self, other) {
            (Unknown, _) | (_, Unknown) => Unknown,
            (Json, Timestamp) | (Timestamp, Json) => Timestamp,
            (Bool, Int64) | (Int64, Bool) => Int64,
            (Bool | Int64, Float64) | (Float64, Bool | Int64) => Float64,
            _ => String,
        }
    }

    /// The type that a code of the `schema` option stands for.
    pub fn from_schema_code(code: &Value) -> Option<DataType> {
        Some(match code.as_u64()? {
            0 => Unknown,
            1 => Bool,
            2 => Int64,
            3 => Float64,
            4 => String,
            5 => Timestamp,
            6 => Json,
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_common_type_is_that_of_the_table_in_both_directions() {
        let table = [
            (Bool, Int64, Int64),
            (Bool, Float64, Float64),
            (Bool, Timestamp, String),
            (Bool, String, String),
            (Int64, Float64, Float64),
            (Int64, Timestamp, String),
            (Float64, Timestamp, String),
            (Timestamp, String, String),
            (Json, Bool, String),
            (Json, String, String),
            (Json, Timestamp, Timestamp),
            (Unknown, Int64, Unknown),
        ];
        for (a, b, common) in table {
            assert_eq!(a.common(b), common, "{a:?} {b:?}");
            assert_eq!(b.common(a), common, "{b:?} {a:?}");
        }
    }
}
