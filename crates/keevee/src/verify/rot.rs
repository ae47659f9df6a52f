//! Bits that flip on one node's disk: in its log, so that it may not vote any more, and in its applied state, which it must
//! find, give up and have from the others, also where they flip in what those have sent.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::slice;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use keevee_client::Connection;
use keevee_cluster::until;
use keevee_shim::Fault as Bad;
use serde_json::Value;

use super::nodes::{Nodes, PATIENCE, ReplicaStatus};
use crate::api::Api;
use crate::failure::Failure;

/// How long a scrub may take to find what is wrong before another one is asked for.
const SCRUB_PATIENCE: Duration = Duration::from_secs(5);
/// The same where all states are read, one after the other: another one before their end would begin anew.
const COMPARE_PATIENCE: Duration = Duration::from_secs(60);
/// How the file ends to which a node writes a data shard's state that it has from the others, by shard; of others there is no fault.
const FETCHED: [&str; 9] = [
    "/1/1.sst", "/2/1.sst", "/3/1.sst", "/4/1.sst", "/5/1.sst", "/6/1.sst", "/7/1.sst", "/8/1.sst",
    "/9/1.sst",
];
/// What a node's log has if it did not take in what others had sent…
const REFUSED: &str = "no snapshot can be taken in";
/// …and if it found its state to be damaged.
const GIVEN_UP: &str = "the state of all shards is given up";

impl Nodes {
    /// A node reads its log at a start with one bit wrong. It must end, or it would vote without what it has promised. The others
    /// do without it; once it reads its log as it was, it holds nothing any more, and gets its share as any newcomer. False if
    /// nothing was read or nothing moved.
    pub(super) async fn flip_log(&mut self, node: u64, seed: u64) -> Result<bool, Failure> {
        self.cluster.kill(node).await?;
        let before = self.disks[&node].injected()?.flipped_read;
        self.disks[&node].set(Bad::FlipRead { ending: ".segment", seed })?;
        self.cluster.start_node(node)?;
        let cluster = &mut self.cluster;
        let ended = until(PATIENCE, async || cluster.node(node).ok()?.exit_status()).await;
        let flipped = self.disks[&node].injected()?.flipped_read > before;
        self.disks[&node].heal()?;
        match ended {
            None if flipped => {
                return Err(Failure::other(format!("node {node} goes on though its log is damaged")));
            }
            None => return Ok(false),
            // By a signal, or as one that is asked to end: it did not see what is wrong.
            Some(status) if status.code() != Some(1) => {
                return Err(Failure::other(format!("node {node} has a damaged log and ends with {status}")));
            }
            Some(_) => {}
        }
        let moved = self.change_members(node, "drain").await?;
        self.cluster.start_node(node)?;
        if until(PATIENCE, async || self.holds_nothing(node).await.then_some(())).await.is_none() {
            return Err(Failure::other(format!("node {node} does not hear that it holds nothing any more")));
        }
        self.ready().await?;
        Ok(self.change_members(node, "add").await? && moved)
    }

    /// While a node is down a bit flips in every file of its applied state. It must find that, though nobody may read those keys for
    /// long, and have the state from the others. False if there was no file.
    pub(super) async fn flip_data(&mut self, node: u64) -> Result<bool, Failure> {
        let has_files = self.flip_and_start(node).await?;
        if has_files && !self.scrub_until(SCRUB_PATIENCE, async |nodes| nodes.has_rebuilt(node).await).await {
            return Err(Failure::other(format!("node {node} does not find that its state is damaged")));
        }
        Ok(has_files)
    }

    /// The same, and a bit flips as well in the state of a data shard that the node has from the others then, when that is written. In
    /// the end its state must be as theirs. False if there was no file, or the node found nothing: the bit may lie where nobody looks.
    pub(super) async fn flip_snapshot(&mut self, node: u64, seed: u64) -> Result<bool, Failure> {
        let held: Vec<u32> =
            self.replicas(node).await.unwrap_or_default().into_iter().map(|one| one.shard).collect();
        let Some(ending) = (1..).zip(FETCHED).find_map(|(shard, end)| held.contains(&shard).then_some(end))
        else {
            return Ok(false);
        };
        let before = self.disks[&node].injected()?.flipped_written;
        let (refused, given_up) = (self.logged(node, REFUSED)?, self.logged(node, GIVEN_UP)?);
        self.disks[&node].set(Bad::FlipWritten { ending, seed })?;
        let has_files = self.flip_and_start(node).await?;
        if has_files {
            let is_flipped = async |nodes: &mut Nodes| {
                nodes.disks[&node].injected().is_ok_and(|injected| injected.flipped_written > before)
            };
            if !self.scrub_until(SCRUB_PATIENCE, is_flipped).await {
                return Err(Failure::other(format!("node {node} does not write what others have sent")));
            }
            let since = unix_ms();
            // Which of two is damaged they can't tell, but with the damage in one alone they differ.
            let agrees = async |nodes: &mut Nodes| nodes.agrees_since(node, since, |_| 2).await;
            if !self.scrub_until(COMPARE_PATIENCE, agrees).await {
                return Err(Failure::other(format!("node {node} goes on with a state that is damaged")));
            }
        }
        self.disks[&node].heal()?;
        // Once for what it had before.
        let is_found = self.logged(node, REFUSED)? > refused || self.logged(node, GIVEN_UP)? > given_up + 1;
        Ok(has_files && is_found)
    }

    /// How often a node's log says so.
    fn logged(&mut self, node: u64, what: &str) -> Result<usize, Failure> {
        let log = fs::read(self.cluster.node(node)?.log())?;
        Ok(String::from_utf8_lossy(&log).matches(what).count())
    }

    /// Ends a node, flips a bit in each file of its applied state, and starts it again. False if there is none.
    async fn flip_and_start(&mut self, node: u64) -> Result<bool, Failure> {
        self.cluster.kill(node).await?;
        let flipped = flip_sorted_files(&self.cluster.node(node)?.data().join("data"))?;
        self.cluster.start_node(node)?;
        Ok(flipped > 0)
    }

    /// Has all replicas compare their states, again and again: a node may be starting, or others may lead by now. False if it comes
    /// to nothing.
    async fn scrub_until(
        &mut self,
        patience: Duration,
        mut is_done: impl AsyncFnMut(&mut Nodes) -> bool,
    ) -> bool {
        let start = Instant::now();
        while start.elapsed() < 2 * PATIENCE {
            for node in self.http() {
                // Of the shards that it leads.
                let api = Api { nodes: slice::from_ref(&node), timeout: SCRUB_PATIENCE };
                let _ = api.post::<Value>("/v1/cluster/scrub", "").await;
            }
            let done = until(patience, async || is_done(self).await.then_some(())).await;
            if done.is_some() {
                return true;
            }
        }
        false
    }

    /// Has all replicas compare their states once more. True if all of each shard, of which there are so many, hold the same.
    pub(super) async fn all_agree(&mut self, replicas: &BTreeMap<u32, usize>) -> bool {
        let since = unix_ms();
        self.scrub_until(COMPARE_PATIENCE, async |nodes| {
            for id in nodes.ids() {
                if !nodes.agrees_since(id, since, |shard| replicas[&shard]).await {
                    return false;
                }
            }
            true
        })
        .await
    }

    /// True if what it holds of each shard is what so many replicas hold, itself among them, as compared since then.
    async fn agrees_since(&mut self, node: u64, unix_ms: u64, count: impl Fn(u32) -> usize) -> bool {
        let agrees = |replica: &ReplicaStatus| {
            let scrub = replica.scrub.as_ref().filter(|scrub| scrub.ended_unix_ms > unix_ms);
            scrub.is_some_and(|scrub| scrub.agree.len() >= count(replica.shard) && scrub.differ.is_empty())
        };
        self.replicas(node).await.is_some_and(|replicas| replicas.iter().all(agrees))
    }

    async fn holds_nothing(&mut self, node: u64) -> bool {
        self.replicas(node).await.is_some_and(|replicas| replicas.is_empty())
    }

    /// True if it has had the state of a shard from the others since its start.
    async fn has_rebuilt(&mut self, node: u64) -> bool {
        let Ok(node) = self.cluster.node(node) else { return false };
        let Ok(mut connection) = Connection::open(&node.endpoint(), SCRUB_PATIENCE).await else {
            return false;
        };
        let Ok((_, metrics)) = connection.ask("/metrics").await else { return false };
        let metrics = String::from_utf8_lossy(&metrics);
        let counts = metrics.lines().filter(|line| line.starts_with("keevee_replicas_rebuilt_total{"));
        counts.filter_map(|line| line.rsplit(' ').next()).any(|count| count != "0")
    }
}

fn unix_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis() as u64
}

/// Flips a bit in each sorted file of a folder; how many there are.
fn flip_sorted_files(folder: &Path) -> io::Result<usize> {
    let mut flipped = 0;
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.extension().is_none_or(|extension| extension != "sst") {
            continue;
        }
        let file = fs::File::options().read(true).write(true).open(&path)?;
        // The records lie in the first part, what RocksDB knows about them behind.
        let (place, mut byte) = (file.metadata()?.len() / 3, [0]);
        file.read_exact_at(&mut byte, place)?;
        file.write_all_at(&[byte[0] ^ 1], place)?;
        flipped += 1;
    }
    Ok(flipped)
}
