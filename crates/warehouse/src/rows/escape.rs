//! Escapes in JSON strings.

use crate::rows::row::RowError;

/// Appends what a string stands for; `inner` is its text between the quotes. A half of a surrogate
/// pair becomes U+FFFD.
pub(super) fn unescape(inner: &str, out: &mut String) -> Result<(), RowError> {
    let mut rest = inner;
    while let Some(at) = memchr::memchr(b'\\', rest.as_bytes()) {
        out.push_str(&rest[..at]);
        let escape = rest.as_bytes().get(at + 1).ok_or_else(broken_escape)?;
        rest = &rest[at + 1..];
        let plain = match escape {
            b'"' => '"',
            b'\\' => '\\',
            b'/' => '/',
            b'b' => '\u{8}',
            b'f' => '\u{c}',
            b'n' => '\n',
            b'r' => '\r',
            b't' => '\t',
            b'u' => {
                let (character, length) = unicode_escape(rest)?;
                out.push(character);
                rest = &rest[length..];
                continue;
            }
            _ => return Err(broken_escape()),
        };
        out.push(plain);
        rest = &rest[1..];
    }
    out.push_str(rest);
    Ok(())
}

/// The character of `uXXXX` or `uXXXX\uXXXX` at the start of `text`, and how long that is.
fn unicode_escape(text: &str) -> Result<(char, usize), RowError> {
    let unit = |from: usize| {
        let digits = text.get(from..from + 4).filter(|d| d.bytes().all(|b| b.is_ascii_hexdigit()));
        digits.and_then(|digits| u32::from_str_radix(digits, 16).ok())
    };
    let first = unit(1).ok_or_else(broken_escape)?;
    if let Some(character) = char::from_u32(first) {
        return Ok((character, 5));
    }
    if first < 0xDC00
        && text.get(5..7) == Some("\\u")
        && let Some(second @ 0xDC00..=0xDFFF) = unit(7)
    {
        let code = 0x10000 + ((first - 0xD800) << 10) + (second - 0xDC00);
        return Ok((char::from_u32(code).unwrap_or(char::REPLACEMENT_CHARACTER), 11));
    }
    Ok((char::REPLACEMENT_CHARACTER, 5))
}

fn broken_escape() -> RowError {
    RowError::json("broken escape in a string")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escapes_stand_for_their_characters() {
        let mut out = String::new();
        unescape(r"a\u00e9\ud83d\ude42\ud800x\b", &mut out).unwrap();
        assert_eq!(out, "aé🙂\u{fffd}x\u{8}");
        for broken in [r"\x", r"\u12", r"\u+123"] {
            assert!(unescape(broken, &mut String::new()).is_err(), "{broken}");
        }
    }
}
