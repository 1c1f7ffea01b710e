//! The destinations that are configured, by id.
//!
//! Invariant: one destination that is not usable takes no other one down, and is reported by name. Its
//! events are still taken as long as it has an id: they wait in Kafka until the configuration is repaired.

mod environment;
mod parse;

use std::{collections::HashMap, sync::Arc};

use appbase::config::Environment;
use kafkabase::Mode;
use serde_json::{Map, Value};
use tracing::{error, info, warn};
use warehouse::StreamOptions;

use crate::metrics;

pub use environment::SourceError;

/// The type that this version loads.
pub(crate) const POSTGRES: &str = "postgres";

/// A destination as it is configured.
#[derive(Clone)]
pub struct DestinationConfig {
    pub id: String,
    pub kind: String,
    /// Passed to the warehouse; never logged.
    pub credentials: Value,
    pub options: Map<String, Value>,
    pub updated_at: Option<String>,
}

/// A destination with its options read.
pub struct Destination {
    pub config: DestinationConfig,
    pub options: StreamOptions,
    /// The mode of events that name none.
    pub mode: Mode,
}

/// All destinations. Does not change while the process runs.
#[derive(Default)]
pub struct Destinations {
    by_id: HashMap<String, Arc<Destination>>,
    /// What operators should know, by destination or variable.
    problems: Vec<String>,
}

impl Destinations {
    /// Reads them from where `CONFIG_SOURCE` says.
    pub fn load(source: &str, environment: &Environment) -> Result<Destinations, SourceError> {
        let mut destinations = Destinations::default();
        for (name, parsed) in environment::read(source, environment)? {
            match parsed {
                Ok(config) => destinations.add(&name, config),
                Err(problem) => {
                    error!(variable = name, problem = %problem, "destination ignored");
                    destinations.problems.push(format!("{name}: {problem}"));
                }
            }
        }
        let count = destinations.by_id.len();
        metrics::DESTINATIONS.with_label_values(&["added"]).inc_by(count as u64);
        info!(count, "destinations configured");
        Ok(destinations)
    }

    pub fn get(&self, id: &str) -> Option<&Arc<Destination>> {
        self.by_id.get(id)
    }

    pub fn iter(&self) -> impl Iterator<Item = &Arc<Destination>> {
        self.by_id.values()
    }

    /// What operators should know. Holds no secret.
    pub fn problems(&self) -> &[String] {
        &self.problems
    }

    fn add(&mut self, name: &str, config: DestinationConfig) {
        let id = config.id.clone();
        let options = self.read_options(&config);
        if config.kind != POSTGRES {
            self.report(&id, "this version loads destinations of type postgres only");
        }
        let mode = options.mode.as_deref().and_then(Mode::parse).unwrap_or(Mode::Batch);
        info!(
            destination_id = id,
            kind = config.kind,
            updated_at = config.updated_at.as_deref().unwrap_or_default(),
            "destination configured"
        );
        let destination = Destination { config, options, mode };
        if self.by_id.insert(id.clone(), Arc::new(destination)).is_some() {
            warn!(
                destination_id = id,
                variable = name,
                "destination is configured twice; the last one counts"
            );
            self.problems.push(format!("{id}: configured twice"));
        }
    }

    fn read_options(&mut self, config: &DestinationConfig) -> StreamOptions {
        let mut options = StreamOptions::default();
        for (key, value) in &config.options {
            if let Err(error) = options.set(key, value) {
                self.report(&config.id, &error.to_string());
            }
        }
        if let Err(error) = options.validate() {
            self.report(&config.id, &error.to_string());
        }
        options
    }

    fn report(&mut self, id: &str, problem: &str) {
        metrics::DESTINATION_INIT_ERRORS.with_label_values(&[id]).inc();
        error!(destination_id = id, problem, "destination is not as configured");
        self.problems.push(format!("{id}: {problem}"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(source: &str, variables: &[(&str, &str)]) -> Destinations {
        let environment = Environment::new("BULKER", variables.iter().copied(), []);
        Destinations::load(source, &environment).unwrap()
    }

    #[test]
    fn one_bad_destination_leaves_the_others_alone() {
        let destinations = load(
            "",
            &[
                ("BULKER_DESTINATION_GOOD", r#"{id: "good", type: "postgres", credentials: {}}"#),
                ("BULKER_DESTINATION_BROKEN", r#"{id: "s3cret"#),
            ],
        );
        assert!(destinations.get("good").is_some());
        assert_eq!(destinations.iter().count(), 1);
        let [problem] = destinations.problems() else { panic!("one problem") };
        assert!(problem.starts_with("BULKER_DESTINATION_BROKEN: "), "{problem}");
        assert!(!problem.contains("s3cret"), "{problem}");
    }

    #[test]
    fn a_bad_option_is_reported_and_the_destination_works_without_it() {
        let destinations = load(
            "",
            &[(
                "BULKER_DESTINATION_PG",
                r#"{id: "pg", type: "postgres", credentials: {}, options: {batchSize: 7, mode: "stream", nope: 1}}"#,
            )],
        );
        let destination = destinations.get("pg").unwrap();
        assert_eq!(destination.options.batch_size, 7);
        assert_eq!(destination.mode, Mode::Stream);
        assert_eq!(destinations.problems(), ["pg: unknown option nope"]);
    }

    #[test]
    fn a_type_that_is_not_loaded_yet_still_takes_events() {
        let destinations = load(
            "",
            &[("BULKER_DESTINATION_CH", r#"{id: "ch", type: "clickhouse", credentials: {}}"#)],
        );
        assert!(destinations.get("ch").is_some());
        assert_eq!(
            destinations.problems(),
            ["ch: this version loads destinations of type postgres only"]
        );
    }
}
