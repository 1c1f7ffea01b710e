//! A batch that is larger than the memory it may take. A process of its own, so that its memory is
//! this test's.
//!
//! `BATCH_MB` makes the batch larger: `make memory` loads 2 GB.

use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use warehouse::{
    DiskLimit, MemoryLimit, StreamOptions,
    bulk::{BatchStream, BulkMode},
    postgres::{Credentials, Postgres, Settings},
};

const MEBIBYTE: usize = 1 << 20;
/// Bytes of each long text.
const TEXT: usize = 100 * 1024;
/// What the whole process may take, the limit of the batch included.
const LIMIT_MB: usize = 400;

/// The most memory that this process ever had, in MB.
fn peak_memory_mb() -> Result<usize> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).context("no VmHWM")?;
    let kilobytes: usize = line.split_whitespace().nth(1).context("no number")?.parse()?;
    Ok(kilobytes / 1024)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_beyond_its_limit_loads_in_bounded_memory() -> Result<()> {
    let megabytes: usize = match std::env::var("BATCH_MB") {
        Ok(megabytes) => megabytes.parse()?,
        Err(_) => 600,
    };
    let database = testkit::postgres().await?;
    let credentials = Credentials::read(&database.credentials())?;
    let postgres = Postgres::new(&credentials, Settings::default())?;
    let options = Arc::new(StreamOptions::default());
    let limit = MemoryLimit {
        bytes: 128 * MEBIBYTE,
        folder: std::env::temp_dir(),
        disk: DiskLimit::default(),
    };
    let mut stream =
        BatchStream::new(postgres, "t", BulkMode::Batch, options)?.with_memory_limit(limit);
    // given a batch of few columns with long texts, larger than all the memory that it may take
    let count = megabytes * MEBIBYTE / TEXT;
    let long = "a long text, and more of it. ".repeat(TEXT / 29);
    for id in 0..count {
        let event = format!(r#"{{"id":{id},"text":"{id} {long}"}}"#);
        stream.consume(event.as_bytes())?;
    }
    // when it is loaded
    stream.complete().await?;
    // then all of it is there, and the process stayed small
    let rows = database.query("select count(*), sum(length(text))::bigint from t").await?;
    ensure!(rows[0][0] == Some(count.to_string()), "{rows:?}");
    let stored: usize = rows[0][1].as_deref().context("no sum")?.parse()?;
    ensure!(stored >= count * long.len(), "{stored} characters");
    let peak = peak_memory_mb()?;
    println!("{megabytes} MB in {count} events, peak memory of the process {peak} MB");
    ensure!(peak < LIMIT_MB, "{peak} MB");
    Ok(())
}
