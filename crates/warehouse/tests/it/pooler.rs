//! Everything through a pooler that gives each transaction another session.

use anyhow::Result;
use serde_json::json;
use testkit::Pooler;
use warehouse::{
    bulk::{BulkMode, Stream},
    postgres::{Credentials, Postgres, Settings},
};

use crate::{
    ledger::Account,
    loader::{FAIL, ISOLATE, batch, options},
};

#[tokio::test(flavor = "multi_thread")]
async fn loading_works_through_a_pooler_in_transaction_mode() -> Result<()> {
    // given a pooler with fewer sessions than we open connections
    let database = testkit::postgres().await?;
    let pooler = Pooler::start(&database, 2).await?;
    let mut credentials = database.credentials();
    (credentials["host"], credentials["port"]) = ("127.0.0.1".into(), pooler.port().into());
    let postgres = Postgres::new(&Credentials::read(&credentials)?, Settings::default())?;
    let events = |from: i64| -> Vec<String> {
        (from..from + 100).map(|id| json!({"id": id, "n": id % 7}).to_string()).collect()
    };
    // plain, merged, under a ledger, with refused rows, with new columns and a key on a table with
    // rows
    postgres.load(vec![batch(&json!({}), &events(0))], ISOLATE).await?;
    let keyed = json!({"primaryKey": "id", "deduplicate": true});
    let mut account = Account::open(&postgres).await?;
    account.load(&postgres, vec![batch(&keyed, &events(50))]).await?;
    database.query("alter table t add check (n < 6)  not valid").await?;
    let report = account.load(&postgres, vec![batch(&keyed, &events(200))]).await?;
    let bad = (200..300).filter(|id| id % 7 == 6).count();
    assert_eq!(report.refused.len(), bad);
    let mut wide = json!({"id": 1000, "new": "x"});
    wide["at"] = json!("2026-11-24T00:00:00Z");
    postgres.load(vec![batch(&keyed, &[wide.to_string()])], FAIL).await?;
    // single events, and rows that take the place of others
    let opened = Stream::open(postgres.clone(), "t", BulkMode::Stream, options(&keyed));
    let mut stream = opened?;
    stream.consume(json!({"id": 1001, "other": true}).to_string().as_bytes()).await?;
    stream.complete().await?;
    let mut replacing =
        Stream::open(postgres.clone(), "r", BulkMode::ReplaceTable, options(&json!({})))?;
    replacing.consume(br#"{"id": 1}"#).await?;
    replacing.complete().await?;
    let many: Vec<_> = (0..8)
        .map(|number| {
            let (postgres, from) = (postgres.clone(), 2000 + number * 100);
            let batch = batch(&keyed, &events(from));
            tokio::spawn(async move { postgres.load(vec![batch], ISOLATE).await })
        })
        .collect();
    let mut loaded = 0;
    for load in many {
        let counts = load.await??.counts;
        loaded += counts.loaded + counts.refused;
    }
    assert_eq!(loaded, 800);
    let count = database.query("select count(*), count(*) filter (where id < 300) from t").await?;
    let stored: i64 = count[0][0].as_deref().unwrap_or_default().parse()?;
    let bad_of_many = (2000..2800).filter(|id| id % 7 == 6).count();
    assert_eq!(stored, i64::try_from(150 + 100 - bad + 2 + 800 - bad_of_many)?);
    assert_eq!(account.next_offset().await?, 200);
    Ok(())
}
