//! One loader's turn: what it sees of the world, and the steps that it adds.

use super::{
    Model,
    rules::Rule,
    world::{Loader, Pc, Row, Steps, World},
};

const NAMES: [&str; 2] = ["loader A", "loader B"];
/// How often a run, or a stop, starts over before it gives up.
pub(super) const MAX_STARTS: u8 = 2;

/// One loader about to take its next step.
pub(super) struct Turn<'a> {
    pub(super) model: &'a Model,
    pub(super) world: &'a World,
    pub(super) index: usize,
    pub(super) steps: &'a mut Steps,
}

impl Turn<'_> {
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
}

/// Back to the first question, or to the end of a run that did so too often.
pub(super) fn start_over(me: &mut Loader, to: Pc) {
    me.starts += 1;
    let is_over = me.starts >= MAX_STARTS;
    me.rest(if is_over { Pc::Idle } else { to });
}
