//! A run over a retry topic: what is due goes back to the topic that it came from.
//!
//! Invariant: a record of the topic is left behind only when its event is confirmed elsewhere, in
//! its own topic or on the dead letter topic. Moves are at-least-once: after a crash an event may
//! be moved again, and the state of its origin makes the second copy harmless.
//!
//! Events are due in another order than they lie. What is not due yet stays where it is, and its
//! offset is remembered ([`RetryState`]); nothing is rewritten while the service runs. The first
//! offset that is still needed is committed. Before a clean stop what lies before a moved event is
//! appended anew, so that the next loader, or the original, finds each event once.

use std::time::Duration;

use jiff::Timestamp;
use kafkabase::{
    CommittedOffset, Message, RangeError, RangeItem, RangeReader, Record, TopicGroup, TopicId,
    TopicMode, Unconfirmed,
};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};
use uuid::Uuid;
use warehouse::Origin;

use super::{
    envelope::{Envelope, ORIGINAL_TOPIC, RETRIES},
    state::RetryState,
};
use crate::{
    batch::reader::ReadError,
    observe::metrics,
    progress::TopicProgress,
    protocol::start::HoldReason,
    run::{
        context::RunContext,
        error::{RunEnd, RunError},
    },
    topic::OwnedTopic,
};

/// How long one wait for a record lasts, and so how late a stop is noticed.
const POLL: Duration = Duration::from_millis(100);
/// What a committed offset says while events that lie beyond it may have been moved. A clean stop
/// takes it away, so who finds it knows that the original would move them again.
pub(crate) const OUT_OF_ORDER: &str = "bulker-rust/1 out-of-order";
/// Bytes of records that are on their way at a time, roughly.
const BYTES_AT_ONCE: usize = 16 << 20;

/// One run over one retry topic.
pub(crate) struct RetryRun<'a> {
    pub(crate) context: &'a RunContext,
    pub(crate) topic: &'a OwnedTopic,
    pub(crate) progress: &'a TopicProgress,
    pub(crate) stop: &'a CancellationToken,
}

/// What became of a chunk.
#[derive(Debug, Default)]
struct Sent {
    moved: u64,
    dead: u64,
    /// Why the rest is not known to be anywhere else.
    error: Option<Unconfirmed>,
}

/// What happens to one record.
enum Move {
    /// It goes there, as this record.
    To(Record),
    Later(Timestamp),
}

impl RetryRun<'_> {
    /// Moves what is due. Between chunks it looks at `stop`.
    pub(crate) async fn run(&self) -> Result<RunEnd, RunError> {
        let group = self.group();
        if group.members().await? > 0 {
            return Ok(RunEnd::Held(HoldReason::LiveMembers));
        }
        let committed = group.committed().await?;
        let says_out_of_order =
            committed.as_ref().is_some_and(|committed| committed.metadata == OUT_OF_ORDER);
        let committed = committed.map(|committed| committed.offset);
        let end = group.end().await?;
        let low = group.low().await?;
        let now = Timestamp::now();
        let from = self.with_state(|state| {
            if state.committed != committed || committed.is_none() {
                let next = committed.unwrap_or(low);
                *state = RetryState { is_known: true, committed, next, ..RetryState::default() };
            }
            state.says_out_of_order = says_out_of_order;
            self.report_expired(state, low);
            let has_new = state.next < end;
            match state.first_due(now) {
                Some(due) => Some(due),
                None => has_new.then_some(state.next),
            }
        });
        let Some(from) = from else {
            return Ok(RunEnd::At { next_offset: end });
        };
        // before the first move: a crash leaves it there
        self.commit_group_offset(OUT_OF_ORDER).await?;
        self.move_all(from, end, now).await?;
        self.commit_group_offset(OUT_OF_ORDER).await?;
        Ok(RunEnd::At { next_offset: end })
    }

    /// Lets the next loader, or the original, find each event once.
    pub(crate) async fn hand_over(&self) -> Result<(), RunError> {
        let (from, to) = self.with_state(|state| {
            if state.has_gaps() {
                (state.needed_from(), state.last_moved.map_or(0, |moved| moved + 1))
            } else {
                (0, 0)
            }
        });
        if from < to {
            self.append_anew(from, to).await?;
        }
        // where a move failed, events behind it were moved: the original must know before it starts
        let is_in_order =
            self.with_state(|state| state.last_moved.is_none_or(|moved| moved < state.next));
        self.commit_group_offset(if is_in_order { "" } else { OUT_OF_ORDER }).await
    }

    async fn move_all(&self, from: i64, end: i64, now: Timestamp) -> Result<(), RunError> {
        let topic_id = self.group().topic_id().await?;
        let first_new = self.with_state(|state| state.next);
        let mut position = from;
        while position < end && !self.stop.is_cancelled() {
            let (messages, next) = self.read(position, end).await?;
            position = next;
            let mut moves = Vec::new();
            for message in messages {
                let offset = message.offset();
                let is_due = |state: &mut RetryState| {
                    state.waiting.get(&offset).is_some_and(|due| *due <= now)
                };
                if offset < first_new && !self.with_state(is_due) {
                    continue; // moved by an earlier run, or looked at by it and not due yet
                }
                match self.decide(&message, topic_id, now) {
                    Move::To(record) => moves.push((offset, record)),
                    Move::Later(due) => self.with_state(|state| {
                        state.waiting.insert(offset, due);
                    }),
                }
            }
            let sent = self.send(moves).await?;
            metrics::count_moves(self.topic, sent.moved, sent.dead);
            if sent.moved + sent.dead > 0 {
                let Sent { moved, dead, .. } = sent;
                info!(topic = self.topic.name, moved, dead, "refused events left the retry topic");
            }
            if let Some(error) = sent.error {
                return Err(error.into());
            }
            self.with_state(|state| state.next = state.next.max(position));
        }
        Ok(())
    }

    /// Reads a chunk; answers the offset where the next one begins.
    async fn read(&self, from: i64, end: i64) -> Result<(Vec<Message>, i64), RunError> {
        let reader =
            self.context.fetcher.open(&self.topic.name, self.topic.partition, from).await?;
        let (stall_after, limit) = (self.context.stall_after, self.context.retry_batch_size);
        let stop = self.stop.clone();
        let read = tokio::task::spawn_blocking(move || {
            let (mut messages, mut bytes) = (Vec::new(), 0);
            let mut range = RangeReader::new(reader, end, stall_after);
            while messages.len() < limit && bytes < BYTES_AT_ONCE {
                match range.next(POLL) {
                    Ok(RangeItem::Message(message)) => {
                        bytes += message.payload().len();
                        messages.push(message);
                    }
                    Ok(RangeItem::End) => break,
                    // a stop is no stall
                    Ok(RangeItem::Waiting) | Err(RangeError::Stalled { .. })
                        if stop.is_cancelled() =>
                    {
                        break;
                    }
                    Ok(RangeItem::Waiting) => {}
                    Err(error) => return Err(ReadError::from(error)),
                }
            }
            Ok((messages, range.next_offset()))
        });
        Ok(read.await.map_err(|_| RunError::ReaderDied)??)
    }

    fn decide(&self, message: &Message, topic_id: Option<Uuid>, now: Timestamp) -> Move {
        let mut envelope = Envelope::of(message);
        let Some(target) = envelope.text(ORIGINAL_TOPIC).map(str::to_owned) else {
            return self.dead_letter(
                envelope,
                "header original_topic is missing: nobody knows where it came from",
            );
        };
        let Some(attempts) = envelope.attempt() else {
            return self.dead_letter(envelope, "header retries is no number");
        };
        if let Some(due) = envelope.retry_time().filter(|due| *due > now) {
            return Move::Later(due);
        }
        self.stamp(&mut envelope, &target, message.offset(), topic_id);
        envelope.set(RETRIES, &(attempts + 1).to_string());
        envelope.restore_key();
        Move::To(envelope.into_record(&target))
    }

    /// An event that the original refused says where it came from only by its offset here.
    fn stamp(&self, envelope: &mut Envelope, target: &str, offset: i64, topic_id: Option<Uuid>) {
        let to_a_table = TopicId::parse(&self.context.topic_prefix, target)
            .is_some_and(|id| matches!(id.mode, TopicMode::Batch | TopicMode::Stream));
        if to_a_table && envelope.origin().is_none() {
            envelope.set_origin(&Origin {
                cluster: self.context.cluster_id.clone(),
                topic: self.topic.name.clone(),
                topic_id,
                partition: self.topic.partition,
                offset,
            });
        }
    }

    fn dead_letter(&self, mut envelope: Envelope, reason: &str) -> Move {
        warn!(
            topic = self.topic.name,
            reason, "refused event cannot be retried; it is a dead letter"
        );
        envelope.make_key_unique();
        envelope.set_error(reason);
        Move::To(envelope.into_record(self.context.refused.dead_letter_topic()))
    }

    /// Sends a chunk. What Kafka will never take goes to the dead letter topic instead.
    async fn send(&self, moves: Vec<(i64, Record)>) -> Result<Sent, RunError> {
        let mut sent = Sent::default();
        let mut redirected = Vec::new();
        for (offset, record, result) in self.send_once(moves).await? {
            match result {
                Ok(()) => self.moved(offset, &record, &mut sent),
                Err(error) if error.is_refusal() || error.is_unknown_topic() => {
                    redirected.push((offset, self.redirect(record, error)));
                }
                Err(error) => sent.error = Some(error),
            }
        }
        for (offset, record, result) in self.send_once(redirected).await? {
            match result {
                Ok(()) => self.moved(offset, &record, &mut sent),
                Err(error) => sent.error = Some(error),
            }
        }
        Ok(sent)
    }

    async fn send_once(
        &self,
        moves: Vec<(i64, Record)>,
    ) -> Result<Vec<(i64, Record, Result<(), Unconfirmed>)>, RunError> {
        let refused = &self.context.refused;
        if moves.iter().any(|(_, record)| record.topic == refused.dead_letter_topic()) {
            refused.ensure_dead_letter_topic().await?;
        }
        let (offsets, records): (Vec<_>, Vec<_>) = moves.into_iter().unzip();
        let results = refused.producer().send_all(&records).await;
        let sent = offsets.into_iter().zip(records).zip(results);
        Ok(sent.map(|((offset, record), result)| (offset, record, result)).collect())
    }

    fn redirect(&self, mut record: Record, error: Unconfirmed) -> Record {
        warn!(
            topic = self.topic.name,
            target = record.topic,
            error = %error,
            "topic does not take its event back; it is a dead letter"
        );
        self.context.refused.dead_letter_topic().clone_into(&mut record.topic);
        record
    }

    /// Appends the events that wait in `from..to` to the end of the topic, as they are.
    async fn append_anew(&self, from: i64, to: i64) -> Result<(), RunError> {
        let topic_id = self.group().topic_id().await?;
        let mut position = from;
        // reading on although the service stops: this is part of the stop
        let goes_on = CancellationToken::new();
        let run = RetryRun { stop: &goes_on, ..*self };
        while position < to {
            let (messages, next) = run.read(position, to).await?;
            let mut moves = Vec::new();
            for message in messages {
                let offset = message.offset();
                if !self.with_state(|state| state.waiting.contains_key(&offset)) {
                    continue;
                }
                let mut envelope = Envelope::of(&message);
                let target = envelope.text(ORIGINAL_TOPIC).unwrap_or_default().to_owned();
                self.stamp(&mut envelope, &target, offset, topic_id);
                moves.push((offset, envelope.into_record(&self.topic.name)));
            }
            if let Some(error) = self.send(moves).await?.error {
                return Err(error.into());
            }
            position = next;
        }
        Ok(())
    }

    fn moved(&self, offset: i64, record: &Record, sent: &mut Sent) {
        let is_dead = record.topic == self.context.refused.dead_letter_topic();
        *(if is_dead { &mut sent.dead } else { &mut sent.moved }) += 1;
        self.with_state(|state| {
            state.waiting.remove(&offset);
            state.last_moved = state.last_moved.max(Some(offset));
        });
    }

    /// Commits the first offset that is still needed, and whether all before the end is needed,
    /// too.
    async fn commit_group_offset(&self, metadata: &'static str) -> Result<(), RunError> {
        let says_out_of_order = metadata == OUT_OF_ORDER;
        let offset = self.with_state(|state| {
            let needed = state.needed_from();
            let is_current =
                state.committed == Some(needed) && state.says_out_of_order == says_out_of_order;
            (state.is_known && !is_current).then_some(needed)
        });
        let Some(offset) = offset else {
            return Ok(());
        };
        let committed = CommittedOffset { offset, metadata: metadata.to_owned() };
        self.group().commit(committed).await?;
        self.with_state(|state| {
            (state.committed, state.says_out_of_order) = (Some(offset), says_out_of_order);
        });
        Ok(())
    }

    /// Retention cut events that were still to be retried: that is a loss, and is said.
    fn report_expired(&self, state: &mut RetryState, low: i64) {
        if low <= state.needed_from() {
            return;
        }
        let waiting = state.waiting.range(..low).count();
        let unseen = (low - state.next).max(0);
        warn!(
            topic = self.topic.name,
            waiting, unseen, "retention cut refused events before they were retried"
        );
        metrics::count_expired_retries(self.topic, waiting as u64 + unseen.unsigned_abs());
        state.waiting = state.waiting.split_off(&low);
        state.next = state.next.max(low);
    }

    /// The topic with its consumer group.
    fn group(&self) -> TopicGroup {
        self.context.admin.topic_group(&self.topic.name, self.topic.partition)
    }

    fn with_state<T>(&self, change: impl FnOnce(&mut RetryState) -> T) -> T {
        change(&mut self.progress.memory().retries)
    }
}
