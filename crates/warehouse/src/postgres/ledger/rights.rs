//! What the destination's user may do in its database, asked without trying it.

use sqlx::{Row, postgres::PgRow};

use super::{OFFSETS_TABLE, ORIGINS_TABLE, run, unexpected_columns};
use crate::{
    error::LoadError,
    ledger::LedgerRights,
    postgres::{Postgres, quote_literal},
};

/// The oldest version that is expected to work, as the server numbers it.
const OLDEST_VERSION: i32 = 120_000;

/// The rights that a ledger needs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Rights {
    /// PostgreSQL's version as a number, such as 150004.
    server_version: i32,
    schema: String,
    has_schema: bool,
    /// To use the schema.
    may_use_schema: bool,
    /// To make tables in the schema; in the database where it is missing.
    may_create: bool,
    offsets: TableRights,
    origins: TableRights,
}

/// Whether one of our two tables is there, and usable.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct TableRights {
    is_there: bool,
    may_use: bool,
}

impl Rights {
    /// Why there can be no ledger; `None`: they are there, or can be made.
    fn missing(&self) -> Option<String> {
        let schema = &self.schema;
        let both_there = self.offsets.is_there && self.origins.is_there;
        if both_there && self.may_use_schema && self.offsets.may_use && self.origins.may_use {
            return None;
        }
        if both_there && self.may_use_schema {
            return Some(format!(
                "grant select, insert, update, delete on {schema}.{OFFSETS_TABLE}, {schema}.{ORIGINS_TABLE}"
            ));
        }
        match (self.has_schema, self.may_create && (self.may_use_schema || !self.has_schema)) {
            (_, true) => None,
            (true, false) => Some(format!("grant usage, create on schema {schema}")),
            (false, false) => {
                Some(format!("make schema {schema}, or grant create on the database"))
            }
        }
    }
}

/// Asks the destination's database.
pub(crate) async fn rights(postgres: &Postgres) -> Result<LedgerRights, LoadError> {
    let schema = postgres.default_schema();
    let rows = run(postgres, &rights_sql(schema)).await?;
    let rights = rows
        .first()
        .and_then(|row| parse(schema, row).ok())
        .ok_or_else(|| unexpected_columns("pg_catalog.pg_class"))?;
    Ok(LedgerRights {
        server: format!("PostgreSQL {}", rights.server_version / 10_000),
        is_too_old: rights.server_version < OLDEST_VERSION,
        is_there: rights.offsets.is_there || rights.origins.is_there,
        missing: rights.missing(),
    })
}

fn parse(schema: &str, row: &PgRow) -> Result<Rights, sqlx::Error> {
    let table = |at: usize| -> Result<TableRights, sqlx::Error> {
        Ok(TableRights { is_there: row.try_get(at)?, may_use: row.try_get(at + 1)? })
    };
    Ok(Rights {
        server_version: row.try_get(0)?,
        schema: schema.to_owned(),
        has_schema: row.try_get(1)?,
        may_use_schema: row.try_get(2)?,
        may_create: row.try_get(3)?,
        offsets: table(4)?,
        origins: table(6)?,
    })
}

fn rights_sql(schema: &str) -> String {
    let of_table = |table: &str, rights: &[&str]| {
        let rights: Vec<_> = rights
            .iter()
            .map(|right| format!("pg_catalog.has_table_privilege(c.oid, '{right}')"))
            .collect();
        format!(
            "exists (select 1 from pg_catalog.pg_class c where c.relnamespace = n.oid and c.relname = '{table}'), \
             coalesce((select {} from pg_catalog.pg_class c \
             where c.relnamespace = n.oid and c.relname = '{table}'), false)",
            rights.join(" and ")
        )
    };
    format!(
        "select pg_catalog.current_setting('server_version_num')::integer, n.oid is not null, \
         coalesce(pg_catalog.has_schema_privilege(n.oid, 'USAGE'), false), \
         case when n.oid is null \
         then pg_catalog.has_database_privilege(pg_catalog.current_database(), 'CREATE') \
         else pg_catalog.has_schema_privilege(n.oid, 'CREATE') end, {}, {} \
         from (select 1) one left join pg_catalog.pg_namespace n on n.nspname = {}",
        of_table(OFFSETS_TABLE, &["SELECT", "INSERT", "UPDATE"]),
        of_table(ORIGINS_TABLE, &["SELECT", "INSERT", "UPDATE", "DELETE"]),
        quote_literal(schema)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_named_with_the_grant_that_helps() {
        let usable = TableRights { is_there: true, may_use: true };
        let locked = TableRights { is_there: true, may_use: false };
        let none = TableRights::default();
        let rights = |has_schema, may_use_schema, may_create, tables: TableRights| Rights {
            schema: "s".to_owned(),
            has_schema,
            may_use_schema,
            may_create,
            offsets: tables,
            origins: tables,
            ..Rights::default()
        };
        let fine = [
            rights(true, true, true, none),
            rights(false, false, true, none),
            rights(true, true, false, usable),
        ];
        for rights in fine {
            assert_eq!(rights.missing(), None, "{rights:?}");
        }
        let missing = [
            (rights(true, true, false, none), "grant usage, create on schema s"),
            (rights(true, false, false, usable), "grant usage, create on schema s"),
            (rights(false, false, false, none), "make schema s, or grant create on the database"),
            (
                rights(true, true, true, locked),
                "grant select, insert, update, delete on s.bulker_offsets, s.bulker_origins",
            ),
        ];
        for (rights, expected) in missing {
            assert_eq!(rights.missing().as_deref(), Some(expected), "{rights:?}");
        }
    }
}
