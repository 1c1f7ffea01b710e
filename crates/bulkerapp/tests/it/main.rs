//! bulkerapp against real Kafka and PostgreSQL: what is promised holds while parts are killed, frozen and moved.

mod app;
mod configuration;
mod console;
mod crash;
mod documented;
mod events;
mod intake;
mod log;
mod outage;
mod ownership;
mod redis_tls;
mod refused;
mod sources;
mod starts;
mod stream;
