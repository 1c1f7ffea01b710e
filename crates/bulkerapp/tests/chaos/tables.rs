//! The tables, the rules by which they refuse events, and how they are repaired meanwhile.
//!
//! Twenty tables are made beforehand. Parent rows arrive some seconds later, for some events before
//! the last attempt and for some after it. Names may be longer after a third of the time, and the
//! type that some events ask for is there after half of it. A negative amount is never taken, nor
//! what the trigger refuses. Further tables are those whose names clients invent.

use std::time::Duration;

use anyhow::Result;
use kafkabase::{TopicMode, topic_name};
use testkit::Database;
use tokio::time::Instant;
use warehouse::{NameOf, identifier};

use crate::{
    app::{DESTINATION, Setup},
    event::LATE_TYPE,
};

/// As whom the instances load: no superuser, whose rights nobody can take.
pub(crate) const ROLE: &str = "loader";
pub(crate) const PASSWORD: &str = "loader";
/// Those that are made beforehand.
pub(crate) const TABLES: u64 = 20;
/// Names that clients invent, as many as these. The last two are one table in the database.
const INVENTED: [&str; 12] = [
    "Invented",
    "invented",
    "invented table",
    "invented-table$",
    "\u{c4}pfel & Birnen",
    "\u{1f642}",
    "select",
    "x\"; drop table public.parents; --",
    "pg_class",
    "a name that is longer than what PostgreSQL keeps of the names of tables",
    "shared&name",
    "shared_name",
];
/// One event in so many is for one of those.
const INVENTED_EVERY: u64 = 25;
/// The loader's own, which no client may write to.
pub(crate) const OWN: [&str; 3] = ["bulker_offsets", "Bulker.Origins", "bulker_origins"];
/// Age of an event when its parent row arrives.
const PARENT_AFTER: Duration = Duration::from_secs(6);
/// The same for one event in three.
const LATE_PARENT_AFTER: Duration = Duration::from_secs(40);
const REPAIR_EVERY: Duration = Duration::from_millis(500);

/// What is done with the events of a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Kind {
    pub(crate) is_stream: bool,
    pub(crate) is_deduplicated: bool,
}

/// A table by its number: those that are made, then the invented ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Table(u64);

impl Table {
    pub(crate) fn all() -> impl Iterator<Item = Table> {
        (0..TABLES + INVENTED.len() as u64).map(Table)
    }

    /// Those with rules.
    pub(crate) fn made() -> impl Iterator<Item = Table> {
        (0..TABLES).map(Table)
    }

    /// One of those with rules, by any number.
    pub(crate) fn pick(number: u64) -> Table {
        Table(number % TABLES)
    }

    /// The table of an event.
    pub(crate) fn of(id: u64) -> Table {
        let (number, table) = (id / TABLES, id % TABLES);
        let turn = number + table;
        // the bad events of each table have another remainder
        match turn % INVENTED_EVERY == 2 {
            // neighbours are for different ones, so that each comes again and again
            true => Table(TABLES + (table + turn / INVENTED_EVERY) % INVENTED.len() as u64),
            false => Table(table),
        }
    }

    pub(crate) fn index(self) -> usize {
        self.0 as usize
    }

    pub(crate) fn is_invented(self) -> bool {
        self.0 >= TABLES
    }

    pub(crate) fn kind(self) -> Kind {
        Kind { is_stream: self.0 % 2 == 1, is_deduplicated: self.0 / 2 % 2 == 1 }
    }

    /// As clients call it.
    pub(crate) fn name(self) -> String {
        if let Some(invented) = self.0.checked_sub(TABLES) {
            return INVENTED[invented as usize].to_owned();
        }
        let Kind { is_stream, is_deduplicated } = self.kind();
        let mode = if is_stream { "stream" } else { "batch" };
        let key = if is_deduplicated { "keyed" } else { "plain" };
        format!("{mode}_{key}_{}", self.0 / 4)
    }

    /// As SQL has it.
    pub(crate) fn quoted(self) -> String {
        format!("public.\"{}\"", identifier(&self.name(), NameOf::Table))
    }

    pub(crate) fn topic(self, setup: &Setup) -> String {
        let mode = if self.kind().is_stream { TopicMode::Stream } else { TopicMode::Batch };
        topic_name(&setup.prefix, DESTINATION, mode, &self.name(), 0)
    }

    /// When its trigger is asked: before a row, so that rows are inserted, or after it, so that they
    /// may be copied.
    fn trigger(self) -> &'static str {
        if self.0.is_multiple_of(3) { "before" } else { "after" }
    }
}

/// Makes the role of the loader, the tables and their rules; keys and further columns are left to
/// bulkerapp. Each table has a row, which is nobody's event.
pub(crate) async fn create(database: &Database) -> Result<()> {
    let mut sql = format!(
        "create role {ROLE} login password '{PASSWORD}';
         grant usage, create on schema public to {ROLE};
         create table parents (id bigint primary key);
         insert into parents values (0);
         grant select, references on parents to {ROLE};
         create function be_odd() returns trigger language plpgsql as $$
         begin
           case new.odd
             when '42P01' then execute 'select 1 from no_such_table';
             when '42703' then execute 'select no_such_column';
             else raise exception 'odd indeed' using errcode = new.odd;
           end case;
           return new;
         end $$;"
    );
    for table in Table::made() {
        let (name, trigger) = (table.quoted(), table.trigger());
        sql += &format!(
            "create table {name} (id bigint, name text constraint narrow check (char_length(name) <= 8), \
             parent bigint references parents, \
             amount bigint constraint positive check (amount >= 0), odd text, \
             score bigint, note text);
             insert into {name} (id) values (-1);
             create trigger odd {trigger} insert on {name} for each row \
             when (new.odd is not null) execute function be_odd();
             alter table {name} owner to {ROLE};"
        );
    }
    database.execute(&sql).await
}

/// Repairs what can be repaired, for ever. PostgreSQL may be away: then it is tried again.
pub(crate) async fn repair(database: &Database, began: Instant, length: Duration) {
    let mut narrow: Vec<Table> = Table::made().collect();
    let mut has_type = false;
    loop {
        tokio::time::sleep(REPAIR_EVERY).await;
        let age = began.elapsed();
        let of_age = |after: Duration| age.saturating_sub(after).as_secs();
        let parents = format!(
            "insert into parents select n from generate_series(1, {}) n \
             where n % 3 > 0 or n <= {} on conflict do nothing",
            of_age(PARENT_AFTER),
            of_age(LATE_PARENT_AFTER)
        );
        is_done(database, &parents).await;
        if age > length / 2 && !has_type {
            is_done(database, &format!("create domain public.{LATE_TYPE} as text")).await;
            let is_there =
                format!("select 1 / count(*) from pg_type where typname = '{LATE_TYPE}'");
            has_type = is_done(database, &is_there).await;
        }
        if age < length / 3 {
            continue;
        }
        let mut still_narrow = Vec::new();
        for table in narrow {
            let sql = format!(
                "set lock_timeout = '1s'; alter table {} drop constraint if exists narrow",
                table.quoted()
            );
            if !is_done(database, &sql).await {
                still_narrow.push(table);
            }
        }
        narrow = still_narrow;
    }
}

async fn is_done(database: &Database, sql: &str) -> bool {
    let done = tokio::time::timeout(Duration::from_secs(5), database.execute(sql));
    matches!(done.await, Ok(Ok(())))
}
