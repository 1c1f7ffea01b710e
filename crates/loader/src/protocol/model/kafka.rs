//! A commit to the topic's group, with all that may become of it.

use super::world::{Committed, Step, World};

/// What the sender of a commit knows afterwards.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Answer {
    Acknowledged,
    /// The group has live members.
    Refused,
    Unknown,
}

/// Commits an offset; `then` gets every way it may go. The first is the one without a fault.
pub(super) fn commit(
    world: &World,
    (actor, what): (&'static str, &'static str),
    committed: Committed,
    mut then: impl FnMut(Step, World, Answer),
) {
    if world.original.is_live {
        let step = Step { actor, what: "commits to the group; refused, it has live members" };
        then(step, *world, Answer::Refused);
        return;
    }
    let applied = World { group: Some(committed), ..*world };
    then(Step { actor, what }, applied, Answer::Acknowledged);
    if world.budget.lost_in_kafka == 0 {
        return;
    }
    let mut lost = *world;
    lost.budget.lost_in_kafka -= 1;
    then(Step { actor, what: "commits to the group; it is lost" }, lost, Answer::Unknown);
    let unheard = World { group: Some(committed), ..lost };
    then(
        Step { actor, what: "commits to the group; the answer is lost" },
        unheard,
        Answer::Unknown,
    );
    if world.late.is_none() {
        let late = World { late: Some(committed), ..lost };
        then(Step { actor, what: "commits to the group; it will be late" }, late, Answer::Unknown);
    }
}
