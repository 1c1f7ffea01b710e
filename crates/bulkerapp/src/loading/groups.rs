//! Events that are loaded together, grouped by their options, each row with the message that it came from.
//!
//! The message stays until its row is in the table: should the warehouse refuse the row, the message goes to the retry
//! topic as it is. It lies in librdkafka's memory, so keeping it copies nothing; its bytes count against the
//! memory limit.

use std::{collections::HashMap, ffi::CStr, sync::Arc};

use kafkabase::Message;
use tracing::warn;
use warehouse::{Batch, OptionError, StreamOptions};

const STREAM_OPTIONS: &CStr = c"stream_options";
/// Bytes that librdkafka takes for a message beside its payload, roughly.
const MESSAGE_OVERHEAD: usize = 256;

/// Rows of one set of options. Row `n` of the batch is message `n`.
pub(super) struct Group {
    pub(super) batch: Batch,
    pub(super) messages: Vec<Message>,
}

/// What the events of a topic have in common.
#[derive(Debug, Clone)]
pub(super) struct GroupPlan {
    pub(super) topic: String,
    pub(super) table: String,
    /// The destination's options; a record's `stream_options` header goes on top.
    pub(super) options: Arc<StreamOptions>,
}

/// Groups that are being filled.
pub(super) struct Groups<'a> {
    plan: &'a GroupPlan,
    groups: Vec<Group>,
    /// Index into `groups` by the text of the `stream_options` header; empty text for none.
    by_options: HashMap<Box<[u8]>, usize>,
    message_bytes: usize,
}

/// An event that cannot become a row, and why. The reason holds no value of it.
pub(super) struct Unparsable {
    pub(super) message: Message,
    pub(super) reason: String,
}

/// Why an event was not taken.
pub(super) enum PushError {
    /// It is the event's fault.
    Event(Unparsable),
    /// It is the destination's: no event at all can be taken.
    Destination(OptionError),
}

impl<'a> Groups<'a> {
    pub(super) fn new(plan: &'a GroupPlan) -> Groups<'a> {
        Groups { plan, groups: Vec::new(), by_options: HashMap::new(), message_bytes: 0 }
    }

    /// Takes an event into the group of its options; answers the group's place.
    pub(super) fn push(&mut self, message: Message) -> Result<usize, PushError> {
        let header = message.header(STREAM_OPTIONS).unwrap_or_default();
        let index = match self.by_options.get(header) {
            Some(index) => *index,
            None => match self.add_group(header) {
                Ok(index) => index,
                Err(error) if header.is_empty() => return Err(PushError::Destination(error)),
                Err(error) => {
                    let reason = format!("the event's stream_options do not fit: {error}");
                    return Err(PushError::Event(Unparsable { message, reason }));
                }
            },
        };
        let group = &mut self.groups[index];
        if let Err(error) = group.batch.push(message.payload()) {
            let reason = appbase::telemetry::chain(&error).to_string();
            return Err(PushError::Event(Unparsable { message, reason }));
        }
        self.message_bytes += message.payload().len() + MESSAGE_OVERHEAD;
        group.messages.push(message);
        Ok(index)
    }

    /// Bytes that rows and messages hold, roughly.
    pub(super) fn byte_size(&self) -> usize {
        let rows: usize = self.groups.iter().map(|group| group.batch.byte_size()).sum();
        rows + self.message_bytes
    }

    pub(super) fn into_groups(self) -> Vec<Group> {
        self.groups
    }

    fn add_group(&mut self, header: &[u8]) -> Result<usize, OptionError> {
        let options = if header.is_empty() {
            self.plan.options.clone()
        } else {
            Arc::new(with_header(&self.plan.options, header, &self.plan.topic))
        };
        let batch = Batch::new(&self.plan.table, options)?;
        self.groups.push(Group { batch, messages: Vec::new() });
        self.by_options.insert(header.into(), self.groups.len() - 1);
        Ok(self.groups.len() - 1)
    }
}

/// The destination's options with those of a record's header on top. What cannot be read is reported and
/// left out, as the original does.
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
