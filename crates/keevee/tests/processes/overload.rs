//! Far more requests than a cluster can serve for a while, from clients that try again: when it can again, it does.
//!
//! Clients that give up and try again keep a store busy with work for nobody, if it takes first what came first: it may stay so
//! for good, long after what began it is over (Bronson et al., *Metastable Failures in Distributed Systems*, HotOS 2021). What
//! is late is dropped unserved, so it does not. Every request increments a counter: what was done for nobody can be counted.

use std::fs;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use keevee_client::{Client, Consistency, Endpoint, Write};
use keevee_cluster::{TemporaryCluster, until};
use tokio::task::JoinHandle;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout};

use crate::{PATIENCE, client, client_within, start};

with_both_engines! {
    goodput_returns_when_an_overload_ends
}

/// Requests that are due each second, whatever becomes of those before.
const RATE: u64 = 1_000;
/// How long one attempt waits, and how many attempts a request has.
const ATTEMPT: Duration = Duration::from_millis(500);
const ATTEMPTS: usize = 4;
/// How long a throttled node stands still before it runs for a moment.
const STILL: Duration = Duration::from_millis(400);
/// How long that goes on.
const THROTTLED: Duration = Duration::from_secs(10);
/// When goodput must be back.
const BACK: Duration = Duration::from_secs(10);
const WINDOW: Duration = Duration::from_secs(1);
/// What the queues of a node may have in memory, at most.
const MEMORY_MAX_KIB: u64 = 256 << 10;
/// How many counters there are.
const KEYS: u64 = 1_000;

#[derive(Default)]
struct Counts {
    attempts: AtomicU64,
    served: AtomicU64,
    /// Requests that are not answered and not given up yet.
    under_way: AtomicU64,
}

/// Requests at a fixed rate, each tried again at once until it is answered or its attempts are used up.
struct Storm {
    stop: Arc<AtomicBool>,
    counts: Arc<Counts>,
    task: JoinHandle<()>,
}

impl Storm {
    fn start(endpoints: Vec<Endpoint>) -> Storm {
        let (stop, counts) = (Arc::<AtomicBool>::default(), Arc::<Counts>::default());
        let client = client_within(endpoints, ATTEMPT);
        let (stopped, counted) = (Arc::clone(&stop), Arc::clone(&counts));
        let task = tokio::spawn(async move {
            let mut due = interval(Duration::from_millis(10));
            due.set_missed_tick_behavior(MissedTickBehavior::Burst);
            let mut number = 0;
            while !stopped.load(Ordering::Relaxed) {
                due.tick().await;
                for _ in 0..RATE / 100 {
                    number += 1;
                    counted.under_way.fetch_add(1, Ordering::Relaxed);
                    tokio::spawn(ask(client.clone(), number, Arc::clone(&counted)));
                }
            }
        });
        Storm { stop, counts, task }
    }

    /// True if nearly all that is due within a second is served.
    async fn keeps_up(&self) -> bool {
        let goal = self.served() + RATE * 9 / 10;
        until(WINDOW, async || (self.served() >= goal).then_some(())).await.is_some()
    }

    fn served(&self) -> u64 {
        self.counts.served.load(Ordering::Relaxed)
    }

    /// How many attempts there were, and how many of them were answered.
    async fn end(self) -> (u64, u64) {
        self.stop.store(true, Ordering::Relaxed);
        self.task.await.expect("it ends");
        let Counts { attempts, served, under_way } = &*self.counts;
        let all_ended = until(PATIENCE, async || (under_way.load(Ordering::Relaxed) == 0).then_some(()));
        assert!(all_ended.await.is_some(), "each request is answered or given up");
        (attempts.load(Ordering::Relaxed), served.load(Ordering::Relaxed))
    }
}

async fn ask(client: Client, number: u64, counts: Arc<Counts>) {
    for _ in 0..ATTEMPTS {
        counts.attempts.fetch_add(1, Ordering::Relaxed);
        let key = key(number % KEYS);
        let call = client.increment(key.as_bytes(), 1, Write::default());
        if let Ok(Ok(_)) = timeout(ATTEMPT, call).await {
            counts.served.fetch_add(1, Ordering::Relaxed);
            break;
        }
    }
    counts.under_way.fetch_sub(1, Ordering::Relaxed);
}

fn key(number: u64) -> String {
    format!("key-{number}")
}

/// How many attempts the nodes have carried out, whoever waited for them.
async fn carried_out(client: &Client) -> u64 {
    let mut sum = 0;
    for number in 0..KEYS {
        let counter = client.get(key(number).as_bytes(), Consistency::Linearizable).await.expect("a read");
        let counter = counter.map(|counter| String::from_utf8_lossy(&counter.bytes).into_owned());
        sum += counter.map_or(0, |counter| counter.parse::<u64>().expect("a counter"));
    }
    sum
}

/// All nodes get a small part of the time, and stand still for less than elections need to begin.
async fn throttle(cluster: &mut TemporaryCluster) -> u64 {
    let until = Instant::now() + THROTTLED;
    let ids: Vec<u64> = cluster.nodes().iter().map(|node| node.id).collect();
    let pids: Vec<String> =
        cluster.nodes().iter_mut().map(|node| node.pid().expect("it runs").to_string()).collect();
    ids.iter().for_each(|id| cluster.pause(*id).expect("paused"));
    let mut memory = 0;
    while Instant::now() < until {
        memory = memory.max(resident_kib(cluster));
        sleep(STILL).await;
        run_for_a_moment(&pids);
    }
    ids.iter().for_each(|id| cluster.resume(*id).expect("awake"));
    memory
}

/// By one shell, which starts before they run: they would run for as long as others take to start.
fn run_for_a_moment(pids: &[String]) {
    let script = "kill -s CONT \"$@\" && sleep 0.001; kill -s STOP \"$@\"";
    let status = Command::new("sh").args(["-c", script, "sh"]).args(pids).status().expect("there is a shell");
    assert!(status.success(), "{status}");
}

/// The resident memory of the node that has most.
fn resident_kib(cluster: &mut TemporaryCluster) -> u64 {
    let of = |pid: u32| {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let line = status.lines().find(|line| line.starts_with("VmRSS:"))?;
        line.split_whitespace().nth(1)?.parse().ok()
    };
    cluster.nodes().iter_mut().filter_map(|node| of(node.pid()?)).max().unwrap_or(0)
}

async fn goodput_returns_when_an_overload_ends(engine: &str) {
    let mut cluster = start(3, engine).await;
    let storm = Storm::start(cluster.endpoints());
    let keeps_up = async || storm.keeps_up().await.then_some(());
    assert!(
        until(PATIENCE, keeps_up).await.is_some(),
        "{RATE} requests a second are too many for this machine"
    );
    let before = storm.served();
    let mut memory = throttle(&mut cluster).await;
    let served = storm.served() - before;
    let start = Instant::now();
    // What waited arrives now.
    let back = until(BACK, async || {
        let keeps_up = storm.keeps_up().await;
        memory = memory.max(resident_kib(&mut cluster));
        keeps_up.then_some(())
    });
    let is_back = back.await.is_some();
    println!("throttled: {served} requests served; back after {:?}, {memory} KiB", start.elapsed());
    assert!(served < RATE * THROTTLED.as_secs() / 10, "{served} were served: no overload");
    assert!(is_back, "goodput does not come back to 90% of {RATE}/s within {BACK:?}");
    assert!(memory < MEMORY_MAX_KIB, "a node has {memory} KiB in memory");
    let (attempts, answered) = storm.end().await;
    let in_vain = carried_out(&client(cluster.endpoints())).await - answered;
    let given_up = attempts - answered;
    println!("of {given_up} attempts that were given up {in_vain} were carried out all the same");
    assert!(in_vain < given_up / 4, "{in_vain} of {given_up} attempts were carried out for nobody");
}
