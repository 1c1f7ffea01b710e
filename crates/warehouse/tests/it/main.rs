//! The library against real PostgreSQL servers.

mod as_insert;
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
mod schema;
mod searched;
mod tls;
