//! Administrative questions to Kafka, asked without blocking the runtime.
//!
//! Answers are facts of the moment: a caller that needs two of them in an order asks for them in
//! that order.
//!
//! Invariant: no request to a group's coordinator ever times out *inside* librdkafka (2.12.1). One
//! that does, while no broker is up, is freed but stays on the list of what waits for one; when
//! Kafka comes back librdkafka sends it, and aborts the process on freed memory. So librdkafka gets
//! a time-out that never comes, we stop waiting after ours, and throw the client away, which ends
//! what it still holds in an orderly way.

use std::{ops::Deref, sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use rdkafka::{
    admin::AdminClient,
    client::{Client, DefaultClientContext},
    config::RDKafkaLogLevel,
    error::{KafkaError, RDKafkaErrorCode},
    types::RDKafkaType,
};
use tracing::{info, warn};
use uuid::Uuid;

use crate::{
    ClientSettings, ClientSetupError,
    fetcher::NO_GROUP,
    native::{self, AdminError, CommittedOffset, OffsetSpec},
};

/// Partitions in one question: librdkafka looks each up in a list, so twice as many take four times
/// as long.
const PARTITIONS_AT_ONCE: usize = 200;

/// The clients behind the calls.
pub(crate) struct Clients {
    admin: AdminClient<DefaultClientContext>,
    /// For questions about topics, offsets and groups: one client, so that where a group's
    /// coordinator is has to be found out once. It has a group, which it never joins: when the
    /// coordinator asked for committed offsets has moved away, librdkafka tells the client's own
    /// group, and ends the process where there is none.
    consumer: Client<DefaultClientContext>,
}

impl Clients {
    fn new(settings: &ClientSettings) -> Result<Clients, KafkaError> {
        let mut as_consumer = settings.to_config();
        as_consumer
            .set("group.id", NO_GROUP)
            .set("isolation.level", "read_committed")
            .set_log_level(RDKafkaLogLevel::Emerg); // the other client tells all
        let consumer = Client::new(
            &as_consumer,
            as_consumer.create_native_config()?,
            RDKafkaType::RD_KAFKA_CONSUMER,
            DefaultClientContext,
        )?;
        Ok(Clients { admin: settings.to_config().create()?, consumer })
    }
}

impl Clients {
    /// The client that asks about topics, offsets and groups.
    pub(crate) fn consumer(&self) -> &Client<DefaultClientContext> {
        &self.consumer
    }
}

impl Deref for Clients {
    type Target = AdminClient<DefaultClientContext>;

    fn deref(&self) -> &Self::Target {
        &self.admin
    }
}

/// A handle for administrative calls; cheap to clone.
///
/// Each call takes no longer than the time-out that the handle was made with, unless it says so;
/// then it fails with [`AdminError::is_timeout`]. A dropped call goes on in the background: a
/// question leaves nothing behind, a change may still take effect.
#[derive(Clone)]
pub struct Admin {
    settings: ClientSettings,
    client: Arc<ArcSwap<Clients>>,
    timeout: Duration,
}

/// The clients of one call, and how long the call may take.
pub(crate) struct Session {
    pub(crate) client: Arc<Clients>,
    pub(crate) timeout: Duration,
}

impl Admin {
    /// `timeout` bounds each call. Kafka need not be there.
    pub fn new(settings: &ClientSettings, timeout: Duration) -> Result<Admin, ClientSetupError> {
        let clients = Clients::new(settings).map_err(ClientSetupError::of("admin client"))?;
        let client = Arc::new(ArcSwap::from_pointee(clients));
        Ok(Admin { settings: settings.clone(), client, timeout })
    }

    /// The cluster's id, as its brokers report it.
    pub async fn cluster_id(&self) -> Result<String, AdminError> {
        self.call("DescribeCluster", |admin| {
            admin.client.inner().fetch_cluster_id(admin.timeout).ok_or_else(|| AdminError {
                call: "DescribeCluster",
                code: RDKafkaErrorCode::OperationTimedOut.into(),
                reason: "no broker told the cluster's id".to_owned(),
            })
        })
        .await
    }

    /// What `group` has committed for one partition.
    pub async fn group_offset(
        &self,
        group: &str,
        topic: &str,
        partition: i32,
    ) -> Result<Option<CommittedOffset>, AdminError> {
        let (group, topic) = (group.to_owned(), topic.to_owned());
        self.call("ListConsumerGroupOffsets", move |admin| {
            let client = admin.client.consumer();
            let offsets =
                native::list_group_offsets(client, &group, &[(&topic, partition)], admin.timeout)?;
            Ok(offsets.into_iter().next().flatten())
        })
        .await
    }

    /// Sets what `group` has committed. Refused while the group has live members
    /// ([`AdminError::is_live_members`]).
    pub async fn set_group_offset(
        &self,
        group: &str,
        topic: &str,
        partition: i32,
        offset: CommittedOffset,
    ) -> Result<(), AdminError> {
        let (group, topic) = (group.to_owned(), topic.to_owned());
        self.call("AlterConsumerGroupOffsets", move |admin| {
            let (client, at) = (admin.client.consumer(), (topic.as_str(), partition));
            native::alter_group_offsets(client, &group, at, &offset, admin.timeout)
        })
        .await
    }

    /// The offset that `spec` names, for each of `partitions` (topic and number), in their order. A
    /// topic that is not there fails alone; what fails for another reason fails them all.
    pub async fn offsets(
        &self,
        partitions: Vec<(String, i32)>,
        spec: OffsetSpec,
    ) -> Result<Vec<Result<i64, AdminError>>, AdminError> {
        self.call("ListOffsets", move |admin| {
            let mut found = Vec::with_capacity(partitions.len());
            for group in partitions.chunks(PARTITIONS_AT_ONCE) {
                let names: Vec<_> = group.iter().map(|(t, p)| (t.as_str(), *p)).collect();
                let client = admin.client.consumer();
                found.extend(native::list_offsets(client, &names, spec, admin.timeout)?);
            }
            Ok(found)
        })
        .await
    }

    /// One partition's offset; see [`Admin::offsets`].
    pub async fn offset(
        &self,
        topic: &str,
        partition: i32,
        spec: OffsetSpec,
    ) -> Result<i64, AdminError> {
        let answers = self.offsets(vec![(topic.to_owned(), partition)], spec).await?;
        answers.into_iter().next().unwrap_or_else(|| Err(no_answer("ListOffsets")))
    }

    /// The topic's id; `None` on brokers that have none. A topic that is not there is an error
    /// ([`AdminError::is_unknown_topic`]).
    pub async fn topic_id(&self, topic: &str) -> Result<Option<Uuid>, AdminError> {
        let topic = topic.to_owned();
        self.call("DescribeTopics", move |admin| {
            native::topic_id(admin.client.consumer(), &topic, admin.timeout)
        })
        .await
    }

    /// How many live members a group has; one that does not exist has none.
    pub async fn group_members(&self, group: &str) -> Result<usize, AdminError> {
        let group = group.to_owned();
        self.call("DescribeConsumerGroups", move |admin| {
            native::group_members(admin.client.consumer(), &group, admin.timeout)
        })
        .await
    }

    /// Runs a blocking call on a thread of its own.
    pub(crate) async fn call<T: Send + 'static>(
        &self,
        name: &'static str,
        call: impl FnOnce(&Session) -> Result<T, AdminError> + Send + 'static,
    ) -> Result<T, AdminError> {
        let admin = self.clone();
        tokio::task::spawn_blocking(move || {
            let session = Session { client: admin.client.load_full(), timeout: admin.timeout };
            let answer = call(&session);
            if answer.as_ref().is_err_and(AdminError::is_timeout) {
                admin.replace(&session.client);
            }
            // the last call of a client that was replaced ends it here, on a thread that may block
            answer
        })
        .await
        .unwrap_or_else(|_| Err(no_answer(name)))
    }

    /// Makes a new client, unless another call that timed out did.
    fn replace(&self, old: &Arc<Clients>) {
        if !Arc::ptr_eq(old, &self.client.load()) {
            return;
        }
        match Clients::new(&self.settings) {
            Ok(client) => {
                self.client.compare_and_swap(old, Arc::new(client));
                info!("kafka did not answer in time; asking with a new client from now on");
            }
            Err(error) => warn!(error = %error, "no new kafka client"),
        }
    }
}

fn no_answer(call: &'static str) -> AdminError {
    AdminError { call, code: RDKafkaErrorCode::Fail.into(), reason: "no answer".to_owned() }
}
