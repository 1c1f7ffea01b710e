//! Clients that post without end, each attempt with a new id, and remember what was answered with 200.

use std::{
    collections::HashSet,
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
    tables::{Table, event},
};

/// Of each instance.
const CLIENTS: usize = 4;
/// Between two posts of a client: the load is to be steady, not as high as possible.
const PAUSE: Duration = Duration::from_millis(4);
const PAUSE_AFTER_FAILURE: Duration = Duration::from_millis(100);
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
}

impl Traffic {
    pub(crate) fn start(ports: [u16; 2], began: Instant) -> Traffic {
        let shared = Arc::new(Shared {
            began,
            stop: AtomicBool::new(false),
            next: AtomicU64::new(0),
            answered: Mutex::new(Table::all().map(|_| HashSet::new()).collect()),
        });
        let mut clients = JoinSet::new();
        for port in ports.into_iter().flat_map(|port| [port; CLIENTS]) {
            let shared = shared.clone();
            clients.spawn(async move {
                while !shared.is_stopped() {
                    if shared.post_over_one_connection(port).await.is_err() {
                        tokio::time::sleep(PAUSE_AFTER_FAILURE).await;
                    }
                }
            });
        }
        Traffic { shared, clients }
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
            Table::all().filter(|table| now[table.index()] <= before[table.index()]).count()
        };
        let reached = wait_until(limit, || async { missing() == 0 }).await;
        reached.with_context(|| format!("{} tables get no 200", missing()))
    }

    /// Ends the clients and answers the ids of each table that got a 200.
    pub(crate) async fn finish(mut self) -> Vec<HashSet<u64>> {
        self.shared.stop.store(true, Ordering::Relaxed);
        while self.clients.join_next().await.is_some() {}
        std::mem::take(&mut *self.shared.answered.lock().expect("nobody panics while holding it"))
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
    async fn post_over_one_connection(&self, port: u16) -> Result<()> {
        let mut stream = timeout(GIVE_UP_AFTER, TcpStream::connect(("127.0.0.1", port))).await??;
        stream.set_nodelay(true)?;
        while !self.is_stopped() {
            let id = self.next.fetch_add(1, Ordering::Relaxed);
            let request = request(id, &event(id, self.began.elapsed()));
            let status = timeout(GIVE_UP_AFTER, exchange(&mut stream, &request)).await??;
            match status {
                200 => {
                    let mut answered = self.answered.lock().expect("nobody panics");
                    answered[Table::of(id).index()].insert(id);
                }
                503 => tokio::time::sleep(PAUSE_AFTER_FAILURE).await,
                status => bail!("status {status}"),
            }
            tokio::time::sleep(PAUSE).await;
        }
        Ok(())
    }
}

fn request(id: u64, event: &str) -> String {
    let table = Table::of(id);
    let mode = if table.kind().is_stream { "stream" } else { "batch" };
    let options = match table.kind().is_deduplicated {
        true => "streamoptions: {\"deduplicate\":true,\"primaryKey\":\"id\"}\r\n",
        false => "",
    };
    format!(
        "POST /post/{DESTINATION}?tableName={}&modeOverride={mode} HTTP/1.1\r\nhost: localhost\r\n\
         authorization: Bearer {TOKEN}\r\n{options}content-length: {}\r\n\r\n{event}",
        table.name(),
        event.len()
    )
}

async fn exchange(stream: &mut TcpStream, request: &str) -> Result<u16> {
    stream.write_all(request.as_bytes()).await?;
    let mut answer = [0; 4096];
    // answers are far shorter than a segment, so one read has all of it
    let read = stream.read(&mut answer).await?;
    ensure!(read > 0, "connection closed");
    let text = String::from_utf8_lossy(&answer[..read]);
    let status = text.split(' ').nth(1).context("no status")?;
    Ok(status.parse()?)
}
