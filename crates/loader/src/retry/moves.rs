//! What happens to the records of one chunk of a retry topic: where each goes, and how it gets
//! there.
//!
//! Invariant: a record counts as moved when Kafka confirmed its event elsewhere, and in no other
//! case. What its topic will never take is a dead letter, and its state says so before the record
//! is left behind; what Kafka does not take at the moment waits.

use std::collections::HashSet;

use jiff::Timestamp;
use kafkabase::{Message, Record, TopicId, TopicMode};
use tracing::{info, warn};
use uuid::Uuid;
use warehouse::Origin;

use super::{
    envelope::{Envelope, ORIGINAL_TOPIC, RETRIES},
    run::RetryRun,
    state::Unnoted,
};
use crate::{observe::metrics, run::error::RunError};

/// What the ledger calls the refusal of an event that its topic does not take back.
const CANNOT_RETURN: &str = "cannot_return";

/// What happens to one record.
pub(super) enum Move {
    Now(Pending),
    Later(Timestamp),
}

/// A record that is to be moved.
pub(super) struct Pending {
    pub(super) offset: i64,
    pub(super) message: Message,
    pub(super) record: Record,
}

/// What became of a chunk.
#[derive(Debug, Default)]
pub(super) struct Sent {
    pub(super) moved: u64,
    pub(super) dead: u64,
    /// Why the first of the others is not known to be anywhere else.
    pub(super) error: Option<RunError>,
}

impl RetryRun<'_> {
    /// `now`: `None` where the event has waited, and is due by what is remembered. What its header
    /// says may lie further ahead than any pause: the clock was set back, or others wrote it.
    pub(super) fn decide(
        &self,
        message: Message,
        topic_id: Option<Uuid>,
        now: Option<Timestamp>,
    ) -> Move {
        let mut envelope = Envelope::of(&message);
        let offset = message.offset();
        let Some(target) = envelope.text(ORIGINAL_TOPIC).map(str::to_owned) else {
            let reason = "header original_topic is missing: nobody knows where it came from";
            return self.letter(message, reason);
        };
        let Some(attempts) = envelope.attempt() else {
            return self.letter(message, "header retries is no number");
        };
        let due = now.zip(envelope.retry_time());
        if let Some((_, due)) = due.filter(|(now, due)| due > now) {
            return Move::Later(due);
        }
        self.stamp(&mut envelope, &target, offset, topic_id);
        envelope.set(RETRIES, &(attempts + 1).to_string());
        envelope.restore_key();
        Move::Now(Pending { offset, message, record: envelope.into_record(&target) })
    }

    /// An event that the original refused says where it came from only by its offset here.
    pub(super) fn stamp(
        &self,
        envelope: &mut Envelope,
        target: &str,
        offset: i64,
        topic_id: Option<Uuid>,
    ) {
        let to_a_table = TopicId::parse(&self.context.topic_prefix, target)
            .is_some_and(|id| matches!(id.mode, TopicMode::Batch | TopicMode::Stream));
        if to_a_table && envelope.origin().is_none() {
            envelope.set_origin(Some(&Origin {
                cluster: self.context.cluster_id.clone(),
                topic: self.topic.name.clone(),
                topic_id,
                partition: self.topic.partition,
                offset,
            }));
        }
    }

    /// The dead letter of an event that cannot be retried, made of the copy as it lies here.
    fn letter(&self, message: Message, reason: &str) -> Move {
        warn!(
            topic = self.topic.name,
            offset = message.offset(),
            reason,
            "refused event cannot be retried; it is a dead letter"
        );
        let mut envelope = Envelope::of(&message);
        envelope.make_key_unique();
        envelope.set_error(reason);
        let record = envelope.into_record(self.context.refused.dead_letter_topic());
        Move::Now(Pending { offset: message.offset(), message, record })
    }

    /// Sends a chunk. What Kafka will never take goes to the dead letter topic instead. An error of
    /// one event does not keep the others; the answer's `Err` is about all of them. `stuck`: topics
    /// that took nothing in this run, which are not tried again in it: each try may take long.
    pub(super) async fn send(
        &self,
        moves: Vec<Pending>,
        stuck: &mut HashSet<String>,
    ) -> Result<Sent, RunError> {
        let refused = &self.context.refused;
        let is_letter = |pending: &Pending| pending.record.topic == refused.dead_letter_topic();
        let (mut letters, moves): (Vec<_>, Vec<_>) = moves
            .into_iter()
            .filter(|pending| !stuck.contains(&pending.record.topic))
            .partition(is_letter);
        let (pending, records): (Vec<_>, Vec<_>) = moves
            .into_iter()
            .map(|Pending { offset, message, record }| ((offset, message), record))
            .unzip();
        let mut sent = Sent::default();
        let results = refused.producer().send_all(&records).await;
        for (((offset, message), record), result) in pending.into_iter().zip(records).zip(results) {
            match result {
                Ok(()) => {
                    sent.moved += 1;
                    self.moved(offset);
                }
                Err(error) if error.is_refusal() || error.is_unknown_topic() => {
                    let reason = format!("topic {} does not take it back: {error}", record.topic);
                    if let Move::Now(letter) = self.letter(message, &reason) {
                        letters.push(letter);
                    }
                }
                Err(error) => {
                    stuck.insert(record.topic);
                    sent.error.get_or_insert(error.into());
                }
            }
        }
        if !letters.is_empty() && !stuck.contains(refused.dead_letter_topic()) {
            self.send_letters(letters, &mut sent, stuck).await?;
        }
        metrics::count_moves(self.topic, sent.moved, sent.dead);
        if sent.moved + sent.dead > 0 {
            let Sent { moved, dead, .. } = sent;
            info!(topic = self.topic.name, moved, dead, "refused events left the retry topic");
        }
        Ok(sent)
    }

    async fn send_letters(
        &self,
        letters: Vec<Pending>,
        sent: &mut Sent,
        stuck: &mut HashSet<String>,
    ) -> Result<(), RunError> {
        let refused = &self.context.refused;
        refused.ensure_dead_letter_topic().await?;
        let (pending, records): (Vec<_>, Vec<_>) = letters
            .into_iter()
            .map(|Pending { offset, message, record }| ((offset, message), record))
            .unzip();
        let results = refused.send_dead_letters(records).await;
        for ((offset, message), result) in pending.into_iter().zip(results) {
            match result {
                Ok(()) => {
                    sent.dead += 1;
                    self.moved(offset);
                    self.remember_unnoted(offset, &message);
                }
                Err(error) => {
                    stuck.insert(refused.dead_letter_topic().to_owned());
                    sent.error.get_or_insert(error.into());
                }
            }
        }
        // an error leaves them to the next run
        if let Err(error) = self.note_dead_letters().await {
            sent.error.get_or_insert(error);
        }
        Ok(())
    }

    fn moved(&self, offset: i64) {
        self.with_state(|state| state.moved(offset));
    }

    /// The ledger of the event's destination says that it waits, if it says anything.
    fn remember_unnoted(&self, offset: i64, message: &Message) {
        let envelope = Envelope::of(message);
        let Some(origin) = envelope.origin() else {
            return; // the original refused it
        };
        let of_topic = |name: &str| TopicId::parse(&self.context.topic_prefix, name);
        let known = envelope.text(ORIGINAL_TOPIC).and_then(of_topic);
        let Some(id) = known.or_else(|| of_topic(&origin.topic)) else {
            return;
        };
        let refusals = envelope.attempt().unwrap_or(0) + 1;
        let unnoted = Unnoted { origin, refusals, destination_id: id.destination_id };
        self.with_state(|state| state.unnoted.insert(offset, unnoted));
    }

    /// Lets the ledgers know which events are dead letters.
    pub(super) async fn note_dead_letters(&self) -> Result<(), RunError> {
        let unnoted = self.with_state(|state| state.unnoted.clone());
        let mut destinations: Vec<_> =
            unnoted.values().map(|letter| letter.destination_id.clone()).collect();
        destinations.sort_unstable();
        destinations.dedup();
        let targets = self.context.targets.targets();
        let mut failed = None;
        for destination in destinations {
            let of_destination =
                || unnoted.iter().filter(|(_, letter)| letter.destination_id == destination);
            let noted = match targets.get(&destination) {
                Some(target) => {
                    let letters: Vec<_> = of_destination()
                        .map(|(_, letter)| (letter.origin.clone(), letter.refusals))
                        .collect();
                    target.note_dead_letters(&letters, CANNOT_RETURN).await
                }
                None => Ok(()), // nothing is loaded there any more
            };
            match noted {
                Ok(()) => self.with_state(|state| {
                    for (offset, _) in of_destination() {
                        state.unnoted.remove(offset);
                    }
                }),
                Err(error) => failed = Some(error.into()),
            }
        }
        failed.map_or(Ok(()), Err)
    }
}
