//! The destinations as the loader needs them: opened once, by id.

use std::{collections::HashMap, sync::Arc};

use appbase::telemetry::chain;
use tracing::error;
use warehouse::postgres::{Credentials, Postgres, Settings};

use super::target::{LoadTarget, TargetDefaults};
use crate::{
    destinations::{Destination, Destinations, POSTGRES},
    metrics,
};

/// Opens all destinations that can be loaded. One that
/// cannot be opened is reported by name and left out; its events wait in Kafka.
pub fn open_all(
    destinations: &Destinations,
    connections: u32,
    defaults: TargetDefaults,
) -> HashMap<String, Arc<LoadTarget>> {
    let mut targets = HashMap::new();
    for destination in destinations.iter().filter(|d| d.config.kind == POSTGRES) {
        let id = &destination.config.id;
        match open(destination, connections) {
            Ok(postgres) => {
                let target = LoadTarget::new(id, postgres, destination.options.clone(), defaults);
                targets.insert(id.clone(), Arc::new(target));
            }
            Err(problem) => {
                metrics::DESTINATION_INIT_ERRORS.with_label_values(&[id]).inc();
                error!(
                    destination_id = id,
                    problem, "destination cannot be opened; its events wait"
                );
            }
        }
    }
    targets
}

fn open(destination: &Destination, connections: u32) -> Result<Postgres, String> {
    // the value is not shown: it is a secret
    let credentials = Credentials::read(&destination.config.credentials)
        .map_err(|error| chain(&error).to_string())?;
    // one more: building a key on a table with rows takes a second connection
    let settings = Settings { max_connections: connections + 1, ..Settings::default() };
    Postgres::new(&credentials, settings).map_err(|error| chain(&error).to_string())
}
