//! Bringing the ledger's position to where the facts say that it belongs, before anything is read.

use tracing::warn;
use warehouse::{Ledger, LoadError, Position};

use super::TopicRun;
use crate::{
    observe::metrics,
    protocol::{
        facts::Facts,
        start::{Decision, HoldReason, Notice, decide},
    },
};

/// The position once the facts have been applied.
pub(super) enum Settled {
    At(Position),
    /// None yet, and nothing to load: an idle topic is not touched.
    Idle {
        next_offset: i64,
    },
    Held(HoldReason),
    /// Another loader, or an operator, was faster.
    Moved,
}

impl TopicRun<'_> {
    /// Applies what the facts decide.
    pub(super) async fn settle(
        &self,
        ledger: &Ledger,
        facts: &Facts,
    ) -> Result<Settled, LoadError> {
        let key = self.key();
        match (decide(facts), &facts.position) {
            (Decision::Hold(reason), _) => Ok(Settled::Held(reason)),
            (Decision::Keep { notice }, Some(position)) => {
                self.report(notice);
                Ok(Settled::At(position.clone()))
            }
            (Decision::Move { to, forget_events, notice }, Some(position)) => {
                let moved = Position {
                    next_offset: to,
                    epoch: epoch_after(position.epoch),
                    began: position.began.min(to),
                    topic_id: facts.topic_id.or(position.topic_id),
                };
                if !ledger.move_position(&key, position, &moved, forget_events).await? {
                    return Ok(Settled::Moved);
                }
                self.report(Some(notice));
                Ok(Settled::At(moved))
            }
            (Decision::Insert { at, notice }, None) => {
                // retention may have cut what lies before
                let next_offset = at.max(facts.low);
                if next_offset >= facts.end {
                    return Ok(Settled::Idle { next_offset });
                }
                let position = Position {
                    next_offset: at,
                    epoch: epoch_after(0),
                    began: at,
                    topic_id: facts.topic_id,
                };
                if !ledger.insert(&key, &position).await? {
                    return Ok(Settled::Moved);
                }
                self.report(notice);
                Ok(Settled::At(position))
            }
            (Decision::Keep { .. } | Decision::Move { .. }, None)
            | (Decision::Insert { .. }, Some(_)) => {
                unreachable!("`decide` inserts where there is no position and only there")
            }
        }
    }

    /// Retention may have cut records that were not loaded yet: counts them once and goes on at
    /// what is left. `None`: another loader moved the position.
    pub(super) async fn step_over_gap(
        &self,
        ledger: &Ledger,
        position: Position,
        low: i64,
    ) -> Result<Option<Position>, LoadError> {
        if low <= position.next_offset {
            return Ok(Some(position));
        }
        let epoch = epoch_after(position.epoch);
        let moved = Position { next_offset: low, epoch, ..position.clone() };
        if !ledger.move_position(&self.key(), &position, &moved, false).await? {
            return Ok(None);
        }
        self.report(Some(Notice::Expired { events: low - position.next_offset }));
        Ok(Some(moved))
    }

    fn report(&self, notice: Option<Notice>) {
        let Some(notice) = notice else {
            return;
        };
        metrics::count_notice(self.topic, notice);
        warn!(
            topic = self.topic.name,
            notice = notice.kind(),
            events = notice.events(),
            "start of the topic decided from outside"
        );
    }
}

/// An epoch that no position of this topic ever had: a database may be restored from before a move,
/// and an epoch that came again would make two different decisions look like one.
pub(super) fn epoch_after(epoch: i64) -> i64 {
    let micros = jiff::Timestamp::now().as_microsecond();
    micros.max(epoch + 1)
}
