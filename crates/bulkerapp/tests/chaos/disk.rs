//! The disk under an instance's spool: the instance may be kept from writing files beyond a size
//! (`RLIMIT_FSIZE`).
//!
//! A disk does not get well because its instance is started anew, so the next process has the limit
//! as well. It is the soft limit, which can be taken back without rights.

use std::path::Path;

use anyhow::{Context, Result, bail};
use tokio::{process::Command, sync::Mutex};

#[derive(Default)]
pub(crate) struct Disk {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    largest_file: Option<u64>,
    /// The process that writes to it.
    pid: Option<i32>,
}

impl Disk {
    /// Bytes that a file may have from now on; `None`: any number.
    pub(crate) async fn limit_files(&self, bytes: Option<u64>) -> Result<()> {
        let mut state = self.state.lock().await;
        state.largest_file = bytes;
        match state.pid {
            Some(pid) => limit(pid, bytes).await,
            None => Ok(()),
        }
    }

    /// The process that writes to it from now on; `None`: there is none.
    pub(crate) async fn is_used_by(&self, pid: Option<i32>) -> Result<()> {
        let mut state = self.state.lock().await;
        state.pid = pid;
        match (pid, state.largest_file) {
            (Some(pid), Some(bytes)) => limit(pid, Some(bytes)).await,
            _ => Ok(()),
        }
    }
}

async fn limit(pid: i32, bytes: Option<u64>) -> Result<()> {
    let soft = bytes.map_or("unlimited".to_owned(), |bytes| bytes.to_string());
    let arguments = ["--pid".to_owned(), pid.to_string(), format!("--fsize={soft}:")];
    let output = Command::new("prlimit").args(arguments).output().await.context("run prlimit")?;
    // it may have ended at this moment
    if !output.status.success() && Path::new(&format!("/proc/{pid}")).exists() {
        bail!("prlimit failed: {}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(())
}
