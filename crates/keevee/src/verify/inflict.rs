//! How each fault begins and ends.

use std::collections::BTreeSet;
use std::slice;
use std::time::Duration;

use keevee_cluster::{Ending, until};
use keevee_shim::Fault as Bad;
use serde::Deserialize;
use serde_json::json;

use super::network::Way;
use super::nodes::{ASK_PATIENCE, Nodes, PATIENCE, STOP_PATIENCE, led_by};
use super::report::Fault;
use super::schedule::{Blow, Kind, Planned, Second, Target};
use crate::api::Api;
use crate::failure::Failure;

/// How long an fsync takes that stalls: longer than any fault holds.
const STALL: Duration = Duration::from_secs(30);
/// What is left of a disk that has little room, far less than nodes want.
const ROOM_BYTES: u64 = 1 << 20;
/// How far clocks jump: much further than nodes tolerate of each other.
const JUMP: Duration = Duration::from_secs(60);
/// How much longer a chunk takes on a slow link.
const SLOW: Duration = Duration::from_millis(40);

/// The answer to a change of members.
#[derive(Deserialize)]
struct Change {
    epoch: u64,
    moves: Vec<serde_json::Value>,
}

/// A node as another one sees it.
#[derive(Deserialize)]
struct Peer {
    id: u64,
    reachable: bool,
}

/// A fault that has begun.
struct Begun {
    fault: Fault,
    /// When it is to be undone.
    until: Duration,
    /// What had happened of its kind before.
    before: u64,
}

impl Nodes {
    /// Does it, undoes it after its time, and tells what happened. Everything is as before then, and all nodes are ready.
    pub(crate) async fn inflict(
        &mut self,
        blow: &Blow,
        now: impl Fn() -> Duration,
    ) -> Result<Vec<Fault>, Failure> {
        self.all_run()?;
        let mut begun = vec![self.begin(&blow.first, None, &now).await?];
        if let Some(Second { fault, after, is_elsewhere }) = &blow.second {
            tokio::time::sleep(*after).await;
            let first = begun[0].fault.target;
            begun.push(self.begin(fault, is_elsewhere.then_some(first), &now).await?);
            begun[0].fault.with = Some(fault.kind);
            begun[1].fault.with = Some(blow.first.kind);
        }
        begun.sort_by_key(|one| one.until);
        for one in &mut begun {
            tokio::time::sleep(one.until.saturating_sub(now())).await;
            self.undo(one).await?;
            one.fault.healed = now();
        }
        // One that waits for all nodes comes last.
        begun.sort_by_key(|one| one.fault.kind == Kind::FullDisk);
        let mut faults = Vec::new();
        for mut one in begun {
            self.settle(&mut one).await?;
            faults.push(one.fault);
        }
        self.ready().await?;
        faults.iter_mut().for_each(|fault| fault.ready = now());
        Ok(faults)
    }

    /// Has it begin; of a fault that does not last, does all of it. Not on the node that is spared.
    async fn begin(
        &mut self,
        planned: &Planned,
        spared: Option<u64>,
        now: impl Fn() -> Duration,
    ) -> Result<Begun, Failure> {
        let Planned { kind, other, holds, seed, .. } = *planned;
        let leaders = self.leaders_of_data().await;
        let others: Vec<u64> = leaders.iter().copied().filter(|leader| spared != Some(*leader)).collect();
        let mut target = self.target(planned, &others);
        if spared == Some(target) {
            target = self.after(target, 1);
        }
        let before = self.happened(kind, target)?;
        let from = now();
        let mut happened = true;
        match kind {
            Kind::Kill => self.cluster.kill(target).await?,
            Kind::KillAll => self.cluster.kill_all().await?,
            Kind::Pause => self.cluster.pause(target)?,
            Kind::Isolate | Kind::Split | Kind::OneWay | Kind::Partial | Kind::SlowLink => {
                let other = self.after(target, other);
                self.hinder(kind, target, other);
            }
            Kind::HandOver => {
                happened = self.cluster.stop_node(target, STOP_PATIENCE).await? == Ending::Graceful;
            }
            Kind::RollingRestart => happened = self.restart_all().await?,
            Kind::Members => {
                happened = self.change_members(target, "drain").await?;
                happened &= self.change_members(target, "add").await?;
            }
            Kind::Replace => happened = self.replace(target).await?,
            Kind::FlipLog => happened = self.flip_log(target, seed).await?,
            Kind::FlipData => happened = self.flip_data(target).await?,
            Kind::FlipSnapshot => happened = self.flip_snapshot(target, seed).await?,
            Kind::PowerLoss => self.disks.values().try_for_each(|disk| disk.set(Bad::DropUnsynced))?,
            Kind::FailSync => self.disks[&target].set(Bad::FailSync)?,
            Kind::StallSync => self.disks[&target].set(Bad::StallSync(STALL))?,
            Kind::LowDisk => self.disks[&target].set(Bad::LowRoom(ROOM_BYTES))?,
            Kind::FullDisk => self.disks[&target].set(Bad::Full)?,
            Kind::ClockJump => {
                let micros = JUMP.as_micros() as i64;
                let offset = if other.is_multiple_of(2) { micros } else { -micros };
                self.disks[&target].set(Bad::ClockOffset(offset))?;
            }
        }
        let is_leader = leaders.contains(&target);
        let fault = Fault { kind, target, is_leader, with: None, happened, from, healed: from, ready: from };
        Ok(Begun { fault, until: now() + holds, before })
    }

    async fn undo(&mut self, Begun { fault, before, .. }: &mut Begun) -> Result<(), Failure> {
        let Fault { kind, target, .. } = *fault;
        match kind {
            Kind::Kill => self.cluster.start_node(target)?,
            Kind::HandOver => {
                // While something else is wrong as well there may be nobody who can lead.
                fault.happened &= fault.is_leader && (fault.with.is_some() || self.all_is_led().await);
                self.cluster.start_node(target)?;
            }
            Kind::KillAll => {
                self.cluster.start()?;
            }
            Kind::Pause => self.cluster.resume(target)?,
            Kind::Isolate | Kind::Split | Kind::OneWay | Kind::Partial | Kind::SlowLink => {
                self.network.heal();
            }
            Kind::RollingRestart
            | Kind::Members
            | Kind::Replace
            | Kind::FlipLog
            | Kind::FlipData
            | Kind::FlipSnapshot => {}
            Kind::PowerLoss => return self.cut_power(fault, *before).await,
            // It is waited for until it has ended, which it may not do before another fault has.
            Kind::FailSync => return Ok(()),
            Kind::StallSync | Kind::LowDisk | Kind::FullDisk | Kind::ClockJump => {
                self.disks[&target].heal()?;
            }
        }
        if kind.is_counted() {
            fault.happened = self.happened(kind, target)? > *before;
        }
        Ok(())
    }

    /// Has a node run again that ended by itself. All faults are over.
    async fn settle(&mut self, Begun { fault, before, .. }: &mut Begun) -> Result<(), Failure> {
        match fault.kind {
            Kind::FailSync => {
                fault.happened = self.has_ended(fault.target, *before).await?;
                self.cluster.start_node(fault.target)?;
            }
            Kind::FullDisk => self.ready_or_started(fault.target).await?,
            _ => {}
        }
        Ok(())
    }

    /// The node that is so many places after this one.
    fn after(&mut self, node: u64, places: usize) -> u64 {
        let ids = self.ids();
        let place = ids.iter().position(|id| *id == node).unwrap_or_default();
        ids[(place + places) % ids.len()]
    }

    /// Who a fault is meant for.
    fn target(&mut self, planned: &Planned, leaders: &[u64]) -> u64 {
        let ids = self.ids();
        match planned.target {
            // One that holds nothing writes nothing.
            Target::Node(at) if !planned.kind.strikes_leaders() => ids[at % ids.len()],
            Target::Node(_) | Target::Leader => {
                leaders.get(planned.other % leaders.len().max(1)).copied().unwrap_or(ids[0])
            }
        }
    }

    /// How often it has happened so far, of a kind that is counted.
    fn happened(&self, kind: Kind, node: u64) -> Result<u64, Failure> {
        if !kind.is_counted() {
            return Ok(0);
        }
        if kind == Kind::PowerLoss {
            let remembered =
                self.disks.values().map(|disk| disk.injected().map(|injected| injected.remembered));
            return Ok(remembered.sum::<Result<u64, _>>()?);
        }
        if !kind.needs_shim() {
            return Ok(self.network.hindered());
        }
        let injected = self.disks[&node].injected()?;
        Ok(match kind {
            Kind::FailSync => injected.failed_syncs,
            Kind::StallSync => injected.stalled_syncs,
            Kind::LowDisk => injected.told_low,
            Kind::FullDisk => injected.refused_full,
            _ => injected.clock_reads,
        })
    }

    /// A node that can't sync must end, or it might say that it could. False if it had nothing to sync.
    async fn has_ended(&mut self, node: u64, before: u64) -> Result<bool, Failure> {
        let cluster = &mut self.cluster;
        let ended = until(PATIENCE, async || cluster.node(node).ok()?.pid().is_none().then_some(())).await;
        self.disks[&node].heal()?;
        let happened = self.happened(Kind::FailSync, node)? > before;
        if ended.is_none() && happened {
            return Err(Failure::other(format!("node {node} goes on though its disk can't sync")));
        }
        Ok(happened)
    }

    /// Most of the time all is synced, and nothing but files that RocksDB was writing is lost. It counts if there was anything that a
    /// disk had not synced at some time.
    async fn cut_power(&mut self, fault: &mut Fault, before: u64) -> Result<(), Failure> {
        self.cluster.kill_all().await?;
        fault.happened = self.happened(fault.kind, fault.target)? > before;
        for disk in self.disks.values() {
            disk.drop_unsynced()?;
            disk.heal()?;
        }
        self.cluster.start()?;
        Ok(())
    }

    /// True if every data shard is led by somebody.
    async fn all_is_led(&mut self) -> bool {
        let Some(map) = self.newest_map().await else { return false };
        let mut led = BTreeSet::new();
        for node in self.http() {
            led.extend(led_by(&node, ASK_PATIENCE).await.into_iter().flat_map(|(_, shards)| shards));
        }
        map.slots.iter().all(|run| led.contains(&run.shard.0))
    }

    /// Ends whatever is wrong, as far as that goes, for a run that was broken off while something was.
    pub(crate) async fn heal(&mut self) {
        self.network.heal();
        for disk in self.disks.values() {
            let _ = disk.heal();
        }
        for id in self.ids() {
            let _ = self.cluster.resume(id);
            let _ = self.cluster.start_node(id);
        }
        let _ = self.ready().await;
    }

    /// One after another; true if all ended by themselves.
    async fn restart_all(&mut self) -> Result<bool, Failure> {
        let mut is_graceful = true;
        for id in self.ids() {
            is_graceful &= self.cluster.stop_node(id, STOP_PATIENCE).await? == Ending::Graceful;
            self.cluster.start_node(id)?;
            self.ready().await?;
        }
        Ok(is_graceful)
    }

    fn hinder(&mut self, kind: Kind, target: u64, other: u64) {
        let ids = self.ids();
        let is_in_part = |id: u64| id == target || id == other;
        for (from, to) in ids.iter().flat_map(|from| ids.iter().map(move |to| (*from, *to))) {
            let touches = from == target || to == target;
            let way = match kind {
                _ if from == to => continue,
                Kind::Isolate if touches => Way::Closed,
                Kind::Split if is_in_part(from) != is_in_part(to) => Way::Closed,
                Kind::OneWay if from == target => Way::Closed,
                Kind::Partial if is_in_part(from) && is_in_part(to) => Way::Closed,
                Kind::SlowLink if touches => Way::Slow(SLOW),
                _ => continue,
            };
            self.network.set(from, to, way);
        }
    }

    /// True if all other nodes say that they reach it.
    async fn all_reach(&mut self, node: u64) -> bool {
        for other in self.cluster.nodes().iter().filter(|other| other.id != node) {
            let endpoint = other.endpoint();
            let api = Api { nodes: slice::from_ref(&endpoint), timeout: PATIENCE };
            let peers: Vec<Peer> = api.get("/v1/cluster/nodes").await.unwrap_or_default();
            if !peers.iter().any(|peer| peer.id == node && peer.reachable) {
                return false;
            }
        }
        true
    }

    /// Moves all replicas off a node (`drain`), or its share onto it (`add`). False if nothing moved.
    pub(super) async fn change_members(&mut self, node: u64, what: &str) -> Result<bool, Failure> {
        // Nothing moves onto a node that does not answer.
        let may_begin = async || (what != "add" || self.all_reach(node).await).then_some(());
        if until(PATIENCE, may_begin).await.is_none() {
            return Err(Failure::other(format!("node {node} is not reached by all others")));
        }
        let endpoints = self.http();
        let api = Api { nodes: &endpoints, timeout: PATIENCE };
        let path = format!("/v1/cluster/nodes/{node}/{what}");
        let change: Change = api.post(&path, &json!({}).to_string()).await?;
        let done = until(PATIENCE, async || {
            let map = self.newest_map().await?;
            let is_done = map.epoch >= change.epoch && map.shards.iter().all(|shard| shard.next.is_none());
            is_done.then_some(())
        });
        if done.await.is_none() {
            return Err(Failure::other(format!("a change of members is not done within {PATIENCE:?}")));
        }
        Ok(!change.moves.is_empty())
    }
}
