//! bulkerapp against real Kafka and PostgreSQL: what is promised holds while parts are killed,
//! frozen and moved.

mod access;
mod admin_routes;
mod app;
mod bulk;
mod configuration;
mod console;
mod crash;
mod documented;
mod events;
mod exhaustion;
mod failed;
mod faults;
mod foreign;
mod intake;
mod log;
mod memory;
mod operations;
mod outage;
mod own_tables;
mod ownership;
mod partitions;
mod redis_tls;
mod refused;
mod reporting;
mod returning;
mod rights;
mod sources;
mod spool;
mod starts;
mod stream;
mod watchdog;
