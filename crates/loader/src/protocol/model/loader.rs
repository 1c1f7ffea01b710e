//! A loader's steps, one per question to Kafka or the database, in the order of `run`. How a run
//! begins is in `beginning`, a load in `load`, a clean stop in `stop`.

use super::{
    kafka, load, rights,
    rules::Rule,
    stop,
    turn::{Turn, start_over},
    world::{BATCH, Pc, Record, is_unmarked},
};

impl Turn<'_> {
    pub(super) fn take(&mut self) {
        if rights::is_denied(self) {
            self.go("is denied the ledger; nothing of its load is left", |me| me.rest(Pc::Idle));
            return;
        }
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
            Pc::Lock
            | Pc::ProduceRefused
            | Pc::Commit
            | Pc::AskRow
            | Pc::MoveRow
            | Pc::ProduceLate => {
                load::take(self);
            }
            Pc::ReadGroupAtEnd => self.read_group_at_end(),
            Pc::CommitAtEnd => self.commit_lazily("commits to the group", Pc::Idle),
            Pc::ReadGroup | Pc::ReadEnds | Pc::CommitPlainly => rights::take(self),
            Pc::StopReadRow | Pc::StopMembers | Pc::StopReadGroup | Pc::StopCommit => {
                stop::take(self);
            }
        }
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

    fn read(&mut self) {
        let (topic, end, from) = (self.world.topic, self.me().end, self.row().next);
        if from < topic.low || end > topic.end {
            // out of range, or waiting for records that the topic of this name does not have
            self.go("cannot read on", |me| {
                me.batch = [None; BATCH];
                me.pc = Pc::ReadGroupAtEnd;
            });
            return;
        }
        let looks_again = self.has(Rule::TopicIdAfterReading) || self.model.reclaims;
        let after = match looks_again && !self.me().by_group {
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
        // a leader that lags behind reports the end before the first record; ignored, it changes
        // nothing
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

    fn read_group_at_end(&mut self) {
        if is_unmarked(self.world.group) && self.has(Rule::DecisionsAreLeftAlone) {
            self.go("leaves a decision in the group alone", |me| me.rest(Pc::Idle));
        } else {
            self.go("sees no decision in the group", |me| me.pc = Pc::CommitAtEnd);
        }
    }

    /// A commit that may fail: the row rules.
    fn commit_lazily(&mut self, what: &'static str, after: Pc) {
        let (mark, index) = (self.row().mark(self.me().ledger), self.index);
        let names = (self.name(), what);
        let steps = &mut *self.steps;
        kafka::commit(self.world, names, mark.committed(), |step, mut next, _| {
            let me = &mut next.loaders[index];
            match after {
                Pc::Idle => me.rest(Pc::Idle),
                after => me.pc = after,
            }
            steps.0.push((step, next));
        });
    }
}
