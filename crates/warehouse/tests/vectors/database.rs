//! A database of its own for every case.

use std::collections::BTreeMap;

use serde_json::json;
use sqlx::{Connection, PgConnection};
use warehouse::postgres::{Credentials, Postgres, Settings, quote_ident};

/// The default schema of a case.
pub(crate) const SCHEMA: &str = "bulker";

pub(crate) struct Database {
    admin_url: String,
    name: String,
}

impl Database {
    pub(crate) async fn create() -> Result<Database, String> {
        let admin_url = std::env::var("TESTKIT_POSTGRES_URL")
            .map_err(|_| "TESTKIT_POSTGRES_URL must name a PostgreSQL server".to_owned())?;
        let name = format!("vectors_{}", uuid::Uuid::new_v4().simple());
        let database = Database { admin_url, name };
        database.on_server(&format!("create database {}", quote_ident(&database.name))).await?;
        Ok(database)
    }

    pub(crate) async fn drop(self) -> Result<(), String> {
        self.on_server(&format!("drop database {} with (force)", quote_ident(&self.name))).await
    }

    /// `postgres://user:password@host:port/database` of this database.
    pub(crate) fn url(&self) -> String {
        let (server, _) = self.admin_url.rsplit_once('/').unwrap_or((&self.admin_url, ""));
        format!("{server}/{}", self.name)
    }

    pub(crate) fn destination(&self) -> Result<Postgres, String> {
        let parts: BTreeMap<_, _> = self.parts().ok_or("TESTKIT_POSTGRES_URL is no address")?;
        let credentials: Credentials = serde_json::from_value(json!({
            "host": parts["host"],
            "port": parts["port"].parse::<u16>().unwrap_or(5432),
            "database": self.name,
            "username": parts["user"],
            "password": parts["password"],
            "defaultSchema": SCHEMA,
            "sslMode": "disable",
        }))
        .map_err(|error| error.to_string())?;
        Postgres::new(&credentials, Settings::default()).map_err(|error| error.to_string())
    }

    fn parts(&self) -> Option<BTreeMap<&'static str, &str>> {
        let (_, rest) = self.admin_url.split_once("://")?;
        let (login, rest) = rest.split_once('@')?;
        let (user, password) = login.split_once(':').unwrap_or((login, ""));
        let (place, _) = rest.split_once('/')?;
        let (host, port) = place.split_once(':').unwrap_or((place, "5432"));
        Some([("user", user), ("password", password), ("host", host), ("port", port)].into())
    }

    async fn on_server(&self, sql: &str) -> Result<(), String> {
        let run = async {
            let mut connection = PgConnection::connect(&self.admin_url).await?;
            // the only name in it is quoted
            sqlx::raw_sql(sql).execute(&mut connection).await?;
            connection.close().await
        };
        run.await.map_err(|error| format!("{sql}: {error}"))
    }
}
