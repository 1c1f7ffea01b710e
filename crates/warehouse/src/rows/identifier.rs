//! Names of tables, columns and schemas, made from whatever keys events have.
//!
//! Invariant: a name holds no quote, no NUL and at most 63 bytes, so the server never cuts it and
//! two names that we take for different are different in the database.

use std::borrow::Cow;

use md5::{Digest, Md5};
use unicode_properties::{GeneralCategoryGroup, UnicodeGeneralCategory};

use crate::rows::postgres_rules::MAX_NAME_BYTES;

/// What an empty name becomes.
pub(super) const UNNAMED: &str = "_unnamed";

/// What a name stands for; it shows in names that consist of forbidden characters only.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NameOf {
    /// A table or a schema.
    Table,
    /// A column.
    Column,
}

/// The identifier that `name` is stored under: what is no letter, ASCII digit, `_`, blank, `$` or
/// `-` becomes `_`, a name without any such character its MD5, and what is longer than the limit is
/// cut.
pub fn identifier(name: &str, of: NameOf) -> Cow<'_, str> {
    if name.is_empty() {
        return Cow::Borrowed(UNNAMED);
    }
    if name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_') {
        return Cow::Borrowed(cut(name));
    }
    let mut clean = String::with_capacity(name.len());
    let mut in_run = false;
    for character in name.chars() {
        if is_allowed(character) {
            clean.push(character);
        } else if !in_run {
            clean.push('_');
        }
        in_run = !is_allowed(character);
    }
    if clean == "_" {
        let kind = match of {
            NameOf::Table => "table",
            NameOf::Column => "column",
        };
        let digest = Md5::digest(name.as_bytes());
        let hex: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
        return Cow::Owned(format!("{kind}_{hex}"));
    }
    let length = cut(&clean).len();
    clean.truncate(length);
    Cow::Owned(clean)
}

/// `name` under the `toSameCase` option.
pub(super) fn same_case(name: &str, to_same_case: bool) -> Cow<'_, str> {
    if to_same_case { Cow::Owned(name.to_lowercase()) } else { Cow::Borrowed(name) }
}

fn is_allowed(character: char) -> bool {
    character.is_ascii_digit()
        || matches!(character, '_' | ' ' | '$' | '-')
        || character.general_category_group() == GeneralCategoryGroup::Letter
}

/// At most [`MAX_NAME_BYTES`], cut between characters.
fn cut(name: &str) -> &str {
    if name.len() <= MAX_NAME_BYTES {
        return name;
    }
    let end = (0..=MAX_NAME_BYTES).rev().find(|end| name.is_char_boundary(*end)).unwrap_or(0);
    &name[..end]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_cleaned_by_the_rules() {
        let long = "a".repeat(300);
        let cases = [
            ("plain_Name9", "plain_Name9"),
            ("", "_unnamed"),
            ("_", "_"),
            ("a.b", "a_b"),
            ("a\"; drop table x", "a_ drop table x"),
            ("a b$c-d", "a b$c-d"),
            ("naïve", "naïve"),
            ("a\u{0}b", "a_b"),
            ("x🙂🙂y", "x_y"),
            (long.as_str(), &long[..63]),
        ];
        for (name, expected) in cases {
            assert_eq!(identifier(name, NameOf::Column), expected, "{name:?}");
        }
    }

    #[test]
    fn a_name_without_an_allowed_character_becomes_its_digest() {
        // md5 of the four bytes of U+1F642
        let column = identifier("🙂", NameOf::Column);
        assert!(column.starts_with("column_") && column.len() == 7 + 32, "{column}");
        assert!(identifier("🙂", NameOf::Table).starts_with("table_"));
    }

    #[test]
    fn a_long_name_is_cut_between_characters_within_63_bytes() {
        let name = "ж".repeat(40);
        assert_eq!(identifier(&name, NameOf::Column), "ж".repeat(31));
    }
}
