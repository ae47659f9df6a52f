//! The acceptor and the learner: what every member does, whoever leads.
//!
//! Lamport 2001, section 2.2: an acceptor promises the highest ballot it has seen, and accepts at a
//! ballot unless it promised a higher one. What it says of its log is sent only once that is on disk.

use keevee_mutants::{self as mutants, Mutant};

use crate::ballot::{Ballot, Index, NodeId};
use crate::message::{Entry, LogRead, Message, Record, Value};
use crate::replica::{Heard, Prefix, Replica, Role};

impl Replica {
    /// Phase 1b. The same ballot asked again gets the next page, or the same page again.
    pub(crate) fn on_prepare(&mut self, from: NodeId, ballot: Ballot, index: Index, disk: &dyn LogRead) {
        if ballot.node != from || self.refuse(from, ballot) {
            return;
        }
        if ballot > self.promised {
            self.raise_promise(ballot);
            self.make_way(from);
        }
        let promise = self.promise_page(ballot, index, disk);
        self.send_when_synced(from, promise);
    }

    /// Gives a candidate the time to lead. The leader heard before can count on this node no longer, so it
    /// is no reason to refuse a poll; unless it is the candidate, which then was refused by some other node.
    fn make_way(&mut self, candidate: NodeId) {
        self.poll_at = self.now + self.draw_timeout();
        if self.heard.is_some_and(|heard| heard.ballot.node != candidate) {
            self.heard = None;
        }
    }

    /// One page of what is accepted here. Below the promise nothing changes any more, so that the pages
    /// of one ballot belong together whenever they are read.
    pub(crate) fn promise_page(&self, ballot: Ballot, from: Index, disk: &dyn LogRead) -> Message {
        let last = self.log.last();
        let start = from.max(self.first);
        let entries = self.log.read(start, last, self.page_bytes_max, disk);
        let end = entries.last().map_or(last, |entry| entry.index);
        let next = (end < last).then_some(end + 1);
        Message::Promise { ballot, from, entries, next, chosen: self.chosen, first: self.first }
    }

    /// Phase 2b: accepts what is new, and acknowledges the prefix accepted at this ballot.
    pub(crate) fn on_accept(
        &mut self,
        from: NodeId,
        ballot: Ballot,
        sent_at: u64,
        entries: Vec<Entry>,
        chosen: Index,
    ) {
        if ballot.node != from || self.refuse(from, ballot) {
            return;
        }
        // Accepts come from a leader that had a quorum of promises: connected, until a heartbeat says otherwise.
        let connected = self.heard.is_none_or(|heard| heard.ballot != ballot || heard.connected);
        self.hear(ballot, sent_at, connected);
        if mutants::is_active(Mutant::DuplicateTruncates) {
            let end = entries.last().map_or(0, |entry| entry.index).max(self.chosen);
            if end < self.log.last() {
                self.log.truncate_after(end);
                self.records.push(Record::DropFrom(end + 1));
            }
            self.prefix.through = self.prefix.through.min(self.log.last());
        }
        for entry in entries {
            let known = entry.index <= self.chosen;
            if !known && self.log.ballot_at(entry.index) != Some(ballot) {
                let held = mutants::is_active(Mutant::ConflictNotReplaced)
                    .then(|| self.log.unapplied(entry.index, entry.index, 1).pop())
                    .flatten();
                match held {
                    Some(held) => self.log.insert(Entry { ballot, ..held }),
                    None => self.accept(Entry { ballot, ..entry }),
                }
            }
        }
        self.learn(ballot, chosen);
        let acknowledgement =
            Message::Accepted { ballot, sent_at, through: self.prefix.through, chosen: self.chosen };
        self.send_when_synced(from, acknowledgement);
    }

    /// A leader's sign of life. The answer speaks only of what is on disk, so it need not wait for writes in
    /// progress, but for the promise: a node that answered at a ballot and forgot it would also have forgotten
    /// what it said to be chosen, and the leader would never send that again.
    pub(crate) fn on_heartbeat(
        &mut self,
        from: NodeId,
        ballot: Ballot,
        sent_at: u64,
        chosen: Index,
        connected: bool,
        flushed: Index,
    ) {
        if ballot.node != from || self.refuse(from, ballot) {
            return;
        }
        self.hear(ballot, sent_at, connected);
        self.learn(ballot, chosen);
        self.flushed_everywhere_heard = flushed;
        let synced = self.synced_through();
        let reply = Message::HeartbeatReply {
            ballot,
            sent_at,
            through: self.prefix.through.min(synced),
            chosen: self.chosen.min(synced),
            flushed: self.flushed,
        };
        if self.is_promise_synced() {
            self.send(from, reply);
        } else {
            self.send_when_synced(from, reply);
        }
    }

    /// Marks chosen what the leader of `ballot` says is chosen, as far as it was accepted here at that very
    /// ballot: at an older ballot the value here may be another one.
    pub(crate) fn learn(&mut self, ballot: Ballot, chosen: Index) {
        if ballot != self.promised {
            return;
        }
        self.extend_prefix(ballot);
        let held = |index: &Index| self.log.ballot_at(*index).is_some();
        let through = if mutants::is_active(Mutant::LearnedAtOlderBallot) {
            (self.chosen + 1..).take_while(held).last().unwrap_or(self.chosen)
        } else {
            self.prefix.through
        };
        self.advance_chosen(chosen.min(through));
    }

    /// The leader can't send what comes next here.
    pub(crate) fn on_dropped(&mut self, from: NodeId, ballot: Ballot, first: Index) {
        if ballot == self.promised && ballot.node == from && first > self.chosen + 1 {
            self.output.needs_snapshot = Some(from);
        }
    }

    /// Answers a message below the promise with the promise. True if it was one.
    fn refuse(&mut self, from: NodeId, ballot: Ballot) -> bool {
        let refused = ballot < self.promised;
        if refused {
            self.send(from, Message::Refused { ballot, promised: self.promised });
        }
        refused
    }

    /// Notes that the leader of a ballot not below the promise was alive when it sent this. What comes after a
    /// later message of the leader is no sign of life: it may have been on its way for long.
    fn hear(&mut self, ballot: Ballot, sent_at: u64, connected: bool) {
        if ballot > self.promised {
            self.raise_promise(ballot);
        }
        assert_ne!(ballot.node, self.id, "no other node leads at a ballot of mine");
        if self.heard.is_some_and(|heard| heard.ballot == ballot && heard.sent_at >= sent_at) {
            return;
        }
        let changed = self.heard.is_none_or(|heard| heard.ballot != ballot);
        self.heard = Some(Heard { ballot, at: self.now, sent_at, connected });
        if connected {
            self.role = Role::Follower;
            self.poll_at = self.now + self.draw_timeout();
        }
        if changed {
            self.ask_again();
        }
    }

    /// Promises a ballot, and with it gives up any lower ballot of one's own.
    pub(crate) fn raise_promise(&mut self, ballot: Ballot) {
        assert!(ballot > self.promised);
        self.promised = ballot;
        self.round_seen = self.round_seen.max(ballot.round);
        if matches!(self.role, Role::Leading(_) | Role::Preparing(_)) {
            self.step_down();
        }
    }

    /// Takes an entry into the log, in memory now and on disk with this step's records.
    pub(crate) fn accept(&mut self, entry: Entry) {
        assert!(entry.ballot == self.promised, "accepts only at the ballot promised");
        self.records.push(Record::Accepted(entry.clone()));
        let is_configuration =
            matches!(entry.value, Value::Configuration(_)) || self.has_unchosen_configuration();
        self.log.insert(entry);
        if is_configuration {
            self.look_at_nodes();
        }
    }

    /// Brings the prefix up to date for a ballot.
    pub(crate) fn extend_prefix(&mut self, ballot: Ballot) {
        if self.prefix.ballot != ballot {
            self.prefix = Prefix { ballot, through: self.chosen };
        }
        self.prefix.through = self.prefix.through.max(self.chosen);
        while self.log.ballot_at(self.prefix.through + 1) == Some(ballot) {
            self.prefix.through += 1;
        }
    }
}
