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

/// The name of what lies at a path: keys joined by `_`. Of a long one only the beginning is kept, so
/// that one long key over many short ones costs what it holds and no more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct JoinedName {
    /// Cleaned by the rules of [`identifier`], and cut as it cuts.
    start: Box<str>,
    /// The last character was none that is allowed.
    in_run: bool,
    is_cut: bool,
    id: NameId,
}

/// Stands for a whole joined name. Two of one event that a client made equal on purpose would share
/// their hints, which it might as well have written twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct NameId {
    length: usize,
    /// FNV-1a, which goes on where it ended.
    hash: u64,
}

impl NameId {
    const EMPTY: NameId = NameId { length: 0, hash: 0xcbf2_9ce4_8422_2325 };

    pub(super) fn of(name: &str) -> NameId {
        NameId::EMPTY.with(name)
    }

    pub(super) fn is_empty(self) -> bool {
        self.length == 0
    }

    /// Of the same name with more behind it.
    pub(super) fn with(self, more: &str) -> NameId {
        let step = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        let hash = more.bytes().fold(self.hash, step);
        NameId { length: self.length + more.len(), hash }
    }
}

impl Default for JoinedName {
    fn default() -> JoinedName {
        JoinedName { start: "".into(), in_run: false, is_cut: false, id: NameId::EMPTY }
    }
}

impl JoinedName {
    /// The name of `key` below this one.
    pub(super) fn child(&self, key: &str) -> JoinedName {
        let mut start = String::with_capacity(MAX_NAME_BYTES.min(self.start.len() + 1 + key.len()));
        start.push_str(&self.start);
        let mut child = JoinedName { start: "".into(), ..*self };
        if !self.id.is_empty() {
            child.append("_", &mut start);
        }
        child.append(key, &mut start);
        child.start = start.into();
        child
    }

    fn append(&mut self, text: &str, start: &mut String) {
        self.id = self.id.with(text);
        if self.is_cut {
            return;
        }
        for character in text.chars() {
            let is_allowed = is_allowed(character);
            if is_allowed || !self.in_run {
                let clean = if is_allowed { character } else { '_' };
                if start.len() + clean.len_utf8() > MAX_NAME_BYTES {
                    self.is_cut = true;
                    return;
                }
                start.push(clean);
            }
            self.in_run = !is_allowed;
        }
    }

    pub(super) fn id(&self) -> NameId {
        self.id
    }

    /// The name as far as it is kept, for people.
    pub(super) fn start(&self) -> &str {
        &self.start
    }

    /// The identifier of a column of this name; `last_key` is the last of its keys.
    pub(super) fn column(&self, last_key: &str) -> Cow<'_, str> {
        match &*self.start {
            "" => Cow::Borrowed(UNNAMED),
            // forbidden characters only: there is no other key, for that would have brought a `_`
            "_" => Cow::Owned(identifier(last_key, NameOf::Column).into_owned()),
            start => Cow::Borrowed(start),
        }
    }
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
    fn a_joined_name_is_the_identifier_of_all_its_keys() {
        let long = "k".repeat(60);
        let parts = ["", "a", "_", "🙂", "é", "a.b", "$", "🙂x", long.as_str(), "ж-ж"];
        for first in parts {
            for second in parts {
                for third in parts {
                    let mut name = JoinedName::default();
                    let mut joined = String::new();
                    for key in [first, second, third] {
                        name = name.child(key);
                        let separator = if joined.is_empty() { "" } else { "_" };
                        joined = format!("{joined}{separator}{key}");
                        let expected = identifier(&joined, NameOf::Column);
                        assert_eq!(name.column(key), expected, "{joined:?}");
                        assert_eq!(name.id(), NameId::of(&joined));
                    }
                }
            }
        }
    }

    #[test]
    fn a_long_name_is_cut_between_characters_within_63_bytes() {
        let name = "ж".repeat(40);
        assert_eq!(identifier(&name, NameOf::Column), "ж".repeat(31));
    }
}
