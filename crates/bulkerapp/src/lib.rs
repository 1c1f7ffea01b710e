//! Takes events over HTTP, keeps them in Kafka, loads them into warehouses.
//!
//! `service` puts the parts together: `routes` take events in, `topics` knows where they go,
//! and the `loader` crate brings them to the tables of `destinations`.

pub mod commands;
pub mod config;
pub mod destinations;
pub mod failed_events;
pub mod intake;
pub mod metrics;
pub mod routes;
pub mod service;
pub mod state;
pub mod topics;
