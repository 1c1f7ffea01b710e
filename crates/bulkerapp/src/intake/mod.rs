//! What intake keeps between requests: what is known of tables, who may load by `/bulk`, and the
//! spool for the time that Kafka is away.

pub mod bulk_permits;
pub mod spool;
pub mod table_names;
pub mod table_topics;
