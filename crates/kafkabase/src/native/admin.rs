//! Administrative calls of librdkafka, blocking, one request a call (a call may name many
//! partitions).
//!
//! A borrowed `Client` proves that the handle lives for the whole call.

use std::time::Duration;

use rdkafka::{
    client::{Client, DefaultClientContext},
    error::RDKafkaErrorCode,
};
use rdkafka_sys::{self as sys, rd_kafka_admin_op_t as AdminOp, rd_kafka_resp_err_t as RespErr};
use uuid::Uuid;

use super::{
    answers::{AdminError, CommittedOffset, OffsetSpec},
    request::{
        Guard, NEVER_MS, bytes, c_string, check, check_error, failure, group_partitions, options,
        partition_list, parts, text, wait,
    },
};

/// Offsets that group `group` has committed for `partitions` of topics; `None` where it has none.
pub(crate) fn list_group_offsets(
    client: &Client<DefaultClientContext>,
    group: &str,
    partitions: &[(&str, i32)],
    timeout: Duration,
) -> Result<Vec<Option<CommittedOffset>>, AdminError> {
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
                Ok(Some(CommittedOffset {
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
    offset: &CommittedOffset,
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

/// The id of `topic`; `None` on brokers before 2.8, which have no topic ids. A topic that does not
/// exist answers with its own error.
pub(crate) fn topic_id(
    client: &Client<DefaultClientContext>,
    topic: &str,
    timeout: Duration,
) -> Result<Option<Uuid>, AdminError> {
    const CALL: &str = "DescribeTopics";
    let client = client.native_ptr();
    let name = c_string(CALL, topic)?;
    let mut names = [name.as_ptr()];
    unsafe {
        let collection = Guard(
            sys::rd_kafka_TopicCollection_of_topic_names(names.as_mut_ptr(), names.len()),
            sys::rd_kafka_TopicCollection_destroy,
        );
        let options = options(client, AdminOp::RD_KAFKA_ADMIN_OP_DESCRIBETOPICS);
        let queue = Guard(sys::rd_kafka_queue_new(client), sys::rd_kafka_queue_destroy);
        sys::rd_kafka_DescribeTopics(client, collection.0, options.0, queue.0);
        let event = wait(CALL, &queue, timeout)?;
        let result = sys::rd_kafka_event_DescribeTopics_result(event.0);
        let mut count = 0;
        let described = sys::rd_kafka_DescribeTopics_result_topics(result, &mut count);
        let [described] = parts(described, count) else {
            return Err(failure(CALL, RespErr::RD_KAFKA_RESP_ERR__FAIL));
        };
        check_error(CALL, sys::rd_kafka_TopicDescription_error(*described))?;
        let id = sys::rd_kafka_TopicDescription_topic_id(*described);
        if id.is_null() {
            return Ok(None);
        }
        let id = Uuid::from_u64_pair(
            sys::rd_kafka_Uuid_most_significant_bits(id).cast_unsigned(),
            sys::rd_kafka_Uuid_least_significant_bits(id).cast_unsigned(),
        );
        Ok((!id.is_nil()).then_some(id))
    }
}

/// How many live members `group` has; one that does not exist has none.
pub(crate) fn group_members(
    client: &Client<DefaultClientContext>,
    group: &str,
    timeout: Duration,
) -> Result<usize, AdminError> {
    const CALL: &str = "DescribeConsumerGroups";
    let client = client.native_ptr();
    let name = c_string(CALL, group)?;
    let mut names = [name.as_ptr()];
    unsafe {
        let options = options(client, AdminOp::RD_KAFKA_ADMIN_OP_DESCRIBECONSUMERGROUPS);
        let queue = Guard(sys::rd_kafka_queue_new(client), sys::rd_kafka_queue_destroy);
        sys::rd_kafka_DescribeConsumerGroups(
            client,
            names.as_mut_ptr(),
            names.len(),
            options.0,
            queue.0,
        );
        let event = wait(CALL, &queue, timeout)?;
        let result = sys::rd_kafka_event_DescribeConsumerGroups_result(event.0);
        let mut count = 0;
        let described = sys::rd_kafka_DescribeConsumerGroups_result_groups(result, &mut count);
        let [described] = parts(described, count) else {
            return Err(failure(CALL, RespErr::RD_KAFKA_RESP_ERR__FAIL));
        };
        let error = sys::rd_kafka_ConsumerGroupDescription_error(*described);
        match check_error(CALL, error) {
            Err(error) if error.code.0 != RDKafkaErrorCode::GroupIdNotFound => Err(error),
            _ => Ok(sys::rd_kafka_ConsumerGroupDescription_member_count(*described)),
        }
    }
}
