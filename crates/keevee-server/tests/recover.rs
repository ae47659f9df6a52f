//! A new cluster from folders that the test wrote: what of which is kept, record by record. What real nodes leave behind is tested
//! with real processes (`keevee`).

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use keevee_core::apply::{Entry as Commands, ProposalId, ShardMeta, WriteSet};
use keevee_core::codec;
use keevee_core::command::Versioned;
use keevee_core::ids::{Incarnation, Namespace, NodeId, ShardId};
use keevee_core::shard_map::change::{Placement, ShardSpec};
use keevee_core::shard_map::{Consensus, NodeInfo, ShardMap};
use keevee_core::slots::SlotSet;
use keevee_paxos::{Ballot, Configuration, Entry, HardState, QuorumSystem, Value};
use keevee_raft::{LogEntry, LogId, Payload, Vote};
use keevee_replica::storage::{LogRecord, LogStore, StateStore};
use keevee_replica::{Members, records};
use keevee_server::config::Config;
use keevee_server::recover::{RecoverError, Survey};
use keevee_server::storage::{
    DataFolder, FolderError, LogWriter, OpenFolder, RocksLog, RocksState, ValueCache, format,
};
use tempfile::TempDir;
use uuid::Uuid;

const SHARD: ShardId = ShardId(1);
const CLUSTER: Uuid = Uuid::from_u128(1);

/// The folders of nodes 1 and 2 of three that hold one shard, formatted.
fn two_of_three(above: &Path, consensus: Consensus) -> [PathBuf; 2] {
    let nodes = [1, 2, 3].map(NodeId);
    let paths = nodes.map(|node| above.join(node.to_string()));
    let identities = [0, 1, 2].map(|at: usize| DataFolder::format(&paths[at], CLUSTER, nodes[at]).unwrap());
    let node = |at: usize| {
        let (peer, http) = (format!("p:{at}"), format!("h:{at}"));
        NodeInfo { id: nodes[at], store: identities[at].store_id, peer, http, resp: None }
    };
    let placement = Placement::Spread { replicas: 3 };
    let spec = ShardSpec { name: None, load_factor: 1, consensus, placement };
    let map = ShardMap::bootstrap([0, 1, 2].map(node).into(), consensus, &[spec]).unwrap();
    let members = identities.map(|identity| (identity.node_id, identity.store_id));
    paths.iter().for_each(|path| DataFolder::set_first_members(path, &members, &map).unwrap());
    let [one, two, _] = paths;
    [one, two]
}

/// A node's folder in use: its log is written as a node writes it.
fn write(path: &Path, consensus: Consensus, records: Vec<LogRecord>, applied: Option<ShardMeta>) {
    let (folder, journal) = DataFolder::open(path).unwrap();
    let (writer, handle) = LogWriter::start(journal, |_| ()).unwrap();
    let mut log = RocksLog::open(SHARD, Arc::clone(&folder.log), handle.clone()).unwrap();
    log.engine(consensus).unwrap();
    log.submit(records, 1);
    drop((log, handle));
    assert!(writer.join());
    let Some(meta) = applied else { return };
    let mut state = state_of(&folder);
    let mut write_set = WriteSet::of_meta(meta);
    let value = Versioned { version: 1, stamp: 5, expires: None, value: Bytes::from_static(b"value") };
    write_set.values.insert((Namespace::DEFAULT, Bytes::from_static(b"key")), Some(value));
    state.write(write_set).unwrap();
    state.flush().unwrap();
}

fn state_of(folder: &OpenFolder) -> RocksState {
    let values = Arc::new(ValueCache::new(0));
    RocksState::open(SHARD, Incarnation(0), Arc::clone(&folder.data), values, SlotSet::all()).unwrap()
}

fn commands(stamp: u64) -> Bytes {
    codec::encode_entry(&Commands { stamp, proposal: ProposalId::default(), commands: Vec::new() })
}

/// Of node 9 of another cluster, in a folder beside.
fn config(above: &Path, cluster: Uuid) -> Config {
    let text = format!(
        "[cluster]\nid = \"{cluster}\"\nsecret = \"a secret of many letters\"\n[node]\nid = 9\ndata = \"new\"\n\
         http = \"h:9\"\npeer = \"p:9\"\n[[member]]\nid = 9\nhttp = \"h:9\"\npeer = \"p:9\"\n"
    );
    Config::parse(&text, &above.join("keevee.toml")).unwrap()
}

/// What a node finds in the new folder: all entries and the hard state.
fn found(path: &Path) -> (OpenFolder, Vec<(u64, Bytes)>, Bytes) {
    let (folder, journal) = DataFolder::open(path).unwrap();
    let (writer, handle) = LogWriter::start(journal, |_| ()).unwrap();
    let log = RocksLog::open(SHARD, Arc::clone(&folder.log), handle).unwrap();
    let (entries, state) = (log.read(0, 100, usize::MAX).unwrap(), log.hard_state().unwrap().unwrap());
    log.check_fits(state_of(&folder).meta().unwrap().applied).unwrap();
    drop(log);
    assert!(writer.join());
    (folder, entries, state)
}

fn check_map(folder: &OpenFolder, changes: u32) {
    let map = folder.shard_map.as_ref().unwrap();
    assert_eq!(map.validate(), Ok(()));
    assert_eq!((map.epoch, map.nodes.len()), (1001, 1));
    assert_eq!((map.nodes[0].id, map.nodes[0].store), (NodeId(9), folder.identity.store_id));
    assert!(map.shards.iter().all(|shard| shard.members == [NodeId(9)]));
    assert_eq!(map.shard(SHARD).unwrap().changes, changes);
    assert!(folder.first_members.is_empty());
}

fn ballot(round: u64, node: u64) -> Ballot {
    Ballot { round, node }
}

fn paxos(index: u64, ballot: Ballot, value: Value) -> LogRecord {
    LogRecord::Entry { index, bytes: records::encode_entry(&Entry { index, ballot, value }) }
}

fn configuration<const N: usize>(voters: [u64; N], learners: BTreeSet<u64>) -> Configuration {
    Configuration { quorum: QuorumSystem::Majority(voters.into()), learners }
}

#[test]
fn of_paxos_logs_each_entry_of_the_highest_ballot_is_kept() {
    let above = TempDir::new().unwrap();
    let paths = two_of_three(above.path(), Consensus::Paxos);
    let data = |stamp| Value::Data(commands(stamp));
    let (first, second) = (ballot(1, 1), ballot(2, 2));
    let hard_state = |promised| {
        let state = HardState { promised, chosen: 2, ..HardState::default() };
        LogRecord::HardState(records::encode_hard_state(&state))
    };
    let learner = Value::Configuration(Box::new(configuration([1, 2, 3], [4].into())));
    let one = vec![
        hard_state(first),
        paxos(1, first, data(1)),
        paxos(2, first, data(2)),
        paxos(3, first, learner),
        paxos(4, first, data(4)),
        paxos(6, first, data(6)),
    ];
    let meta = ShardMeta { applied: 2, time: 2, version: 1, ..ShardMeta::new(SlotSet::all()) };
    write(&paths[0], Consensus::Paxos, one, Some(meta.clone()));
    let two = vec![
        hard_state(second),
        paxos(1, first, data(1)),
        paxos(2, first, data(2)),
        paxos(4, second, data(40)),
    ];
    write(&paths[1], Consensus::Paxos, two, None);

    let survey = Survey::take(&paths).unwrap();
    let [shard] = &survey.shards[..] else { panic!("one shard") };
    assert!(shard.is_complete() && !shard.is_lost() && shard.damaged.is_empty());
    assert_eq!((shard.holdings[0].keys, shard.holdings[0].applied, shard.holdings[1].applied), (1, 2, 0));
    assert_eq!(shard.lost(), [NodeId(3)]);
    survey.make(&config(above.path(), Uuid::from_u128(2))).unwrap();

    let (folder, entries, state) = found(&above.path().join("new"));
    let expected =
        [(3, first, Value::Noop), (4, second, data(40)), (5, ballot(3, 9), Value::Noop), (6, first, data(6))];
    let entries: Vec<_> = entries
        .into_iter()
        .map(|(index, bytes)| records::decode_entry(index, bytes).unwrap())
        .map(|entry| (entry.index, entry.ballot, entry.value))
        .collect();
    assert_eq!(entries, expected);
    let configuration = Some((2, configuration([9], BTreeSet::new())));
    let expected = HardState { promised: ballot(3, 9), chosen: 6, first: 3, configuration };
    assert_eq!(records::decode_hard_state(state), Ok(expected));
    assert_eq!(state_of(&folder).meta(), Ok(meta));
    let key = format::value_key(SHARD, Incarnation(0), Namespace::DEFAULT, b"key");
    assert!(folder.data.get(key).unwrap().is_some());
    check_map(&folder, 1);
}

#[test]
fn of_raft_logs_the_one_of_the_latest_term_is_kept() {
    let above = TempDir::new().unwrap();
    let paths = two_of_three(above.path(), Consensus::Raft);
    let entry = |term, index, payload| {
        let entry = LogEntry { id: LogId { term, index }, payload };
        LogRecord::Entry { index, bytes: keevee_raft::records::encode_entry(&entry) }
    };
    let data = |stamp| Payload::Data(commands(stamp));
    let first = || entry(0, 0, Payload::Members(Members::of_voters([1, 2, 3].map(NodeId))));
    let hard_state = |term| {
        let vote = Some(Vote { term, node: 1, committed: true });
        let committed = Some(LogId { term: 1, index: 1 });
        let state = keevee_raft::records::HardState { vote, committed, ..Default::default() };
        LogRecord::HardState(keevee_raft::records::encode_hard_state(&state))
    };
    let longer = (2..=5).map(|index| entry(1, index, data(index)));
    let one = [first(), hard_state(1), entry(1, 1, data(1))].into_iter().chain(longer).collect();
    write(&paths[0], Consensus::Raft, one, None);
    let two = vec![
        first(),
        hard_state(2),
        entry(1, 1, data(1)),
        entry(2, 2, Payload::Blank),
        entry(2, 3, data(30)),
    ];
    write(&paths[1], Consensus::Raft, two, None);

    let survey = Survey::take(&paths).unwrap();
    assert!(survey.shards[0].is_complete());
    survey.make(&config(above.path(), Uuid::from_u128(2))).unwrap();

    let (folder, entries, state) = found(&above.path().join("new"));
    let entries: Vec<_> = entries
        .into_iter()
        .map(|(index, bytes)| keevee_raft::records::decode_entry(index, bytes).unwrap())
        .map(|entry| (entry.id.term, entry.id.index, entry.payload))
        .collect();
    let alone = Payload::Members(Members::of_voters([NodeId(9)]));
    assert_eq!(entries, [(0, 0, alone), (1, 1, data(1)), (2, 2, Payload::Blank), (2, 3, data(30))]);
    let expected = keevee_raft::records::HardState {
        vote: Some(Vote { term: 3, node: 9, committed: false }),
        committed: Some(LogId { term: 2, index: 3 }),
        ..Default::default()
    };
    assert_eq!(keevee_raft::records::decode_hard_state(state), Ok(expected));
    check_map(&folder, 1);
}

#[test]
fn a_log_that_lacks_what_was_applied_is_left_out_and_the_other_goes_on() {
    let above = TempDir::new().unwrap();
    let paths = two_of_three(above.path(), Consensus::Paxos);
    let meta = ShardMeta { applied: 2, time: 2, version: 1, ..ShardMeta::new(SlotSet::all()) };
    let state = HardState { promised: ballot(1, 1), ..HardState::default() };
    let state = || LogRecord::HardState(records::encode_hard_state(&state));
    let one = || vec![state(), paxos(1, ballot(1, 1), Value::Data(commands(1)))];
    write(&paths[0], Consensus::Paxos, one(), Some(meta));
    write(&paths[1], Consensus::Paxos, one(), None);
    let survey = Survey::take(&paths).unwrap();
    let [shard] = &survey.shards[..] else { panic!("one shard") };
    assert_eq!((shard.damaged.len(), shard.damaged[0].0, &shard.folders[..]), (1, 0, &[1][..]));
    assert!(shard.damaged[0].1.contains("ends at 1, but entry 2 was applied"), "{:?}", shard.damaged);
    assert!(!shard.is_complete(), "the damaged one counts for nothing");
    assert_eq!(shard.kept.as_ref().unwrap().entries, [(1, Some(0))]);
}

#[test]
fn a_shard_of_which_nothing_is_left_begins_anew() {
    let above = TempDir::new().unwrap();
    let paths = two_of_three(above.path(), Consensus::Paxos);
    // It never wrote anything: whether the others did, nobody knows.
    let survey = Survey::take(&paths[..1]).unwrap();
    assert!(survey.shards[0].is_lost());
    survey.make(&config(above.path(), Uuid::from_u128(2))).unwrap();
    let (folder, _) = DataFolder::open(&above.path().join("new")).unwrap();
    check_map(&folder, 0);
}

#[test]
fn what_does_not_belong_together_is_refused_and_leaves_nothing_behind() {
    let above = TempDir::new().unwrap();
    let paths = two_of_three(above.path(), Consensus::Paxos);
    let survey = Survey::take(&paths).unwrap();
    let refused = survey.make(&config(above.path(), CLUSTER));
    assert!(matches!(refused, Err(RecoverError::SameCluster)), "{refused:?}");
    let config = config(above.path(), Uuid::from_u128(2));
    std::fs::create_dir(above.path().join("new.unfinished")).unwrap();
    let refused = survey.make(&config);
    assert!(matches!(refused, Err(RecoverError::Folder(FolderError::Unfinished { .. }))), "{refused:?}");
    std::fs::remove_dir(above.path().join("new.unfinished")).unwrap();
    survey.make(&config).unwrap();
    let refused = survey.make(&config);
    assert!(
        matches!(refused, Err(RecoverError::Folder(FolderError::AlreadyFormatted { .. }))),
        "{refused:?}"
    );
    let of_others = [paths[0].clone(), above.path().join("new")];
    drop(survey);
    let refused = Survey::take(&of_others);
    assert!(matches!(refused, Err(RecoverError::OtherCluster { .. })), "{refused:?}");
    let twice = above.path().join("twice");
    DataFolder::format(&twice, CLUSTER, NodeId(1)).unwrap();
    let refused = Survey::take(&[paths[0].clone(), twice]);
    assert!(matches!(refused, Err(RecoverError::Twice { .. })), "{refused:?}");
}
