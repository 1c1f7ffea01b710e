//! `make bench`: what we do, beside a reference that does the bare minimum, on the same parts, in
//! the same run. Prints a table and writes JSON. A figure without its reference and its machine is
//! not a result.

mod events;
mod http_load;
mod intake;
mod load;
mod neighbours;
mod parts;
mod process;
mod refused;
mod report;
mod stream;
mod topics;

use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};

use crate::{parts::Parts, report::Report};

/// Measures bulkerapp beside references.
#[derive(Debug, Parser)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Runs the benchmarks on the parts of `TESTKIT_KAFKA` and `TESTKIT_POSTGRES_URL`.
    Run {
        /// The release build of bulkerapp.
        #[arg(long)]
        bulkerapp: PathBuf,
        /// Where the JSON goes.
        #[arg(long)]
        output: PathBuf,
        /// Events of the load benchmarks.
        #[arg(long, default_value_t = 1_000_000)]
        events: u64,
        /// Seconds of each intake benchmark.
        #[arg(long, default_value_t = 10)]
        seconds: u64,
        /// How often everything is measured; the median counts.
        #[arg(long, default_value_t = 3)]
        rounds: u32,
        /// How many topics an instance is given, one after the other.
        #[arg(long, value_delimiter = ',', default_value = "1000,5000")]
        topics: Vec<usize>,
        /// Only these: `load`, `merge`, `refused`, `stream`, `topics`, `neighbours`, `intake`.
        #[arg(long, value_delimiter = ',')]
        only: Vec<String>,
    },
    /// The reference of the intake benchmark: an axum handler that reads the body and answers.
    BareHandler {
        #[arg(long)]
        port: u16,
    },
}

#[tokio::main]
async fn main() -> Result<()> {
    match Arguments::parse().command {
        Command::BareHandler { port } => intake::serve_bare_handler(port).await,
        Command::Run { bulkerapp, output, events, seconds, rounds, topics, only } => {
            let parts = Parts::from_environment(bulkerapp)?;
            let wanted = |name: &str| only.is_empty() || only.iter().any(|only| only == name);
            let mut report = Report::new()?;
            load::warm_up(&parts).await?;
            for round in 1..=rounds {
                eprintln!("round {round} of {rounds}");
                if wanted("load") {
                    for batch_size in [100_000, 10_000] {
                        report.add(load::plain(&parts, events, batch_size).await?);
                    }
                }
                if wanted("merge") {
                    report.add(load::merged(&parts, events, 100_000).await?);
                }
                if wanted("refused") {
                    for kind in &refused::KINDS {
                        for bad in [10, 1_000] {
                            report.add(refused::compare(&parts, kind, bad).await?);
                        }
                    }
                }
                if wanted("stream") {
                    report.add(stream::latency(&parts, 500).await?);
                    report.add(load::streamed(&parts, events).await?);
                }
                // what thousands of topics cost hardly varies, and takes minutes
                if wanted("topics") && round == 1 {
                    for count in &topics {
                        report.add(topics::many(&parts, *count).await?);
                    }
                }
                if wanted("neighbours") && round == 1 {
                    report.add(neighbours::big_beside_small(&parts, events).await?);
                }
                if wanted("intake") {
                    for connections in [64, 256] {
                        report.add(intake::post(&parts, connections, seconds).await?);
                    }
                }
            }
            let json = serde_json::to_string_pretty(&report).context("report as JSON")?;
            std::fs::write(&output, json + "\n")
                .with_context(|| format!("write {}", output.display()))?;
            println!("{report}");
            Ok(())
        }
    }
}
