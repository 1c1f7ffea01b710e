//! The types that values and columns have, apart from any database.

use serde_json::Value;

/// The type of a column, as far as fitting events to it is concerned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum DataType {
    /// An SQL type that none of the others stands for.
    Unknown = 0,
    /// `true` and `false`.
    Bool,
    /// A number without fraction and exponent that fits 64 bits with a sign.
    Int64,
    /// A number with a fraction or an exponent.
    Float64,
    /// Text, and all that nothing else takes.
    String,
    /// A moment, in UTC.
    Timestamp,
    /// JSON as a value; only hints, options and tables name it, for values themselves are
    /// [`DataType::String`].
    Json,
}

use DataType::{Bool, Float64, Int64, Json, String, Timestamp, Unknown};

impl DataType {
    /// The narrowest type that takes the values of both: the common ancestor in the tree
    /// STRING → (FLOAT64 → INT64 → BOOL, TIMESTAMP).
    pub(super) fn common(self, other: DataType) -> DataType {
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
    pub(super) fn from_schema_code(code: &Value) -> Option<DataType> {
        DataType::from_number(u8::try_from(code.as_u64()?).ok()?)
    }

    /// The inverse of `as u8`.
    pub(super) fn from_number(number: u8) -> Option<DataType> {
        [Unknown, Bool, Int64, Float64, String, Timestamp, Json].get(usize::from(number)).copied()
    }

    /// Whether values of this type are converted to `to` at all; each of them may still not fit.
    pub(crate) fn converts_to(self, to: DataType) -> bool {
        match (self, to) {
            _ if self == to => true,
            (Unknown, _) | (_, Timestamp) if self != String => false,
            (Json | Bool | Int64 | Float64 | Timestamp, Unknown) => true,
            (String, Unknown) | (Json, _) => false,
            (Timestamp, Int64 | Float64 | Bool) => false,
            (Bool | Int64 | Float64 | Timestamp, Json) => false,
            _ => true,
        }
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

    #[test]
    fn the_types_that_values_are_converted_to_are_those_of_the_table() {
        let none = |from: DataType, to: DataType| !from.converts_to(to);
        assert!(none(String, Unknown) && none(Timestamp, Int64) && none(Bool, Timestamp));
        assert!(none(Int64, Json) && none(Json, String) && none(Unknown, Int64));
        assert!(none(Unknown, Timestamp) && none(Unknown, String));
        for (from, to) in [(Int64, Bool), (Json, Unknown), (String, Json), (String, Timestamp)] {
            assert!(from.converts_to(to), "{from:?} {to:?}");
        }
        assert!(Unknown.converts_to(Unknown) && Timestamp.converts_to(String));
    }
}
