//! What of a shard is kept, given what folders have of it: a function of summaries, which reads nothing.
//!
//! *Multi-Paxos*: of each index, the entry that was accepted at the highest ballot, as phase 1 adopts it. If a quorum chose an
//! entry and any of its acceptors is here, that is the one: what is accepted later has the same value. The state is the one
//! that has applied the most; every log begins at or before it, or its own state would have applied more.
//! *Raft*: the log whose last entry is of the highest term, the longest of these, as voters compare them (Ongaro 2014, section
//! 3.6.1), with its own state. It has every committed entry that any log here has.
//!
//! If the voters that are here are a quorum of each configuration that may have been in force, one of them has whatever was
//! acknowledged. If not, what only the lost ones had is lost, and nobody can tell how much that is.

use std::collections::BTreeSet;

use keevee_core::ids::NodeId;
use keevee_core::shard_map::Consensus;
use keevee_paxos::Ballot;
use keevee_replica::Members;

/// What one folder has of one shard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holding {
    /// Whose folder.
    pub node: NodeId,
    /// How far its state has applied the log.
    pub applied: u64,
    /// Shard time there, in microseconds since the Unix epoch.
    pub time: u64,
    /// How many keys its state has, those included that have expired and are not removed.
    pub keys: u64,
    /// Up to here it knows entries to be chosen.
    pub chosen: u64,
    /// What it has promised or voted for; of Raft, the term as the round.
    pub promised: Ballot,
    /// The ballot of the entry at `applied`; of Raft only.
    pub applied_ballot: Ballot,
    /// Its entries behind `applied`, in order.
    pub entries: Vec<Accepted>,
    /// The last configuration that it knows to be chosen, and those behind that, each with its index.
    pub members: Vec<(u64, Members)>,
}

/// An entry, but for what it says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Accepted {
    /// Its place.
    pub index: u64,
    /// At which ballot it was accepted; of Raft, its term as the round.
    pub ballot: Ballot,
    /// When it was proposed, if it holds commands: in microseconds since the Unix epoch.
    pub time: Option<u64>,
}

impl Holding {
    /// Of a node that has nothing yet.
    pub fn empty(node: NodeId) -> Holding {
        let (promised, applied_ballot) = (Ballot::ZERO, Ballot::ZERO);
        let (entries, members) = (Vec::new(), Vec::new());
        Holding { node, applied: 0, time: 0, keys: 0, chosen: 0, promised, applied_ballot, entries, members }
    }

    /// The index of its last entry.
    pub fn last(&self) -> u64 {
        self.entries.last().map_or(self.applied, |entry| entry.index)
    }

    /// How old its newest entry is, as voters of Raft compare it.
    fn last_id(&self) -> (u64, u64) {
        let ballot = self.entries.last().map_or(self.applied_ballot, |entry| entry.ballot);
        (ballot.round, self.last())
    }

    fn entry(&self, index: u64) -> Option<&Accepted> {
        self.entries.binary_search_by_key(&index, |entry| entry.index).ok().map(|at| &self.entries[at])
    }
}

/// What is kept of a shard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kept {
    /// Whose state: its place among the holdings.
    pub base: usize,
    /// The entries behind it: from which of the holdings. None has an entry where a hole is; no quorum can have chosen one
    /// there if the holdings are one.
    pub entries: Vec<(u64, Option<usize>)>,
    /// What is up to here was chosen.
    pub chosen: u64,
    /// The time of the last entry kept.
    pub time: u64,
    /// Who decided: the voters of all configurations that may have been in force.
    pub voters: BTreeSet<NodeId>,
    /// True if nothing can be lost that was acknowledged.
    pub is_complete: bool,
}

impl Kept {
    /// The index of the last entry kept.
    pub fn last(&self, holdings: &[Holding]) -> u64 {
        self.entries.last().map_or(holdings[self.base].applied, |(index, _)| *index)
    }
}

/// What is kept of a shard of which there are these holdings; `None` if there is none.
pub fn plan(consensus: Consensus, holdings: &[Holding]) -> Option<Kept> {
    let at = |at: &usize| &holdings[*at];
    let all = 0..holdings.len();
    let base = match consensus {
        Consensus::Paxos => {
            all.max_by_key(|place| (at(place).applied, at(place).chosen, at(place).last()))?
        }
        Consensus::Raft => all.max_by_key(|place| (at(place).last_id(), at(place).applied))?,
    };
    let entries: Vec<(u64, Option<usize>)> = match consensus {
        Consensus::Paxos => {
            let last = holdings.iter().map(Holding::last).max().unwrap_or(0);
            (holdings[base].applied + 1..=last).map(|index| (index, highest(holdings, index))).collect()
        }
        Consensus::Raft => holdings[base].entries.iter().map(|entry| (entry.index, Some(base))).collect(),
    };
    let kept = |(index, from): &(u64, Option<usize>)| holdings[(*from)?].entry(*index);
    let times = entries.iter().filter_map(|one| kept(one)?.time);
    let time = times.chain([holdings[base].time]).max().unwrap_or(0);
    let configurations = configurations(consensus, holdings, base, &entries);
    let is_here = |node| holdings.iter().any(|holding| holding.node == node);
    let is_complete = !configurations.is_empty() && configurations.iter().all(|one| one.is_quorum(is_here));
    let voters = configurations.iter().flat_map(|one| one.voters.iter().chain(one.next.iter().flatten()));
    let chosen = holdings.iter().map(|holding| holding.chosen.max(holding.applied)).max().unwrap_or(0);
    Some(Kept { base, chosen, time, voters: voters.copied().collect(), is_complete, entries })
}

/// Which of the holdings has the entry of the highest ballot at an index.
fn highest(holdings: &[Holding], index: u64) -> Option<usize> {
    let found =
        holdings.iter().enumerate().filter_map(|(at, holding)| Some((holding.entry(index)?.ballot, at)));
    found.max().map(|(_, at)| at)
}

/// All that may have been in force since the last one known to be chosen: a quorum of each has to be here. What nobody here
/// knows of was not chosen by a quorum of the one before, if that is here.
fn configurations<'a>(
    consensus: Consensus,
    holdings: &'a [Holding],
    base: usize,
    entries: &[(u64, Option<usize>)],
) -> Vec<&'a Members> {
    if consensus == Consensus::Raft {
        return holdings[base].members.iter().map(|(_, members)| members).collect();
    }
    let known = holdings.iter().filter_map(|holding| holding.members.first());
    let Some((place, in_force)) = known.max_by_key(|(place, _)| *place) else { return Vec::new() };
    let later = entries.iter().filter(|(index, _)| index > place).filter_map(|(index, from)| {
        let found = holdings[(*from)?].members.iter().find(|(at, _)| at == index);
        found.map(|(_, members)| members)
    });
    [in_force].into_iter().chain(later).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nodes<const N: usize>(nodes: [u64; N]) -> BTreeSet<NodeId> {
        nodes.map(NodeId).into()
    }

    fn ballot(round: u64) -> Ballot {
        Ballot { round, node: 1 }
    }

    /// A voter of three whose state stands at `applied`, with entries behind it of these ballots.
    fn holding<const N: usize>(node: u64, applied: u64, rounds: [u64; N]) -> Holding {
        let entry = |(index, round)| Accepted { index, ballot: ballot(round), time: Some(index * 10) };
        Holding {
            applied,
            time: applied * 10,
            chosen: applied,
            applied_ballot: ballot(1),
            entries: (applied + 1..).zip(rounds).map(entry).collect(),
            members: vec![(0, Members::of_voters([1, 2, 3].map(NodeId)))],
            ..Holding::empty(NodeId(node))
        }
    }

    fn kept(consensus: Consensus, holdings: &[Holding]) -> (usize, Vec<Option<usize>>, bool) {
        let kept = plan(consensus, holdings).expect("there are some");
        (kept.base, kept.entries.iter().map(|(_, from)| *from).collect(), kept.is_complete)
    }

    #[test]
    fn what_nobody_has_is_not_kept() {
        assert_eq!(plan(Consensus::Paxos, &[]), None);
        assert_eq!(plan(Consensus::Raft, &[]), None);
    }

    #[test]
    fn one_of_three_keeps_its_whole_log_and_says_that_more_may_be_lost() {
        for consensus in [Consensus::Paxos, Consensus::Raft] {
            let one = [holding(2, 4, [1, 1, 2])];
            let found = plan(consensus, &one).expect("there is one");
            assert_eq!(found.entries, [(5, Some(0)), (6, Some(0)), (7, Some(0))]);
            assert_eq!((found.chosen, found.last(&one), found.time), (4, 7, 70));
            assert_eq!((found.voters, found.is_complete), (nodes([1, 2, 3]), false));
        }
    }

    #[test]
    fn of_each_index_paxos_keeps_what_was_accepted_last() {
        // Node 2 has applied more; node 1 has a longer log, node 2 a newer entry in the middle of it.
        let two = [holding(1, 3, [1, 1, 1, 1]), holding(2, 4, [2])];
        assert_eq!(kept(Consensus::Paxos, &two), (1, vec![Some(1), Some(0), Some(0)], true));
        let other_order = [two[1].clone(), two[0].clone()];
        assert_eq!(kept(Consensus::Paxos, &other_order), (0, vec![Some(0), Some(1), Some(1)], true));
    }

    #[test]
    fn a_hole_in_all_paxos_logs_is_a_hole() {
        let mut two = [holding(1, 0, [1, 1, 1]), holding(2, 0, [1])];
        two[0].entries.remove(1);
        assert_eq!(kept(Consensus::Paxos, &two), (0, vec![Some(1), None, Some(0)], true));
    }

    #[test]
    fn raft_keeps_one_log_and_the_newest_entry_counts_before_the_length() {
        let two = [holding(1, 3, [1, 1, 1, 1]), holding(2, 2, [1, 2])];
        assert_eq!(kept(Consensus::Raft, &two), (1, vec![Some(1), Some(1)], true));
        let two = [holding(1, 3, [2, 2]), holding(2, 4, [2, 2])];
        assert_eq!(kept(Consensus::Raft, &two), (1, vec![Some(1), Some(1)], true));
        // All of it is applied, and of a later term than what the other has more.
        let mut two = [holding(1, 3, [1, 1]), holding(2, 4, [])];
        two[1].applied_ballot = ballot(2);
        assert_eq!(kept(Consensus::Raft, &two), (1, vec![], true));
    }

    #[test]
    fn of_a_change_under_way_a_quorum_of_both_sides_is_needed() {
        let joint = Members { next: Some(nodes([3, 4, 5])), ..Members::of_voters([1, 2, 3].map(NodeId)) };
        for consensus in [Consensus::Paxos, Consensus::Raft] {
            let with_joint = |node| {
                let mut holding = holding(node, 4, [1, 1]);
                holding.members.push((5, joint.clone()));
                holding
            };
            let old = [with_joint(1), with_joint(2)];
            let found = plan(consensus, &old).expect("there are some");
            assert_eq!((found.voters, found.is_complete), (nodes([1, 2, 3, 4, 5]), false));
            assert!(kept(consensus, &[with_joint(2), with_joint(3), with_joint(4)]).2);
            // It is behind: it knows who decided before, and counts for nothing more.
            let behind = [holding(1, 2, [1]), with_joint(2)];
            assert!(!kept(consensus, &behind).2);
        }
    }

    #[test]
    fn who_takes_part_no_longer_counts_for_nothing() {
        for consensus in [Consensus::Paxos, Consensus::Raft] {
            let mut newer = holding(4, 4, [2]);
            newer.members = vec![(3, Members::of_voters([4, 5, 6].map(NodeId)))];
            let three = [holding(1, 2, [1]), holding(2, 2, [1]), newer];
            let found = plan(consensus, &three).expect("there are some");
            assert_eq!((found.voters, found.is_complete), (nodes([4, 5, 6]), false));
        }
    }

    #[test]
    fn one_that_does_not_know_who_decides_is_not_enough() {
        for consensus in [Consensus::Paxos, Consensus::Raft] {
            let newcomer = Holding { members: Vec::new(), ..holding(4, 0, []) };
            assert!(!kept(consensus, &[newcomer]).2);
        }
    }
}
