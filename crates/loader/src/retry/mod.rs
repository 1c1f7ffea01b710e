//! Refused events: what travels with them (`envelope`), where they are produced to
//! (`refused_producer`, `letter`), how they come back when they are due (`run`, `mover`, `moves`, `state`, `backoff`), and
//! which of their copies count (`event_states`).

pub(crate) mod backoff;
pub(crate) mod envelope;
pub(crate) mod event_states;
mod letter;
pub(crate) mod mover;
mod moves;
pub(crate) mod refused_producer;
pub(crate) mod run;
pub(crate) mod state;
