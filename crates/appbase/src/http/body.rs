//! Reading a request's body up to a limit.

use axum::body::{Body, Bytes};
use http_body_util::{BodyExt, LengthLimitError, Limited};

/// Bytes of a refused body that are read all the same, so that a client which is still sending sees
/// the answer instead of a broken connection.
const READ_AND_DROPPED: usize = 16 << 20;

/// Why there is no body.
#[derive(Debug, thiserror::Error)]
pub enum BodyError {
    /// There is more of it than was asked for.
    #[error("body is larger than {limit} bytes")]
    TooLarge {
        /// What is allowed, in bytes.
        limit: usize,
    },
    /// The client went away or sent something that is not HTTP.
    #[error("body cannot be read")]
    Read(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// The whole body, of at most `limit` bytes. A body that came in one piece is not copied. A dropped
/// call leaves the rest unread: the connection cannot be used again.
pub async fn read_body(mut body: Body, limit: usize) -> Result<Bytes, BodyError> {
    let announced = http_body::Body::size_hint(&body).lower();
    if announced > limit as u64 {
        read_and_drop(body).await;
        return Err(BodyError::TooLarge { limit });
    }
    match Limited::new(&mut body, limit).collect().await {
        Ok(collected) => Ok(collected.to_bytes()),
        Err(error) if error.is::<LengthLimitError>() => {
            read_and_drop(body).await;
            Err(BodyError::TooLarge { limit })
        }
        Err(error) => Err(BodyError::Read(error)),
    }
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
    use super::*;

    #[tokio::test]
    async fn a_body_up_to_the_limit_is_read() {
        let body = read_body(Body::from(vec![b'a'; 100]), 100).await.unwrap();
        assert_eq!(body.len(), 100);
    }

    #[tokio::test]
    async fn a_larger_body_is_refused() {
        let error = read_body(Body::from(vec![b'a'; 101]), 100).await.unwrap_err();
        assert!(matches!(error, BodyError::TooLarge { limit: 100 }));
    }
}
