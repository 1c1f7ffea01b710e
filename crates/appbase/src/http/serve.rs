//! A server with limits: connections, time for a head, and a drain that ends.
//!
//! axum's own `serve` has none of them. Invariant: after the stop no connection is accepted,
//! requests that have begun are answered, and at the deadline what is left is cut.

use std::{any::Any, convert::Infallible, future::Future, io, sync::Arc, time::Duration};

use axum::{
    Router,
    body::Body,
    http::{Request, Response, StatusCode},
};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    time::sleep,
};
use tokio_util::sync::CancellationToken;
use tower::{Layer, ServiceExt};
use tower_http::catch_panic::{CatchPanicLayer, ResponseForPanic};
use tracing::{debug, error, warn};

use super::path::without_repeated_slashes;

/// Pause after a failed accept: out of file handles, most likely, so trying at once would only burn
/// CPU.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// What a server bears; fields, so that a test can make them small.
#[derive(Debug, Clone, Copy)]
pub struct ServerLimits {
    /// Connections at a time; more wait to be accepted.
    pub connections: u32,
    /// How long a client may take for the head of a request, and how long a connection may be idle.
    pub header_timeout: Duration,
    /// How long requests may take after the stop.
    pub drain: Duration,
}

/// Serves one router on one listener.
pub struct Server {
    listener: TcpListener,
    router: Router,
    limits: ServerLimits,
    on_panic: fn(),
}

impl Server {
    /// `on_panic` is called for each request whose handler panicked; it is answered with 500.
    /// Repeated slashes in a path are one. Nothing is accepted before [`Server::run`].
    pub fn new(
        listener: TcpListener,
        router: Router,
        limits: ServerLimits,
        on_panic: fn(),
    ) -> Server {
        Server { listener, router, limits, on_panic }
    }

    /// Serves until `stop`, then lets requests end, for [`ServerLimits::drain`] at most. A dropped
    /// call stops accepting; connections that are open run on until `stop` or their clients end
    /// them.
    pub async fn run(self, stop: CancellationToken) {
        let limit = self.limits.connections;
        let free = Arc::new(Semaphore::new(limit as usize));
        let cut = CancellationToken::new();
        loop {
            let accepted = async {
                // a closed semaphore would end the server; it is never closed
                let permit = free.clone().acquire_owned().await.ok()?;
                Some((accept(&self.listener).await, permit))
            };
            let (stream, permit) = tokio::select! {
                () = stop.cancelled() => break,
                accepted = accepted => match accepted {
                    Some(accepted) => accepted,
                    None => break,
                },
            };
            let served = self.serve_connection(stream, stop.clone());
            let cut = cut.clone();
            tokio::spawn(async move {
                tokio::select! {
                    () = served => {}
                    () = cut.cancelled() => {}
                }
                drop(permit);
            });
        }
        drop(self.listener);
        // all permits free: all connections ended
        if tokio::time::timeout(self.limits.drain, free.acquire_many(limit)).await.is_err() {
            let left = limit as usize - free.available_permits();
            warn!(connections = left, "requests cut by the deadline of the stop");
        }
        cut.cancel();
    }

    fn serve_connection(
        &self,
        stream: TcpStream,
        stop: CancellationToken,
    ) -> impl Future<Output = ()> + use<> {
        let handler =
            CatchPanicLayer::custom(AnswerPanic(self.on_panic)).layer(self.router.clone());
        let service = service_fn(move |mut request: Request<Incoming>| {
            if let Some(uri) = without_repeated_slashes(request.uri()) {
                *request.uri_mut() = uri;
            }
            let handler = handler.clone();
            async move {
                let response = handler.oneshot(request.map(Body::new)).await;
                Ok::<_, Infallible>(response.unwrap_or_else(|never| match never {}))
            }
        });
        let mut connections = http1::Builder::new();
        connections.timer(TokioTimer::new()).header_read_timeout(self.limits.header_timeout);
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

/// The next connection; goes on after failures, which are the client's or pass by.
async fn accept(listener: &TcpListener) -> TcpStream {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                // answers are small and wait for nothing
                if let Err(error) = stream.set_nodelay(true) {
                    debug!(error = %error, "connection keeps its delay");
                }
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

fn is_of_one_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionRefused
            | io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
    )
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use axum::routing::get;
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        task::JoinHandle,
    };

    use super::*;

    static PANICS: AtomicUsize = AtomicUsize::new(0);

    struct Running {
        address: std::net::SocketAddr,
        stop: CancellationToken,
        task: JoinHandle<()>,
    }

    async fn start(router: Router, limits: ServerLimits) -> Running {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let stop = CancellationToken::new();
        let count = || {
            PANICS.fetch_add(1, Ordering::Relaxed);
        };
        let server = Server::new(listener, router, limits, count);
        Running { address, stop: stop.clone(), task: tokio::spawn(server.run(stop)) }
    }

    fn limits() -> ServerLimits {
        ServerLimits {
            connections: 100,
            header_timeout: Duration::from_secs(10),
            drain: Duration::from_secs(10),
        }
    }

    async fn exchange(stream: &mut TcpStream, request: &str) -> String {
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

    #[tokio::test]
    async fn more_connections_than_allowed_wait_for_their_turn() {
        let limits = ServerLimits { connections: 1, ..limits() };
        let running = start(Router::new().route("/", get(|| async { "served" })), limits).await;
        let holder = TcpStream::connect(running.address).await.unwrap();
        let mut waiting = TcpStream::connect(running.address).await.unwrap();
        let request = "GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
        let answer = tokio::spawn(async move { exchange(&mut waiting, request).await });
        drop(holder);
        assert!(answer.await.unwrap().ends_with("served"));
    }
}
