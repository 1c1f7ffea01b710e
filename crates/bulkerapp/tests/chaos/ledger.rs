//! What the loader's own tables and the dead letter topic say at the end.

use std::collections::{HashMap, HashSet};

use anyhow::{Context, Result, ensure};
use testkit::Record;

use crate::world::World;

pub(crate) const ORIGIN: &str = "bulker_origin";

/// The place where an event was read first: topic and offset.
pub(crate) type Place = (String, i64);

#[derive(Debug, Clone)]
#[expect(dead_code, reason = "a finding shows all of it")]
pub(crate) struct OriginRow {
    pub(crate) state: String,
    refusals: String,
    reason: String,
}

/// States of refused events.
pub(crate) async fn read_origins(world: &World) -> Result<HashMap<Place, OriginRow>> {
    let sql = "select topic_name, \"offset\", state, refusals, reason from bulker_origins";
    let mut origins = HashMap::new();
    for row in world.database.query(sql).await? {
        let row: Vec<String> = row.into_iter().map(Option::unwrap_or_default).collect();
        let [topic, offset, state, refusals, reason] =
            row.try_into().map_err(|_| anyhow::anyhow!("columns of bulker_origins"))?;
        origins.insert((topic, offset.parse()?), OriginRow { state, refusals, reason });
    }
    Ok(origins)
}

/// What lies on the dead letter topic.
#[derive(Debug, Default)]
pub(crate) struct Letters {
    /// The places that letters came from.
    pub(crate) places: HashSet<Place>,
    /// Events whose letters do not say where they came from.
    pub(crate) unplaced: HashSet<u64>,
}

pub(crate) async fn read_letters(world: &World) -> Result<Letters> {
    let mut letters = Letters::default();
    let topic = world.setup.dead_letter_topic();
    if !world.kafka.topics().await?.contains(&topic) {
        return Ok(letters);
    }
    for record in world.kafka.read_all(&topic).await? {
        match place_of(&record) {
            Some(place) => drop(letters.places.insert(place)),
            None => drop(letters.unplaced.insert(id_of(&record)?)),
        }
    }
    Ok(letters)
}

/// `received = loaded + merged + waiting + dead` of a topic.
pub(crate) async fn tally(world: &World, topic: &str) -> Result<String> {
    let sql = format!(
        "select received || ' = ' || loaded || ' + ' || merged || ' + ' || waiting || ' + ' || dead \
         from bulker_offsets where topic = '{topic}'"
    );
    world.database.value(&sql).await
}

/// The origin that a record carries; `None`: none that can be read.
pub(crate) fn place_of(record: &Record) -> Option<Place> {
    let origin: serde_json::Value = serde_json::from_str(&record.header(ORIGIN)?).ok()?;
    let topic = origin["topic"].as_str()?.to_owned();
    Some((topic, origin["offset"].as_i64()?))
}

pub(crate) fn id_of(record: &Record) -> Result<u64> {
    let event: serde_json::Value = serde_json::from_str(&record.text())?;
    let id = event["id"].as_u64().context("an event without an id")?;
    ensure!(record.value.is_some(), "event {id} is a tombstone");
    Ok(id)
}
