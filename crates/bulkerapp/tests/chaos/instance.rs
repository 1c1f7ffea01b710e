//! One of the two bulkerapps, with what is its own: a way to PostgreSQL, and a spool on a disk.

use std::{os::unix::process::ExitStatusExt, path::Path, sync::Arc, time::Duration};

use anyhow::{Context, Result, bail, ensure};
use testkit::{
    Database,
    proxy::{Event, PostgresProxy, Then},
};

use crate::{
    app::{App, PATIENCE, Setup},
    disk::Disk,
    faults::{Fault, Harm},
};

/// How long an instance may take to its next load.
const COMMIT_WITHIN: Duration = Duration::from_secs(3);
/// How long it may take to tell its metrics.
const METRICS_WITHIN: Duration = Duration::from_secs(1);
const SIGTERM: i32 = 15;

pub(crate) struct Instance {
    setup: Setup,
    port: u16,
    /// Between the instance and PostgreSQL.
    proxy: PostgresProxy,
    pub(crate) app: App,
    disk: Arc<Disk>,
    /// What its processes wrote that have ended.
    log: Vec<String>,
    /// Events that those had in the spool, as far as they told.
    spooled: u64,
}

/// What an instance says of its spool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SpoolHealth {
    pub(crate) waiting: u64,
    pub(crate) quarantined: u64,
    /// Whether it has room, and a disk that works.
    pub(crate) takes: bool,
}

impl Instance {
    /// `folder`: of its spool, over all restarts.
    pub(crate) async fn start(
        setup: &Setup,
        database: &Database,
        folder: &Path,
        disk: Arc<Disk>,
    ) -> Result<Instance> {
        let proxy = PostgresProxy::start(database.host(), database.port()).await?;
        let folder = folder.display().to_string();
        let setup =
            setup.clone().through(&proxy.host(), proxy.port()).with("BULKER_SPOOL_DIR", &folder);
        let app = setup.start().await?;
        disk.is_used_by(Some(app.service.pid())).await?;
        let port = app.port;
        Ok(Instance { setup, port, proxy, app, disk, log: Vec::new(), spooled: 0 })
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// Breaks it; it runs again when this returns.
    pub(crate) async fn suffer(&mut self, fault: &Fault) -> Result<()> {
        if let Ok(status) = self.app.service.wait(Duration::ZERO).await {
            bail!("it had ended by itself, with {status}");
        }
        if fault.harm == Harm::Frozen {
            self.app.service.stop_process()?;
            tokio::time::sleep(fault.lasts).await;
            return self.app.service.continue_process();
        }
        self.spooled += self.spooled_by_process().await;
        match fault.harm {
            Harm::Killed => self.app.service.kill9().await?,
            Harm::KilledAtCommit => self.kill_at_commit().await?,
            Harm::Stopped => {
                let status = self.app.service.terminate(PATIENCE).await?;
                // one that was only just started dies of the signal
                let is_new = status.signal() == Some(SIGTERM);
                ensure!(status.success() || is_new, "ended with {status}");
            }
            _ => bail!("no way to end a process"),
        }
        self.disk.is_used_by(None).await?;
        self.log.extend(self.app.service.lines());
        tokio::time::sleep(fault.lasts).await;
        self.app = self.setup.spawn_on(self.port)?; // whatever is there of the other parts
        self.disk.is_used_by(Some(self.app.service.pid())).await
    }

    /// Kills it when its next load has committed, or after a while without a load.
    async fn kill_at_commit(&mut self) -> Result<()> {
        let kill = self.app.service.killer();
        self.proxy.on(Event::BeforeCommitAnswer, move |moment| {
            if moment.copied_bytes == 0 {
                return Then::Forward;
            }
            kill();
            Then::Cut
        });
        let killed = self.app.service.wait(COMMIT_WITHIN).await;
        self.proxy.clear();
        if killed.is_err() {
            self.app.service.kill9().await?;
        }
        Ok(())
    }

    /// Stops it, as an orchestrator does. No part of it may have panicked on the way.
    pub(crate) async fn stop(&mut self) -> Result<()> {
        self.spooled += self.spooled_by_process().await;
        let status = self.app.service.terminate(PATIENCE).await?;
        ensure!(status.success(), "ended with {status}");
        let lines = self.lines();
        let panic = lines.iter().find(|line| line.contains("panicked at"));
        ensure!(panic.is_none(), "{panic:?}");
        Ok(())
    }

    pub(crate) async fn spool(&self) -> Result<SpoolHealth> {
        let health = self.app.health().await?;
        let spool = health.get("spool").context("no spool")?;
        let number = |name: &str| spool.get(name).and_then(serde_json::Value::as_u64);
        Ok(SpoolHealth {
            waiting: number("waitingEvents").context("no waitingEvents")?,
            quarantined: number("quarantinedEvents").unwrap_or_default(),
            takes: spool.get("takesEvents") == Some(&true.into()),
        })
    }

    /// Events that its processes had in the spool, as far as they told before they were ended.
    pub(crate) fn spooled(&self) -> u64 {
        self.spooled
    }

    pub(crate) fn lines(&self) -> Vec<String> {
        [self.log.clone(), self.app.service.lines()].concat()
    }

    /// Zero where it does not tell.
    async fn spooled_by_process(&self) -> u64 {
        const NAME: &str = "bulkerapp_spool_events_total{status=\"spooled\"} ";
        let asked = tokio::time::timeout(METRICS_WITHIN, self.app.get("/metrics"));
        let Ok(Ok(metrics)) = asked.await else { return 0 };
        let value = metrics.lines().find_map(|line| line.strip_prefix(NAME));
        value.and_then(|value| value.parse().ok()).unwrap_or_default()
    }
}
