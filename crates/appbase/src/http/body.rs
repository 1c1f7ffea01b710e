//! Reading a request's body up to a limit of bytes and of time.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use axum::body::{Body, Bytes};
use http_body::Frame;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use tokio::time::{Instant, Sleep, sleep_until};

/// Bytes of a refused body that are read all the same, so that a client which is still sending sees
/// the answer instead of a broken connection.
const READ_AND_DROPPED: usize = 16 << 20;

/// What a body may be.
#[derive(Debug, Clone, Copy)]
pub struct BodyLimits {
    /// Bytes of it.
    pub bytes: usize,
    /// How long its sender may be silent.
    pub silence: Duration,
    /// How long all of it may take.
    pub total: Duration,
}

/// Why there is no body.
#[derive(Debug, thiserror::Error)]
pub enum BodyError {
    /// There is more of it than was asked for.
    #[error("body is larger than {limit} bytes")]
    TooLarge {
        /// What is allowed, in bytes.
        limit: usize,
    },
    /// It did not come in time. The connection cannot be used again.
    #[error("body did not arrive in time")]
    TooSlow,
    /// The client went away or sent something that is not HTTP.
    #[error("body cannot be read")]
    Read(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// The whole body, within its limits. A body that came in one piece is not copied, and one that is
/// there costs no timer. A dropped call leaves the rest unread: the connection cannot be used
/// again.
pub async fn read_body(mut body: Body, limits: BodyLimits) -> Result<Bytes, BodyError> {
    let limit = limits.bytes;
    let by = Instant::now() + limits.total;
    let announced = http_body::Body::size_hint(&body).lower();
    let read = if announced > limit as u64 {
        Err(BodyError::TooLarge { limit })
    } else {
        let timed = Timed { body: &mut body, silence: limits.silence, by, timer: None };
        match Limited::new(timed, limit).collect().await {
            Ok(collected) => Ok(collected.to_bytes()),
            Err(error) if error.is::<LengthLimitError>() => Err(BodyError::TooLarge { limit }),
            Err(error) if is_too_slow(error.as_ref()) => Err(BodyError::TooSlow),
            Err(error) => Err(BodyError::Read(error)),
        }
    };
    if let Err(BodyError::TooLarge { .. }) = read {
        // as long as a body of the right size may take: it is refused whatever comes
        let _ = tokio::time::timeout_at(by, read_and_drop(body)).await;
    }
    read
}

/// A body whose sender is neither silent for too long nor too slow.
struct Timed<'a> {
    body: &'a mut Body,
    silence: Duration,
    by: Instant,
    /// Runs while it is waited for.
    timer: Option<Pin<Box<Sleep>>>,
}

impl http_body::Body for Timed<'_> {
    type Data = Bytes;
    type Error = Box<dyn std::error::Error + Send + Sync>;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let this = self.get_mut();
        if let Poll::Ready(frame) = Pin::new(&mut *this.body).poll_frame(context) {
            this.timer = None;
            return Poll::Ready(frame.map(|frame| frame.map_err(Into::into)));
        }
        let until = (Instant::now() + this.silence).min(this.by);
        let timer = this.timer.get_or_insert_with(|| Box::pin(sleep_until(until)));
        ready!(timer.as_mut().poll(context));
        Poll::Ready(Some(Err(TooSlow.into())))
    }
}

/// What [`Timed`] ends with.
#[derive(Debug, thiserror::Error)]
#[error("too slow")]
struct TooSlow;

fn is_too_slow(error: &(dyn std::error::Error + Send + Sync + 'static)) -> bool {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = cause {
        if error.is::<TooSlow>() {
            return true;
        }
        cause = error.source();
    }
    false
}

/// Reads and drops what is left of a refused body, 16 MiB at most: a client that is still sending
/// sees the answer then, not a broken connection.
pub async fn read_and_drop(mut body: Body) {
    let mut dropped = 0;
    while dropped < READ_AND_DROPPED {
        match body.frame().await {
            Some(Ok(frame)) => dropped += frame.data_ref().map_or(0, Bytes::len),
            _ => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::stream;

    use super::*;

    const LIMITS: BodyLimits =
        BodyLimits { bytes: 100, silence: Duration::from_secs(10), total: Duration::from_secs(60) };

    #[tokio::test]
    async fn a_body_up_to_the_limit_is_read() {
        let body = read_body(Body::from(vec![b'a'; 100]), LIMITS).await.unwrap();
        assert_eq!(body.len(), 100);
    }

    #[tokio::test]
    async fn a_larger_body_is_refused() {
        let error = read_body(Body::from(vec![b'a'; 101]), LIMITS).await.unwrap_err();
        assert!(matches!(error, BodyError::TooLarge { limit: 100 }));
    }

    /// A byte, and so many more of them, each after a pause; then silence.
    fn slow(bytes: u32, pause: Duration) -> Body {
        Body::from_stream(stream::unfold(0, move |sent| async move {
            if sent == bytes {
                std::future::pending::<()>().await;
            }
            tokio::time::sleep(pause).await;
            Some((Ok::<_, std::io::Error>(Bytes::from_static(b"a")), sent + 1))
        }))
    }

    #[tokio::test(start_paused = true)]
    async fn a_sender_that_falls_silent_or_takes_too_long_is_given_up() {
        let second = Duration::from_secs(1);
        let cases = [
            ("nothing comes", 0, second, 10),
            ("it falls silent", 5, second, 5 + 10),
            ("pauses that are too long", 90, 11 * second, 10),
            ("each byte is in time, all are not", 90, second, 60),
        ];
        for (what, bytes, pause, given_up_after) in cases {
            let began = Instant::now();
            let error = read_body(slow(bytes, pause), LIMITS).await.unwrap_err();
            assert!(matches!(error, BodyError::TooSlow), "{what}: {error}");
            assert_eq!(began.elapsed().as_secs(), given_up_after, "{what}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_refused_body_is_read_no_longer_than_another() {
        let began = Instant::now();
        let error = read_body(slow(101, Duration::from_millis(100)), LIMITS).await.unwrap_err();
        assert!(matches!(error, BodyError::TooLarge { .. }), "{error}");
        assert_eq!(began.elapsed().as_secs(), 60);
    }
}
