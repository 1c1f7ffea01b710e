//! A load and the ledger: they change together or not at all.

use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::json;
use testkit::{
    Database,
    proxy::{Event, PostgresProxy, Then},
    wait_until,
};
use uuid::Uuid;
use warehouse::{
    Batch, EventChange, EventState, Fence, LedgerChanges, LoadError, LoadReport, Origin,
    PartitionKey, Position, Tally,
    postgres::{Credentials, Ledger, Postgres, Settings},
};

use crate::loader::{ISOLATE, Loader, batch, options};

/// Below the 30 seconds that a load waits for a lock.
const LIMIT: Duration = Duration::from_secs(20);

/// A ledger with one position.
pub(crate) struct Account {
    ledger: Ledger,
    key: PartitionKey,
    position: Position,
}

impl Account {
    /// Opens the ledger of a destination and inserts a position at 0.
    pub(crate) async fn open(postgres: &Postgres) -> Result<Account> {
        let ledger = Ledger::open(postgres).await?;
        let key = PartitionKey { cluster_id: "c".to_owned(), topic: "t".to_owned(), partition: 0 };
        let topic_id = Some(Uuid::from_u128(1));
        let position = Position { next_offset: 0, epoch: 1, began: 0, topic_id };
        assert!(ledger.insert(&key, &position).await?, "there was none before");
        Ok(Account { ledger, key, position })
    }

    /// What a load believes of it.
    pub(crate) fn fence(&self) -> Fence {
        let (key, position) = (self.key.clone(), self.position.clone());
        Fence { key, position, states: Vec::new() }
    }

    /// How a load that reports this moves it.
    pub(crate) fn changes(&mut self, report: &LoadReport) -> LedgerChanges {
        let events = report.counts.loaded + report.counts.refused;
        self.position.next_offset += i64::try_from(events).expect("a test has few events");
        LedgerChanges {
            next_offset: self.position.next_offset,
            tally: Tally { received: i64::try_from(events).expect("few"), ..Tally::default() },
            ..LedgerChanges::default()
        }
    }

    /// Loads under it; answers what the load reported.
    pub(crate) async fn load(
        &mut self,
        postgres: &Postgres,
        batches: Vec<Batch>,
    ) -> Result<LoadReport, LoadError> {
        let staged = postgres.stage(batches, Some(self.fence()), ISOLATE).await?;
        let changes = self.changes(staged.report());
        staged.commit(&changes).await
    }

    /// Where it stands in the database.
    pub(crate) async fn next_offset(&self) -> Result<i64> {
        Ok(self.ledger.read(&self.key).await?.expect("it was inserted").next_offset)
    }
}

async fn rows(database: &Database) -> Result<String> {
    let rows = database.query("select count(*) from t").await?;
    Ok(rows[0][0].clone().unwrap_or_default())
}

#[tokio::test(flavor = "multi_thread")]
async fn several_tables_and_options_move_one_position() -> Result<()> {
    // given two tables and a batch with options of its own, one row in each of which the database
    // refuses
    let loader = Loader::new().await?;
    loader
        .database
        .query("create table t (id bigint, n smallint); create table u (id bigint, n smallint)")
        .await?;
    let event = |id: usize, n: i64| json!({"id": id, "n": n}).to_string();
    let first = batch(&json!({}), &[event(1, 1), event(2, 70_000)]);
    let second =
        batch(&json!({"primaryKey": "id", "deduplicate": true}), &[event(3, 1), event(3, 2)]);
    let mut third = Batch::new("u", options(&json!({})))?;
    third.push(event(5, -70_000).as_bytes())?;
    third.push(event(6, 1).as_bytes())?;
    // when they are staged under one position
    let mut account = Account::open(&loader.postgres).await?;
    let fence = Some(account.fence());
    let staged = loader.postgres.stage(vec![first, second, third], fence, ISOLATE).await?;
    // then all refusals are known and nothing is visible
    let refused: Vec<_> =
        staged.report().refused.iter().map(|row| row.batch * 100 + row.row).collect();
    assert_eq!(refused, [1, 200]);
    assert_eq!(rows(&loader.database).await?, "0");
    // and with the commit the position moved once, and the good rows are there
    let changes = account.changes(staged.report());
    let counts = staged.commit(&changes).await?.counts;
    assert_eq!((counts.loaded, counts.merged, counts.refused), (3, 1, 2));
    assert_eq!(account.next_offset().await?, 5);
    assert_eq!(loader.number("select received from bulker_offsets where topic = 't'").await?, 5);
    assert_eq!(loader.number("select count(*) from t").await?, 2);
    assert_eq!(loader.number("select count(*) from u").await?, 1);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_position_that_is_not_where_it_was_loads_nothing() -> Result<()> {
    let loader = Loader::new().await?;
    let mut account = Account::open(&loader.postgres).await?;
    let stale = account.fence();
    let events = [json!({"id": 1}).to_string()];
    account.load(&loader.postgres, vec![batch(&json!({}), &events)]).await?;
    let load = loader.postgres.stage(vec![batch(&json!({}), &events)], Some(stale), ISOLATE);
    assert!(matches!(load.await, Err(LoadError::Fenced)));
    assert_eq!(loader.number("select count(*) from t").await?, 1);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn staged_rows_that_are_dropped_are_gone_and_leave_no_transaction_behind() -> Result<()> {
    // given rows that are staged
    let loader = Loader::new().await?;
    let mut account = Account::open(&loader.postgres).await?;
    let events = [json!({"id": 1}).to_string()];
    let batches = vec![batch(&json!({}), &events)];
    let staged = loader.postgres.stage(batches, Some(account.fence()), ISOLATE).await?;
    // when the load is given up, and the next one takes a connection
    drop(staged);
    account.load(&loader.postgres, vec![batch(&json!({}), &events)]).await?;
    // then only the rows of the next one are there
    assert_eq!(loader.number("select count(*) from t").await?, 1);
    assert_eq!(account.next_offset().await?, 1);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn staged_rows_that_are_dropped_let_the_loader_go_on_that_waits_for_their_position()
-> Result<()> {
    // given rows that are staged, and another loader that waits for the lock of their position
    let loader = Loader::new().await?;
    let mut account = Account::open(&loader.postgres).await?;
    let event = |id: u64| [json!({"id": id}).to_string()];
    let first = vec![batch(&json!({}), &event(1))];
    let staged = loader.postgres.stage(first, Some(account.fence()), ISOLATE).await?;
    let other = tokio::spawn({
        let (postgres, fence) = (loader.postgres.clone(), Some(account.fence()));
        let second = vec![batch(&json!({}), &event(2))];
        async move { postgres.stage(second, fence, ISOLATE).await }
    });
    let waiting = "select count(*) from pg_stat_activity where datname = current_database() \
                   and wait_event_type = 'Lock' and query like '%bulker_offsets%for update%'";
    wait_until(LIMIT, async || loader.number(waiting).await.is_ok_and(|n| n == 1)).await?;
    assert!(!other.is_finished(), "the position is locked");
    // when the first load is given up
    drop(staged);
    // then the other one has the position, unmoved, and commits
    let staged =
        tokio::time::timeout(LIMIT, other).await.context("the lock is still held")???;
    let changes = account.changes(staged.report());
    staged.commit(&changes).await?;
    assert_eq!(account.next_offset().await?, 1);
    assert_eq!(loader.number("select sum(id) from t").await?, 2, "only the other one's row");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_answer_to_commit_is_unknown_and_the_ledger_says_how_it_went() -> Result<()> {
    for (lost, is_committed) in
        [(Event::BeforeCommitForwarded, false), (Event::BeforeCommitAnswer, true)]
    {
        // given rows that are staged through a connection that breaks at COMMIT
        let database = testkit::postgres().await?;
        let proxy = PostgresProxy::start(database.host(), database.port()).await?;
        let mut credentials = database.credentials();
        (credentials["host"], credentials["port"]) = (proxy.host().into(), proxy.port().into());
        let postgres = Postgres::new(&Credentials::read(&credentials)?, Settings::default())?;
        let mut account = Account::open(&postgres).await?;
        let events = [json!({"id": 1}).to_string()];
        let batches = vec![batch(&json!({}), &events)];
        let staged = postgres.stage(batches, Some(account.fence()), ISOLATE).await?;
        proxy.on(lost, |_| Then::Cut);
        // when they are committed
        let changes = account.changes(staged.report());
        let committed = staged.commit(&changes).await;
        // then the loader is told that it cannot know, and to try again after a look at the ledger
        let error = committed.expect_err("the answer was lost");
        assert!(matches!(error, LoadError::CommitUnknown { .. }), "{lost:?}: {error}");
        assert!(error.is_retriable());
        // and the ledger has moved exactly if the rows are there
        proxy.clear();
        let settled =
            account.ledger.read_settled(&account.key).await?.context("it was inserted")?;
        assert_eq!(settled.next_offset, i64::from(is_committed), "{lost:?}");
        assert_eq!(rows(&database).await?, u8::from(is_committed).to_string(), "{lost:?}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_letter_of_an_older_copy_does_not_decide_on_an_event_that_waits() -> Result<()> {
    // given an event that was refused twice and waits
    let loader = Loader::new().await?;
    let mut account = Account::open(&loader.postgres).await?;
    let staged = loader.postgres.stage(Vec::new(), Some(account.fence()), ISOLATE).await?;
    let origin = Origin {
        cluster: "c".to_owned(),
        topic: "t".to_owned(),
        topic_id: None,
        partition: 0,
        offset: 7,
    };
    let waiting = EventChange {
        origin: origin.clone(),
        state: EventState::Refused,
        refusals: 2,
        reason: "23503".to_owned(),
    };
    let mut changes = account.changes(staged.report());
    changes.tally.waiting = 1;
    changes.events.push(waiting);
    staged.commit(&changes).await?;
    let state = async || account.ledger.event_states(std::slice::from_ref(&origin)).await;
    let dead = "select dead * 10 + waiting from bulker_offsets where topic = 't'";
    // when a letter was written of the copy of its first refusal
    account.ledger.dead_letter(&[(origin.clone(), 1)], "cannot_return").await?;
    // then it waits as before
    assert_eq!(state().await?, [Some(EventState::Refused)]);
    assert_eq!(loader.number(dead).await?, 1);
    // and the letter of the copy that waits decides
    account.ledger.dead_letter(&[(origin.clone(), 2)], "cannot_return").await?;
    assert_eq!(state().await?, [Some(EventState::Dead)]);
    assert_eq!(loader.number(dead).await?, 10);
    Ok(())
}
