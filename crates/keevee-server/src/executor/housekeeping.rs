//! What need not be done at every step: late requests, flushed marks, gauges, room on the disk, scrubs, snapshots, and
//! leaderships that go to other nodes. It leaves out how often (the executor's loop).

use std::collections::BTreeSet;
use std::time::Duration;

use keevee_core::ids::{NodeId, ShardId};
use keevee_core::shard_map::ShardInfo;
use keevee_replica::{Content, Difference, Now, Role, ShardStatus as ReplicaStatus};

use super::{Executor, FatalError, Hosted};
use crate::metrics::ShardMetrics;
use crate::scrub::Scrubbed;

/// How long nobody asks anything of a shard before it is quiesced.
const IDLE: Duration = Duration::from_secs(1);
/// How often it is told that a replica has no state yet.
const REBUILDING_TOLD: Duration = Duration::from_secs(30);
/// Who is further behind, in entries, is not made a leader.
const LAG_MAX: u64 = 64;

impl Executor {
    /// Once a second all of it (`is_whole`), and a part of it more often.
    pub(super) fn keep_house(
        &mut self,
        is_whole: bool,
        touched: &mut BTreeSet<ShardId>,
    ) -> Result<(), FatalError> {
        let wall = self.now();
        let now = wall.monotonic;
        for (id, replica) in &mut self.parked {
            replica.expire(now);
            touched.insert(*id);
        }
        for (id, Hosted { replica, metrics, .. }) in &mut self.shards {
            if replica.is_quiesced() && !is_whole {
                continue;
            }
            let failed = |failure| FatalError::Replica { shard: *id, failure };
            if self.is_clock_off && is_whole {
                replica.mind_clock(wall, true);
            }
            replica.look_after_expiries(wall).map_err(|error| failed(error.into()))?;
            replica.expire(now);
            if is_whole {
                replica.note_flushed(now).map_err(failed)?;
            }
            // Whoever is away must hear of the leader when it is back.
            if replica.others().all(|node| self.neighbours.is_alive(node)) {
                replica.quiesce_if_idle(now, IDLE);
            }
            if let Some(why) = replica.take_snapshot_failure() {
                tracing::warn!(shard = %id, why, "no snapshot can be taken in; it is tried again");
            }
            tell_differences(*id, metrics, replica.take_differences());
            touched.insert(*id);
            set_gauges(metrics, &replica.status());
        }
        self.look_after_scrubs(wall, touched)?;
        // A fast disk takes hundreds of megabytes in a second.
        let was_short = self.room.is_short();
        self.look_after_room(wall);
        if is_whole || !was_short {
            self.give_way_for_room(wall, touched);
        }
        if is_whole {
            self.want_due_scrub(now);
        }
        self.fetch_a_snapshot(now, touched)
    }

    /// Looks at what this node's disk has left, and has leaders take no more than the disks of a majority do.
    fn look_after_room(&mut self, now: Now) {
        self.room.look();
        let is_short = self.room.is_short();
        self.metrics.disk_free.set(self.room.free().and_then(|free| i64::try_from(free).ok()).unwrap_or(-1));
        self.metrics.disk_low.set(i64::from(is_short));
        let map = self.directory.map();
        for shard in &map.shards {
            let may_hand_over = is_short && !self.heirs(now, shard).is_empty();
            let (own, neighbours, short) = (self.node, &self.neighbours, &self.short_of_room);
            let Some(Hosted { replica, .. }) = self.shards.get_mut(&shard.id) else { continue };
            let has_room = |node| {
                if node == own { !is_short } else { neighbours.is_alive(node) && !short.contains(&node) }
            };
            let is_taken = (!is_short && short.is_empty()) || replica.members().is_quorum(has_room);
            replica.mind_room(match is_taken {
                // What it says of nodes is how room is made.
                _ if shard.id == ShardId::SYSTEM => keevee_replica::Room::Enough,
                true if may_hand_over => keevee_replica::Room::Elsewhere,
                true if !is_short => keevee_replica::Room::Enough,
                _ => keevee_replica::Room::Short,
            });
        }
    }

    /// Hands what this node leads to others that can lead, if its disk has no room.
    fn give_way_for_room(&mut self, now: Now, touched: &mut BTreeSet<ShardId>) {
        if !self.room.is_short() {
            return;
        }
        for shard in &self.directory.map().shards {
            if let Some(heir) = self.heirs(now, shard).first() {
                self.hand_over(now, shard.id, *heir);
                touched.insert(shard.id);
            }
        }
    }

    /// Tells replicas what was read, gives up what need not be, and begins what is wanted: one scrub after the other.
    fn look_after_scrubs(&mut self, now: Now, touched: &mut BTreeSet<ShardId>) -> Result<(), FatalError> {
        for Scrubbed { shard, index, content } in self.scrubber.take_ended() {
            let Some(hosted) = self.shards.get_mut(&shard) else { continue };
            if let Ok(content) = &content {
                hosted.scrubbed_at = now.monotonic;
                set_scrubbed(&hosted.metrics, now, *content);
            }
            let scrubbed = hosted.replica.scrubbed(now, index, content);
            scrubbed.map_err(|failure| FatalError::Replica { shard, failure })?;
            touched.insert(shard);
        }
        let shards = &self.shards;
        let is_of_use = |shard, index| {
            shards.get(&shard).is_some_and(|hosted: &Hosted| hosted.replica.is_scrubbing(index))
        };
        self.scrubber.retain(is_of_use);
        if self.scrubs_wanted.is_empty() || self.shards.values().any(|hosted| hosted.replica.has_scrub()) {
            return Ok(());
        }
        // Of a shard that another node leads by now it comes to nothing.
        while let Some(shard) = self.scrubs_wanted.pop_first() {
            let Some(Hosted { replica, scrubbed_at, .. }) = self.shards.get_mut(&shard) else { continue };
            if replica.scrub(now.monotonic) {
                *scrubbed_at = now.monotonic;
                touched.insert(shard);
                break;
            }
        }
        Ok(())
    }

    /// Of the shards that this node leads and that were not scrubbed for long, the one of which that is most true.
    fn want_due_scrub(&mut self, now: Duration) {
        let Some(interval) = self.scrub_interval else { return };
        // Views keep files on the disk.
        if self.room.is_short() || !self.scrubs_wanted.is_empty() {
            return;
        }
        let is_due = |(_, hosted): &(&ShardId, &Hosted)| {
            hosted.leader == Some(self.node) && now >= hosted.scrubbed_at + interval
        };
        let due = self.shards.iter().filter(is_due).min_by_key(|(_, hosted)| hosted.scrubbed_at);
        self.scrubs_wanted.extend(due.map(|(shard, _)| *shard));
    }

    /// One at a time: several would share the disk and the network, and each take as much longer.
    fn fetch_a_snapshot(&mut self, now: Duration, touched: &mut BTreeSet<ShardId>) -> Result<(), FatalError> {
        if self.room.is_short() {
            // It would fill the disk.
            return Ok(());
        }
        self.offer_snapshots(now);
        if self.shards.values().any(|hosted| hosted.replica.is_fetching_snapshot()) {
            return Ok(());
        }
        let needs = |(_, hosted): &(&ShardId, &mut Hosted)| hosted.replica.needs_snapshot(now);
        if let Some((shard, Hosted { replica, .. })) = self.shards.iter_mut().find(needs) {
            let shard = *shard;
            if replica.is_rebuilding() {
                tracing::debug!(%shard, "asking another node for its state");
            } else {
                tracing::info!(%shard, "this replica has fallen behind what logs still hold: fetching a snapshot");
            }
            replica.fetch_snapshot(now).map_err(|failure| FatalError::Replica { shard, failure })?;
            touched.insert(shard);
        }
        Ok(())
    }

    /// Whom a replica that has lost its state may ask for another's: all that are there, since it hears nobody say who has one.
    fn offer_snapshots(&mut self, now: Duration) {
        let map = self.directory.map();
        for (id, Hosted { replica, told_at, .. }) in &mut self.shards {
            if !replica.is_rebuilding() {
                continue;
            }
            if told_at.is_none_or(|at| now >= at + REBUILDING_TOLD) {
                *told_at = Some(now);
                tracing::warn!(
                    shard = %id,
                    "this replica has lost its state, and answers nothing until it has that of another: a majority of the \
                     shard's nodes must be there without it"
                );
            }
            let members = map.shard(*id).map_or(&[][..], |shard| &shard.members);
            let is_there = |node: &NodeId| *node != self.node && self.transport.is_reachable(*node);
            replica.offer_snapshots(&members.iter().copied().filter(is_there).collect::<Vec<_>>());
        }
    }

    /// Hands leaderships to nodes that lead less, so that all do about equally much.
    pub(super) fn spread_leaders(&mut self) -> Vec<ShardId> {
        if self.is_leaving || self.is_clock_off || self.room.is_short() {
            return Vec::new();
        }
        let map = self.directory.map();
        let (now, own) = (self.now(), self.node);
        // As the nodes say: of shards without a replica here this one does not know who leads.
        let mut led = self.led.clone();
        led.insert(own, self.leads());
        let mut moved = Vec::new();
        // The system shard first, which nobody waits for, then those that would rather be led elsewhere.
        let mut shards: Vec<&ShardInfo> = map.shards.iter().collect();
        shards.sort_by_key(|shard| (shard.id != ShardId::SYSTEM, shard.members.first() == Some(&own)));
        for shard in shards {
            let id = &shard.id;
            // Whoever is alive has said how many it leads.
            let load = |node: &NodeId| led[node];
            // In their order, so that the preferred one comes first among equals.
            let Some(to) = self.heirs(now, shard).into_iter().min_by_key(load) else { continue };
            if load(&to) + 2 > load(&own) {
                continue;
            }
            *led.entry(to).or_default() += 1;
            *led.entry(own).or_default() -= 1;
            self.hand_over(now, *id, to);
            moved.push(*id);
        }
        moved
    }

    /// Nodes that could lead a shard instead of this one, which does; in the map's order.
    fn heirs(&self, now: Now, shard: &ShardInfo) -> Vec<NodeId> {
        let Some(Hosted { replica, .. }) = self.shards.get(&shard.id) else { return Vec::new() };
        if replica.leader() != Some(self.node) {
            return Vec::new();
        }
        let status = replica.status().engine;
        let keeps_up = |node: &NodeId| {
            let mut known = status.acknowledged.iter();
            known.any(|(other, index)| other == node && index + LAG_MAX >= status.last)
        };
        let is_there = |node| {
            let is_alive = self.neighbours.is_alive(node) && self.transport.is_reachable(node);
            is_alive && !self.neighbours.differs(now, node) && !self.short_of_room.contains(&node)
        };
        let stays = |node: &NodeId| shard.wanted().contains(node);
        let may_lead = |node: &NodeId| stays(node) && is_there(*node) && keeps_up(node);
        shard.members.iter().copied().filter(may_lead).collect()
    }

    fn hand_over(&mut self, now: Now, shard: ShardId, to: NodeId) {
        if let Some(Hosted { replica, .. }) = self.shards.get_mut(&shard) {
            replica.transfer_leadership(now.monotonic, Some(to));
        }
    }
}

/// Two states that differ are a fault, whoever is wrong.
fn tell_differences(shard: ShardId, metrics: &ShardMetrics, differences: Vec<Difference>) {
    for Difference { index, node, is_outvoted } in differences {
        metrics.scrub_differences.inc();
        let verdict = if is_outvoted {
            "most voters have what this node has: the other node's state is damaged"
        } else {
            "no majority is known yet that agrees: whoever differs from one stops, and without one nothing is changed"
        };
        tracing::error!(%shard, index, %node, verdict, "a scrub found another state than this node's");
    }
}

fn set_scrubbed(metrics: &ShardMetrics, now: Now, content: Content) {
    let gauge = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
    metrics.scrub_ended.set(gauge(now.wall_micros / 1_000_000));
    metrics.scrub_records.set(gauge(content.records));
    metrics.scrub_bytes.set(gauge(content.bytes));
}

fn set_gauges(metrics: &ShardMetrics, status: &ReplicaStatus) {
    let gauge = |index: u64| i64::try_from(index).unwrap_or(i64::MAX);
    let leads = status.engine.role == Role::Leader;
    if leads && metrics.leader.get() == 0 {
        metrics.elections.inc();
    }
    metrics.leader.set(i64::from(leads));
    metrics.applied.set(gauge(status.applied));
    metrics.chosen.set(gauge(status.engine.chosen));
    metrics.last.set(gauge(status.engine.last));
    metrics.quiesced.set(i64::from(status.is_quiesced));
    metrics.rebuilding.set(i64::from(status.is_rebuilding));
}
