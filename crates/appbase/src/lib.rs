//! The frame of a service: what a binary needs before its own first line.

#![warn(missing_docs)]

pub mod auth;
pub mod backoff;
pub mod config;
mod descriptors;
pub mod http;
pub mod lifecycle;
pub mod metrics;
#[cfg(feature = "redis")]
pub mod redis_client;
#[cfg(feature = "repository")]
pub mod repository;
mod settings;
pub mod telemetry;
pub mod values;

pub use descriptors::{connections_within, raise_descriptor_limit};
pub use settings::AppConfig;
