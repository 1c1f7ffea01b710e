//! bulkerapp against real Kafka and PostgreSQL: what is promised holds while parts are killed, frozen and moved.

mod app;
mod crash;
mod documented;
mod intake;
mod outage;
mod spool;
mod starts;
