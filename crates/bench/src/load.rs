//! Events waiting in Kafka → rows in PostgreSQL, beside psql moving the same typed rows.

use std::{
    collections::BTreeMap,
    fs,
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use sqlx::{Connection, Executor, PgConnection};

use crate::{
    parts::{Parts, number},
    process::Process,
    report::Comparison,
};

/// A load that takes longer is a failure, not a result.
const DEADLINE: Duration = Duration::from_secs(600);
/// Of so many events one repeats an earlier one of its batch.
const REPEAT_EVERY: u64 = 10;

/// Batch mode without a key, beside `\copy` of the same rows into a fresh table.
pub(crate) async fn plain(parts: &Parts, events: u64, batch_size: u64) -> Result<Comparison> {
    let options = format!(r#"mode: "batch", batchSize: {batch_size}, frequency: 0.0167"#);
    beside_copy(
        parts,
        "batch",
        &format!("load without key, batches of {batch_size}"),
        events,
        &options,
    )
    .await
}

/// A backlog of a stream topic, beside the same.
pub(crate) async fn streamed(parts: &Parts, events: u64) -> Result<Comparison> {
    beside_copy(parts, "stream", "stream, draining a backlog", events, r#"mode: "stream""#).await
}

/// Loads a little, so that what Kafka makes once, its topic of group offsets and ours of shares, is
/// there.
pub(crate) async fn warm_up(parts: &Parts) -> Result<()> {
    let options = r#"mode: "batch", frequency: 0.0167"#;
    load(parts, ("batch", "warm_up"), 1_000, options, |number| number).await?;
    let mut database = parts.database().await?;
    database.execute("drop table bench_warm_up").await?;
    Ok(database.close().await?)
}

async fn beside_copy(
    parts: &Parts,
    mode: &str,
    name: &str,
    events: u64,
    options: &str,
) -> Result<Comparison> {
    let loaded = load(parts, (mode, "plain"), events, options, |number| number).await?;
    let mut database = parts.database().await?;
    let rows = number(&mut database, "select count(*) from bench_plain").await;
    ensure!(rows == i64::try_from(events).ok(), "{rows:?} rows of {events} events");

    let file = Rows::export(parts, "select * from bench_plain")?;
    database.execute("create table bench_reference (like bench_plain)").await?;
    checkpoint(&mut database).await?;
    let reference = parts.psql(&format!("\\copy bench_reference from '{}'", file.path()))?;
    database.execute("drop table bench_reference, bench_plain").await?;
    database.close().await?;
    Ok(Comparison {
        name: name.to_owned(),
        unit: "rows/s",
        ours: per_second(events, loaded.took),
        reference: per_second(events, reference),
        reference_is: "psql \\copy of the same typed rows",
        details: loaded.details(),
    })
}

/// The same deduplicated by key with 10% repeats, beside `\copy` to a temporary table and
/// `insert … on conflict`, batch by batch.
pub(crate) async fn merged(parts: &Parts, events: u64, batch_size: u64) -> Result<Comparison> {
    let options = format!(
        r#"mode: "batch", batchSize: {batch_size}, frequency: 0.0167, deduplicate: true, primaryKey: "id""#
    );
    let repeated = |number: u64| {
        if number % REPEAT_EVERY == REPEAT_EVERY - 1 { number - REPEAT_EVERY / 2 } else { number }
    };
    let loaded = load(parts, ("batch", "merged"), events, &options, repeated).await?;
    let mut database = parts.database().await?;
    let expected = i64::try_from(events - events / REPEAT_EVERY)?;
    let rows = number(&mut database, "select count(*) from bench_merged").await;
    ensure!(rows == Some(expected), "{rows:?} rows instead of {expected}");

    // psql gets what is left of each batch after its repeats are gone, as our staging table does
    let batch = i64::try_from(batch_size)?;
    let last = i64::try_from(events)?;
    let mut files = Vec::new();
    for first in (0..last).step_by(usize::try_from(batch)?) {
        let select =
            format!("select * from bench_merged where id >= {first} and id < {}", first + batch);
        files.push(Rows::export(parts, &select)?);
    }
    database
        .execute("create table bench_reference (like bench_merged); alter table bench_reference add primary key (id)")
        .await?;
    checkpoint(&mut database).await?;
    let columns = column_list(&mut database).await?;
    let mut reference = Duration::ZERO;
    for file in &files {
        let script = format!(
            "create temporary table bench_batch (like bench_reference)\\;\n\\copy bench_batch from '{}'\ninsert into bench_reference select * from bench_batch on conflict (id) do update set {columns};",
            file.path()
        );
        reference += psql_file(parts, &script)?;
    }
    database.execute("drop table bench_reference, bench_merged").await?;
    database.close().await?;
    Ok(Comparison {
        name: format!("load deduplicated by key, 10% repeats, batches of {batch_size}"),
        unit: "rows/s",
        ours: per_second(events, loaded.took),
        reference: per_second(events, reference),
        reference_is: "psql \\copy to a temporary table and insert … on conflict",
        details: loaded.details(),
    })
}

struct Loaded {
    took: Duration,
    cpu_seconds: f64,
    peak_memory_mib: f64,
}

impl Loaded {
    fn details(&self) -> BTreeMap<&'static str, f64> {
        BTreeMap::from([
            ("seconds", self.took.as_secs_f64()),
            ("server_cpu_seconds", self.cpu_seconds),
            ("server_peak_memory_mib", self.peak_memory_mib),
        ])
    }
}

/// Fills a topic, starts bulkerapp and waits until its offsets row says that all is loaded. The
/// time counts from the start of the process.
async fn load(
    parts: &Parts,
    (mode, name): (&str, &str),
    events: u64,
    options: &str,
    key_of: impl Fn(u64) -> u64,
) -> Result<Loaded> {
    let destination = format!("bench{}", uuid::Uuid::new_v4().simple());
    let topic = format!("in.id.{destination}.m.{mode}.t.bench_{name}");
    parts.create_topic(&topic).await?;
    eprintln!("filling {topic} with {events} events");
    parts.fill_topic(&topic, events, "snappy", key_of)?;
    let mut database = parts.database().await?;
    checkpoint(&mut database).await?;

    let started = Instant::now();
    let server: Process = parts.bulkerapp(&destination, options, testkit::free_port()?, true)?;
    let sql = format!("select next_offset from public.bulker_offsets where topic = '{topic}'");
    let goal = i64::try_from(events)?;
    loop {
        tokio::time::sleep(Duration::from_millis(20)).await;
        // the table is not there before bulkerapp makes it
        let row: Option<(i64,)> =
            sqlx::query_as(&sql).fetch_optional(&mut database).await.unwrap_or(None);
        if row.is_some_and(|(offset,)| offset >= goal) {
            break;
        }
        ensure!(started.elapsed() < DEADLINE, "not loaded within {} s", DEADLINE.as_secs());
    }
    let took = started.elapsed();
    let loaded = Loaded {
        took,
        cpu_seconds: server.cpu_seconds()?,
        peak_memory_mib: server.peak_memory_mib()?,
    };
    server.stop()?;
    parts.delete_topic(&topic).await?;
    Ok(loaded)
}

/// Rows in a file of their own, in COPY's text format; gone when dropped.
struct Rows(PathBuf);

impl Rows {
    fn export(parts: &Parts, select: &str) -> Result<Rows> {
        let file = std::env::temp_dir().join(format!("bench-{}.copy", uuid::Uuid::new_v4()));
        let rows = Rows(file);
        parts.psql(&format!("\\copy ({select}) to '{}'", rows.path()))?;
        Ok(rows)
    }

    fn path(&self) -> String {
        self.0.display().to_string()
    }
}

impl Drop for Rows {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0); // a temporary file; the system cleans up what stays
    }
}

fn psql_file(parts: &Parts, script: &str) -> Result<Duration> {
    let file = std::env::temp_dir().join(format!("bench-{}.sql", uuid::Uuid::new_v4()));
    fs::write(&file, format!("begin;\n{}\ncommit;\n", script.replace("\\;", ";")))?;
    let started = Instant::now();
    let output = std::process::Command::new("psql")
        .args(["-X", "-q", "-v", "ON_ERROR_STOP=1", "-d", &parts.postgres_url, "-f"])
        .arg(&file)
        .output()
        .context("start psql")?;
    let took = started.elapsed();
    fs::remove_file(&file)?;
    ensure!(output.status.success(), "psql failed: {}", String::from_utf8_lossy(&output.stderr));
    Ok(took)
}

/// `"a" = excluded."a", …` over all columns of the reference table.
async fn column_list(database: &mut PgConnection) -> Result<String> {
    let columns: Vec<(String,)> = sqlx::query_as(
        "select format('%I = excluded.%I', attname, attname) from pg_attribute \
         where attrelid = 'bench_reference'::regclass and attnum > 0 and not attisdropped",
    )
    .fetch_all(database)
    .await?;
    Ok(columns.into_iter().map(|(column,)| column).collect::<Vec<_>>().join(", "))
}

/// Both sides start with clean buffers.
async fn checkpoint(database: &mut PgConnection) -> Result<()> {
    database.execute("checkpoint").await?;
    Ok(())
}

#[allow(clippy::cast_precision_loss)] // counts of events are far below 2^52
fn per_second(events: u64, took: Duration) -> f64 {
    events as f64 / took.as_secs_f64()
}
