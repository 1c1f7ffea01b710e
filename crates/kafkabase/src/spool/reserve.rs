//! A file whose only use is to be deleted when the disk is full.
//!
//! Whatever is replayed has to be marked as handed over first, and that needs room. Without a
//! reserve, a spool that filled its disk could never get empty again. While it is given up, events
//! are refused: what it gave belongs to marks. It is enough for the events of one segment, so those
//! of the oldest are sent first, and then that one is deleted.

use std::{
    io,
    time::{Duration, Instant},
};

use tracing::{error, info, warn};

use super::disk::{self, Disk};

const NAME: &str = "reserve";
/// Written at a time.
const PIECE: usize = 1 << 16;
/// An attempt to make it writes as much as the disk takes, so they are rare.
const TRY_AGAIN: Duration = Duration::from_secs(1);

/// Where the reserve stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Held,
    /// The disk was full.
    GivenUp,
    /// It cannot be made, for another reason: a limit to the size of files, say.
    Impossible,
}

pub(super) struct Reserve {
    bytes: u64,
    state: State,
    tried_at: Option<Instant>,
}

impl Reserve {
    /// Makes it, or takes it over.
    pub(super) fn open(disk: &dyn Disk, bytes: u64) -> io::Result<Reserve> {
        let mut reserve = Reserve { bytes, state: State::GivenUp, tried_at: None };
        if disk.list()?.iter().any(|name| name == NAME) {
            if disk.open(NAME)?.length()? == bytes {
                reserve.state = State::Held;
                return Ok(reserve);
            }
            disk::remove(disk, NAME)?; // of another size, or half made
        }
        reserve.make(disk);
        Ok(reserve)
    }

    /// Whether the disk is so full that only marks may be written.
    pub(super) fn is_given_up(&self) -> bool {
        self.state == State::GivenUp
    }

    /// Gives the room away, if that is what `error` asks for. True: another attempt may go well.
    pub(super) fn give_up(&mut self, disk: &dyn Disk, error: &io::Error) -> bool {
        if !is_full(error) || self.state != State::Held {
            return false;
        }
        error!("the spool's disk is full; events are refused until there is room");
        self.state = State::GivenUp;
        disk::remove(disk, NAME).is_ok()
    }

    /// Makes it again, if it was given up and there is room.
    pub(super) fn restore(&mut self, disk: &dyn Disk) {
        let is_early = self.tried_at.is_some_and(|at| at.elapsed() < TRY_AGAIN);
        if self.state != State::GivenUp || is_early {
            return;
        }
        self.tried_at = Some(Instant::now());
        if self.make(disk) {
            info!("the spool's disk has room again");
        }
    }

    fn make(&mut self, disk: &dyn Disk) -> bool {
        match fill(disk, self.bytes) {
            Ok(()) => self.state = State::Held,
            Err(error) => {
                let _ = disk::remove(disk, NAME); // left for the next attempt, or the next start
                if !is_full(&error) {
                    warn!(error = %error, "no reserve for a full disk");
                    self.state = State::Impossible;
                }
            }
        }
        self.state == State::Held
    }
}

fn fill(disk: &dyn Disk, bytes: u64) -> io::Result<()> {
    let file = disk.create(NAME)?;
    let mut at = 0;
    while at < bytes {
        let piece = (bytes - at).min(PIECE as u64);
        file.write(&vec![0; piece as usize], at)?; // at most PIECE
        at += piece;
    }
    file.sync()
}

fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}
