//! The library against real PostgreSQL servers.

mod checkpoint;
mod loader;
mod merged;
mod pooler;
mod properties;
mod refused;
mod schema;
mod tls;
