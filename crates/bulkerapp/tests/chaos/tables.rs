//! The tables, what they refuse, and how they are repaired meanwhile.
//!
//! One event in a hundred is bad: its parent row is not there yet, its name is too wide for the
//! column, or its amount is negative. Parent rows arrive some seconds later, for some events before
//! the last attempt and for some after it. The column is widened after a third of the time. A
//! negative amount is never taken.

use std::time::Duration;

use anyhow::Result;
use testkit::Database;
use tokio::time::Instant;

use crate::app::Setup;

pub(crate) const TABLES: u64 = 20;
/// One event in so many is bad.
const BAD_EVERY: u64 = 100;
/// One event in so many brings a new column.
const NEW_COLUMN_EVERY: u64 = 400;
/// Age of an event when its parent row arrives.
const PARENT_AFTER: Duration = Duration::from_secs(3);
const REPAIR_EVERY: Duration = Duration::from_millis(500);

/// What is done with the events of a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Kind {
    pub(crate) is_stream: bool,
    pub(crate) is_deduplicated: bool,
}

/// A table by its number, `0..TABLES`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Table(u64);

impl Table {
    pub(crate) fn all() -> impl Iterator<Item = Table> {
        (0..TABLES).map(Table)
    }

    /// The table of an event.
    pub(crate) fn of(id: u64) -> Table {
        Table(id % TABLES)
    }

    pub(crate) fn index(self) -> usize {
        self.0 as usize
    }

    pub(crate) fn kind(self) -> Kind {
        Kind { is_stream: self.0 % 2 == 1, is_deduplicated: self.0 / 2 % 2 == 1 }
    }

    pub(crate) fn name(self) -> String {
        let Kind { is_stream, is_deduplicated } = self.kind();
        let mode = if is_stream { "stream" } else { "batch" };
        let key = if is_deduplicated { "keyed" } else { "plain" };
        format!("{mode}_{key}_{}", self.0 / 4)
    }

    pub(crate) fn topic(self, setup: &Setup) -> String {
        match self.kind().is_stream {
            true => setup.stream_topic(&self.name()),
            false => setup.topic(&self.name()),
        }
    }
}

/// What its table makes of an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fate {
    Accepted,
    /// Once its parent row is there.
    NeedsParent,
    /// Once the column is wide enough.
    NeedsWidth,
    /// Never.
    Hopeless,
}

impl Fate {
    pub(crate) fn of(id: u64) -> Fate {
        // tables differ in their phase, so that bad events come at all times
        let (number, table) = (id / TABLES, id % TABLES);
        let phase = number + table * (BAD_EVERY / TABLES);
        match (phase % BAD_EVERY, (phase / BAD_EVERY + table) % 3) {
            (7, 0) => Fate::NeedsParent,
            (7, 1) => Fate::NeedsWidth,
            (7, _) => Fate::Hopeless,
            _ => Fate::Accepted,
        }
    }
}

/// An event's text. `age`: of the run; parents are named by the second in which their children are
/// sent.
pub(crate) fn event(id: u64, age: Duration) -> String {
    let fate = Fate::of(id);
    let name = if fate == Fate::NeedsWidth { "too wide for its column" } else { "short" };
    let parent = if fate == Fate::NeedsParent { age.as_secs() + 1 } else { 0 };
    let amount = if fate == Fate::Hopeless { -1 } else { 5 };
    let number = id / TABLES;
    let extra = match number % NEW_COLUMN_EVERY {
        last if last == NEW_COLUMN_EVERY - 1 => {
            format!(r#","extra_{}":"new""#, number / NEW_COLUMN_EVERY)
        }
        _ => String::new(),
    };
    format!(r#"{{"id":{id},"name":"{name}","parent":{parent},"amount":{amount}{extra}}}"#)
}

/// Makes the tables; keys and further columns are left to bulkerapp.
pub(crate) async fn create(database: &Database) -> Result<()> {
    let mut sql =
        "create table parents (id bigint primary key); insert into parents values (0);".to_owned();
    for table in Table::all() {
        sql += &format!(
            "create table {} (id bigint, name varchar(8), parent bigint references parents, \
             amount bigint constraint positive check (amount >= 0));",
            table.name()
        );
    }
    database.execute(&sql).await
}

/// Repairs what can be repaired, for ever. PostgreSQL may be away: then it is tried again.
pub(crate) async fn repair(database: &Database, began: Instant, widen_after: Duration) {
    let mut narrow: Vec<Table> = Table::all().collect();
    loop {
        tokio::time::sleep(REPAIR_EVERY).await;
        let age = began.elapsed();
        let parents = age.saturating_sub(PARENT_AFTER).as_secs();
        let sql = format!(
            "insert into parents select generate_series(1, {parents}) on conflict do nothing"
        );
        let _ = tokio::time::timeout(Duration::from_secs(5), database.execute(&sql)).await;
        if age < widen_after {
            continue;
        }
        let mut still_narrow = Vec::new();
        for table in narrow {
            let sql = format!(
                "set lock_timeout = '1s'; alter table {} alter column name type varchar(80)",
                table.name()
            );
            let widened = tokio::time::timeout(Duration::from_secs(5), database.execute(&sql));
            if !matches!(widened.await, Ok(Ok(()))) {
                still_narrow.push(table);
            }
        }
        narrow = still_narrow;
    }
}
