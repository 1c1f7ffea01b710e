//! The clock of an instance, as far as its loader reads it: a file says by how much it is set ahead
//! of the machine's, which belongs to everybody.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// The variable that names the file, in builds for tests.
pub(crate) const VARIABLE: &str = "BULKER_TEST_CLOCK_FILE";

pub(crate) struct Clock {
    file: PathBuf,
}

impl Clock {
    /// A clock that is right so far.
    pub(crate) fn new(folder: &Path, number: usize) -> Clock {
        Clock { file: folder.join(format!("clock-{number}")) }
    }

    pub(crate) fn file(&self) -> String {
        self.file.display().to_string()
    }

    /// Sets it so many seconds ahead, or behind. The instance looks twice a second.
    pub(crate) fn step(&self, ahead: i64) -> Result<()> {
        std::fs::write(&self.file, ahead.to_string()).context("set the clock")
    }
}
