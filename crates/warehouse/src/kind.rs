//! The kinds of warehouses: one match an operation. A new kind is a folder beside `postgres` and an
//! arm in each of them.

use std::collections::HashMap;

use serde_json::Value;
use uuid::Uuid;

use crate::{
    error::LoadError,
    ledger::{
        CountedPosition, EventState, Fence, LedgerChanges, LedgerRights, Origin, OriginKey,
        PartitionKey, Position,
    },
    load::{LoadOptions, LoadReport},
    postgres::{self, Credentials, Postgres, Settings},
    progress::Progress,
    rows::batch::Batch,
};

/// A kind of warehouse, as a destination's `type` names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// `postgres`
    Postgres,
}

impl Kind {
    /// `None`: this version does not load that kind.
    pub fn parse(name: &str) -> Option<Kind> {
        (name == "postgres").then_some(Kind::Postgres)
    }
}

/// A destination that can be loaded into; cheap to clone. Its connections close with the last
/// clone.
#[derive(Clone)]
pub enum Warehouse {
    /// See [`Postgres`].
    Postgres(Postgres),
}

impl From<Postgres> for Warehouse {
    fn from(postgres: Postgres) -> Warehouse {
        Warehouse::Postgres(postgres)
    }
}

impl Warehouse {
    /// Checks the credentials; connects with the first statement, and holds at most so many
    /// connections.
    ///
    /// Errors: [`LoadError::Config`] for credentials that are incomplete or not readable. Needs a
    /// runtime.
    pub fn open(
        kind: Kind,
        credentials: &Value,
        max_connections: u32,
    ) -> Result<Warehouse, LoadError> {
        match kind {
            Kind::Postgres => {
                let settings = Settings { max_connections, ..Settings::default() };
                Postgres::new(&Credentials::read(credentials)?, settings).map(Warehouse::Postgres)
            }
        }
    }

    /// Connects, asks one question, and hangs up: whether the credentials open anything. Takes as
    /// long as the network does; a drop closes the connection.
    ///
    /// The credentials are those of a client, not of an operator: files and sockets of this machine
    /// that they name are refused, not opened.
    ///
    /// Errors: [`LoadError::Config`] for credentials that are incomplete or that the server
    /// refuses, else what keeps the server from answering.
    pub async fn probe(kind: Kind, credentials: &Value) -> Result<(), LoadError> {
        match kind {
            Kind::Postgres => postgres::probe(&Credentials::read(credentials)?).await,
        }
    }

    /// The same destination, whose loads count their steps in `progress`.
    #[must_use]
    pub fn watched_by(&self, progress: &Progress) -> Warehouse {
        match self {
            Warehouse::Postgres(postgres) => Warehouse::Postgres(postgres.watched_by(progress)),
        }
    }

    /// Sends the rows of all batches; they become visible with [`Staged::commit`]. A drop leaves
    /// nothing of the rows. See [`Postgres::stage`] for the errors.
    pub async fn stage(
        &self,
        batches: Vec<Batch>,
        fence: Option<Fence>,
        options: LoadOptions,
    ) -> Result<Staged, LoadError> {
        match self {
            Warehouse::Postgres(postgres) => {
                postgres.stage(batches, fence, options).await.map(Staged::Postgres)
            }
        }
    }

    /// Opens the ledger, makes it where it is missing. See [`postgres::Ledger::open`], also for a
    /// dropped call.
    pub async fn ledger(&self) -> Result<Ledger, LoadError> {
        match self {
            Warehouse::Postgres(postgres) => {
                postgres::Ledger::open(postgres).await.map(Ledger::Postgres)
            }
        }
    }

    /// All positions of a cluster's topics. `None`: there is no ledger (yet). Makes, locks and
    /// changes nothing; may be dropped at any time.
    pub async fn positions(
        &self,
        cluster_id: &str,
    ) -> Result<Option<Vec<CountedPosition>>, LoadError> {
        match self {
            Warehouse::Postgres(postgres) => postgres::read_all(postgres, cluster_id).await,
        }
    }

    /// Whether the user may keep a ledger. Makes, locks and changes nothing; may be dropped at any
    /// time.
    pub async fn ledger_rights(&self) -> Result<LedgerRights, LoadError> {
        match self {
            Warehouse::Postgres(postgres) => postgres::rights(postgres).await,
        }
    }
}

/// Rows that are sent and not visible. Dropped without a commit, they are gone, and so is the lock
/// on the position.
pub enum Staged {
    /// See [`postgres::Staged`].
    Postgres(postgres::Staged),
}

impl Staged {
    /// What became of the rows, as it will be once they are committed.
    pub fn report(&self) -> &LoadReport {
        match self {
            Staged::Postgres(staged) => staged.report(),
        }
    }

    /// Makes the rows visible, and the changes of the ledger with them. After a drop only the
    /// ledger knows whether it happened. See [`postgres::Staged::commit`] for the errors.
    pub async fn commit(self, changes: &LedgerChanges) -> Result<LoadReport, LoadError> {
        match self {
            Staged::Postgres(staged) => staged.commit(changes).await,
        }
    }
}

/// The ledger of one destination; cheap to clone.
///
/// All its calls take a connection of the destination for as long as they run, and fail as the
/// destination does: [`LoadError::Connection`] and [`LoadError::Busy`] are worth another try,
/// [`LoadError::Config`] says what an administrator has to repair. A call that is dropped is ended
/// or finished by the server, each in one transaction: what it would have answered is to be read
/// anew.
#[derive(Clone)]
pub enum Ledger {
    /// See [`postgres::Ledger`].
    Postgres(postgres::Ledger),
}

impl Ledger {
    /// The random id that the ledger got when it was made.
    pub fn id(&self) -> Uuid {
        match self {
            Ledger::Postgres(ledger) => ledger.id(),
        }
    }

    /// The position, as it stands now; `None`: the partition has none.
    pub async fn read(&self, key: &PartitionKey) -> Result<Option<Position>, LoadError> {
        match self {
            Ledger::Postgres(ledger) => ledger.read(key).await,
        }
    }

    /// The position, once no load holds it any more: after a lost answer to COMMIT it waits for the
    /// old session, up to a minute; then it is [`LoadError::Busy`].
    pub async fn read_settled(&self, key: &PartitionKey) -> Result<Option<Position>, LoadError> {
        match self {
            Ledger::Postgres(ledger) => ledger.read_settled(key).await,
        }
    }

    /// Inserts the first position of a partition. `false`: another loader did.
    pub async fn insert(&self, key: &PartitionKey, to: &Position) -> Result<bool, LoadError> {
        match self {
            Ledger::Postgres(ledger) => ledger.insert(key, to).await,
        }
    }

    /// Moves the position outside a load, from what was read to `to`, whose epoch is higher.
    /// `false`: it is not what was read any more. `forget_events` forgets the states of events at
    /// and beyond `to`, which will be read again.
    pub async fn move_position(
        &self,
        key: &PartitionKey,
        from: &Position,
        to: &Position,
        forget_events: bool,
    ) -> Result<bool, LoadError> {
        match self {
            Ledger::Postgres(ledger) => ledger.move_position(key, from, to, forget_events).await,
        }
    }

    /// The states of these origins, in their order. They stay true until a load of the topic that
    /// the events return to.
    pub async fn event_states(
        &self,
        origins: &[Origin],
    ) -> Result<Vec<Option<EventState>>, LoadError> {
        match self {
            Ledger::Postgres(ledger) => ledger.event_states(origins).await,
        }
    }

    /// All origins in this state, with how often their events were refused.
    pub async fn events_in(&self, state: EventState) -> Result<HashMap<OriginKey, u32>, LoadError> {
        match self {
            Ledger::Postgres(ledger) => ledger.events_in(state).await,
        }
    }

    /// Waiting events whose topics do not take them back are dead letters from now on: their states,
    /// and what is counted beside the positions of their topics. Events that do not wait are left
    /// alone, so it may be called again. `reason`: a word for it. Dropped, it happened or not.
    pub async fn dead_letter(
        &self,
        letters: &[(Origin, u32)],
        reason: &str,
    ) -> Result<(), LoadError> {
        match self {
            Ledger::Postgres(ledger) => ledger.dead_letter(letters, reason).await,
        }
    }

    /// Forgets decided states that did not change for so many seconds: older than every copy of
    /// their events.
    pub async fn forget_events(&self, older_than_seconds: u64) -> Result<(), LoadError> {
        match self {
            Ledger::Postgres(ledger) => ledger.forget_events(older_than_seconds).await,
        }
    }
}
