//! A case, step by step: each step is one stream.

use std::{collections::BTreeMap, sync::Arc};

use serde_json::{Map, Value};
use warehouse::{
    LoadOptions, MicroBatch, Refusals, RowsOf, SchemaChanges, StreamOptions,
    bulk::{BulkMode, Stream, StreamError},
    postgres::{Postgres, quote_ident},
};

use crate::{
    case::{Case, Step},
    compare,
    database::{SCHEMA, destination},
    inspect::Inspector,
};

/// How the events of a stream of mode `stream` are loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    /// As a stream.
    OneByOne,
    /// In one load, which has to come to the same.
    Together,
}

/// Runs all steps in a fresh database; the answer is the first difference.
pub(crate) async fn run(case: &Case, way: Way) -> Result<(), String> {
    let database = testkit::postgres().await.map_err(|error| format!("{error:#}"))?;
    let in_database = |error: sqlx::Error| error.to_string();
    let mut inspector = Inspector::connect(&database.url()).await.map_err(in_database)?;
    let schema = quote_ident(SCHEMA);
    inspector.execute(&format!("create schema {schema}")).await.map_err(in_database)?;
    for sql in &case.preexisting_sql {
        inspector.execute(&sql.replace("{{schema}}", &schema)).await.map_err(in_database)?;
    }
    let destination = destination(&database)?;
    for (number, step) in case.steps.iter().enumerate() {
        let result = run_step(case, step, way, &destination, &mut inspector).await;
        result.map_err(|difference| format!("step {}: {difference}", number + 1))?;
    }
    destination.close().await;
    Ok(())
}

/// What a stream did with its events.
#[derive(Default)]
struct Outcome {
    /// Errors of events, by index.
    refused: BTreeMap<usize, String>,
    /// The first error of any other call.
    failed: Option<String>,
    state: Option<Value>,
}

async fn run_step(
    case: &Case,
    step: &Step,
    way: Way,
    destination: &Postgres,
    inspector: &mut Inspector,
) -> Result<(), String> {
    let options = step.options.as_ref().unwrap_or(&case.options);
    let mode = step.mode.as_deref().unwrap_or(&case.mode);
    let together = way == Way::Together && mode == "stream";
    let outcome = match together {
        true => play_together(case, step, options, destination).await?,
        false => play(case, step, mode, options, destination).await?,
    };
    expect_errors(step, &outcome)?;
    // a load keeps no account of a stream
    if let Some(expected) = step.expect_state.as_ref().filter(|_| !together) {
        let state = outcome.state.ok_or("state: there is no stream")?;
        compare::state(expected, &state)?;
    }
    let given_namespace = options.get("namespace").and_then(Value::as_str);
    let schema = step.expect_namespace.as_deref().or(given_namespace).unwrap_or(SCHEMA);
    let table = step.expect_table.as_deref().unwrap_or(&case.table);
    compare::table(step, inspector, schema, table).await
}

/// Creates the stream, feeds it, and ends it. The error is one of the runner, not of the stream.
async fn play(
    case: &Case,
    step: &Step,
    mode: &str,
    options: &Map<String, Value>,
    destination: &Postgres,
) -> Result<Outcome, String> {
    let mut outcome = Outcome::default();
    let mut parsed = StreamOptions::default();
    for (key, value) in options {
        if let Err(error) = parsed.set(key, value) {
            outcome.failed = Some(error.to_string());
            return Ok(outcome);
        }
    }
    let mode: BulkMode = match mode.parse() {
        Ok(mode) => mode,
        Err(error) => {
            outcome.failed = Some(full_text(&error));
            return Ok(outcome);
        }
    };
    let stream = Stream::open(destination.clone(), &case.table, mode, Arc::new(parsed));
    let mut stream = match stream {
        Ok(stream) => stream,
        Err(error) => {
            outcome.failed = Some(error.to_string());
            return Ok(outcome);
        }
    };
    for (index, line) in step.lines()?.iter().enumerate() {
        if let Err(error) = stream.consume(line).await {
            outcome.refused.insert(index, full_text(&error));
            if !step.continue_on_error {
                break;
            }
        }
    }
    if step.abort {
        stream.abort();
    } else if let Err(error) = stream.complete().await {
        outcome.failed = Some(full_text(&error));
    }
    outcome.state = Some(serde_json::to_value(stream.state()).map_err(|error| error.to_string())?);
    Ok(outcome)
}

/// Loads the events of a stream in one transaction.
async fn play_together(
    case: &Case,
    step: &Step,
    options: &Map<String, Value>,
    destination: &Postgres,
) -> Result<Outcome, String> {
    let mut outcome = Outcome::default();
    let mut parsed = StreamOptions::default();
    let set = options.iter().try_for_each(|(key, value)| parsed.set(key, value));
    let micro_batch = set.and_then(|()| MicroBatch::new(&case.table, &parsed));
    let mut micro_batch = match micro_batch {
        Ok(micro_batch) => micro_batch,
        Err(error) => {
            outcome.failed = Some(error.to_string());
            return Ok(outcome);
        }
    };
    let mut event_of = BTreeMap::new();
    for (index, line) in step.lines()?.iter().enumerate() {
        match micro_batch.push(line) {
            Ok(place) => drop(event_of.insert((place.batch, place.row), index)),
            Err(error) => drop(outcome.refused.insert(index, error.to_string())),
        }
        if !step.continue_on_error && !outcome.refused.is_empty() {
            break;
        }
    }
    let load = LoadOptions {
        refusals: Refusals::Isolate,
        schema_changes: SchemaChanges::BeforeLoad,
        rows: RowsOf::Events,
    };
    match destination.load(micro_batch.into_batches(), load).await {
        Ok(report) => outcome.refused.extend(report.refused.into_iter().map(|refused| {
            let text = format!("{}: {}", refused.error, refused.error.full_text);
            (event_of[&(refused.batch, refused.row)], text)
        })),
        Err(error) => outcome.failed = Some(full_text(&StreamError::from(error))),
    }
    Ok(outcome)
}

fn expect_errors(step: &Step, outcome: &Outcome) -> Result<(), String> {
    if step.continue_on_error {
        let expected: Vec<_> = step.expect_consume_errors.keys().cloned().collect();
        let refused: Vec<_> = outcome.refused.keys().map(ToString::to_string).collect();
        if expected != refused {
            return Err(format!("refused events: expected {expected:?}, found {refused:?}"));
        }
        for (expected, error) in step.expect_consume_errors.values().zip(outcome.refused.values()) {
            contains(expected, error)?;
        }
    }
    let first_refused = outcome.refused.values().next().filter(|_| !step.continue_on_error);
    match (&step.expect_error, first_refused.or(outcome.failed.as_ref())) {
        (None, None) => Ok(()),
        (None, Some(error)) => Err(format!("error: expected none, found {error}")),
        (Some(expected), None) => Err(format!("error: expected {expected:?}, found none")),
        (Some(expected), Some(error)) => contains(expected, error),
    }
}

fn contains(expected: &str, error: &str) -> Result<(), String> {
    if error.contains(expected) {
        return Ok(());
    }
    Err(format!("error: expected {expected:?}, found {error:?}"))
}

/// The error's own text and the database's words, which it keeps apart.
fn full_text(error: &StreamError) -> String {
    let mut text = error.to_string();
    if let StreamError::Load(error) = error
        && let Some(server) = error.server_error()
    {
        text.push_str(": ");
        text.push_str(&server.full_text);
    }
    text
}
