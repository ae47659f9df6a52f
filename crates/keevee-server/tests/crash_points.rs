//! Crash points: the writes, syncs, renames and removals that a node makes in its folder are, one after another, the
//! last that it makes. What it had not synced by then is lost, kept in part, or kept. The next life starts from what is
//! left, and must find everything that was acknowledged.
//!
//! The node is a real one, in a process of its own whose file functions are taken over (`keevee-faults`); it is a
//! cluster of one, so that nobody else can bring back what it forgot. Restarts are cut like everything else.
#![cfg(target_os = "linux")]

mod lives;

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use keevee_core::command::{Action, Command, OperationResult, Outcome};
use keevee_core::error::ErrorKind;
use keevee_core::ids::NodeId;
use keevee_core::shard_map::Consensus;
use keevee_server::config::{
    ClusterConfig, Config, EngineConfig, HttpConfig, LimitsConfig, LogConfig, MemberConfig, NodeConfig,
    PeersConfig, RespConfig,
};
use keevee_server::node::{Context, Node};
use keevee_server::server::{Listeners, Server};
use keevee_server::storage::{DataFolder, FolderError};
use keevee_server::transport::PeerProtocol;
use tempfile::TempDir;
use uuid::Uuid;

/// Of each writer, in a life that is cut: far more than it gets to.
const WRITES: usize = 10_000;
const WRITERS: usize = 4;
/// What a request may end with that nothing is wrong with: with timeouts so short, a slow sync ends a leadership.
const UNDECIDED: [ErrorKind; 3] = [ErrorKind::NotLeader, ErrorKind::Unavailable, ErrorKind::OutcomeUnknown];
const PATIENCE: Duration = Duration::from_secs(60);
/// What a child ends with when its folder was never formatted to the end.
const INTERRUPTED: i32 = 7;

/// One life of the node.
#[derive(Clone, Debug, serde::Deserialize, serde::Serialize)]
struct Life {
    /// Armed; the node's folder is in it.
    folder: PathBuf,
    /// Has the keys that must be there, a line each.
    expected: PathBuf,
    number: u64,
    raft: bool,
    cut_at: Option<u64>,
    unsynced: u8,
    lies: bool,
    /// Of each value.
    value_bytes: usize,
    /// Of each writer.
    writes: usize,
}

#[test]
#[ignore = "run by the others, in a process of its own"]
fn a_node_that_is_cut_off() {
    let Some(life) = lives::told::<Life>() else { return };
    lives::arm(life.folder.clone(), life.cut_at, life.unsynced, life.number, life.lies);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    runtime.block_on(live(&life));
    println!("points {}", keevee_faults::points());
}

async fn live(life: &Life) {
    let config = configure(life);
    if let Err(error) = prepare(&config) {
        assert!(matches!(error, FolderError::Interrupted { .. } | FolderError::NotEmpty { .. }), "{error}");
        std::process::exit(INTERRUPTED);
    }
    let listeners = Listeners::bind("127.0.0.1:0", "127.0.0.1:0", None).await.unwrap();
    let server = Server::start_on(&config, listeners).await.unwrap();
    let node = server.node().clone();
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let ended = tokio::spawn(server.run(async {
        let _ = stopped.await;
    }));
    for key in fs::read_to_string(&life.expected).unwrap().lines() {
        let found = get(&node, key).await;
        assert!(
            found.as_ref() == Some(&value_of(key, life.value_bytes)),
            "{key} was acknowledged: {found:?}"
        );
    }
    println!("verified");
    let writers = (0..WRITERS).map(|writer| {
        let (node, life) = (node.clone(), life.clone());
        tokio::spawn(async move {
            for write in 0..life.writes {
                let key = format!("{}-{writer}-{write}", life.number);
                let put = Action::put(key.clone(), value_of(&key, life.value_bytes));
                match node.execute(within(), Command::single(put)).await {
                    Ok(_) => println!("acknowledged {key}"),
                    Err(error) => assert!(UNDECIDED.contains(&error.kind), "{error}"),
                }
            }
        })
    });
    for writer in writers.collect::<Vec<_>>() {
        writer.await.unwrap();
    }
    stop.send(()).unwrap();
    ended.await.unwrap().unwrap();
}

fn within() -> Context {
    Context::until(Instant::now() + PATIENCE)
}

async fn get(node: &Node, key: &str) -> Option<String> {
    let get = Command::single(Action::Get { key: key.as_bytes().to_vec().into() });
    let until = Instant::now() + PATIENCE;
    let outcome = loop {
        match node.execute(within(), get.clone()).await {
            Ok(outcome) => break outcome,
            Err(error) if UNDECIDED.contains(&error.kind) && Instant::now() < until => {}
            Err(error) => panic!("{key} can't be read: {error}"),
        }
    };
    let Outcome::Done(results) = outcome else { panic!("{outcome:?}") };
    let [OperationResult::Value(found)] = &results[..] else { panic!("{results:?}") };
    found.as_ref().map(|found| String::from_utf8(found.value.to_vec()).unwrap())
}

/// Every key has a value of its own.
fn value_of(key: &str, bytes: usize) -> String {
    let mut value = format!("{key}.").repeat(bytes / (key.len() + 1) + 1);
    value.truncate(bytes.max(key.len()));
    value
}

fn configure(life: &Life) -> Config {
    let address = || "127.0.0.1:1".to_owned();
    let consensus = if life.raft { Consensus::Raft } else { Consensus::Paxos };
    Config {
        cluster: ClusterConfig {
            id: Uuid::from_u128(1),
            secret: "a secret of a test".to_owned(),
            peer_transport: PeerProtocol::default(),
        },
        node: NodeConfig {
            id: 1,
            data: life.folder.join("node"),
            http: address(),
            peer: address(),
            resp: None,
            io_threads: 1,
        },
        members: vec![MemberConfig { id: 1, http: address(), peer: address(), resp: None }],
        // Leads soon, and flushes in between.
        engine: EngineConfig {
            consensus,
            heartbeat_ms: 5,
            timeout_min_ms: 10,
            timeout_max_ms: 20,
            flush_interval_ms: 10,
            ..EngineConfig::default()
        },
        limits: LimitsConfig::default(),
        http: HttpConfig::default(),
        peers: PeersConfig::default(),
        resp: RespConfig::default(),
        log: LogConfig::default(),
    }
}

/// Formats the folder, as far as an earlier life did not.
fn prepare(config: &Config) -> Result<(), FolderError> {
    let data = &config.node.data;
    let identity = match DataFolder::identity(data)? {
        Some(identity) => identity,
        None => DataFolder::format(data, config.cluster.id, NodeId(1))?,
    };
    if !DataFolder::is_member(data)? {
        let members = [(identity.node_id, identity.store_id)];
        let map = config.first_map(&members, &[]).unwrap();
        DataFolder::set_first_members(data, &members, &map)?;
    }
    Ok(())
}

/// A folder that one life after the other uses, and what they acknowledged.
struct Lives {
    temp: TempDir,
    acknowledged: BTreeSet<String>,
    /// Acknowledged, and not looked up by a later life yet.
    unverified: BTreeSet<String>,
    next: Life,
    cuts: usize,
    /// The folder was refused just now, and is empty.
    was_emptied: bool,
}

impl Lives {
    fn new(raft: bool, value_bytes: usize) -> Lives {
        let temp = TempDir::new().unwrap();
        let (folder, expected) = (temp.path().join("armed"), temp.path().join("expected"));
        fs::create_dir(&folder).unwrap();
        let next = Life {
            folder,
            expected,
            number: 1,
            raft,
            cut_at: None,
            unsynced: 0,
            lies: false,
            value_bytes,
            writes: WRITES,
        };
        Lives {
            temp,
            acknowledged: BTreeSet::new(),
            unverified: BTreeSet::new(),
            next,
            cuts: 0,
            was_emptied: false,
        }
    }

    /// Lives once, cut at a point. False if there were not so many points.
    fn live(&mut self, cut_at: Option<u64>, unsynced: u8) -> Result<bool, String> {
        (self.next.cut_at, self.next.unsynced) = (cut_at, unsynced);
        fs::write(
            &self.next.expected,
            self.unverified.iter().flat_map(|key| [key, "\n"]).collect::<String>(),
        )
        .unwrap();
        let log = self.temp.path().join("output");
        let mut said: Vec<String> = Vec::new();
        let status = lives::run("a_node_that_is_cut_off", &self.next, &log, |line| {
            if line.ends_with("verified") {
                self.unverified.clear();
            } else if let Some((_, key)) = line.split_once("acknowledged ") {
                self.acknowledged.insert(key.to_owned());
                self.unverified.insert(key.to_owned());
            } else {
                said.push(line);
            }
        });
        let life = self.next.clone();
        self.next.number += 1;
        if lives::is_cut(status) {
            self.cuts += 1;
            self.was_emptied = false;
            return Ok(true);
        }
        if status.code() == Some(INTERRUPTED) && self.acknowledged.is_empty() && !self.was_emptied {
            // As it says: empty the folder and format again.
            fs::remove_dir_all(life.folder.join("node")).unwrap();
            self.was_emptied = true;
            return self.live(cut_at, unsynced);
        }
        self.was_emptied = false;
        if status.success() {
            return Ok(false);
        }
        Err(format!("{life:?}\n{status:?}\n{said:#?}\n{}", fs::read_to_string(log).unwrap()))
    }

    /// Lives once more, to the end: everything that was ever acknowledged is there.
    fn verify(&mut self) -> Result<(), String> {
        self.unverified = self.acknowledged.clone();
        self.next.writes = 1;
        let is_cut = self.live(None, 0)?;
        assert!(!is_cut);
        Ok(())
    }
}

/// Cut at each of these points, in turn, on one folder, until it was enough.
fn cut_at_each(
    lives: &mut Lives,
    points: impl Iterator<Item = u64>,
    mut is_enough: impl FnMut(&Lives) -> bool,
) {
    for point in points {
        let unsynced = (lives.cuts % 3) as u8;
        let is_cut = lives.live(Some(point), unsynced).unwrap_or_else(|error| panic!("{error}"));
        assert!(is_cut, "a life ended before point {point}");
        if is_enough(lives) {
            break;
        }
    }
    lives.verify().unwrap_or_else(|error| panic!("{error}"));
    println!("{} cuts, {} writes acknowledged", lives.cuts, lives.acknowledged.len());
    assert!(!lives.acknowledged.is_empty());
}

#[test]
fn paxos_loses_nothing_that_it_acknowledged() {
    cut_at_each(&mut Lives::new(false, 100), 1..=400, |_| false);
}

#[test]
fn raft_loses_nothing_that_it_acknowledged() {
    cut_at_each(&mut Lives::new(true, 100), 1..=400, |_| false);
}

/// With values so large that a life fills a segment of the journal, and goes on in another one. How many points that
/// takes depends on the disk: the slower it is, the more often the state is flushed meanwhile.
#[test]
fn segments_are_changed_and_used_again() {
    let mut changed = 0;
    cut_at_each(&mut Lives::new(false, 4 << 20), (200..4_000).step_by(40), |lives| {
        let segments = fs::read_dir(lives.next.folder.join("node/journal")).unwrap().count();
        changed += usize::from(segments > 1);
        changed == 10
    });
    assert_eq!(changed, 10, "lives that filled a segment");
}

/// A new node, cut at a point of its first life. False if there were not so many points.
fn cut_while_it_is_made(raft: bool, point: u64) -> bool {
    let mut lives = Lives::new(raft, 100);
    lives.next.writes = 1;
    let is_cut = lives.live(Some(point), (point % 3) as u8).unwrap_or_else(|error| panic!("{error}"));
    lives.verify().unwrap_or_else(|error| panic!("{error}"));
    is_cut
}

#[test]
fn a_new_folder_is_refused_or_whole() {
    // Of both engines by turns, until a first life comes to its end.
    let points = (1..).take_while(|point| cut_while_it_is_made(point % 2 == 0, *point)).count();
    println!("{points} cuts");
    assert!(points > 100, "{points} points make no new node");
}

/// The test finds a loss if there is one.
#[test]
fn a_disk_that_lies_is_found_out() {
    let mut lives = Lives::new(false, 100);
    lives.next.writes = 10;
    lives.live(None, 0).unwrap();
    (lives.next.lies, lives.next.writes) = (true, WRITES);
    let is_loss = |error: String| error.contains("was acknowledged");
    // The first of them to come to an end with writes behind it shows it.
    let found = (0..10).any(|life| lives.live(Some(400 + life), 0).is_err_and(is_loss));
    assert!(found, "nothing was missed, though {} writes were never on the disk", lives.acknowledged.len());
}
