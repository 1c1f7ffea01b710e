//! The library against real PostgreSQL servers.

mod loader;
mod refused;
