//! bulkerapp against real Kafka and PostgreSQL: what is promised holds while parts are killed, frozen and moved.

mod admin_routes;
mod app;
mod bulk;
mod crash;
mod documented;
mod failed;
mod intake;
mod outage;
mod starts;
