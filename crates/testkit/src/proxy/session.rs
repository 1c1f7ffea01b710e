//! One connection through the proxy: two directions, message by message.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
    },
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
};

use super::{
    Event, Moment, Shared, Then,
    frames::{CommitFinder, End, HEADER, asks_for_encryption, body_length, reported_end},
};

/// Bigger messages than this are passed on in pieces, unread: no statement of a loader is that
/// long.
const READ_WHOLE: usize = 1 << 20;

struct Session {
    shared: Arc<Shared>,
    number: usize,
    /// COPY bytes since the last commit; written by one direction, read by both.
    copied: AtomicU64,
    commit_pending: AtomicBool,
}

/// Runs a connection until one side closes it or a hook cuts it.
pub(super) async fn run(
    mut client: TcpStream,
    server: TcpStream,
    shared: Arc<Shared>,
    number: usize,
) {
    let _ = (client.set_nodelay(true), server.set_nodelay(true)); // delays would only slow a test
    let (from_server, mut to_server) = server.into_split();
    if start(&mut client, &mut to_server).await.is_err() {
        return; // the client went away before it started a session
    }
    let (from_client, to_client) = client.into_split();
    let session = Session {
        shared,
        number,
        copied: AtomicU64::new(0),
        commit_pending: AtomicBool::new(false),
    };
    // whichever direction ends first, by an error, an end or a cut, closes both
    tokio::select! {
        _ = session.client_to_server(from_client, to_server) => {}
        _ = session.server_to_client(from_server, to_client) => {}
    }
}

/// Passes the first message on, after declining encryption as often as it is asked for.
async fn start(client: &mut TcpStream, to_server: &mut OwnedWriteHalf) -> io::Result<()> {
    loop {
        let length = client.read_u32().await?;
        let mut body = vec![0; (length as usize).saturating_sub(4).min(READ_WHOLE)];
        client.read_exact(&mut body).await?;
        if asks_for_encryption(&body) {
            client.write_all(b"N").await?;
            continue;
        }
        to_server.write_u32(length).await?;
        return to_server.write_all(&body).await;
    }
}

impl Session {
    async fn client_to_server(
        &self,
        mut from: OwnedReadHalf,
        mut to: OwnedWriteHalf,
    ) -> io::Result<()> {
        let mut commits = CommitFinder::default();
        loop {
            let (header, length) = read_header(&mut from).await?;
            let kind = header[0];
            if kind == b'd' && self.copied.fetch_add(length as u64, SeqCst) == 0 {
                self.fire(Event::CopyStarted, &mut from).await?;
            }
            if !matches!(kind, b'Q' | b'P' | b'B' | b'E') || length > READ_WHOLE {
                self.pass(&mut from, &mut to, header, length).await?;
                continue;
            }
            let mut body = vec![0; length];
            from.read_exact(&mut body).await?;
            if commits.is_commit(kind, &body) {
                self.commit_pending.store(true, SeqCst);
                self.fire(Event::BeforeCommitForwarded, &mut from).await?;
            }
            self.flowing().await;
            to.write_all(&header).await?;
            to.write_all(&body).await?;
        }
    }

    async fn server_to_client(
        &self,
        mut from: OwnedReadHalf,
        mut to: OwnedWriteHalf,
    ) -> io::Result<()> {
        loop {
            let (header, length) = read_header(&mut from).await?;
            if header[0] != b'C' || length > READ_WHOLE {
                self.pass(&mut from, &mut to, header, length).await?;
                continue;
            }
            let mut body = vec![0; length];
            from.read_exact(&mut body).await?;
            let end = reported_end(header[0], &body);
            let committed = end == Some(End::Commit) && self.commit_pending.swap(false, SeqCst);
            if committed {
                self.fire(Event::BeforeCommitAnswer, &mut from).await?;
            }
            self.flowing().await;
            to.write_all(&header).await?;
            to.write_all(&body).await?;
            if committed {
                // the client takes the answer for complete when the server is ready again
                let (ready, length) = read_header(&mut from).await?;
                self.pass(&mut from, &mut to, ready, length).await?;
                self.fire(Event::AfterCommitAnswer, &mut from).await?;
            }
            if end.is_some() {
                self.copied.store(0, SeqCst);
            }
        }
    }

    /// Passes a message on without looking into it.
    async fn pass(
        &self,
        from: &mut OwnedReadHalf,
        to: &mut OwnedWriteHalf,
        header: [u8; HEADER],
        length: usize,
    ) -> io::Result<()> {
        self.flowing().await;
        to.write_all(&header).await?;
        let mut rest = length;
        let mut piece = vec![0; rest.min(64 * 1024)];
        while rest > 0 {
            let wanted = rest.min(piece.len());
            from.read_exact(&mut piece[..wanted]).await?;
            self.flowing().await;
            to.write_all(&piece[..wanted]).await?;
            rest -= wanted;
        }
        Ok(())
    }

    async fn flowing(&self) {
        // an error means that the proxy is gone, and with it this task
        let _ = self.shared.flows.subscribe().wait_for(|flows| *flows).await;
    }

    /// An error when a hook wants the connection cut, or once the side that is held has closed it:
    /// it ends both directions.
    async fn fire(&self, event: Event, from: &mut OwnedReadHalf) -> io::Result<()> {
        let moment =
            Moment { event, connection: self.number, copied_bytes: self.copied.load(SeqCst) };
        match self.shared.fire(moment) {
            Then::Forward => Ok(()),
            Then::Cut => Err(io::ErrorKind::ConnectionAborted.into()),
            Then::Hold => {
                while from.read(&mut [0; 1024]).await? > 0 {} // goes nowhere
                Err(io::ErrorKind::ConnectionAborted.into())
            }
        }
    }
}

async fn read_header(from: &mut OwnedReadHalf) -> io::Result<([u8; HEADER], usize)> {
    let mut header = [0; HEADER];
    from.read_exact(&mut header).await?;
    let length = body_length(header).ok_or(io::ErrorKind::InvalidData)?;
    Ok((header, length))
}
