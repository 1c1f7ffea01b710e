//! Free ports below the range that outgoing connections are given theirs from.
//!
//! A port of that range could be taken by another process's connection while our part is stopped,
//! and a client that keeps knocking at a closed port of that range can end up connected to itself.

use std::{collections::HashSet, net::TcpListener, sync::Mutex};

use anyhow::{Context, Result};

const FIRST: u16 = 20_000;
const COUNT: u16 = 12_000;

static HANDED_OUT: Mutex<Option<HashSet<u16>>> = Mutex::new(None);

/// A port on loopback that is not listened on; never the same one twice in a process.
pub fn free_port() -> Result<u16> {
    let mut guard = HANDED_OUT.lock().expect("nobody panics while holding it");
    let handed_out = guard.get_or_insert_default();
    (0..1000)
        .map(|_| FIRST + (uuid::Uuid::new_v4().as_u128() % u128::from(COUNT)) as u16)
        .find(|port| {
            !handed_out.contains(port)
                && TcpListener::bind(("127.0.0.1", *port)).is_ok()
                && handed_out.insert(*port)
        })
        .context("no free port between 20000 and 32000")
}
