//! A batch with rows that the database refuses, beside the same batch without them.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use serde_json::json;
use sqlx::{Connection, Executor};
use warehouse::{
    Batch, LoadOptions, Refusals, RowsOf, SchemaChanges, StreamOptions,
    postgres::{Credentials, Postgres, Settings},
};

use crate::{events::write_event, parts::Parts, report::Comparison};

const EVENTS: u64 = 100_000;
const ISOLATE: LoadOptions = LoadOptions {
    refusals: Refusals::Isolate,
    schema_changes: SchemaChanges::BeforeLoad,
    rows: RowsOf::Batch,
};

/// What refuses the rows, and how much the server says of the place.
pub(crate) struct Kind {
    name: &'static str,
    /// For the table, once it is there.
    sql: &'static str,
    is_merged: bool,
}

pub(crate) const KINDS: [Kind; 4] = [
    // the server names the line
    Kind {
        name: "by a check",
        sql: "alter table bench_refused add check (session_id >= 0)",
        is_merged: false,
    },
    Kind {
        name: "by a check, merged by key",
        sql: "alter table bench_refused add check (session_id >= 0)",
        is_merged: true,
    },
    // it names the key
    Kind {
        name: "by a foreign key",
        sql: "create table bench_parents (id bigint primary key); \
              insert into bench_parents select generate_series(0, 1100000); \
              alter table bench_refused add foreign key (session_id) references bench_parents",
        is_merged: false,
    },
    // it names nothing
    Kind {
        name: "by a trigger after all rows",
        sql: "create function bench_refuse() returns trigger language plpgsql as \
              $$begin if new.session_id < 0 then raise 'refused'; end if; return null; end$$; \
              create trigger refuse after insert on bench_refused \
              for each row execute function bench_refuse()",
        is_merged: false,
    },
];

/// The duration of a load with `bad` refused rows, beside that of a clean one into the same table.
pub(crate) async fn compare(parts: &Parts, kind: &Kind, bad: u64) -> Result<Comparison> {
    let postgres = Postgres::new(&Credentials::read(&parts.credentials()?)?, Settings::default())?;
    let mut database = parts.database().await?;
    database.execute("drop table if exists bench_refused, bench_parents cascade; drop function if exists bench_refuse cascade").await?;
    load(&postgres, kind, &[write(0, false)]).await?;
    database.execute(kind.sql).await?;
    let mut took = [Duration::ZERO; 2];
    for (bad, took) in [0, bad].into_iter().zip(&mut took) {
        database.execute("truncate bench_refused; checkpoint").await?;
        let every = EVENTS / bad.max(1);
        let is_bad = |number| bad > 0 && number % every == every / 2;
        let events: Vec<_> = (0..EVENTS).map(|number| write(number, is_bad(number))).collect();
        let started = Instant::now();
        let refused = load(&postgres, kind, &events).await?;
        *took = started.elapsed();
        ensure!(refused as u64 == bad, "{refused} refused rows instead of {bad}");
    }
    database.execute("drop table if exists bench_refused, bench_parents cascade; drop function if exists bench_refuse cascade").await?;
    database.close().await?;
    #[allow(clippy::cast_precision_loss)] // counts of events are far below 2^52
    let per_second = |took: Duration| EVENTS as f64 / took.as_secs_f64();
    Ok(Comparison {
        name: format!("load with {bad} rows of {EVENTS} refused {}", kind.name),
        unit: "rows/s",
        ours: per_second(took[1]),
        reference: per_second(took[0]),
        reference_is: "the same load without them",
        details: BTreeMap::from([("seconds", took[1].as_secs_f64())]),
    })
}

fn write(number: u64, is_bad: bool) -> String {
    let mut event = String::new();
    write_event(&mut event, number);
    if is_bad { event.replace(r#""session_id":"#, r#""session_id":-"#) } else { event }
}

/// Parses and loads; answers how many rows were refused.
async fn load(postgres: &Postgres, kind: &Kind, events: &[String]) -> Result<usize> {
    let mut options = StreamOptions::default();
    if kind.is_merged {
        options.set("primaryKey", &json!("id"))?;
        options.set("deduplicate", &json!(true))?;
    }
    let mut batch = Batch::new("bench_refused", options.into())?;
    events.iter().try_for_each(|event| batch.push(event.as_bytes()))?;
    Ok(postgres.load(vec![batch], ISOLATE).await?.refused.len())
}
