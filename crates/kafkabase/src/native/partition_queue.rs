//! One partition's own queue, read in bulk and without a copy of the payload.
//!
//! A partition's messages normally flow into the one queue of their consumer, where a topic with a
//! backlog stops all others. Here its queue is taken out *before* the partition is assigned
//! (librdkafka then leaves it alone), and is bounded by not reading it.

use std::{
    collections::VecDeque,
    ffi::{CStr, CString, c_void},
    ptr, slice,
    sync::Arc,
    time::Duration,
};

use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka_sys::{self as sys, rd_kafka_resp_err_t as RespErr};
use tokio::sync::Notify;

use crate::{KafkaErrorCode, headers::HeaderName};

/// Messages that one call takes out of the queue at most.
const BULK: usize = 512;

/// Bytes that librdkafka takes for a message beside its contents: `rd_kafka_op_t` with a message in
/// it, and what the allocator adds.
const MESSAGE_OVERHEAD: usize = 336;
/// Bytes of a list of parsed headers, `rd_kafka_headers_t`.
const HEADERS_OVERHEAD: usize = 176;
/// Bytes of a parsed header beside its name and value, `rd_kafka_header_t`.
const HEADER_OVERHEAD: usize = 64;

/// What came out of a partition's queue.
#[derive(Debug)]
pub enum Fetched {
    /// The next message.
    Message(Message),
    /// The broker said that the partition ends here, at this offset, for a read-committed client.
    End {
        /// The first offset that is not there yet.
        offset: i64,
    },
    /// Nothing arrived within the time given.
    Nothing,
}

/// Why a partition cannot be read on.
#[derive(Debug, Clone, thiserror::Error)]
#[error("reading the partition failed: {reason}")]
pub struct FetchError {
    /// Kafka's or the client's word for it.
    pub code: KafkaErrorCode,
    /// librdkafka's text. Names topics and brokers, no secrets.
    pub reason: String,
}

/// A message in librdkafka's own memory, given back when dropped.
#[derive(Debug)]
pub struct Message(*mut sys::rd_kafka_message_t);

// SAFETY: a message is owned by the reader that took it out of the queue; librdkafka lets any
// thread free it.
unsafe impl Send for Message {}

impl Message {
    /// Its offset in its partition.
    pub fn offset(&self) -> i64 {
        // SAFETY: the pointer is valid until drop.
        unsafe { (*self.0).offset }
    }

    /// The value; empty for a tombstone.
    pub fn payload(&self) -> &[u8] {
        // SAFETY: payload and len describe memory that lives as long as the message.
        unsafe {
            if (*self.0).payload.is_null() {
                return &[];
            }
            slice::from_raw_parts((*self.0).payload.cast(), (*self.0).len)
        }
    }

    /// The key, if it has one.
    pub fn key(&self) -> Option<&[u8]> {
        // SAFETY: key and key_len describe memory that lives as long as the message.
        unsafe {
            if (*self.0).key.is_null() {
                return None;
            }
            Some(slice::from_raw_parts((*self.0).key.cast(), (*self.0).key_len))
        }
    }

    /// Whether there is a value at all.
    pub fn is_tombstone(&self) -> bool {
        // SAFETY: the pointer is valid until drop.
        unsafe { (*self.0).payload.is_null() }
    }

    /// Milliseconds since the epoch: when it was made or appended, as the topic is set up.
    pub fn timestamp_ms(&self) -> Option<i64> {
        let mut kind = sys::rd_kafka_timestamp_type_t::RD_KAFKA_TIMESTAMP_NOT_AVAILABLE;
        // SAFETY: the pointer is valid until drop.
        let timestamp = unsafe { sys::rd_kafka_message_timestamp(self.0, &mut kind) };
        (timestamp >= 0).then_some(timestamp)
    }

    /// The value of the last header of this name; `None` where it is absent or null.
    pub fn header(&self, name: HeaderName) -> Option<&[u8]> {
        let name = name.as_c_str().as_ptr();
        let mut headers = ptr::null_mut();
        let mut value = ptr::null();
        let mut size = 0;
        // SAFETY: headers and value belong to the message and live as long as it.
        unsafe {
            let found = sys::rd_kafka_message_headers(self.0, &mut headers);
            if found != RespErr::RD_KAFKA_RESP_ERR_NO_ERROR {
                return None;
            }
            let found = sys::rd_kafka_header_get_last(headers, name, &mut value, &mut size);
            if found != RespErr::RD_KAFKA_RESP_ERR_NO_ERROR || value.is_null() {
                return None;
            }
            Some(slice::from_raw_parts(value.cast(), size))
        }
    }

    /// All headers, in their order.
    pub fn headers(&self) -> Vec<(&str, Option<&[u8]>)> {
        let mut headers = ptr::null_mut();
        let mut all = Vec::new();
        // SAFETY: headers, names and values belong to the message and live as long as it.
        unsafe {
            let found = sys::rd_kafka_message_headers(self.0, &mut headers);
            if found != RespErr::RD_KAFKA_RESP_ERR_NO_ERROR {
                return all;
            }
            loop {
                let (mut name, mut value, mut size) = (ptr::null(), ptr::null(), 0);
                let got = sys::rd_kafka_header_get_all(
                    headers,
                    all.len(),
                    &mut name,
                    &mut value,
                    &mut size,
                );
                if got != RespErr::RD_KAFKA_RESP_ERR_NO_ERROR {
                    return all;
                }
                // Kafka's names are UTF-8; one that is not cannot be one that we know
                let name = CStr::from_ptr(name).to_str().unwrap_or_default();
                let value = (!value.is_null()).then(|| slice::from_raw_parts(value.cast(), size));
                all.push((name, value));
            }
        }
    }

    /// Bytes of memory that are held until the message is dropped: value, key, headers, and what
    /// librdkafka keeps beside them. Headers count twice, once as they came and once parsed: a look
    /// at one header parses them all, and so does this call. The topic's name is shared.
    ///
    /// A message shares the answer of a broker that it came in, which is freed with the last of its
    /// messages: only for those that are kept together does the sum say what is held.
    pub fn held_bytes(&self) -> usize {
        let contents = self.payload().len() + self.key().map_or(0, <[u8]>::len);
        let headers = self.headers();
        let list = if headers.is_empty() { 0 } else { HEADERS_OVERHEAD };
        let parsed = headers
            .iter()
            .map(|(name, value)| HEADER_OVERHEAD + 2 * (name.len() + value.map_or(0, <[u8]>::len)));
        MESSAGE_OVERHEAD + contents + list + parsed.sum::<usize>()
    }

    fn error(&self) -> RespErr {
        // SAFETY: the pointer is valid until drop.
        unsafe { (*self.0).err }
    }
}

impl Drop for Message {
    fn drop(&mut self) {
        // SAFETY: taken out of the queue once, freed once.
        unsafe { sys::rd_kafka_message_destroy(self.0) }
    }
}

pub(crate) struct PartitionQueue<C: ConsumerContext> {
    queue: *mut sys::rd_kafka_queue_t,
    taken: VecDeque<Message>,
    /// Told when something arrives in the empty queue. librdkafka holds a pointer to it until
    /// `drop`.
    arrived: Option<Arc<Notify>>,
    /// Keeps the client alive for as long as its queue is.
    _consumer: Arc<BaseConsumer<C>>,
}

// SAFETY: librdkafka's queues may be read from any thread; `&mut self` keeps it to one at a time.
unsafe impl<C: ConsumerContext> Send for PartitionQueue<C> {}

impl<C: ConsumerContext> PartitionQueue<C> {
    /// Takes the queue of a partition that is not assigned yet. `None`: the name holds a NUL.
    pub(crate) fn take(
        consumer: &Arc<BaseConsumer<C>>,
        topic: &str,
        partition: i32,
    ) -> Option<PartitionQueue<C>> {
        let topic = CString::new(topic).ok()?;
        // SAFETY: the client lives in the `Arc` that the new handle keeps.
        let queue = unsafe {
            let client = consumer.client().native_ptr();
            sys::rd_kafka_queue_get_partition(client, topic.as_ptr(), partition)
        };
        if queue.is_null() {
            return None;
        }
        // forwarding to nowhere is what tells librdkafka that the application reads this queue
        unsafe { sys::rd_kafka_queue_forward(queue, ptr::null_mut()) };
        Some(PartitionQueue {
            queue,
            taken: VecDeque::new(),
            arrived: None,
            _consumer: consumer.clone(),
        })
    }

    /// What tells that something arrived. It is told when the queue was empty before: so take all
    /// that is there, then wait.
    pub(crate) fn arrived(&mut self) -> Arc<Notify> {
        let queue = self.queue;
        let arrived = self.arrived.get_or_insert_with(|| {
            let arrived = Arc::new(Notify::new());
            // SAFETY: the `Notify` lives in `self`, which takes the callback away before it lets go
            // of it.
            unsafe {
                let opaque = Arc::as_ptr(&arrived).cast_mut().cast();
                sys::rd_kafka_queue_cb_event_enable(queue, Some(tell), opaque);
            }
            arrived
        });
        arrived.clone()
    }

    /// The next thing in the queue; waits at most `timeout` for it.
    pub(crate) fn next(&mut self, timeout: Duration) -> Result<Fetched, FetchError> {
        if self.taken.is_empty() {
            self.take_what_is_there();
        }
        if self.taken.is_empty() {
            self.wait_for_one(timeout);
        }
        let Some(message) = self.taken.pop_front() else {
            return Ok(Fetched::Nothing);
        };
        match message.error() {
            RespErr::RD_KAFKA_RESP_ERR_NO_ERROR => Ok(Fetched::Message(message)),
            RespErr::RD_KAFKA_RESP_ERR__PARTITION_EOF => {
                Ok(Fetched::End { offset: message.offset() })
            }
            code => {
                let reason = String::from_utf8_lossy(message.payload()).into_owned();
                Err(FetchError { code: KafkaErrorCode(code.into()), reason })
            }
        }
    }

    /// How much is there that was not handed out, ends of the partition and outdated records among
    /// it.
    pub(crate) fn len(&self) -> usize {
        // SAFETY: the queue is valid until drop.
        self.taken.len() + unsafe { sys::rd_kafka_queue_length(self.queue) }
    }

    /// Drops what is there. Once the partition is given back, what librdkafka's own queue holds of
    /// it is outdated, and the call that would take it frees it instead.
    pub(crate) fn clear(&mut self) {
        self.taken.clear();
        while self.len() > 0 {
            self.take_what_is_there();
            self.taken.clear();
        }
    }

    /// The bulk call waits until its array is full or its time is over, so it is never given time.
    fn take_what_is_there(&mut self) {
        let mut messages = [ptr::null_mut(); BULK];
        // SAFETY: the array has room for as many pointers as the call is told.
        let count = unsafe {
            sys::rd_kafka_consume_batch_queue(self.queue, 0, messages.as_mut_ptr(), BULK)
        };
        let count = usize::try_from(count).unwrap_or(0);
        self.taken.extend(messages[..count].iter().map(|message| Message(*message)));
    }

    fn wait_for_one(&mut self, timeout: Duration) {
        let millis = i32::try_from(timeout.as_millis()).unwrap_or(i32::MAX);
        // SAFETY: the queue is valid until drop.
        let message = unsafe { sys::rd_kafka_consume_queue(self.queue, millis) };
        if !message.is_null() {
            self.taken.push_back(Message(message));
        }
    }
}

/// Called on librdkafka's threads.
unsafe extern "C" fn tell(_client: *mut sys::rd_kafka_t, opaque: *mut c_void) {
    // SAFETY: points to the `Notify` of a queue that is not dropped yet.
    unsafe { (*opaque.cast::<Notify>()).notify_one() }
}

impl<C: ConsumerContext> Drop for PartitionQueue<C> {
    fn drop(&mut self) {
        self.taken.clear();
        if self.arrived.is_some() {
            // SAFETY: takes the queue's lock, under which the callback is called: none is on its
            // way afterwards.
            unsafe { sys::rd_kafka_queue_cb_event_enable(self.queue, None, ptr::null_mut()) }
        }
        // SAFETY: obtained once in `take`, destroyed once; the client is still alive.
        unsafe { sys::rd_kafka_queue_destroy(self.queue) }
    }
}
