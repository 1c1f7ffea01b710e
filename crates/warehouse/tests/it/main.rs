//! The library against real PostgreSQL servers.

mod as_insert;
mod by_event;
mod faults;
mod impossible;
mod keys;
mod ledger;
mod left_behind;
mod loader;
mod merged;
mod pooler;
mod properties;
mod refused;
mod replaced;
mod schema;
mod searched;
mod tls;
mod values;
