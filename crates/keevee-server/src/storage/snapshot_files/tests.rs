use std::collections::BTreeMap;
use std::path::Path;

use keevee_core::apply::{ShardMeta, StateView, WriteSet};
use keevee_core::command::Versioned;
use keevee_core::ids::Namespace;
use keevee_core::slots::SlotSet;
use keevee_replica::storage::StateStore;
use tempfile::TempDir;

use super::*;
use crate::storage::{RocksState, ValueCache};

const SHARD: ShardId = ShardId(3);

fn data(folder: &Path, create: bool) -> Arc<Database> {
    Arc::new(Database::open(&options::data(create), folder.join("data")).unwrap())
}

fn enter(data: &Arc<Database>, shard: ShardId, incarnation: u32) -> Result<RocksState, StorageError> {
    let values = Arc::new(ValueCache::new(0));
    RocksState::enter(shard, Incarnation(incarnation), Arc::clone(data), values, SlotSet::all())
}

fn put(index: u64, key: &str, value: &str) -> WriteSet {
    let version =
        Versioned { version: index, stamp: index, expires: Some(9), value: value.to_owned().into() };
    WriteSet {
        values: BTreeMap::from([((Namespace(0), key.to_owned().into()), Some(version))]),
        expiries_removed: Vec::new(),
        requests_added: Vec::new(),
        requests_removed: Vec::new(),
        meta: ShardMeta { applied: index, ..ShardMeta::new(SlotSet::all()) },
    }
}

/// A state with so many keys, the last of which was written at that index.
fn filled(data: &Arc<Database>, shard: ShardId, name: &str, keys: u64) -> RocksState {
    let mut state = enter(data, shard, 0).unwrap();
    for index in 1..=keys {
        state.write(put(index, &format!("{name}-{index}"), name)).unwrap();
    }
    state
}

fn all(source: &mut StateSource) -> Vec<SnapshotRecord> {
    let pages = std::iter::from_fn(|| Some(source.read(100).unwrap()).filter(|page| !page.is_empty()));
    pages.flatten().collect()
}

/// Takes a snapshot of one state into the next incarnation of another.
fn take_in(from: &RocksState, into: &RocksState) -> Incarnation {
    let mut target = into.next_incarnation().unwrap();
    let mut source = from.snapshot().unwrap();
    loop {
        let page = source.read(1_000).unwrap();
        if page.is_empty() {
            break target.end();
        }
        target.write(page);
    }
    loop {
        match target.progress() {
            Intake::Ready | Intake::Busy => thread::yield_now(),
            Intake::Done(incarnation) => return incarnation,
            Intake::Failed(error) => panic!("{error}"),
        }
    }
}

fn value(state: &RocksState, key: &str) -> Option<String> {
    let found = state.get(Namespace(0), key.as_bytes()).unwrap();
    found.map(|found| String::from_utf8(found.value.to_vec()).unwrap())
}

#[test]
fn a_snapshot_shows_what_there_was_when_it_was_taken() {
    let folder = TempDir::new().unwrap();
    let data = data(folder.path(), true);
    let mut state = filled(&data, SHARD, "old", 20);
    let _another = filled(&data, ShardId(4), "another", 20);
    let (mut before, mut source) = (state.snapshot().unwrap(), state.snapshot().unwrap());
    let expected = all(&mut before);
    state.write(put(21, "old-1", "new")).unwrap();
    state.write(put(22, "z", "new")).unwrap();
    state.flush().unwrap();
    assert_eq!(all(&mut source), expected);
    assert!(expected.is_sorted() && expected.len() == 20 + 20 + 2, "values, expiries, meta, slots");
}

#[test]
fn a_snapshot_that_was_taken_in_survives_a_crash_and_the_old_state_goes() {
    let (from, into) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let theirs = filled(&data(from.path(), true), SHARD, "new", 3_000);
    let ours = data(into.path(), true);
    let state = filled(&ours, SHARD, "old", 20);
    state.flush().unwrap();
    let incarnation = take_in(&theirs, &state);
    assert_eq!((incarnation, value(&state, "old-1")), (Incarnation(1), Some("old".into())), "not in force");
    // A crash: what was not flushed is gone.
    drop((state, ours));
    let ours = data(into.path(), false);
    let state = enter(&ours, SHARD, 1).unwrap();
    assert_eq!((state.meta().unwrap().applied, state.flushed().unwrap()), (3_000, 3_000));
    assert_eq!((value(&state, "new-3000"), value(&state, "old-1")), (Some("new".into()), None));
    assert!(!into.path().join("incoming").join("3").exists());
    drop(state);
    // At that start the old one was removed.
    let other = RocksState::open(SHARD, Incarnation(0), ours, Arc::new(ValueCache::new(0)), SlotSet::all());
    assert_eq!(value(&other.unwrap(), "old-1"), None);
}

#[test]
fn nothing_of_a_snapshot_that_was_never_in_force_is_in_the_next_one() {
    let (from, into) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let first = filled(&data(&from.path().join("first"), true), SHARD, "first", 50);
    let second = filled(&data(&from.path().join("second"), true), SHARD, "second", 10);
    {
        let ours = data(into.path(), true);
        take_in(&first, &enter(&ours, SHARD, 0).unwrap());
    }
    // It crashed before the log knew of it, and once more after its number was used again.
    {
        let ours = data(into.path(), false);
        let state = enter(&ours, SHARD, 0).unwrap();
        assert_eq!(state.meta().unwrap().applied, 0);
        assert_eq!(take_in(&second, &state), Incarnation(1));
    }
    let ours = data(into.path(), false);
    let state = enter(&ours, SHARD, 1).unwrap();
    assert_eq!(state.meta().unwrap().applied, 10);
    assert_eq!((value(&state, "second-10"), value(&state, "first-20")), (Some("second".into()), None));
}

#[test]
fn a_snapshot_that_is_given_up_leaves_nothing() {
    let folder = TempDir::new().unwrap();
    let data = data(folder.path(), true);
    let state = filled(&data, SHARD, "old", 20);
    let mut target = state.next_incarnation().unwrap();
    target.write(all(&mut state.snapshot().unwrap()));
    let gathered = folder.path().join("incoming").join("3");
    while !gathered.exists() {
        assert_eq!(target.progress(), Intake::Ready);
        thread::yield_now();
    }
    drop(target);
    assert!(!gathered.exists());
    assert_eq!(value(&state, "old-1"), Some("old".into()));
}

#[test]
fn an_incarnation_that_is_in_force_and_is_not_there_is_lost() {
    let folder = TempDir::new().unwrap();
    let data = data(folder.path(), true);
    drop(filled(&data, SHARD, "old", 20));
    assert!(enter(&data, SHARD, 2).unwrap().is_lost());
    assert!(!enter(&data, SHARD, 0).unwrap().is_lost(), "a new one");
}
