//! The read barrier (ReadIndex: Ongaro's dissertation, 6.4): one round serves all reads that waited when it
//! started, and none that came later.
//!
//! openraft confirms the leadership and gives the index; a follower asks the leader for it. A read is ready once
//! the shard has applied that index, not when openraft believes so.

use std::collections::BTreeMap;
use std::time::Duration;

use keevee_core::ids::NodeId;

/// Reads, from their arrival until they may be served.
#[derive(Debug, Default)]
pub(crate) struct Reads {
    waiting: Vec<u64>,
    round: Option<Round>,
    rounds: u64,
    /// By the index that must be applied.
    until: BTreeMap<u64, Vec<u64>>,
    ready: Vec<u64>,
    /// True once a round had no index, until the next tick: a leader that can't tell now can't a moment later.
    is_refused: bool,
}

#[derive(Debug)]
struct Round {
    number: u64,
    reads: Vec<u64>,
    leader: NodeId,
    started: Duration,
}

impl Reads {
    /// Numbers rounds from `first` on, which must differ from life to life as those of requests do.
    pub(crate) fn new(first: u64) -> Reads {
        Reads { rounds: first, ..Reads::default() }
    }

    pub(crate) fn push(&mut self, read: u64) {
        self.waiting.push(read);
    }

    pub(crate) fn cancel(&mut self, read: u64) {
        self.waiting.retain(|waiting| *waiting != read);
        if let Some(round) = &mut self.round {
            round.reads.retain(|waiting| *waiting != read);
        }
        self.until.values_mut().for_each(|reads| reads.retain(|waiting| *waiting != read));
        self.ready.retain(|ready| *ready != read);
    }

    /// Starts a round if reads wait and none is under way: its number.
    pub(crate) fn start(&mut self, now: Duration, leader: NodeId) -> Option<u64> {
        if self.round.is_some() || self.waiting.is_empty() || self.is_refused {
            return None;
        }
        self.rounds += 1;
        let reads = std::mem::take(&mut self.waiting);
        self.round = Some(Round { number: self.rounds, reads, leader, started: now });
        Some(self.rounds)
    }

    /// A replica answered a round. That counts if the round asked it.
    pub(crate) fn answered(&mut self, from: NodeId, number: u64, index: Option<u64>, applied: u64) {
        if self.round.as_ref().is_some_and(|round| round.leader == from) {
            self.end(number, index, applied);
        }
    }

    /// A round has an index, or none: then its reads wait for another.
    fn end(&mut self, number: u64, index: Option<u64>, applied: u64) {
        let Some(round) = self.round.take_if(|round| round.number == number) else { return };
        match index {
            Some(index) if index <= applied => self.ready.extend(round.reads),
            Some(index) => self.until.entry(index).or_default().extend(round.reads),
            None => {
                self.is_refused = true;
                self.waiting.splice(0..0, round.reads).for_each(drop);
            }
        }
    }

    /// With each tick: gives up a round whose leader leads no more, or that has had no answer for so long, and lets the
    /// next one start.
    pub(crate) fn tick(&mut self, now: Duration, leader: Option<NodeId>, limit: Duration) {
        let is_lost = |round: &Round| Some(round.leader) != leader || now >= round.started + limit;
        if let Some(round) = self.round.as_ref().filter(|round| is_lost(round)) {
            self.end(round.number, None, 0);
        }
        self.is_refused = false;
    }

    /// Everything up to an index is applied.
    pub(crate) fn applied(&mut self, index: u64) {
        while let Some(first) = self.until.first_entry()
            && *first.key() <= index
        {
            self.ready.extend(first.remove());
        }
    }

    pub(crate) fn take_ready(&mut self) -> Vec<u64> {
        std::mem::take(&mut self.ready)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Duration = Duration::from_secs(1);
    const LEADER: NodeId = NodeId(2);

    fn reads(numbers: &[u64]) -> Reads {
        let mut reads = Reads::default();
        numbers.iter().for_each(|number| reads.push(*number));
        reads
    }

    #[test]
    fn a_read_never_joins_a_round_that_has_started() {
        let mut reads = reads(&[1, 2]);
        let first = reads.start(NOW, LEADER).expect("a round");
        reads.push(3);
        assert_eq!(reads.start(NOW, LEADER), None);
        reads.end(first, Some(7), 5);
        reads.applied(7);
        assert_eq!(reads.take_ready(), [1, 2]);
        let second = reads.start(NOW, LEADER).expect("another");
        reads.end(second, Some(7), 7);
        assert_eq!(reads.take_ready(), [3]);
    }

    #[test]
    fn reads_of_a_lost_round_wait_for_the_next_and_its_late_answer_is_nothing() {
        let mut reads = reads(&[1]);
        let lost = reads.start(NOW, LEADER).expect("a round");
        reads.tick(NOW, Some(LEADER), Duration::from_secs(1));
        assert_eq!(reads.start(NOW, LEADER), None, "it is not lost yet");
        reads.tick(NOW, Some(NodeId(3)), Duration::from_secs(1));
        reads.push(2);
        let next = reads.start(NOW, NodeId(3)).expect("another");
        reads.answered(NodeId(3), lost, Some(1), 9);
        reads.answered(LEADER, next, Some(1), 9);
        assert!(reads.take_ready().is_empty());
        reads.answered(NodeId(3), next, Some(9), 9);
        assert_eq!(reads.take_ready(), [1, 2]);
    }

    #[test]
    fn a_refused_round_is_tried_again_with_the_next_tick() {
        let mut reads = reads(&[1]);
        let refused = reads.start(NOW, LEADER).expect("a round");
        reads.end(refused, None, 9);
        assert_eq!(reads.start(NOW, LEADER), None, "it would be refused again, for ever");
        reads.tick(NOW, Some(LEADER), Duration::from_secs(1));
        let next = reads.start(NOW, LEADER).expect("another");
        reads.end(next, Some(9), 9);
        assert_eq!(reads.take_ready(), [1]);
    }

    #[test]
    fn a_cancelled_read_is_never_ready() {
        let mut reads = reads(&[1, 2, 3]);
        reads.cancel(1);
        let round = reads.start(NOW, LEADER).expect("a round");
        reads.cancel(2);
        reads.end(round, Some(4), 3);
        reads.cancel(3);
        reads.applied(4);
        assert!(reads.take_ready().is_empty());
    }
}
