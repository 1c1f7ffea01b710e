//! The bulkerapp process: read the settings, start, serve, stop.

use std::{ffi::OsString, process::ExitCode};

use anyhow::{Context, Result};
use appbase::{config::Environment, http::probe, telemetry};
use bulkerapp::{
    commands::Command,
    config::{Config, PREFIX},
    service,
};

/// Memory is taken on one thread and given back on another all the time: requests on a worker's,
/// records on librdkafka's. The system's allocator takes a lock for that.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// The JSON scanner takes about 16 KiB of stack for each of the levels that an event may be nested.
const THREAD_STACK: usize = 4 << 20;

fn main() -> ExitCode {
    match start() {
        Ok(code) => code,
        Err(error) => {
            eprintln!("bulkerapp: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn start() -> Result<ExitCode> {
    let mut arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
    let is_healthcheck = arguments.first().is_some_and(|first| first == "healthcheck");
    if is_healthcheck {
        arguments.remove(0);
    }
    let command = Command::take(&mut arguments)?;
    let environment = Environment::of_process(PREFIX)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .thread_stack_size(THREAD_STACK)
        .build()
        .context("start the runtime")?;
    let parsed = Config::parse(&environment, &arguments)?;
    if is_healthcheck {
        let (listens_on, port) = (parsed.config.server.listen_http, parsed.config.app.http_port);
        let is_healthy = runtime.block_on(probe(listens_on, port, "/health"));
        return Ok(if is_healthy { ExitCode::SUCCESS } else { ExitCode::FAILURE });
    }
    parsed.config.validate()?;
    telemetry::init(telemetry::LogFormat::of(&parsed.config.app.log_format));
    if let Some(command) = command {
        let code = runtime.block_on(command.run(&parsed.config, &environment))?;
        runtime.shutdown_background();
        return Ok(code);
    }
    Config::log_ignored(&parsed);
    runtime.block_on(service::run(&parsed.config, &environment))?;
    // threads that still wait for Kafka must not hold the process
    runtime.shutdown_background();
    Ok(ExitCode::SUCCESS)
}
