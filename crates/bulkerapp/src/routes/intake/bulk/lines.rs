//! A body's lines, one after the other, without the body.
//!
//! Invariants: at most one line and one piece of the body are held, or, while the call waits for its
//! turn, its beginning, so a sender that is faster than the warehouse is held back by its
//! connection. A line that the connection cut is an error, never a line. A sender that keeps others
//! waiting is as fast as is asked for, or is given up.

use std::time::Duration;

use appbase::{http::read_and_drop, telemetry::chain};
use axum::body::Body;
use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use tokio::time::{Instant, timeout};

use crate::intake::bulk_permits::IsWhole;

/// Bytes of a line at least that are too many; its end is not counted, a `\r` before it is.
const TOO_LONG: usize = 1 << 20;
/// Bytes of a body that are read while its call waits for its turn.
const READ_AHEAD: usize = 64 << 10;
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
    #[error("less than {0} bytes per second arrived while other calls waited")]
    Slow(u64),
    /// The client went away or sent something that is not HTTP.
    #[error("{}", chain(.0))]
    Read(axum::Error),
}

/// How fast a sender has to be.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pace {
    /// How long nothing may arrive.
    pub(super) silent_for: Duration,
    /// The time over which its pace is taken.
    pub(super) slow_for: Duration,
    /// Bytes per second that have to arrive while other calls wait.
    pub(super) least: u64,
}

/// The lines of one body.
pub(super) struct Lines {
    body: Body,
    /// What arrived and was not handed out yet.
    rest: BytesMut,
    /// Bytes of `rest` that were looked at; no line ends in them.
    searched: usize,
    has_ended: bool,
    pace: Pace,
    /// Whether other calls wait for this one.
    is_wanted: Box<dyn Fn() -> bool + Send + Sync>,
    /// How long the sender was waited for since its pace was taken, and what arrived.
    waited: Duration,
    arrived: u64,
}

impl Lines {
    /// `is_wanted` tells whether other calls wait for this one.
    pub(super) fn new(
        body: Body,
        pace: Pace,
        is_wanted: impl Fn() -> bool + Send + Sync + 'static,
    ) -> Lines {
        Lines {
            body,
            rest: BytesMut::new(),
            searched: 0,
            has_ended: false,
            pace,
            is_wanted: Box::new(is_wanted),
            waited: Duration::ZERO,
            arrived: 0,
        }
    }

    /// Reads the beginning of the body, while the call waits. Dropped, it has lost nothing.
    pub(super) async fn read_ahead(&mut self) -> Result<IsWhole, LineError> {
        while !self.has_ended && self.rest.len() < READ_AHEAD {
            self.read(true).await?;
        }
        Ok(if self.has_ended { IsWhole::Yes } else { IsWhole::No })
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
            self.read(false).await?;
        }
    }

    /// Lets a client that is still sending see its answer.
    pub(super) async fn discard(self) {
        // late: the client sees a broken connection then
        let _ = tokio::time::timeout(DISCARD_WITHIN, read_and_drop(self.body)).await;
    }

    /// Waits for the next piece. A sender in the queue keeps others out of it.
    async fn read(&mut self, is_in_queue: bool) -> Result<(), LineError> {
        let began = Instant::now();
        loop {
            let left = self.pace.silent_for.saturating_sub(began.elapsed());
            if left.is_zero() {
                return Err(LineError::Silent(self.pace.silent_for));
            }
            let waits_since = Instant::now();
            let until_looked_at = self.pace.slow_for.saturating_sub(self.waited);
            let frame = timeout(until_looked_at.min(left), self.body.frame()).await;
            self.waited += waits_since.elapsed();
            let has_come = frame.is_ok();
            if let Ok(Some(Ok(frame))) = &frame {
                self.arrived += frame.data_ref().map_or(0, |data| data.len() as u64);
            }
            let is_slow = self.take_pace();
            if let Ok(frame) = frame {
                match frame {
                    None => self.has_ended = true,
                    Some(frame) => {
                        if let Ok(data) = frame.map_err(LineError::Read)?.into_data() {
                            self.rest.extend_from_slice(&data);
                        }
                    }
                }
            }
            if is_slow && !self.has_ended && (is_in_queue || (self.is_wanted)()) {
                return Err(LineError::Slow(self.pace.least));
            }
            if has_come {
                return Ok(());
            }
        }
    }

    /// Whether the sender was too slow over the last while; only the time that it was waited for
    /// counts.
    fn take_pace(&mut self) -> bool {
        if self.waited < self.pace.slow_for {
            return false;
        }
        let wanted = self.pace.least.saturating_mul(self.pace.slow_for.as_secs());
        let is_slow = self.arrived < wanted;
        (self.waited, self.arrived) = (Duration::ZERO, 0);
        is_slow
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

    const PACE: Pace = Pace {
        silent_for: Duration::from_secs(300),
        slow_for: Duration::from_secs(30),
        least: 1_000,
    };

    fn lines(body: Body) -> Lines {
        Lines::new(body, PACE, || false)
    }

    fn in_pieces(pieces: &[&[u8]]) -> Lines {
        let pieces: Vec<_> =
            pieces.iter().map(|piece| Ok::<_, Infallible>(Bytes::copy_from_slice(piece))).collect();
        lines(Body::from_stream(stream::iter(pieces)))
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
        let mut lines = lines(body);
        assert_eq!(lines.next().await.unwrap().unwrap(), "{}");
        assert!(lines.next().await.unwrap_err().to_string().contains("reset"));
    }

    /// So many bytes a second, without an end.
    fn trickle(bytes: usize) -> Body {
        Body::from_stream(stream::unfold((), move |()| async move {
            tokio::time::sleep(Duration::from_secs(1)).await;
            Some((Ok::<_, Infallible>(Bytes::from(vec![b'x'; bytes])), ()))
        }))
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_sender_is_given_up() {
        let body = Body::from_stream(stream::pending::<Result<Bytes, Infallible>>());
        let began = Instant::now();
        let error = lines(body).next().await.unwrap_err();
        assert!(matches!(error, LineError::Silent(_)), "{error}");
        assert_eq!(began.elapsed(), PACE.silent_for);
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_sender_is_given_up_once_others_wait() {
        for (bytes, is_wanted, is_cut) in
            [(999, true, true), (999, false, false), (1_000, true, false), (0, true, true)]
        {
            let mut lines = Lines::new(trickle(bytes), PACE, move || is_wanted);
            let read = timeout(PACE.slow_for * 3, lines.next()).await;
            let error = read.ok().map(|line| line.unwrap_err());
            let is_slow = matches!(error, Some(LineError::Slow(1_000)));
            assert_eq!(is_slow, is_cut, "{bytes} a second, others wait: {is_wanted}: {error:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_sender_that_falls_silent_is_given_up_as_soon_when_others_wait() {
        let body = Body::from_stream(stream::pending::<Result<Bytes, Infallible>>());
        let began = Instant::now();
        let error = Lines::new(body, PACE, || true).next().await.unwrap_err();
        assert!(matches!(error, LineError::Slow(_)), "{error}");
        assert_eq!(began.elapsed(), PACE.slow_for);
    }

    #[tokio::test(start_paused = true)]
    async fn the_time_that_rows_take_is_not_the_senders() {
        let pieces = stream::iter((0..5).map(|_| Ok::<_, Infallible>(Bytes::from_static(b"{}\n"))));
        let mut lines = Lines::new(Body::from_stream(pieces), PACE, || true);
        while lines.next().await.unwrap().is_some() {
            tokio::time::sleep(PACE.slow_for).await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn only_the_beginning_of_a_body_is_read_ahead_and_nothing_of_it_is_lost() {
        let mut short = in_pieces(&[b"a\n", b"b"]);
        assert_eq!(short.read_ahead().await.unwrap(), IsWhole::Yes);
        assert_eq!(all(short).await.unwrap(), ["a", "b"]);

        let piece = vec![b'x'; READ_AHEAD / 2];
        let mut long = in_pieces(&[&piece, &piece, &piece, &piece]);
        assert_eq!(long.read_ahead().await.unwrap(), IsWhole::No);
        assert_eq!(long.rest.len(), READ_AHEAD);
        assert_eq!(all(long).await.unwrap()[0].len(), 2 * READ_AHEAD);

        // in the queue, a slow one is in the way of others always
        let error = lines(trickle(1)).read_ahead().await.unwrap_err();
        assert!(matches!(error, LineError::Slow(_)), "{error}");
    }
}
