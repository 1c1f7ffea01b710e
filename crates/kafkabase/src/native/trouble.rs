//! What only tests ask for: a fatal error as librdkafka's own tests make it, and rights.

use std::time::Duration;

use rdkafka::client::{Client, ClientContext, DefaultClientContext};
use rdkafka_sys::{
    self as sys, rd_kafka_AclOperation_t as Operation, rd_kafka_AclPermissionType_t as Permission,
    rd_kafka_ResourcePatternType_t as Pattern, rd_kafka_ResourceType_t as Resource,
    rd_kafka_admin_op_t as AdminOp, rd_kafka_resp_err_t as RespErr,
};

use super::{
    answers::AdminError,
    request::{Guard, c_string, check_error, failure, options, parts, wait},
};

/// Ends the client as a broken sequence of the idempotent producer does.
pub(crate) fn make_fatal<C: ClientContext>(client: &Client<C>) {
    let code = RespErr::RD_KAFKA_RESP_ERR_OUT_OF_ORDER_SEQUENCE_NUMBER;
    // SAFETY: the client is alive for the whole call, and the text has its zero.
    unsafe { sys::rd_kafka_test_fatal_error(client.native_ptr(), code, c"test".as_ptr()) };
}

/// A right to a topic, for everybody.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Right {
    Read,
    Write,
}

/// Gives everybody this right. A topic that a user has a right to is closed to all who have none.
pub(crate) fn allow(
    client: &Client<DefaultClientContext>,
    topic: &str,
    right: Right,
    timeout: Duration,
) -> Result<(), AdminError> {
    const CALL: &str = "CreateAcls";
    let client = client.native_ptr();
    let topic = c_string(CALL, topic)?;
    let operation = match right {
        Right::Read => Operation::RD_KAFKA_ACL_OPERATION_READ,
        Right::Write => Operation::RD_KAFKA_ACL_OPERATION_WRITE,
    };
    // SAFETY: everything that is allocated is freed by its guard; the texts live for the whole
    // call.
    unsafe {
        let mut binding = Guard(
            sys::rd_kafka_AclBinding_new(
                Resource::RD_KAFKA_RESOURCE_TOPIC,
                topic.as_ptr(),
                Pattern::RD_KAFKA_RESOURCE_PATTERN_LITERAL,
                c"User:*".as_ptr(),
                c"*".as_ptr(),
                operation,
                Permission::RD_KAFKA_ACL_PERMISSION_TYPE_ALLOW,
                std::ptr::null_mut(),
                0,
            ),
            sys::rd_kafka_AclBinding_destroy,
        );
        let options = options(client, AdminOp::RD_KAFKA_ADMIN_OP_CREATEACLS);
        let queue = Guard(sys::rd_kafka_queue_new(client), sys::rd_kafka_queue_destroy);
        sys::rd_kafka_CreateAcls(client, &mut binding.0, 1, options.0, queue.0);
        let event = wait(CALL, &queue, timeout)?;
        let result = sys::rd_kafka_event_CreateAcls_result(event.0);
        let mut count = 0;
        let answers = sys::rd_kafka_CreateAcls_result_acls(result, &mut count);
        let [answer] = parts(answers, count) else {
            return Err(failure(CALL, RespErr::RD_KAFKA_RESP_ERR__FAIL));
        };
        check_error(CALL, sys::rd_kafka_acl_result_error(*answer))
    }
}
