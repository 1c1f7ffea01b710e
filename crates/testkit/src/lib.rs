//! Real Kafka, PostgreSQL and Redis for tests, and the means to hurt them.
//!
//! Addresses come from `TESTKIT_KAFKA`, `TESTKIT_POSTGRES_URL` and `TESTKIT_REDIS_URL` (`make test`
//! sets them). Where one is missing, a stack of native parts is started for this test process by
//! `scripts/stack`; where that is impossible the test fails and names what is missing. Nothing is
//! ever skipped.
//!
//! Invariants: every handle is isolated (a database, a topic of its own) and gone on drop; whatever
//! is started here ends with the test process, also when that is killed.

mod database;
mod guard;
mod kafka;
mod pooler;
mod ports;
mod stack;
mod wait;

pub mod certificates;
pub mod native;
pub mod process;
pub mod proxy;

pub use database::{Database, Rows};
pub use kafka::{Committed, ForeignRecord, GroupMember, Kafka, Record, Topic};
pub use pooler::Pooler;
pub use ports::free_port;
pub use wait::wait_until;

use anyhow::Result;

/// A fresh, empty database on the shared server, dropped with its handle.
pub async fn postgres() -> Result<Database> {
    Database::create_on(&stack::shared("TESTKIT_POSTGRES_URL").await?).await
}

/// The shared broker.
pub async fn kafka() -> Result<Kafka> {
    Ok(Kafka::at(stack::shared("TESTKIT_KAFKA").await?))
}

/// The shared Redis, as `redis://host:port`. Tests keep to a key prefix of their own.
pub async fn redis_url() -> Result<String> {
    stack::shared("TESTKIT_REDIS_URL").await
}
