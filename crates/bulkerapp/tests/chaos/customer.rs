//! A customer who works on the tables while they are loaded, and whoever grants rights.
//!
//! Nothing that is done here takes a value away but for that of `spare`: a column that is replaced
//! keeps its values under another name. So the account may ask for each value of each event.

use std::{fmt, time::Duration};

use anyhow::{Context, Result};
use testkit::Database;
use tokio::time::{Instant, sleep, timeout};

use crate::tables::{ROLE, Table};

/// The column whose values may be gone.
pub(crate) const SPARE: &str = "spare";
/// How long a deed may take beyond what it means to take; PostgreSQL may be away.
const WITHIN: Duration = Duration::from_secs(8);
/// How long rights may stay away because PostgreSQL is.
const GRANTED_WITHIN: Duration = Duration::from_secs(120);
const GRANT_AGAIN_AFTER: Duration = Duration::from_millis(500);
/// Ways to change the type of a column that keep its values.
const RETYPINGS: [(&str, &str); 11] = [
    ("score", "bigint"),
    ("score", "numeric"),
    ("score", "double precision"),
    ("score", "text"),
    ("amount", "bigint"),
    ("amount", "numeric"),
    ("amount", "double precision"),
    ("id", "numeric"),
    ("id", "bigint"),
    ("note", "text"),
    ("note", "varchar(200)"),
];
/// Types of columns that stand where another one was: some take none of the events' values. A text
/// is never put where JSON is kept: it is JSON's text there, and the events' is none, so the
/// database would refuse them.
const REPLACEMENTS: [(&str, &str); 15] = [
    ("score", "text"),
    ("score", "numeric"),
    ("score", "boolean"),
    ("score", "integer"),
    ("score", "smallint"),
    ("score", "jsonb"),
    ("score", "timestamp with time zone"),
    ("score", "date"),
    ("score", "bigint default 7"),
    ("note", "text default 'none'"),
    ("note", "varchar(80)"),
    ("note", "bigint"),
    ("note", "boolean"),
    ("note", "timestamp"),
    ("note", "bytea"),
];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Deed {
    /// Gives a column another type.
    Retype,
    /// Gives a column another name.
    Rename,
    /// The same, and makes one of its old name and another type.
    Replace,
    /// The same, and makes a computed one of its old name.
    Compute,
    Drop,
    /// Drops the key and all indexes.
    DropKey,
    /// Locks the table, also for readers.
    Lock,
    DenyOffsets,
    DenyOrigins,
    DenyTable,
}

impl Deed {
    /// The statements; `chance` decides on what.
    fn sql(self, chance: u64, seconds: f64) -> String {
        let table = Table::pick(chance).quoted();
        let chance = chance / 64;
        let pick = |from: &[(&'static str, &'static str)]| from[chance as usize % from.len()];
        let serial = chance % 1_000_000;
        match self {
            Deed::Retype => {
                let (column, to) = pick(&RETYPINGS);
                format!("alter table {table} alter column {column} type {to} using {column}::{to}")
            }
            Deed::Rename => {
                let (column, _) = pick(&REPLACEMENTS);
                format!("alter table {table} rename column {column} to {column}_{serial}")
            }
            Deed::Replace => {
                let (column, to) = pick(&REPLACEMENTS);
                format!(
                    "alter table {table} rename column {column} to {column}_{serial}; \
                     alter table {table} add column {column} {to}"
                )
            }
            Deed::Compute => format!(
                "alter table {table} rename column score to score_{serial}; \
                 alter table {table} add column score bigint generated always as (amount * 2) stored"
            ),
            Deed::Drop => format!("alter table {table} drop column if exists {SPARE}"),
            Deed::DropKey => drop_key_sql(&table),
            Deed::Lock => {
                format!(
                    "lock table {table} in access exclusive mode; select pg_sleep({seconds:.1})"
                )
            }
            Deed::DenyOffsets => revoke("select, insert, update", "public.bulker_offsets"),
            Deed::DenyOrigins => revoke("select, insert, update, delete", "public.bulker_origins"),
            Deed::DenyTable => {
                let right = ["insert", "select", "insert, update, select"][chance as usize % 3];
                revoke(right, &table)
            }
        }
    }

    /// What undoes it, where it does not stay.
    fn undo_sql(self, chance: u64) -> Option<String> {
        let all = "select, insert, update, delete";
        match self {
            Deed::DenyOffsets => Some(format!("grant {all} on public.bulker_offsets to {ROLE}")),
            Deed::DenyOrigins => Some(format!("grant {all} on public.bulker_origins to {ROLE}")),
            Deed::DenyTable => {
                Some(format!("grant {all} on {} to {ROLE}", Table::pick(chance).quoted()))
            }
            _ => None,
        }
    }
}

fn revoke(rights: &str, table: &str) -> String {
    format!("revoke {rights} on {table} from {ROLE}")
}

fn drop_key_sql(table: &str) -> String {
    format!(
        "do $$ declare found record; begin
           for found in select conname from pg_constraint
             where conrelid = '{table}'::regclass and contype in ('p', 'u') loop
             execute format('alter table {table} drop constraint %I', found.conname);
           end loop;
           for found in select indexrelid::regclass as name from pg_index
             where indrelid = '{table}'::regclass loop
             execute format('drop index %s', found.name);
           end loop;
         end $$"
    )
}

/// For the plan.
pub(crate) fn tell(
    deed: Deed,
    chance: u64,
    seconds: f64,
    f: &mut fmt::Formatter<'_>,
) -> fmt::Result {
    match deed {
        Deed::DropKey => write!(f, "DropKey of {}", Table::pick(chance).quoted()),
        _ => write!(f, "{deed:?}: {}", deed.sql(chance, seconds)),
    }?;
    match deed.undo_sql(chance) {
        Some(_) => write!(f, " for {seconds:.1} s"),
        None => Ok(()),
    }
}

/// Does it. Whether it was done: PostgreSQL may be away, the table in use, or the last deed in the
/// way of this one. An error only where it cannot be undone.
pub(crate) async fn act(
    database: &Database,
    deed: Deed,
    chance: u64,
    lasts: Duration,
) -> Result<bool> {
    let sql = format!("set lock_timeout = '4s'; {}", deed.sql(chance, lasts.as_secs_f64()));
    let done = timeout(lasts + WITHIN, database.execute(&sql)).await;
    let is_done = match done {
        Ok(Ok(())) => true,
        Ok(Err(error)) => {
            println!("          {deed:?} was refused: {}", error.root_cause());
            false
        }
        Err(_) => false,
    };
    let Some(undo) = deed.undo_sql(chance) else {
        return Ok(is_done);
    };
    sleep(lasts).await;
    // also where nobody knows whether it was done
    let began = Instant::now();
    loop {
        match timeout(WITHIN, database.execute(&undo)).await {
            Ok(Ok(())) => return Ok(is_done),
            // there is no such table yet
            Ok(Err(error)) if error.root_cause().to_string().contains("does not exist") => {
                return Ok(is_done);
            }
            _ if began.elapsed() < GRANTED_WITHIN => sleep(GRANT_AGAIN_AFTER).await,
            failed => {
                return failed.context("no answer")?.map(|()| is_done).context("rights stay away");
            }
        }
    }
}
