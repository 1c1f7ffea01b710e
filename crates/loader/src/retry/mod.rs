//! Refused events: what travels with them (`envelope`), where they are produced to
//! (`refused_producer`), how they come back when they are due (`mover`, `state`, `backoff`), and
//! which of their copies count (`event_states`).

pub(crate) mod backoff;
pub(crate) mod envelope;
pub(crate) mod event_states;
pub(crate) mod mover;
pub(crate) mod refused_producer;
pub(crate) mod state;
