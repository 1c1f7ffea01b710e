//! What intake keeps between requests: what is known of tables, and the spool for the time that
//! Kafka is away.

pub mod spool;
pub mod table_topics;
