//! What each administrative request of librdkafka needs: options, its one answer, lists and texts.

use std::{
    ffi::{CStr, CString},
    ptr, slice,
    time::Duration,
};

use rdkafka::error::RDKafkaErrorCode;
use rdkafka_sys::{
    self as sys, rd_kafka_admin_op_t as AdminOp, rd_kafka_resp_err_t as RespErr, rd_kafka_t,
};

use super::answers::AdminError;
use crate::KafkaErrorCode;

/// The longest time-out that librdkafka takes. None of ours is as long: see `admin` for why it must
/// not come.
pub(super) const NEVER_MS: i32 = 3_600_000;

pub(super) type Raw = *mut rd_kafka_t;

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
pub(super) unsafe fn partition_list<'a>(
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
pub(super) unsafe fn group_partitions<'a>(
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

pub(super) unsafe fn bytes<'a>(first: *const u8, count: usize) -> &'a [u8] {
    unsafe { parts(first, count) }
}

pub(super) unsafe fn text<'a>(text: *const std::ffi::c_char) -> std::borrow::Cow<'a, str> {
    if text.is_null() {
        return "".into();
    }
    unsafe { CStr::from_ptr(text).to_string_lossy() }
}

pub(super) fn check(call: &'static str, code: RespErr) -> Result<(), AdminError> {
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
