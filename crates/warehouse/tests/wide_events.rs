//! Events that bring ever new names. A process of its own, so that its memory is this test's.

use anyhow::{Context, Result, ensure};
use warehouse::{Batch, MicroBatch, StreamOptions};

/// What parsing an event may take, in bytes for each of its own.
const TIMES: usize = 150;

/// The most memory that this process ever had, in bytes.
fn peak_bytes() -> Result<usize> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).context("no VmHWM")?;
    let kilobytes: usize = line.split_whitespace().nth(1).context("no number")?.parse()?;
    Ok(kilobytes * 1024)
}

/// `"0":1,"1":1,…`
fn fields(from: usize, count: usize, value: &str) -> String {
    let fields: Vec<_> = (from..from + count).map(|n| format!("\"{n:x}\":{value}")).collect();
    fields.join(",")
}

#[test]
fn an_event_costs_what_it_holds_and_a_batch_of_them_ends() -> Result<()> {
    let long = "k".repeat(20_000);
    let hinted: Vec<_> =
        (0..30_000).map(|n| format!("\"{n:x}\":1,\"__sql_type_{n:x}\":\"text\"")).collect();
    let events = [
        // one long key over many short ones, over objects, over hints
        format!("{{\"{long}\":{{{}}}}}", fields(0, 55_000, "1")),
        format!("{{\"{long}\":{{{}}}}}", fields(0, 55_000, "{\"a\":{}}")),
        format!("{{\"{long}\":{{{}}}}}", hinted.join(",")),
    ];
    for event in &events {
        let before = peak_bytes()?;
        let mut batch = Batch::new("t", StreamOptions::default().into())?;
        batch.push(event.as_bytes())?;
        let grown = peak_bytes()? - before;
        let start = &event[20_000..20_030];
        ensure!(grown < TIMES * event.len(), "{grown} bytes for {} of …{start}", event.len());
    }
    // when each event has names of its own
    let mut batch = Batch::new("t", StreamOptions::default().into())?;
    let mut together = MicroBatch::new("t", &StreamOptions::default())?;
    let mut pushed = 0;
    while !batch.is_full() || !together.is_full() {
        let event = format!("{{{}}}", fields(pushed * 5_000, 5_000, "1"));
        if !batch.is_full() {
            batch.push(event.as_bytes())?;
        }
        if !together.is_full() {
            together.push(event.as_bytes())?;
        }
        pushed += 1;
        ensure!(pushed < 100, "a batch takes any number of columns");
    }
    // then it has as many as it says
    let sizes = [batch.byte_size(), together.byte_size()];
    ensure!(sizes.iter().all(|bytes| *bytes < 48 << 20), "{sizes:?} bytes");
    let peak = peak_bytes()?;
    ensure!(peak < 256 << 20, "{peak} bytes");
    Ok(())
}
