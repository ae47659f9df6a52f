//! What must hold in the end: every key's history is linearizable, with a last read of each key in it, so that what was
//! acknowledged is there and what was refused is not; and the replicas of a shard have the same chain hash, and hold the same.

use std::collections::BTreeMap;
use std::time::Instant;

use keevee_client::{Client, Consistency, Options};
use keevee_cluster::until;
use keevee_verify::checker::{Operation, check};
use tokio::task::JoinSet;

use super::history::{Input, Key, Output, Register};
use super::nodes::{Nodes, PATIENCE, ReplicaStatus};
use crate::failure::Failure;

/// Steps of the model that one key may take the checker.
const STEPS_MAX: u64 = 20_000_000;
/// Keys that are looked up at a time.
const LOOKUPS_MAX: usize = 64;

/// What was checked.
#[derive(Debug, Default)]
pub(crate) struct Verdict {
    pub(crate) keys: usize,
    pub(crate) operations: usize,
    pub(crate) acknowledged_writes: usize,
    pub(crate) unknown_writes: usize,
    /// Shards whose replicas were compared, and replicas.
    pub(crate) shards: usize,
    pub(crate) replicas: usize,
    /// What does not hold, for people.
    pub(crate) violations: Vec<String>,
}

/// Looks at everything. The load has ended, and the nodes are healed.
pub(crate) async fn judge(nodes: &mut Nodes, mut keys: Vec<Key>, now: impl Fn() -> u64) -> Verdict {
    let mut verdict = Verdict { keys: keys.len(), ..Verdict::default() };
    if let Err(failure) = look_up(nodes, &mut keys, now).await {
        verdict.violations.push(format!("not every key can be looked up: {failure}"));
    }
    compare_replicas(nodes, &mut verdict).await;
    let is_write = |operation: &&Operation<Input, Output>| operation.input != Input::Get;
    for key in keys {
        verdict.operations += key.operations.len();
        let writes = || key.operations.iter().filter(is_write);
        verdict.acknowledged_writes += writes().filter(|write| write.returned.is_some()).count();
        verdict.unknown_writes += writes().filter(|write| write.returned.is_none()).count();
        if let Err(violation) = check(&Register, &key.operations, STEPS_MAX) {
            let blocked = violation.obstacle().blocked.iter().map(|index| &key.operations[*index]);
            let blocked = blocked.map(|operation| format!("{operation:?}")).collect::<Vec<_>>().join(", ");
            verdict.violations.push(format!("key {}: {violation}: {blocked}", key.name));
        }
    }
    verdict
}

/// Reads every key once more, and adds that to its history.
async fn look_up(nodes: &Nodes, keys: &mut [Key], now: impl Fn() -> u64) -> Result<(), Failure> {
    let options = Options { timeout: PATIENCE, ..Options::default() };
    let client = Client::new(nodes.http(), options)?;
    let start = Instant::now();
    for some in keys.chunks_mut(LOOKUPS_MAX) {
        let mut reads = JoinSet::new();
        for (place, key) in some.iter().enumerate() {
            let (client, name, called) = (client.clone(), key.name.clone(), now());
            reads.spawn(async move {
                (place, called, client.get(name.as_bytes(), Consistency::Linearizable).await)
            });
        }
        while let Some(read) = reads.join_next().await {
            let (place, called, value) = read.map_err(Failure::other)?;
            let text = value?.map(|value| String::from_utf8_lossy(&value.bytes).parse().unwrap_or(u64::MAX));
            let output = Some(Output::Value(text));
            some[place].operations.push(Operation {
                input: Input::Get,
                output,
                called,
                returned: Some(now()),
            });
        }
        if start.elapsed() > 10 * PATIENCE {
            return Err(Failure::other("looking up the keys takes too long"));
        }
    }
    Ok(())
}

/// Waits until all replicas of each shard have applied the same, and compares their chain hashes.
async fn compare_replicas(nodes: &mut Nodes, verdict: &mut Verdict) {
    let ids = nodes.ids();
    let mut seen = BTreeMap::new();
    let settled = until(PATIENCE, async || {
        seen.clear();
        // Who has just been told of a change knows more of it than others.
        let map = nodes.newest_map().await?;
        for id in &ids {
            for replica in nodes.replicas(*id).await? {
                seen.entry(replica.shard).or_insert_with(Vec::new).push(replica);
            }
        }
        let is_settled = |replicas: &Vec<ReplicaStatus>| {
            replicas.iter().all(|one| one.applied == replicas[0].applied && one.applied == one.last)
        };
        let all_there = map.shards.iter().all(|shard| {
            shard.next.is_none() && seen.get(&shard.id.0).map_or(0, Vec::len) == shard.members.len()
        });
        (all_there && seen.values().all(is_settled)).then_some(())
    });
    if settled.await.is_none() {
        verdict
            .violations
            .push(format!("the replicas have not applied the same within {PATIENCE:?}: {seen:?}"));
        return;
    }
    for (shard, replicas) in &seen {
        verdict.shards += 1;
        verdict.replicas += replicas.len();
        if replicas.iter().any(|replica| replica.chain != replicas[0].chain) {
            verdict.violations.push(format!("the replicas of shard {shard} differ: {replicas:?}"));
        }
    }
    let members = seen.iter().map(|(shard, replicas)| (*shard, replicas.len())).collect();
    if !nodes.all_agree(&members).await {
        let mut said = Vec::new();
        for id in ids {
            said.push(format!("node {id}: {:?}", nodes.replicas(id).await));
        }
        let said = said.join("; ");
        verdict.violations.push(format!("replicas do not hold the same, or do not say so: {said}"));
    }
}
