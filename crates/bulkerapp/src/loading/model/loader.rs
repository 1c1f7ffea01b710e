//! A run, one step per question to Kafka or the database, in the order of `run`.

use super::{
    super::start::{Decision, Facts, HoldReason, decide},
    Model, kafka,
    kafka::Answer,
    load,
    rules::{Rule, Rules},
    stop,
    world::{
        BATCH, Database, Loader, Pc, Record, Row, Steps, Violation, World, group_of, is_unmarked,
        uuid,
    },
};

const NAMES: [&str; 2] = ["loader A", "loader B"];
/// How often a run, or a stop, starts over before it gives up.
pub(super) const MAX_STARTS: u8 = 2;

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

/// The order of the questions, with one of them out of place where a rule is off.
fn order(rules: Rules) -> [Fact; 6] {
    use Fact::{EarlierId, End, Group, Low, Row, TopicId};
    if !rules.has(Rule::RowBeforeGroup) {
        [Group, Row, EarlierId, End, TopicId, Low]
    } else if !rules.has(Rule::EndAfterRowAndGroup) {
        [End, Row, EarlierId, Group, TopicId, Low]
    } else if !rules.has(Rule::TopicIdAfterEnd) {
        [Row, EarlierId, Group, TopicId, End, Low]
    } else if !rules.has(Rule::LowAfterTopicId) {
        [Row, EarlierId, Group, End, Low, TopicId]
    } else {
        [Row, EarlierId, Group, End, TopicId, Low]
    }
}

/// One loader about to take its next step.
pub(super) struct Turn<'a> {
    pub(super) model: &'a Model,
    pub(super) world: &'a World,
    pub(super) index: usize,
    pub(super) steps: &'a mut Steps,
}

impl Turn<'_> {
    pub(super) fn take(&mut self) {
        match self.me().pc {
            Pc::Idle | Pc::Stopped => self.begin(),
            Pc::Members => self.look_for_members(),
            Pc::Fact(n) => self.read_fact(usize::from(n)),
            Pc::Settle => self.settle(),
            Pc::StepOverGap => self.step_over_gap(),
            Pc::Claim => self.claim(),
            Pc::Read => self.read(),
            Pc::CheckTopicId => self.check_topic_id(),
            Pc::ReadGroupAgain => self.read_group_again(),
            Pc::ClaimAgain => self.commit_lazily("repeats its claim", Pc::Lock),
            Pc::Lock | Pc::Park | Pc::Commit | Pc::AskRow | Pc::MoveRow | Pc::ParkLate => {
                load::take(self);
            }
            Pc::TellReadGroup => self.tell_read_group(),
            Pc::TellCommit => self.commit_lazily("tells the group", Pc::Idle),
            Pc::StopReadRow | Pc::StopMembers | Pc::StopReadGroup | Pc::StopCommit => {
                stop::take(self);
            }
        }
    }

    pub(super) fn me(&self) -> &Loader {
        &self.world.loaders[self.index]
    }

    pub(super) fn name(&self) -> &'static str {
        NAMES[self.index]
    }

    pub(super) fn has(&self, rule: Rule) -> bool {
        self.model.rules.has(rule)
    }

    /// Adds a step after which this loader is what `change` makes of it.
    pub(super) fn go(&mut self, what: &'static str, change: impl FnOnce(&mut Loader)) {
        let mut next = *self.world;
        change(&mut next.loaders[self.index]);
        self.push(what, next);
    }

    pub(super) fn push(&mut self, what: &'static str, next: World) {
        self.steps.push(self.name(), what, next);
    }

    /// The row as this loader knows it. A loader without one has no business with the row.
    pub(super) fn row(&self) -> Row {
        self.me().row.expect("a loader past its start has a row")
    }

    fn begin(&mut self) {
        if self.me().runs > 0 {
            self.go("begins a run", |me| {
                me.runs -= 1;
                // a loader that was stopped is a new process
                me.claimed &= me.pc == Pc::Idle;
                me.pc = Pc::Members;
            });
        }
        if self.model.can_stop && self.me().pc == Pc::Idle {
            stop::begin(self);
        }
    }

    fn look_for_members(&mut self) {
        if !self.has(Rule::NobodyElse) {
            self.go("does not look for live members", |me| me.pc = Pc::Fact(0));
        } else if self.world.original.is_live {
            self.go("sees live members and holds", |me| me.rest(Pc::Idle));
        } else {
            self.go("sees no live members", |me| me.pc = Pc::Fact(0));
        }
    }

    fn read_fact(&mut self, n: usize) {
        let order = order(self.model.rules);
        let (database, topic, group) = (&self.world.database, &self.world.topic, self.world.group);
        let mut next = *self.world;
        let me = &mut next.loaders[self.index];
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
            row: me.row.map(Row::to_offsets_row),
            group: group_of(me.group),
            low: i64::from(me.low),
            end: i64::from(me.end),
            topic_id: looks_at_id.then(|| uuid(me.topic_id)),
            ledger: uuid(me.ledger),
        })
    }

    fn settle(&mut self) {
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
            Decision::Move { to, forget_origins, .. } => {
                let from = self.row();
                let to = Row {
                    next: small(to),
                    epoch: self.raised(from.epoch),
                    began: from.began.min(small(to)),
                    topic_id: me.topic_id,
                };
                let places = self.world.places;
                let is_unmoved = from.is_unmoved(self.world.database.row);
                self.write_row(("moves the row", is_unmoved), to, |database| {
                    if !forget_origins {
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

    fn step_over_gap(&mut self) {
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

    fn claim(&mut self) {
        let (mark, index, rules) =
            (self.row().mark(self.me().ledger), self.index, self.model.rules);
        let steps = &mut *self.steps;
        kafka::commit(
            self.world,
            (NAMES[index], "claims the start"),
            mark,
            |step, mut next, answer| {
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
            },
        );
    }

    fn read(&mut self) {
        let (topic, end, from) = (self.world.topic, self.me().end, self.row().next);
        if from < topic.low || end > topic.end {
            // out of range, or waiting for records that the topic of this name does not have
            self.go("cannot read on", |me| {
                me.batch = [None; BATCH];
                me.pc = Pc::TellReadGroup;
            });
            return;
        }
        let after = match self.has(Rule::TopicIdAfterReading) || self.model.reclaims {
            true => Pc::CheckTopicId,
            false => Pc::Lock,
        };
        let mut batch = [None; BATCH];
        let (mut taken, mut at) = (0, from);
        while at < end && taken < self.model.batch {
            match topic.records[usize::from(at)] {
                Some(Record::Marker) | None => {}
                Some(record) => {
                    batch[usize::from(taken)] = Some(record);
                    taken += 1;
                }
            }
            at += 1;
        }
        let mut next = *self.world;
        let me = &mut next.loaders[self.index];
        (me.batch, me.batch_next, me.pc) = (batch, at, after);
        self.push("reads a batch", next);
        // a leader that lags behind reports the end before the first record; ignored, it changes nothing
        if self.world.budget.early_ends > 0 && !self.has(Rule::EndOnlyAtTheEnd) {
            next.budget.early_ends -= 1;
            let me = &mut next.loaders[self.index];
            (me.batch, me.batch_next) = ([None; BATCH], end);
            self.push("is told too early that the partition ends", next);
        }
    }

    fn check_topic_id(&mut self) {
        let is_another = self.world.topic.id != self.row().topic_id;
        if is_another && self.has(Rule::TopicIdAfterReading) {
            self.go("sees another topic and starts over", |me| start_over(me, Pc::Members));
            return;
        }
        self.go("sees the same topic", |me| me.pc = Pc::Lock);
        if self.model.reclaims {
            self.go("sees the same topic; its claim is old", |me| me.pc = Pc::ReadGroupAgain);
        }
    }

    fn read_group_again(&mut self) {
        if is_unmarked(self.world.group) {
            self.go("sees a decision in the group and starts over", |me| {
                start_over(me, Pc::Members);
            });
        } else {
            self.go("sees no decision in the group", |me| me.pc = Pc::ClaimAgain);
        }
    }

    fn tell_read_group(&mut self) {
        if is_unmarked(self.world.group) && self.has(Rule::DecisionsAreLeftAlone) {
            self.go("leaves a decision in the group alone", |me| me.rest(Pc::Idle));
        } else {
            self.go("sees no decision in the group", |me| me.pc = Pc::TellCommit);
        }
    }

    /// A commit that may fail: the row rules.
    fn commit_lazily(&mut self, what: &'static str, after: Pc) {
        let (mark, index) = (self.row().mark(self.me().ledger), self.index);
        let steps = &mut *self.steps;
        kafka::commit(self.world, (NAMES[index], what), mark, |step, mut next, _| {
            let me = &mut next.loaders[index];
            match after {
                Pc::Idle => me.rest(Pc::Idle),
                after => me.pc = after,
            }
            steps.0.push((step, next));
        });
    }
}

/// Back to the first question, or to the end of a run that did so too often.
pub(super) fn start_over(me: &mut Loader, to: Pc) {
    me.starts += 1;
    let is_over = me.starts >= MAX_STARTS;
    me.rest(if is_over { Pc::Idle } else { to });
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
