//! The searches: every world with all rules on, and for each rule what goes wrong without it.

use std::time::Instant;

use super::{
    Model,
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
        Rule::EndAfterRowAndGroup => (worlds::new_topic(), HeldForNothing),
        Rule::TopicIdAfterEnd => (worlds::shorter_topic(), HeldForNothing),
        Rule::LowAfterTopicId | Rule::TopicIdBeforeReading => (worlds::recreated_topic(), Lost),
        Rule::TopicIdAfterReading => (worlds::recreated_topic(), Doubled),
        Rule::FirstRowHasTheEarlierId => (worlds::recreated_before_the_first_row(), Lost),
        Rule::LoadNeverInserts | Rule::RowMovesWithTheRows => (worlds::new_topic(), Doubled),
        Rule::EndOnlyAtTheEnd => (worlds::odd_ends(), Lost),
        Rule::DecisionsAreLeftAlone => (worlds::resets_and_stops(), Lost),
        Rule::StopRepeats
        | Rule::StopTellsEveryTopic
        | Rule::StopReadsTheSettledRow
        | Rule::LateCommitsEndBeforeAStop => (worlds::stops(), GroupBehind),
        Rule::StopUndoesAMarkWithoutARow => (worlds::restored_and_handed_over(), Lost),
        Rule::OriginsOfLoadedRowsOnly | Rule::ParkedBeforeCommit => (worlds::retries(), Lost),
        Rule::RefusalsAreWritten | Rule::SettledCopiesAreDropped => (worlds::retries(), Doubled),
        Rule::DeadLettersCountByState => (worlds::retries(), DeadAndLoaded),
        Rule::UncoveredCopiesLoad => (worlds::retries_of_the_original(), Lost),
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
            assert_eq!(violation, expected, "{}", scene.name);
        }
    }
}

fn rule_is_needed(rule: Rule) {
    let (scene, violation) = shown_by(rule);
    something_goes_wrong(&scene, Rules::without(rule), violation);
}

#[test]
fn new_topic() {
    nothing_goes_wrong(&worlds::new_topic());
}
#[test]
fn resets() {
    nothing_goes_wrong(&worlds::resets());
}
#[test]
fn restores() {
    nothing_goes_wrong(&worlds::restores());
}
#[test]
fn recreated() {
    nothing_goes_wrong(&worlds::recreated_topic());
}
#[test]
fn recreated_first() {
    nothing_goes_wrong(&worlds::recreated_before_the_first_row());
}
#[test]
fn odd_ends() {
    nothing_goes_wrong(&worlds::odd_ends());
}
#[test]
fn hand_over() {
    nothing_goes_wrong(&worlds::hand_over());
}
#[test]
fn stops() {
    nothing_goes_wrong(&worlds::stops());
}
#[test]
fn retries() {
    nothing_goes_wrong(&worlds::retries());
}
#[test]
fn retries_orig() {
    nothing_goes_wrong(&worlds::retries_of_the_original());
}
#[test]
fn shorter() {
    nothing_goes_wrong(&worlds::shorter_topic());
}
#[test]
fn resets_and_stops() {
    nothing_goes_wrong(&worlds::resets_and_stops());
}
#[test]
fn restored_handed() {
    nothing_goes_wrong(&worlds::restored_and_handed_over());
}

#[test]
fn off_all() {
    for rule in Rule::ALL {
        println!("== {rule:?}");
        rule_is_needed(rule);
    }
    something_goes_wrong(&worlds::recreated_at_the_original(), Rules::ALL, Violation::Doubled);
}
