//! A run over a retry topic: what is due goes back to the topic that it came from.
//!
//! Invariant: a record of the topic is left behind only when its event is confirmed elsewhere, in
//! its own topic or on the dead letter topic. Moves are at-least-once: after a crash an event may
//! be moved again, and the state of its origin makes the second copy harmless.
//!
//! Events are due in another order than they lie. What is not due yet stays where it is, and its
//! offset is remembered ([`RetryState`]), as is that of an event whose topic takes nothing at the
//! moment: it holds nobody up. Nothing is rewritten while the service runs. The first offset that is
//! still needed is committed. Before a clean stop what lies before a moved event is
//! appended anew, so that the next loader, or the original, finds each event once.

use std::{collections::HashSet, ops::Range, time::Duration};

use jiff::Timestamp;
use kafkabase::{CommittedOffset, Message, RangeError, RangeItem, RangeReader};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::{
    envelope::{Envelope, ORIGINAL_TOPIC},
    moves::{Move, Pending},
    run::RetryRun,
    state::RetryState,
};
use crate::{
    batch::reader::ReadError,
    observe::metrics,
    protocol::start::HoldReason,
    run::error::{RunEnd, RunError},
};

/// How long one wait for a record lasts, and so how late a stop is noticed.
const POLL: Duration = Duration::from_millis(100);
/// What a committed offset says while events that lie beyond it may have been moved. A clean stop
/// takes it away, so who finds it knows that the original would move them again.
pub(crate) const OUT_OF_ORDER: &str = "bulker-rust/1 out-of-order";
/// Bytes of records that are on their way at a time, roughly.
const BYTES_AT_ONCE: usize = 16 << 20;

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
        let now = self.context.clock.now();
        let furthest =
            now.checked_add(self.context.refused.longest_pause()).unwrap_or(Timestamp::MAX);
        let from = self.with_state(|state| {
            if state.committed != committed || committed.is_none() {
                *state = RetryState::beginning(committed, low);
            }
            state.says_out_of_order = says_out_of_order;
            state.pull_near(furthest);
            self.report_expired(state, low);
            state.looks_from(end, now)
        });
        let noted = self.note_dead_letters().await;
        let moved = match from {
            None => Ok(()),
            Some(from) => {
                // before the first move: a crash leaves it there
                self.commit_group_offset(OUT_OF_ORDER).await?;
                self.move_all(from, end, now).await
            }
        };
        self.commit_group_offset(OUT_OF_ORDER).await?;
        moved.and(noted)?;
        Ok(RunEnd::At { next_offset: end })
    }

    /// Lets the next loader, or the original, find each event once.
    pub(crate) async fn hand_over(&self) -> Result<(), RunError> {
        if let Some(gaps) = self.with_state(|state| state.to_append()) {
            self.append_anew(gaps).await?;
        }
        // a dead letter whose state does not say so yet is still needed, and events behind it were
        // moved: the original must know before it starts
        let is_in_order = self.with_state(|state| state.to_append().is_none());
        self.commit_group_offset(if is_in_order { "" } else { OUT_OF_ORDER }).await
    }

    /// Moves what is due. An event that cannot be moved waits like one that is not due, and the
    /// others go on; the answer is the first reason.
    async fn move_all(&self, from: i64, end: i64, now: Timestamp) -> Result<(), RunError> {
        let topic_id = self.group().topic_id().await?;
        let mut failed = None;
        let mut stuck = HashSet::new();
        let first_new = self.with_state(|state| state.next);
        let mut position = from;
        while position < end && !self.stop.is_cancelled() {
            let (messages, next) = self.read(position, end).await?;
            self.forget_compacted(position, next, &messages);
            let mut moves = Vec::new();
            for message in messages {
                let offset = message.offset();
                let has_waited = offset < first_new;
                if has_waited && !self.with_state(|state| state.is_due(offset, now)) {
                    continue; // moved by an earlier run, or looked at by it and not due yet
                }
                match self.decide(message, topic_id, (!has_waited).then_some(now)) {
                    Move::Now(pending) => moves.push(pending),
                    Move::Later(due) => self.with_state(|state| {
                        state.waiting.insert(offset, due);
                    }),
                }
            }
            let offsets: Vec<_> = moves.iter().map(|pending| pending.offset).collect();
            self.with_state(|state| state.take_up(&offsets, next, now));
            match self.send(moves, &mut stuck).await {
                Ok(sent) => failed = failed.or(sent.error),
                Err(error) => failed = failed.or(Some(error)),
            }
            position = self.with_state(|state| state.next_to_look_at(next, first_new, now));
        }
        failed.map_or(Ok(()), Err)
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
                        bytes += message.held_bytes();
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

    /// Appends the events that wait in this range to the end of the topic, as they are.
    async fn append_anew(&self, Range { start, end }: Range<i64>) -> Result<(), RunError> {
        let topic_id = self.group().topic_id().await?;
        let mut position = start;
        // reading on although the service stops: this is part of the stop
        let goes_on = CancellationToken::new();
        let run = RetryRun { stop: &goes_on, ..*self };
        while position < end {
            let (messages, next) = run.read(position, end).await?;
            let mut moves = Vec::new();
            for message in messages {
                let offset = message.offset();
                if !self.with_state(|state| state.waiting.contains_key(&offset)) {
                    continue;
                }
                let mut envelope = Envelope::of(&message);
                let target = envelope.text(ORIGINAL_TOPIC).unwrap_or_default().to_owned();
                self.stamp(&mut envelope, &target, offset, topic_id);
                let record = envelope.into_record(&self.topic.name);
                moves.push(Pending { offset, message, record });
            }
            if let Some(error) = self.send(moves, &mut HashSet::new()).await?.error {
                return Err(error);
            }
            position = next;
        }
        Ok(())
    }

    /// Compaction, or somebody, took away what waited in `from..to`: it is not there to be retried.
    fn forget_compacted(&self, from: i64, to: i64, found: &[Message]) {
        let found: HashSet<_> = found.iter().map(Message::offset).collect();
        let gone = self.with_state(|state| state.forget_missing(from..to, &found));
        if gone > 0 {
            warn!(
                topic = self.topic.name,
                gone, "refused events that waited are no longer in their topic"
            );
            metrics::count_expired_retries(self.topic, gone);
        }
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
}
