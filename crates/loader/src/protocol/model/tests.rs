//! The searches: every world with all rules on, and for each rule what goes wrong without it.

use std::{env, time::Instant};

use super::{
    Model, retry_worlds,
    rules::{Rule, Rules},
    search::{Outcome, search},
    world::Violation,
    worlds::{self, Scene},
};

/// The world that shows what a rule is for, and what goes wrong there without it.
fn shown_by(rule: Rule) -> (Scene, Violation) {
    use Violation::{DeadAndLoaded, Doubled, GroupBehind, HeldForNothing, Lost};
    match rule {
        Rule::NobodyElse => (worlds::hand_over(), Doubled),
        Rule::RowBeforeGroup | Rule::MovesRaiseTheEpoch | Rule::ClaimAcknowledged => {
            (worlds::resets(), Doubled)
        }
        Rule::EpochsNeverRecur => (worlds::reset_and_restored(), Doubled),
        Rule::EndAfterRowAndGroup => (worlds::new_topic(), HeldForNothing),
        Rule::TopicIdAfterEnd => (worlds::shorter_topic(), HeldForNothing),
        Rule::LowAfterTopicId | Rule::TopicIdBeforeReading => (worlds::recreated_topic(), Lost),
        Rule::TopicIdAfterReading => (worlds::recreated_topic(), Doubled),
        Rule::FirstRowHasTheEarlierId => (worlds::recreated_before_the_first_row(), Lost),
        Rule::LoadNeverInserts | Rule::RowMovesWithTheRows => (worlds::new_topic(), Doubled),
        Rule::EndOnlyAtTheEnd => (worlds::odd_ends(), Lost),
        Rule::DecisionsAreLeftAlone => (worlds::resets_and_stops(), Lost),
        Rule::StopRepeats
        | Rule::StopCommitsEveryTopic
        | Rule::StopReadsTheSettledRow
        | Rule::LateCommitsEndBeforeAStop => (worlds::stops(), GroupBehind),
        Rule::StopUndoesAMarkWithoutARow => (worlds::restored_and_handed_over(), Lost),
        Rule::OriginsOfLoadedRowsOnly | Rule::ProducedBeforeCommit => {
            (retry_worlds::retries(), Lost)
        }
        Rule::RefusalsAreWritten | Rule::SettledCopiesAreDropped => {
            (retry_worlds::retries(), Doubled)
        }
        Rule::DeadLettersCountByState => (retry_worlds::retries(), DeadAndLoaded),
        Rule::ResetsForgetOrigins => (retry_worlds::retries_and_resets(), Doubled),
        Rule::StatesUnderTheLock => (retry_worlds::retries_and_restores(), Doubled),
        Rule::EarlierTopicsAreCovered => (retry_worlds::retries_and_a_new_topic(), Doubled),
        Rule::UncoveredCopiesLoad => (retry_worlds::retries_of_the_original(), Lost),
        Rule::LostRightsHold => (worlds::rights_and_resets(), Doubled),
        Rule::MarksNeedALedger => (worlds::rights_go_and_come(), Doubled),
        Rule::OriginsOnlyWhereJudged => (worlds::first_rights(), Lost),
        Rule::NothingCommittedPastUnmoved | Rule::LetterBeforeItsState => {
            (retry_worlds::moves(), Lost)
        }
        Rule::OnlyTheLastCopyDecides => (retry_worlds::moves_and_refusals(), Lost),
    }
}

fn nothing_goes_wrong(scene: &Scene) {
    let began = Instant::now();
    match search(&scene.model, scene.start) {
        Outcome::Clean(seen) => {
            println!("{}: {seen}, {:.1} s", scene.name, began.elapsed().as_secs_f64());
            assert!(seen.worlds >= scene.at_least, "{}: only {seen}", scene.name);
        }
        Outcome::Found { violation, trace, seen } => {
            panic!("{}: {violation:?} after {seen}:\n{trace}", scene.name)
        }
    }
}

fn something_goes_wrong(scene: &Scene, rules: Rules, expected: Violation) {
    match search(&Model { rules, ..scene.model }, scene.start) {
        Outcome::Clean(seen) => panic!("{}: nothing goes wrong in {seen}", scene.name),
        Outcome::Found { violation, trace, seen } => {
            println!("{}: {violation:?} after {seen}:\n{trace}", scene.name);
            assert_eq!(violation, expected, "{}:\n{trace}", scene.name);
        }
    }
}

fn is_needed(rule: Rule) {
    let (scene, violation) = shown_by(rule);
    println!("without {rule:?}");
    something_goes_wrong(&scene, Rules::without(rule), violation);
}

#[test]
fn two_loaders_on_a_new_topic_load_every_event_once() {
    nothing_goes_wrong(&worlds::new_topic());
}

#[test]
fn a_reset_is_applied_once_or_during_a_run_overlooked() {
    nothing_goes_wrong(&worlds::resets());
}

#[test]
fn a_reset_during_a_long_run_is_never_applied_by_halves() {
    nothing_goes_wrong(&worlds::long_runs());
}

#[test]
fn a_restored_database_gets_back_what_it_lost() {
    nothing_goes_wrong(&worlds::restores());
}

#[test]
fn a_restored_database_applies_a_reset_once() {
    nothing_goes_wrong(&worlds::reset_and_restored());
}

#[test]
fn a_topic_made_anew_is_loaded_from_its_beginning() {
    nothing_goes_wrong(&worlds::recreated_topic());
}

#[test]
fn a_topic_made_anew_may_be_shorter_than_the_row() {
    nothing_goes_wrong(&worlds::shorter_topic());
}

#[test]
fn a_topic_made_anew_during_its_first_run_is_loaded_from_its_beginning() {
    nothing_goes_wrong(&worlds::recreated_before_the_first_row());
}

#[test]
fn a_topic_made_anew_beside_a_restore_is_loaded_once() {
    nothing_goes_wrong(&worlds::recreated_and_restored());
}

#[test]
fn markers_lagging_leaders_and_retention_hide_nothing() {
    nothing_goes_wrong(&worlds::odd_ends());
}

#[test]
fn the_original_hands_over_and_takes_over_without_a_loss_or_a_double() {
    nothing_goes_wrong(&worlds::hand_over());
}

#[test]
fn after_a_clean_stop_the_group_is_where_the_row_is() {
    nothing_goes_wrong(&worlds::stops());
}

#[test]
fn a_clean_stop_leaves_a_reset_to_the_next_run() {
    nothing_goes_wrong(&worlds::resets_and_stops());
}

#[test]
fn a_clean_stop_after_a_restore_hands_over_what_the_restore_took() {
    nothing_goes_wrong(&worlds::restored_and_handed_over());
}

#[test]
fn a_refused_event_is_in_the_table_once_or_a_dead_letter() {
    nothing_goes_wrong(&retry_worlds::retries());
}

#[test]
fn what_the_original_refused_is_loaded_by_us() {
    nothing_goes_wrong(&retry_worlds::retries_of_the_original());
}

#[test]
fn a_reset_loads_what_had_been_refused_as_if_it_had_not() {
    nothing_goes_wrong(&retry_worlds::retries_and_resets());
}

#[test]
fn a_restored_database_knows_of_every_refused_event_what_it_knew() {
    nothing_goes_wrong(&retry_worlds::retries_and_restores());
}

#[test]
fn a_topic_made_anew_gets_no_second_copy_of_what_the_earlier_one_loaded() {
    nothing_goes_wrong(&retry_worlds::retries_and_a_new_topic());
}

#[test]
fn what_a_right_promised_is_held_until_it_comes_back() {
    nothing_goes_wrong(&worlds::rights_go_and_come());
}

#[test]
fn a_reset_without_the_right_to_the_ledger_waits_for_it() {
    nothing_goes_wrong(&worlds::rights_and_resets());
}

#[test]
fn what_was_refused_without_a_ledger_is_not_lost_once_there_is_one() {
    nothing_goes_wrong(&worlds::first_rights());
}

#[test]
fn a_mover_that_fails_in_the_middle_of_a_chunk_loses_nothing() {
    nothing_goes_wrong(&retry_worlds::moves());
}

#[test]
fn an_event_that_cannot_return_is_a_dead_letter_that_counts() {
    nothing_goes_wrong(&retry_worlds::moves_and_refusals());
}

#[test]
fn the_look_for_live_members_is_needed() {
    is_needed(Rule::NobodyElse);
}

#[test]
fn the_row_before_the_group_is_needed() {
    is_needed(Rule::RowBeforeGroup);
}

#[test]
fn the_end_after_the_row_and_the_group_is_needed() {
    is_needed(Rule::EndAfterRowAndGroup);
}

#[test]
fn the_topic_id_after_the_end_is_needed() {
    is_needed(Rule::TopicIdAfterEnd);
}

#[test]
fn the_low_watermark_after_the_topic_id_is_needed() {
    is_needed(Rule::LowAfterTopicId);
}

#[test]
fn a_row_inserted_outside_the_load_is_needed() {
    is_needed(Rule::LoadNeverInserts);
}

#[test]
fn the_topic_id_before_reading_is_needed() {
    is_needed(Rule::TopicIdBeforeReading);
}

#[test]
fn the_topic_id_after_reading_is_needed() {
    is_needed(Rule::TopicIdAfterReading);
}

#[test]
fn the_topic_id_before_the_first_row_is_needed() {
    is_needed(Rule::FirstRowHasTheEarlierId);
}

#[test]
fn a_raised_epoch_is_needed() {
    is_needed(Rule::MovesRaiseTheEpoch);
}

#[test]
fn an_epoch_that_never_recurs_is_needed() {
    is_needed(Rule::EpochsNeverRecur);
}

#[test]
fn an_acknowledged_claim_is_needed() {
    is_needed(Rule::ClaimAcknowledged);
}

#[test]
fn an_end_only_at_the_end_is_needed() {
    is_needed(Rule::EndOnlyAtTheEnd);
}

#[test]
fn a_row_that_moves_with_the_rows_is_needed() {
    is_needed(Rule::RowMovesWithTheRows);
}

#[test]
fn leaving_decisions_alone_is_needed() {
    is_needed(Rule::DecisionsAreLeftAlone);
}

#[test]
fn a_stop_that_repeats_is_needed() {
    is_needed(Rule::StopRepeats);
}

#[test]
fn a_stop_that_commits_every_topic_is_needed() {
    is_needed(Rule::StopCommitsEveryTopic);
}

#[test]
fn a_stop_that_reads_the_settled_row_is_needed() {
    is_needed(Rule::StopReadsTheSettledRow);
}

#[test]
fn a_stop_that_undoes_a_mark_without_a_row_is_needed() {
    is_needed(Rule::StopUndoesAMarkWithoutARow);
}

#[test]
fn late_commits_that_end_before_a_stop_are_needed() {
    is_needed(Rule::LateCommitsEndBeforeAStop);
}

#[test]
fn origins_of_loaded_rows_only_are_needed() {
    is_needed(Rule::OriginsOfLoadedRowsOnly);
}

#[test]
fn written_refusals_are_needed() {
    is_needed(Rule::RefusalsAreWritten);
}

#[test]
fn resets_that_forget_events_are_needed() {
    is_needed(Rule::ResetsForgetOrigins);
}

#[test]
fn states_under_the_lock_are_needed() {
    is_needed(Rule::StatesUnderTheLock);
}

#[test]
fn producing_before_the_commit_is_needed() {
    is_needed(Rule::ProducedBeforeCommit);
}

#[test]
fn dropping_settled_copies_is_needed() {
    is_needed(Rule::SettledCopiesAreDropped);
}

#[test]
fn dead_letters_that_count_by_their_state_are_needed() {
    is_needed(Rule::DeadLettersCountByState);
}

#[test]
fn loading_uncovered_copies_is_needed() {
    is_needed(Rule::UncoveredCopiesLoad);
}

#[test]
fn covering_earlier_topics_is_needed() {
    is_needed(Rule::EarlierTopicsAreCovered);
}

#[test]
fn holding_while_a_right_is_lost_is_needed() {
    is_needed(Rule::LostRightsHold);
}

#[test]
fn holding_a_marked_group_without_a_ledger_is_needed() {
    is_needed(Rule::MarksNeedALedger);
}

#[test]
fn origins_only_where_they_are_judged_are_needed() {
    is_needed(Rule::OriginsOnlyWhereJudged);
}

#[test]
fn committing_nothing_past_what_was_not_moved_is_needed() {
    is_needed(Rule::NothingCommittedPastUnmoved);
}

#[test]
fn letters_of_the_last_copy_only_are_needed() {
    is_needed(Rule::OnlyTheLastCopyDecides);
}

#[test]
fn a_letter_before_its_state_is_needed() {
    is_needed(Rule::LetterBeforeItsState);
}

/// An edge, with all rules on: the offsets of a topic made anew are not believed, nor those that
/// the original has committed there in the meantime. To believe them would lose events where Kafka
/// still has the old ones.
#[test]
fn a_topic_made_anew_while_the_original_owns_it_is_loaded_again() {
    something_goes_wrong(&worlds::recreated_at_the_original(), Rules::ALL, Violation::Doubled);
}

/// `make model WITHOUT=ClaimAcknowledged`
#[test]
#[ignore = "shows what happens without the rule that MODEL_WITHOUT names"]
fn without_the_rule_that_is_named() {
    let name = env::var("MODEL_WITHOUT").expect("MODEL_WITHOUT names a rule");
    let rule = Rule::named(&name);
    is_needed(rule.unwrap_or_else(|| panic!("no such rule; there are {:?}", Rule::ALL)));
}
