//! The beginning of a run: the facts, the decision, what it does to the row, and the claim.

use std::{cell::RefCell, convert::Infallible, sync::OnceLock};

use futures_util::FutureExt;
use uuid::Uuid;
use warehouse::Position;

use super::{
    super::{
        facts::{FactSource, Facts},
        mark::GroupOffset,
        start::{Decision, HoldReason, decide},
    },
    kafka,
    kafka::Answer,
    rights::{self, Opened},
    rules::{Rule, Rules},
    turn::{Turn, start_over},
    world::{Database, Loader, Pc, Row, Violation, World, group_of, is_unmarked, uuid},
};

/// A question whose answer says where to start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fact {
    Row,
    /// Only where there is no row.
    EarlierId,
    Group,
    End,
    TopicId,
    Low,
}

/// Notes what [`Facts::read`] asks for.
#[derive(Default)]
struct Recorder(RefCell<Vec<Fact>>);

impl Recorder {
    fn asked(&self, fact: Fact) {
        self.0.borrow_mut().push(fact);
    }
}

impl FactSource for Recorder {
    type Error = Infallible;

    async fn position(&self) -> Result<Option<Position>, Infallible> {
        self.asked(Fact::Row);
        Ok(None) // so that all facts are asked for
    }

    async fn group_offset(&self) -> Result<GroupOffset, Infallible> {
        self.asked(Fact::Group);
        Ok(GroupOffset::None)
    }

    async fn topic_id(&self) -> Result<Option<Uuid>, Infallible> {
        let is_first = !self.0.borrow().contains(&Fact::EarlierId);
        self.asked(if is_first { Fact::EarlierId } else { Fact::TopicId });
        Ok(None)
    }

    async fn end(&self) -> Result<i64, Infallible> {
        self.asked(Fact::End);
        Ok(0)
    }

    async fn low(&self) -> Result<i64, Infallible> {
        self.asked(Fact::Low);
        Ok(0)
    }
}

/// The questions in the order in which the real code asks them.
fn real_order() -> [Fact; 6] {
    static ORDER: OnceLock<[Fact; 6]> = OnceLock::new();
    *ORDER.get_or_init(|| {
        let recorder = Recorder::default();
        let read = Facts::read(&recorder, uuid(0)).now_or_never();
        assert!(matches!(read, Some(Ok(Some(_)))), "the recorder answers at once");
        recorder.0.into_inner().try_into().expect("there are six questions")
    })
}

/// The order of the questions, with one of them out of place where a rule is off.
fn order(rules: Rules) -> [Fact; 6] {
    let mut order = real_order();
    let out_of_place = [
        (Rule::RowBeforeGroup, Fact::Group, Fact::Row),
        (Rule::EndAfterRowAndGroup, Fact::End, Fact::Row),
        (Rule::TopicIdAfterEnd, Fact::TopicId, Fact::End),
        (Rule::LowAfterTopicId, Fact::Low, Fact::TopicId),
    ];
    let broken = out_of_place.into_iter().find(|(rule, ..)| !rules.has(*rule));
    if let Some((_, early, before)) = broken {
        let at = |wanted| order.iter().position(|fact| *fact == wanted).expect("all are there");
        let (from, to) = (at(early), at(before));
        order[to..=from].rotate_right(1);
    }
    order
}

impl Turn<'_> {
    pub(super) fn read_fact(&mut self, n: usize) {
        let order = order(self.model.rules);
        let opened = rights::open(self);
        if opened != Opened::Ledger && (n == 0 || order[n] == Fact::Row) {
            rights::begin_without(self, opened);
            return;
        }
        let (database, topic, group) = (&self.world.database, &self.world.topic, self.world.group);
        let mut next = *self.world;
        let me = &mut next.loaders[self.index];
        me.knows_ledger |= self.world.budget.takes > 0;
        let what = match order[n] {
            Fact::Row => {
                (me.row, me.ledger) = (database.row, database.ledger);
                "reads the row"
            }
            Fact::EarlierId => {
                me.earlier_id = topic.id;
                "reads the topic's id, for there is no row"
            }
            Fact::Group => {
                me.group = group;
                "reads the group"
            }
            Fact::End => {
                me.end = topic.end;
                "reads the end"
            }
            Fact::TopicId => {
                me.topic_id = topic.id;
                "reads the topic's id"
            }
            Fact::Low => {
                me.low = topic.low;
                "reads the low watermark"
            }
        };
        let asks_earlier_id =
            me.row.is_none() && self.model.rules.has(Rule::FirstRowHasTheEarlierId);
        let skips = order.get(n + 1) == Some(&Fact::EarlierId) && !asks_earlier_id;
        let following = n + 1 + usize::from(skips);
        if following < order.len() {
            me.pc = Pc::Fact(u8::try_from(following).unwrap_or_default());
        } else {
            self.decide(&mut next);
        }
        self.push(what, next);
    }

    /// The decision takes no time; only what it does to the row is a step of its own.
    fn decide(&self, next: &mut World) {
        let me = &mut next.loaders[self.index];
        if me.row.is_none()
            && self.model.rules.has(Rule::FirstRowHasTheEarlierId)
            && me.earlier_id != me.topic_id
        {
            start_over(me, Pc::Members);
            return;
        }
        match self.decision(me) {
            Decision::Hold(HoldReason::Truncated) => {
                // no world has truncations
                next.expected.broken = Some(Violation::HeldForNothing);
                next.loaders[self.index].rest(Pc::Idle);
            }
            Decision::Hold(_) => me.rest(Pc::Idle),
            Decision::Keep { .. } => after_settling(me),
            Decision::Move { .. } => me.pc = Pc::Settle,
            Decision::Insert { at, .. } if small(at).max(me.low) >= me.end => me.rest(Pc::Idle),
            Decision::Insert { at, .. } if !self.model.rules.has(Rule::LoadNeverInserts) => {
                me.row = Some(first_row(me, at));
                me.is_row_absent = true;
                after_settling(me);
            }
            Decision::Insert { .. } => me.pc = Pc::Settle,
        }
    }

    fn decision(&self, me: &Loader) -> Decision {
        let looks_at_id = self.model.rules.has(Rule::TopicIdBeforeReading);
        decide(&Facts {
            position: me.row.map(Row::to_position),
            group: group_of(me.group),
            low: i64::from(me.low),
            end: i64::from(me.end),
            topic_id: looks_at_id.then(|| uuid(me.topic_id)),
            ledger: uuid(me.ledger),
        })
    }

    pub(super) fn settle(&mut self) {
        if self.world.is_row_locked() {
            return;
        }
        let me = *self.me();
        match self.decision(&me) {
            Decision::Insert { at, .. } => {
                let epoch =
                    if self.has(Rule::EpochsNeverRecur) { self.world.fresh_epoch } else { 0 };
                let row = Row { epoch, ..first_row(&me, at) };
                let is_free = self.world.database.row.is_none();
                self.write_row(("inserts the row", is_free), row, |_| {});
            }
            Decision::Move { to, forget_events, .. } => {
                let from = self.row();
                let to = Row {
                    next: small(to),
                    epoch: self.raised(from.epoch),
                    began: from.began.min(small(to)),
                    topic_id: me.topic_id,
                };
                let places = self.world.places;
                let is_unmoved = from.is_unmoved(self.world.database.row);
                let forgets = forget_events && self.has(Rule::ResetsForgetOrigins);
                self.write_row(("moves the row", is_unmoved), to, |database| {
                    if !forgets {
                        return;
                    }
                    for (place, state) in places.iter().zip(&mut database.origins) {
                        if place.is_some_and(|(id, offset)| id == to.topic_id && offset >= to.next)
                        {
                            *state = None;
                        }
                    }
                });
            }
            Decision::Keep { .. } | Decision::Hold(_) => unreachable!("nothing to settle"),
        }
    }

    pub(super) fn step_over_gap(&mut self) {
        if self.world.is_row_locked() {
            return;
        }
        let from = self.row();
        let to = Row { next: self.me().low, epoch: self.raised(from.epoch), ..from };
        let is_unmoved = from.is_unmoved(self.world.database.row);
        self.write_row(("moves the row over a gap", is_unmoved), to, |_| {});
    }

    /// The epoch of a row that is moved from this one.
    fn raised(&self, epoch: u8) -> u8 {
        if !self.has(Rule::MovesRaiseTheEpoch) {
            epoch
        } else if self.has(Rule::EpochsNeverRecur) {
            self.world.fresh_epoch
        } else {
            epoch + 1
        }
    }

    fn write_row(
        &mut self,
        (what, hits): (&'static str, bool),
        row: Row,
        besides: impl FnOnce(&mut Database),
    ) {
        if !hits {
            self.go("finds the row moved and starts over", |me| start_over(me, Pc::Members));
            return;
        }
        let mut next = *self.world;
        next.database.row = Some(row);
        next.fresh_epoch = next.fresh_epoch.max(row.epoch + 1);
        besides(&mut next.database);
        let me = &mut next.loaders[self.index];
        me.row = Some(row);
        after_settling(me);
        self.push(what, next);
    }

    pub(super) fn claim(&mut self) {
        let (mark, index, rules) =
            (self.row().mark(self.me().ledger), self.index, self.model.rules);
        let names = (self.name(), "claims the start");
        let steps = &mut *self.steps;
        kafka::commit(self.world, names, mark.committed(), |step, mut next, answer| {
            let me = &mut next.loaders[index];
            let goes_on = answer == Answer::Acknowledged
                || answer == Answer::Unknown && !rules.has(Rule::ClaimAcknowledged);
            if goes_on {
                me.claimed = true;
                read_or_rest(me);
            } else {
                me.rest(Pc::Idle);
            }
            steps.0.push((step, next));
        });
    }
}

/// What follows once the row is where the facts say that it belongs.
fn after_settling(me: &mut Loader) {
    let Some(row) = &mut me.row else {
        return;
    };
    if row.next >= me.low {
        claim_or_read(me);
    } else if me.is_row_absent {
        row.next = me.low;
        claim_or_read(me);
    } else {
        me.pc = Pc::StepOverGap;
    }
}

fn claim_or_read(me: &mut Loader) {
    let is_ours = me.group.is_some_and(|group| {
        !is_unmarked(Some(group)) && group.mark.is_some_and(|m| m.ledger == me.ledger)
    });
    let is_idle = me.row.is_none_or(|row| row.next >= me.end);
    if !is_ours || (!is_idle && !me.claimed) {
        me.pc = Pc::Claim;
    } else {
        read_or_rest(me);
    }
    // what was asked is of no use any more
    (me.group, me.low, me.topic_id, me.earlier_id) = (None, 0, 0, 0);
}

fn read_or_rest(me: &mut Loader) {
    if me.row.is_none_or(|row| row.next >= me.end) { me.rest(Pc::Idle) } else { me.pc = Pc::Read }
}

fn first_row(me: &Loader, at: i64) -> Row {
    Row { next: small(at), epoch: 0, began: small(at), topic_id: me.topic_id }
}

fn small(offset: i64) -> u8 {
    u8::try_from(offset).expect("offsets of the model are small")
}
