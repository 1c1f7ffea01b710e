//! The protocol as a model: small worlds, searched through all interleavings.
//!
//! A topic, its group, a database, two loaders, the mover of a retry topic and the original take
//! one step at a time, in every order; budgets say how often something goes wrong. Each step mirrors
//! one question or write of the real modules. What they decide without I/O is not mirrored: the
//! model calls it (the order of `Facts::read`, `start::decide`, `returning::judge`, the text of a mark,
//! `RetryState`), which is why it lies here, where those are visible.
//!
//! With all rules on, no world may double, lose or leave an event; with one rule off, the search
//! must find what the rule is for. So neither the rules nor the searches can become empty
//! unnoticed.
//!
//! What the model takes for granted, beyond its budgets:
//! - the original is started only where all our loaders were stopped cleanly, and is itself stopped
//!   cleanly;
//! - a ledger that was put away comes back as it was, and no event turns out to be one that cannot
//!   return while it is away;
//! - the original does not move what waits in the retry topic;
//! - no topic is truncated; a topic that is deleted takes its group's offsets along (where a world
//!   says so);
//! - a batch is read and parsed in one step: the log is append-only, and the topic's id is looked
//!   at afterwards.
//!
//! `make test` searches small worlds, `make model` larger ones; `make model
//! WITHOUT=ClaimAcknowledged` shows what happens without a rule.

mod beginning;
mod check;
mod faults;
mod kafka;
mod load;
mod loader;
mod mover;
mod retry;
mod retry_worlds;
mod rights;
mod rules;
mod search;
mod stop;
mod tests;
mod turn;
mod values;
mod world;
mod worlds;

use rules::Rules;

/// What stays the same in one search.
#[derive(Debug, Clone, Copy)]
struct Model {
    rules: Rules,
    /// Records of a batch.
    batch: u8,
    /// Refusals after which an event is a dead letter.
    attempts: u8,
    /// Events that a broken table refuses.
    fragile: &'static [u8],
    /// Loaders may be stopped cleanly.
    can_stop: bool,
    /// Claims grow old between two batches.
    reclaims: bool,
    /// Where an operator may set the group.
    resets_to: &'static [u8],
    /// Events of a topic made anew.
    recreated_with: u8,
    /// Kafka may still have the offsets of a deleted topic's group when the topic is there again.
    keeps_group: bool,
    /// The ledger's tables may be put away with the right to make them, and be put back.
    ledger_goes: bool,
    /// There may be no ledger: doubles are no violation.
    at_least_once: bool,
}
