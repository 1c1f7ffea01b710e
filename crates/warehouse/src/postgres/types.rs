//! What there is to know of PostgreSQL's types, beside their names ([`crate::rows::type_names`]).

/// Types whose explicit cast cuts what COPY refuses.
const CUTTING: [&str; 5] = ["varchar", "char", "bpchar", "bit", "varbit"];

/// Whether a cast to this type cuts values that COPY into a column of it would refuse.
pub(super) fn cast_cuts(sql_type: &str) -> bool {
    let lower = sql_type.to_ascii_lowercase();
    let name = lower.split('(').next().unwrap_or_default().trim();
    CUTTING.contains(&name) || name.starts_with("char") || name.starts_with("bit")
}

/// The default of a key column, by its type.
pub(super) fn key_default(sql_type: &str) -> &'static str {
    let lower = sql_type.to_lowercase();
    if lower.contains("var") || lower.contains("text") {
        "''"
    } else if lower.contains("timestamp") {
        "CURRENT_TIMESTAMP"
    } else if lower.contains("boolean") {
        "false"
    } else {
        "0"
    }
}

/// A type that is written in its binary form.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wire {
    Text,
    Int8,
    Float8,
    Bool,
    Timestamptz,
}

impl Wire {
    /// The form of a type as the catalog, or a statement of ours, spells it.
    pub(super) fn of(sql_type: &str) -> Option<Wire> {
        Some(match sql_type {
            "text" => Wire::Text,
            "bigint" => Wire::Int8,
            "double precision" => Wire::Float8,
            "boolean" => Wire::Bool,
            "timestamp with time zone" => Wire::Timestamptz,
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn casts_that_cut_are_known() {
        for cutting in ["varchar(3)", "character varying(3)", "char(1)", "BIT(3)"] {
            assert!(cast_cuts(cutting), "{cutting}");
        }
        assert!(!cast_cuts("numeric(3,1)") && !cast_cuts("text"));
    }
}
