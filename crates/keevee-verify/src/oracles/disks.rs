//! What must hold of disks: nothing chosen is lost, and nothing promised is taken back. Each engine keeps to its own
//! source: `choices.rs` and `durable.rs` for Multi-Paxos, `commits.rs` and `votes.rs` for Raft.

use bytes::Bytes;
use keevee_paxos::Value;
use keevee_raft::Payload;
use keevee_replica::storage::{LogRecord, LogStore};
use keevee_replica::{Members, records};

use super::{Broken, Choices, Commits, Durable, Votes};
use crate::plan::{EngineKind, Plan};

/// The rules of a run's engine.
pub(crate) enum Disks {
    Paxos { choices: Choices, durable: Durable },
    Raft { commits: Commits, votes: Votes },
}

/// A rule's name, and how it was broken.
type Kept = Result<(), (&'static str, Broken)>;

impl Disks {
    pub(crate) fn new(plan: &Plan, members: &Members) -> Disks {
        let nodes = plan.nodes_max();
        match plan.engine {
            EngineKind::Paxos => {
                Disks::Paxos { choices: Choices::new(nodes, members), durable: Durable::new(nodes) }
            }
            EngineKind::Raft => {
                Disks::Raft { commits: Commits::new(nodes, members), votes: Votes::new(nodes) }
            }
        }
    }

    /// Who decides now: the last members that were chosen.
    pub(crate) fn members(&self) -> &Members {
        match self {
            Disks::Paxos { choices, .. } => choices.members(),
            Disks::Raft { commits, .. } => commits.members(),
        }
    }

    /// True if a submission promises more than a node's disk does.
    pub(crate) fn raises_promise(&self, node: u64, submission: &[LogRecord]) -> bool {
        match self {
            Disks::Paxos { durable, .. } => durable.raises_promise(node, submission),
            Disks::Raft { votes, .. } => votes.raises_vote(node, submission),
        }
    }

    /// True if others may come to rely on a submission: it promises more, or accepts something; or if this node does: it
    /// puts a snapshot in force.
    pub(crate) fn weighs(&self, node: u64, submission: &[LogRecord]) -> bool {
        let counts =
            |record: &LogRecord| matches!(record, LogRecord::Entry { .. } | LogRecord::Incarnation(_));
        let accepts = submission.iter().any(counts);
        accepts || self.raises_promise(node, submission)
    }

    /// True if a submission holds a configuration.
    pub(crate) fn change_members(&self, submission: &[LogRecord]) -> bool {
        submission.iter().any(|record| {
            let LogRecord::Entry { index, bytes } = record else { return false };
            match self {
                Disks::Paxos { .. } => records::decode_entry(*index, bytes.clone())
                    .is_ok_and(|entry| matches!(entry.value, Value::Configuration(_))),
                Disks::Raft { .. } => keevee_raft::records::decode_entry(*index, bytes.clone())
                    .is_ok_and(|entry| matches!(entry.payload, Payload::Members(_))),
            }
        })
    }

    /// A submission has reached a node's disk.
    pub(crate) fn synced(&mut self, node: u64, submission: &[LogRecord]) -> Kept {
        match self {
            Disks::Paxos { choices, durable } => {
                durable.synced(node, submission).map_err(|what| (Durable::NAME, what))?;
                for record in submission {
                    if let LogRecord::Entry { index, bytes } = record
                        && let Ok(entry) = records::decode_entry(*index, bytes.clone())
                    {
                        choices.synced(node, &entry).map_err(|what| (Choices::NAME, what))?;
                    }
                }
                Ok(())
            }
            Disks::Raft { commits, votes } => {
                votes.synced(node, submission).map_err(|what| (Votes::NAME, what))?;
                commits.synced(node, submission).map_err(|what| (Commits::NAME, what))
            }
        }
    }

    /// A replica hands out a value as chosen.
    pub(crate) fn taken_for_chosen(&self, node: u64, index: u64, value: &Option<Bytes>) -> Kept {
        let kept = match self {
            Disks::Paxos { choices, .. } => choices.taken_for_chosen(node, index, value),
            Disks::Raft { commits, .. } => commits.taken_for_chosen(node, index, value),
        };
        kept.map_err(|what| (Choices::NAME, what))
    }

    /// A node starts with this log, of which it has applied so much.
    pub(crate) fn restored(&self, node: u64, applied: u64, log: &impl LogStore) -> Kept {
        let unreadable = |error| (super::REPLICA, format!("node {node} can't start: {error}"));
        let last = log.last().map_err(unreadable)?;
        let stored = log.read(applied + 1, last, usize::MAX).map_err(unreadable)?;
        let kept = match self {
            Disks::Paxos { choices, .. } => {
                let decode = |(index, bytes)| records::decode_entry(index, bytes);
                let entries: Result<Vec<_>, _> = stored.into_iter().map(decode).collect();
                choices.restored(node, applied, &entries.map_err(unreadable)?)
            }
            Disks::Raft { commits, .. } => {
                let decode = |(index, bytes)| keevee_raft::records::decode_entry(index, bytes);
                let entries: Result<Vec<_>, _> = stored.into_iter().map(decode).collect();
                commits.restored(node, applied, &entries.map_err(unreadable)?)
            }
        };
        kept.map_err(|what| (Choices::NAME, what))
    }
}
