//! The account at the end: where each event is, once, and whether the counters say the same.
//!
//! The ends of an event are read from where customers would read them: rows of the table, and the
//! dead letter topic, where a letter counts while its origin is `dead`. An event that got a 200 has
//! to be in one of them, once. One that got no 200 may be in Kafka all the same; then the same
//! holds for it. A row has to have all that its event said.

use std::collections::{BTreeMap, HashMap, HashSet};

use anyhow::{Context, Result, bail};
use testkit::Record;

use crate::{
    event::{Fate, system_column},
    foreign::{FOREIGN, ON_ITS_WAY, UNDELIVERABLE},
    ledger::{Letters, OriginRow, Place, id_of, place_of, read_letters, read_origins, tally},
    tables::Table,
    whole::{self, Object},
    world::World,
};

/// Findings that are shown of one table.
const SHOWN: usize = 5;

/// What the run did, for those who read its end.
#[derive(Debug, Default)]
pub(crate) struct Summary {
    pub(crate) answered: usize,
    pub(crate) in_kafka: usize,
    pub(crate) rows: usize,
    pub(crate) dead: usize,
    /// Refused at first, and in the table at the end.
    pub(crate) came_back: usize,
    /// Dead because a trigger refused them with a code of another meaning.
    pub(crate) odd: usize,
    /// Dead because they asked for a column that cannot be.
    pub(crate) impossible: usize,
    /// Loaded although they name a system column.
    pub(crate) system_columns: usize,
    /// Loaded into tables that clients invented.
    pub(crate) invented: usize,
    /// By another program.
    pub(crate) foreign: usize,
}

/// One event, wherever something of it was found.
#[derive(Debug, Default)]
struct Event {
    is_answered: bool,
    /// Where it was read first, by offset. More than one: it is in Kafka more than once.
    first_readings: Vec<i64>,
    /// Where else it says that it was read first, whoever wrote it.
    claims: Vec<Place>,
    is_foreign: bool,
    /// Nobody can say where it belongs.
    is_undeliverable: bool,
    rows: usize,
    dead: usize,
    /// What is missing in its row.
    missing: Option<String>,
}

/// All that is compared with the tables.
struct Found<'a> {
    world: &'a World,
    origins: HashMap<Place, OriginRow>,
    letters: Letters,
    /// Records of the retry topic that another program put there.
    strays: Vec<Record>,
    dropped: HashSet<Table>,
    findings: Vec<String>,
    summary: Summary,
}

/// Checks everything; the error says which events are where, and why.
pub(crate) async fn check(world: &World, answered: &[HashSet<u64>]) -> Result<Summary> {
    let mut found = Found {
        world,
        origins: read_origins(world).await?,
        letters: read_letters(world).await?,
        strays: read_strays(world).await?,
        dropped: world.dropped(),
        findings: Vec::new(),
        summary: Summary::default(),
    };
    found.check_origins();
    for table in Table::all() {
        found.check_table(table, &answered[table.index()]).await?;
    }
    let Found { findings, summary, .. } = found;
    if !findings.is_empty() {
        bail!("{} findings:\n{}", findings.len(), findings.join("\n"));
    }
    Ok(summary)
}

/// What another program put into the retry topic.
async fn read_strays(world: &World) -> Result<Vec<Record>> {
    let mut strays = world.kafka.read_all(&world.setup.retry_topic()).await?;
    strays.retain(|record| {
        let says = record.header(FOREIGN);
        // copies of it say where it lay
        says.is_some_and(|says| [ON_ITS_WAY, UNDELIVERABLE].contains(&says.as_str()))
            && place_of(record).is_none()
    });
    Ok(strays)
}

impl Found<'_> {
    fn check_origins(&mut self) {
        for (place, origin) in &self.origins {
            if origin.state == "refused" {
                self.findings.push(format!("{place:?} still waits: {origin:?}"));
            }
            if origin.state == "dead" && !self.letters.places.contains(place) {
                self.findings.push(format!("{place:?} is dead and no letter tells of it"));
            }
        }
        let loaded = self.origins.values().filter(|origin| origin.state == "loaded");
        self.summary.came_back = loaded.count();
    }

    async fn check_table(&mut self, table: Table, answered: &HashSet<u64>) -> Result<()> {
        let topic = table.topic(&self.world.setup);
        let mut events: BTreeMap<u64, Event> = BTreeMap::new();
        for id in answered {
            events.entry(*id).or_default().is_answered = true;
        }
        let (received, texts) = self.read_topic(table, &topic, &mut events).await?;
        let rows = self.read_rows(table, &texts, &mut events).await?;
        let mut dead = 0;
        for (id, event) in &mut events {
            let here = event.first_readings.iter().map(|offset| (topic.clone(), *offset));
            let places: HashSet<_> = here.chain(event.claims.iter().cloned()).collect();
            let states = places.iter().filter_map(|place| self.origins.get(place));
            event.dead = states.filter(|origin| origin.state == "dead").count();
            dead += event.dead;
            if event.is_undeliverable {
                event.dead += usize::from(self.letters.unplaced.contains(id));
            }
        }
        self.report(table, &topic, &events);
        let wanted = format!("{received} = {rows} + 0 + 0 + {dead}");
        let tally = tally(self.world, &topic).await?;
        if tally != wanted {
            self.findings.push(format!(
                "{}: received = loaded + merged + waiting + dead is {tally} by the counters and {wanted} by Kafka, rows and origins",
                table.name()
            ));
        }
        // the instances were stopped cleanly, so the loader that takes over from Kafka's group
        // starts where the row stands
        let kafka = &self.world.kafka;
        let committed = kafka.committed(&topic, &topic, 0).await?.map(|c| c.offset);
        let end = kafka.end_offset(&topic, 0).await?;
        if committed != Some(end) {
            self.findings
                .push(format!("{}: the group stands at {committed:?} of {end}", table.name()));
        }
        self.summarise(answered, &events);
        Ok(())
    }

    /// Reads the events of a table; answers how many have reached its topic, and their texts.
    async fn read_topic(
        &self,
        table: Table,
        topic: &str,
        events: &mut BTreeMap<u64, Event>,
    ) -> Result<(usize, HashMap<u64, String>)> {
        let mut texts = HashMap::new();
        for record in self.world.kafka.read_all(topic).await? {
            let id = id_of(&record)?;
            let event = events.entry(id).or_default();
            event.is_foreign = record.header(FOREIGN).is_some();
            // another program may say anything of where its records come from
            let is_copy = match record.header(FOREIGN).as_deref() {
                Some(ON_ITS_WAY) => true,
                Some(_) => texts.contains_key(&id),
                None => record.header("original_topic").is_some(),
            };
            if !is_copy {
                event.first_readings.push(record.offset);
            }
            event.claims.extend(place_of(&record));
            texts.insert(id, record.text());
        }
        let received = texts.len();
        for record in &self.strays {
            let id = id_of(record)?;
            if Table::of(id) != table {
                continue;
            }
            let event = events.entry(id).or_default();
            event.is_foreign = true;
            event.is_undeliverable = record.header(FOREIGN).as_deref() == Some(UNDELIVERABLE);
            event.claims.push((self.world.setup.retry_topic(), record.offset));
        }
        Ok((received, texts))
    }

    /// Reads a table; answers how many rows it has.
    async fn read_rows(
        &self,
        table: Table,
        texts: &HashMap<u64, String>,
        events: &mut BTreeMap<u64, Event>,
    ) -> Result<usize> {
        let mut rows = 0;
        let sql = format!(
            "select id::text, to_jsonb(t)::text from {} t where id::text <> '-1'",
            table.quoted()
        );
        for row in self.world.database.query(&sql).await? {
            let mut row = row.into_iter().flatten();
            let (Some(id), Some(row)) = (row.next(), row.next()) else {
                bail!("{}: a row without an id", table.name());
            };
            let id: u64 = id.parse().context("an id")?;
            // two of the invented names are one table
            if Table::of(id) != table && Table::of(id).quoted() == table.quoted() {
                continue;
            }
            rows += 1;
            let event = events.entry(id).or_default();
            event.rows += 1;
            if let Some(text) = texts.get(&id) {
                let (text, row): (Object, Object) =
                    (serde_json::from_str(text)?, serde_json::from_str(&row)?);
                event.missing = whole::missing(&text, &row, table, &self.dropped);
            }
        }
        Ok(rows)
    }

    fn report(&mut self, table: Table, topic: &str, events: &BTreeMap<u64, Event>) {
        let mut wrong = 0;
        for (id, event) in events {
            let Some(what) = what_is_wrong(table, *id, event) else {
                continue;
            };
            wrong += 1;
            if wrong > SHOWN {
                continue;
            }
            let here = event.first_readings.iter().map(|offset| (topic.to_owned(), *offset));
            let places = here.chain(event.claims.iter().cloned());
            let origins: Vec<_> = places.filter_map(|place| self.origins.get(&place)).collect();
            let fate = Fate::of(*id);
            self.findings.push(format!(
                "{}: event {id} ({fate:?}) {what}: {event:?}, origins {origins:?}",
                table.name()
            ));
        }
        if wrong > SHOWN {
            self.findings.push(format!("{}: {wrong} events in all are wrong", table.name()));
        }
    }

    fn summarise(&mut self, answered: &HashSet<u64>, events: &BTreeMap<u64, Event>) {
        let summary = &mut self.summary;
        summary.answered += answered.len();
        for (id, event) in events {
            let in_kafka = !event.first_readings.is_empty() || !event.claims.is_empty();
            summary.in_kafka += usize::from(in_kafka);
            summary.rows += event.rows;
            summary.dead += event.dead;
            summary.foreign += usize::from(in_kafka && event.is_foreign);
            match Fate::of(*id) {
                Fate::Odd(_) => summary.odd += event.dead,
                Fate::Impossible(_) => summary.impossible += event.dead,
                _ => {}
            }
            if system_column(*id).is_some() {
                summary.system_columns += event.rows;
            }
            if Table::of(*id).is_invented() {
                summary.invented += event.rows;
            }
        }
    }
}

fn what_is_wrong(table: Table, id: u64, event: &Event) -> Option<&'static str> {
    let Event { is_answered, first_readings, claims, rows, dead, .. } = event;
    if Table::of(id) != table {
        return Some("is in the wrong table");
    }
    let in_kafka = match first_readings.len() {
        0 => usize::from(event.is_foreign && !claims.is_empty()), // in the retry topic
        readings => readings,
    };
    match (in_kafka, rows + dead) {
        (1, 1) => {}
        (0, 0) if !is_answered => return None,
        (0, _) if *is_answered => return Some("was answered and is not in Kafka"),
        (0, _) => return Some("is there and was never in Kafka"),
        (1, 0) => return Some("is lost"),
        (1, _) => return Some("is there more than once"),
        _ => return Some("is in Kafka more than once"),
    }
    if event.missing.is_some() {
        return Some("is damaged");
    }
    if event.is_undeliverable {
        return (*rows > 0).then_some("is loaded, and nobody could know where it belongs");
    }
    let fate = Fate::of(id);
    match (rows, dead) {
        (_, 1..) if !fate.may_be_refused() => Some("is good and was refused"),
        (1.., _) if !fate.may_be_loaded() => Some("is bad and was loaded"),
        _ => None,
    }
}
