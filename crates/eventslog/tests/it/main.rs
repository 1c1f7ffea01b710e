//! The events log against a real Redis, and against what ClickHouse is told over HTTP.

mod clickhouse;
mod merged;
mod outage;
mod reading;
mod running;
mod tls;
mod writing;
