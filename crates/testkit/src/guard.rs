//! Child processes that do not outlive this one: a helper kills them when this process is gone.
//!
//! `kill_on_drop` does not run in a process that is killed, and a parent-death signal follows the
//! thread that started the child. So a small process of its own holds the other end of a pipe.

use std::{
    io::Write,
    os::unix::process::CommandExt,
    process::{Child, Command, Stdio},
    sync::Mutex,
};

use anyhow::{Context, Result};

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../scripts/lib/guard");

static GUARD: Mutex<Option<Child>> = Mutex::new(None);

/// From now on `pid` is killed when this process ends.
pub(crate) fn watch(pid: u32) -> Result<()> {
    tell(&format!("+ {pid}\n"))
}

/// `pid` has ended; its number may belong to a stranger soon.
pub(crate) fn forget(pid: u32) {
    if let Err(error) = tell(&format!("- {pid}\n")) {
        eprintln!("testkit: the guard does not answer: {error:#}");
    }
}

fn tell(line: &str) -> Result<()> {
    let mut guard = GUARD.lock().expect("nobody panics while holding it");
    if guard.is_none() {
        *guard = Some(start()?);
    }
    let input =
        guard.as_mut().and_then(|child| child.stdin.as_mut()).context("the guard has no input")?;
    input.write_all(line.as_bytes()).context("tell the guard")
}

fn start() -> Result<Child> {
    Command::new(SCRIPT)
        .process_group(0) // Ctrl-C ends the tests first, and by that the guard's input
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .with_context(|| format!("start {SCRIPT}"))
}
