//! kill -9 of leaders under clients that speak the Redis protocol: nothing acknowledged is lost, the clients go on by
//! themselves, and `CLUSTER SLOTS` tells who leads.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use keevee_cluster::{TemporaryCluster, until};
use redis::aio::ConnectionLike;
use tokio::task::JoinSet;

use super::client::{Reply, Resp};
use super::libraries::{MOVED, configured, start_sharded};
use super::{address, connect};
use crate::PATIENCE;

const WRITERS: usize = 4;

with_both_engines! {
    cluster_clients_go_on_when_leaders_are_killed
    plain_clients_go_on_when_leaders_are_killed
}

/// Writers of keys that are each written once, and what was acknowledged.
struct Load {
    stop: Arc<AtomicBool>,
    acknowledged: Arc<AtomicUsize>,
    writers: JoinSet<Vec<String>>,
}

impl Load {
    fn start<C: ConnectionLike + Send + 'static>(connections: Vec<C>) -> Load {
        let mut load = Load { stop: Arc::default(), acknowledged: Arc::default(), writers: JoinSet::new() };
        for (writer, mut connection) in connections.into_iter().enumerate() {
            let (stop, acknowledged) = (load.stop.clone(), load.acknowledged.clone());
            load.writers.spawn(async move {
                let mut keys = Vec::new();
                for number in 0.. {
                    if stop.load(Ordering::Relaxed) {
                        break;
                    }
                    let key = format!("key-{writer}-{number}");
                    let set = redis::cmd("SET").arg(&key).arg(&key).query_async::<()>(&mut connection).await;
                    match set {
                        Ok(()) => {
                            acknowledged.fetch_add(1, Ordering::Relaxed);
                            keys.push(key);
                        }
                        // It may have happened or not: the key counts for nothing.
                        Err(_) => tokio::task::yield_now().await,
                    }
                }
                keys
            });
        }
        load
    }

    async fn acknowledges(&self, more: usize) {
        let goal = self.acknowledged.load(Ordering::Relaxed) + more;
        let reached = async || (self.acknowledged.load(Ordering::Relaxed) >= goal).then_some(());
        assert!(until(PATIENCE, reached).await.is_some(), "no {more} writes within {PATIENCE:?}");
    }

    async fn stop(self) -> Vec<String> {
        self.stop.store(true, Ordering::Relaxed);
        self.writers.join_all().await.into_iter().flatten().collect()
    }
}

async fn cluster_clients_go_on_when_leaders_are_killed(engine: &str) {
    let mut cluster = start_sharded(engine).await;
    configured(&mut cluster, MOVED).await;
    let urls: Vec<String> = (1..=3).map(|id| format!("redis://{}", address(&mut cluster, id))).collect();
    let client = redis::cluster::ClusterClient::new(urls).expect("a client");
    let connection = client.get_async_connection().await.expect("a connection");
    let load = Load::start(vec![connection; WRITERS]);
    load.acknowledges(100).await;
    for node in 1..=3 {
        cluster.kill(node).await.expect("killed");
        load.acknowledges(100).await;
        slots_are_true(&mut cluster, Some(node)).await;
        cluster.start_node(node).expect("started");
        cluster.wait_ready(PATIENCE).await.expect("ready");
    }
    load.acknowledges(100).await;
    slots_are_true(&mut cluster, None).await;
    let keys = load.stop().await;
    all_there(&mut cluster, &keys).await;
}

async fn plain_clients_go_on_when_leaders_are_killed(engine: &str) {
    let mut cluster = start_sharded(engine).await;
    let (node, other) = (1, [2, 3]);
    let client = redis::Client::open(format!("redis://{}", address(&mut cluster, node))).expect("a client");
    let connection = redis::aio::ConnectionManager::new(client).await.expect("a connection");
    let load = Load::start(vec![connection; WRITERS]);
    load.acknowledges(100).await;
    // Its node forwards to whoever leads next.
    for other in other {
        cluster.kill(other).await.expect("killed");
        load.acknowledges(100).await;
        cluster.start_node(other).expect("started");
        cluster.wait_ready(PATIENCE).await.expect("ready");
    }
    // Its node comes back, and so does the client.
    cluster.kill(node).await.expect("killed");
    cluster.start_node(node).expect("started");
    cluster.wait_ready(PATIENCE).await.expect("ready");
    load.acknowledges(100).await;
    let keys = load.stop().await;
    all_there(&mut cluster, &keys).await;
}

async fn all_there(cluster: &mut TemporaryCluster, keys: &[String]) {
    assert!(keys.len() >= 400, "{} keys", keys.len());
    let endpoints = cluster.endpoints();
    crate::load::all_there(&crate::client(endpoints), keys, keevee_client::Consistency::Linearizable).await;
}

/// Waits until what every node tells of the slots is so: who is named takes a write.
async fn slots_are_true(cluster: &mut TemporaryCluster, dead: Option<u64>) {
    let alive: Vec<u64> = (1..=3).filter(|id| Some(*id) != dead).collect();
    for id in alive {
        let told = async || {
            let mut resp = connect(cluster, id).await;
            let lines = slots(&mut resp).await;
            let covered: usize = lines.iter().map(|(first, last, _)| last - first + 1).sum();
            assert_eq!(covered, 16_384, "every slot is told of once");
            for number in 0..30 {
                let key = format!("probe-{number}");
                let slot: usize =
                    resp.ask(&["CLUSTER", "KEYSLOT", &key]).await.number().parse().expect("a slot");
                let (.., leader) = lines.iter().find(|(first, last, _)| (first..=last).contains(&&slot))?;
                let mut there = Resp::try_connect(leader).await?;
                if there.ask(&["SET", &key, "1"]).await != Reply::ok() {
                    return None;
                }
            }
            let named: BTreeSet<_> = lines.into_iter().map(|(.., leader)| leader).collect();
            Some(named)
        };
        let named = until(PATIENCE, told).await.expect("the slots are led by whom the node names");
        if let Some(dead) = dead {
            assert!(!named.contains(&address(cluster, dead)), "{named:?}");
        }
    }
}

/// `CLUSTER SLOTS`: the first and the last slot of each line, and where its leader is.
async fn slots(resp: &mut Resp) -> Vec<(usize, usize, String)> {
    let Reply::Array(lines) = resp.ask(&["CLUSTER", "SLOTS"]).await else { panic!("no slots") };
    let line = |line: Reply| {
        let Reply::Array(line) = line else { panic!("{line:?}") };
        let [Reply::Integer(first), Reply::Integer(last), Reply::Array(leader), ..] = &line[..] else {
            panic!("{line:?}")
        };
        (*first as usize, *last as usize, format!("{}:{}", leader[0].text(), leader[1].number()))
    };
    lines.into_iter().map(line).collect()
}
