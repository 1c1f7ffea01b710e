//! SQL types that events and options name.
//!
//! Invariant: nothing but the name of a type, and at most NOT NULL and a harmless default, ever
//! reaches a statement. Hints come with events, so every client that may send an event writes them;
//! everything that is not recognised here is refused.

use crate::rows::{
    data_type::DataType,
    postgres_rules::{DEFAULTS, NOT_IN_A_TYPE, SERIALS, VOLATILE_DEFAULTS},
    type_names::data_type,
};

const DEFAULT_CLAUSE: &str = " default ";
const NOT_NULL_CLAUSE: &str = " not null";

/// The SQL type that an event, or the `columnTypes` option, wants for a column.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct SqlType {
    /// Used in casts.
    pub(crate) cast: String,
    /// Used when the column is created; may carry a default clause.
    pub(crate) ddl: String,
    /// The type that the cast's stands for.
    pub(crate) data_type: DataType,
}

impl SqlType {
    /// A type for casts and for the column alike. `None`: it is not the name of a type.
    pub(super) fn plain(name: &str) -> Option<SqlType> {
        SqlType::new(name, name)
    }

    /// `None`: either is not what it should be.
    pub(super) fn new(cast: &str, ddl: &str) -> Option<SqlType> {
        (is_type(cast) && is_column_type(ddl)).then(|| SqlType {
            cast: cast.to_owned(),
            ddl: ddl.to_owned(),
            data_type: data_type(cast),
        })
    }
}

/// A column's type as it can be added to a table that has rows without writing them anew, and the
/// default that only later rows may get. `ddl` is that of a [`SqlType`].
pub(crate) fn without_rewrite(ddl: &str) -> (String, Option<&str>) {
    let first_word = ddl.split_whitespace().next().unwrap_or_default();
    let serial = SERIALS.iter().find(|(serial, _)| serial.eq_ignore_ascii_case(first_word));
    if let Some((_, integer)) = serial {
        return (ddl.replacen(first_word, integer, 1), None);
    }
    // the first one is the clause: a literal stands behind it
    let Some(at) = strip_at(ddl, DEFAULT_CLAUSE) else {
        return (ddl.to_owned(), None);
    };
    let value = ddl[at + DEFAULT_CLAUSE.len()..].trim_start();
    let is_volatile =
        VOLATILE_DEFAULTS.iter().any(|name| strip_prefix_of_any_case(value, name).is_some());
    if !is_volatile {
        return (ddl.to_owned(), None);
    }
    // a cast may follow, and NOT NULL may stand before or after
    let end = strip_at(value, NOT_NULL_CLAUSE).unwrap_or(value.len());
    (format!("{}{}", &ddl[..at], &value[end..]), Some(value[..end].trim_end()))
}

/// Whether `text` is `words[(words or numbers)] [words] [[]…]`, a quoted or qualified name
/// included.
fn is_type(text: &str) -> bool {
    let mut rest = text.trim();
    let mut words = 0;
    let mut had_arguments = false;
    while !rest.is_empty() {
        if let Some(inner) = rest.strip_prefix('(') {
            let Some((arguments, after)) = inner.split_once(')') else {
                return false;
            };
            let is_argument =
                |c: char| c.is_ascii_alphanumeric() || matches!(c, ' ' | ',' | '_' | '-');
            if words == 0
                || std::mem::replace(&mut had_arguments, true)
                || !arguments.chars().all(is_argument)
            {
                return false;
            }
            rest = after.trim_start();
        } else if let Some(inner) = rest.strip_prefix('[') {
            let Some((size, after)) = inner.split_once(']') else {
                return false;
            };
            if words == 0 || !size.bytes().all(|byte| byte.is_ascii_digit()) {
                return false;
            }
            rest = after.trim_start();
            if !rest.is_empty() && !rest.starts_with('[') {
                return false;
            }
        } else {
            let Some(after) = after_name(rest) else {
                return false;
            };
            words += 1;
            rest = after.trim_start();
        }
    }
    words > 0
}

/// What follows the word or quoted name, qualified or not, at the start of `text`.
fn after_name(text: &str) -> Option<&str> {
    let after = if let Some(quoted) = text.strip_prefix('"') {
        let (name, after) = quoted.split_once('"')?;
        if name.is_empty() || name.contains('\0') || after.starts_with('"') {
            return None;
        }
        after
    } else {
        let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
        let end = text.find(|c| !is_word(c)).unwrap_or(text.len());
        let word = &text[..end];
        let starts_well = word.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
        if !starts_well || NOT_IN_A_TYPE.iter().any(|other| other.eq_ignore_ascii_case(word)) {
            return None;
        }
        &text[end..]
    };
    match after.strip_prefix('.') {
        Some(name) => after_name(name),
        None => Some(after),
    }
}

/// Whether `text` is a type, then at most NOT NULL and a default, in any order.
fn is_column_type(text: &str) -> bool {
    let lower = text.to_ascii_lowercase();
    let mut end = lower.len();
    for clause in [DEFAULT_CLAUSE, NOT_NULL_CLAUSE] {
        if let Some(at) = lower.find(clause) {
            end = end.min(at);
        }
    }
    // a multiple of ASCII letters only changes case, so positions are those of `text`
    let (sql_type, clauses) = text.split_at(end);
    is_type(sql_type) && are_clauses(clauses)
}

fn are_clauses(text: &str) -> bool {
    let mut rest = text.trim();
    while !rest.is_empty() {
        if let Some(after) = strip_prefix_of_any_case(rest, "not null") {
            rest = after.trim_start();
        } else if let Some(after) = strip_prefix_of_any_case(rest, "default ") {
            let Some(after) = after_default(after.trim_start()) else {
                return false;
            };
            rest = after.trim_start();
        } else {
            return false;
        }
    }
    true
}

/// What follows the default value at the start of `text`.
fn after_default(text: &str) -> Option<&str> {
    let after = if let Some(literal) = text.strip_prefix('\'') {
        let (value, after) = literal.split_once('\'')?;
        // a doubled quote, or a backslash that some settings read as an escape, is more than we
        // need
        if value.contains(['\\', '\0']) || after.starts_with('\'') {
            return None;
        }
        after
    } else {
        let is_part =
            |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-' | '+' | '(' | ')');
        let end = text.find(|c| !is_part(c)).unwrap_or(text.len());
        let word = &text[..end];
        let is_number = word
            .starts_with(|c: char| c.is_ascii_digit() || matches!(c, '-' | '+' | '.'))
            && word.parse::<f64>().is_ok();
        if !is_number && !DEFAULTS.iter().any(|known| known.eq_ignore_ascii_case(word)) {
            return None;
        }
        &text[end..]
    };
    let Some(cast) = after.strip_prefix("::") else {
        return Some(after);
    };
    let end = strip_at(cast, NOT_NULL_CLAUSE).unwrap_or(cast.len());
    is_type(&cast[..end]).then(|| &cast[end..])
}

fn strip_at(text: &str, clause: &str) -> Option<usize> {
    text.to_ascii_lowercase().find(clause)
}

fn strip_prefix_of_any_case<'a>(text: &'a str, prefix: &str) -> Option<&'a str> {
    let (start, rest) = text.split_at_checked(prefix.len())?;
    start.eq_ignore_ascii_case(prefix).then_some(rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_types_are_taken() {
        for name in [
            "bigint",
            "double precision",
            "varchar(20)",
            "numeric(10, 2)",
            "numeric(3,-2)",
            "timestamp(3) with time zone",
            "text[]",
            "integer[3][]",
            "geometry(Point, 4326)",
            "\"My Type\"",
            "public.citext",
            "\"s\".\"t\"",
        ] {
            assert!(SqlType::plain(name).is_some(), "{name}");
        }
    }

    #[test]
    fn a_column_may_have_a_harmless_default() {
        for ddl in [
            "bigint default 5",
            "varchar(20) not null default 'x y'",
            "numeric default -1.5 not null",
            "timestamp with time zone default now()",
            "text DEFAULT 'a'::text",
            "uuid default gen_random_uuid()",
        ] {
            assert!(SqlType::new("text", ddl).is_some(), "{ddl}");
        }
    }

    #[test]
    fn what_would_rewrite_a_table_is_split_off() {
        let cases = [
            ("uuid default gen_random_uuid()", "uuid", Some("gen_random_uuid()")),
            (
                "text DEFAULT Gen_Random_UUID()::text not null",
                "text not null",
                Some("Gen_Random_UUID()::text"),
            ),
            (
                "timestamptz not null default clock_timestamp()",
                "timestamptz not null",
                Some("clock_timestamp()"),
            ),
            ("BigSerial not null", "bigint not null", None),
            (
                "text default 'x default gen_random_uuid()'",
                "text default 'x default gen_random_uuid()'",
                None,
            ),
            ("timestamptz default now()", "timestamptz default now()", None),
        ];
        for (ddl, sql_type, default) in cases {
            assert!(SqlType::new("text", ddl).is_some(), "{ddl}");
            assert_eq!(without_rewrite(ddl), (sql_type.to_owned(), default), "{ddl}");
        }
    }

    #[test]
    fn everything_else_is_refused() {
        for text in [
            "",
            "bigint; drop table x",
            "bigint, add column y text",
            "bigint) ; --",
            "text default pg_sleep(100)",
            "text default query_to_xml('delete from t', true, true, '')",
            "text default (select 1)",
            "text default 'a' || 'b'",
            "text default 'it''s'",
            "text default 'a'; drop table x",
            "text primary key",
            "bigint references other",
            "text check (true)",
            "int generated always as identity",
            "text -- x",
            "text/**/",
            "text\0",
            "\"a\"\"b\"",
            "'text'",
            "e'text'",
            "$$text$$",
        ] {
            assert!(SqlType::new("text", text).is_none(), "{text}");
            assert!(SqlType::plain(text).is_none(), "{text}");
        }
        assert!(SqlType::plain("text default 'a'").is_none(), "no default in a cast");
    }
}
