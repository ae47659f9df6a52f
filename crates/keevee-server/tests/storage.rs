//! The storage room through its public face: folders, crashes, damage. A crash is a copy of the folder
//! of a live node: what a killed process leaves behind.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader};
use std::ops::ControlFlow;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver};

use bytes::Bytes;
use keevee_core::apply::{ShardMeta, StateView, WriteSet};
use keevee_core::command::Versioned;
use keevee_core::ids::{Incarnation, Namespace, NodeId, ShardId};
use keevee_core::range::KeyRange;
use keevee_core::requests::{RequestId, RequestRecord};
use keevee_core::shard_map::change::{Placement, ShardSpec};
use keevee_core::shard_map::{Consensus, NodeInfo, ShardMap};
use keevee_core::slots::SlotSet;
use keevee_replica::storage::{LogRecord, LogStore, StateStore};
use keevee_server::storage::{
    DataFolder, FolderError, Identity, LogEvent, LogWriter, LogWriterHandle, OpenFolder, RocksLog,
    RocksState, StoreId, ValueCache, format,
};
use tempfile::TempDir;
use uuid::Uuid;

const SHARDS: [ShardId; 2] = [ShardId(1), ShardId(2)];

/// With some map: what it says is not looked at here.
fn set_first_members(path: &Path, members: &[(NodeId, StoreId)]) -> Result<(), FolderError> {
    let node = NodeInfo {
        id: NodeId(1),
        store: StoreId(Uuid::from_u128(1)),
        peer: "p".into(),
        http: "h".into(),
        resp: None,
    };
    let placement = Placement::Spread { replicas: 1 };
    let spec = ShardSpec { name: None, load_factor: 1, consensus: Consensus::Paxos, placement };
    let map = ShardMap::bootstrap(vec![node], Consensus::Paxos, &[spec]).unwrap();
    DataFolder::set_first_members(path, members, &map)
}

fn formatted(path: &Path, node: u64) -> Identity {
    DataFolder::format(path, Uuid::from_u128(1), NodeId(node)).unwrap()
}

/// Formats a folder for a cluster of one.
fn ready(path: &Path) -> Identity {
    let identity = formatted(path, 1);
    set_first_members(path, &[(identity.node_id, identity.store_id)]).unwrap();
    identity
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for file in fs::read_dir(from).unwrap() {
        let file = file.unwrap();
        let target = to.join(file.file_name());
        if file.path().is_dir() {
            copy(&file.path(), &target);
        } else {
            fs::copy(file.path(), target).unwrap();
        }
    }
}

/// The only segment of a journal that is as yet short.
fn segment(folder: &Path) -> PathBuf {
    folder.join("journal/1.segment")
}

fn value(index: u64) -> Versioned {
    Versioned { version: index, stamp: index, expires: None, value: format!("value {index}").into() }
}

fn request(index: u64) -> RequestRecord {
    let outcome = Bytes::from_static(b"done");
    RequestRecord { time: index, id: RequestId::Timed(index.into()), payload_hash: 1, outcome }
}

/// What entry `index` changes: it sets a key of its own and one that every entry sets, remembers its
/// request and forgets the one three entries back.
fn write_set(index: u64) -> WriteSet {
    let own_key = Bytes::from(format!("key {index}"));
    let values = [(own_key, Some(value(index))), (Bytes::from_static(b"all"), Some(value(index)))];
    let values = values.into_iter().map(|(key, value)| ((Namespace::DEFAULT, key), value));
    WriteSet {
        values: values.collect(),
        expiries_removed: Vec::new(),
        requests_added: vec![request(index)],
        requests_removed: if index > 3 { vec![request(index - 3)] } else { Vec::new() },
        meta: ShardMeta {
            applied: index,
            time: index,
            version: 2 * index,
            chain: index.into(),
            owned: SlotSet::all(),
            request_horizon: 0,
            expiring: 0,
        },
    }
}

/// A node's storage, running.
struct Node {
    folder: OpenFolder,
    values: Arc<ValueCache>,
    writer: LogWriter,
    handle: LogWriterHandle,
    events: Receiver<LogEvent>,
}

impl Node {
    fn start(path: &Path) -> Node {
        let (folder, journal) = DataFolder::open(path).unwrap();
        let (events_in, events) = mpsc::channel();
        let on_event = move |event| {
            let _ = events_in.send(event);
        };
        let (writer, handle) = LogWriter::start(journal, on_event).unwrap();
        let values = Arc::new(ValueCache::new(1 << 20));
        Node { folder, values, writer, handle, events }
    }

    fn log(&self, shard: ShardId) -> RocksLog {
        RocksLog::open(shard, self.folder.log.clone(), self.handle.clone()).unwrap()
    }

    fn state(&self, shard: ShardId) -> RocksState {
        let data = self.folder.data.clone();
        RocksState::open(shard, Incarnation(0), data, self.values.clone(), SlotSet::all()).unwrap()
    }

    /// Appends entries one by one, each synced before the next.
    fn append(&self, log: &mut RocksLog, indexes: std::ops::RangeInclusive<u64>) {
        for index in indexes {
            let entry = LogRecord::Entry { index, bytes: format!("entry {index}").into() };
            log.submit(vec![entry], index);
            self.wait_for(index);
            log.persisted(index);
        }
    }

    fn wait_for(&self, wanted: u64) {
        let mut seen = 0;
        while seen < wanted {
            match self.events.recv().unwrap() {
                LogEvent::Persisted { token, .. } => seen = token,
                LogEvent::Synced { .. } | LogEvent::WritesOutSoon => {}
                LogEvent::Failed { error } => panic!("{error}"),
            }
        }
    }

    fn stop(self) {
        drop(self.handle);
        assert!(self.writer.join());
    }
}

/// A folder whose log has 10 synced entries of shard 1 and nothing applied, as a crash leaves it.
fn crashed_log() -> (TempDir, PathBuf) {
    let temp = TempDir::new().unwrap();
    let live = temp.path().join("live");
    ready(&live);
    let node = Node::start(&live);
    let mut log = node.log(SHARDS[0]);
    node.append(&mut log, 1..=10);
    let image = temp.path().join("image");
    copy(&live, &image);
    drop(log);
    node.stop();
    (temp, image)
}

fn check_state(state: &RocksState, applied: u64, entries: u64) {
    assert_eq!(state.meta().unwrap().applied, applied);
    let get = |key: &str| state.get(Namespace::DEFAULT, key.as_bytes()).unwrap();
    for index in 1..=entries {
        let expected = (index <= applied).then(|| value(index));
        assert_eq!(get(&format!("key {index}")), expected, "entry {index}, applied {applied}");
    }
    assert_eq!(get("all"), (applied > 0).then(|| value(applied)));
    let requests: Vec<RequestRecord> = (applied.saturating_sub(2).max(1)..=applied).map(request).collect();
    assert_eq!(state.requests().unwrap(), requests);
}

#[test]
fn a_formatted_folder_opens_as_what_it_was_formatted() {
    let temp = TempDir::new().unwrap();
    let path = temp.path().join("a/b/c");
    let identity = formatted(&path, 7);
    assert_eq!(identity.node_id, NodeId(7));
    let other = StoreId(Uuid::from_u128(9));
    let members = [(NodeId(8), other), (NodeId(7), identity.store_id)];
    set_first_members(&path, &members).unwrap();
    let (folder, _journal) = DataFolder::open(&path).unwrap();
    assert_eq!(folder.identity, identity);
    assert_eq!(folder.first_members, [(NodeId(7), identity.store_id), (NodeId(8), other)]);
    let text = fs::read_to_string(path.join("identity.json")).unwrap();
    assert!(text.contains(&identity.store_id.to_string()));
}

#[test]
fn each_format_mints_a_store_id() {
    let temp = TempDir::new().unwrap();
    let first = formatted(&temp.path().join("a"), 1);
    assert_ne!(first.store_id, formatted(&temp.path().join("b"), 1).store_id);
}

#[test]
fn a_used_folder_is_not_formatted() {
    let temp = TempDir::new().unwrap();
    let path = temp.path().join("node");
    let identity = ready(&path);
    let again = DataFolder::format(&path, Uuid::from_u128(1), NodeId(1));
    assert!(matches!(again, Err(FolderError::AlreadyFormatted { identity: found, .. }) if found == identity));
    fs::write(temp.path().join("file"), "mine").unwrap();
    let not_empty = DataFolder::format(temp.path(), Uuid::from_u128(1), NodeId(1));
    assert!(matches!(not_empty, Err(FolderError::NotEmpty { .. })));
}

#[test]
fn an_unformatted_folder_does_not_open_and_says_what_to_do() {
    let temp = TempDir::new().unwrap();
    for path in [temp.path().to_owned(), temp.path().join("absent")] {
        let error = DataFolder::open(&path).unwrap_err();
        assert!(matches!(error, FolderError::NotFormatted { .. }));
        assert!(error.to_string().contains("keevee init"));
        assert!(set_first_members(&path, &[]).is_err());
    }
    assert_eq!(fs::read_dir(temp.path()).unwrap().count(), 0);
}

#[test]
fn an_interrupted_format_is_refused_until_the_folder_is_emptied() {
    let temp = TempDir::new().unwrap();
    let path = temp.path().join("node");
    formatted(&path, 1);
    // What is there before the last step of formatting, backwards to nothing.
    fs::rename(path.join("identity.json"), path.join("identity.json.unfinished")).unwrap();
    for part in ["identity.json.unfinished", "journal", "log", "data"] {
        let error = DataFolder::open(&path).unwrap_err();
        assert!(matches!(error, FolderError::Interrupted { .. }), "{error}");
        let error = DataFolder::format(&path, Uuid::from_u128(1), NodeId(1)).unwrap_err();
        assert!(matches!(error, FolderError::Interrupted { .. } | FolderError::NotEmpty { .. }), "{error}");
        let part = path.join(part);
        if part.is_dir() { fs::remove_dir_all(part) } else { fs::remove_file(part) }.unwrap();
    }
    ready(&path);
    DataFolder::open(&path).unwrap();
}

#[test]
fn first_members_are_set_once_and_name_this_node() {
    let temp = TempDir::new().unwrap();
    let identity = formatted(temp.path(), 1);
    let own = (NodeId(1), identity.store_id);
    let other = (NodeId(2), StoreId(Uuid::from_u128(2)));
    assert!(matches!(DataFolder::open(temp.path()), Err(FolderError::NoFirstMembers { .. })));
    let wrong: [&[_]; 5] =
        [&[], &[other], &[own, own], &[own, (NodeId(1), other.1)], &[own, (NodeId(2), own.1)]];
    for members in wrong {
        let refused = set_first_members(temp.path(), members);
        assert!(matches!(refused, Err(FolderError::FirstMembersInvalid { .. })));
    }
    set_first_members(temp.path(), &[own, other]).unwrap();
    set_first_members(temp.path(), &[other, own]).unwrap();
    drop(DataFolder::open(temp.path()).unwrap());
    set_first_members(temp.path(), &[own, other]).unwrap();
    let changed = set_first_members(temp.path(), &[own]);
    assert!(matches!(changed, Err(FolderError::FirstMembersSet { members, .. }) if members.len() == 2));
}

#[test]
fn a_folder_in_use_is_refused_and_free_again_afterwards() {
    let temp = TempDir::new().unwrap();
    ready(temp.path());
    let folder = DataFolder::open(temp.path()).unwrap();
    let error = DataFolder::open(temp.path()).unwrap_err();
    let pid = std::process::id().to_string();
    assert!(matches!(&error, FolderError::Locked { pid: found, .. } if *found == pid));
    assert!(error.to_string().contains(&format!("(pid {pid})")));
    assert!(matches!(set_first_members(temp.path(), &[]), Err(FolderError::Locked { .. })));
    drop(folder);
    DataFolder::open(temp.path()).unwrap();
}

#[test]
fn parts_of_different_folders_do_not_open() {
    for part in ["log", "data", "identity.json"] {
        let temp = TempDir::new().unwrap();
        let [one, other] = ["one", "other"].map(|name| temp.path().join(name));
        ready(&one);
        ready(&other);
        fs::rename(one.join(part), temp.path().join("kept")).unwrap();
        fs::rename(other.join(part), one.join(part)).unwrap();
        let error = DataFolder::open(&one).unwrap_err();
        assert!(matches!(error, FolderError::IdentityMismatch { .. }), "{part}: {error}");
    }
}

#[test]
fn an_empty_or_missing_database_never_opens_under_the_old_identity() {
    for database in ["log", "data"] {
        let temp = TempDir::new().unwrap();
        ready(temp.path());
        fs::remove_dir_all(temp.path().join(database)).unwrap();
        let missing = DataFolder::open(temp.path());
        assert!(matches!(missing, Err(FolderError::Unusable { .. })));
        fs::create_dir(temp.path().join(database)).unwrap();
        let empty = DataFolder::open(temp.path());
        assert!(matches!(empty, Err(FolderError::Unusable { .. })));
        // One that something else has made.
        drop(rocksdb::DB::open_default(temp.path().join(database)).unwrap());
        let error = DataFolder::open(temp.path()).unwrap_err();
        assert!(matches!(error, FolderError::Unusable { database: found, .. } if found == database));
    }
}

#[test]
fn another_format_version_is_refused_by_name() {
    let temp = TempDir::new().unwrap();
    let identity = ready(temp.path());
    let file = temp.path().join("identity.json");
    let text = fs::read_to_string(&file).unwrap();
    fs::write(&file, r#"{"format_version": 4, "what": "else"}"#).unwrap();
    let error = DataFolder::open(temp.path()).unwrap_err().to_string();
    assert!(error.contains("version 4") && error.contains("version 3"), "{error}");
    fs::write(&file, text).unwrap();
    let data = rocksdb::DB::open_default(temp.path().join("data")).unwrap();
    let mut record = format::encode_identity(&identity);
    record[3] = 4;
    data.put(format::node_key(format::NodeKind::Identity), record).unwrap();
    drop(data);
    let error = DataFolder::open(temp.path()).unwrap_err();
    assert!(matches!(error, FolderError::Version { found: 4, .. }), "{error}");
}

#[test]
fn an_unreadable_identity_file_is_refused() {
    let temp = TempDir::new().unwrap();
    ready(temp.path());
    for text in ["", "{}", r#"{"format_version": 3, "cluster_id": "x", "node_id": 1, "store_id": ""}"#] {
        fs::write(temp.path().join("identity.json"), text).unwrap();
        let error = DataFolder::open(temp.path()).unwrap_err();
        assert!(matches!(error, FolderError::BadIdentityFile { .. }), "{error}");
    }
}

#[test]
fn after_a_crash_each_shard_stands_at_one_applied_index_and_the_log_has_the_rest() {
    let temp = TempDir::new().unwrap();
    let live = temp.path().join("live");
    ready(&live);
    let node = Node::start(&live);
    let mut shards: BTreeMap<ShardId, (RocksLog, RocksState)> =
        SHARDS.iter().map(|shard| (*shard, (node.log(*shard), node.state(*shard)))).collect();
    let entries = 12;
    let mut flushed = 0;
    for index in 1..=entries {
        for (log, state) in shards.values_mut() {
            node.append(log, index..=index);
            state.write(write_set(index)).unwrap();
            check_state(state, index, entries);
            assert_eq!(state.flushed(), Ok(flushed));
        }
        if index % 5 == 0 {
            shards[&SHARDS[0]].1.flush().unwrap();
            flushed = index;
        }
        for (_, state) in shards.values() {
            assert_eq!(state.flushed(), Ok(flushed));
        }
        let image = temp.path().join(format!("image {index}"));
        copy(&live, &image);
        let crashed = Node::start(&image);
        for shard in SHARDS {
            let (log, mut state) = (crashed.log(shard), crashed.state(shard));
            check_state(&state, flushed, entries);
            log.check_fits(flushed).unwrap();
            assert_eq!(log.last(), Ok(index));
            for (index, bytes) in log.read(flushed + 1, u64::MAX, usize::MAX).unwrap() {
                assert_eq!(bytes, format!("entry {index}"));
                state.write(write_set(index)).unwrap();
            }
            check_state(&state, index, entries);
        }
        crashed.stop();
    }
    drop(shards);
    node.stop();
}

#[test]
fn what_is_gathered_reads_as_if_it_was_written_and_is_written_at_the_end() {
    let temp = TempDir::new().unwrap();
    let live = temp.path().join("live");
    ready(&live);
    let node = Node::start(&live);
    let mut state = node.state(SHARDS[0]);
    let records = || node.folder.data.iterator(rocksdb::IteratorMode::Start).count();
    let before = records();
    let get = |state: &RocksState, key: &str| state.get(Namespace::DEFAULT, key.as_bytes()).unwrap();
    for index in 1..=3 {
        state.write(write_set(index)).unwrap();
        assert_eq!(get(&state, "all"), Some(value(index)));
    }
    let mut removing = write_set(4);
    removing.values.insert((Namespace::DEFAULT, "key 1".into()), None);
    state.write(removing).unwrap();
    assert_eq!(get(&state, "key 1"), None);
    assert_eq!(records(), before, "all that is gathered");
    let mut keys = Vec::new();
    let range = KeyRange::default();
    let mut take = |key: Bytes, found: Versioned| {
        keys.push((key, found.version));
        ControlFlow::Continue(())
    };
    state.scan(Namespace::DEFAULT, &range, &mut take).unwrap();
    let expected = [("all", 4), ("key 2", 2), ("key 3", 3), ("key 4", 4)];
    assert_eq!(keys, expected.map(|(key, version)| (Bytes::from(key), version)));
    assert!(records() > before, "a scan reads what was written");
    state.write(write_set(5)).unwrap();
    drop(state);
    assert_eq!(get(&node.state(SHARDS[0]), "all"), Some(value(5)));
    // What is large is not held.
    let mut state = node.state(SHARDS[1]);
    let (before, mut large) = (records(), write_set(1));
    let bytes = Bytes::from(vec![0; 1 << 20]);
    large.values.insert((Namespace::DEFAULT, "large".into()), Some(Versioned { value: bytes, ..value(1) }));
    state.write(large).unwrap();
    assert!(records() > before);
    drop(state);
    node.stop();
}

#[test]
fn a_flush_that_nobody_asked_for_is_a_whole_prefix_too() {
    let temp = TempDir::new().unwrap();
    let live = temp.path().join("live");
    ready(&live);
    let node = Node::start(&live);
    // Tiny write buffers: they fill every few writes and are flushed in the background.
    node.folder.data.set_options(&[("write_buffer_size", "65536")]).unwrap();
    let mut states = SHARDS.map(|shard| node.state(shard));
    let mut seen = 0;
    for index in 1..=400 {
        for state in &mut states {
            let mut write_set = write_set(index);
            write_set.meta.owned = (0..8000).map(keevee_core::slots::Slot).collect();
            state.write(write_set).unwrap();
            // Not gathered any longer.
            state.flushed().unwrap();
        }
        // Each entry is written to the first shard first; flushes go on between the reads.
        let [first, second] = &states;
        let second_before = second.flushed().unwrap();
        seen = first.flushed().unwrap();
        let second_after = second.flushed().unwrap();
        assert!(second_before <= seen && seen <= second_after + 1 && seen <= index);
    }
    assert!(seen > 0, "nothing was flushed: the test tests nothing");
    drop(states);
    node.stop();
}

#[test]
fn large_values_lie_apart_and_survive_what_the_others_do() {
    let temp = TempDir::new().unwrap();
    let (live, crashed) = (temp.path().join("live"), temp.path().join("crashed"));
    ready(&live);
    let node = Node::start(&live);
    let mut state = node.state(SHARDS[0]);
    let large = Versioned { value: Bytes::from(vec![7; 1 << 20]), ..value(1) };
    let held = [("a", value(1)), ("b", large.clone()), ("c", value(1))];
    let values = held.clone().map(|(key, value)| ((Namespace::DEFAULT, key.into()), Some(value)));
    let meta = ShardMeta { applied: 1, ..ShardMeta::new(SlotSet::all()) };
    state.write(WriteSet { values: values.into(), ..WriteSet::of_meta(meta.clone()) }).unwrap();
    state.flush().unwrap();
    copy(&live, &crashed);
    drop(state);
    node.stop();
    let blobs = fs::read_dir(crashed.join("data")).unwrap().map(|file| file.unwrap().path());
    let apart = blobs.filter(|path| path.extension().is_some_and(|extension| extension == "blob"));
    let bytes: u64 = apart.map(|path| path.metadata().unwrap().len()).sum();
    assert!((1 << 20..2 << 20).contains(&bytes), "{bytes} bytes lie apart");

    let node = Node::start(&crashed);
    let mut state = node.state(SHARDS[0]);
    for (key, value) in held {
        assert_eq!(state.get(Namespace::DEFAULT, key.as_bytes()).unwrap(), Some(value));
    }
    let removed = [((Namespace::DEFAULT, Bytes::from("b")), None)];
    let meta = ShardMeta { applied: 2, ..meta };
    state.write(WriteSet { values: removed.into(), ..WriteSet::of_meta(meta) }).unwrap();
    state.flush().unwrap();
    assert_eq!(state.get(Namespace::DEFAULT, b"b").unwrap(), None);
    drop(state);
    node.stop();
}

#[test]
fn a_stop_without_a_crash_keeps_what_was_applied() {
    let temp = TempDir::new().unwrap();
    ready(temp.path());
    for index in 1..=3 {
        let node = Node::start(temp.path());
        let mut state = node.state(SHARDS[0]);
        check_state(&state, index - 1, 3);
        state.write(write_set(index)).unwrap();
        drop(state);
        node.stop();
    }
}

#[test]
fn incarnations_and_shards_are_apart_and_a_new_one_owns_what_it_is_given() {
    let temp = TempDir::new().unwrap();
    ready(temp.path());
    let node = Node::start(temp.path());
    let mut state = node.state(SHARDS[0]);
    state.write(write_set(1)).unwrap();
    check_state(&node.state(SHARDS[1]), 0, 1);
    let data = node.folder.data.clone();
    let next =
        RocksState::open(SHARDS[0], Incarnation(1), data, node.values.clone(), SlotSet::none()).unwrap();
    check_state(&next, 0, 1);
    assert!(next.meta().unwrap().owned.is_empty());
    drop((state, next));
    node.stop();
}

#[test]
fn a_scan_shows_a_range_of_one_namespace_in_order_until_it_is_told_enough() {
    let temp = TempDir::new().unwrap();
    ready(temp.path());
    let node = Node::start(temp.path());
    let mut state = node.state(SHARDS[0]);
    let meta = ShardMeta { applied: 1, ..ShardMeta::new(SlotSet::all()) };
    let keys = [(0, "a"), (0, "b"), (0, "b\0"), (0, "c"), (1, "b"), (u32::MAX, "z")];
    let values = keys.map(|(namespace, key)| ((Namespace(namespace), key.into()), Some(value(7))));
    state.write(WriteSet { values: values.into(), ..WriteSet::of_meta(meta.clone()) }).unwrap();
    node.state(SHARDS[1]).write(WriteSet { values: values_of("other"), ..WriteSet::of_meta(meta) }).unwrap();
    let scan = |namespace, start: &'static str, end: Option<&'static str>, most: usize| {
        let (mut found, range) = (Vec::new(), KeyRange { start: start.into(), end: end.map(Bytes::from) });
        let mut take = |key: Bytes, held| {
            assert_eq!(held, value(7));
            found.push(String::from_utf8(key.to_vec()).unwrap());
            if found.len() == most { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        };
        state.scan(Namespace(namespace), &range, &mut take).unwrap();
        found
    };
    assert_eq!(scan(0, "", None, 9), ["a", "b", "b\0", "c"]);
    assert_eq!(scan(0, "b", Some("c"), 9), ["b", "b\0"]);
    assert_eq!(scan(0, "", None, 2), ["a", "b"]);
    assert_eq!(scan(1, "", None, 9), ["b"]);
    assert_eq!(scan(u32::MAX, "", None, 9), ["z"]);
    assert_eq!(scan(0, "c", Some("a"), 9), [""; 0]);
    drop(state);
    node.stop();
}

fn values_of(key: &'static str) -> BTreeMap<(Namespace, Bytes), Option<Versioned>> {
    [((Namespace::DEFAULT, key.into()), Some(value(7)))].into()
}

#[test]
fn a_write_set_removes_values_and_remembers_anew_what_it_forgot() {
    let temp = TempDir::new().unwrap();
    ready(temp.path());
    let node = Node::start(temp.path());
    let mut state = node.state(SHARDS[0]);
    state.write(write_set(1)).unwrap();
    let mut removal = write_set(2);
    removal.values.insert((Namespace::DEFAULT, Bytes::from_static(b"key 1")), None);
    // The same id with a later time, one with the same time too, and another one.
    let later = RequestRecord { time: 5, ..request(1) };
    removal.requests_added = vec![request(3), later.clone()];
    removal.requests_removed = vec![request(1), request(3)];
    state.write(removal).unwrap();
    assert_eq!(state.get(Namespace::DEFAULT, b"key 1"), Ok(None));
    assert_eq!(state.get(Namespace(1), b"key 2"), Ok(None));
    assert_eq!(state.get(Namespace::DEFAULT, b"key 2"), Ok(Some(value(2))));
    assert_eq!(state.requests(), Ok(vec![request(3), later]));
    drop(state);
    node.stop();
}

#[test]
fn a_torn_last_write_of_the_log_is_dropped() {
    let (_temp, image) = crashed_log();
    let mut bytes = fs::read(segment(&image)).unwrap();
    let end = bytes.iter().rposition(|byte| *byte != 0).unwrap() + 1;
    bytes[end - 512..end].fill(0);
    fs::write(segment(&image), bytes).unwrap();
    let node = Node::start(&image);
    let log = node.log(SHARDS[0]);
    assert_eq!(log.last(), Ok(9));
    log.check_fits(9).unwrap();
    // Had the tenth been applied, it cannot have been torn.
    log.check_fits(10).unwrap_err();
    drop(log);
    node.stop();
}

#[test]
fn a_flipped_byte_anywhere_in_the_log_refuses_to_open() {
    let (_temp, image) = crashed_log();
    let file = fs::OpenOptions::new().read(true).write(true).open(segment(&image)).unwrap();
    for at in (0..10 * 4096).step_by(61) {
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).unwrap();
        file.write_all_at(&[byte[0] ^ 0x04], at).unwrap();
        let error = DataFolder::open(&image).unwrap_err();
        assert!(matches!(error, FolderError::Unusable { database: "journal", .. }), "{at}: {error}");
        assert!(error.to_string().contains("keevee init"));
        file.write_all_at(&byte, at).unwrap();
    }
    DataFolder::open(&image).unwrap();
}

#[test]
fn a_missing_segment_of_the_journal_refuses_to_open() {
    let (_temp, image) = crashed_log();
    fs::remove_file(segment(&image)).unwrap();
    let error = DataFolder::open(&image).unwrap_err();
    assert!(matches!(error, FolderError::Unusable { database: "journal", .. }), "{error}");
}

#[test]
fn a_flipped_byte_in_a_sorted_file_is_reported_when_it_is_read() {
    let temp = TempDir::new().unwrap();
    ready(temp.path());
    let node = Node::start(temp.path());
    let mut state = node.state(SHARDS[0]);
    state.write(write_set(1)).unwrap();
    state.flush().unwrap();
    drop(state);
    node.stop();
    let files = fs::read_dir(temp.path().join("data")).unwrap().map(|file| file.unwrap().path());
    for file in files.filter(|path| path.extension().is_some_and(|e| e == "sst")) {
        let mut bytes = fs::read(&file).unwrap();
        bytes[20] ^= 1;
        fs::write(&file, bytes).unwrap();
    }
    let error = DataFolder::open(temp.path()).unwrap_err();
    assert!(matches!(error, FolderError::Unusable { database: "data", .. }), "{error}");
}

/// Tells a process of [`a_child_that_writes_until_it_is_killed`] where.
const CHILD_FOLDER: &str = "KEEVEE_TEST_CHILD_FOLDER";

/// Not a test of its own: [`what_a_killed_process_acknowledged_is_there`] starts it in a process.
#[test]
#[ignore = "runs until it is killed, in a process that another test starts"]
fn a_child_that_writes_until_it_is_killed() {
    let Some(path) = std::env::var_os(CHILD_FOLDER) else { return };
    let node = Node::start(Path::new(&path));
    // Tiny write buffers: write-ahead files come and go all the time.
    for database in [&node.folder.log, &node.folder.data] {
        database.set_options(&[("write_buffer_size", "65536")]).unwrap();
    }
    let (mut log, mut state) = (node.log(SHARDS[0]), node.state(SHARDS[0]));
    for index in log.last().unwrap() + 1.. {
        let bytes = Bytes::from(vec![index as u8; 20_000]);
        let mut records = vec![LogRecord::Entry { index, bytes }];
        if index % 50 == 0 {
            records.push(LogRecord::DropBelow(state.flushed().unwrap() + 1));
        }
        log.submit(records, index);
        node.wait_for(index);
        log.persisted(index);
        println!("acknowledged {index}");
        for index in state.meta().unwrap().applied + 1..=index {
            state.write(write_set(index)).unwrap();
        }
    }
}

#[test]
fn what_a_killed_process_acknowledged_is_there() {
    let temp = TempDir::new().unwrap();
    ready(temp.path());
    let mut acknowledged = 0;
    for life in 1..=5 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "a_child_that_writes_until_it_is_killed", "--ignored", "--nocapture"])
            .env(CHILD_FOLDER, temp.path())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
        let numbers = lines.filter_map(|line| line.split_once("acknowledged ")?.1.parse::<u64>().ok());
        let target = acknowledged + 60 + 7 * life;
        acknowledged = numbers.take_while(|number| *number < target).last().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();

        let node = Node::start(temp.path());
        let (log, state) = (node.log(SHARDS[0]), node.state(SHARDS[0]));
        let applied = state.meta().unwrap().applied;
        check_state(&state, applied, applied);
        log.check_fits(applied).unwrap();
        let last = log.last().unwrap();
        assert!(last >= acknowledged, "{last} < {acknowledged}");
        let entries = log.read(applied + 1, last, usize::MAX).unwrap();
        assert!(entries.iter().map(|(index, _)| *index).eq(applied + 1..=last));
        assert!(entries.iter().all(|(index, bytes)| bytes[0] == *index as u8));
        drop((log, state));
        node.stop();
    }
}
