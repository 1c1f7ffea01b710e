//! The program under test as a child process: its log, its answers, its end.

use std::{
    process::{ExitStatus, Stdio},
    sync::{Arc, Mutex},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tokio::{
    io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWriteExt, BufReader},
    net::TcpStream,
    process::{Child, Command},
    sync::watch,
    task::JoinHandle,
};

const SHOWN_ON_FAILURE: usize = 60;

/// A running program. Killed on drop, and when the test process is killed.
#[derive(Debug)]
pub struct Service {
    child: Child,
    pid: u32,
    lines: Arc<Mutex<Vec<String>>>,
    /// How many lines there are; closed when the program has closed its output.
    count: watch::Receiver<usize>,
    readers: Vec<JoinHandle<()>>,
}

impl Service {
    /// Starts `command` with both outputs captured, line by line.
    pub fn start(mut command: Command) -> Result<Service> {
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        let mut child = command.spawn().with_context(|| {
            format!("start {}", command.as_std().get_program().to_string_lossy())
        })?;
        let pid = child.id().context("the program ended at once")?;
        crate::guard::watch(pid)?;
        let lines = Arc::new(Mutex::new(Vec::new()));
        let (sender, count) = watch::channel(0);
        let sender = Arc::new(sender);
        let out = child.stdout.take().context("no output")?;
        let err = child.stderr.take().context("no error output")?;
        let readers = vec![
            tokio::spawn(collect(out, lines.clone(), sender.clone())),
            tokio::spawn(collect(err, lines.clone(), sender)),
        ];
        Ok(Service { child, pid, lines, count, readers })
    }

    pub fn pid(&self) -> i32 {
        self.pid as i32
    }

    /// Everything it wrote so far.
    pub fn lines(&self) -> Vec<String> {
        self.lines.lock().expect("nobody panics while holding it").clone()
    }

    /// The first line that holds `text`, written before or within `limit` from now.
    pub async fn wait_for_line(&self, text: &str, limit: Duration) -> Result<String> {
        let mut count = self.count.clone();
        let found = async {
            let mut seen = 0;
            loop {
                count.borrow_and_update();
                let lines = self.lines();
                if let Some(line) = lines[seen..].iter().find(|line| line.contains(text)) {
                    return Ok(line.clone());
                }
                seen = lines.len();
                if count.changed().await.is_err() {
                    bail!("the program ended without writing {text:?}");
                }
            }
        };
        tokio::time::timeout(limit, found)
            .await
            .with_context(|| format!("no line with {text:?} within {limit:?}"))?
    }

    /// Waits until `GET http://127.0.0.1:{port}{path}` answers 200; fails at once when the program
    /// has ended.
    pub async fn wait_for_ok(&mut self, port: u16, path: &str, limit: Duration) -> Result<()> {
        let deadline = tokio::time::Instant::now() + limit;
        loop {
            if let Some(status) = self.child.try_wait()? {
                bail!("the program ended with {status}");
            }
            let asked = tokio::time::timeout(limit, http_status(port, path)).await;
            if matches!(asked, Ok(Ok(200))) {
                return Ok(());
            }
            if tokio::time::Instant::now() >= deadline {
                bail!("{path} on port {port} did not answer 200 within {limit:?}");
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// `kill -9`, and waits until it is gone.
    pub async fn kill9(&mut self) -> Result<()> {
        self.signal(Signal::SIGKILL)?;
        self.wait(Duration::from_secs(10)).await.map(drop)
    }

    /// SIGTERM, and waits for the end.
    pub async fn terminate(&mut self, limit: Duration) -> Result<ExitStatus> {
        self.signal(Signal::SIGTERM)?;
        self.wait(limit).await
    }

    /// Waits until the program ends by itself.
    pub async fn wait(&mut self, limit: Duration) -> Result<ExitStatus> {
        let status = tokio::time::timeout(limit, self.child.wait())
            .await
            .with_context(|| format!("the program still runs after {limit:?}"))??;
        crate::guard::forget(self.pid);
        Ok(status)
    }

    /// SIGSTOP: alive, connected, and silent, until [`Service::continue_process`].
    pub fn stop_process(&self) -> Result<()> {
        self.signal(Signal::SIGSTOP)
    }

    pub fn continue_process(&self) -> Result<()> {
        self.signal(Signal::SIGCONT)
    }

    /// A `kill -9` to hand to a hook of a proxy: it returns when the signal is sent.
    pub fn killer(&self) -> impl Fn() + Send + Sync + 'static {
        let pid = Pid::from_raw(self.pid());
        move || {
            // ESRCH: it is dead already, which is what we want
            let _ = kill(pid, Signal::SIGKILL);
        }
    }

    /// [`Service::stop_process`] to hand to a hook of a proxy.
    pub fn freezer(&self) -> impl Fn() + Send + Sync + 'static {
        let pid = Pid::from_raw(self.pid());
        move || kill(pid, Signal::SIGSTOP).expect("the program runs")
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        if self.child.id().is_none() {
            bail!("the program has ended already");
        }
        kill(Pid::from_raw(self.pid()), signal).with_context(|| format!("send {signal}"))
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        // a test that goes well ends its programs itself
        let failed = std::thread::panicking() || self.child.id().is_some();
        if self.child.id().is_some() {
            let _ = self.child.start_kill(); // ended meanwhile: nothing to do
            crate::guard::forget(self.pid);
        }
        for reader in &self.readers {
            reader.abort();
        }
        if failed {
            let lines = self.lines();
            let first = lines.len().saturating_sub(SHOWN_ON_FAILURE);
            eprintln!("the last lines of process {}:\n{}", self.pid, lines[first..].join("\n"));
        }
    }
}

async fn collect(
    output: impl AsyncRead + Unpin,
    lines: Arc<Mutex<Vec<String>>>,
    count: Arc<watch::Sender<usize>>,
) {
    let mut reader = BufReader::new(output);
    let mut line = Vec::new();
    while matches!(reader.read_until(b'\n', &mut line).await, Ok(length) if length > 0) {
        let text = String::from_utf8_lossy(&line).trim_end().to_owned();
        line.clear();
        lines.lock().expect("nobody panics while holding it").push(text);
        count.send_modify(|count| *count += 1);
    }
}

/// The status code of `GET path` on a port of this machine.
pub async fn http_status(port: u16, path: &str) -> Result<u16> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await?;
    let text = String::from_utf8_lossy(&answer);
    let status = text.split(' ').nth(1).context("no HTTP answer")?;
    status.parse().context("no HTTP status")
}
