//! Phase 2: the leader proposes, counts acknowledgements, repeats what was lost, and stops leading when it
//! no longer has a quorum.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use bytes::Bytes;
use keevee_mutants::{self as mutants, Mutant};

use crate::ballot::{Ballot, Index, NodeId};
use crate::log::entry_bytes;
use crate::message::{Entry, LogRead, Message, Value};
use crate::replica::{Replica, Role};

/// Heartbeats without progress after which a leader sends again what a follower has not acknowledged.
const RESEND_HEARTBEATS: u32 = 2;

/// The wait doubles with each time that brought nothing, so often: a slow follower does not get slower by
/// getting everything many times.
const RESENDS_DOUBLED_MAX: u32 = 2;

/// A leadership.
pub(crate) struct Leading {
    pub(crate) ballot: Ballot,
    /// The index of the no-op that starts this leadership. Once it is chosen, everything that earlier
    /// leaders acknowledged is.
    pub(crate) barrier: Index,
    since: Duration,
    followers: BTreeMap<NodeId, Follower>,
    heartbeat_at: Duration,
    /// The clock of the last message sent, in microseconds: strictly increasing.
    sent_at: u64,
    /// The chosen index that the followers were last told of.
    announced: Index,
    transfer: Option<Transfer>,
}

struct Transfer {
    to: NodeId,
    until: Duration,
    sent: bool,
}

/// What a leader knows of one member, itself included.
#[derive(Default)]
struct Follower {
    /// Accepted at this ballot, or known chosen, up to here, and on disk.
    acknowledged: Index,
    /// Known to be chosen up to here.
    chosen: Index,
    /// The next index to send; unknown until the follower has told what it knows to be chosen.
    next: Option<Index>,
    /// Sent and not acknowledged: last index and bytes of each message.
    in_flight: VecDeque<(Index, usize)>,
    /// The `sent_at` of the latest message that the follower acknowledged at this ballot.
    answered: u64,
    /// When `answered` was sent; `None` before any.
    answered_at: Option<Duration>,
    progress_at: Duration,
    /// Since the last progress.
    resends: u32,
    flushed: Index,
}

impl Leading {
    pub(crate) fn new(ballot: Ballot, barrier: Index, members: &BTreeSet<NodeId>, now: Duration) -> Leading {
        let followers = members.iter().map(|node| (*node, Follower::default())).collect();
        Leading {
            ballot,
            barrier,
            since: now,
            followers,
            heartbeat_at: now,
            sent_at: 0,
            announced: 0,
            transfer: None,
        }
    }

    /// Others take part now.
    pub(crate) fn set_followers(&mut self, nodes: &BTreeSet<NodeId>) {
        self.followers.retain(|node, _| nodes.contains(node));
        for node in nodes {
            self.followers.entry(*node).or_default();
        }
    }

    /// A promise answers a prepare, and says where to start.
    pub(crate) fn promised(&mut self, node: NodeId, chosen: Index, prepare_sent: Duration) {
        self.learn_chosen(node, chosen);
        if let Some(follower) = self.followers.get_mut(&node) {
            follower.answered_at = Some(prepare_sent);
        }
    }

    pub(crate) fn learn_chosen(&mut self, node: NodeId, chosen: Index) {
        if let Some(follower) = self.followers.get_mut(&node) {
            follower.chosen = follower.chosen.max(chosen);
            follower.next.get_or_insert(chosen + 1);
        }
    }

    pub(crate) fn acknowledged_max(&self) -> Index {
        self.followers.values().map(|follower| follower.acknowledged).max().unwrap_or(0)
    }

    pub(crate) fn acknowledged(&self, but: NodeId) -> Vec<(NodeId, Index)> {
        let others = self.followers.iter().filter(|(node, _)| **node != but);
        others.map(|(node, follower)| (*node, follower.acknowledged)).collect()
    }

    /// True if the node answered, at this ballot, a message not sent before `sent_at`.
    pub(crate) fn has_answered(&self, node: NodeId, sent_at: u64) -> bool {
        self.followers.get(&node).is_some_and(|follower| follower.answered >= sent_at)
    }

    /// The time of the next message, later than that of every earlier one.
    pub(crate) fn stamp(&mut self, now: Duration) -> u64 {
        let micros = u64::try_from(now.as_micros()).unwrap_or(u64::MAX);
        self.sent_at = micros.max(self.sent_at + 1);
        self.sent_at
    }

    fn answered_within(&self, node: NodeId, now: Duration, span: Duration) -> bool {
        let at = self.followers.get(&node).and_then(|follower| follower.answered_at);
        at.is_some_and(|at| now.saturating_sub(at) < span)
    }
}

impl Replica {
    /// Tells everyone, and starts the ballot with a no-op.
    pub(crate) fn start_leading(&mut self, disk: &dyn LogRead) {
        let promised = self.log.last() + 1;
        self.append(Value::Noop);
        let Role::Leading(leading) = &self.role else { return };
        assert_eq!(leading.barrier, promised);
        self.heard = None;
        self.heartbeat();
        self.replicate_all(disk);
        self.reads.take_back_question();
    }

    /// Appends a value at this leader's ballot; the acknowledgement comes from its own acceptor.
    pub(crate) fn append(&mut self, value: Value) -> Index {
        let index = self.log.last() + 1;
        let ballot = self.promised;
        self.accept(Entry { index, ballot, value });
        self.extend_prefix(ballot);
        let now = self.now;
        let Role::Leading(leading) = &mut self.role else { unreachable!("only leaders append") };
        let sent_at = leading.stamp(now);
        let own = Message::Accepted { ballot, sent_at, through: index, chosen: self.chosen };
        self.send_when_synced(self.id, own);
        index
    }

    /// Phase 2a for a new value.
    pub(crate) fn propose(&mut self, bytes: Bytes, disk: &dyn LogRead) {
        if !self.may_propose() {
            return;
        }
        let index = self.append(Value::Data(bytes));
        self.output.proposed = Some(index);
        self.replicate_all(disk);
    }

    /// Not while leadership is handed over, nor behind a configuration that is not chosen.
    pub(crate) fn may_propose(&self) -> bool {
        let leads = matches!(&self.role, Role::Leading(Leading { transfer: None, .. }));
        leads && !self.has_unchosen_configuration()
    }

    pub(crate) fn replicate_all(&mut self, disk: &dyn LogRead) {
        for node in self.others() {
            self.replicate(node, disk);
        }
    }

    /// Sends a follower everything that it lacks, at this leader's ballot, as far as its window allows.
    pub(crate) fn replicate(&mut self, to: NodeId, disk: &dyn LogRead) {
        let (now, last, first, chosen) = (self.now, self.log.last(), self.first, self.chosen);
        let (page_max, window_max) = (self.page_bytes_max, self.window_bytes_max);
        if to == self.id {
            // One's own acceptor took the entries when they were appended.
            return;
        }
        loop {
            let Role::Leading(leading) = &mut self.role else { return };
            let ballot = leading.ballot;
            let Some(follower) = leading.followers.get_mut(&to) else { return };
            let Some(next) = follower.next else { return };
            let begins = if mutants::is_active(Mutant::LaggardLeftBehind) { leading.barrier } else { 0 };
            let next = next.max(begins);
            let in_flight: usize = follower.in_flight.iter().map(|(_, bytes)| bytes).sum();
            if next > last || next < first || in_flight >= window_max {
                return;
            }
            let mut entries = self.log.read(next, last, page_max, disk);
            let Some(end) = entries.last().map(|entry| entry.index) else { return };
            assert_eq!(end - next + 1, entries.len() as u64, "a leader's log has no holes");
            entries.iter_mut().for_each(|entry| entry.ballot = ballot);
            let bytes = entries.iter().map(|entry| entry_bytes(&entry.value)).sum();
            if follower.in_flight.is_empty() {
                follower.progress_at = now;
            }
            follower.in_flight.push_back((end, bytes));
            follower.next = Some(end + 1);
            leading.announced = chosen;
            let sent_at = leading.stamp(now);
            self.send(to, Message::Accept { ballot, sent_at, entries, chosen });
        }
    }

    /// Phase 2b at the leader: counts, and sends on.
    pub(crate) fn on_acknowledgement(
        &mut self,
        from: NodeId,
        ballot: Ballot,
        sent_at: u64,
        through: Index,
        chosen: Index,
        disk: &dyn LogRead,
    ) {
        let now = self.now;
        let Role::Leading(leading) = &mut self.role else { return };
        if leading.ballot != ballot && !mutants::is_active(Mutant::AcknowledgementAcrossBallots) {
            return;
        }
        if sent_at > leading.sent_at || through > self.log.last() {
            // An answer to what was never sent.
            return;
        }
        let Some(follower) = leading.followers.get_mut(&from) else { return };
        if sent_at > follower.answered {
            follower.answered = sent_at;
            follower.answered_at = Some(Duration::from_micros(sent_at));
        }
        follower.chosen = follower.chosen.max(chosen);
        if through > follower.acknowledged {
            follower.acknowledged = through;
            follower.progress_at = now;
            follower.resends = 0;
            while follower.in_flight.front().is_some_and(|(last, _)| *last <= through) {
                follower.in_flight.pop_front();
            }
        }
        let known = follower.acknowledged.max(follower.chosen);
        follower.next = Some(follower.next.unwrap_or(0).max(known + 1));
        self.choose(chosen);
        self.confirm_round();
        self.replicate(from, disk);
        self.hand_over();
    }

    pub(crate) fn on_flushed(&mut self, from: NodeId, ballot: Ballot, flushed: Index) {
        let Role::Leading(leading) = &mut self.role else { return };
        if let Some(follower) = leading.followers.get_mut(&from)
            && leading.ballot == ballot
        {
            follower.flushed = follower.flushed.max(flushed);
        }
    }

    /// The highest index that a quorum acknowledged at this ballot is chosen, and all below it. So is
    /// everything that some follower knows to be chosen: phase 1 brought its value here. Behind a configuration its own
    /// quorums count.
    fn choose(&mut self, chosen_elsewhere: Index) {
        self.advance_chosen(chosen_elsewhere.min(self.log.last()));
        loop {
            let end = self.log.configurations().next().map_or(Index::MAX, |(place, _)| place);
            self.advance_chosen(self.acknowledged_by_quorum().min(end));
            if self.chosen < end {
                break;
            }
        }
        if !self.may_lead() {
            // It takes part no longer: the others know, and one of them leads.
            self.announce();
            self.step_down();
        }
    }

    fn acknowledged_by_quorum(&self) -> Index {
        let Role::Leading(leading) = &self.role else { return 0 };
        let followers = &leading.followers;
        let uneven = mutants::is_active(Mutant::ChosenWithoutQuorum);
        let acknowledges = |node: NodeId, index: Index| {
            let index = if uneven { index.min(self.chosen + 1) } else { index };
            followers.get(&node).is_some_and(|follower| follower.acknowledged >= index)
        };
        let candidates = followers.values().map(|follower| follower.acknowledged);
        let unchosen = self.log.configurations().last().map(|(_, unchosen)| &unchosen.quorum);
        let quorum = unchosen.filter(|_| mutants::is_active(Mutant::JointSkipped)).unwrap_or(&self.quorum);
        let chosen = candidates.filter(|index| quorum.is_phase2_quorum(|node| acknowledges(node, *index)));
        chosen.max().unwrap_or(0)
    }

    /// Tells the followers what is chosen, if no accept or heartbeat has. At a tick only: under load the next
    /// accept tells it for nothing, and a read at a follower brings its index along.
    fn announce(&mut self) {
        let chosen = self.chosen;
        let Role::Leading(leading) = &mut self.role else { return };
        if leading.announced < chosen {
            leading.announced = chosen;
            let ballot = leading.ballot;
            self.broadcast(&Message::Chosen { ballot, chosen });
        }
    }

    /// True if a quorum answered within the shortest timeout, or this leadership began within it: it began with a
    /// quorum's promises, however long their disks took.
    pub(crate) fn is_connected(&self) -> bool {
        let Role::Leading(leading) = &self.role else { return false };
        let span = self.timing.timeout_min;
        self.now - leading.since < span || self.has_quorum_within(span)
    }

    fn has_quorum_within(&self, span: Duration) -> bool {
        let Role::Leading(leading) = &self.role else { return false };
        let answers = |node| node == self.id || leading.answered_within(node, self.now, span);
        self.quorum.is_phase1_quorum(answers) && self.quorum.is_phase2_quorum(answers)
    }

    pub(crate) fn tick_leader(&mut self, disk: &dyn LogRead) {
        let (now, timeout_max) = (self.now, self.timing.timeout_max);
        let Role::Leading(leading) = &self.role else { return };
        // What was promised long ago, while other nodes still sent their pages, is no answer: so a new leader
        // gets a timeout's time to hear from its quorum.
        let is_new = now - leading.since < timeout_max;
        if self.is_stalled() || !(is_new || self.has_quorum_within(timeout_max)) {
            return self.step_down();
        }
        let patience = self.timing.heartbeat * RESEND_HEARTBEATS;
        let Role::Leading(leading) = &mut self.role else { return };
        if leading.transfer.as_ref().is_some_and(|transfer| now >= transfer.until) {
            leading.transfer = None;
        }
        for follower in leading.followers.values_mut() {
            let patience = patience * 2u32.pow(follower.resends.min(RESENDS_DOUBLED_MAX));
            if !follower.in_flight.is_empty() && now - follower.progress_at >= patience {
                follower.in_flight.clear();
                follower.progress_at = now;
                follower.resends += 1;
                follower.next = Some(follower.acknowledged.max(follower.chosen) + 1);
            }
        }
        if now >= leading.heartbeat_at {
            // The call to take over may have been lost.
            leading.transfer.iter_mut().for_each(|transfer| transfer.sent = false);
            self.heartbeat();
        }
        self.leave_a_slow_disk();
        self.hand_over();
        self.close_configuration();
        self.replicate_all(disk);
        self.announce();
    }

    /// Whoever acknowledges what is behind a configuration knows that it is chosen: then those before are not needed any more,
    /// not even by the next leader.
    fn close_configuration(&mut self) {
        let (place, _) = self.configurations.in_force();
        if place > 0 && place == self.log.last() && self.may_propose() {
            self.append(Value::Noop);
        }
    }

    /// Sends a heartbeat to all; the time it carries.
    pub(crate) fn heartbeat(&mut self) -> u64 {
        let connected = self.is_connected();
        let flushed = self.flushed_everywhere();
        let (now, heartbeat, chosen) = (self.now, self.timing.heartbeat, self.chosen);
        let Role::Leading(leading) = &mut self.role else { unreachable!("only leaders beat") };
        leading.heartbeat_at = now + heartbeat;
        leading.announced = chosen;
        let (ballot, sent_at) = (leading.ballot, leading.stamp(now));
        self.broadcast(&Message::Heartbeat { ballot, sent_at, chosen, connected, flushed });
        self.tell_dropped();
        sent_at
    }

    /// Tells those that lack entries that are dropped here, as often as there are heartbeats.
    fn tell_dropped(&mut self) {
        let first = self.first;
        let Role::Leading(leading) = &self.role else { return };
        if first > self.log.last() && mutants::is_active(Mutant::EmptyLogSilent) {
            return;
        }
        let ballot = leading.ballot;
        let lacks = |next: Option<Index>| next.is_some_and(|next| next < first);
        let behind = leading.followers.iter().filter(|(_, follower)| lacks(follower.next));
        let behind: Vec<NodeId> = behind.map(|(node, _)| *node).filter(|node| *node != self.id).collect();
        for node in behind {
            self.send(node, Message::Dropped { ballot, first });
        }
    }

    /// Everything up to here is applied and flushed on every member, as far as is known here. On this one
    /// too: what the others drop, it must not need again after a crash.
    pub(crate) fn flushed_everywhere(&self) -> Index {
        let Role::Leading(leading) = &self.role else { return self.flushed_everywhere_heard };
        let others = leading.followers.iter().filter(|(node, _)| **node != self.id);
        others.map(|(_, follower)| follower.flushed).fold(self.flushed, Index::min)
    }

    /// A refusal is no acknowledgement. The leader may go above it only with a quorum that still answers at
    /// its ballot: then one node alone promised more, to a candidate that did not make it. It does not go above
    /// the one to whom it hands over, to lead and hand over again for ever.
    pub(crate) fn on_refused(&mut self, from: NodeId, ballot: Ballot, promised: Ballot, disk: &dyn LogRead) {
        self.round_seen = self.round_seen.max(promised.round);
        if ballot != self.promised || promised <= ballot {
            return;
        }
        let (now, span) = (self.now, self.timing.timeout_min);
        let Role::Leading(leading) = &mut self.role else { return self.candidate_refused(from) };
        let Some(follower) = leading.followers.get_mut(&from) else { return };
        if mutants::is_active(Mutant::RefusalCounted) {
            (follower.answered, follower.answered_at) = (leading.sent_at, Some(now));
            return self.confirm_round();
        }
        // The first refusal ends this leadership one way or the other, so `from` is the only node to leave out.
        let (id, quorum) = (self.id, &self.quorum);
        let faithful = |node| node == id || (node != from && leading.answered_within(node, now, span));
        let is_successor = leading.transfer.as_ref().is_some_and(|transfer| transfer.to == promised.node);
        if !is_successor && quorum.is_phase1_quorum(faithful) && quorum.is_phase2_quorum(faithful) {
            self.prepare(disk);
        } else {
            self.step_down();
        }
    }

    /// Picks the follower that is furthest along, and stops proposing until it took over or an election
    /// timeout has passed.
    pub(crate) fn transfer(&mut self, wanted: Option<NodeId>) {
        let (id, now, timing) = (self.id, self.now, self.timing.clone());
        let Role::Leading(leading) = &mut self.role else { return };
        if wanted.is_none() && leading.transfer.is_some() {
            // Another successor would be one too many.
            return;
        }
        let answers = |node: &NodeId| *node != id && leading.answered_within(*node, now, timing.timeout_min);
        let voters = self.quorum.members();
        let may_lead = |node: &NodeId| {
            voters.contains(node) && answers(node) && wanted.is_none_or(|wanted| wanted == *node)
        };
        let candidates = leading.followers.iter().filter(|(node, _)| may_lead(node));
        let Some((to, _)) = candidates.max_by_key(|(_, follower)| follower.acknowledged) else {
            return;
        };
        let until = now + timing.timeout_max;
        leading.transfer = Some(Transfer { to: *to, until, sent: false });
        self.hand_over();
    }

    /// A disk that has said nothing for the shortest timeout is about to stall. If another one had the same in half the time,
    /// its node leads at once, instead of an election after this one has fallen silent; if all are slow, nobody is better.
    fn leave_a_slow_disk(&mut self) {
        // Of what is no entry nobody else has written the same.
        let (now, silent, last) = (self.now, self.entries_unsynced_for(), self.log.last());
        let (timeout, voters) = (self.timing.timeout_min, self.quorum.members());
        let Role::Leading(leading) = &self.role else { return };
        if silent <= timeout || leading.transfer.is_some() {
            return;
        }
        let may_lead = |node: &NodeId| {
            *node != self.id && voters.contains(node) && leading.answered_within(*node, now, timeout)
        };
        let is_faster =
            |follower: &Follower| follower.acknowledged == last && now - follower.progress_at >= silent / 2;
        let mut successors = leading.followers.iter().filter(|(node, one)| may_lead(node) && is_faster(one));
        let successor = successors.next().map(|(node, _)| *node);
        if successor.is_some() {
            self.transfer(successor);
        }
    }

    /// Hands over as soon as the successor has everything.
    fn hand_over(&mut self) {
        let last = self.log.last();
        let Role::Leading(leading) = &mut self.role else { return };
        let Some(transfer) = &mut leading.transfer else { return };
        let ready = leading.followers.get(&transfer.to).is_some_and(|f| f.acknowledged == last);
        if ready && !transfer.sent {
            transfer.sent = true;
            let (to, ballot) = (transfer.to, leading.ballot);
            self.send(to, Message::TakeOver { ballot });
        }
    }
}
