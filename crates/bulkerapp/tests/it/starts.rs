//! Where a run starts when something happened outside: resets, restores, other topics, other
//! owners.

use anyhow::{Context, Result, ensure};
use testkit::{Database, Kafka, Topic, wait_until};

use crate::app::{App, PATIENCE, Setup, assert_exactly_once, events, loaded_to};

/// A topic with the events `0..count`, loaded, and the loader stopped.
struct Loaded {
    kafka: Kafka,
    database: Database,
    setup: Setup,
    topic: Topic,
}

async fn loaded(count: u64) -> Result<Loaded> {
    let loaded = unloaded(count).await?;
    let app = loaded.setup.start().await?;
    loaded_to(&loaded.database, loaded.topic.name(), i64::try_from(count)?).await?;
    app.stop().await?;
    Ok(loaded)
}

async fn unloaded(count: u64) -> Result<Loaded> {
    let (kafka, database) = (testkit::kafka().await?, testkit::postgres().await?);
    let setup = Setup::new(&kafka, &database);
    let topic = kafka.adopt(setup.topic("t"));
    kafka.create_topic(topic.name(), 1, 1, &[]).await?;
    kafka.produce_all(topic.name(), 0, events(0..count)).await?;
    Ok(Loaded { kafka, database, setup, topic })
}

impl Loaded {
    async fn more(&self, from: u64, to: u64) -> Result<()> {
        self.kafka.produce_all(self.topic.name(), 0, events(from..to)).await
    }

    async fn commit(&self, offset: i64, metadata: &str) -> Result<()> {
        self.kafka.commit(self.topic.name(), self.topic.name(), 0, offset, metadata).await
    }

    async fn committed(&self) -> Result<Option<i64>> {
        let committed = self.kafka.committed(self.topic.name(), self.topic.name(), 0).await?;
        Ok(committed.map(|committed| committed.offset))
    }

    async fn ids(&self) -> Result<String> {
        let sql = "select string_agg(id || 'x' || n, ' ' order by id) from (select id, count(*) n from t group by id) c";
        self.database.value(sql).await
    }

    async fn start(&self) -> Result<App> {
        self.setup.start().await
    }

    async fn loaded_to(&self, offset: i64) -> Result<()> {
        loaded_to(&self.database, self.topic.name(), offset).await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reset_backward_loads_again_once() -> Result<()> {
    let loaded = loaded(6).await?;
    loaded.commit(4, "").await?;
    let app = loaded.start().await?;
    let is_again = || async { loaded.ids().await.is_ok_and(|ids| ids.contains("5x2")) };
    wait_until(PATIENCE, is_again).await?;
    loaded.more(6, 7).await?;
    loaded.loaded_to(7).await?;
    app.stop().await?;
    assert_eq!(loaded.ids().await?, "0x1 1x1 2x1 3x1 4x2 5x2 6x1");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reset_forward_skips_once() -> Result<()> {
    let loaded = loaded(2).await?;
    loaded.more(2, 6).await?;
    loaded.commit(4, "").await?;
    let app = loaded.start().await?;
    loaded.loaded_to(6).await?;
    loaded.more(6, 7).await?;
    loaded.loaded_to(7).await?;
    app.stop().await?;
    assert_eq!(loaded.ids().await?, "0x1 1x1 4x1 5x1 6x1");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_offset_with_our_mark_is_no_reset() -> Result<()> {
    let loaded = loaded(6).await?;
    let name = loaded.topic.name();
    let ours = loaded.kafka.committed(name, name, 0).await?.expect("a clean stop commits");
    let old_mark = ours.metadata.replace("offset=6", "offset=4");
    assert_ne!(old_mark, ours.metadata);
    loaded.commit(4, &old_mark).await?;
    loaded.more(6, 7).await?;
    let app = loaded.start().await?;
    loaded.loaded_to(7).await?;
    app.stop().await?;
    assert_exactly_once(&loaded.database, "t", 7).await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_crash_left_untold_is_told_although_there_is_nothing_to_load() -> Result<()> {
    let loaded = loaded(5).await?;
    let group = loaded.topic.name();
    let before = loaded.kafka.committed(group, group, 0).await?.context("nothing committed")?;
    loaded.more(5, 10).await?;
    let app = loaded.start().await?;
    loaded.loaded_to(10).await?;
    app.stop().await?;
    // given that the last commit to Kafka had been lost
    loaded.commit(5, &before.metadata).await?;
    // when another instance takes over
    let app = loaded.start().await?;
    let is_told = || async { loaded.committed().await.is_ok_and(|offset| offset == Some(10)) };
    wait_until(PATIENCE, is_told).await?;
    app.stop().await?;
    assert_exactly_once(&loaded.database, "t", 10).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mark_that_a_tool_kept_while_it_moved_the_offset_is_a_reset() -> Result<()> {
    let loaded = loaded(6).await?;
    let name = loaded.topic.name();
    let ours = loaded.kafka.committed(name, name, 0).await?.expect("a clean stop commits");
    loaded.commit(5, &ours.metadata).await?;
    let app = loaded.start().await?;
    let is_again = || async { loaded.ids().await.is_ok_and(|ids| ids.contains("5x2")) };
    wait_until(PATIENCE, is_again).await?;
    app.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_live_member_of_the_group_holds_loading_and_says_so() -> Result<()> {
    let waiting = unloaded(3).await?;
    let name = waiting.topic.name();
    let member = waiting.kafka.join(name, name).await?;
    let app = waiting.start().await?;
    let says_why = || async {
        app.get("/health").await.is_ok_and(|health| health.contains("live_group_members"))
    };
    wait_until(PATIENCE, says_why).await?;
    let tables = "select count(*) from pg_tables where tablename = 't'";
    assert_eq!(waiting.database.value(tables).await?, "0", "nothing is loaded meanwhile");
    drop(member);
    waiting.loaded_to(3).await?;
    app.stop().await?;
    assert_exactly_once(&waiting.database, "t", 3).await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_original_hands_over_to_us_and_we_hand_back() -> Result<()> {
    let taken_over = unloaded(10).await?;
    // given the original, a plain consumer group, that loaded four events and stopped
    taken_over.commit(4, "").await?;
    // when we load the rest and stop
    let app = taken_over.start().await?;
    taken_over.loaded_to(10).await?;
    app.stop().await?;
    // then nothing of the original's part is loaded again, and it finds our end
    assert_eq!(taken_over.ids().await?, "4x1 5x1 6x1 7x1 8x1 9x1");
    assert_eq!(taken_over.committed().await?, Some(10));
    // and back to us, after the original went on
    taken_over.more(10, 13).await?;
    taken_over.commit(12, "").await?;
    let app = taken_over.start().await?;
    taken_over.loaded_to(13).await?;
    app.stop().await?;
    assert_eq!(taken_over.ids().await?, "4x1 5x1 6x1 7x1 8x1 9x1 12x1");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_restored_from_before_the_last_batch_reloads_what_it_lost() -> Result<()> {
    let loaded = loaded(4).await?;
    loaded.database.execute("create table backup as select * from bulker_offsets").await?;
    loaded.more(4, 8).await?;
    let app = loaded.start().await?;
    loaded.loaded_to(8).await?;
    app.stop().await?;
    let restore = "truncate bulker_offsets; insert into bulker_offsets select * from backup; \
                   delete from t where id >= 4";
    loaded.database.execute(restore).await?;
    let app = loaded.start().await?;
    loaded.loaded_to(8).await?;
    app.stop().await?;
    assert_exactly_once(&loaded.database, "t", 8).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_restored_from_before_the_row_starts_where_the_row_began() -> Result<()> {
    let taken_over = unloaded(8).await?;
    taken_over.commit(3, "").await?; // the original's part is in the table already
    let app = taken_over.start().await?;
    taken_over.loaded_to(8).await?;
    app.stop().await?;
    taken_over.database.execute("delete from bulker_offsets where topic <> ''; truncate t").await?;
    let app = taken_over.start().await?;
    taken_over.loaded_to(8).await?;
    app.stop().await?;
    assert_eq!(taken_over.ids().await?, "3x1 4x1 5x1 6x1 7x1");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn another_database_goes_on_where_the_group_stands() -> Result<()> {
    let loaded = loaded(5).await?;
    let other = testkit::postgres().await?;
    loaded.more(5, 8).await?;
    let setup = Setup { prefix: loaded.setup.prefix.clone(), ..Setup::new(&loaded.kafka, &other) };
    let app = setup.start().await?;
    loaded_to(&other, loaded.topic.name(), 8).await?;
    app.stop().await?;
    assert_eq!(other.value("select min(id) || ' to ' || max(id) from t").await?, "5 to 7");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_made_anew_is_read_from_its_beginning_also_when_it_outgrew_the_row() -> Result<()> {
    let loaded = loaded(5).await?;
    let name = loaded.topic.name();
    loaded.kafka.delete_topic(name).await?;
    let is_gone =
        || async { loaded.kafka.topics().await.is_ok_and(|all| !all.iter().any(|t| t == name)) };
    wait_until(PATIENCE, is_gone).await?;
    loaded.kafka.create_topic(name, 1, 1, &[]).await?;
    loaded.more(100, 109).await?;
    let app = loaded.start().await?;
    loaded.loaded_to(9).await?;
    app.stop().await?;
    let found =
        loaded.database.value("select count(*) || ' ' || count(distinct id) from t").await?;
    assert_eq!(found, "14 14");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn markers_and_aborted_events_at_the_end_leave_nothing_to_wait_for() -> Result<()> {
    let loaded = loaded(3).await?;
    let name = loaded.topic.name();
    let kept = events(3..5);
    let kept: Vec<&str> = kept.iter().map(String::as_str).collect();
    loaded.kafka.produce_transaction(name, 0, &kept, true).await?;
    loaded.kafka.produce_transaction(name, 0, &[r#"{"id":99}"#], false).await?;
    let end = loaded.kafka.end_offset(name, 0).await?;
    ensure!(end == 8, "5 events, an aborted one and two markers make {end}");
    let app = loaded.start().await?;
    loaded.loaded_to(end).await?;
    app.stop().await?;
    assert_exactly_once(&loaded.database, "t", 5).await
}

#[tokio::test(flavor = "multi_thread")]
async fn records_that_expired_unloaded_are_counted_and_stepped_over() -> Result<()> {
    let loaded = loaded(3).await?;
    loaded.more(3, 10).await?;
    loaded.kafka.delete_records_before(loaded.topic.name(), 0, 7).await?;
    let app = loaded.start().await?;
    loaded.loaded_to(10).await?;
    let metrics = app.get("/metrics").await?;
    app.stop().await?;
    assert_eq!(loaded.ids().await?, "0x1 1x1 2x1 7x1 8x1 9x1");
    let counted = metrics.lines().any(|line| {
        line.starts_with("bulkerapp_start_notice_offsets_total")
            && line.contains(r#"kind="expired_before_loading""#)
            && line.ends_with(" 4")
    });
    assert!(counted, "four lost offsets are counted");
    Ok(())
}

/// A role of a test's own, gone with [`Role::drop`].
struct Role {
    name: String,
}

impl Role {
    /// `grants`: statements with `{role}` in place of the name.
    async fn create(database: &Database, grants: &str) -> Result<Role> {
        let name = format!("role_{}", uuid::Uuid::new_v4().simple());
        let sql =
            format!("create role {name} login password 'x'; {}", grants.replace("{role}", &name));
        database.execute(&sql).await?;
        Ok(Role { name })
    }

    async fn drop(self, database: &Database) -> Result<()> {
        database.execute(&format!("drop owned by {0}; drop role {0}", self.name)).await
    }

    fn uses(&self, setup: &Setup) -> Setup {
        Setup { user: self.name.clone(), password: "x".to_owned(), ..setup.clone() }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_right_to_create_in_the_schema_is_enough_for_exactly_once() -> Result<()> {
    let waiting = unloaded(5).await?;
    let grants = "revoke create on schema public from public; \
                  grant usage, create on schema public to {role}";
    let role = Role::create(&waiting.database, grants).await?;
    let app = role.uses(&waiting.setup).start().await?;
    waiting.loaded_to(5).await?;
    let metrics = app.get("/metrics").await?;
    app.stop().await?;
    role.drop(&waiting.database).await?;
    assert!(metrics.contains(r#"bulkerapp_exactly_once{destinationId="it"} 1"#), "{metrics}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_right_to_keep_rows_loading_goes_on_and_says_so() -> Result<()> {
    let waiting = unloaded(5).await?;
    let grants = "create table t (id bigint, name text); \
                  revoke create on schema public from public; grant select, insert on t to {role}";
    let role = Role::create(&waiting.database, grants).await?;
    let app = role.uses(&waiting.setup).start().await?;
    let all = || async { waiting.database.count("t").await.is_ok_and(|count| count == 5) };
    wait_until(PATIENCE, all).await?;
    let metrics = app.get("/metrics").await?;
    app.stop().await?;
    role.drop(&waiting.database).await?;
    assert!(metrics.contains(r#"bulkerapp_exactly_once{destinationId="it"} 0"#), "{metrics}");
    Ok(())
}
