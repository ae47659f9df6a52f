//! Writes the log of a shard that is kept: what a replica would have that has just taken over a snapshot of the state copied,
//! of which the new node alone is the configuration, with all entries behind it known to be chosen.
//!
//! Configurations of before do not come into force again: an entry that holds one holds nothing here, which changes the state as
//! little. Nobody else has these entries any more.

use std::collections::BTreeSet;

use keevee_core::shard_map::Consensus;
use keevee_paxos::{Ballot, Configuration, Entry, QuorumSystem, Value};
use keevee_raft::{Configured, LogEntry, LogId, Payload, Vote};
use keevee_replica::storage::StorageError;
use keevee_replica::{Members, records};

use super::ShardSurvey;
use super::plan::Kept;
use crate::storage::{NewFolder, Survivor};

/// Writes the entries that are kept of a shard, and its hard state. `sources` are the folders of its holdings.
pub(super) fn write(
    new: &NewFolder,
    shard: &ShardSurvey,
    kept: &Kept,
    sources: &[&Survivor],
) -> Result<(), StorageError> {
    // Above all that anybody promised or voted for.
    let round = shard.holdings.iter().map(|holding| holding.promised.round).max().unwrap_or(0) + 1;
    match shard.info.consensus {
        Consensus::Paxos => write_paxos(new, shard, kept, sources, round),
        Consensus::Raft => write_raft(new, shard, kept, sources, round),
    }
}

fn write_paxos(
    new: &NewFolder,
    shard: &ShardSurvey,
    kept: &Kept,
    sources: &[&Survivor],
    round: u64,
) -> Result<(), StorageError> {
    let (id, node, applied) = (shard.info.id, new.identity.node_id.0, shard.holdings[kept.base].applied);
    let promised = Ballot { round, node };
    for &(index, from) in &kept.entries {
        let found = match from {
            Some(from) => sources[from].log.entry(id, index)?,
            None => None,
        };
        let entry = match found {
            Some(bytes) => records::decode_entry(index, bytes)?,
            None => Entry { index, ballot: promised, value: Value::Noop },
        };
        let value = match entry.value {
            Value::Configuration(_) => Value::Noop,
            value => value,
        };
        new.write_entry(id, index, &records::encode_entry(&Entry { value, ..entry }))?;
    }
    let quorum = QuorumSystem::Majority([node].into());
    let alone = Configuration { quorum, learners: BTreeSet::new() };
    let state = keevee_paxos::HardState {
        promised,
        chosen: kept.last(&shard.holdings),
        first: applied + 1,
        configuration: Some((applied, alone)),
    };
    new.write_log(id, Consensus::Paxos, &records::encode_hard_state(&state), applied + 1)
}

fn write_raft(
    new: &NewFolder,
    shard: &ShardSurvey,
    kept: &Kept,
    sources: &[&Survivor],
    term: u64,
) -> Result<(), StorageError> {
    let (id, node, base) = (shard.info.id, new.identity.node_id, &shard.holdings[kept.base]);
    let alone = Members::of_voters([node]);
    let start = LogId { term: base.applied_ballot.round, index: base.applied };
    let write =
        |entry: &LogEntry| new.write_entry(id, entry.id.index, &keevee_raft::records::encode_entry(entry));
    let mut last = start;
    for &(index, _) in &kept.entries {
        let Some(bytes) = sources[kept.base].log.entry(id, index)? else {
            let cause = format!("index {index} is missing");
            return Err(StorageError::Corrupt { what: "the log", cause });
        };
        let entry = keevee_raft::records::decode_entry(index, bytes)?;
        let payload = match entry.payload {
            Payload::Members(_) => Payload::Blank,
            payload => payload,
        };
        last = entry.id;
        write(&LogEntry { payload, ..entry })?;
    }
    let is_new = start.index == 0;
    if is_new {
        // Index 0 holds the first members, and is never applied.
        let first = LogId { term: 0, index: 0 };
        write(&LogEntry { id: first, payload: Payload::Members(alone.clone()) })?;
    }
    let configured = Configured { id: start, members: alone };
    let state = keevee_raft::records::HardState {
        vote: Some(Vote { term, node: node.0, committed: false }),
        committed: Some(last),
        purged: (!is_new).then_some(start),
        configurations: if is_new { Vec::new() } else { vec![configured] },
    };
    let first = if is_new { 0 } else { start.index + 1 };
    new.write_log(id, Consensus::Raft, &keevee_raft::records::encode_hard_state(&state), first)
}
