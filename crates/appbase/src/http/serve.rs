//! A server with limits: connections, bytes and time for a head, time for an answer to be taken,
//! and a drain that ends.
//!
//! axum's own `serve` has none of them. Invariants: after the stop no connection is accepted,
//! requests that have begun are answered, and at the deadline what is left is cut. Nothing that a
//! client does, or leaves undone, keeps probes from being answered, or others for longer than the
//! idle time.

use std::{any::Any, convert::Infallible, future::Future, io, sync::Arc, time::Duration};

use axum::{
    Router,
    body::Body,
    http::{
        HeaderValue, Request, Response, StatusCode,
        header::{CONNECTION, CONTENT_TYPE, RETRY_AFTER},
    },
};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use nix::sys::socket::{setsockopt, sockopt};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{Semaphore, mpsc},
    time::sleep,
};
use tokio_util::sync::CancellationToken;
use tower::{Layer, ServiceExt};
use tower_http::catch_panic::{CatchPanicLayer, ResponseForPanic};
use tracing::{debug, error, warn};

use super::{
    connection::{AnswerBody, Connection, InHand},
    path::without_repeated_slashes,
    pool::Pool,
    stream::{FREE_HEAD, GuardedStream},
};

/// Pause after a failed accept: out of file handles, most likely, so trying at once would only burn
/// CPU.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// Keepalive probes that a vanished client leaves unanswered before its connection ends, and the
/// pause between them.
const KEEPALIVE_PROBES: u32 = 4;
const KEEPALIVE_PAUSE: Duration = Duration::from_secs(15);
/// Says that an answer is its connection's last.
const CLOSE: HeaderValue = HeaderValue::from_static("close");

/// What a server bears; fields, so that a test can make them small.
#[derive(Debug, Clone, Copy)]
pub struct ServerLimits {
    /// Connections at a time. Beyond them an idle one gives way; where none is idle, requests wait
    /// for the first that ends.
    pub connections: u32,
    /// How long a client may take for the head of a request, how long a connection may be idle, and
    /// how long a client may leave an answer where it is.
    pub header_timeout: Duration,
    /// Bytes of the head of a request; a larger one is answered with 431. 8 KiB at least.
    pub header_bytes: usize,
    /// Bytes of all heads together, beside 8 KiB of each connection; one large head at least.
    pub header_memory: usize,
    /// How long a connection is silent before it is asked whether its client is still there.
    pub keepalive: Duration,
    /// How long requests may take after the stop.
    pub drain: Duration,
}

/// Serves one router on one listener.
pub struct Server {
    listener: TcpListener,
    router: Router,
    limits: ServerLimits,
    probes: &'static [&'static str],
    on_panic: fn(),
}

impl Server {
    /// `probes` are paths that are answered whatever clients do: by short answers that wait for
    /// nothing. `on_panic` is called for each request whose handler panicked; it is answered with
    /// 500. Repeated slashes in a path are one. Nothing is accepted before [`Server::run`].
    pub fn new(
        listener: TcpListener,
        router: Router,
        limits: ServerLimits,
        probes: &'static [&'static str],
        on_panic: fn(),
    ) -> Server {
        Server { listener, router, limits, probes, on_panic }
    }

    /// Serves until `stop`, then lets requests end, for [`ServerLimits::drain`] at most. A dropped
    /// call stops accepting; connections that are open run on until `stop` or their clients end
    /// them.
    pub async fn run(self, stop: CancellationToken) {
        let pool = Arc::new(Pool::new(self.limits.connections));
        let header_bytes = self.limits.header_bytes.max(FREE_HEAD);
        let large_heads = (self.limits.header_memory / header_bytes).max(1);
        let large_heads = Arc::new(Semaphore::new(large_heads));
        let cut = CancellationToken::new();
        let (alive, mut ended) = mpsc::channel::<()>(1);
        loop {
            let accepted = async {
                let stream = self.accept().await;
                (stream, pool.enter().await)
            };
            let (stream, connection) = tokio::select! {
                () = stop.cancelled() => break,
                accepted = accepted => accepted,
            };
            let (idle, heads) = (self.limits.header_timeout, large_heads.clone());
            let stream = GuardedStream::new(stream, connection.clone(), heads, idle);
            let served = self.serve_connection(stream, &connection, &pool, stop.clone());
            let (pool, cut, alive) = (pool.clone(), cut.clone(), alive.clone());
            tokio::spawn(async move {
                tokio::select! {
                    () = served => {}
                    () = connection.close.cancelled() => {}
                    () = cut.cancelled() => {}
                }
                pool.leave(&connection);
                drop(alive);
            });
        }
        drop(self.listener);
        drop(alive);
        if tokio::time::timeout(self.limits.drain, ended.recv()).await.is_err() {
            let connections = ended.sender_strong_count();
            warn!(connections, "requests cut by the deadline of the stop");
        }
        cut.cancel();
    }

    fn serve_connection(
        &self,
        stream: GuardedStream<TcpStream>,
        connection: &Arc<Connection>,
        pool: &Arc<Pool>,
        stop: CancellationToken,
    ) -> impl Future<Output = ()> + use<> {
        let handler =
            CatchPanicLayer::custom(AnswerPanic(self.on_panic)).layer(self.router.clone());
        let (connection, pool, probes) = (connection.clone(), pool.clone(), self.probes);
        let service = service_fn(move |mut request: Request<Incoming>| {
            if let Some(uri) = without_repeated_slashes(request.uri()) {
                *request.uri_mut() = uri;
            }
            let (handler, connection, pool) = (handler.clone(), connection.clone(), pool.clone());
            async move {
                let Some(in_hand) = connection.begin() else {
                    return std::future::pending().await; // it is being closed
                };
                let is_probe = probes.contains(&request.uri().path());
                let is_admitted =
                    connection.is_admitted() || is_probe || pool.admit(&connection).await;
                if !is_admitted {
                    return Ok(no_room(in_hand));
                }
                let response = handler.oneshot(request.map(Body::new)).await;
                let mut response = response.unwrap_or_else(|never| match never {});
                if !connection.is_admitted() || pool.is_awaited() {
                    response.headers_mut().insert(CONNECTION, CLOSE);
                }
                let answer = response.map(|body| AnswerBody::of_handler(body, in_hand));
                Ok::<_, Infallible>(answer)
            }
        });
        let mut connections = http1::Builder::new();
        connections
            .timer(TokioTimer::new())
            .header_read_timeout(self.limits.header_timeout)
            .max_buf_size(self.limits.header_bytes.max(FREE_HEAD));
        async move {
            let connection = connections.serve_connection(TokioIo::new(stream), service);
            tokio::pin!(connection);
            let ended = tokio::select! {
                ended = connection.as_mut() => ended,
                () = stop.cancelled() => {
                    connection.as_mut().graceful_shutdown();
                    connection.await
                }
            };
            if let Err(error) = ended {
                debug!(error = %error, "connection ended");
            }
        }
    }

    /// The next connection; goes on after failures, which are the client's or pass by.
    async fn accept(&self) -> TcpStream {
        loop {
            match self.listener.accept().await {
                Ok((stream, _)) => {
                    self.set_options(&stream);
                    return stream;
                }
                Err(error) if is_of_one_connection(&error) => {}
                Err(error) => {
                    warn!(error = %error, "no connection can be accepted");
                    sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    fn set_options(&self, stream: &TcpStream) {
        // answers are small and wait for nothing
        if let Err(error) = stream.set_nodelay(true) {
            debug!(error = %error, "connection keeps its delay");
        }
        let seconds = |time: Duration| u32::try_from(time.as_secs().max(1)).unwrap_or(u32::MAX);
        let set = setsockopt(stream, sockopt::KeepAlive, &true)
            .and_then(|()| {
                setsockopt(stream, sockopt::TcpKeepIdle, &seconds(self.limits.keepalive))
            })
            .and_then(|()| setsockopt(stream, sockopt::TcpKeepInterval, &seconds(KEEPALIVE_PAUSE)))
            .and_then(|()| setsockopt(stream, sockopt::TcpKeepCount, &KEEPALIVE_PROBES));
        if let Err(error) = set {
            debug!(error = %error, "connection does not ask for its client");
        }
    }
}

/// What a request gets that had to make way for others while it waited.
fn no_room<B>(in_hand: InHand) -> Response<AnswerBody<B>> {
    let body = r#"{"error":"too many connections"}"#;
    let mut response = Response::new(AnswerBody::of_server(body, in_hand));
    *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
    for (name, value) in [
        (CONTENT_TYPE, HeaderValue::from_static("application/json; charset=utf-8")),
        (RETRY_AFTER, HeaderValue::from_static("1")),
        (CONNECTION, CLOSE),
    ] {
        response.headers_mut().insert(name, value);
    }
    response
}

/// Counts a panic and answers it.
#[derive(Clone)]
struct AnswerPanic(fn());

impl ResponseForPanic for AnswerPanic {
    type ResponseBody = Body;

    fn response_for_panic(&mut self, panic: Box<dyn Any + Send>) -> Response<Body> {
        self.0();
        let message = panic
            .downcast_ref::<String>()
            .map(String::as_str)
            .or_else(|| panic.downcast_ref::<&str>().copied())
            .unwrap_or("unknown");
        error!(panic = message, "request handler panicked");
        let mut response = Response::new(Body::empty());
        *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
        response
    }
}

fn is_of_one_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionRefused
            | io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
    )
}

#[cfg(test)]
pub(super) mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use axum::routing::get;
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        task::JoinHandle,
    };

    use super::*;

    static PANICS: AtomicUsize = AtomicUsize::new(0);

    pub(in crate::http) struct Running {
        pub(in crate::http) address: std::net::SocketAddr,
        stop: CancellationToken,
        task: JoinHandle<()>,
    }

    pub(in crate::http) async fn start(router: Router, limits: ServerLimits) -> Running {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let stop = CancellationToken::new();
        let count = || {
            PANICS.fetch_add(1, Ordering::Relaxed);
        };
        let server = Server::new(listener, router, limits, &["/probe"], count);
        Running { address, stop: stop.clone(), task: tokio::spawn(server.run(stop)) }
    }

    pub(in crate::http) fn limits() -> ServerLimits {
        ServerLimits {
            connections: 100,
            header_timeout: Duration::from_secs(10),
            header_bytes: 100_000,
            header_memory: 200_000,
            keepalive: Duration::from_secs(60),
            drain: Duration::from_secs(10),
        }
    }

    pub(in crate::http) async fn exchange(stream: &mut TcpStream, request: &str) -> String {
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    const GET_SLOW: &str = "GET /slow HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";

    #[tokio::test]
    async fn a_panic_is_a_500_without_a_body_and_is_counted() {
        async fn panics() -> &'static str {
            panic!("out of cheese")
        }
        let running = start(Router::new().route("/panic", get(panics)), limits()).await;
        let mut stream = TcpStream::connect(running.address).await.unwrap();
        let request = "GET /panic HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
        let answer = exchange(&mut stream, request).await;
        assert!(answer.starts_with("HTTP/1.1 500 "), "{answer}");
        assert!(answer.ends_with("\r\n\r\n"), "{answer}");
        assert_eq!(PANICS.load(Ordering::Relaxed), 1);
    }

    #[tokio::test]
    async fn repeated_slashes_reach_the_route() {
        let running = start(Router::new().route("/a/b", get(|| async { "found" })), limits()).await;
        let mut stream = TcpStream::connect(running.address).await.unwrap();
        let request = "GET //a///b HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
        assert!(exchange(&mut stream, request).await.ends_with("found"));
    }

    #[tokio::test]
    async fn a_stop_answers_what_has_begun_and_accepts_nothing_new() {
        let (begun, mut has_begun) = tokio::sync::mpsc::channel(1);
        let (release, released) = tokio::sync::watch::channel(false);
        let slow = move || {
            let (begun, mut released) = (begun.clone(), released.clone());
            async move {
                begun.send(()).await.unwrap();
                released.wait_for(|released| *released).await.unwrap();
                "late answer"
            }
        };
        let running = start(Router::new().route("/slow", get(slow)), limits()).await;
        let mut stream = TcpStream::connect(running.address).await.unwrap();
        let answer = tokio::spawn(async move { exchange(&mut stream, GET_SLOW).await });
        has_begun.recv().await.unwrap();
        running.stop.cancel();
        while TcpStream::connect(running.address).await.is_ok() {
            tokio::task::yield_now().await;
        }
        assert!(!running.task.is_finished());
        release.send(true).unwrap();
        assert!(answer.await.unwrap().ends_with("late answer"));
        running.task.await.unwrap();
    }

    #[tokio::test]
    async fn a_stop_cuts_what_does_not_end() {
        let router = Router::new().route("/slow", get(std::future::pending::<&'static str>));
        let limits = ServerLimits { drain: Duration::from_millis(50), ..limits() };
        let running = start(router, limits).await;
        let mut stream = TcpStream::connect(running.address).await.unwrap();
        stream.write_all(GET_SLOW.as_bytes()).await.unwrap();
        running.stop.cancel();
        running.task.await.unwrap();
        let mut answer = Vec::new();
        // cut: an end or a reset, but no answer
        let _ = stream.read_to_end(&mut answer).await;
        assert!(answer.is_empty());
    }

    #[tokio::test]
    async fn a_head_that_does_not_come_ends_its_connection() {
        let limits = ServerLimits { header_timeout: Duration::from_millis(50), ..limits() };
        let running = start(Router::new(), limits).await;
        let mut stream = TcpStream::connect(running.address).await.unwrap();
        stream.write_all(b"GET / HTTP/1.1\r\nHost:").await.unwrap();
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer).await;
        assert!(!answer.starts_with(b"HTTP/1.1 200"));
    }
}
