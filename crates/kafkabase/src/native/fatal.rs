//! A fatal error on purpose, as librdkafka's own tests make it.

use rdkafka::client::{Client, ClientContext};
use rdkafka_sys::{self as sys, rd_kafka_resp_err_t as RespErr};

/// Ends the client as a broken sequence of the idempotent producer does.
pub(crate) fn make_fatal<C: ClientContext>(client: &Client<C>) {
    let code = RespErr::RD_KAFKA_RESP_ERR_OUT_OF_ORDER_SEQUENCE_NUMBER;
    // SAFETY: the client is alive for the whole call, and the text has its zero.
    unsafe { sys::rd_kafka_test_fatal_error(client.native_ptr(), code, c"test".as_ptr()) };
}
