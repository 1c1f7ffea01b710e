//! A child process and what it cost: CPU seconds and peak memory, from `/proc`.

use std::{
    fs,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};

/// Clock ticks per second in `/proc/<pid>/stat`; fixed on Linux.
const TICKS_PER_SECOND: f64 = 100.0;

/// A running child, killed when dropped.
pub(crate) struct Process(Child);

impl Process {
    pub(crate) fn start(mut command: Command) -> Result<Process> {
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn();
        Ok(Process(child.with_context(|| format!("start {command:?}"))?))
    }

    /// CPU seconds used so far, in user and kernel mode.
    pub(crate) fn cpu_seconds(&self) -> Result<f64> {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.0.id()))?;
        // the name in parentheses may hold blanks; fields count from after it
        let fields: Vec<&str> = stat
            .rsplit_once(')')
            .map(|(_, rest)| rest.split_whitespace().collect())
            .unwrap_or_default();
        let ticks = |index: usize| fields.get(index).and_then(|ticks| ticks.parse::<f64>().ok());
        match (ticks(11), ticks(12)) {
            (Some(user), Some(kernel)) => Ok((user + kernel) / TICKS_PER_SECOND),
            _ => bail!("unreadable /proc/{}/stat", self.0.id()),
        }
    }

    /// Peak resident memory, MiB.
    pub(crate) fn peak_memory_mib(&self) -> Result<f64> {
        Ok(self.status("VmHWM:")? / 1024.0)
    }

    /// Resident memory, MiB.
    pub(crate) fn memory_mib(&self) -> Result<f64> {
        Ok(self.status("VmRSS:")? / 1024.0)
    }

    pub(crate) fn threads(&self) -> Result<f64> {
        self.status("Threads:")
    }

    /// Bytes that it received over the connections that it has to `server`, an address with a port.
    pub(crate) fn bytes_received(&self, server: &str) -> Result<f64> {
        let port = server.rsplit(':').next().unwrap_or_default();
        let output = Command::new("ss")
            .args(["-Htinp", &format!("dport = :{port}")])
            .output()
            .context("start ss (of iproute2)")?;
        let ours = format!("pid={},", self.0.id());
        let text = String::from_utf8_lossy(&output.stdout);
        let mut lines = text.lines();
        let mut received = 0.0;
        // two lines a connection: who has it, and its numbers
        while let (Some(owner), Some(numbers)) = (lines.next(), lines.next()) {
            let bytes = numbers.split_whitespace().find_map(|n| n.strip_prefix("bytes_received:"));
            if owner.contains(&ours) {
                received += bytes.and_then(|bytes| bytes.parse::<f64>().ok()).unwrap_or(0.0);
            }
        }
        Ok(received)
    }

    /// A number of `/proc/<pid>/status`; sizes are in KiB.
    fn status(&self, name: &str) -> Result<f64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.0.id()))?;
        let number = status
            .lines()
            .find_map(|line| line.strip_prefix(name))
            .and_then(|value| value.split_whitespace().next())
            .and_then(|number| number.parse().ok());
        number.with_context(|| format!("no {name}"))
    }

    /// Asks it to stop and waits; kills it after half a minute.
    pub(crate) fn stop(mut self) -> Result<()> {
        let pid = self.0.id().to_string();
        Command::new("kill").args(["-TERM", &pid]).status()?;
        let asked = Instant::now();
        while self.0.try_wait()?.is_none() {
            if asked.elapsed() > Duration::from_secs(30) {
                bail!("process {pid} did not stop within 30 s");
            }
            std::thread::sleep(Duration::from_millis(20)); // polling for the end of a child
        }
        Ok(())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // it may have ended already; then there is nothing to do
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
