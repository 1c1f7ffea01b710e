//! What never reaches a log. A process of its own, because it listens to all that this process
//! logs.

use std::{
    io::Write,
    sync::{Arc, Mutex},
};

use anyhow::Result;
use warehouse::{
    StreamOptions,
    bulk::{BulkMode, Stream},
    postgres::{Credentials, Postgres, Settings},
};

#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().expect("no holder panics").extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_value_of_a_row_is_logged_at_any_level() -> Result<()> {
    let lines = Lines::default();
    let writer = lines.clone();
    tracing_subscriber::fmt()
        .with_max_level(tracing::Level::TRACE)
        .with_writer(move || writer.clone())
        .init();
    // given a table that takes longer for a row than drivers report as slow, and tells about it
    let database = testkit::postgres().await?;
    database
        .query(
            "create table t (id bigint, name text); create function wait() returns trigger \
             language plpgsql as $$begin perform pg_sleep(1.1); raise notice 'got %', new.name; \
             raise warning 'got %', new.name; return new; end$$; \
             create trigger wait before insert on t for each row execute function wait()",
        )
        .await?;
    let credentials = Credentials::read(&database.credentials())?;
    let postgres = Postgres::new(&credentials, Settings::default())?;
    // when rows are stored and refused
    for mode in [BulkMode::Stream, BulkMode::Batch] {
        for id in ["1", "\"s3cret\"", "99999999999999999999"] {
            let options = Arc::new(StreamOptions::default());
            let mut stream = Stream::open(postgres.clone(), "t", mode, options)?;
            let event = format!(r#"{{"id": {id}, "name": "s3cret", "__sql_type_id": "bigint"}}"#);
            let _ = stream.consume(event.as_bytes()).await; // some are refused
            let _ = stream.complete().await;
        }
    }
    // then the log has neither their values nor the password
    let logged = lines.0.lock().expect("no holder panics").clone();
    let logged = String::from_utf8(logged)?;
    for secret in ["s3cret", "99999999999999999999"] {
        assert!(!logged.contains(secret), "{secret} in {logged}");
    }
    assert!(!logged.contains(&format!("password={}", database.password())));
    Ok(())
}
