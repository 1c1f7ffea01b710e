//! The framing of PostgreSQL's protocol: a type byte, a length that includes itself, a body.
//! Source: PostgreSQL documentation, "Message Formats".

use std::collections::HashSet;

/// The first message of a connection has no type byte; these codes ask for something else than a
/// session.
const SSL_REQUEST: u32 = 80_877_103;
const GSS_REQUEST: u32 = 80_877_104;

/// Type byte and length.
pub(super) const HEADER: usize = 5;

/// Whether a first message (without its length) asks to encrypt the connection.
pub(super) fn asks_for_encryption(body: &[u8]) -> bool {
    let code = body.first_chunk::<4>().map(|code| u32::from_be_bytes(*code));
    matches!(code, Some(SSL_REQUEST | GSS_REQUEST))
}

/// The length of the body behind a header; `None` when no such message can exist.
pub(super) fn body_length(header: [u8; HEADER]) -> Option<usize> {
    let [_, length @ ..] = header;
    (u32::from_be_bytes(length) as usize).checked_sub(4)
}

/// Finds commits among what a client sends, in both ways of sending a statement.
#[derive(Debug, Default)]
pub(super) struct CommitFinder {
    /// Prepared statements, and portals bound to them, that commit.
    statements: HashSet<Vec<u8>>,
    portals: HashSet<Vec<u8>>,
}

impl CommitFinder {
    /// Whether a message makes the server commit.
    pub(super) fn is_commit(&mut self, kind: u8, body: &[u8]) -> bool {
        match kind {
            b'Q' => text(body).is_some_and(|(sql, _)| says_commit(sql)),
            b'P' => {
                if let Some((name, rest)) = text(body) {
                    let commits = text(rest).is_some_and(|(sql, _)| says_commit(sql));
                    set(&mut self.statements, name, commits);
                }
                false
            }
            b'B' => {
                if let Some((portal, rest)) = text(body) {
                    let commits = text(rest)
                        .is_some_and(|(statement, _)| self.statements.contains(statement));
                    set(&mut self.portals, portal, commits);
                }
                false
            }
            b'E' => text(body).is_some_and(|(portal, _)| self.portals.contains(portal)),
            _ => false,
        }
    }
}

/// How a transaction ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    Commit,
    /// Also the answer to a COMMIT of an aborted transaction.
    Rollback,
}

/// The end of a transaction that a server's message reports, if it does.
pub(super) fn reported_end(kind: u8, body: &[u8]) -> Option<End> {
    match (kind, text(body)?.0) {
        (b'C', b"COMMIT") => Some(End::Commit),
        (b'C', b"ROLLBACK") => Some(End::Rollback),
        _ => None,
    }
}

/// Whether one of the statements in `sql` is a COMMIT (or END). Statements are parted at `;`
/// without a look at quotes: a test's loader quotes no semicolons together with that word.
fn says_commit(sql: &[u8]) -> bool {
    sql.split(|byte| *byte == b';').any(|statement| {
        let words = statement.split(|byte| !byte.is_ascii_alphanumeric());
        let first = words.into_iter().find(|word| !word.is_empty()).unwrap_or_default();
        first.eq_ignore_ascii_case(b"commit") || first.eq_ignore_ascii_case(b"end")
    })
}

/// A zero-terminated string and what follows it.
fn text(body: &[u8]) -> Option<(&[u8], &[u8])> {
    let end = body.iter().position(|byte| *byte == 0)?;
    Some((&body[..end], &body[end + 1..]))
}

fn set(names: &mut HashSet<Vec<u8>>, name: &[u8], member: bool) {
    if member {
        names.insert(name.to_vec());
    } else {
        names.remove(name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_simple_query_that_commits_is_found_in_any_case_and_among_others() {
        for (sql, expected) in [
            ("COMMIT", true),
            ("commit;", true),
            ("  Commit and chain", true),
            ("update t set a = 1; commit", true),
            ("end", true),
            ("select 'commit'", false),
            ("update commits set n = 1", false),
            ("insert into t (commit) values (1)", false),
            ("rollback", false),
        ] {
            let body = format!("{sql}\0");
            assert_eq!(CommitFinder::default().is_commit(b'Q', body.as_bytes()), expected, "{sql}");
        }
    }

    #[test]
    fn a_prepared_commit_counts_when_it_is_executed() {
        let mut finder = CommitFinder::default();
        assert!(!finder.is_commit(b'P', b"s1\0COMMIT\0\0\0"));
        assert!(!finder.is_commit(b'B', b"p1\0s1\0\0\0\0\0\0\0"));
        assert!(finder.is_commit(b'E', b"p1\0\0\0\0\0"));
        // the portal is bound to something else
        assert!(!finder.is_commit(b'P', b"s2\0select 1\0\0\0"));
        assert!(!finder.is_commit(b'B', b"p1\0s2\0\0\0\0\0\0\0"));
        assert!(!finder.is_commit(b'E', b"p1\0\0\0\0\0"));
    }

    #[test]
    fn the_answer_to_the_commit_of_an_aborted_transaction_is_no_commit() {
        assert_eq!(reported_end(b'C', b"COMMIT\0"), Some(End::Commit));
        assert_eq!(reported_end(b'C', b"ROLLBACK\0"), Some(End::Rollback));
        assert_eq!(reported_end(b'C', b"INSERT 0 1\0"), None);
        assert_eq!(reported_end(b'D', b"COMMIT\0"), None);
    }

    #[test]
    fn requests_for_encryption_are_told_from_a_start() {
        assert!(asks_for_encryption(&SSL_REQUEST.to_be_bytes()));
        assert!(asks_for_encryption(&GSS_REQUEST.to_be_bytes()));
        assert!(!asks_for_encryption(&[0, 3, 0, 0, b'u']));
        assert!(!asks_for_encryption(&[]));
    }

    #[test]
    fn a_length_shorter_than_itself_is_refused() {
        assert_eq!(body_length([b'Q', 0, 0, 0, 4]), Some(0));
        assert_eq!(body_length([b'Q', 0, 0, 1, 0]), Some(252));
        assert_eq!(body_length([b'Q', 0, 0, 0, 3]), None);
    }
}
