//! Making a topic, with the broker's own sentence where it says no: rust-rdkafka drops it.

use std::time::Duration;

use rdkafka::client::{Client, DefaultClientContext};
use rdkafka_sys::{self as sys, rd_kafka_admin_op_t as AdminOp, rd_kafka_resp_err_t as RespErr};

use super::{
    answers::AdminError,
    request::{Guard, c_string, check, failure, options, parts, text, wait},
};

/// What a topic is made with, in the words of the request.
pub(crate) struct NewTopic<'a> {
    pub(crate) name: &'a str,
    pub(crate) partitions: i32,
    /// -1 is the brokers' default.
    pub(crate) replication: i32,
    pub(crate) entries: &'a [(&'static str, String)],
}

/// Makes a topic; returns once all brokers know it, or the time is over.
pub(crate) fn create_topic(
    client: &Client<DefaultClientContext>,
    topic: &NewTopic<'_>,
    timeout: Duration,
) -> Result<(), AdminError> {
    const CALL: &str = "CreateTopics";
    let client = client.native_ptr();
    let name = c_string(CALL, topic.name)?;
    let millis = i32::try_from(timeout.as_millis()).unwrap_or(i32::MAX);
    let mut reason = [0; 512];
    // SAFETY: everything that is allocated is freed by its guard; the texts live for the whole
    // call, and librdkafka copies them.
    unsafe {
        let mut request = Guard(
            sys::rd_kafka_NewTopic_new(
                name.as_ptr(),
                topic.partitions,
                topic.replication,
                reason.as_mut_ptr(),
                reason.len(),
            ),
            sys::rd_kafka_NewTopic_destroy,
        );
        if request.0.is_null() {
            let mut error = failure(CALL, RespErr::RD_KAFKA_RESP_ERR__INVALID_ARG);
            error.reason = text(reason.as_ptr()).into_owned();
            return Err(error);
        }
        for (key, value) in topic.entries {
            let (key, value) = (c_string(CALL, key)?, c_string(CALL, value)?);
            let set = sys::rd_kafka_NewTopic_set_config(request.0, key.as_ptr(), value.as_ptr());
            check(CALL, set)?;
        }
        let options = options(client, AdminOp::RD_KAFKA_ADMIN_OP_CREATETOPICS);
        let (reason, size) = (reason.as_mut_ptr(), reason.len());
        sys::rd_kafka_AdminOptions_set_operation_timeout(options.0, millis, reason, size);
        let queue = Guard(sys::rd_kafka_queue_new(client), sys::rd_kafka_queue_destroy);
        sys::rd_kafka_CreateTopics(client, &mut request.0, 1, options.0, queue.0);
        let event = wait(CALL, &queue, timeout)?;
        let result = sys::rd_kafka_event_CreateTopics_result(event.0);
        let mut count = 0;
        let answers = sys::rd_kafka_CreateTopics_result_topics(result, &mut count);
        let [answer] = parts(answers, count) else {
            return Err(failure(CALL, RespErr::RD_KAFKA_RESP_ERR__FAIL));
        };
        match sys::rd_kafka_topic_result_error(*answer) {
            RespErr::RD_KAFKA_RESP_ERR_NO_ERROR => Ok(()),
            code => {
                let sentence = text(sys::rd_kafka_topic_result_error_string(*answer));
                let mut error = failure(CALL, code);
                if !sentence.is_empty() {
                    error.reason = sentence.into_owned();
                }
                Err(error)
            }
        }
    }
}
