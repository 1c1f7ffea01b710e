//! Administrative calls of librdkafka, blocking, one request a call (a call may name many
//! partitions).
//!
//! A borrowed `Client` proves that the handle lives for the whole call.

use std::{
    ffi::{CStr, CString},
    ptr, slice,
    time::Duration,
};

use rdkafka::{
    client::{Client, DefaultClientContext},
    error::RDKafkaErrorCode,
};
use rdkafka_sys::{
    self as sys, rd_kafka_admin_op_t as AdminOp, rd_kafka_resp_err_t as RespErr, rd_kafka_t,
};
use uuid::Uuid;

use crate::KafkaErrorCode;

/// The longest time-out that librdkafka takes. None of ours is as long: see `admin` for why it must
/// not come.
const NEVER_MS: i32 = 3_600_000;

/// Why an administrative call failed. The code decides what the caller does; the text is
/// librdkafka's.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{call} failed: {reason}")]
pub struct AdminError {
    /// The request, in Kafka's words.
    pub call: &'static str,
    pub code: KafkaErrorCode,
    /// librdkafka's text. Names topics, groups and brokers, no secrets.
    pub reason: String,
}

impl AdminError {
    /// The group has live members: another process reads the topic.
    pub fn is_live_members(&self) -> bool {
        matches!(
            self.code.0,
            RDKafkaErrorCode::UnknownMemberId
                | RDKafkaErrorCode::NonEmptyGroup
                | RDKafkaErrorCode::RebalanceInProgress
        )
    }

    /// Kafka said no, and will say no again: rights, names, policies. Too few brokers for the
    /// replicas is none of it: they may be coming back one by one.
    pub fn is_refusal(&self) -> bool {
        matches!(
            self.code.0,
            RDKafkaErrorCode::TopicAuthorizationFailed
                | RDKafkaErrorCode::ClusterAuthorizationFailed
                | RDKafkaErrorCode::InvalidTopic
                | RDKafkaErrorCode::InvalidConfig
                | RDKafkaErrorCode::PolicyViolation
        )
    }

    /// No broker answered within the time that the call may take.
    pub fn is_timeout(&self) -> bool {
        matches!(self.code.0, RDKafkaErrorCode::OperationTimedOut)
    }

    /// The topic is not (or no longer) there.
    pub fn is_unknown_topic(&self) -> bool {
        matches!(
            self.code.0,
            RDKafkaErrorCode::UnknownTopicOrPartition | RDKafkaErrorCode::UnknownTopic
        )
    }
}

/// What a consumer group has committed for one partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupOffset {
    pub offset: i64,
    /// The free text that travels with the offset; empty when the client gave none.
    pub metadata: String,
}

/// Which end of a partition [`list_offsets`] asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OffsetSpec {
    /// The low watermark: the first offset that is still there.
    Earliest,
    /// The end as a read-committed client sees it (last stable offset).
    CommittedEnd,
}

/// A topic as the cluster describes it.
#[derive(Debug, Clone)]
pub struct TopicDescription {
    pub name: String,
    /// `None` on brokers before 2.8, which have no topic ids.
    pub topic_id: Option<Uuid>,
}

/// How many live members a consumer group has. A group that does not exist has none.
#[derive(Debug, Clone)]
pub struct GroupMembers {
    pub group: String,
    pub members: usize,
}

type Raw = *mut rd_kafka_t;

/// Frees what it holds when it goes out of scope.
pub(super) struct Guard<T>(pub(super) *mut T, pub(super) unsafe extern "C" fn(*mut T));

impl<T> Drop for Guard<T> {
    fn drop(&mut self) {
        if !self.0.is_null() {
            // SAFETY: the pointer came from the allocating function that belongs to this
            // destructor, once.
            unsafe { self.1(self.0) }
        }
    }
}

/// Offsets that group `group` has committed for `partitions` of topics; `None` where it has none.
pub(crate) fn list_group_offsets(
    client: &Client<DefaultClientContext>,
    group: &str,
    partitions: &[(&str, i32)],
    timeout: Duration,
) -> Result<Vec<Option<GroupOffset>>, AdminError> {
    const CALL: &str = "ListConsumerGroupOffsets";
    let client = client.native_ptr();
    let group = c_string(CALL, group)?;
    unsafe {
        let list = partition_list(CALL, partitions.iter().map(|(topic, p)| (*topic, *p, 0, "")))?;
        let mut request = Guard(
            sys::rd_kafka_ListConsumerGroupOffsets_new(group.as_ptr(), list.0),
            sys::rd_kafka_ListConsumerGroupOffsets_destroy,
        );
        let options = options(client, AdminOp::RD_KAFKA_ADMIN_OP_LISTCONSUMERGROUPOFFSETS);
        let queue = Guard(sys::rd_kafka_queue_new(client), sys::rd_kafka_queue_destroy);
        sys::rd_kafka_ListConsumerGroupOffsets(client, &mut request.0, 1, options.0, queue.0);
        let event = wait(CALL, &queue, timeout)?;
        let result = sys::rd_kafka_event_ListConsumerGroupOffsets_result(event.0);
        let mut count = 0;
        let groups = sys::rd_kafka_ListConsumerGroupOffsets_result_groups(result, &mut count);
        let answered = group_partitions(CALL, groups, count)?;
        partitions
            .iter()
            .map(|(topic, partition)| {
                let Some(found) =
                    answered.iter().find(|p| p.partition == *partition && text(p.topic) == *topic)
                else {
                    return Ok(None);
                };
                check(CALL, found.err)?;
                if found.offset < 0 {
                    return Ok(None);
                }
                let metadata = bytes(found.metadata.cast(), found.metadata_size);
                Ok(Some(GroupOffset {
                    offset: found.offset,
                    metadata: String::from_utf8_lossy(metadata).into_owned(),
                }))
            })
            .collect()
    }
}

/// Sets the committed offset of `group`, with `metadata`. Kafka refuses it while the group has
/// members.
pub(crate) fn alter_group_offsets(
    client: &Client<DefaultClientContext>,
    group: &str,
    (topic, partition): (&str, i32),
    offset: &GroupOffset,
    timeout: Duration,
) -> Result<(), AdminError> {
    const CALL: &str = "AlterConsumerGroupOffsets";
    let client = client.native_ptr();
    let group = c_string(CALL, group)?;
    unsafe {
        let entry = (topic, partition, offset.offset, offset.metadata.as_str());
        let list = partition_list(CALL, [entry].into_iter())?;
        let mut request = Guard(
            sys::rd_kafka_AlterConsumerGroupOffsets_new(group.as_ptr(), list.0),
            sys::rd_kafka_AlterConsumerGroupOffsets_destroy,
        );
        let options = options(client, AdminOp::RD_KAFKA_ADMIN_OP_ALTERCONSUMERGROUPOFFSETS);
        let queue = Guard(sys::rd_kafka_queue_new(client), sys::rd_kafka_queue_destroy);
        sys::rd_kafka_AlterConsumerGroupOffsets(client, &mut request.0, 1, options.0, queue.0);
        let event = wait(CALL, &queue, timeout)?;
        let result = sys::rd_kafka_event_AlterConsumerGroupOffsets_result(event.0);
        let mut count = 0;
        let groups = sys::rd_kafka_AlterConsumerGroupOffsets_result_groups(result, &mut count);
        let answered = group_partitions(CALL, groups, count)?;
        if answered.is_empty() {
            return Err(failure(CALL, RespErr::RD_KAFKA_RESP_ERR__FAIL));
        }
        answered.iter().try_for_each(|p| check(CALL, p.err))
    }
}

/// The offset that `spec` names, for each of `partitions`, in their order, in one request per
/// broker. The end is the one that the client's `isolation.level` sees. A broker's error for one of
/// them fails them all; a topic that is not there fails alone.
pub(crate) fn list_offsets(
    client: &Client<DefaultClientContext>,
    partitions: &[(&str, i32)],
    spec: OffsetSpec,
    timeout: Duration,
) -> Result<Vec<Result<i64, AdminError>>, AdminError> {
    const CALL: &str = "ListOffsets";
    let client = client.native_ptr();
    if partitions.is_empty() {
        return Ok(Vec::new());
    }
    let spec = match spec {
        OffsetSpec::Earliest => sys::rd_kafka_OffsetSpec_t::RD_KAFKA_OFFSET_SPEC_EARLIEST as i64,
        OffsetSpec::CommittedEnd => sys::rd_kafka_OffsetSpec_t::RD_KAFKA_OFFSET_SPEC_LATEST as i64,
    };
    let millis = i32::try_from(timeout.as_millis()).unwrap_or(NEVER_MS).min(NEVER_MS / 2);
    unsafe {
        let list =
            partition_list(CALL, partitions.iter().map(|(topic, p)| (*topic, *p, spec, "")))?;
        // `rd_kafka_ListOffsets` would do the same, but (2.12.1) begins it on this thread and, when
        // leaders are not known yet, may end and free it on another at the same time: the process
        // dies. This one stays on our thread.
        check(CALL, sys::rd_kafka_offsets_for_times(client, list.0, millis))?;
        let found = parts((*list.0).elems, usize::try_from((*list.0).cnt).unwrap_or(0));
        let offset_of = |answer: &sys::rd_kafka_topic_partition_t| match answer.offset {
            _ if answer.err != RespErr::RD_KAFKA_RESP_ERR_NO_ERROR => {
                Err(failure(CALL, answer.err))
            }
            offset if offset >= 0 => Ok(offset),
            _ => Err(failure(CALL, RespErr::RD_KAFKA_RESP_ERR__FAIL)), // not in the answer
        };
        Ok(found.iter().map(offset_of).collect())
    }
}

/// Describes `topics`; one that does not exist answers with its own error.
pub(crate) fn describe_topics(
    client: &Client<DefaultClientContext>,
    topics: &[&str],
    timeout: Duration,
) -> Result<Vec<Result<TopicDescription, AdminError>>, AdminError> {
    const CALL: &str = "DescribeTopics";
    let client = client.native_ptr();
    let names = topics.iter().map(|name| c_string(CALL, name)).collect::<Result<Vec<_>, _>>()?;
    let mut pointers: Vec<_> = names.iter().map(|name| name.as_ptr()).collect();
    unsafe {
        let collection = Guard(
            sys::rd_kafka_TopicCollection_of_topic_names(pointers.as_mut_ptr(), pointers.len()),
            sys::rd_kafka_TopicCollection_destroy,
        );
        let options = options(client, AdminOp::RD_KAFKA_ADMIN_OP_DESCRIBETOPICS);
        let queue = Guard(sys::rd_kafka_queue_new(client), sys::rd_kafka_queue_destroy);
        sys::rd_kafka_DescribeTopics(client, collection.0, options.0, queue.0);
        let event = wait(CALL, &queue, timeout)?;
        let result = sys::rd_kafka_event_DescribeTopics_result(event.0);
        let mut count = 0;
        let described = sys::rd_kafka_DescribeTopics_result_topics(result, &mut count);
        Ok(parts(described, count)
            .iter()
            .map(|topic| {
                check_error(CALL, sys::rd_kafka_TopicDescription_error(*topic))?;
                let name = text(sys::rd_kafka_TopicDescription_name(*topic)).into_owned();
                let id = sys::rd_kafka_TopicDescription_topic_id(*topic);
                let topic_id = (!id.is_null())
                    .then(|| {
                        Uuid::from_u64_pair(
                            sys::rd_kafka_Uuid_most_significant_bits(id).cast_unsigned(),
                            sys::rd_kafka_Uuid_least_significant_bits(id).cast_unsigned(),
                        )
                    })
                    .filter(|id| !id.is_nil());
                Ok(TopicDescription { name, topic_id })
            })
            .collect())
    }
}

/// Live members of each of `groups`.
pub(crate) fn describe_groups(
    client: &Client<DefaultClientContext>,
    groups: &[&str],
    timeout: Duration,
) -> Result<Vec<Result<GroupMembers, AdminError>>, AdminError> {
    const CALL: &str = "DescribeConsumerGroups";
    let client = client.native_ptr();
    let names = groups.iter().map(|name| c_string(CALL, name)).collect::<Result<Vec<_>, _>>()?;
    let mut pointers: Vec<_> = names.iter().map(|name| name.as_ptr()).collect();
    unsafe {
        let options = options(client, AdminOp::RD_KAFKA_ADMIN_OP_DESCRIBECONSUMERGROUPS);
        let queue = Guard(sys::rd_kafka_queue_new(client), sys::rd_kafka_queue_destroy);
        sys::rd_kafka_DescribeConsumerGroups(
            client,
            pointers.as_mut_ptr(),
            pointers.len(),
            options.0,
            queue.0,
        );
        let event = wait(CALL, &queue, timeout)?;
        let result = sys::rd_kafka_event_DescribeConsumerGroups_result(event.0);
        let mut count = 0;
        let described = sys::rd_kafka_DescribeConsumerGroups_result_groups(result, &mut count);
        Ok(parts(described, count)
            .iter()
            .map(|group| {
                let error = sys::rd_kafka_ConsumerGroupDescription_error(*group);
                match check_error(CALL, error) {
                    Err(error) if error.code.0 != RDKafkaErrorCode::GroupIdNotFound => Err(error),
                    _ => Ok(GroupMembers {
                        group: text(sys::rd_kafka_ConsumerGroupDescription_group_id(*group))
                            .into_owned(),
                        members: sys::rd_kafka_ConsumerGroupDescription_member_count(*group),
                    }),
                }
            })
            .collect())
    }
}

pub(super) unsafe fn options(
    client: Raw,
    operation: AdminOp,
) -> Guard<sys::rd_kafka_AdminOptions_t> {
    unsafe {
        let options = Guard(
            sys::rd_kafka_AdminOptions_new(client, operation),
            sys::rd_kafka_AdminOptions_destroy,
        );
        let mut reason = [0; 256];
        sys::rd_kafka_AdminOptions_set_request_timeout(
            options.0,
            NEVER_MS,
            reason.as_mut_ptr(),
            reason.len(),
        );
        options
    }
}

/// The result event of the one request that was sent to `queue`.
pub(super) unsafe fn wait(
    call: &'static str,
    queue: &Guard<sys::rd_kafka_queue_t>,
    timeout: Duration,
) -> Result<Guard<sys::rd_kafka_event_t>, AdminError> {
    let millis = i32::try_from(timeout.as_millis()).unwrap_or(NEVER_MS).min(NEVER_MS / 2);
    unsafe {
        let event = Guard(sys::rd_kafka_queue_poll(queue.0, millis), sys::rd_kafka_event_destroy);
        if event.0.is_null() {
            return Err(failure(call, RespErr::RD_KAFKA_RESP_ERR__TIMED_OUT));
        }
        let code = sys::rd_kafka_event_error(event.0);
        if code != RespErr::RD_KAFKA_RESP_ERR_NO_ERROR {
            let reason = text(sys::rd_kafka_event_error_string(event.0)).into_owned();
            return Err(AdminError { call, code: KafkaErrorCode(code.into()), reason });
        }
        Ok(event)
    }
}

/// A list of `(topic, partition, offset, metadata)`, owned by librdkafka's allocator.
unsafe fn partition_list<'a>(
    call: &'static str,
    partitions: impl Iterator<Item = (&'a str, i32, i64, &'a str)>,
) -> Result<Guard<sys::rd_kafka_topic_partition_list_t>, AdminError> {
    unsafe {
        let list = Guard(
            sys::rd_kafka_topic_partition_list_new(8),
            sys::rd_kafka_topic_partition_list_destroy,
        );
        for (topic, partition, offset, metadata) in partitions {
            let topic = c_string(call, topic)?;
            let entry = sys::rd_kafka_topic_partition_list_add(list.0, topic.as_ptr(), partition);
            (*entry).offset = offset;
            if !metadata.is_empty() {
                // the list frees it with the C allocator, so it is allocated there
                let copy = libc_copy(metadata.as_bytes());
                if copy.is_null() {
                    return Err(failure(call, RespErr::RD_KAFKA_RESP_ERR__CRIT_SYS_RESOURCE));
                }
                (*entry).metadata = copy;
                (*entry).metadata_size = metadata.len();
            }
        }
        Ok(list)
    }
}

unsafe fn libc_copy(bytes: &[u8]) -> *mut std::ffi::c_void {
    unsafe {
        let copy = libc::malloc(bytes.len());
        if !copy.is_null() {
            ptr::copy_nonoverlapping(bytes.as_ptr(), copy.cast(), bytes.len());
        }
        copy
    }
}

/// The partitions of all groups of an answer. A group's own error ends the call.
unsafe fn group_partitions<'a>(
    call: &'static str,
    groups: *mut *const sys::rd_kafka_group_result_t,
    count: usize,
) -> Result<Vec<&'a sys::rd_kafka_topic_partition_t>, AdminError> {
    let mut found = Vec::new();
    unsafe {
        for group in parts(groups, count) {
            check_error(call, sys::rd_kafka_group_result_error(*group))?;
            let list = sys::rd_kafka_group_result_partitions(*group);
            if let Some(list) = list.as_ref() {
                found.extend(parts(list.elems, usize::try_from(list.cnt).unwrap_or(0)));
            }
        }
    }
    Ok(found)
}

pub(super) unsafe fn parts<'a, T>(first: *const T, count: usize) -> &'a [T] {
    if first.is_null() || count == 0 {
        return &[];
    }
    unsafe { slice::from_raw_parts(first, count) }
}

unsafe fn bytes<'a>(first: *const u8, count: usize) -> &'a [u8] {
    unsafe { parts(first, count) }
}

unsafe fn text<'a>(text: *const std::ffi::c_char) -> std::borrow::Cow<'a, str> {
    if text.is_null() {
        return "".into();
    }
    unsafe { CStr::from_ptr(text).to_string_lossy() }
}

fn check(call: &'static str, code: RespErr) -> Result<(), AdminError> {
    match code {
        RespErr::RD_KAFKA_RESP_ERR_NO_ERROR => Ok(()),
        code => Err(failure(call, code)),
    }
}

pub(super) unsafe fn check_error(
    call: &'static str,
    error: *const sys::rd_kafka_error_t,
) -> Result<(), AdminError> {
    if error.is_null() {
        return Ok(());
    }
    unsafe {
        let code = sys::rd_kafka_error_code(error);
        if code == RespErr::RD_KAFKA_RESP_ERR_NO_ERROR {
            return Ok(());
        }
        let reason = text(sys::rd_kafka_error_string(error)).into_owned();
        Err(AdminError { call, code: KafkaErrorCode(code.into()), reason })
    }
}

pub(super) fn failure(call: &'static str, code: RespErr) -> AdminError {
    let code = RDKafkaErrorCode::from(code);
    AdminError { call, code: code.into(), reason: code.to_string() }
}

pub(super) fn c_string(call: &'static str, text: &str) -> Result<CString, AdminError> {
    CString::new(text).map_err(|_| failure(call, RespErr::RD_KAFKA_RESP_ERR__INVALID_ARG))
}
