//! The destinations that are configured, by id.
//!
//! A source (`sources`) gives whole documents; `configuration` follows it, with copies (`cache`)
//! for a start while it is away; the `registry` holds what is in force. Invariant: one destination
//! that is not usable takes no other one down, and is reported by name. Its events are still taken
//! as long as it has an id: they wait in Kafka until the configuration is repaired.

mod cache;
mod config;
mod configuration;
mod destination;
mod document;
mod parse;
mod registry;
mod settings;
mod sources;
mod targets;

pub use appbase::repository::RepositoryStatus as ConfigurationStatus;
pub use config::DestinationConfig;
pub use configuration::{Configuration, ConfigurationError};
pub use destination::Destination;
pub use registry::{Destinations, Snapshot};
pub use settings::{RedisSettings, SourceConfig};
pub use sources::SourceError;
pub use targets::Targets;

#[cfg(test)]
pub(crate) mod samples {
    use serde_json::Value;

    use super::{Destinations, document::Document};

    /// The destinations that this array configures.
    pub(crate) fn destinations(value: Value) -> Destinations {
        let destinations = Destinations::default();
        configure(&destinations, value);
        destinations
    }

    /// Puts this array in force.
    pub(crate) fn configure(destinations: &Destinations, value: Value) {
        let Value::Array(elements) = value else { panic!("an array") };
        destinations.apply(&Document::of_array(elements));
    }
}
