//! Writers that go on whatever happens, and remember what was acknowledged.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use keevee_client::{Client, Consistency, Endpoint, Options, Write};
use keevee_cluster::until;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::{PATIENCE, client_within};

/// How long a write may take.
const CALL_TIMEOUT: Duration = Duration::from_secs(5);

/// A load of writes, each to a key of its own.
pub(crate) struct Load {
    stop: Arc<AtomicBool>,
    acknowledged: Arc<AtomicU64>,
    failed: Arc<AtomicU64>,
    writers: JoinSet<Vec<String>>,
}

impl Load {
    /// Through the nodes, each writer through another one as long as that answers.
    pub(crate) fn start(endpoints: &[Endpoint], writers: usize) -> Load {
        Load::of((0..writers).map(|writer| {
            let mut endpoints = endpoints.to_vec();
            let first = writer % endpoints.len();
            endpoints.rotate_left(first);
            client_within(endpoints, CALL_TIMEOUT)
        }))
    }

    /// By one client that goes to the leaders by itself.
    pub(crate) fn start_routing(endpoints: &[Endpoint], writers: usize) -> Load {
        let options = Options { timeout: CALL_TIMEOUT, ..Options::default() };
        let client = Client::new(endpoints.to_vec(), options).expect("a client");
        Load::of(std::iter::repeat_n(client, writers))
    }

    fn of(clients: impl Iterator<Item = Client>) -> Load {
        let (stop, acknowledged, failed) = (Arc::default(), Arc::default(), Arc::default());
        let mut load = Load { stop, acknowledged, failed, writers: JoinSet::new() };
        for (writer, client) in clients.enumerate() {
            let (stop, acknowledged) = (load.stop.clone(), load.acknowledged.clone());
            load.writers.spawn(write(client, writer, stop, acknowledged, load.failed.clone()));
        }
        load
    }

    /// Waits for so many more acknowledged writes: returns how long that took.
    pub(crate) async fn acknowledges(&self, more: u64) -> Duration {
        let start = Instant::now();
        let goal = self.acknowledged.load(Ordering::Relaxed) + more;
        let reached =
            until(PATIENCE, async || (self.acknowledged.load(Ordering::Relaxed) >= goal).then_some(()));
        assert!(reached.await.is_some(), "no {more} writes within {PATIENCE:?}");
        start.elapsed()
    }

    /// Ends the load: returns the keys whose write was acknowledged; each holds its own name.
    pub(crate) async fn stop(self) -> Vec<String> {
        self.stop_and_count().await.0
    }

    /// As [`Load::stop`], and how many writes failed, all their retries included.
    pub(crate) async fn stop_and_count(mut self) -> (Vec<String>, u64) {
        self.stop.store(true, Ordering::Relaxed);
        let mut keys = Vec::new();
        while let Some(written) = self.writers.join_next().await {
            keys.extend(written.expect("a writer"));
        }
        assert!(!keys.is_empty());
        (keys, self.failed.load(Ordering::Relaxed))
    }
}

async fn write(
    client: Client,
    writer: usize,
    stop: Arc<AtomicBool>,
    acknowledged: Arc<AtomicU64>,
    failed: Arc<AtomicU64>,
) -> Vec<String> {
    let mut keys = Vec::new();
    for number in 0.. {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let key = format!("load-{writer}-{number}");
        let call = client.put(key.as_bytes(), key.clone(), Write::default());
        // Far more than its deadline, for a machine that is busy.
        let answer = timeout(4 * CALL_TIMEOUT, call).await.expect("no call outlives its deadline");
        // What failed is allowed to be there or not; the next key is tried.
        if answer.is_ok() {
            acknowledged.fetch_add(1, Ordering::Relaxed);
            keys.push(key);
        } else {
            failed.fetch_add(1, Ordering::Relaxed);
        }
    }
    keys
}

/// Fails if one of the keys is not there.
pub(crate) async fn all_there(client: &Client, keys: &[String], consistency: Consistency) {
    for key in keys {
        let value = client.get(key.as_bytes(), consistency).await.expect("a read");
        let value = value.map(|value| value.bytes);
        assert_eq!(value.as_deref(), Some(key.as_bytes()), "the acknowledged {key} is lost");
    }
}
