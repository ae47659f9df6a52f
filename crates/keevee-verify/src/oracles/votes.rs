//! Votes only grow on disk, through all lives of a node; nobody votes for two candidates in one term, no term has two
//! leaders, and what a node knows to be chosen it never drops.
//!
//! Ongaro and Ousterhout, *In Search of an Understandable Consensus Algorithm* (2014): 5.1 (the term never goes back),
//! 5.2 (one vote each term, election safety). hashicorp/raft once forgot a vote in a restart.

use std::collections::BTreeMap;

use keevee_raft::Vote;
use keevee_raft::records::{self, HardState};
use keevee_replica::storage::LogRecord;

use super::{Broken, of_nodes};

pub(crate) struct Votes {
    disks: Vec<HardState>,
    /// Of each term: who leads, as disks tell.
    leaders: BTreeMap<u64, u64>,
}

impl Votes {
    pub(crate) const NAME: &str = "votes only grow on disk";

    pub(crate) fn new(nodes: u64) -> Votes {
        Votes { disks: of_nodes(nodes), leaders: BTreeMap::new() }
    }

    /// True if a submission votes for more than a node's disk does.
    pub(crate) fn raises_vote(&self, node: u64, submission: &[LogRecord]) -> bool {
        let voted = self.disks[node as usize].vote;
        submission.iter().any(|record| match record {
            LogRecord::HardState(bytes) => {
                records::decode_hard_state(bytes.clone()).is_ok_and(|state| state.vote != voted)
            }
            _ => false,
        })
    }

    /// A submission has reached a node's disk.
    pub(crate) fn synced(&mut self, node: u64, submission: &[LogRecord]) -> Result<(), Broken> {
        for record in submission {
            let before = self.disks[node as usize].clone();
            match record {
                LogRecord::HardState(bytes) => {
                    let after = records::decode_hard_state(bytes.clone()).map_err(|e| e.to_string())?;
                    let grew = before
                        .vote
                        .is_none_or(|before| after.vote.is_some_and(|after| follows(before, after)))
                        && after.committed >= before.committed
                        && after.purged >= before.purged;
                    if !grew {
                        return Err(format!("node {node}: its disk went from {before:?} to {after:?}"));
                    }
                    let vote = after.vote.filter(|vote| vote.committed);
                    self.disks[node as usize] = after;
                    if let Some(vote) = vote {
                        self.note_leader(node, vote)?;
                    }
                }
                LogRecord::Entry { index, bytes } => {
                    let entry = records::decode_entry(*index, bytes.clone()).map_err(|e| e.to_string())?;
                    let voted = before.vote.map_or(0, |vote| vote.term);
                    if entry.id.term > voted {
                        let term = entry.id.term;
                        return Err(format!(
                            "node {node}: its disk holds an entry of term {term} in term {voted}"
                        ));
                    }
                }
                LogRecord::DropFrom(from) => {
                    if let Some(committed) = before.committed.filter(|committed| *from <= committed.index) {
                        return Err(format!(
                            "node {node}: its disk drops index {from}, and knows {committed} to be chosen"
                        ));
                    }
                }
                LogRecord::DropBelow(_) | LogRecord::Incarnation(_) => {}
            }
        }
        Ok(())
    }

    fn note_leader(&mut self, node: u64, vote: Vote) -> Result<(), Broken> {
        let leader = *self.leaders.entry(vote.term).or_insert(vote.node);
        if leader == vote.node {
            return Ok(());
        }
        Err(format!(
            "nodes {leader} and {} both lead in term {}, says the disk of node {node}",
            vote.node, vote.term
        ))
    }
}

/// True if a disk's vote may become another: of a later term, or that for whoever leads in this one.
fn follows(before: Vote, after: Vote) -> bool {
    let same = after.node == before.node && after.committed >= before.committed;
    after.term > before.term || after.term == before.term && (same || after.committed && !before.committed)
}
