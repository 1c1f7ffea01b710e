//! The account at the end: where each event is, once, and whether the counters say the same.
//!
//! The ends of an event are read from where customers would read them: rows of the table, and the
//! dead letter topic, where a letter counts while its origin is `dead`. An event that got a 200 has
//! to be in one of them, once. One that got no 200 may be in Kafka all the same; then the same
//! holds for it.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use anyhow::{Context, Result, bail};
use testkit::Record;

use crate::{
    tables::{Fate, Table},
    world::World,
};

/// Findings that are shown of one table.
const SHOWN: usize = 5;
const ORIGIN: &str = "bulker_origin";

/// What the run did, for those who read its end.
#[derive(Debug, Default)]
pub(crate) struct Summary {
    pub(crate) answered: usize,
    pub(crate) in_kafka: usize,
    pub(crate) rows: usize,
    pub(crate) dead: usize,
    /// Refused at first, and in the table at the end.
    pub(crate) came_back: usize,
}

/// The place where an event was read first: topic and offset.
type Place = (String, i64);

#[derive(Debug, Clone)]
#[expect(dead_code, reason = "a finding shows all of it")]
struct OriginRow {
    state: String,
    refusals: String,
    reason: String,
}

/// One event, wherever something of it was found.
#[derive(Debug, Default)]
struct Event {
    is_answered: bool,
    /// Offsets of its first readings.
    offsets: Vec<i64>,
    rows: usize,
    dead: usize,
}

/// Checks everything; the error says which events are where, and why.
pub(crate) async fn check(world: &World, answered: &[HashSet<u64>]) -> Result<Summary> {
    let origins = read_origins(world).await?;
    let letters = read_letters(world).await?;
    let mut findings = Vec::new();
    for (place, origin) in &origins {
        if origin.state == "refused" {
            findings.push(format!("{place:?} still waits: {origin:?}"));
        }
        if origin.state == "dead" && !letters.contains_key(place) {
            findings.push(format!("{place:?} is dead and no letter tells of it"));
        }
    }
    let came_back = origins.values().filter(|origin| origin.state == "loaded").count();
    let mut summary = Summary { came_back, ..Summary::default() };
    for table in Table::all() {
        let answered = &answered[table.index()];
        check_table(world, table, answered, &origins, &mut summary, &mut findings).await?;
    }
    if !findings.is_empty() {
        bail!("{} findings:\n{}", findings.len(), findings.join("\n"));
    }
    Ok(summary)
}

async fn check_table(
    world: &World,
    table: Table,
    answered: &HashSet<u64>,
    origins: &HashMap<Place, OriginRow>,
    summary: &mut Summary,
    findings: &mut Vec<String>,
) -> Result<()> {
    let topic = table.topic(&world.setup);
    let mut events: BTreeMap<u64, Event> = BTreeMap::new();
    for id in answered {
        events.entry(*id).or_default().is_answered = true;
    }
    let mut first_readings = 0;
    for record in world.kafka.read_all(&topic).await? {
        if record.header(ORIGIN).is_none() {
            first_readings += 1;
            events.entry(id_of(&record)?).or_default().offsets.push(record.offset);
        }
    }
    let mut rows = 0;
    for row in world.database.query(&format!("select id::text from {}", table.name())).await? {
        let id = row.into_iter().next().flatten().context("a row without an id")?;
        events.entry(id.parse()?).or_default().rows += 1;
        rows += 1;
    }
    let mut dead = 0;
    for event in events.values_mut() {
        let states =
            event.offsets.iter().filter_map(|offset| origins.get(&(topic.clone(), *offset)));
        event.dead = states.filter(|origin| origin.state == "dead").count();
        dead += event.dead;
    }
    let found_before = findings.len();
    for (id, event) in &events {
        let Some(wrong) = what_is_wrong(table, *id, event) else {
            continue;
        };
        if findings.len() - found_before < SHOWN {
            let origins: Vec<_> = event
                .offsets
                .iter()
                .filter_map(|offset| origins.get(&(topic.clone(), *offset)))
                .collect();
            let fate = Fate::of(*id);
            findings.push(format!(
                "{}: event {id} ({fate:?}) {wrong}: {event:?}, origins {origins:?}",
                table.name()
            ));
        }
    }
    let wrong = events.iter().filter(|(id, event)| what_is_wrong(table, **id, event).is_some());
    let wrong = wrong.count();
    if wrong > SHOWN {
        findings.push(format!("{}: {wrong} events in all are wrong", table.name()));
    }
    let wanted = format!("{first_readings} = {rows} + 0 + 0 + {dead}");
    let tally = tally(world, &topic).await?;
    if tally != wanted {
        findings.push(format!(
            "{}: received = loaded + merged + waiting + dead is {tally} by the counters and {wanted} by Kafka, rows and origins",
            table.name()
        ));
    }
    // the instances were stopped cleanly, so the loader that takes over from Kafka's group starts
    // where the row stands
    let committed =
        world.kafka.committed(&topic, &topic, 0).await?.map(|committed| committed.offset);
    let end = world.kafka.end_offset(&topic, 0).await?;
    if committed != Some(end) {
        findings.push(format!("{}: the group stands at {committed:?} of {end}", table.name()));
    }
    summary.answered += answered.len();
    summary.in_kafka += first_readings;
    summary.rows += rows;
    summary.dead += dead;
    Ok(())
}

fn what_is_wrong(table: Table, id: u64, event: &Event) -> Option<&'static str> {
    let Event { is_answered, offsets, rows, dead } = event;
    if Table::of(id) != table {
        return Some("is in the wrong table");
    }
    match (offsets.len(), rows + dead) {
        (1, 1) => {}
        (0, _) if *is_answered => return Some("was answered and is not in Kafka"),
        (0, _) => return Some("is there and was never in Kafka"),
        (1, 0) => return Some("is lost"),
        (1, _) => return Some("is there more than once"),
        _ => return Some("is in Kafka more than once"),
    }
    match Fate::of(id) {
        Fate::Accepted if *dead > 0 => Some("is good and was refused"),
        Fate::Hopeless if *rows > 0 => Some("is bad and was loaded"),
        _ => None,
    }
}

async fn tally(world: &World, topic: &str) -> Result<String> {
    let sql = format!(
        "select received || ' = ' || loaded || ' + ' || merged || ' + ' || waiting || ' + ' || dead \
         from bulker_offsets where topic = '{topic}'"
    );
    world.database.value(&sql).await
}

async fn read_origins(world: &World) -> Result<HashMap<Place, OriginRow>> {
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

/// The places that dead letters came from.
async fn read_letters(world: &World) -> Result<HashMap<Place, usize>> {
    let mut letters = HashMap::new();
    let mut strange = BTreeSet::new();
    for record in world.kafka.read_all(&world.setup.dead_letter_topic()).await? {
        let Some(origin) = record.header(ORIGIN) else {
            strange.insert(record.header("error").unwrap_or_default());
            continue;
        };
        let origin: serde_json::Value = serde_json::from_str(&origin)?;
        let topic = origin["topic"].as_str().context("an origin without a topic")?.to_owned();
        let offset = origin["offset"].as_i64().context("an origin without an offset")?;
        *letters.entry((topic, offset)).or_default() += 1;
    }
    if !strange.is_empty() {
        bail!("dead letters without an origin: {strange:?}");
    }
    Ok(letters)
}

fn id_of(record: &Record) -> Result<u64> {
    let event: serde_json::Value = serde_json::from_str(&record.text())?;
    event["id"].as_u64().context("an event without an id")
}
