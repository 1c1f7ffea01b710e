//! Clients that post without end, each attempt with a new id, and remember what was answered with
//! 200, and why not.

use std::{
    collections::{BTreeSet, HashSet},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use testkit::wait_until;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    task::JoinSet,
    time::{Instant, timeout},
};

use crate::{
    app::{DESTINATION, TOKEN},
    event::event,
    tables::{OWN, Table},
};

/// Of each instance.
const CLIENTS: usize = 4;
/// Between two posts of a client: the load is to be steady, not as high as possible.
const PAUSE: Duration = Duration::from_millis(4);
const PAUSE_AFTER_FAILURE: Duration = Duration::from_millis(100);
/// Between two attempts to write to the loader's own tables.
const PAUSE_OF_AN_INTRUDER: Duration = Duration::from_millis(700);
/// What events of a table with a key say of it.
pub(crate) const KEYED: &str = r#"{"deduplicate":true,"primaryKey":"id"}"#;
/// After which a client gives an attempt up.
const GIVE_UP_AFTER: Duration = Duration::from_secs(10);

pub(crate) struct Traffic {
    shared: Arc<Shared>,
    clients: JoinSet<()>,
}

struct Shared {
    began: Instant,
    stop: AtomicBool,
    next: AtomicU64,
    answered: Mutex<Vec<HashSet<u64>>>,
    /// By instance.
    refusals: [Refusals; 2],
    /// What a client should not have been told: 503 for any other reason, with a spool, and any
    /// other status.
    strange: Mutex<BTreeSet<String>>,
    /// Attempts to write to the loader's own tables that were refused.
    intrusions: AtomicU64,
}

/// Ids for whoever else sends events.
#[derive(Clone)]
pub(crate) struct Ids(Arc<Shared>);

impl Ids {
    pub(crate) fn take(&self) -> u64 {
        self.0.next.fetch_add(1, Ordering::Relaxed)
    }

    /// Of the run.
    pub(crate) fn age(&self) -> Duration {
        self.0.began.elapsed()
    }

    pub(crate) fn answered(&self, id: u64) {
        self.0.answered(id);
    }

    pub(crate) fn is_stopped(&self) -> bool {
        self.0.is_stopped()
    }
}

/// How often an instance said no, by the reason that it gave.
#[derive(Debug, Default)]
struct Refusals {
    full: AtomicU64,
    disk: AtomicU64,
}

/// What the clients were told, over all.
#[derive(Debug)]
pub(crate) struct Answers {
    /// The ids of each table that got a 200.
    pub(crate) answered: Vec<HashSet<u64>>,
    pub(crate) spool_full: u64,
    pub(crate) disk_failed: u64,
    /// Attempts to write to the loader's own tables that were refused.
    pub(crate) intrusions: u64,
}

impl Traffic {
    pub(crate) fn start(ports: [u16; 2], began: Instant) -> Traffic {
        let shared = Arc::new(Shared {
            began,
            stop: AtomicBool::new(false),
            next: AtomicU64::new(0),
            answered: Mutex::new(Table::all().map(|_| HashSet::new()).collect()),
            refusals: Default::default(),
            strange: Mutex::default(),
            intrusions: AtomicU64::new(0),
        });
        let mut clients = JoinSet::new();
        let instances = ports.into_iter().enumerate();
        for (instance, port) in instances.flat_map(|instance| [instance; CLIENTS]) {
            let shared = shared.clone();
            clients.spawn(async move {
                while !shared.is_stopped() {
                    if shared.post_over_one_connection(instance, port).await.is_err() {
                        tokio::time::sleep(PAUSE_AFTER_FAILURE).await;
                    }
                }
            });
        }
        let intruder = shared.clone();
        clients.spawn(async move {
            for (name, port) in OWN.iter().cycle().zip(ports.into_iter().cycle()) {
                if intruder.is_stopped() {
                    break;
                }
                let _ = timeout(GIVE_UP_AFTER, intruder.intrude(name, port)).await;
                tokio::time::sleep(PAUSE_OF_AN_INTRUDER).await;
            }
        });
        Traffic { shared, clients }
    }

    /// One more client, which ends when [`Ids::is_stopped`].
    pub(crate) fn join(&mut self, client: impl Future<Output = ()> + Send + 'static) {
        self.clients.spawn(client);
    }

    pub(crate) fn ids(&self) -> Ids {
        Ids(self.shared.clone())
    }

    /// How many attempts there were.
    pub(crate) fn attempts(&self) -> u64 {
        self.shared.next.load(Ordering::Relaxed)
    }

    /// Waits until each table was answered for once more.
    pub(crate) async fn goes_on_everywhere(&self, limit: Duration) -> Result<()> {
        let before = self.counts();
        let missing = || {
            let now = self.counts();
            let missing = Table::all().filter(|t| now[t.index()] <= before[t.index()]);
            missing.map(Table::name).collect::<Vec<_>>()
        };
        let reached = wait_until(limit, || async { missing().is_empty() }).await;
        reached.with_context(|| format!("tables get no 200: {:?}", missing()))
    }

    /// How often an instance said that its spool is full.
    pub(crate) fn spool_full(&self, instance: usize) -> u64 {
        self.shared.refusals[instance].full.load(Ordering::Relaxed)
    }

    /// How often an instance said that its disk fails.
    pub(crate) fn disk_failed(&self, instance: usize) -> u64 {
        self.shared.refusals[instance].disk.load(Ordering::Relaxed)
    }

    /// Ends the clients. An error when one was told no without a reason that it may have.
    pub(crate) async fn finish(mut self) -> Result<Answers> {
        self.shared.stop.store(true, Ordering::Relaxed);
        while self.clients.join_next().await.is_some() {}
        let strange = self.shared.strange.lock().expect("nobody panics while holding it").clone();
        ensure!(strange.is_empty(), "clients were told what nobody should be: {strange:#?}");
        let answered = std::mem::take(
            &mut *self.shared.answered.lock().expect("nobody panics while holding it"),
        );
        let spool_full = self.spool_full(0) + self.spool_full(1);
        let disk_failed = self.disk_failed(0) + self.disk_failed(1);
        let intrusions = self.shared.intrusions.load(Ordering::Relaxed);
        Ok(Answers { answered, spool_full, disk_failed, intrusions })
    }

    fn counts(&self) -> Vec<usize> {
        let answered = self.shared.answered.lock().expect("nobody panics while holding it");
        answered.iter().map(HashSet::len).collect()
    }
}

impl Shared {
    fn is_stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// Posts until the connection fails or an event is not taken.
    async fn post_over_one_connection(&self, instance: usize, port: u16) -> Result<()> {
        let mut stream = timeout(GIVE_UP_AFTER, TcpStream::connect(("127.0.0.1", port))).await??;
        stream.set_nodelay(true)?;
        while !self.is_stopped() {
            let id = self.next.fetch_add(1, Ordering::Relaxed);
            let request = request(id, &event(id, self.began.elapsed()));
            let answer = timeout(GIVE_UP_AFTER, exchange(&mut stream, &request)).await??;
            match status_of(&answer)? {
                200 => self.answered(id),
                503 => {
                    self.note_refusal(instance, &answer);
                    tokio::time::sleep(PAUSE_AFTER_FAILURE).await;
                }
                status => {
                    self.note_strange(&answer);
                    bail!("status {status}")
                }
            }
            tokio::time::sleep(PAUSE).await;
        }
        Ok(())
    }

    fn answered(&self, id: u64) {
        let mut answered = self.answered.lock().expect("nobody panics while holding it");
        answered[Table::of(id).index()].insert(id);
    }

    /// Tries to write to a table of the loader's own: there is no way to be let in.
    async fn intrude(&self, name: &str, port: u16) -> Result<()> {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).await?;
        let answer = exchange(&mut stream, &post(name, "batch", "", "{}")).await?;
        match status_of(&answer)? {
            400 => drop(self.intrusions.fetch_add(1, Ordering::Relaxed)),
            _ => self.note_strange(&answer),
        }
        Ok(())
    }

    fn note_strange(&self, answer: &str) {
        let status = answer.lines().next().unwrap_or_default();
        let body = answer.split("\r\n\r\n").last().unwrap_or_default();
        self.strange.lock().expect("nobody panics").insert(format!("{status}: {body}"));
    }

    fn note_refusal(&self, instance: usize, answer: &str) {
        let refusals = &self.refusals[instance];
        if answer.contains("spool is full") {
            refusals.full.fetch_add(1, Ordering::Relaxed);
        } else if answer.contains("the spool's disk failed") {
            refusals.disk.fetch_add(1, Ordering::Relaxed);
        } else {
            self.note_strange(answer);
        }
    }
}

fn request(id: u64, event: &str) -> String {
    let table = Table::of(id);
    let mode = if table.kind().is_stream { "stream" } else { "batch" };
    let options = match table.kind().is_deduplicated {
        true => format!("streamoptions: {KEYED}\r\n"),
        false => String::new(),
    };
    post(&table.name(), mode, &options, event)
}

/// `headers`: lines, each with its end.
fn post(table: &str, mode: &str, headers: &str, event: &str) -> String {
    let table: String = form_urlencoded::byte_serialize(table.as_bytes()).collect();
    format!(
        "POST /post/{DESTINATION}?tableName={table}&modeOverride={mode} HTTP/1.1\r\nhost: localhost\r\n\
         authorization: Bearer {TOKEN}\r\n{headers}content-length: {}\r\n\r\n{event}",
        event.len()
    )
}

async fn exchange(stream: &mut TcpStream, request: &str) -> Result<String> {
    stream.write_all(request.as_bytes()).await?;
    let mut answer = [0; 4096];
    // answers are far shorter than a segment, so one read has all of it
    let read = stream.read(&mut answer).await?;
    ensure!(read > 0, "connection closed");
    Ok(String::from_utf8_lossy(&answer[..read]).into_owned())
}

fn status_of(answer: &str) -> Result<u16> {
    Ok(answer.split(' ').nth(1).context("no status")?.parse()?)
}
