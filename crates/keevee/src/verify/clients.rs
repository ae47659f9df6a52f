//! The load: clients of all three protocols, each with one operation under way, at a bounded rate together.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use keevee_client::{Client, Endpoint, EndpointError, Options};
use rand::SeedableRng;
use rand::rngs::StdRng;
use tokio::task::JoinSet;
use tokio::time::{sleep, sleep_until, timeout};

use super::callers::{Caller, Plain};
use super::history::{Answer, History};
use super::timeline::at;

/// How long a client waits for an answer.
const PATIENCE: Duration = Duration::from_secs(3);
/// Before it goes on after a failure.
const PAUSE: Duration = Duration::from_millis(20);

/// What the clients share.
pub(crate) struct Shared {
    pub(crate) history: History,
    /// Times of the history count from here.
    pub(crate) origin: Instant,
    /// Operations that were done, by HTTP, RESP and gRPC; that were refused, and of which nobody knows.
    pub(crate) done: [AtomicU64; 3],
    pub(crate) refused: AtomicU64,
    pub(crate) unknown: AtomicU64,
    /// By second, how many microseconds answers took of clients that ask the leaders.
    pub(crate) by_leaders: Mutex<Vec<Vec<u32>>>,
    stop: AtomicBool,
}

/// Clients that run until they are stopped.
pub(crate) struct Clients {
    pub(crate) shared: Arc<Shared>,
    tasks: JoinSet<()>,
}

/// How many clients, and how fast they are.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pace {
    pub(crate) clients: usize,
    /// Operations per second, all clients together.
    pub(crate) rate: u32,
}

impl Clients {
    /// Clients of the nodes at these addresses.
    pub(crate) fn start(
        http: &[Endpoint],
        resp: &[Endpoint],
        pace: Pace,
        history: History,
        seed: u64,
    ) -> Result<Clients, EndpointError> {
        let shared = Arc::new(Shared {
            history,
            origin: Instant::now(),
            done: [const { AtomicU64::new(0) }; 3],
            refused: AtomicU64::new(0),
            unknown: AtomicU64::new(0),
            by_leaders: Mutex::default(),
            stop: AtomicBool::new(false),
        });
        let options = Options { timeout: PATIENCE, attempt_timeout: PATIENCE / 3, ..Options::default() };
        let routing = Client::new(http.to_vec(), options)?;
        let interval = Duration::from_secs(1) * pace.clients as u32 / pace.rate.max(1);
        let mut tasks = JoinSet::new();
        for number in 0..pace.clients {
            let caller = match number % 3 {
                0 => Caller::Http(Plain::new(http.to_vec(), number / 3)),
                1 => Caller::Resp(Plain::new(resp.to_vec(), number / 3)),
                _ => Caller::Grpc(routing.clone()),
            };
            let random = StdRng::seed_from_u64(seed.wrapping_add(number as u64));
            tasks.spawn(run(caller, shared.clone(), random, interval));
        }
        Ok(Clients { shared, tasks })
    }

    /// Ends them, once what is under way has its answer.
    pub(crate) async fn stop(mut self) -> Shared {
        self.shared.stop.store(true, Ordering::Relaxed);
        while let Some(ended) = self.tasks.join_next().await {
            // One that panicked is a fault of this program.
            ended.expect("a client runs to its end");
        }
        let Ok(shared) = Arc::try_unwrap(self.shared) else { unreachable!("all clients have ended") };
        shared
    }
}

async fn run(mut caller: Caller, shared: Arc<Shared>, mut random: StdRng, interval: Duration) {
    let mut due = tokio::time::Instant::now();
    while !shared.stop.load(Ordering::Relaxed) {
        sleep_until(due).await;
        // What was missed while nothing was answered is not made up for.
        due = (due + interval).max(tokio::time::Instant::now());
        let begun = shared.history.begin(&mut random);
        let called = shared.origin.elapsed();
        let answered = timeout(PATIENCE, caller.call(&begun.key, begun.input)).await;
        let returned = shared.origin.elapsed();
        let answer = answered.unwrap_or_else(|_| {
            caller.give_up();
            Answer::Unknown
        });
        if let (Caller::Grpc(_), Answer::Done(_)) = (&caller, answer) {
            let mut by_leaders = shared.by_leaders.lock().unwrap_or_else(PoisonError::into_inner);
            at(&mut by_leaders, returned.as_secs()).push((returned - called).as_micros() as u32);
        }
        shared.history.end(&begun, called.as_micros() as u64, returned.as_micros() as u64, answer);
        let counter = match answer {
            Answer::Done(_) => &shared.done[caller.protocol()],
            Answer::Refused => &shared.refused,
            Answer::Unknown => &shared.unknown,
        };
        counter.fetch_add(1, Ordering::Relaxed);
        if !matches!(answer, Answer::Done(_)) {
            sleep(PAUSE).await;
        }
    }
}
