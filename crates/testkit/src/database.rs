//! A PostgreSQL database of a test's own.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use sqlx::{Connection, Executor, PgConnection, Row, ValueRef};

/// Rows as PostgreSQL prints them; `None` is NULL.
pub type Rows = Vec<Vec<Option<String>>>;

const DROP_LIMIT: Duration = Duration::from_secs(10);

/// A database that is dropped with its handle, also while clients are connected to it.
#[derive(Debug)]
pub struct Database {
    server: String,
    address: Address,
    dropped_with_server: bool,
}

impl Database {
    /// Makes a database on the server that `url` (`postgres://user:password@host:port/database`)
    /// names.
    pub async fn create_on(url: &str) -> Result<Database> {
        let name = format!("test_{}", uuid::Uuid::new_v4().simple());
        let address = Address { name, ..Address::parse(url)? };
        let mut server = PgConnection::connect(url).await.context("connect to PostgreSQL")?;
        execute(&mut server, &format!("create database {}", address.name)).await?;
        server.close().await?;
        Ok(Database { server: url.to_owned(), address, dropped_with_server: false })
    }

    /// For a server that is thrown away anyway, and may be dead by the time the handle goes.
    pub(crate) fn dropped_with_server(mut self) -> Database {
        self.dropped_with_server = true;
        self
    }

    /// `postgres://user:password@host:port/name`
    pub fn url(&self) -> String {
        self.url_through(&self.address.host, self.address.port)
    }

    /// The same database, reached through a proxy.
    pub fn url_through(&self, host: &str, port: u16) -> String {
        let Address { user, password, name, .. } = &self.address;
        format!("postgres://{user}:{password}@{host}:{port}/{name}")
    }

    pub fn host(&self) -> &str {
        &self.address.host
    }

    pub fn port(&self) -> u16 {
        self.address.port
    }

    pub fn name(&self) -> &str {
        &self.address.name
    }

    pub fn user(&self) -> &str {
        &self.address.user
    }

    pub fn password(&self) -> &str {
        &self.address.password
    }

    /// The `credentials` of a destination that loads into schema `public` here, without TLS.
    pub fn credentials(&self) -> serde_json::Value {
        let Address { user, password, host, port, name } = &self.address;
        serde_json::json!({
            "host": host, "port": port, "database": name, "username": user, "password": password,
            "defaultSchema": "public", "sslMode": "disable",
        })
    }

    pub async fn connect(&self) -> Result<PgConnection> {
        PgConnection::connect(&self.url()).await.context("connect to the test's database")
    }

    /// Runs statements and returns the rows of all of them, as text.
    pub async fn query(&self, sql: &str) -> Result<Rows> {
        let mut connection = self.connect().await?;
        let rows = connection
            .fetch_all(sqlx::raw_sql(sql)) // tests write their own SQL
            .await
            .with_context(|| format!("query: {sql}"))?;
        connection.close().await?;
        rows.iter().map(as_text).collect()
    }

    /// The first column of the only row; an error when there is another number of rows, or NULL.
    pub async fn value(&self, sql: &str) -> Result<String> {
        let mut rows = self.query(sql).await?;
        ensure!(rows.len() == 1, "{} rows instead of one: {sql}", rows.len());
        let value = rows.pop().and_then(|mut row| row.swap_remove(0));
        value.with_context(|| format!("NULL: {sql}"))
    }

    /// How many rows a table has; 0 when there is no such table (yet).
    pub async fn count(&self, table: &str) -> Result<u64> {
        let found = format!("select to_regclass('{}') is not null", table.replace('\'', "''"));
        if self.value(&found).await? == "f" {
            return Ok(0);
        }
        Ok(self.value(&format!("select count(*) from {table}")).await?.parse()?)
    }

    pub async fn execute(&self, sql: &str) -> Result<()> {
        self.query(sql).await.map(drop)
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        if self.dropped_with_server {
            return;
        }
        let server = self.server.clone();
        let sql = format!("drop database if exists {} with (force)", self.address.name);
        let dropped = crate::wait::on_own_thread(DROP_LIMIT, async move {
            let mut connection = PgConnection::connect(&server).await?;
            execute(&mut connection, &sql).await
        });
        if let Err(error) = dropped {
            eprintln!("testkit: cannot drop {}: {error:#}", self.address.name);
        }
    }
}

async fn execute(connection: &mut PgConnection, sql: &str) -> Result<()> {
    connection // names are ours: letters, digits, underscores
        .execute(sqlx::raw_sql(sql))
        .await
        .with_context(|| sql.to_owned())?;
    Ok(())
}

fn as_text(row: &sqlx::postgres::PgRow) -> Result<Vec<Option<String>>> {
    (0..row.len())
        .map(|column| {
            let value = row.try_get_raw(column)?;
            if value.is_null() {
                return Ok(None);
            }
            // the simple protocol answers in text
            let text = value.as_str().map_err(|error| anyhow::anyhow!(error))?;
            Ok(Some(text.to_owned()))
        })
        .collect()
}

/// The pieces of a database URL.
#[derive(Debug, Clone)]
struct Address {
    user: String,
    password: String,
    host: String,
    port: u16,
    name: String,
}

impl Address {
    fn parse(url: &str) -> Result<Address> {
        let parts = || {
            let rest = url.strip_prefix("postgres://").or(url.strip_prefix("postgresql://"))?;
            let (login, place) = rest.rsplit_once('@')?;
            let (user, password) = login.split_once(':')?;
            let (server, name) = place.split_once('/')?;
            let (host, port) = server.rsplit_once(':').unwrap_or((server, "5432"));
            Some(Address {
                user: user.to_owned(),
                password: password.to_owned(),
                host: host.to_owned(),
                port: port.parse().ok()?,
                name: name.split('?').next()?.to_owned(),
            })
        };
        parts().context("the database URL is not postgres://user:password@host:port/database")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_is_taken_apart() {
        let address =
            Address::parse("postgres://me:secret@db.local:6000/main?sslmode=disable").unwrap();
        assert_eq!(
            (address.user.as_str(), address.password.as_str(), address.host.as_str()),
            ("me", "secret", "db.local")
        );
        assert_eq!((address.port, address.name.as_str()), (6000, "main"));
    }

    #[test]
    fn the_port_may_be_left_out() {
        assert_eq!(Address::parse("postgresql://a:b@host/db").unwrap().port, 5432);
    }

    #[test]
    fn what_is_no_database_url_is_refused_without_quoting_it() {
        let error = Address::parse("postgres://user:hunter2@").unwrap_err();
        assert!(!format!("{error:#}").contains("hunter2"));
    }
}
