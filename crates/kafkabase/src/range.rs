//! One bounded read: the records of a partition from where a reader begins up to an end.
//!
//! Invariant: the items of a range are its records in order, then its end, or an error. A record at
//! or beyond the end is dropped. An end that the broker reports counts only at or beyond ours: a
//! lagging leader reports one too early, and what lies between the last record and the end may be
//! markers of transactions, which are never delivered. Silence while records are missing is a
//! stall.

use std::time::{Duration, Instant};

use crate::{FetchError, Fetched, Message, PartitionReader};

/// What comes next in a range.
#[derive(Debug)]
pub enum RangeItem {
    /// A record of the range.
    Message(Message),
    /// The range is read: nothing of it is missing.
    End,
    /// Nothing arrived within the poll. The caller looks whether it is to stop, and asks again.
    Waiting,
}

/// Why the end of a range was not reached.
#[derive(Debug, Clone, thiserror::Error)]
pub enum RangeError {
    /// The partition cannot be read on; a new reader may be able to.
    #[error(transparent)]
    Fetch(#[from] FetchError),
    /// Records are missing, and none arrived for this long; a new reader may get them.
    #[error("no record arrived for {} s although there are some", after.as_secs())]
    Stalled {
        /// The limit that was passed.
        after: Duration,
    },
}

/// Reads a partition up to an end. Its calls block; dropped, it gives the partition back.
pub struct RangeReader {
    reader: PartitionReader,
    position: Position,
    put_back: Option<Message>,
}

impl RangeReader {
    /// Reads what `reader` was opened at, up to `end`, the first offset that is not wanted. A range
    /// that is empty ends at once. The clock of `stall_after` starts here.
    pub fn new(reader: PartitionReader, end: i64, stall_after: Duration) -> RangeReader {
        let position = Position::new(reader.start(), end, stall_after, Instant::now());
        RangeReader { reader, position, put_back: None }
    }

    /// The next item; waits at most `poll` for it. After the end comes the end again; after a stall
    /// the caller may ask on.
    pub fn next(&mut self, poll: Duration) -> Result<RangeItem, RangeError> {
        if let Some(message) = self.put_back.take() {
            self.position.hear(Heard::Record(message.offset()), Instant::now())?;
            return Ok(RangeItem::Message(message));
        }
        if self.position.is_at_end() {
            return Ok(RangeItem::End);
        }
        let fetched = self.reader.next(poll)?;
        let heard = match &fetched {
            Fetched::Message(message) => Heard::Record(message.offset()),
            Fetched::End { offset } => Heard::End(*offset),
            Fetched::Nothing => Heard::Nothing,
        };
        Ok(match (self.position.hear(heard, Instant::now())?, fetched) {
            (Step::Record, Fetched::Message(message)) => RangeItem::Message(message),
            (Step::End, _) => RangeItem::End,
            _ => RangeItem::Waiting,
        })
    }

    /// Gives the last message back: it comes again next, and the position is the one before it.
    pub fn put_back(&mut self, message: Message) {
        self.position.step_back();
        self.put_back = Some(message);
    }

    /// Lets go of what was fetched ahead, for a caller that is busy for long; a message that was
    /// put back stays.
    pub fn pause(&mut self) {
        self.reader.pause();
    }

    /// Starts the clock of the stall anew: a reader whose caller was busy heard nothing because it
    /// did not listen.
    pub fn resume(&mut self) {
        self.position.heard_at = Instant::now();
    }

    /// The first offset that was not handed out yet; the end once that was reached.
    pub fn next_offset(&self) -> i64 {
        self.position.next
    }
}

/// What a partition said, without the records.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Heard {
    Record(i64),
    End(i64),
    Nothing,
}

/// What follows from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    /// The record belongs to the range.
    Record,
    End,
    Waiting,
}

/// Where a range is read, and the rules of its end and of silence.
#[derive(Debug)]
struct Position {
    next: i64,
    /// `next` before the last record.
    previous: i64,
    end: i64,
    stall_after: Duration,
    heard_at: Instant,
}

impl Position {
    fn new(start: i64, end: i64, stall_after: Duration, now: Instant) -> Position {
        Position { next: start, previous: start, end, stall_after, heard_at: now }
    }

    fn is_at_end(&self) -> bool {
        self.next >= self.end
    }

    fn hear(&mut self, heard: Heard, now: Instant) -> Result<Step, RangeError> {
        match heard {
            Heard::Record(offset) if offset < self.end => {
                self.previous = std::mem::replace(&mut self.next, offset + 1);
                self.heard_at = now;
                Ok(Step::Record)
            }
            Heard::Record(_) => Ok(self.step_to_end()),
            Heard::End(offset) if offset >= self.end => Ok(self.step_to_end()),
            Heard::End(_) | Heard::Nothing => {
                if now.saturating_duration_since(self.heard_at) >= self.stall_after {
                    return Err(RangeError::Stalled { after: self.stall_after });
                }
                Ok(Step::Waiting)
            }
        }
    }

    fn step_to_end(&mut self) -> Step {
        self.next = self.end;
        Step::End
    }

    fn step_back(&mut self) {
        self.next = self.previous;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STALL: Duration = Duration::from_secs(10);

    /// What follows when these are heard one after the other, all at once.
    fn steps(range: std::ops::Range<i64>, heard: &[Heard]) -> (Vec<Step>, i64) {
        let now = Instant::now();
        let mut position = Position::new(range.start, range.end, STALL, now);
        let steps = heard.iter().map(|heard| position.hear(*heard, now).unwrap()).collect();
        (steps, position.next)
    }

    #[test]
    fn a_range_ends_with_its_last_record() {
        let mut position = Position::new(3, 5, STALL, Instant::now());
        for (offset, is_at_end) in [(3, false), (4, true)] {
            assert_eq!(position.hear(Heard::Record(offset), Instant::now()).unwrap(), Step::Record);
            assert_eq!((position.next, position.is_at_end()), (offset + 1, is_at_end));
        }
    }

    #[test]
    fn a_record_at_or_beyond_the_end_is_the_end() {
        for offset in [5, 6, 100] {
            assert_eq!(steps(0..5, &[Heard::Record(offset)]), (vec![Step::End], 5));
        }
    }

    #[test]
    fn an_end_that_is_reported_counts_only_at_or_beyond_ours() {
        let cases = [(4, Step::Waiting, 3), (5, Step::End, 5), (9, Step::End, 5)];
        for (reported, step, next) in cases {
            let heard = [Heard::Record(2), Heard::End(reported)];
            assert_eq!(steps(0..5, &heard), (vec![Step::Record, step], next), "{reported}");
        }
    }

    #[test]
    fn an_empty_range_is_at_its_end_from_the_start() {
        for start in [5, 6] {
            assert!(Position::new(start, 5, STALL, Instant::now()).is_at_end(), "{start}");
        }
        assert!(!Position::new(4, 5, STALL, Instant::now()).is_at_end());
    }

    #[test]
    fn silence_is_a_stall_after_its_time_and_an_early_end_is_silence() {
        for silence in [Heard::Nothing, Heard::End(4)] {
            let start = Instant::now();
            let mut position = Position::new(0, 5, STALL, start);
            let just_before = start + STALL - Duration::from_millis(1);
            assert_eq!(position.hear(silence, just_before).unwrap(), Step::Waiting);
            let error = position.hear(silence, start + STALL).unwrap_err();
            assert_eq!(
                error.to_string(),
                "no record arrived for 10 s although there are some",
                "{silence:?}"
            );
        }
    }

    #[test]
    fn a_record_starts_the_clock_anew() {
        let start = Instant::now();
        let mut position = Position::new(0, 5, STALL, start);
        position.hear(Heard::Record(0), start + STALL).unwrap();
        assert_eq!(position.hear(Heard::Nothing, start + STALL).unwrap(), Step::Waiting);
        assert!(position.hear(Heard::Nothing, start + 2 * STALL).is_err());
    }

    #[test]
    fn stepping_back_leaves_the_gap_before_a_record_to_the_next_reading() {
        let now = Instant::now();
        let mut position = Position::new(0, 5, STALL, now);
        position.hear(Heard::Record(1), now).unwrap();
        position.hear(Heard::Record(4), now).unwrap();
        assert!(position.is_at_end());
        position.step_back();
        assert_eq!((position.next, position.is_at_end()), (2, false));
        position.hear(Heard::Record(4), now).unwrap();
        assert_eq!(position.next, 5);
    }
}
