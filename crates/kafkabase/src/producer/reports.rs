//! Kafka's answers, from librdkafka's thread to the senders that wait for them.

use std::sync::Arc;

use rdkafka::{
    ClientContext,
    config::RDKafkaLogLevel,
    error::KafkaError,
    producer::{DeliveryResult, ProducerContext},
};
use tokio::sync::{mpsc, oneshot};
use tracing::debug;

use super::{ProducerTopic, SendError};
use crate::{Spool, client_log, error::code_of, outstanding::Ticket};

/// Answers that are passed on before other work gets its turn.
const ANSWERS_AT_ONCE: usize = 256;

/// What librdkafka carries along with an event and gives back with Kafka's answer.
pub(super) enum Report {
    /// An event of a request.
    Sent {
        topic: Arc<ProducerTopic>,
        ticket: Ticket,
        answer: oneshot::Sender<Result<(), SendError>>,
    },
    /// An event of the spool, by its number.
    Replayed {
        topic: Arc<ProducerTopic>,
        seq: u64,
        answer: mpsc::UnboundedSender<(u64, Result<(), SendError>)>,
    },
}

/// Takes librdkafka's reports, on its thread, and passes the answers on.
///
/// A sender that is woken from a foreign thread costs the runtime a lock and often a system call.
/// So one task gets the answers of a whole batch and wakes their senders from inside.
#[derive(Clone)]
pub(super) struct Reports {
    answers: mpsc::UnboundedSender<Answered>,
    spool: Option<Spool>,
}

/// An answer and who waits for it.
struct Answered {
    topic: Arc<ProducerTopic>,
    result: Result<(), SendError>,
    to: oneshot::Sender<Result<(), SendError>>,
}

impl Reports {
    /// Ends with the last client that has a clone. Not more waits here than the client's queue
    /// holds.
    pub(super) fn start(spool: Option<Spool>) -> Reports {
        let (sender, mut answers) = mpsc::unbounded_channel();
        tokio::spawn(async move {
            let mut batch = Vec::with_capacity(ANSWERS_AT_ONCE);
            while answers.recv_many(&mut batch, ANSWERS_AT_ONCE).await > 0 {
                batch.drain(..).for_each(Answered::pass_on);
            }
        });
        Reports { answers: sender, spool }
    }

    /// Settles an event. What the spool has of it goes with an acknowledgement, and is put away
    /// when Kafka will never take it; otherwise it stays, and is looked for.
    fn settle(&self, topic: &ProducerTopic, ticket: Ticket, result: &Result<(), SendError>) {
        let mut outstanding = topic.outstanding();
        let copy = outstanding.settle(ticket);
        let is_diverted = outstanding.is_diverted();
        // with the topic's lock: a replay must not see the event settled and its copy still there
        if let (Some(seq), Some(spool)) = (copy, &self.spool) {
            match result {
                Ok(()) => {
                    spool.remove(topic.name(), [seq]);
                    spool.count("delivered", 1);
                }
                Err(error) if !error.is_retriable() && !error.is_of_batch() => {
                    spool.quarantine(topic.name(), seq, &error.to_string());
                }
                // what was refused may be its batch: it is sent again, alone
                Err(_) => {}
            }
        }
        drop(outstanding);
        if is_diverted {
            topic.settled.notify_one();
        }
    }
}

impl Answered {
    fn pass_on(self) {
        // not listened to: the sender was answered already, or did not want to know
        if let Err(Err(error)) = self.to.send(self.result) {
            self.topic.count(&error);
            debug!(topic = self.topic.name(), error = %error, "event not delivered");
        }
    }
}

impl ClientContext for Reports {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        client_log::log_line(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        client_log::log_error(&error, reason);
    }
}

impl ProducerContext for Reports {
    type DeliveryOpaque = Box<Report>;

    fn delivery(&self, result: &DeliveryResult<'_>, report: Box<Report>) {
        let result = match result {
            Ok(_) => Ok(()),
            Err((error, _)) => Err(SendError::of(code_of(error))),
        };
        match *report {
            Report::Sent { topic, ticket, answer } => {
                self.settle(&topic, ticket, &result);
                if result.is_ok() {
                    topic.count_delivered();
                }
                // without a runtime no sender waits any more
                let _ = self.answers.send(Answered { topic, result, to: answer });
            }
            Report::Replayed { topic, seq, answer } => {
                match &result {
                    Ok(()) => topic.count_delivered(),
                    Err(error) => topic.count(error),
                }
                // a replay that is gone: the event is in the spool as one that was handed over
                let _ = answer.send((seq, result));
            }
        }
    }
}
