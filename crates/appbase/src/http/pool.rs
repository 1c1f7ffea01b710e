//! Which connections are served when there are more than are allowed.
//!
//! Invariants: as many connections as are allowed are admitted at most. Where all are, the one that
//! waits longest for a request gives way to a new one; a new one that finds none idle waits in a
//! small room, together with its request, until one is. Probes are answered there, and what
//! waits in the room gives way to the next that comes: so a probe is answered whatever clients do.

use std::{
    collections::{HashMap, VecDeque},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::connection::Connection;

/// Connections that wait for admission at most, or are answered as probes: few beside those that
/// are allowed, because each of them takes a descriptor, too.
pub(super) fn room_beside(connections: u32) -> usize {
    (connections as usize / 4).clamp(8, 64)
}

/// How long one that was told to leave the room may take before the next is told, too.
const LEAVE_WITHIN: Duration = Duration::from_millis(50);

/// How often one that waits looks for a connection that became idle.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// The connections of a server.
pub(super) struct Pool {
    allowed: Arc<Semaphore>,
    room: Arc<Semaphore>,
    admitted: Mutex<HashMap<u64, Arc<Connection>>>,
    /// Oldest first.
    in_room: Mutex<VecDeque<Arc<Connection>>>,
    /// Requests that wait for admission.
    waiting: AtomicUsize,
    next_id: AtomicU64,
}

impl Pool {
    pub(super) fn new(connections: u32) -> Pool {
        Pool {
            allowed: Arc::new(Semaphore::new(connections as usize)),
            room: Arc::new(Semaphore::new(room_beside(connections))),
            admitted: Mutex::default(),
            in_room: Mutex::default(),
            waiting: AtomicUsize::new(0),
            next_id: AtomicU64::new(0),
        }
    }

    /// Takes a new connection in: as a client's where that is allowed, else into the room.
    pub(super) async fn enter(&self) -> Arc<Connection> {
        let id = self.next_id.fetch_add(1, Relaxed);
        if let Ok(permit) = self.allowed.clone().try_acquire_owned() {
            let connection = Arc::new(Connection::new(id, true, permit));
            self.admitted().insert(id, connection.clone());
            return connection;
        }
        self.close_an_idle_one();
        let permit = self.place_in_room().await;
        let connection = Arc::new(Connection::new(id, false, permit));
        self.in_room().push_back(connection.clone());
        connection
    }

    /// The connection has ended.
    pub(super) fn leave(&self, connection: &Connection) {
        self.admitted().remove(&connection.id);
        self.leave_room(connection);
    }

    /// Waits until the connection is admitted, whose request is in hand. False: it is to be
    /// answered with a no. Dropped, it waits no longer.
    pub(super) async fn admit(&self, connection: &Arc<Connection>) -> bool {
        if !connection.set_waiting(true) {
            return false;
        }
        let waiting = Waiting::new(&self.waiting);
        let permit = self.allowed.clone().acquire_owned();
        tokio::pin!(permit);
        let permit = loop {
            tokio::select! {
                permit = &mut permit => break permit.ok(),
                () = connection.refuse.cancelled() => break None,
                () = tokio::time::sleep(LOOK_AGAIN) => self.close_an_idle_one(),
            }
        };
        drop(waiting);
        let Some(permit) = permit.filter(|_| connection.set_waiting(false)) else { return false };
        self.leave_room(connection);
        connection.admit(permit); // and gives back its place in the room
        self.admitted().insert(connection.id, connection.clone());
        true
    }

    /// Whether requests wait for a connection to end: then those in hand are their connections'
    /// last.
    pub(super) fn is_awaited(&self) -> bool {
        self.waiting.load(Relaxed) > 0
    }

    /// Closes the connection that waits longest for a request.
    fn close_an_idle_one(&self) {
        let admitted = self.admitted();
        let idle = || {
            let since = |open: &Arc<Connection>| Some((open.idle_since()?, open.id));
            let idle = admitted.values().filter_map(|open| Some((since(open)?, open)));
            idle.min_by_key(|(since, _)| *since)
        };
        while let Some((_, longest)) = idle() {
            if longest.close_if_idle() {
                return; // it had got a request otherwise
            }
        }
    }

    async fn place_in_room(&self) -> OwnedSemaphorePermit {
        loop {
            if let Ok(permit) = self.room.clone().try_acquire_owned() {
                return permit;
            }
            if let Some(oldest) = self.in_room().pop_front() {
                oldest.give_way();
            }
            let place = self.room.clone().acquire_owned();
            if let Ok(Ok(permit)) = tokio::time::timeout(LEAVE_WITHIN, place).await {
                return permit;
            }
        }
    }

    fn leave_room(&self, connection: &Connection) {
        self.in_room().retain(|other| other.id != connection.id);
    }

    fn admitted(&self) -> MutexGuard<'_, HashMap<u64, Arc<Connection>>> {
        self.admitted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn in_room(&self) -> MutexGuard<'_, VecDeque<Arc<Connection>>> {
        self.in_room.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Counts a request that waits, also when its client goes away meanwhile.
struct Waiting<'a>(&'a AtomicUsize);

impl<'a> Waiting<'a> {
    fn new(count: &'a AtomicUsize) -> Waiting<'a> {
        count.fetch_add(1, Relaxed);
        Waiting(count)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}
