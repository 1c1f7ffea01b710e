//! A client's socket, with bounds on what an unfinished head holds and on how long an answer waits.
//!
//! Invariants: a head beyond [`FREE_HEAD`] is read on only while its connection has one of the few
//! permits for large heads, which it keeps until its request is answered. So all heads together
//! take the small ones times the connections, and the large ones times the permits. An answer of
//! which the client takes nothing to speak of within the idle time ends the connection.

use std::{
    io::{self, IoSlice},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, Sleep, sleep_until},
};
use tokio_util::sync::PollSemaphore;

use super::connection::Connection;

/// Bytes of a head that each connection may hold; hyper's first read is as large.
pub(super) const FREE_HEAD: usize = 8 << 10;
/// Bytes that a client has to take within the idle time while it does not take all.
const WORTH_WAITING: usize = 16 << 10;

/// A socket as hyper reads and writes it.
pub(super) struct GuardedStream<S> {
    stream: S,
    connection: Arc<Connection>,
    /// The head that is read, and how much of it was.
    head: (u64, usize),
    large_heads: PollSemaphore,
    large_head: Option<OwnedSemaphorePermit>,
    idle: Duration,
    /// Set while the client does not take what it was answered.
    taken_by: Option<Pin<Box<Sleep>>>,
    /// Bytes that it took since.
    taken: usize,
}

impl<S> GuardedStream<S> {
    pub(super) fn new(
        stream: S,
        connection: Arc<Connection>,
        large_heads: Arc<Semaphore>,
        idle: Duration,
    ) -> GuardedStream<S> {
        GuardedStream {
            stream,
            connection,
            head: (0, 0),
            large_heads: PollSemaphore::new(large_heads),
            large_head: None,
            idle,
            taken_by: None,
            taken: 0,
        }
    }

    /// How much of a head may be read now.
    fn poll_allowance(&mut self, context: &mut Context<'_>, head: u64) -> Poll<usize> {
        if self.head.0 != head {
            self.head = (head, 0); // the request before it is answered
            self.large_head = None;
        }
        if self.large_head.is_none() && self.head.1 >= FREE_HEAD {
            self.large_head = ready!(self.large_heads.poll_acquire(context));
        }
        let is_large = self.large_head.is_some();
        Poll::Ready(if is_large { usize::MAX } else { FREE_HEAD - self.head.1 })
    }

    /// What became of an attempt to write `length` bytes.
    fn written(
        &mut self,
        context: &mut Context<'_>,
        length: usize,
        written: Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>> {
        match written {
            Poll::Ready(Ok(bytes)) => {
                self.taken += bytes;
                if bytes == length || self.taken >= WORTH_WAITING {
                    self.taken_by = None;
                    self.connection.set_writing(false);
                }
                Poll::Ready(Ok(bytes))
            }
            Poll::Pending => {
                self.connection.set_writing(true);
                let idle = self.idle;
                let taken_by = self.taken_by.get_or_insert_with(|| {
                    self.taken = 0;
                    Box::pin(sleep_until(Instant::now() + idle))
                });
                ready!(taken_by.as_mut().poll(context));
                let kind = io::ErrorKind::TimedOut;
                Poll::Ready(Err(io::Error::new(kind, "the client does not take its answers")))
            }
            failed => failed,
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for GuardedStream<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let Some(head) = this.connection.reads_head() else {
            return Pin::new(&mut this.stream).poll_read(context, buffer);
        };
        let allowance = ready!(this.poll_allowance(context, head));
        let before = buffer.filled().len();
        if buffer.remaining() <= allowance {
            ready!(Pin::new(&mut this.stream).poll_read(context, buffer))?;
        } else {
            let mut part = ReadBuf::new(buffer.initialize_unfilled_to(allowance));
            ready!(Pin::new(&mut this.stream).poll_read(context, &mut part))?;
            let read = part.filled().len();
            buffer.advance(read);
        }
        this.head.1 += buffer.filled().len() - before;
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for GuardedStream<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = Pin::new(&mut this.stream).poll_write(context, bytes);
        this.written(context, bytes.len(), written)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = Pin::new(&mut this.stream).poll_write_vectored(context, slices);
        this.written(context, slices.iter().map(|slice| slice.len()).sum(), written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(context)
    }
}
