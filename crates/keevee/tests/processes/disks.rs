//! Nodes with bad disks: real processes that preload the shim.
#![cfg(all(target_os = "linux", target_env = "gnu"))]

use std::collections::BTreeMap;
use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};

use keevee_client::{Client, Consistency, Error, ErrorKind, NodeStatus, Write};
use keevee_cluster::{TemporaryCluster, until};
use keevee_shim::{Disk, Fault, Injected, Shim};
use tempfile::TempDir;

use crate::load::{Load, all_there};
use crate::{PATIENCE, client, client_of, client_within, endpoint_of, get, others, put, start};

with_both_engines! {
    what_was_not_synced_was_never_acknowledged
    a_node_whose_clock_jumps_leads_no_more
    a_leader_whose_sync_fails_stops_for_good
    a_follower_whose_sync_fails_stops_for_good
    a_leader_whose_disk_stalls_gives_way
    a_follower_whose_disk_stalls_is_not_waited_for
    a_node_with_little_room_gives_leadership_away
    without_room_on_a_majority_only_removals_are_taken
    a_follower_whose_disk_is_full_stops_and_comes_back
    a_leader_whose_disk_is_full_stops_and_loses_nothing
    a_flipped_bit_in_the_log_is_found
    small_disks_are_never_full_and_writes_go_on_once_they_are_larger
}

/// The disks of a cluster's nodes.
struct Disks {
    disks: BTreeMap<u64, Disk>,
    /// Outlives the processes: they have files in it mapped.
    _folder: TempDir,
}

impl Disks {
    fn set(&self, node: u64, fault: Fault) {
        self.disks[&node].set(fault).expect("set");
    }

    fn heal(&self, node: u64) {
        self.disks[&node].heal().expect("healed");
    }

    fn injected(&self, node: u64) -> Injected {
        self.disks[&node].injected().expect("counted")
    }
}

/// A cluster of three nodes whose disks can be made bad.
async fn start_on_disks(engine: &str) -> (TemporaryCluster, Disks) {
    start_configured(engine, &[]).await
}

/// As [`start_on_disks`], with these lines in sections of each node's configuration.
async fn start_configured(engine: &str, settings: &[(&str, &str)]) -> (TemporaryCluster, Disks) {
    let mut cluster = start(3, engine).await;
    let folder = TempDir::new().expect("a folder");
    let shim = Shim::install(folder.path()).expect("the shim");
    cluster.kill_all().await.expect("killed");
    let mut disks = BTreeMap::new();
    for node in cluster.nodes() {
        configure(&node.config(), settings);
        let control = folder.path().join(format!("node{}.control", node.id));
        let disk = Disk::new(&shim, &control, &node.data()).expect("a disk");
        node.set_environment(disk.environment());
        disks.insert(node.id, disk);
    }
    cluster.start().expect("started");
    cluster.wait_ready(PATIENCE).await.expect("ready");
    (cluster, Disks { disks, _folder: folder })
}

fn configure(config: &std::path::Path, settings: &[(&str, &str)]) {
    let mut text = fs::read_to_string(config).expect("a configuration");
    for (section, line) in settings {
        let head = format!("[{section}]\n");
        if text.contains(&head) {
            text = text.replace(&head, &format!("{head}{line}\n"));
        } else {
            text.push_str(&format!("\n{head}{line}\n"));
        }
    }
    fs::write(config, text).expect("configured");
}

/// Waits until another node than this one leads.
async fn moves_from(cluster: &mut TemporaryCluster, old: u64) -> u64 {
    let moved = until(PATIENCE, async || {
        for id in others(cluster, old) {
            if cluster.node(id).expect("a node").is_leader().await {
                return Some(id);
            }
        }
        None
    });
    moved.await.expect("another leads")
}

/// Waits until a node says this of itself.
async fn says(node: &Client, what: impl Fn(&NodeStatus) -> bool) {
    let said = until(PATIENCE, async || node.status().await.is_ok_and(|status| what(&status)).then_some(()));
    assert!(said.await.is_some(), "the node does not say so");
}

/// Waits until a node has stopped by itself: it must say why, in these words.
async fn stops_by_itself(cluster: &mut TemporaryCluster, id: u64, why: &str) {
    let node = cluster.node(id).expect("a node");
    let status = until(PATIENCE, async || node.exit_status()).await.expect("it stops");
    assert!(!status.success(), "{status}");
    assert_eq!(status.code(), Some(1), "by itself, and not by a signal");
    let log = fs::read_to_string(node.log()).expect("a log");
    assert!(log.contains(why), "its log does not tell of {why:?}:\n{log}");
}

fn client_of_others(cluster: &mut TemporaryCluster, id: u64) -> Client {
    let rest = others(cluster, id);
    client(rest.into_iter().map(|id| endpoint_of(cluster, id)).collect())
}

async fn what_was_not_synced_was_never_acknowledged(engine: &str) {
    // Flushes all the time, so that files are under way at a kill.
    let settings = [("engine", "flush_interval_ms = 20")];
    let (mut cluster, disks) = start_configured(engine, &settings).await;
    let load = Load::start(&cluster.endpoints(), 8);
    for round in 1..=3 {
        (1..=3).for_each(|node| disks.set(node, Fault::DropUnsynced));
        load.acknowledges(200).await;
        cluster.kill_all().await.expect("killed");
        let lost: Vec<u64> =
            disks.disks.values().map(|disk| disk.drop_unsynced().expect("taken back")).collect();
        println!("round {round}: the nodes lost {lost:?} writes that were not synced");
        cluster.start().expect("started");
        cluster.wait_ready(PATIENCE).await.expect("ready");
    }
    load.acknowledges(50).await;
    let keys = load.stop().await;
    assert!((1..=3).all(|node| disks.injected(node).remembered > 0), "writes passed the shim");
    for node in 1..=3 {
        all_there(&client_of(&mut cluster, node), &keys, Consistency::Linearizable).await;
    }
}

async fn a_node_whose_clock_jumps_leads_no_more(engine: &str) {
    let (mut cluster, disks) = start_on_disks(engine).await;
    let leader = cluster.leader().await.expect("a leader");
    disks.set(leader, Fault::ClockOffset(60_000_000));
    let node = client_of(&mut cluster, leader);
    says(&node, |status| status.clock_off).await;
    moves_from(&mut cluster, leader).await;
    put(&client(cluster.endpoints()), "key", "value").await;
    disks.heal(leader);
    says(&node, |status| !status.clock_off).await;
}

async fn a_leader_whose_sync_fails_stops_for_good(engine: &str) {
    a_node_whose_sync_fails_stops_for_good(engine, true).await;
}

async fn a_follower_whose_sync_fails_stops_for_good(engine: &str) {
    a_node_whose_sync_fails_stops_for_good(engine, false).await;
}

async fn a_node_whose_sync_fails_stops_for_good(engine: &str, is_leader: bool) {
    let (mut cluster, disks) = start_on_disks(engine).await;
    let leader = cluster.leader().await.expect("a leader");
    let struck = if is_leader { leader } else { others(&mut cluster, leader)[0] };
    let load = Load::start(&cluster.endpoints(), 8);
    load.acknowledges(100).await;
    disks.set(struck, Fault::FailSync);
    let start = Instant::now();
    stops_by_itself(&mut cluster, struck, "writing the log: Input/output error").await;
    // The disk answers well again, and nothing is acknowledged by what the failed sync left.
    disks.heal(struck);
    load.acknowledges(100).await;
    println!("100 more writes {:?} after the sync failed", start.elapsed());
    assert!(disks.injected(struck).failed_syncs > 0);
    cluster.start_node(struck).expect("started");
    cluster.wait_ready(PATIENCE).await.expect("ready");
    load.acknowledges(100).await;
    let keys = load.stop().await;
    all_there(&client_of(&mut cluster, struck), &keys, Consistency::Linearizable).await;
}

async fn a_leader_whose_disk_stalls_gives_way(engine: &str) {
    let (mut cluster, disks) = start_on_disks(engine).await;
    let load = Load::start(&cluster.endpoints(), 8);
    for round in 1..=2 {
        let leader = cluster.wait_ready(PATIENCE).await.expect("a leader");
        load.acknowledges(100).await;
        disks.set(leader, Fault::StallSync(Duration::MAX));
        let start = Instant::now();
        moves_from(&mut cluster, leader).await;
        let moved = start.elapsed();
        // By the others: the disk is not healed.
        load.acknowledges(100).await;
        let all = start.elapsed();
        println!("round {round}: another led {moved:?} after the stall, 100 more writes after {all:?}");
        assert!(cluster.node(leader).expect("a node").pid().is_some(), "it waits for its disk");
        disks.heal(leader);
        put(&client(cluster.endpoints()), "round", &round.to_string()).await;
        let healed = client_of(&mut cluster, leader);
        assert_eq!(get(&healed, "round").await, Some(round.to_string()));
    }
    let keys = load.stop().await;
    all_there(&client(cluster.endpoints()), &keys, Consistency::Linearizable).await;
}

async fn a_follower_whose_disk_stalls_is_not_waited_for(engine: &str) {
    let (mut cluster, disks) = start_on_disks(engine).await;
    let leader = cluster.leader().await.expect("a leader");
    let follower = others(&mut cluster, leader)[0];
    let load = Load::start(&[endpoint_of(&mut cluster, leader)], 8);
    let before = load.acknowledges(300).await;
    disks.set(follower, Fault::StallSync(Duration::MAX));
    let during = load.acknowledges(300).await;
    println!("300 writes in {before:?}, and in {during:?} with a follower whose disk stalls");
    assert!(cluster.node(leader).expect("a node").is_leader().await, "it still leads");
    disks.heal(follower);
    let keys = load.stop().await;
    all_there(&client_of(&mut cluster, follower), &keys, Consistency::Linearizable).await;
}

async fn a_node_with_little_room_gives_leadership_away(engine: &str) {
    let (mut cluster, disks) = start_on_disks(engine).await;
    let leader = cluster.leader().await.expect("a leader");
    let load = Load::start(&cluster.endpoints(), 8);
    load.acknowledges(50).await;
    disks.set(leader, Fault::LowRoom(1 << 20));
    let node = client_of(&mut cluster, leader);
    says(&node, |status| status.disk_low).await;
    moves_from(&mut cluster, leader).await;
    load.acknowledges(100).await;
    let (keys, failures) = load.stop_and_count().await;
    assert_eq!(failures, 0, "what its leader has no room for, another takes");
    all_there(&node, &keys, Consistency::Linearizable).await;
    let metrics = fetch(&mut cluster, leader, "/metrics").await;
    assert!(metrics.contains("keevee_disk_low 1"), "{metrics}");
    disks.heal(leader);
    says(&node, |status| !status.disk_low).await;
}

async fn fetch(cluster: &mut TemporaryCluster, id: u64, path: &str) -> String {
    let endpoint = endpoint_of(cluster, id);
    let mut connection = keevee_client::Connection::open(&endpoint, PATIENCE).await.expect("a connection");
    let (_, body) = connection.ask(path).await.expect("an answer");
    String::from_utf8_lossy(&body).into_owned()
}

async fn without_room_on_a_majority_only_removals_are_taken(engine: &str) {
    let (cluster, disks) = start_on_disks(engine).await;
    let patient = client(cluster.endpoints());
    put(&patient, "kept", "1").await;
    put(&patient, "removed", "1").await;
    for node in [1, 2] {
        disks.set(node, Fault::LowRoom(1 << 20));
    }
    let hasty = client_within(cluster.endpoints(), Duration::from_millis(500));
    let refused = async |error: Option<Error>| {
        let error = error?;
        let is_told = error.kind == ErrorKind::Unavailable && error.to_string().contains("nearly full");
        is_told.then_some(error)
    };
    let error = until(PATIENCE, async || {
        let written = hasty.put(b"key", "value", Write::default()).await;
        refused(written.err()).await
    });
    println!("refused: {}", error.await.expect("refused"));
    assert_eq!(get(&patient, "kept").await.as_deref(), Some("1"), "reads go on");
    assert!(patient.delete(b"removed", Write::default()).await.expect("removed"), "removals go on");
    assert_eq!(get(&patient, "removed").await, None);
    disks.heal(1);
    // By itself.
    put(&patient, "key", "later").await;
    assert_eq!(get(&patient, "key").await.as_deref(), Some("later"));
}

/// A file system of its own, in memory.
struct SmallDisk(TempDir);

impl SmallDisk {
    /// `None` where that is not allowed.
    fn mount(size: &str) -> Option<SmallDisk> {
        let folder = TempDir::new().expect("a folder");
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &format!("size={size}"), "keevee-test"]).arg(folder.path());
        mount.status().is_ok_and(|status| status.success()).then_some(SmallDisk(folder))
    }

    fn resize(&self, size: &str) {
        let resized =
            Command::new("mount").args(["-o", &format!("remount,size={size}")]).arg(self.0.path()).status();
        assert!(resized.expect("mount runs").success());
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.0.path()).status();
    }
}

/// No shim: what the file system says of itself, and room that really ends.
async fn small_disks_are_never_full_and_writes_go_on_once_they_are_larger(engine: &str) {
    let small: Vec<SmallDisk> = (0..3).map_while(|_| SmallDisk::mount("440m")).collect();
    if small.len() < 3 {
        return eprintln!("not run: nothing may be mounted here");
    }
    let mut cluster = start(3, engine).await;
    cluster.kill_all().await.expect("killed");
    for (node, disk) in cluster.nodes().iter().zip(&small) {
        let copied = Command::new("cp").arg("-r").arg(node.data()).arg(disk.0.path()).status();
        assert!(copied.expect("cp runs").success());
        configure(&node.config(), &[("limits", "disk_free_bytes_min = 268435456")]);
        let text = fs::read_to_string(node.config()).expect("a configuration");
        let moved = format!("data = {:?}", disk.0.path().join("data"));
        assert!(text.contains("data = \"./data\""), "{text}");
        fs::write(node.config(), text.replace("data = \"./data\"", &moved)).expect("written");
    }
    cluster.start().expect("started");
    cluster.wait_ready(PATIENCE).await.expect("ready");
    let patient = client(cluster.endpoints());
    put(&patient, "removed", "1").await;
    let hasty = client_within(cluster.endpoints(), Duration::from_secs(3));
    let (mut written, value) = (0, "x".repeat(900_000));
    let refused = loop {
        match hasty.put(format!("key-{written}").as_bytes(), value.clone(), Write::default()).await {
            Ok(_) => written += 1,
            // It was on its way when its leader handed over.
            Err(error) if error.kind == ErrorKind::OutcomeUnknown => {}
            Err(error) => break error,
        }
        assert!(written < 500, "450 MB are more than the disks hold");
    };
    assert!(
        refused.kind == ErrorKind::Unavailable && refused.to_string().contains("nearly full"),
        "{refused}"
    );
    assert!(written > 10, "there was room for some");
    assert!(patient.delete(b"removed", Write::default()).await.expect("removed"), "removals go on");
    for disk in &small {
        disk.resize("800m");
    }
    // By itself.
    put(&patient, "later", "1").await;
    assert_eq!(cluster.running(), [1, 2, 3], "no disk was full");
    for number in 0..written {
        let found = patient.get(format!("key-{number}").as_bytes(), Consistency::Linearizable).await;
        assert_eq!(found.expect("a read").map(|found| found.bytes), Some(value.clone().into()), "{number}");
    }
}

/// Without the headroom, which would have it lead no more before its disk is full.
const NO_HEADROOM: (&str, &str) = ("limits", "disk_free_bytes_min = 0");

async fn a_follower_whose_disk_is_full_stops_and_comes_back(engine: &str) {
    let (mut cluster, disks) = start_configured(engine, &[NO_HEADROOM]).await;
    let leader = cluster.leader().await.expect("a leader");
    let follower = others(&mut cluster, leader)[0];
    fills_up(&mut cluster, &disks, follower).await;
}

async fn a_leader_whose_disk_is_full_stops_and_loses_nothing(engine: &str) {
    let (mut cluster, disks) = start_configured(engine, &[NO_HEADROOM]).await;
    let leader = cluster.leader().await.expect("a leader");
    fills_up(&mut cluster, &disks, leader).await;
}

async fn fills_up(cluster: &mut TemporaryCluster, disks: &Disks, struck: u64) {
    let load = Load::start(&cluster.endpoints(), 8);
    load.acknowledges(50).await;
    disks.set(struck, Fault::Full);
    stops_by_itself(cluster, struck, "No space left on device").await;
    load.acknowledges(100).await;
    // It does not come back before there is room…
    cluster.start_node(struck).expect("started");
    stops_by_itself(cluster, struck, "No space left on device").await;
    load.acknowledges(50).await;
    // …and then with all that it had acknowledged.
    disks.heal(struck);
    cluster.start_node(struck).expect("started");
    cluster.wait_ready(PATIENCE).await.expect("ready");
    load.acknowledges(50).await;
    let keys = load.stop().await;
    all_there(&client_of(cluster, struck), &keys, Consistency::Linearizable).await;
}

async fn a_flipped_bit_in_the_log_is_found(engine: &str) {
    let (mut cluster, disks) = start_on_disks(engine).await;
    let leader = cluster.leader().await.expect("a leader");
    let struck = others(&mut cluster, leader)[0];
    put(&client(cluster.endpoints()), "before", "1").await;
    disks.set(struck, Fault::FlipWritten { ending: ".segment", seed: 1 });
    let rest = client_of_others(&mut cluster, struck);
    put(&rest, "key", "value").await;
    let flipped = until(PATIENCE, async || (disks.injected(struck).flipped_written == 1).then_some(()));
    assert!(flipped.await.is_some(), "a bit is flipped");
    // What it keeps in memory is right: it must find the damage when it reads its log again.
    cluster.kill(struck).await.expect("killed");
    cluster.start_node(struck).expect("started");
    stops_by_itself(&mut cluster, struck, "it must not vote as this store again").await;
    let log = fs::read_to_string(cluster.node(struck).expect("a node").log()).expect("a log");
    assert!(log.contains("keevee node replace"), "it says what to do:\n{log}");
    put(&rest, "key", "later").await;
    assert_eq!(get(&rest, "before").await.as_deref(), Some("1"));
}
