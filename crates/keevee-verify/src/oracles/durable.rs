//! Ballots and promises only grow on disk, through all lives of a node.
//!
//! Lamport, *Paxos Made Simple* (2001), section 2.5: stable storage keeps the highest-numbered prepare request that
//! an acceptor answered. A store that forgets one counts the same acceptor twice (hashicorp/raft's vote after
//! a restart, and P8 of every Paxos).

use std::collections::BTreeMap;

use keevee_paxos::{Ballot, HardState};
use keevee_replica::records;
use keevee_replica::storage::LogRecord;

use super::{Broken, of_nodes};

#[derive(Clone, Default)]
struct Node {
    promised: Ballot,
    chosen: u64,
    first: u64,
    /// Where its configuration in force stands in the log.
    configured: Option<u64>,
    ballots: BTreeMap<u64, Ballot>,
}

pub(crate) struct Durable {
    nodes: Vec<Node>,
}

impl Durable {
    pub(crate) const NAME: &str = "promises only grow on disk";

    pub(crate) fn new(nodes: u64) -> Durable {
        Durable { nodes: of_nodes(nodes) }
    }

    /// True if a submission promises more than a node's disk does.
    pub(crate) fn raises_promise(&self, node: u64, submission: &[LogRecord]) -> bool {
        let promised = self.nodes[node as usize].promised;
        submission.iter().any(|record| match record {
            LogRecord::HardState(bytes) => {
                records::decode_hard_state(bytes.clone()).is_ok_and(|state| state.promised > promised)
            }
            _ => false,
        })
    }

    /// A submission has reached a node's disk.
    pub(crate) fn synced(&mut self, node: u64, submission: &[LogRecord]) -> Result<(), Broken> {
        let disk = &mut self.nodes[node as usize];
        let mut highest = Ballot::ZERO;
        for record in submission {
            match record {
                LogRecord::Entry { index, bytes } => {
                    let entry = records::decode_entry(*index, bytes.clone()).map_err(|e| e.to_string())?;
                    let before = disk.ballots.insert(*index, entry.ballot).unwrap_or_default();
                    if before > entry.ballot {
                        let after = entry.ballot;
                        return Err(format!(
                            "node {node}: index {index} went from ballot {before} to {after}"
                        ));
                    }
                    highest = highest.max(entry.ballot);
                }
                LogRecord::HardState(bytes) => {
                    let after = records::decode_hard_state(bytes.clone()).map_err(|e| e.to_string())?;
                    let (promised, chosen, first) = (disk.promised, disk.chosen, disk.first);
                    let place = |state: &HardState| state.configuration.as_ref().map(|(place, _)| *place);
                    let grew = after.promised >= promised
                        && after.chosen >= chosen
                        && after.first >= first
                        && place(&after) >= disk.configured;
                    if !grew {
                        return Err(format!(
                            "node {node}: its disk went from promise {promised}, chosen {chosen}, first {first}, \
                             configuration {:?} to {after:?}",
                            disk.configured
                        ));
                    }
                    disk.configured = place(&after);
                    (disk.promised, disk.chosen, disk.first) = (after.promised, after.chosen, after.first);
                }
                LogRecord::DropBelow(first) => disk.ballots = disk.ballots.split_off(first),
                LogRecord::Incarnation(_) => {}
                LogRecord::DropFrom(index) => {
                    if let Some((forgotten, ballot)) = disk.ballots.split_off(index).into_iter().next() {
                        return Err(format!(
                            "node {node}: its disk forgets what it accepted at index {forgotten} and ballot {ballot}"
                        ));
                    }
                }
            }
        }
        if highest > disk.promised {
            let promised = disk.promised;
            return Err(format!("node {node}: its disk accepts at {highest} and promises {promised} only"));
        }
        Ok(())
    }
}
