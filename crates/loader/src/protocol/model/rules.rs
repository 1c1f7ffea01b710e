//! The rules of the protocol that the model can do without, to see what they are for.

/// A rule of `docs/guarantees.md` and of the modules beside it. Each can be switched off by its
/// name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Rule {
    /// A run looks for live members of the group before it reads anything.
    NobodyElse,
    /// The offsets row is read before the group's offset.
    RowBeforeGroup,
    /// The topic's end is read after the row and the group's offset.
    EndAfterRowAndGroup,
    /// The topic's id is read after its end.
    TopicIdAfterEnd,
    /// The first offset that Kafka still has is read after the topic's id.
    LowAfterTopicId,
    /// A row is inserted in a transaction of its own, never by a load.
    LoadNeverInserts,
    /// A run compares the topic's id with the row's before it starts.
    TopicIdBeforeReading,
    /// A run compares them again after it has read a batch.
    TopicIdAfterReading,
    /// Every move of a row outside a load raises its epoch.
    MovesRaiseTheEpoch,
    /// No epoch is ever given twice, not even after a restore.
    EpochsNeverRecur,
    /// Kafka has acknowledged the start before the first read of an ownership.
    ClaimAcknowledged,
    /// What Kafka reports as the end of the partition counts only at or beyond the run's end.
    EndOnlyAtTheEnd,
    /// The row moves in the transaction that carries the rows of the table.
    RowMovesWithTheRows,
    /// Before a commit to the group, at a stop too, the group is read and left alone where an
    /// operator decided on an offset.
    DecisionsAreLeftAlone,
    /// A clean stop commits and reads again until group and row agree.
    StopRepeats,
    /// A clean stop reads the row with a lock, so that it waits for a transaction whose client is
    /// gone.
    StopReadsTheSettledRow,
    /// A clean stop without a row, but with our mark in the group, sets the group to where the row
    /// once began.
    StopUndoesAMarkWithoutARow,
    /// Not a rule but a property of Kafka: a commit whose sender gave up on it arrives before a
    /// later stop begins.
    LateCommitsEndBeforeAStop,
    /// A clean stop brings Kafka to the row also where this process had nothing to load.
    StopCommitsEveryTopic,
    /// The row of a topic's first run carries the id that the topic had before the group was read.
    FirstRowHasTheEarlierId,
    /// A load writes `loaded` for the origins of the rows that load, of no others.
    OriginsOfLoadedRowsOnly,
    /// The refusal of a first reading is written down: `refused`.
    RefusalsAreWritten,
    /// A reset deletes the origins at and beyond it.
    ResetsForgetOrigins,
    /// Refused events are in the retry topic or the dead letter before the load commits.
    ProducedBeforeCommit,
    /// A copy whose origin is `loaded` or `dead` is dropped.
    SettledCopiesAreDropped,
    /// A load reads the states of its copies in its own transaction, once it has the row's lock.
    StatesUnderTheLock,
    /// A dead letter counts while its origin is `dead`.
    DeadLettersCountByState,
    /// A copy of what our row never covered is loaded although nothing is written about it.
    UncoveredCopiesLoad,
    /// Our row covers what it has covered of an earlier topic of the same name.
    EarlierTopicsAreCovered,
    /// A loader that had a ledger, or sees that there is one, and may not use it, holds.
    LostRightsHold,
    /// A group with our mark is neither loaded by its offset alone nor handed over: there was a
    /// ledger.
    MarksNeedALedger,
    /// Copies carry no origin where no ledger judges them.
    OriginsOnlyWhereJudged,
    /// The group of the retry topic is not committed past an event that is not known to be
    /// elsewhere.
    NothingCommittedPastUnmoved,
    /// The letter of an event that cannot return decides on it only if no later copy of it waits.
    OnlyTheLastCopyDecides,
    /// The state of an event that cannot return is `dead` only once its letter is written.
    LetterBeforeItsState,
}

impl Rule {
    pub(super) const ALL: [Rule; 35] = [
        Rule::NobodyElse,
        Rule::RowBeforeGroup,
        Rule::EndAfterRowAndGroup,
        Rule::TopicIdAfterEnd,
        Rule::LowAfterTopicId,
        Rule::LoadNeverInserts,
        Rule::TopicIdBeforeReading,
        Rule::TopicIdAfterReading,
        Rule::MovesRaiseTheEpoch,
        Rule::EpochsNeverRecur,
        Rule::ClaimAcknowledged,
        Rule::EndOnlyAtTheEnd,
        Rule::RowMovesWithTheRows,
        Rule::DecisionsAreLeftAlone,
        Rule::StopRepeats,
        Rule::StopReadsTheSettledRow,
        Rule::StopUndoesAMarkWithoutARow,
        Rule::LateCommitsEndBeforeAStop,
        Rule::StopCommitsEveryTopic,
        Rule::FirstRowHasTheEarlierId,
        Rule::OriginsOfLoadedRowsOnly,
        Rule::RefusalsAreWritten,
        Rule::ResetsForgetOrigins,
        Rule::ProducedBeforeCommit,
        Rule::SettledCopiesAreDropped,
        Rule::StatesUnderTheLock,
        Rule::DeadLettersCountByState,
        Rule::UncoveredCopiesLoad,
        Rule::EarlierTopicsAreCovered,
        Rule::LostRightsHold,
        Rule::MarksNeedALedger,
        Rule::OriginsOnlyWhereJudged,
        Rule::NothingCommittedPastUnmoved,
        Rule::OnlyTheLastCopyDecides,
        Rule::LetterBeforeItsState,
    ];

    /// The rule of this name, as the enum spells it.
    pub(super) fn named(name: &str) -> Option<Rule> {
        Rule::ALL.into_iter().find(|rule| format!("{rule:?}") == name)
    }
}

/// The rules that hold in one search.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Rules {
    off: u64,
}

impl Rules {
    pub(super) const ALL: Rules = Rules { off: 0 };

    pub(super) fn without(rule: Rule) -> Rules {
        Rules { off: 1 << rule as u32 }
    }

    pub(super) fn has(self, rule: Rule) -> bool {
        self.off & (1 << rule as u32) == 0
    }
}
