//! Reads what a folder has of a shard, all of it: what is damaged shows before anybody relies on it.

use bytes::Bytes;
use keevee_core::codec;
use keevee_core::command::Action;
use keevee_core::ids::{Namespace, ShardId};
use keevee_core::shard_map::{Consensus, ShardInfo, ShardMap, codec as map_codec};
use keevee_core::slots::SlotSet;
use keevee_paxos::{Ballot, Value};
use keevee_raft::{LogEntry, LogId, Payload};
use keevee_replica::storage::StorageError;
use keevee_replica::{Members, records};

use super::plan::{Accepted, Holding};
use crate::map_keeper::KEY;
use crate::storage::{Survivor, format};

/// What a folder has of a shard; `None` if its node has no replica of it and never had one.
pub(super) fn read(survivor: &Survivor, shard: &ShardInfo) -> Result<Option<Holding>, StorageError> {
    let own_map = survivor.shard_map.as_ref().and_then(|map| map.shard(shard.id));
    let node = survivor.identity.node_id;
    let engine = match survivor.log.engine(shard.id)? {
        Some(engine) => engine,
        // A voter marks its log before it writes anything: this one has accepted nothing yet.
        None if own_map.is_some_and(|own| own.is_on(node)) => shard.consensus,
        None => return Ok(None),
    };
    if engine != shard.consensus {
        let (has, shall) = (engine.name(), shard.consensus.name());
        return Err(corrupt("the log", format!("it is of {has}, the shard of {shall}")));
    }
    let mut holding = read_state(survivor, shard.id)?;
    // The first members are in no hard state, and in the beginning of a log at most, which is dropped in time.
    let first = own_map.filter(|own| own.changes == 0 && own.members.contains(&node));
    let first = first.map(|own| (0, Members::of_voters(own.members.iter().copied())));
    holding.members = first.into_iter().collect();
    match engine {
        Consensus::Paxos => read_paxos(survivor, shard.id, &mut holding)?,
        Consensus::Raft => read_raft(survivor, shard.id, &mut holding)?,
    }
    check_log(survivor, shard.id, &holding)?;
    // What was known to be chosen earlier than the last such counts no more.
    let passed = holding.members.iter().take_while(|(index, _)| *index <= holding.chosen).count();
    holding.members.drain(..passed.saturating_sub(1));
    Ok(Some(holding))
}

fn read_state(survivor: &Survivor, shard: ShardId) -> Result<Holding, StorageError> {
    let incarnation = survivor.log.incarnation(shard)?;
    let mut keys = 0;
    let (mut meta, mut owned) = (None, None);
    survivor.state(shard, incarnation, |key, value| {
        let (kind, ..) = format::snapshot_key(key)?;
        match kind {
            kind if kind == format::DataKind::Meta as u8 => meta = Some(value.to_vec()),
            kind if kind == format::DataKind::Owned as u8 => owned = Some(value.to_vec()),
            kind if kind == format::DataKind::Value as u8 => keys += 1,
            _ => {}
        }
        Ok(())
    })?;
    let node = survivor.identity.node_id;
    let Some(meta) = meta else {
        if incarnation.0 > 0 || keys > 0 {
            return Err(corrupt("the applied state", "its meta is missing".to_owned()));
        }
        return Ok(Holding::empty(node));
    };
    let owned: SlotSet = format::decode_owned(owned.as_deref())?;
    let meta = format::decode_meta(&meta, owned)?;
    Ok(Holding { applied: meta.applied, time: meta.time, keys, ..Holding::empty(node) })
}

fn read_paxos(survivor: &Survivor, shard: ShardId, holding: &mut Holding) -> Result<(), StorageError> {
    let state =
        survivor.log.hard_state(shard)?.map(records::decode_hard_state).transpose()?.unwrap_or_default();
    holding.promised = state.promised;
    holding.chosen = state.chosen.max(holding.applied);
    if let Some((index, configuration)) = state.configuration {
        holding.members = vec![(index, records::members(&configuration))];
    }
    for index in holding.applied + 1..=survivor.log.last(shard)? {
        let Some(bytes) = survivor.log.entry(shard, index)? else { continue };
        let entry = records::decode_entry(index, bytes)?;
        let time = match &entry.value {
            Value::Data(commands) => Some(time_of(index, commands)?),
            Value::Noop | Value::Configuration(_) => None,
        };
        let is_new = holding.members.last().is_none_or(|(known, _)| *known < index);
        let members = records::members_of(&entry).filter(|_| is_new);
        holding.members.extend(members.map(|members| (index, members)));
        holding.entries.push(Accepted { index, ballot: entry.ballot, time });
    }
    Ok(())
}

fn read_raft(survivor: &Survivor, shard: ShardId, holding: &mut Holding) -> Result<(), StorageError> {
    let state = survivor.log.hard_state(shard)?.map(keevee_raft::records::decode_hard_state).transpose()?;
    let state = state.unwrap_or_default();
    let term = state.vote.map_or(0, |vote| vote.term);
    holding.promised = Ballot { round: term, node: state.vote.map_or(0, |vote| vote.node) };
    holding.chosen = state.committed.map_or(0, |committed| committed.index).max(holding.applied);
    let first = state.purged.map_or(0, |purged| purged.index + 1);
    for index in first.min(holding.applied)..=survivor.log.last(shard)? {
        // What is applied counts for its place, and the first of all for the members.
        let is_of_use = index >= holding.applied || index == 0;
        let bytes = if is_of_use { survivor.log.entry(shard, index)? } else { None };
        let Some(bytes) = bytes else { continue };
        let LogEntry { id, payload } = keevee_raft::records::decode_entry(index, bytes)?;
        let ballot = raft_ballot(id);
        if index == holding.applied {
            holding.applied_ballot = ballot;
        }
        let time = match &payload {
            Payload::Data(commands) if index > holding.applied => Some(time_of(index, commands)?),
            _ => None,
        };
        if index == 0
            && let Payload::Members(members) = payload
        {
            holding.members = vec![(0, members)];
        }
        if index > holding.applied {
            holding.entries.push(Accepted { index, ballot, time });
        }
    }
    if let Some(purged) = state.purged.filter(|purged| purged.index == holding.applied) {
        holding.applied_ballot = raft_ballot(purged);
    }
    let later = state.configurations.into_iter().map(|one| (one.id.index, one.members));
    holding.members.extend(later.filter(|(index, _)| *index > 0));
    Ok(())
}

/// As a start checks it: a log that lacks what it had is no witness.
fn check_log(survivor: &Survivor, shard: ShardId, holding: &Holding) -> Result<(), StorageError> {
    let trimmed = survivor.log.trimmed(shard)?;
    let end = survivor.log.last(shard)?.max(trimmed.saturating_sub(1));
    let refused = |cause: String| Err(corrupt("the log", cause));
    if end < holding.applied {
        return refused(format!("it ends at {end}, but entry {} was applied", holding.applied));
    }
    if trimmed > holding.applied + 1 {
        return refused(format!("it starts at {trimmed}, the state is at {}", holding.applied));
    }
    let follows = holding.entries.iter().zip(holding.applied + 1..);
    let end = holding.applied + follows.take_while(|(entry, index)| entry.index == *index).count() as u64;
    if end < holding.chosen {
        return refused(format!("index {} is marked chosen and missing", end + 1));
    }
    match holding.entries.iter().find(|entry| entry.ballot.round > holding.promised.round) {
        Some(entry) => refused(format!("index {} is above the promise", entry.index)),
        None => Ok(()),
    }
}

/// All shard maps that a folder knows of: the one that its node had taken in, and those of the system shard, accepted or
/// applied.
pub(super) fn maps(survivor: &Survivor) -> Result<Vec<ShardMap>, StorageError> {
    let system = ShardId::SYSTEM;
    let incarnation = survivor.log.incarnation(system)?;
    let mut found = Vec::new();
    survivor.state(system, incarnation, |key, value| {
        let (kind, namespace, key) = format::snapshot_key(key)?;
        if (kind, namespace, key) == (format::DataKind::Value as u8, Namespace::DEFAULT, KEY) {
            found.push(format::decode_value(value)?.value);
        }
        Ok(())
    })?;
    let engine = survivor.log.engine(system)?;
    for index in survivor.log.trimmed(system)?..=survivor.log.last(system)? {
        let (Some(engine), Some(bytes)) = (engine, survivor.log.entry(system, index)?) else { continue };
        if let Some(commands) = commands(engine, index, bytes)? {
            let entry = codec::decode_entry(commands).map_err(|error| corrupt(ENTRY, error.to_string()))?;
            let operations = entry.commands.into_iter().flat_map(|command| command.operations);
            found.extend(operations.filter_map(|operation| match operation.action {
                Action::Put { key, value, .. } if key == KEY => Some(value),
                _ => None,
            }));
        }
    }
    let decode = |map| map_codec::decode(map).map_err(|error| corrupt("a shard map", error.to_string()));
    let found: Result<Vec<ShardMap>, StorageError> = found.into_iter().map(decode).collect();
    Ok(found?.into_iter().chain(survivor.shard_map.clone()).collect())
}

/// The commands in an entry, if it holds any.
fn commands(engine: Consensus, index: u64, bytes: Bytes) -> Result<Option<Bytes>, StorageError> {
    Ok(match engine {
        Consensus::Paxos => match records::decode_entry(index, bytes)?.value {
            Value::Data(commands) => Some(commands),
            Value::Noop | Value::Configuration(_) => None,
        },
        Consensus::Raft => match keevee_raft::records::decode_entry(index, bytes)?.payload {
            Payload::Data(commands) => Some(commands),
            Payload::Blank | Payload::Members(_) => None,
        },
    })
}

fn time_of(index: u64, commands: &Bytes) -> Result<u64, StorageError> {
    let entry = codec::decode_entry(commands.clone());
    entry.map(|entry| entry.stamp).map_err(|error| corrupt(ENTRY, format!("index {index}: {error}")))
}

fn raft_ballot(id: LogId) -> Ballot {
    Ballot { round: id.term, node: 0 }
}

fn corrupt(what: &'static str, cause: String) -> StorageError {
    StorageError::Corrupt { what, cause }
}

const ENTRY: &str = "a log entry";
