//! A body's lines, one after the other, without the body.
//!
//! Invariant: at most one line and one piece of the body are held, so a sender that is faster than
//! the warehouse is held back by its connection. A line that the connection cut is an error, never
//! a line.

use std::time::Duration;

use appbase::{http::read_and_drop, telemetry::chain};
use axum::body::Body;
use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;

/// Bytes of a line at least that are too many; its end is not counted, a `\r` before it is.
const TOO_LONG: usize = 1 << 20;
/// How long a body of which nothing is wanted may keep its answer waiting.
const DISCARD_WITHIN: Duration = Duration::from_secs(10);

/// Why there is no next line.
#[derive(Debug, thiserror::Error)]
pub(super) enum LineError {
    // clients of the original know this text
    #[error("bufio.Scanner: token too long")]
    TooLong,
    #[error("nothing arrived for {} s", .0.as_secs())]
    Silent(Duration),
    /// The client went away or sent something that is not HTTP.
    #[error("{}", chain(.0))]
    Read(axum::Error),
}

/// The lines of one body.
pub(super) struct Lines {
    body: Body,
    /// What arrived and was not handed out yet.
    rest: BytesMut,
    /// Bytes of `rest` that were looked at; no line ends in them.
    searched: usize,
    has_ended: bool,
    patience: Duration,
}

impl Lines {
    /// `patience` is how long nothing may arrive.
    pub(super) fn new(body: Body, patience: Duration) -> Lines {
        Lines { body, rest: BytesMut::new(), searched: 0, has_ended: false, patience }
    }

    /// The next line without its `\n` or `\r\n`; the last one may lack it.
    pub(super) async fn next(&mut self) -> Result<Option<Bytes>, LineError> {
        loop {
            if let Some(found) = memchr::memchr(b'\n', &self.rest[self.searched..]) {
                let length = self.searched + found;
                self.searched = 0;
                let mut line = self.rest.split_to(length + 1).freeze();
                line.truncate(length);
                return as_line(line).map(Some);
            }
            self.searched = self.rest.len();
            if self.searched >= TOO_LONG {
                return Err(LineError::TooLong);
            }
            if self.has_ended {
                self.searched = 0;
                let line = std::mem::take(&mut self.rest).freeze();
                return if line.is_empty() { Ok(None) } else { as_line(line).map(Some) };
            }
            self.read().await?;
        }
    }

    /// Lets a client that is still sending see its answer.
    pub(super) async fn discard(self) {
        // late: the client sees a broken connection then
        let _ = tokio::time::timeout(DISCARD_WITHIN, read_and_drop(self.body)).await;
    }

    async fn read(&mut self) -> Result<(), LineError> {
        let frame = tokio::time::timeout(self.patience, self.body.frame()).await;
        match frame.map_err(|_| LineError::Silent(self.patience))? {
            None => self.has_ended = true,
            Some(frame) => {
                if let Ok(data) = frame.map_err(LineError::Read)?.into_data() {
                    self.rest.extend_from_slice(&data);
                }
            }
        }
        Ok(())
    }
}

fn as_line(mut line: Bytes) -> Result<Bytes, LineError> {
    if line.len() >= TOO_LONG {
        return Err(LineError::TooLong);
    }
    if line.ends_with(b"\r") {
        line.truncate(line.len() - 1);
    }
    Ok(line)
}

#[cfg(test)]
mod tests {
    use std::{convert::Infallible, io};

    use futures_util::stream;

    use super::*;

    fn in_pieces(pieces: &[&[u8]]) -> Lines {
        let pieces: Vec<_> =
            pieces.iter().map(|piece| Ok::<_, Infallible>(Bytes::copy_from_slice(piece))).collect();
        Lines::new(Body::from_stream(stream::iter(pieces)), Duration::from_secs(1))
    }

    async fn all(mut lines: Lines) -> Result<Vec<String>, LineError> {
        let mut found = Vec::new();
        while let Some(line) = lines.next().await? {
            found.push(String::from_utf8_lossy(&line).into_owned());
        }
        Ok(found)
    }

    #[tokio::test]
    async fn lines_are_found_however_the_body_is_cut() {
        let cases: &[(&str, &[&str])] = &[
            ("", &[]),
            ("a", &["a"]),
            ("a\nbc\n", &["a", "bc"]),
            ("a\r\n\r\nb\r", &["a", "", "b"]),
            ("\n", &[""]),
            ("a\r\rb\n\n", &["a\r\rb", ""]),
        ];
        for (text, expected) in cases {
            for size in 1..=text.len().max(1) {
                let pieces: Vec<_> = text.as_bytes().chunks(size).collect();
                assert_eq!(all(in_pieces(&pieces)).await.unwrap(), *expected, "{text:?} by {size}");
            }
        }
    }

    #[tokio::test]
    async fn a_line_has_at_most_a_mebibyte_less_one_byte_with_its_carriage_return() {
        let longest = "x".repeat(TOO_LONG - 1);
        for text in [
            longest.clone(),
            format!("{longest}\n{longest}\n{{}}"),
            format!("{}\r\n", &longest[1..]),
        ] {
            for size in [text.len(), 65_536, 1_000] {
                let pieces: Vec<_> = text.as_bytes().chunks(size).collect();
                assert!(all(in_pieces(&pieces)).await.is_ok());
            }
        }
        for text in [format!("{longest}x"), format!("{longest}x\n"), format!("{longest}\r\n")] {
            for size in [text.len(), 65_536, 1_000] {
                let pieces: Vec<_> = text.as_bytes().chunks(size).collect();
                let error = all(in_pieces(&pieces)).await.unwrap_err();
                assert_eq!(error.to_string(), "bufio.Scanner: token too long");
            }
        }
    }

    #[tokio::test]
    async fn what_a_broken_connection_cut_is_no_line() {
        let pieces = [Ok(Bytes::from_static(b"{}\n{\"a\":1}")), Err(io::Error::other("reset"))];
        let body = Body::from_stream(stream::iter(pieces));
        let mut lines = Lines::new(body, Duration::from_secs(1));
        assert_eq!(lines.next().await.unwrap().unwrap(), "{}");
        assert!(lines.next().await.unwrap_err().to_string().contains("reset"));
    }

    #[tokio::test]
    async fn a_silent_sender_is_given_up() {
        let body = Body::from_stream(stream::pending::<Result<Bytes, Infallible>>());
        let mut lines = Lines::new(body, Duration::from_millis(1));
        let error = lines.next().await.unwrap_err();
        assert!(matches!(error, LineError::Silent(_)), "{error}");
    }
}
