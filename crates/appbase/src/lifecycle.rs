//! From the first signal to the last line: one token that says stop, one list of what is running,
//! one deadline for its end.
//!
//! Invariant: what was started last is stopped first, and the next in turn is not told before that
//! one has ended or the deadline has come.

use std::{future::Future, io, pin::Pin, time::Duration};

use tokio::{
    signal::unix::{SignalKind, signal},
    task::JoinHandle,
    time::{Instant, timeout_at},
};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

/// A token that the first SIGINT or SIGTERM cancels; later signals are ignored, the deadline rules
/// then. To be called within a runtime; fails where signals cannot be watched.
pub fn stop_on_signal() -> io::Result<CancellationToken> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let stop = CancellationToken::new();
    let cancelled = stop.clone();
    tokio::spawn(async move {
        let name = tokio::select! {
            _ = interrupt.recv() => "SIGINT",
            _ = terminate.recv() => "SIGTERM",
        };
        info!(signal = name, "stopping");
        cancelled.cancel();
    });
    Ok(stop)
}

/// The moment by which everything has to be over, shared by the steps of a stop.
#[derive(Debug, Clone, Copy)]
pub struct Deadline(Instant);

impl Deadline {
    /// The moment that is this far from now.
    pub fn after(time: Duration) -> Deadline {
        Deadline(Instant::now() + time)
    }

    /// What is left; zero once it is over.
    pub fn remaining(&self) -> Duration {
        self.0.saturating_duration_since(Instant::now())
    }

    /// The result of `work`, or `None` if the deadline came first: `work` is dropped then.
    pub async fn cut<T>(&self, work: impl Future<Output = T>) -> Option<T> {
        timeout_at(self.0, work).await.ok()
    }
}

/// The parts of a service in the order in which they were started; [`Parts::stop`] is its reverse.
///
/// Dropped without a stop, tasks go on and steps are never taken.
#[derive(Default)]
pub struct Parts(Vec<Part>);

struct Part {
    name: &'static str,
    end: End,
}

/// How a part is brought to its end.
enum End {
    /// The token says so, then the task ends by itself.
    Task { stop: CancellationToken, task: JoinHandle<()> },
    /// Something is to be done between the ends of two tasks.
    Step(Step),
}

/// What may be wrong with the end of a part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trouble {
    /// It panicked; the log has said why.
    Panicked,
    /// It still runs.
    Late,
}

type Step = Box<dyn FnOnce(Deadline) -> Pin<Box<dyn Future<Output = ()> + Send>> + Send>;

impl Parts {
    /// Starts a task that ends some time after `stop` is cancelled, which is done at its turn.
    ///
    /// A part that is to end with the service's signal takes the token of the signal: it was told
    /// long before its turn. Parts that share a token are told together, at the turn of the one
    /// that was started last, and are still waited for one by one.
    pub fn spawn<F>(
        &mut self,
        name: &'static str,
        stop: &CancellationToken,
        run: impl FnOnce(CancellationToken) -> F,
    ) where
        F: Future<Output = ()> + Send + 'static,
    {
        let task = tokio::spawn(run(stop.clone()));
        self.adopt(name, stop.clone(), task);
    }

    /// Takes a task that runs already and ends some time after `stop` is cancelled.
    pub fn adopt(&mut self, name: &'static str, stop: CancellationToken, task: JoinHandle<()>) {
        self.0.push(Part { name, end: End::Task { stop, task } });
    }

    /// Adds a step of the stop, for what is no task: it is taken at its turn, once all that was
    /// started after it has ended. It must keep to the deadline itself: only it knows what to say
    /// of what is left undone.
    pub fn on_stop<F>(
        &mut self,
        name: &'static str,
        step: impl FnOnce(Deadline) -> F + Send + 'static,
    ) where
        F: Future<Output = ()> + Send + 'static,
    {
        let step: Step = Box::new(move |deadline| Box::pin(step(deadline)));
        self.0.push(Part { name, end: End::Step(step) });
    }

    /// Stops all parts, the last one first, and waits for each up to the deadline, which is one for
    /// all: after it, the rest is told and not waited for. A part that panicked, now or long ago,
    /// and one that is late are logged, and the others are stopped all the same. Returns those, in
    /// the order of their turns.
    ///
    /// Dropped before its end, it leaves the parts running whose turn did not come.
    pub async fn stop(self, deadline: Deadline) -> Vec<(&'static str, Trouble)> {
        let mut troubles = Vec::new();
        for Part { name, end } in self.0.into_iter().rev() {
            let ended = match end {
                End::Task { stop, task } => {
                    stop.cancel();
                    deadline.cut(task).await
                }
                // a task of its own, so that a panic ends the step alone
                End::Step(step) => Some(tokio::spawn(step(deadline)).await),
            };
            match ended {
                Some(Ok(())) => {}
                Some(Err(_)) => {
                    warn!(part = name, "part of the service panicked");
                    troubles.push((name, Trouble::Panicked));
                }
                None => {
                    warn!(part = name, "part of the service did not end in time");
                    troubles.push((name, Trouble::Late));
                }
            }
        }
        troubles
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    /// What happened, in its order.
    #[derive(Clone, Default)]
    struct Diary(Arc<Mutex<Vec<String>>>);

    impl Diary {
        fn note(&self, line: &str) {
            self.0.lock().unwrap().push(line.to_owned());
        }

        fn lines(&self) -> Vec<String> {
            self.0.lock().unwrap().clone()
        }

        /// A part that notes when it is told to stop, and when it ends, `takes` later.
        fn part(
            &self,
            name: &'static str,
            takes: Duration,
        ) -> impl FnOnce(CancellationToken) -> Pin<Box<dyn Future<Output = ()> + Send>> + use<>
        {
            let diary = self.clone();
            move |stop| {
                Box::pin(async move {
                    stop.cancelled().await;
                    diary.note(&format!("{name} told"));
                    tokio::time::sleep(takes).await;
                    diary.note(&format!("{name} ended"));
                })
            }
        }
    }

    const SECOND: Duration = Duration::from_secs(1);

    #[tokio::test(start_paused = true)]
    async fn a_deadline_cuts_what_takes_longer() {
        let deadline = Deadline::after(Duration::from_millis(20));
        assert_eq!(deadline.cut(async { 5 }).await, Some(5));
        assert_eq!(deadline.cut(std::future::pending::<()>()).await, None);
        assert_eq!(deadline.remaining(), Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_started_last_ends_before_the_one_before_it_is_told() {
        let (diary, mut parts) = (Diary::default(), Parts::default());
        parts.spawn("log", &CancellationToken::new(), diary.part("log", SECOND));
        let step = diary.clone();
        parts.on_stop("flush", async move |_| step.note("flush"));
        parts.spawn("intake", &CancellationToken::new(), diary.part("intake", SECOND));
        let troubles = parts.stop(Deadline::after(10 * SECOND)).await;
        assert_eq!(troubles, []);
        let expected = ["intake told", "intake ended", "flush", "log told", "log ended"];
        assert_eq!(diary.lines(), expected);
    }

    #[tokio::test(start_paused = true)]
    async fn parts_with_one_token_are_told_together_and_all_waited_for() {
        let (diary, mut parts) = (Diary::default(), Parts::default());
        let (signal, background) = (CancellationToken::new(), CancellationToken::new());
        parts.spawn("log", &background, diary.part("log", SECOND));
        parts.spawn("watch", &background, diary.part("watch", 2 * SECOND));
        parts.spawn("loader", &signal, diary.part("loader", 3 * SECOND));
        parts.spawn("intake", &signal, diary.part("intake", SECOND));
        // the signal, to which both of its parts listen
        signal.cancel();
        let began = Instant::now();
        parts.stop(Deadline::after(10 * SECOND)).await;
        assert_eq!(began.elapsed(), 5 * SECOND);
        let lines = diary.lines();
        let at = |line: &str| lines.iter().position(|known| known == line).unwrap();
        assert!(at("loader told") < at("intake ended"), "{lines:?}");
        assert!(at("loader ended") < at("watch told"), "{lines:?}");
        assert!(at("log told") < at("watch ended"), "{lines:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn one_deadline_is_for_all_and_the_rest_is_told_after_it() {
        let (diary, mut parts) = (Diary::default(), Parts::default());
        parts.spawn("quick", &CancellationToken::new(), diary.part("quick", Duration::ZERO));
        let step = diary.clone();
        parts.on_stop("flush", async move |deadline: Deadline| {
            step.note(&format!("flush within {} s", deadline.remaining().as_secs()));
        });
        parts.spawn("late", &CancellationToken::new(), diary.part("late", 5 * SECOND));
        parts.spawn("slow", &CancellationToken::new(), diary.part("slow", 2 * SECOND));
        let began = Instant::now();
        let troubles = parts.stop(Deadline::after(3 * SECOND)).await;
        assert_eq!(began.elapsed(), 3 * SECOND);
        assert_eq!(troubles, [("late", Trouble::Late), ("quick", Trouble::Late)]);
        tokio::time::sleep(5 * SECOND).await;
        let expected = [
            "slow told",
            "slow ended",
            "late told",
            "flush within 0 s",
            "quick told",
            "quick ended",
            "late ended",
        ];
        assert_eq!(diary.lines(), expected);
    }

    #[tokio::test(start_paused = true)]
    async fn parts_that_panic_do_not_keep_the_others_from_being_stopped() {
        let (diary, mut parts) = (Diary::default(), Parts::default());
        parts.spawn("log", &CancellationToken::new(), diary.part("log", SECOND));
        parts.on_stop("flush", async move |_| panic!("a step that fails"));
        parts.spawn("watch", &CancellationToken::new(), async move |_| panic!("long ago"));
        parts.spawn("intake", &CancellationToken::new(), diary.part("intake", SECOND));
        tokio::time::sleep(SECOND).await;
        let troubles = parts.stop(Deadline::after(10 * SECOND)).await;
        assert_eq!(troubles, [("watch", Trouble::Panicked), ("flush", Trouble::Panicked)]);
        assert_eq!(diary.lines(), ["intake told", "intake ended", "log told", "log ended"]);
    }
}
