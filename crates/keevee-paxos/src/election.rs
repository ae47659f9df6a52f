//! How a leader comes to be: polls, then phase 1.
//!
//! A poll changes nothing anywhere, so that a node that cannot lead does not disturb one that does. It
//! asks one question only: do you hear a leader that has a quorum? It compares neither logs nor ballots,
//! since phase 1 brings a candidate whatever it lacks. This is what settles partial partitions (OmniPaxos
//! 2023, section 5: quorum-connected leadership).

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use keevee_mutants::{self as mutants, Mutant};

use crate::ballot::{Ballot, Index, NodeId};
use crate::leader::Leading;
use crate::message::{Entry, LogRead, Message, Value};
use crate::replica::{Replica, Role};

/// Waiting for grants.
pub(crate) struct Polling {
    poll: u64,
    granted: BTreeSet<NodeId>,
}

/// Waiting for promises.
pub(crate) struct Preparing {
    pub(crate) ballot: Ballot,
    /// When the candidate gives up.
    pub(crate) until: Duration,
    pub(crate) since: Duration,
    resend_at: Duration,
    promises: BTreeMap<NodeId, Progress>,
    refused: BTreeSet<NodeId>,
    /// The first index asked for.
    from: Index,
    /// Of each index the entry of the highest ballot reported.
    adopted: BTreeMap<Index, Entry>,
    /// Who was asked.
    asked: BTreeSet<NodeId>,
}

/// How far one acceptor has reported.
#[derive(Clone, Copy)]
struct Progress {
    /// The next page; `None` once the last one came.
    next: Option<Index>,
    /// When the next page was first asked for.
    asked_at: Duration,
    /// When the latest page that came had been asked for.
    answered_at: Duration,
    chosen: Index,
}

/// A page of a promise.
pub(crate) struct PromisePage {
    pub(crate) page: Index,
    pub(crate) entries: Vec<Entry>,
    pub(crate) next: Option<Index>,
    pub(crate) chosen: Index,
    pub(crate) first: Index,
}

impl Replica {
    /// Asks all whether a ballot may be raised.
    pub(crate) fn poll(&mut self, disk: &dyn LogRead) {
        self.poll_at = self.now + self.draw_timeout();
        self.step_down();
        if self.is_stalled() || !self.may_lead() {
            // Nor does it name a leader that it no longer hears.
            self.heard = None;
            return;
        }
        if mutants::is_active(Mutant::PrepareWithoutPoll) {
            return self.prepare(disk);
        }
        self.poll_count += 1;
        let poll = self.poll_count;
        self.role = Role::Polling(Polling { poll, granted: BTreeSet::new() });
        self.broadcast(&Message::Poll { poll });
        self.on_poll_reply(self.id, poll, true, disk);
    }

    pub(crate) fn on_poll(&mut self, from: NodeId, poll: u64) {
        let heard =
            self.heard.is_some_and(|heard| heard.connected && self.now - heard.at < self.timing.timeout_min);
        let leads = match &self.role {
            Role::Leading(_) => self.is_connected(),
            _ => false,
        };
        let stood = mutants::is_active(Mutant::PollDeadlock) && self.promised.node == self.id;
        let granted = !(heard || leads || stood) || mutants::is_active(Mutant::PollAlwaysGranted);
        self.send(from, Message::PollReply { poll, granted });
    }

    pub(crate) fn on_poll_reply(&mut self, from: NodeId, answered: u64, grant: bool, disk: &dyn LogRead) {
        let Role::Polling(Polling { poll, granted }) = &mut self.role else { return };
        if *poll != answered || !grant {
            return;
        }
        granted.insert(from);
        if self.quorum.is_phase1_quorum(|node| granted.contains(&node)) {
            self.prepare(disk);
        }
    }

    /// The connection to a node broke. If it led, it may be dead: find out at once.
    pub(crate) fn disconnected(&mut self, node: NodeId, disk: &dyn LogRead) {
        if self.heard.is_some_and(|heard| heard.ballot.node == node) {
            self.heard = None;
            if matches!(self.role, Role::Follower) {
                self.poll(disk);
            }
        }
    }

    /// The leader hands over: no poll is needed, since the one who would refuse it is the one who asks.
    pub(crate) fn on_take_over(&mut self, from: NodeId, ballot: Ballot, disk: &dyn LogRead) {
        if ballot == self.promised && ballot.node == from && !self.is_stalled() && self.may_lead() {
            self.prepare(disk);
        }
    }

    /// Phase 1a, at a ballot above every one seen.
    pub(crate) fn prepare(&mut self, disk: &dyn LogRead) {
        self.step_down();
        let round = self.promised.round.max(self.round_seen) + 1;
        let ballot = Ballot { round, node: self.id };
        self.raise_promise(ballot);
        self.heard = None;
        let until = self.now + self.draw_timeout();
        let from = self.chosen + 1;
        self.poll_at = until;
        self.role = Role::Preparing(Preparing {
            ballot,
            until,
            since: self.now,
            resend_at: self.now + self.timing.heartbeat,
            promises: BTreeMap::new(),
            refused: BTreeSet::new(),
            from,
            adopted: BTreeMap::new(),
            asked: self.others().into_iter().collect(),
        });
        // One's own promise comes first: a ballot asked for and then forgotten could be used twice.
        for node in self.others() {
            self.send_when_synced(node, Message::Prepare { ballot, from });
        }
        let promise = self.promise_page(ballot, from, disk);
        self.send_when_synced(self.id, promise);
    }

    /// Asks again those that have not reported everything.
    pub(crate) fn resend_prepare(&mut self) {
        let (now, heartbeat) = (self.now, self.timing.heartbeat);
        let Role::Preparing(preparing) = &mut self.role else { return };
        if now < preparing.resend_at {
            return;
        }
        preparing.resend_at = now + heartbeat;
        let (ballot, first) = (preparing.ballot, preparing.from);
        let missing = |node: &NodeId| match preparing.promises.get(node) {
            Some(progress) => progress.next.map(|next| (*node, next)),
            None => Some((*node, first)),
        };
        let asks: Vec<(NodeId, Index)> = preparing.asked.iter().filter_map(missing).collect();
        for (node, from) in asks {
            self.send_when_synced(node, Message::Prepare { ballot, from });
        }
    }

    pub(crate) fn on_promise(&mut self, from: NodeId, ballot: Ballot, page: PromisePage, disk: &dyn LogRead) {
        match &mut self.role {
            Role::Preparing(preparing) if preparing.ballot == ballot => {}
            Role::Leading(leading) if leading.ballot == ballot => {
                leading.learn_chosen(from, page.chosen);
                return self.replicate(from, disk);
            }
            _ => return,
        }
        if let Some(next) = self.take_page(from, page) {
            if from == self.id {
                let own = self.promise_page(ballot, next, disk);
                self.send_when_synced(from, own);
            } else {
                // Not faster than one's own disk takes the pages in.
                self.send_when_synced(from, Message::Prepare { ballot, from: next });
            }
        }
        self.ask_those_found();
        self.lead_if_promised(disk);
    }

    /// A configuration found on the way extends phase 1 to its nodes.
    fn ask_those_found(&mut self) {
        let own = self.id;
        let Role::Preparing(preparing) = &mut self.role else { return };
        let (ballot, from) = (preparing.ballot, preparing.from);
        let found = preparing.adopted.values().flat_map(|entry| match &entry.value {
            Value::Configuration(configuration) => configuration.nodes(),
            Value::Noop | Value::Data(_) => BTreeSet::new(),
        });
        let found: Vec<NodeId> = found.chain(self.nodes.iter().copied()).collect();
        for node in found {
            let is_new = node != own && preparing.asked.insert(node);
            if is_new {
                self.after_sync.push((node, Message::Prepare { ballot, from }));
            }
        }
    }

    /// Keeps of a page what it reports at the highest ballot. Says which page to ask for next.
    fn take_page(&mut self, from: NodeId, page: PromisePage) -> Option<Index> {
        let (now, until) = (self.now, self.now + self.draw_timeout());
        let Role::Preparing(preparing) = &mut self.role else { return None };
        if from != self.id && !preparing.asked.contains(&from) {
            return None;
        }
        let before = preparing.promises.get(&from);
        let expected = before.map_or(Some(preparing.from), |progress| progress.next);
        if expected != Some(page.page) {
            return None;
        }
        if page.first > page.page {
            // This acceptor has dropped what comes next here.
            self.output.needs_snapshot = Some(from);
            return None;
        }
        let answered_at = before.map_or(preparing.since, |progress| progress.asked_at);
        // A long log comes in many pages: whoever gets on need not give up.
        preparing.until = until;
        self.poll_at = until;
        for mut entry in page.entries {
            if entry.index <= page.chosen {
                entry.ballot = Ballot::CHOSEN;
            }
            let best = preparing.adopted.get(&entry.index).map(|best| best.ballot);
            let latest = mutants::is_active(Mutant::LatestReportAdopted);
            if entry.index > self.chosen && best.is_none_or(|best| best < entry.ballot || latest) {
                preparing.adopted.insert(entry.index, entry);
            }
        }
        let progress = Progress { next: page.next, asked_at: now, answered_at, chosen: page.chosen };
        preparing.promises.insert(from, progress);
        self.take_chosen();
        let chosen = self.chosen;
        let Role::Preparing(preparing) = &mut self.role else { return None };
        let progress = preparing.promises.get_mut(&from)?;
        // Others may have told the rest of the chosen prefix meanwhile.
        progress.next = progress.next.map(|next| next.max(chosen + 1));
        progress.next
    }

    /// Takes into the log what is reported chosen and follows the chosen prefix here, without waiting for the
    /// end of phase 1: a node far behind holds a page or two of it in memory, not the whole. The value is
    /// chosen, so it is the only one that this ballot could propose there.
    fn take_chosen(&mut self) {
        while let Role::Preparing(Preparing { ballot, adopted, .. }) = &mut self.role {
            let ballot = *ballot;
            let Some(next) = adopted.first_entry() else { return };
            if *next.key() != self.chosen + 1 || next.get().ballot != Ballot::CHOSEN {
                return;
            }
            let entry = Entry { ballot, ..next.remove() };
            self.accept(entry);
            self.advance_chosen(self.chosen + 1);
        }
    }

    /// Becomes leader once a quorum has reported everything: adopts, fills holes, re-proposes.
    fn lead_if_promised(&mut self, disk: &dyn LogRead) {
        let Role::Preparing(preparing) = &self.role else { return };
        let complete = |node| preparing.promises.get(&node).is_some_and(|p| p.next.is_none());
        // One's own report always counts in: nothing of one's own log may be left at an older ballot.
        let found = preparing.adopted.values().map(|entry| &entry.value);
        if !complete(self.id) || !self.is_promised_by(found, complete) {
            return;
        }
        let reported = preparing.promises.values().map(|progress| progress.chosen);
        let chosen = reported.max().unwrap_or(0).max(self.chosen);
        let has = |index| preparing.adopted.contains_key(&index);
        if !(self.chosen + 1..=chosen).all(has) {
            // Reported chosen, and not seen yet: a page is still to come. Never a hole.
            return;
        }
        if !self.may_lead() {
            // It takes part no longer, as it found: those who do lead.
            return self.step_down();
        }
        let Role::Preparing(preparing) = std::mem::replace(&mut self.role, Role::Follower) else {
            unreachable!("matched above")
        };
        let ballot = preparing.ballot;
        let mut adopted = preparing.adopted;
        if mutants::is_active(Mutant::AdoptedNotReproposed) {
            adopted.retain(|index, _| *index <= chosen);
            self.log.truncate_after(chosen);
        }
        let last = adopted.keys().next_back().map_or(chosen, |last| chosen.max(*last));
        for index in self.chosen + 1..=last {
            let value = adopted.remove(&index).map_or(Value::Noop, |entry| entry.value);
            self.accept(Entry { index, ballot, value });
        }
        self.extend_prefix(ballot);
        self.advance_chosen(chosen);
        let mut leading = Leading::new(ballot, last + 1, &self.nodes, self.now);
        for (node, progress) in preparing.promises {
            leading.promised(node, progress.chosen, progress.answered_at);
        }
        self.role = Role::Leading(leading);
        self.start_leading(disk);
    }

    /// A node promised a higher ballot than this candidate's.
    pub(crate) fn candidate_refused(&mut self, from: NodeId) {
        let Role::Preparing(preparing) = &mut self.role else { return };
        preparing.refused.insert(from);
        let refused = &preparing.refused;
        if !self.quorum.is_phase1_quorum(|node| !refused.contains(&node)) {
            // Whoever holds that ballot may be about to lead: wait for it, a time drawn anew.
            self.poll_at = self.now + self.draw_timeout();
            self.step_down();
        }
    }

    /// Stops leading, preparing or polling; what waited for this leader asks the next one.
    pub(crate) fn step_down(&mut self) {
        if let Role::Leading(_) = self.role {
            self.reads.stop_leading();
            self.poll_at = self.now + self.draw_timeout();
        }
        self.role = Role::Follower;
    }
}
