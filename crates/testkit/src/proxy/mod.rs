//! A TCP proxy between a loader and PostgreSQL that knows when a COMMIT passes.
//!
//! It follows the protocol's framing (PostgreSQL documentation, "Frontend/Backend Protocol") just
//! far enough to fire hooks at the moments that decide whether a load is exactly once: before
//! COMMIT reaches the server, before its answer reaches the client, right after. Encryption is
//! declined, so that what passes can be read.

mod frames;
mod session;

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use anyhow::{Context, Result};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::watch,
    task::{AbortHandle, JoinHandle},
};

/// A moment that a hook can wait for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// The first row of a COPY comes from the client.
    CopyStarted,
    /// The client sent a COMMIT; the server has not seen it.
    BeforeCommitForwarded,
    /// The server has committed; the client does not know yet.
    BeforeCommitAnswer,
    /// The server has committed, and the answer is on its way to the client.
    AfterCommitAnswer,
}

/// What is known about a moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moment {
    pub event: Event,
    /// Counts the connections through this proxy, from 1.
    pub connection: usize,
    /// Bytes of COPY rows that the transaction sent so far: 0 tells a load's commit from the
    /// others.
    pub copied_bytes: u64,
}

/// What a hook wants to happen next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Then {
    Forward,
    /// Both sides of the connection are closed; what was held back is lost.
    Cut,
    /// Nothing passes any more, until the waiting side gives up and closes the connection.
    Hold,
}

type Action = Arc<dyn Fn(Moment) -> Then + Send + Sync>;

/// The proxy; its connections end with it.
pub struct PostgresProxy {
    address: SocketAddr,
    shared: Arc<Shared>,
    accepting: JoinHandle<()>,
}

/// What all connections of a proxy share.
struct Shared {
    hooks: Mutex<Vec<(Event, Action)>>,
    connections: Mutex<Vec<AbortHandle>>,
    flows: watch::Sender<bool>,
}

impl PostgresProxy {
    /// Listens on a free port of loopback and forwards to `host:port`.
    pub async fn start(host: &str, port: u16) -> Result<PostgresProxy> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.context("listen")?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared {
            hooks: Mutex::default(),
            connections: Mutex::default(),
            flows: watch::Sender::new(true),
        });
        let accepting = tokio::spawn(accept(listener, (host.to_owned(), port), shared.clone()));
        Ok(PostgresProxy { address, shared, accepting })
    }

    pub fn host(&self) -> String {
        self.address.ip().to_string()
    }

    pub fn port(&self) -> u16 {
        self.address.port()
    }

    /// Calls `action` whenever `event` comes; nothing passes on that connection meanwhile.
    pub fn on(&self, event: Event, action: impl Fn(Moment) -> Then + Send + Sync + 'static) {
        self.shared.hooks().push((event, Arc::new(action)));
    }

    /// Forgets all hooks.
    pub fn clear(&self) {
        self.shared.hooks().clear();
    }

    /// Closes both sides of every connection; new ones are accepted.
    pub fn cut(&self) {
        for connection in self.shared.connections().drain(..) {
            connection.abort();
        }
    }

    /// Holds everything that arrives, in both directions, on old and new connections.
    pub fn pause(&self) {
        self.shared.flows.send_replace(false);
    }

    pub fn resume(&self) {
        self.shared.flows.send_replace(true);
    }
}

impl Drop for PostgresProxy {
    fn drop(&mut self) {
        self.accepting.abort();
        self.cut();
    }
}

impl Shared {
    /// Runs the hooks of an event; one that cuts or holds is enough.
    fn fire(&self, moment: Moment) -> Then {
        let actions: Vec<Action> = self
            .hooks()
            .iter()
            .filter(|(event, _)| *event == moment.event)
            .map(|(_, action)| action.clone())
            .collect(); // called without the lock: an action may set hooks
        // all of them run, also those after one that cuts
        let wanted: Vec<_> = actions.iter().map(|action| action(moment)).collect();
        let first = |then: Then| wanted.contains(&then).then_some(then);
        first(Then::Cut).or(first(Then::Hold)).unwrap_or(Then::Forward)
    }

    fn hooks(&self) -> std::sync::MutexGuard<'_, Vec<(Event, Action)>> {
        self.hooks.lock().expect("nobody panics while holding it")
    }

    fn connections(&self) -> std::sync::MutexGuard<'_, Vec<AbortHandle>> {
        self.connections.lock().expect("nobody panics while holding it")
    }
}

async fn accept(listener: TcpListener, server: (String, u16), shared: Arc<Shared>) {
    let mut number = 0;
    while let Ok((client, _)) = listener.accept().await {
        number += 1;
        let (server, own) = (server.clone(), shared.clone());
        let task = tokio::spawn(async move {
            // an unreachable server closes the client's connection, as without us
            if let Ok(server) = TcpStream::connect(server).await {
                session::run(client, server, own, number).await;
            }
        });
        let mut connections = shared.connections();
        connections.retain(|connection| !connection.is_finished());
        connections.push(task.abort_handle());
    }
}
