//! What was posted and is not stored yet, by stream, within bounds.
//!
//! What is kept when more comes than fits: the first events between two writes. The latest would
//! tell people more, but then every event would have to be encoded, and almost all of them for
//! nothing.
//!
//! Invariant: what is held, the part that is being written included, is at most the limit and one
//! event.

use std::{collections::HashMap, mem};

use bytes::Bytes;

use crate::{
    event::{EventType, Level},
    metrics::Reason,
};

/// What an event takes beside its body, roughly.
const EVENT_OVERHEAD: usize = 96;
/// The same for a stream.
const STREAM_OVERHEAD: usize = 128;
/// Of the memory for all streams, the part that one may take.
const STREAM_SHARE: usize = 4;

/// An event as it is stored.
#[derive(Debug, Clone)]
pub(crate) struct Event {
    /// When it was posted, in milliseconds since 1970.
    pub(crate) at: i64,
    pub(crate) level: Level,
    /// JSON.
    pub(crate) body: Bytes,
}

/// Bounds of a buffer.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    pub(crate) events_per_stream: usize,
    /// Of all streams.
    pub(crate) bytes: usize,
    /// Failures have a stream of their own beside the one of all events.
    pub(crate) error_streams: bool,
}

/// The events of one stream, oldest first.
#[derive(Debug, Default)]
pub(crate) struct Stream {
    pub(crate) events: Vec<Event>,
    bytes: usize,
}

/// Streams by what they hold, then by actor.
#[derive(Debug, Default)]
pub(crate) struct Streams {
    /// Of all events, then of failures; each by [`EventType`].
    by_kind: [[HashMap<String, Stream>; EventType::ALL.len()]; 2],
    bytes: usize,
}

#[derive(Debug)]
pub(crate) struct Buffer {
    limits: Limits,
    waiting: Streams,
    /// Bytes of what was taken and is neither stored nor put back.
    taken: usize,
}

/// Counts what is dropped.
type OnDrop<'a> = &'a dyn Fn(EventType, Reason);

impl Buffer {
    pub(crate) fn new(limits: Limits) -> Buffer {
        Buffer { limits, waiting: Streams::default(), taken: 0 }
    }

    /// Whether one of the streams that an event would go to has room. Where none has, `dropped`
    /// hears of each.
    pub(crate) fn has_room(
        &self,
        actor: &str,
        kind: EventType,
        level: Level,
        dropped: OnDrop<'_>,
    ) -> bool {
        let full = |errors: &bool| self.full(*errors, kind, actor);
        let streams = self.streams_of(level);
        if streams.iter().any(|errors| full(errors).is_none()) {
            return true;
        }
        streams.iter().filter_map(full).for_each(|reason| dropped(kind, reason));
        false
    }

    /// Puts an event into its streams, as far as they have room.
    pub(crate) fn push(
        &mut self,
        actor: &str,
        kind: EventType,
        event: &Event,
        dropped: OnDrop<'_>,
    ) {
        for errors in self.streams_of(event.level) {
            match self.full(*errors, kind, actor) {
                None => self.waiting.push(*errors, kind, actor, event.clone()),
                Some(reason) => dropped(kind, reason),
            }
        }
    }

    /// Everything that waits, to be stored. Ends with [`Buffer::stored`] or [`Buffer::put_back`].
    pub(crate) fn take(&mut self) -> Streams {
        let taken = mem::take(&mut self.waiting);
        self.taken = taken.bytes;
        taken
    }

    /// What was taken is stored.
    pub(crate) fn stored(&mut self) {
        self.taken = 0;
    }

    /// What was taken is not stored and waits again, before what came meanwhile.
    pub(crate) fn put_back(&mut self, taken: Streams, dropped: OnDrop<'_>) {
        self.taken = 0;
        let meanwhile = mem::replace(&mut self.waiting, taken);
        for (errors, kind, actor, stream) in meanwhile.iter() {
            for event in &stream.events {
                match self.full(errors, kind, actor) {
                    None => self.waiting.push(errors, kind, actor, event.clone()),
                    Some(reason) => dropped(kind, reason),
                }
            }
        }
    }

    pub(crate) fn waiting_bytes(&self) -> usize {
        self.waiting.bytes
    }

    /// The streams of an event: of all events, and of failures.
    fn streams_of(&self, level: Level) -> &'static [bool] {
        if self.limits.error_streams && level == Level::Error { &[false, true] } else { &[false] }
    }

    /// Why a stream takes no event now.
    fn full(&self, errors: bool, kind: EventType, actor: &str) -> Option<Reason> {
        let stream = self.waiting.by_kind[usize::from(errors)][kind as usize].get(actor);
        let (events, bytes) = stream.map_or((0, 0), |stream| (stream.events.len(), stream.bytes));
        if events >= self.limits.events_per_stream {
            return Some(Reason::Full);
        }
        let all = self.waiting.bytes + self.taken;
        let is_over = all >= self.limits.bytes || bytes >= self.limits.bytes / STREAM_SHARE;
        is_over.then_some(Reason::Memory)
    }
}

impl Streams {
    pub(crate) fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    /// How many events, those in two streams twice.
    pub(crate) fn len(&self) -> usize {
        self.iter().map(|(.., stream)| stream.events.len()).sum()
    }

    /// All streams: of failures or not, kind, actor, events.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (bool, EventType, &str, &Stream)> {
        [false, true].into_iter().flat_map(move |errors| {
            EventType::ALL.into_iter().flat_map(move |kind| {
                let streams = &self.by_kind[usize::from(errors)][kind as usize];
                streams.iter().map(move |(actor, stream)| (errors, kind, actor.as_str(), stream))
            })
        })
    }

    fn push(&mut self, errors: bool, kind: EventType, actor: &str, event: Event) {
        let streams = &mut self.by_kind[usize::from(errors)][kind as usize];
        let mut bytes = event.body.len() + EVENT_OVERHEAD;
        let stream = match streams.get_mut(actor) {
            Some(stream) => stream,
            None => {
                bytes += actor.len() + STREAM_OVERHEAD;
                streams.entry(actor.to_owned()).or_default()
            }
        };
        stream.events.push(event);
        stream.bytes += bytes;
        self.bytes += bytes;
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    fn event(body: &str) -> Event {
        Event { at: 0, level: Level::Info, body: Bytes::copy_from_slice(body.as_bytes()) }
    }

    fn buffer(events_per_stream: usize, bytes: usize) -> Buffer {
        Buffer::new(Limits { events_per_stream, bytes, error_streams: true })
    }

    fn bodies(streams: &Streams) -> Vec<String> {
        let mut all: Vec<_> = streams
            .iter()
            .map(|(errors, kind, actor, stream)| {
                let events: Vec<_> =
                    stream.events.iter().map(|e| String::from_utf8_lossy(&e.body)).collect();
                let level = if errors { "error" } else { "all" };
                format!("{}.{level}#{actor}: {}", kind.as_str(), events.join(" "))
            })
            .collect();
        all.sort();
        all
    }

    const BATCH: EventType = EventType::BulkerBatch;

    #[test]
    fn failures_go_to_two_streams_and_find_room_in_one_when_the_other_is_full() {
        let mut buffer = buffer(2, 1 << 20);
        let dropped = RefCell::new(Vec::new());
        let on_drop = |kind: EventType, reason| dropped.borrow_mut().push((kind, reason));
        for body in ["1", "2", "3"] {
            buffer.push("a", BATCH, &event(body), &on_drop);
        }
        assert_eq!(*dropped.borrow(), [(BATCH, Reason::Full)]);
        assert!(!buffer.has_room("a", BATCH, Level::Info, &|_, _| {}));
        assert!(buffer.has_room("a", BATCH, Level::Error, &|_, _| {}));
        assert!(buffer.has_room("a", EventType::BulkerStream, Level::Info, &|_, _| {}));
        buffer.push("a", BATCH, &Event { level: Level::Error, ..event("4") }, &on_drop);
        buffer.push("b", BATCH, &Event { level: Level::Error, ..event("5") }, &on_drop);
        assert_eq!(
            bodies(&buffer.take()),
            [
                "bulker_batch.all#a: 1 2",
                "bulker_batch.all#b: 5",
                "bulker_batch.error#a: 4",
                "bulker_batch.error#b: 5"
            ]
        );
        assert_eq!(dropped.borrow().len(), 2, "the failure had no room among all events");
    }

    #[test]
    fn the_first_events_of_a_period_stay_and_a_new_period_begins_when_they_are_taken() {
        let mut buffer = buffer(1, 1 << 20);
        buffer.push("a", BATCH, &event("1"), &|_, _| {});
        buffer.push("a", BATCH, &event("2"), &|_, _| {});
        assert_eq!(bodies(&buffer.take()), ["bulker_batch.all#a: 1"]);
        buffer.push("a", BATCH, &event("3"), &|_, _| {});
        buffer.stored();
        assert_eq!(bodies(&buffer.take()), ["bulker_batch.all#a: 3"]);
        assert!(buffer.take().is_empty());
    }

    #[test]
    fn what_could_not_be_stored_comes_before_what_was_posted_meanwhile() {
        let mut buffer = buffer(3, 1 << 20);
        let dropped = RefCell::new(0);
        for body in ["1", "2"] {
            buffer.push("a", BATCH, &event(body), &|_, _| {});
        }
        let taken = buffer.take();
        for body in ["3", "4"] {
            buffer.push("a", BATCH, &event(body), &|_, _| {});
        }
        buffer.push("b", BATCH, &event("5"), &|_, _| {});
        buffer.put_back(taken, &|_, _| *dropped.borrow_mut() += 1);
        assert_eq!(bodies(&buffer.take()), ["bulker_batch.all#a: 1 2 3", "bulker_batch.all#b: 5"]);
        assert_eq!(*dropped.borrow(), 1);
    }

    #[test]
    fn memory_has_a_bound_whoever_posts_and_whatever_is_being_stored() {
        let limit = 100_000;
        let mut buffer = buffer(usize::MAX, limit);
        let large = "x".repeat(1000);
        let post = |buffer: &mut Buffer, actors: usize| {
            for actor in 0..actors {
                for _ in 0..1000 {
                    buffer.push(&actor.to_string(), BATCH, &event(&large), &|_, reason| {
                        assert_eq!(reason, Reason::Memory);
                    });
                }
            }
        };
        // one actor gets its share
        post(&mut buffer, 1);
        let one = buffer.waiting_bytes();
        assert!((limit / 4..limit / 4 + 2000).contains(&one), "{one}");
        // all of them, together with what is being stored, the limit
        post(&mut buffer, 100);
        let all = buffer.waiting_bytes();
        assert!((limit..limit + 2000).contains(&all), "{all}");
        let taken = buffer.take();
        post(&mut buffer, 100);
        assert_eq!(buffer.waiting_bytes(), 0);
        buffer.put_back(taken, &|_, _| {});
        assert_eq!(buffer.waiting_bytes(), all);
        // and each actor's name counts, too
        let mut buffer = self::buffer(usize::MAX, limit);
        (0..100_000).for_each(|actor: u32| {
            buffer.push(&actor.to_string(), BATCH, &event(""), &|_, _| {});
        });
        assert!(buffer.take().len() < 500);
    }
}
