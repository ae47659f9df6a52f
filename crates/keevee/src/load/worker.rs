//! One connection of the load: draws operations, sends them, waits for their answers, notes the time.

use std::fmt::Write;
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::Poll;
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio::time::{Sleep, sleep};

use crate::load::Progress;
use crate::load::connection::{Connection, Operation};
use crate::load::report::SharedTally;
use crate::load::schedule::Schedule;
use crate::load::workload::{Extent, Keys, Kind, Workload};

/// After this long without an answer a connection is given up.
const PATIENCE: Duration = Duration::from_secs(30);

/// Whether every key is put once, or the workload carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    Fill,
    Measure,
}

/// What all connections have in common.
#[derive(Clone)]
pub(crate) struct Plan {
    pub(crate) workload: Arc<Workload>,
    pub(crate) progress: Arc<Progress>,
    pub(crate) phase: Phase,
    /// Operations that start before are warm-up.
    pub(crate) begin: Instant,
    /// When they are due, in an open loop.
    pub(crate) schedule: Option<Arc<Schedule>>,
}

pub(crate) struct Worker {
    number: usize,
    plan: Plan,
    tally: SharedTally,
    random: StdRng,
    keys: Keys,
    /// Random bytes, twice a value's size: a value is a window on them.
    values: Vec<u8>,
    key: String,
    /// What is under way: its kind, and when it was due if there is a schedule.
    batch: Vec<(Kind, Option<Instant>)>,
    patience: Patience,
}

impl Worker {
    pub(crate) fn new(number: usize, plan: Plan, tally: SharedTally) -> Worker {
        let mut random = StdRng::seed_from_u64(rand::random());
        let mut values = vec![0; 2 * plan.workload.value_size];
        random.fill(&mut values[..]);
        let keys = Keys::new(&plan.workload, plan.phase, number);
        let (key, batch, patience) = (String::new(), Vec::new(), Patience::new());
        Worker { number, plan, tally, random, keys, values, key, batch, patience }
    }

    pub(crate) async fn run(mut self) {
        let mut failures = 0;
        while !self.is_over() {
            let endpoints = &self.plan.workload.endpoints;
            let endpoint = endpoints[(self.number + failures) % endpoints.len()].clone();
            let opening = Connection::open(self.plan.workload.clone(), endpoint);
            match self.patience.limit(opening).await {
                Some(Ok(connection)) => {
                    if self.work(connection).await {
                        return;
                    }
                }
                Some(Err(_)) | None => self.tally.error("connection"),
            }
            // Another node next time, and no busy loop while all are away.
            failures += 1;
            sleep(Duration::from_millis(self.random.random_range(5..20))).await;
        }
    }

    /// Uses a connection until it breaks; true if the work is done.
    async fn work(&mut self, mut connection: Connection) -> bool {
        loop {
            self.draw(&mut connection).await;
            if self.batch.is_empty() {
                return true;
            }
            if let Err((failure, unanswered)) = self.exchange(&mut connection).await {
                // None of them has an answer.
                (0..unanswered).for_each(|_| self.tally.error(failure));
                return false;
            }
        }
    }

    /// Draws what goes out next, as much as may be under way; nothing when it is over.
    async fn draw(&mut self, connection: &mut Connection) {
        self.batch.clear();
        while self.batch.len() < self.plan.workload.pipeline && !self.is_over() {
            let Some(number) = self.keys.draw(&mut self.random) else { return };
            let mut due = None;
            if let Some(schedule) = &self.plan.schedule {
                due = if self.batch.is_empty() { schedule.next().await } else { schedule.next_due() };
                if due.is_none() {
                    return;
                }
            }
            // Last: whoever has no more keys must not take an operation from those that have.
            if !self.plan.progress.take() {
                return;
            }
            if self.plan.progress.is_spent() {
                // Others wait for operations that will never be due.
                self.plan.schedule.iter().for_each(|schedule| schedule.close());
            }
            let kind = match self.plan.phase {
                Phase::Fill => Kind::Put,
                Phase::Measure => self.plan.workload.kind(&mut self.random),
            };
            self.add(connection, kind, number);
            self.batch.push((kind, due));
        }
    }

    fn add(&mut self, connection: &mut Connection, kind: Kind, number: u64) {
        let Workload { prefix, key_digits, value_size, .. } = &*self.plan.workload;
        self.key.clear();
        // Writing to memory does not fail.
        let _ = write!(self.key, "{prefix}{number:0key_digits$}");
        let start = if kind == Kind::Put { self.random.random_range(0..=*value_size) } else { 0 };
        let value = &self.values[start..start + value_size];
        connection.add(&Operation { kind, key: &self.key, value });
    }

    /// Sends what was drawn and takes the answers. Else: what went wrong, and how many are left without one.
    async fn exchange(&mut self, connection: &mut Connection) -> Result<(), (&'static str, usize)> {
        let sent = Instant::now();
        let count = self.batch.len();
        match self.patience.limit(connection.send()).await {
            Some(Ok(())) => {}
            Some(Err(_)) => return Err(("connection", count)),
            None => return Err(("timeout", count)),
        }
        for (done, (kind, due)) in self.batch.iter().enumerate() {
            let answer = match self.patience.limit(connection.answer(*kind)).await {
                Some(Ok(answer)) => answer,
                Some(Err(_)) => return Err(("connection", count - done)),
                None => return Err(("timeout", count - done)),
            };
            let (start, end) = (due.unwrap_or(sent), Instant::now());
            if start < self.plan.begin {
                continue;
            }
            match answer {
                Ok(()) => {
                    self.tally.record(*kind, end - start, end);
                    self.plan.progress.done.fetch_add(1, Ordering::Relaxed);
                }
                Err(kind) => self.tally.error(&kind),
            }
        }
        connection.check_is_quiet().map_err(|_| ("connection", 1))
    }

    fn is_over(&self) -> bool {
        let late = match (self.plan.phase, self.plan.workload.extent) {
            (Phase::Measure, Extent::Time(time)) => Instant::now() >= self.plan.begin + time,
            _ => false,
        };
        late || self.plan.progress.stop.load(Ordering::Relaxed)
    }
}

/// A timeout that costs next to nothing while answers come: its timer is set anew when it has run out, not for
/// each request.
struct Patience(Pin<Box<Sleep>>);

impl Patience {
    fn new() -> Patience {
        Patience(Box::pin(sleep(PATIENCE)))
    }

    /// What the future gives; `None` if that takes too long.
    async fn limit<F: Future>(&mut self, future: F) -> Option<F::Output> {
        let mut future = pin!(future);
        let mut deadline = None;
        poll_fn(|context| {
            if let Poll::Ready(output) = future.as_mut().poll(context) {
                return Poll::Ready(Some(output));
            }
            let deadline = *deadline.get_or_insert_with(|| tokio::time::Instant::now() + PATIENCE);
            while self.0.as_mut().poll(context).is_ready() {
                if tokio::time::Instant::now() >= deadline {
                    return Poll::Ready(None);
                }
                self.0.as_mut().reset(deadline);
            }
            Poll::Pending
        })
        .await
    }
}
