//! What every engine must do behind the seam, as tests over shards with storage in memory: proposals, reads, answers,
//! leader transfer, back-pressure, restarts, lag, crashes.
//!
//! An engine is held to it by one line in a test of its own crate, with a [`Maker`] that opens it:
//!
//! ```ignore
//! keevee_replica::conformance!(MyEngineMaker);
//! ```
//!
//! Not here: faults of the network and the order of events, which the simulator draws (`keevee-verify`).

#[expect(missing_docs, reason = "the name of each case says what must hold")]
pub mod cases;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use bytes::Bytes;
use keevee_core::command::{Command, Outcome};
use keevee_core::ids::{Incarnation, NodeId, ShardId};
use keevee_core::slots::SlotSet;

use crate::storage::{LogRecord, LogStore, MemoryLog, MemoryState, StateStore, StorageError};
use crate::{
    Bounds, Effects, Engine, Failure, Now, Refusal, ReplicaMessage, Reply, Request, Role, Shard,
    SnapshotMessage,
};

/// Makes a test of every case, for the engine that a [`Maker`] opens.
#[macro_export]
macro_rules! conformance {
    ($maker:expr) => {
        $crate::conformance! { @ $maker;
            a_write_is_read_from_every_node
            a_single_node_is_a_cluster
            a_follower_names_the_leader
            commands_that_wait_for_a_sync_share_the_next_entry
            deletes_of_ranges_do_not_share_an_entry_and_every_node_scans_what_they_leave
            nothing_is_acknowledged_before_a_majority_has_synced
            a_replica_applies_only_what_is_on_its_own_disk
            past_its_bounds_a_shard_refuses_at_once
            what_is_late_is_not_carried_out
            without_room_only_what_takes_none_is_taken
            a_write_that_is_proposed_and_not_chosen_is_unknown
            a_read_without_a_quorum_is_refused_in_time
            what_waits_begins_after_the_answers
            answers_at_the_door_hold_nothing_up
            everything_acknowledged_survives_a_crash_of_all_nodes
            a_retry_after_a_failover_takes_effect_once
            a_failed_precondition_changes_nothing
            a_deposed_leader_answers_its_proposals_truly
            a_leader_that_leads_again_answers_what_it_proposed_before_truly
            a_replica_that_differs_from_a_majority_stops
            leadership_goes_to_the_member_that_is_named
            leadership_is_handed_over_without_an_election_timeout
            leadership_is_handed_over_though_the_word_is_lost
            leadership_is_handed_over_once_somebody_answers
            what_is_lost_with_a_connection_is_sent_again_once_there_is_one
            a_replica_that_was_away_counts_again_as_soon_as_it_is_back
            a_leader_whose_connections_are_reset_is_replaced_without_an_election_timeout
            a_leader_that_only_one_replica_has_lost_stays
            a_leader_that_was_lost_for_a_moment_by_one_after_the_other_stays
            who_hears_no_leader_knows_none
            leadership_is_not_handed_to_the_dead
            an_entry_that_is_unknown_and_chosen_stops_the_replica
            a_replica_that_was_away_catches_up_page_by_page
            a_log_is_dropped_below_what_every_member_has_flushed_and_no_further
            a_crash_in_the_middle_of_apply_loses_and_repeats_nothing
            a_leader_cut_off_serves_no_read_and_a_new_one_serves_what_was_written
            a_log_that_has_lost_its_end_is_refused
            a_replica_refuses_proposals_while_leadership_is_handed_over
            a_leader_that_lost_what_it_had_sent_puts_nothing_else_in_its_place
            a_replica_alone_leads_though_its_disk_is_slower_than_its_timeouts
            a_leader_whose_disk_stalls_leads_no_more_after_the_shortest_timeout
            a_follower_whose_disk_stalls_holds_nothing_up
            a_leader_that_falls_silent_is_replaced_within_the_longest_timeout
            a_shard_that_nobody_asks_says_nothing_and_serves_when_it_is_asked
            heartbeats_in_step_with_quiescing_do_not_keep_a_shard_awake
            a_late_heartbeat_wakes_the_leader_with_the_followers
            a_quiesced_leader_that_dies_is_replaced
            a_quiesced_leader_whose_connections_are_reset_is_replaced_without_an_election_timeout
            a_restarted_follower_finds_the_leader_of_a_quiesced_shard
            a_follower_that_wakes_wakes_the_leader
            a_shard_is_not_quiesced_while_a_member_lacks_something
            a_deposed_leader_comes_to_rest_with_entries_that_nobody_else_has
            a_quiesced_log_is_dropped_once_all_is_flushed
            a_read_shows_nothing_that_is_due_by_the_clock
            a_stale_read_goes_by_shard_time
            a_read_from_a_follower_goes_by_the_leaders_clock
            a_read_that_waits_for_shard_time_in_vain_is_refused
            a_write_sees_nothing_that_is_due_by_the_leaders_clock
            keys_that_are_gone_are_removed_in_bounded_batches
            removals_go_with_the_commands_of_clients
            a_quiesced_shard_wakes_to_remove_what_is_due
            keys_that_are_gone_stay_gone_after_a_failover_to_a_clock_that_is_behind
            a_leader_whose_clock_is_off_stamps_nothing_and_hands_over
            writes_of_far_offsets_do_not_share_an_entry
            a_replica_that_lacks_what_logs_have_dropped_takes_over_a_snapshot
            a_chunk_that_is_lost_costs_a_chunk
            a_crash_before_a_snapshot_is_in_force_leaves_the_old_state
            a_log_is_kept_behind_a_snapshot_until_its_receiver_has_caught_up
            a_replica_that_has_lost_its_state_is_rebuilt_within_its_log
            a_replica_that_has_lost_its_state_is_rebuilt_by_a_leader_whose_log_it_has
            a_replica_that_has_lost_its_state_is_rebuilt_though_others_were_elected_meanwhile
            a_replica_that_has_lost_its_state_is_no_part_of_a_majority
            a_node_that_joins_takes_the_place_of_another
            a_leader_that_is_not_wanted_hands_over_and_goes
            all_members_may_be_replaced_at_once
            a_node_joins_though_the_log_was_dropped
            what_a_learner_acknowledges_decides_nothing
            a_change_that_is_half_done_goes_on_after_a_crash_of_all
            members_survive_the_log_that_told_of_them
            writes_go_on_while_members_change
            a_replica_that_takes_part_no_longer_disturbs_nobody
            a_cut_holds_what_was_stamped_up_to_its_time_and_nothing_later
            a_cut_waits_for_its_time_and_comes_before_the_entry_behind_it
            a_quiesced_shard_is_cut_and_what_is_gone_by_then_is_left_out
            who_does_not_lead_takes_no_cut
            a_leader_that_is_cut_off_takes_no_cut
            a_cut_of_a_deposed_leader_is_refused
            a_time_that_has_passed_or_is_far_ahead_is_refused
            a_stamp_of_an_earlier_leader_beyond_the_time_forbids_the_cut
            of_two_cuts_each_has_its_own_time
            equal_states_agree_while_writes_go_on
            a_record_that_was_changed_is_found_by_its_replica_and_by_the_others
            a_replica_that_reads_last_learns_that_its_state_is_damaged
            a_state_that_cannot_be_read_is_damaged
            a_member_that_is_away_is_left_out
            only_a_leader_begins_a_scrub_and_one_at_a_time
            a_scrub_goes_on_when_its_leader_is_gone
            a_quiesced_shard_is_scrubbed_and_comes_to_rest_while_it_is_read
            a_scrub_gives_way_to_a_change_of_members
        }
    };
    (@ $maker:expr; $($case:ident)*) => {
        $(#[test]
        fn $case() {
            $crate::conformance::cases::$case(&$maker);
        })*
    };
}

/// Makes the engine that is held to the seam.
pub trait Maker {
    /// The engine.
    type Engine: Engine;

    /// A replica as its log left it; `seed` differs at each start. A replica that joins a group is told of no members.
    ///
    /// # Errors
    ///
    /// [`StorageError`] if the log can't be what this replica wrote.
    fn open(
        &self,
        node: u64,
        members: BTreeSet<u64>,
        seed: u64,
        log: SharedLog,
        applied: u64,
        now: Duration,
    ) -> Result<Self::Engine, StorageError>;
}

/// A log that the test and the engine both hold, as a server's writer thread would.
#[derive(Clone, Debug, Default)]
pub struct SharedLog(Arc<Mutex<MemoryLog>>);

impl SharedLog {
    fn lock(&self) -> MutexGuard<'_, MemoryLog> {
        self.0.lock().expect("nothing panics while it holds this")
    }
}

impl LogStore for SharedLog {
    fn submit(&mut self, records: Vec<LogRecord>, token: u64) {
        self.lock().submit(records, token);
    }
    fn persisted(&mut self, token: u64) {
        self.lock().persisted(token);
    }
    fn read(&self, from: u64, to: u64, bytes_max: usize) -> Result<Vec<(u64, Bytes)>, StorageError> {
        self.lock().read(from, to, bytes_max)
    }
    fn hard_state(&self) -> Result<Option<Bytes>, StorageError> {
        self.lock().hard_state()
    }
    fn last(&self) -> Result<u64, StorageError> {
        self.lock().last()
    }
    fn bytes(&self) -> Result<u64, StorageError> {
        self.lock().bytes()
    }
    fn incarnation(&self) -> Result<Incarnation, StorageError> {
        self.lock().incarnation()
    }
}

type Replica<M> = Shard<<M as Maker>::Engine, MemoryState>;
type Message<M> = ReplicaMessage<<<M as Maker>::Engine as Engine>::Message>;

struct Node<M: Maker> {
    shard: Replica<M>,
    log: SharedLog,
    /// Its disk does not sync.
    is_stalled: bool,
    /// How far its wall clock is ahead of the true time.
    skew: i64,
}

/// Nodes on a perfect network, with disks that sync when they are told to.
struct Cluster<'a, M: Maker> {
    maker: &'a M,
    nodes: BTreeMap<u64, Node<M>>,
    network: VecDeque<(u64, u64, Message<M>)>,
    /// Counts the messages that arrived.
    delivered: usize,
    /// The numbers of the chunks of snapshots that arrived.
    chunks: Vec<u64>,
    /// The next chunk of this number is lost.
    lost_chunk: Option<u64>,
    replies: BTreeMap<u64, Reply>,
    now: Duration,
    tickets: u64,
    bounds: Bounds,
    size: u64,
}

impl<'a, M: Maker> Cluster<'a, M> {
    fn new(maker: &'a M, size: u64, bounds: Bounds) -> Cluster<'a, M> {
        let mut cluster = Cluster {
            maker,
            nodes: BTreeMap::new(),
            network: VecDeque::new(),
            delivered: 0,
            chunks: Vec::new(),
            lost_chunk: None,
            replies: BTreeMap::new(),
            now: Duration::ZERO,
            tickets: 0,
            bounds,
            size,
        };
        for id in 1..=size {
            cluster.start(id, 1, MemoryLog::default(), MemoryState::new(SlotSet::all()));
        }
        cluster
    }

    fn start(&mut self, id: u64, boot: u64, log: MemoryLog, mut state: MemoryState) {
        state.enter(log.incarnation().expect("memory does not fail")).expect("it is there");
        let applied = state.meta().expect("memory does not fail").applied;
        self.start_at(id, boot, log, state, applied);
    }

    fn start_at(&mut self, id: u64, boot: u64, log: MemoryLog, state: MemoryState, applied: u64) {
        let log = SharedLog(Arc::new(Mutex::new(log)));
        // The others join later, and are told who there is.
        let members = if id <= self.size { (1..=self.size).collect() } else { BTreeSet::new() };
        let opened = self.maker.open(id, members, id + 100 * boot, log.clone(), applied, self.now);
        let engine = opened.expect("a good log");
        let shard = Shard::new(ShardId(1), NodeId(id), boot, engine, state, self.bounds);
        let shard = shard.expect("a good state");
        self.nodes.insert(id, Node { shard, log, is_stalled: false, skew: 0 });
    }

    fn led(maker: &'a M, size: u64, bounds: Bounds) -> (Cluster<'a, M>, u64) {
        let mut cluster = Cluster::new(maker, size, bounds);
        let leader = cluster.wait_for_leader();
        (cluster, leader)
    }

    /// The time, as a node's clocks tell it.
    fn now_of(&self, id: u64) -> Now {
        let skew = self.nodes.get(&id).map_or(0, |node| node.skew);
        Now { monotonic: self.now, wall_micros: self.wall().saturating_add_signed(skew) }
    }

    /// The true time.
    fn wall(&self) -> u64 {
        1_700_000_000_000_000 + self.now.as_micros() as u64
    }

    fn advance(&mut self, id: u64) -> Result<(), Failure> {
        let now = self.now_of(id);
        loop {
            let Some(node) = self.nodes.get_mut(&id) else { return Ok(()) };
            let Effects { send, replies, has_more, is_replaced } = node.shard.advance(now)?;
            self.network.extend(send.into_iter().map(|(to, message)| (id, to.0, message)));
            for reply in replies {
                let earlier = self.replies.insert(reply.ticket, reply.clone());
                assert!(earlier.is_none(), "answered twice: {reply:?}");
            }
            if is_replaced {
                self.replace(id);
            } else if !has_more {
                return Ok(());
            }
        }
    }

    /// Opens a replica anew that has taken over a snapshot.
    fn replace(&mut self, id: u64) {
        let mut node = self.nodes.remove(&id).expect("it exists");
        let (log, state) = (node.log.lock().clone(), node.shard.state().clone());
        // A number that no start has.
        self.start(id, 1_000 + self.delivered as u64, log, state);
        self.node(id).skew = node.skew;
    }

    fn sync(&mut self, id: u64) {
        let now = self.now;
        let Some(node) = self.nodes.get_mut(&id) else { return };
        let token = if node.is_stalled { None } else { node.log.lock().sync() };
        if let Some(token) = token {
            node.shard.persisted(now, token);
        }
        self.advance(id).expect("it goes on");
    }

    /// Delivers everything and syncs every disk until nothing moves.
    fn settle(&mut self) {
        loop {
            let ids: Vec<u64> = self.nodes.keys().copied().collect();
            ids.iter().for_each(|id| self.sync(*id));
            if self.network.is_empty() {
                return;
            }
            for (from, to, message) in std::mem::take(&mut self.network) {
                if let Some(node) = self.nodes.get_mut(&to) {
                    self.delivered += 1;
                    if let ReplicaMessage::Snapshot(SnapshotMessage::Chunk(chunk)) = &message {
                        if self.lost_chunk.take_if(|lost| *lost == chunk.number).is_some() {
                            continue;
                        }
                        self.chunks.push(chunk.number);
                    }
                    let received = node.shard.receive(self.now, NodeId(from), message);
                    assert_eq!(received, Ok(true), "replicas here are correct, and agree");
                    self.advance(to).expect("it goes on");
                }
            }
        }
    }

    fn elapse(&mut self, time: Duration) {
        let until = self.now + time;
        while self.now < until {
            self.now += Duration::from_millis(20);
            let ids: Vec<u64> = self.nodes.keys().copied().collect();
            for id in &ids {
                let (id, now) = (*id, self.now);
                let shard = &mut self.nodes.get_mut(&id).expect("it exists").shard;
                ids.iter().for_each(|alive| shard.vouch(now, NodeId(*alive)));
                shard.tick(now).expect("memory does not fail");
                shard.expire(now);
                let others = ids.iter().filter(|other| **other != id);
                shard.offer_snapshots(&others.copied().map(NodeId).collect::<Vec<_>>());
                if shard.needs_snapshot(now) {
                    shard.fetch_snapshot(now).expect("memory does not fail");
                }
                self.advance(id).expect("it goes on");
            }
            self.settle();
        }
    }

    fn wait_for_leader(&mut self) -> u64 {
        for _ in 0..500 {
            if let Some(id) = self.leaders().first().copied() {
                self.settle();
                return id;
            }
            self.elapse(Duration::from_millis(20));
        }
        panic!("no leader within ten seconds of virtual time");
    }

    /// Hands a command to a node without letting anything else happen.
    fn submit(&mut self, id: u64, command: Command) -> u64 {
        self.submit_as(id, command, false)
    }

    fn submit_as(&mut self, id: u64, command: Command, stale: bool) -> u64 {
        self.tickets += 1;
        let deadline = self.now + Duration::from_secs(5);
        let request = Request { ticket: self.tickets, command, deadline, stale };
        let now = self.now_of(id);
        self.nodes.get_mut(&id).expect("it exists").shard.submit(now, vec![request]).expect("it goes on");
        self.advance(id).expect("it goes on");
        self.tickets
    }

    fn run(&mut self, id: u64, command: Command) -> Result<Outcome, Refusal> {
        let ticket = self.submit(id, command);
        self.settle();
        self.elapse(Duration::from_millis(40));
        self.replies.remove(&ticket).expect("answered").result
    }

    /// Loses what was not synced or flushed, and starts again.
    fn restart(&mut self, id: u64, boot: u64) {
        let node = self.nodes.remove(&id).expect("it exists");
        self.network.retain(|(from, to, _)| *from != id && *to != id);
        let log = node.log.lock().crashed();
        let mut shard = node.shard;
        let state = shard.state().crashed();
        self.start(id, boot, log, state);
    }

    /// Crashes, finds its state damaged, and starts again without it.
    fn lose_state(&mut self, id: u64, boot: u64) {
        let mut node = self.nodes.remove(&id).expect("it exists");
        self.network.retain(|(from, to, _)| *from != id && *to != id);
        let below = node.shard.status().engine.first.saturating_sub(1);
        let (mut log, mut state) = (node.log.lock().crashed(), node.shard.state().crashed());
        let incarnation = state.give_up();
        log.submit(vec![LogRecord::Incarnation(incarnation)], 0);
        log.sync();
        state.enter(incarnation).expect("it is empty");
        self.start_at(id, boot, log, state, below);
        self.node(id).shard.lose_state();
    }

    fn node(&mut self, id: u64) -> &mut Node<M> {
        self.nodes.get_mut(&id).expect("it exists")
    }

    fn stall_all_but(&mut self, id: u64, stalls: bool) {
        let others = self.nodes.iter_mut().filter(|(other, _)| **other != id);
        others.for_each(|(_, node)| node.is_stalled = stalls);
    }

    /// What is applied now survives a crash of any node without its log.
    fn flush(&mut self) {
        let now = self.now;
        for node in self.nodes.values_mut() {
            node.shard.state().flush();
            node.shard.note_flushed(now).expect("memory does not fail");
        }
        let ids: Vec<u64> = self.nodes.keys().copied().collect();
        ids.into_iter().for_each(|id| self.advance(id).expect("it goes on"));
        self.settle();
    }

    /// Those that believe that they lead.
    fn leaders(&self) -> Vec<u64> {
        let leads = |node: &Node<M>| node.shard.status().engine.role == Role::Leader;
        self.nodes.iter().filter(|(_, node)| leads(node)).map(|(id, _)| *id).collect()
    }

    fn applied(&self, id: u64) -> u64 {
        self.nodes[&id].shard.status().applied
    }

    fn follower(&self, leader: u64) -> u64 {
        (1..=self.size).find(|id| *id != leader).expect("there are others")
    }
}
