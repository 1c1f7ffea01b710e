//! The frame of a service: what a binary needs before its own first line.

pub mod auth;
pub mod backoff;
pub mod config;
pub mod http;
pub mod lifecycle;
pub mod metrics;
mod settings;
pub mod telemetry;
pub mod values;

pub use settings::AppConfig;
