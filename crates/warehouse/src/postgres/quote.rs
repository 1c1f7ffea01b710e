//! The only way for a name or a text into a statement.

/// A name as SQL takes it.
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
