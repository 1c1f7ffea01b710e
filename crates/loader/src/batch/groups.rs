//! Events that are loaded together, grouped by their options, each row with the message that it
//! came from.
//!
//! The message stays until its row is in the table: should the warehouse refuse the row, the
//! message goes to the retry topic as it is. It lies in librdkafka's memory, so keeping it copies
//! nothing; its bytes count against the memory limit.

use std::{collections::HashMap, sync::Arc};

use kafkabase::{Message, headers};
use tracing::warn;
use warehouse::{Batch, MicroBatch, OptionError, RowsOf, StreamOptions};

/// Sets of options in one load: each is a table of its own in the database while it lasts.
const MOST_SETS: usize = 32;
/// Spellings of options that are remembered, so that they are parsed once.
const MOST_SPELLINGS: usize = 1024;

/// Rows that are sent together. Row `n` of the batch is message `n`, about which `n` of `notes`
/// says more.
pub(crate) struct RowGroup<T> {
    pub(crate) batch: Batch,
    pub(crate) messages: Vec<Message>,
    pub(crate) notes: Vec<T>,
}

/// What the events of a topic have in common.
#[derive(Debug, Clone)]
pub(crate) struct GroupPlan {
    pub(crate) topic: String,
    pub(crate) table: String,
    /// The destination's options; a record's `stream_options` header goes on top.
    pub(crate) options: Arc<StreamOptions>,
    pub(crate) rows: RowsOf,
}

/// Groups that are being filled.
pub(crate) struct Groups<'a, T> {
    plan: &'a GroupPlan,
    sets: Vec<OptionSet<T>>,
    /// Index into `sets` by the text of the `stream_options` header; empty text for none.
    by_options: HashMap<Box<[u8]>, usize>,
    /// What the messages hold, and the texts of their options.
    message_bytes: usize,
}

/// Events of one set of options, however they are spelled.
struct OptionSet<T> {
    options: Arc<StreamOptions>,
    rows: Rows,
    /// By the index of their batch.
    messages: Vec<(Vec<Message>, Vec<T>)>,
}

enum Rows {
    Batch(Box<Batch>),
    Events(MicroBatch),
}

impl Rows {
    /// What the options ask for is the events' to answer for, not the destination's.
    fn with_event_options(self) -> Rows {
        match self {
            Rows::Batch(batch) => Rows::Batch(Box::new(batch.with_event_options())),
            Rows::Events(events) => Rows::Events(events.with_event_options()),
        }
    }
}

/// An event that cannot become a row, and why. The reason holds no value of it.
pub(crate) struct Unparsable {
    pub(crate) message: Message,
    /// What the refusal is called; never a value.
    pub(crate) code: String,
    pub(crate) reason: String,
}

/// What a refusal is called that no database gave a code.
pub(crate) const NOT_AN_EVENT: &str = "not_an_event";

impl Unparsable {
    fn new(message: Message, reason: String) -> Unparsable {
        Unparsable { message, code: NOT_AN_EVENT.to_owned(), reason }
    }
}

/// Why an event was not taken.
pub(crate) enum PushError<T> {
    /// It is the event's fault.
    Event(Unparsable, T),
    /// It is the destination's: no event at all can be taken.
    Destination(OptionError),
}

impl<'a, T> Groups<'a, T> {
    pub(crate) fn new(plan: &'a GroupPlan) -> Groups<'a, T> {
        Groups { plan, sets: Vec::new(), by_options: HashMap::new(), message_bytes: 0 }
    }

    /// Takes an event into the group of its options.
    pub(crate) fn push(&mut self, message: Message, note: T) -> Result<(), PushError<T>> {
        let header = message.header(headers::STREAM_OPTIONS).unwrap_or_default();
        let index = match self.by_options.get(header) {
            Some(index) => *index,
            None => match self.add_set(header) {
                Ok(index) => index,
                // who may send may not write there; other topics of the destination can be loaded
                Err(error @ OptionError::OwnTable(_)) => {
                    let unparsable = Unparsable::new(message, error.to_string());
                    return Err(PushError::Event(unparsable, note));
                }
                Err(error) if header.is_empty() => return Err(PushError::Destination(error)),
                Err(error) => {
                    let reason = format!("the event's stream_options do not fit: {error}");
                    return Err(PushError::Event(Unparsable::new(message, reason), note));
                }
            },
        };
        let set = &mut self.sets[index];
        let index = match &mut set.rows {
            Rows::Batch(batch) => batch.push(message.payload()).map(|()| 0),
            Rows::Events(events) => events.push(message.payload()).map(|index| index.batch),
        };
        let index = match index {
            Ok(index) => index,
            Err(error) => {
                let reason = appbase::telemetry::chain(&error).to_string();
                return Err(PushError::Event(Unparsable::new(message, reason), note));
            }
        };
        if index == set.messages.len() {
            set.messages.push((Vec::new(), Vec::new()));
        }
        self.message_bytes += message.held_bytes();
        let (messages, notes) = &mut set.messages[index];
        messages.push(message);
        notes.push(note);
        Ok(())
    }

    /// Bytes that rows and messages hold, roughly.
    pub(crate) fn byte_size(&self) -> usize {
        let rows = |set: &OptionSet<T>| match &set.rows {
            Rows::Batch(batch) => batch.byte_size(),
            Rows::Events(events) => events.byte_size(),
        };
        self.sets.iter().map(rows).sum::<usize>() + self.message_bytes
    }

    /// Whether more events would make the load slower than two loads.
    pub(crate) fn is_full(&self) -> bool {
        let is_full = |set: &OptionSet<T>| match &set.rows {
            Rows::Batch(batch) => batch.is_full(),
            Rows::Events(events) => events.is_full(),
        };
        self.sets.len() >= MOST_SETS || self.sets.iter().any(is_full)
    }

    pub(crate) fn into_groups(self) -> Vec<RowGroup<T>> {
        let mut groups = Vec::new();
        for set in self.sets {
            let batches = match set.rows {
                Rows::Batch(batch) => vec![*batch],
                Rows::Events(events) => events.into_batches(),
            };
            for (batch, (messages, notes)) in batches.into_iter().zip(set.messages) {
                groups.push(RowGroup { batch, messages, notes });
            }
        }
        groups
    }

    fn add_set(&mut self, header: &[u8]) -> Result<usize, OptionError> {
        let GroupPlan { topic, table, options, rows } = self.plan;
        let options = if header.is_empty() {
            options.clone()
        } else {
            Arc::new(with_header(options, header, topic))
        };
        let known = self.sets.iter().position(|set| set.options == options);
        let index = match known {
            Some(index) => index,
            None => {
                let is_own = options != self.plan.options;
                let mut rows = match rows {
                    RowsOf::Batch => Rows::Batch(Box::new(Batch::new(table, options.clone())?)),
                    RowsOf::Events => Rows::Events(MicroBatch::new(table, &options)?),
                };
                if is_own {
                    rows = rows.with_event_options();
                }
                self.sets.push(OptionSet { options, rows, messages: Vec::new() });
                self.sets.len() - 1
            }
        };
        if self.by_options.len() < MOST_SPELLINGS {
            self.message_bytes += header.len();
            self.by_options.insert(header.into(), index);
        }
        Ok(index)
    }
}

/// The destination's options with those of a record's header on top. What cannot be read is
/// reported and left out, as the original does.
fn with_header(options: &StreamOptions, header: &[u8], topic: &str) -> StreamOptions {
    let mut options = options.clone();
    let parsed: serde_json::Map<String, serde_json::Value> = match serde_json::from_slice(header) {
        Ok(parsed) => parsed,
        Err(_) => {
            warn!(topic, "stream_options header is not a JSON object; ignored");
            return options;
        }
    };
    for (key, value) in &parsed {
        if let Err(error) = options.set(key, value) {
            warn!(topic, option = key, error = %error, "option of the stream_options header ignored");
        }
    }
    options
}
