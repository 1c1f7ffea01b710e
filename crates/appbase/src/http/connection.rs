//! One accepted connection: whether it waits for a request, or has one in hand.
//!
//! Invariant: a connection that was told to close serves no request any more, and one that has a
//! client's request in hand is not told to. Which of the two comes first is decided in one place,
//! `state`.

use std::{
    pin::Pin,
    sync::{
        Arc, LazyLock, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
    },
    task::{Context, Poll},
    time::Instant,
};

use axum::body::Bytes;
use http_body::{Body, Frame, SizeHint};
use http_body_util::Full;
use tokio::sync::OwnedSemaphorePermit;
use tokio_util::sync::CancellationToken;

/// A request is in hand.
const BUSY: u64 = 0;
/// It was told to close, or to answer that there is no room.
const GONE: u64 = 1;
/// A request waits for the connection to be admitted.
const WAITING: u64 = 2;
/// Larger numbers are since when no request is in hand.
const FIRST: u64 = 3;

/// A connection whose request is not there after so many milliseconds is idle.
const IDLE_MS: u64 = 250;

/// Times are told from here.
static START: LazyLock<Instant> = LazyLock::new(Instant::now);

/// A connection, shared by its task, its requests and the pool.
pub(super) struct Connection {
    pub(super) id: u64,
    state: AtomicU64,
    /// Counts the heads that were read.
    heads: AtomicU64,
    /// The client does not take what it was answered.
    is_writing: AtomicBool,
    /// Whether it counts as a client's; it is in the room for those that wait otherwise.
    is_admitted: AtomicBool,
    permit: Mutex<Option<OwnedSemaphorePermit>>,
    /// Says to close at once.
    pub(super) close: CancellationToken,
    /// Says to answer the request that waits with a no.
    pub(super) refuse: CancellationToken,
}

impl Connection {
    pub(super) fn new(id: u64, is_admitted: bool, permit: OwnedSemaphorePermit) -> Connection {
        Connection {
            id,
            state: AtomicU64::new(now()),
            heads: AtomicU64::new(0),
            is_writing: AtomicBool::new(false),
            is_admitted: AtomicBool::new(is_admitted),
            permit: Mutex::new(Some(permit)),
            close: CancellationToken::new(),
            refuse: CancellationToken::new(),
        }
    }

    /// A head was read. `None`: it was told to close before.
    pub(super) fn begin(self: &Arc<Self>) -> Option<InHand> {
        self.heads.fetch_add(1, SeqCst);
        let begun =
            self.state.fetch_update(SeqCst, SeqCst, |state| (state != GONE).then_some(BUSY));
        begun.ok()?;
        Some(InHand(self.clone()))
    }

    /// The request in hand waits for admission, or waits no longer. False: it was refused.
    pub(super) fn set_waiting(&self, is_waiting: bool) -> bool {
        let (from, to) = if is_waiting { (BUSY, WAITING) } else { (WAITING, BUSY) };
        self.state.compare_exchange(from, to, SeqCst, SeqCst).is_ok()
    }

    pub(super) fn is_admitted(&self) -> bool {
        self.is_admitted.load(SeqCst)
    }

    /// It counts as a client's from now on.
    pub(super) fn admit(&self, permit: OwnedSemaphorePermit) {
        *self.permit.lock().unwrap_or_else(PoisonError::into_inner) = Some(permit);
        self.is_admitted.store(true, SeqCst);
    }

    /// Since when it waits for a request; `None`: it does not, or not for long enough that its
    /// request cannot be on its way.
    pub(super) fn idle_since(&self) -> Option<u64> {
        let state = self.state.load(SeqCst);
        let is_idle = state >= FIRST && !self.is_writing.load(SeqCst);
        (is_idle && now() >= state.saturating_add(IDLE_MS)).then_some(state)
    }

    /// Closes it, if it waits for a request for long enough. False: it does not.
    pub(super) fn close_if_idle(&self) -> bool {
        let Some(since) = self.idle_since() else { return false };
        if self.state.compare_exchange(since, GONE, SeqCst, SeqCst).is_err() {
            return false;
        }
        self.close.cancel();
        true
    }

    /// Makes it leave, whatever it does: a request that waits is answered with a no.
    pub(super) fn give_way(&self) {
        if self.state.swap(GONE, SeqCst) == WAITING {
            self.refuse.cancel();
        } else {
            self.close.cancel();
        }
    }

    pub(super) fn set_writing(&self, is_writing: bool) {
        if self.is_writing.load(SeqCst) != is_writing {
            self.is_writing.store(is_writing, SeqCst);
        }
    }

    /// Which head is read at the moment, counted from 0; `None`: a request is in hand.
    pub(super) fn reads_head(&self) -> Option<u64> {
        let state = self.state.load(SeqCst);
        (state >= FIRST || state == GONE).then(|| self.heads.load(SeqCst))
    }
}

fn now() -> u64 {
    FIRST + u64::try_from(START.elapsed().as_millis()).unwrap_or(u64::MAX - FIRST)
}

/// A request that is in hand until this is dropped.
pub(super) struct InHand(Arc<Connection>);

impl Drop for InHand {
    fn drop(&mut self) {
        // one that is gone stays so
        let _ = self.0.state.compare_exchange(BUSY, now(), SeqCst, SeqCst);
    }
}

/// A response's body, in hand until it is sent.
pub(super) struct AnswerBody<B> {
    body: OneOf<B>,
    _in_hand: InHand,
}

enum OneOf<B> {
    Handlers(B),
    Own(Full<Bytes>),
}

impl<B> AnswerBody<B> {
    /// What a handler answers.
    pub(super) fn of_handler(body: B, in_hand: InHand) -> AnswerBody<B> {
        AnswerBody { body: OneOf::Handlers(body), _in_hand: in_hand }
    }

    /// What the server answers itself.
    pub(super) fn of_server(body: impl Into<Bytes>, in_hand: InHand) -> AnswerBody<B> {
        AnswerBody { body: OneOf::Own(Full::new(body.into())), _in_hand: in_hand }
    }
}

impl<B: Body<Data = Bytes> + Unpin> Body for AnswerBody<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        match &mut self.body {
            OneOf::Handlers(body) => Pin::new(body).poll_frame(context),
            OneOf::Own(body) => {
                let frame = Pin::new(body).poll_frame(context);
                frame.map(|frame| frame.map(|frame| frame.map_err(|never| match never {})))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.body {
            OneOf::Handlers(body) => body.is_end_stream(),
            OneOf::Own(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.body {
            OneOf::Handlers(body) => body.size_hint(),
            OneOf::Own(body) => body.size_hint(),
        }
    }
}
