//! `PgBouncer` in transaction mode before a database: every transaction may get another session.

use std::{fs, os::unix::fs::PermissionsExt, path::PathBuf, time::Duration};

use anyhow::{Context, Result};
use tokio::{net::TcpStream, process::Command};

use crate::{Database, free_port, process::Service, wait_until};

const START_LIMIT: Duration = Duration::from_secs(20);

/// A running pooler. Stopped on drop.
#[derive(Debug)]
pub struct Pooler {
    port: u16,
    folder: PathBuf,
    service: Service,
}

impl Pooler {
    /// Starts one with so many sessions. Its users and passwords are those of the database.
    pub async fn start(database: &Database, sessions: u32) -> Result<Pooler> {
        let port = free_port()?;
        let folder = std::env::temp_dir().join(format!("pooler-{}", uuid::Uuid::new_v4().simple()));
        fs::create_dir(&folder)?;
        // it refuses to run as root and changes to the user that owns PostgreSQL
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o755))?;
        let users = folder.join("users.txt");
        fs::write(&users, format!("\"{}\" \"{}\"\n", database.user(), database.password()))?;
        let settings = folder.join("pgbouncer.ini");
        let text = format!(
            "[databases]\n* = host={} port={}\n\n[pgbouncer]\nlisten_addr = 127.0.0.1\n\
             listen_port = {port}\nunix_socket_dir =\nauth_type = plain\nauth_file = {}\n\
             pool_mode = transaction\ndefault_pool_size = {sessions}\nserver_reset_query =\n",
            database.host(),
            database.port(),
            users.display()
        );
        fs::write(&settings, text)?;
        let mut command = Command::new("pgbouncer");
        let path = std::env::var("PATH").unwrap_or_default();
        command.env("PATH", format!("{path}:/usr/sbin")).arg(&settings);
        if nix::unistd::geteuid().is_root() {
            command.args(["-u", "postgres"]);
        }
        let service = Service::start(command).context("PgBouncer is needed (package pgbouncer)")?;
        let pooler = Pooler { port, folder, service };
        let answers = async || TcpStream::connect(("127.0.0.1", port)).await.is_ok();
        wait_until(START_LIMIT, answers)
            .await
            .with_context(|| format!("PgBouncer: {:?}", pooler.service.lines()))?;
        Ok(pooler)
    }

    pub fn port(&self) -> u16 {
        self.port
    }
}

impl Drop for Pooler {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.folder); // a temporary folder; the system cleans up what stays
    }
}
