//! A node alone, of which a part fails.

use std::future::pending;
use std::path::Path;

use keevee_replica::ChainHash;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::*;
use crate::config::MemberConfig;
use crate::storage::StoreId;
use crate::transport::{BoxFuture, Forward, ForwardReply, PeerHandler, PeerMessage};

const DEADLINE: Duration = Duration::from_secs(20);

/// The configuration of a cluster of one, whose folder is ready.
fn alone(folder: &Path) -> Config {
    let cluster = uuid::Uuid::from_u128(7);
    let identity = DataFolder::format(folder, cluster, NodeId(1)).unwrap();
    let addresses = "http = \"127.0.0.1:0\"\npeer = \"127.0.0.1:0\"";
    let text = format!(
        "[cluster]\nid = \"{cluster}\"\nsecret = \"a secret of sixteen\"\n\
         [node]\nid = 1\ndata = {folder:?}\n{addresses}\n[[member]]\nid = 1\n{addresses}\n"
    );
    let config = Config::parse(&text, &folder.join("keevee.toml")).unwrap();
    set_members(&config, &[(identity.node_id, identity.store_id)]);
    config
}

fn set_members(config: &Config, members: &[(NodeId, StoreId)]) {
    let map = config.first_map(members, &[]).unwrap();
    DataFolder::set_first_members(&config.node.data, members, &map).unwrap();
}

fn disk_error() -> StorageError {
    StorageError::Io { what: "flushing the state", cause: "no".to_owned() }
}

/// Runs the node until it stops by itself.
async fn end(server: Server) -> ServerError {
    timeout(DEADLINE, server.run(pending())).await.expect("the node stops in time").unwrap_err()
}

/// Nothing uses the folder any more.
async fn start_again(config: &Config) -> Server {
    Server::start(config).await.unwrap()
}

#[tokio::test]
async fn a_failed_flush_stops_the_node() {
    let temp = TempDir::new().unwrap();
    let config = alone(temp.path());
    let mut server = start_again(&config).await;
    let failing = Flusher::start(|| Err(disk_error()), Duration::from_millis(1), mpsc::channel());
    let flusher = std::mem::replace(&mut server.workers.flusher, failing);
    flusher.stop(false);
    flusher.worker.join().await.unwrap();
    let error = end(server).await;
    assert!(matches!(&error, ServerError::Storage(error) if *error == disk_error()), "{error}");

    let server = start_again(&config).await;
    timeout(DEADLINE, server.run(async {})).await.unwrap().unwrap();
}

#[tokio::test]
async fn what_is_to_be_flushed_during_a_flush_is_flushed_by_one_more() {
    let (begun_in, begun) = mpsc::channel();
    let (goes_on, may_go_on) = mpsc::channel::<()>();
    let flush = move || {
        begun_in.send(()).unwrap();
        may_go_on.recv().unwrap();
        Ok(())
    };
    let flusher = Flusher::start(flush, Duration::from_secs(3600), mpsc::channel());
    flusher.orders.send(FlushOrder::Now).unwrap();
    begun.recv_timeout(DEADLINE).expect("it flushes though its time has not come");
    (0..3).for_each(|_| flusher.orders.send(FlushOrder::Now).unwrap());
    goes_on.send(()).unwrap();
    begun.recv_timeout(DEADLINE).expect("it flushes once more");
    flusher.orders.send(FlushOrder::Now).unwrap();
    flusher.stop(false);
    goes_on.send(()).unwrap();
    timeout(DEADLINE, flusher.worker.join()).await.expect("it ends in time").unwrap();
    assert!(begun.recv().is_err(), "and flushes no more");
}

#[tokio::test]
async fn a_failed_executor_stops_the_node_and_its_other_threads() {
    let temp = TempDir::new().unwrap();
    let config = alone(temp.path());
    let failed = || Err(FatalError::Log(disk_error()));
    let failures: [fn() -> Result<(), FatalError>; 2] = [failed, || panic!("as the test wants")];
    for failure in failures {
        let mut server = start_again(&config).await;
        server.node.stop(Instant::now());
        (&mut server.workers.executor.ended).await.unwrap_err();
        let failing = Worker::start("executor", tokio::spawn(async move { failure() }));
        std::mem::replace(&mut server.workers.executor, failing).join().await.unwrap();
        let error = end(server).await;
        assert!(matches!(error, ServerError::Fatal(_) | ServerError::Panicked), "{error}");
    }
    start_again(&config).await.run(async {}).await.unwrap();
}

#[tokio::test]
async fn a_node_that_cannot_start_leaves_its_folder_free() {
    let temp = TempDir::new().unwrap();
    let mut config = alone(temp.path());
    let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
    config.node.peer = taken.local_addr().unwrap().to_string();
    let error = Server::start(&config).await.err().unwrap();
    assert!(matches!(error, ServerError::Listen { .. }), "{error}");
    config.node.peer = "127.0.0.1:0".to_owned();
    start_again(&config).await.run(async {}).await.unwrap();
}

#[tokio::test]
async fn a_file_may_name_nodes_that_joined_and_must_name_the_first_ones() {
    let temp = TempDir::new().unwrap();
    let mut config = alone(temp.path());
    let own = config.members[0].clone();
    config.members.push(MemberConfig { id: 4, ..own.clone() });
    start_again(&config).await.run(async {}).await.unwrap();
    config.members = vec![MemberConfig { id: 4, ..own }];
    let error = Server::start(&config).await.err().unwrap();
    assert!(matches!(error, ServerError::Mismatch { .. }), "{error}");
}

/// Hears nothing: what a peer of the node under test needs.
struct Silent;

impl PeerHandler for Silent {
    fn receive(&self, _from: NodeId, _shard: ShardId, _messages: Vec<PeerMessage>) {}

    fn disconnected(&self, _node: NodeId) {}

    fn execute_forwarded(&self, _from: NodeId, _forward: Forward) -> BoxFuture<Vec<ForwardReply>> {
        Box::pin(pending())
    }
}

#[tokio::test]
async fn messages_for_a_shard_that_is_not_held_are_dropped_and_counted() {
    let temp = TempDir::new().unwrap();
    let cluster = uuid::Uuid::from_u128(7);
    let identity = DataFolder::format(temp.path(), cluster, NodeId(1)).unwrap();
    let other = StoreId(uuid::Uuid::from_u128(9));
    let members = [(NodeId(1), identity.store_id), (NodeId(2), other)];
    let free = async || TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (public, peer, second) = (free().await, free().await, free().await);
    let address = |listener: &TcpListener| listener.local_addr().unwrap().to_string();
    let text = format!(
        "[cluster]\nid = \"{cluster}\"\nsecret = \"a secret of sixteen\"\n\
         [node]\nid = 1\ndata = {folder:?}\nhttp = {http:?}\npeer = {one:?}\n\
         [[member]]\nid = 1\nhttp = {http:?}\npeer = {one:?}\n\
         [[member]]\nid = 2\nhttp = {two:?}\npeer = {two:?}\n",
        folder = temp.path(),
        http = address(&public),
        one = address(&peer),
        two = address(&second),
    );
    drop((public, peer));
    let config = Config::parse(&text, &temp.path().join("keevee.toml")).unwrap();
    set_members(&config, &members);
    let server = start_again(&config).await;
    let (stop, stopped) = oneshot::channel::<()>();
    let running = tokio::spawn(server.run(async {
        let _ = stopped.await;
    }));

    let peer = |id: u64, store: StoreId, address: &str| Peer {
        id: NodeId(id),
        store_id: store.to_string(),
        address: address.to_owned(),
    };
    let two = PeerConfig {
        cluster_id: cluster.to_string(),
        secret: config.cluster.secret.clone(),
        node: NodeId(2),
        store_id: other.to_string(),
        peers: [peer(1, identity.store_id, &config.node.peer)].into_iter().collect(),
        body_bytes_max: BODY_BYTES_MAX_DEFAULT,
        bounds: PeerBounds::default(),
    };
    let two = transport::open(config.cluster.peer_transport, two, &Arc::new(Metrics::new())).unwrap();
    two.start(Arc::new(Silent), second);
    let counted = async {
        loop {
            // What is sent before there is a connection is dropped.
            two.send(NodeId(1), vec![(ShardId(9), PeerMessage::ChainHash(ChainHash { index: 1, chain: 7 }))]);
            let line =
                metric(&config.node.http, "keevee_peer_refused_total{reason=\"unknown_shard\"} ").await;
            if line > 0 {
                break;
            }
        }
    };
    timeout(DEADLINE, counted).await.expect("it is counted in time");
    two.stop();
    stop.send(()).unwrap();
    timeout(DEADLINE, running).await.unwrap().unwrap().unwrap();
}

/// The value of a metric on a node's public port.
async fn metric(address: &str, name: &str) -> u64 {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request = format!("GET /metrics HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).await.unwrap();
    let value = text.lines().find_map(|line| line.strip_prefix(name));
    value.expect("it is among the metrics").parse().unwrap()
}

async fn ready(node: &Node) {
    let ready = async {
        while !node.is_ready() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    timeout(DEADLINE, ready).await.expect("a leader");
}

#[tokio::test]
async fn the_map_can_be_changed_as_soon_as_a_node_is_ready() {
    let temp = TempDir::new().unwrap();
    let server = start_again(&alone(temp.path())).await;
    let node = server.node.clone();
    // The system shard has a leader, and holds no map yet: that is its leader's next look.
    let (stop, stopped) = oneshot::channel::<()>();
    let running = tokio::spawn(server.run(async {
        let _ = stopped.await;
    }));
    ready(&node).await;
    node.change_map(|map| Ok(map.clone())).await.expect("it waits for the first map");
    drop((stop, node));
    timeout(DEADLINE, running).await.unwrap().unwrap().unwrap();
}

#[tokio::test]
async fn a_command_of_a_range_goes_where_its_caller_says() {
    use keevee_core::command::{Action, Command, OperationResult, Outcome};
    use keevee_core::error::ErrorKind;
    use keevee_core::range::KeyRange;

    use crate::node::Context;

    let temp = TempDir::new().unwrap();
    let server = start_again(&alone(temp.path())).await;
    let node = &server.node;
    ready(node).await;
    let until = || Context::until(Instant::now() + DEADLINE);
    let put = Command::single(Action::put("k", "v"));
    node.execute(until(), put.clone()).await.unwrap();
    let range = || KeyRange::of_prefix("k");
    let scan = Command::single(Action::Scan { range: range(), limit: 9, bytes_max: 9 });
    let delete = Command::single(Action::DeleteRange { range: range(), limit: 9 });
    let within = |shard: u32| Context { shard: Some(ShardId(shard)), ..until() };

    let kind =
        async |context, command: &Command| node.execute(context, command.clone()).await.unwrap_err().kind;
    for command in [&scan, &delete] {
        assert_eq!(kind(until(), command).await, ErrorKind::Invalid, "no shard is named");
        assert_eq!(kind(within(0), command).await, ErrorKind::Invalid, "the shard map is no key");
        assert_eq!(kind(within(7), command).await, ErrorKind::Invalid, "there is no such shard");
        let routing = Context { redirect: true, ..within(7) };
        assert_eq!(kind(routing, command).await, ErrorKind::WrongShard);
    }
    assert_eq!(kind(within(2), &put).await, ErrorKind::Invalid, "a key is in its own shard");
    let mut mixed = scan.clone();
    mixed.operations.extend(put.operations.clone());
    assert_eq!(kind(within(1), &mixed).await, ErrorKind::Invalid);

    let Outcome::Done(results) = node.execute(within(1), scan).await.unwrap() else { panic!("no scan") };
    assert!(matches!(&results[..], [OperationResult::Scanned { keys, next: None }] if keys[0].key == "k"));
    let deleted = Outcome::Done(vec![OperationResult::DeletedRange { deleted: 1, next: None }]);
    assert_eq!(node.execute(within(1), delete).await, Ok(deleted));
    server.run(async {}).await.unwrap();
}
