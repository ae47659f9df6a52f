//! Nodes that join a cluster that serves, shards that are placed on them, and nodes that move.

use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use keevee_client::{Connection, Endpoint};
use keevee_cluster::{TemporaryCluster, free_ports, until};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::{PATIENCE, catches_up, client, client_of, endpoint_of, get, program, put, start};

with_both_engines! {
    a_node_joins_and_is_given_a_shard
    who_does_not_belong_to_the_cluster_is_refused
    a_node_whose_port_is_taken_changes_nothing
    a_node_that_moves_is_followed_by_the_others
}

/// A node beside a cluster. Dropped, its process is gone.
pub(crate) struct Joiner {
    pub(crate) config: PathBuf,
    http: u16,
    peer: u16,
    child: Option<Child>,
    _folder: TempDir,
}

impl Joiner {
    /// With the cluster's id, and this secret or the cluster's.
    pub(crate) fn new(cluster: &mut TemporaryCluster, id: u64, secret: Option<&str>) -> Joiner {
        let known = fs::read_to_string(cluster.node(1).expect("a node").config()).expect("a configuration");
        let line = |key: &str| {
            let found = known.lines().find(|line| line.trim_start().starts_with(key));
            found.expect("it is there").to_owned()
        };
        let secret = secret.map_or_else(|| line("secret"), |secret| format!("secret = {secret:?}"));
        Joiner::of(&line("id = \""), &secret, id)
    }

    /// Of the cluster that these two lines of `keevee.toml` name.
    pub(crate) fn of(cluster: &str, secret: &str, id: u64) -> Joiner {
        let folder = TempDir::new().expect("a folder");
        let free = || std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let (http, peer) = (free(), free());
        let port = |listener: &std::net::TcpListener| listener.local_addr().expect("bound").port();
        let (http, peer) = (port(&http), port(&peer));
        let addresses = format!("http = \"127.0.0.1:{http}\"\npeer = \"127.0.0.1:{peer}\"\n");
        let text = format!("[cluster]\n{cluster}\n{secret}\n[node]\nid = {id}\ndata = \"data\"\n{addresses}");
        let config = folder.path().join("keevee.toml");
        fs::write(&config, text).expect("written");
        Joiner { config, http, peer, child: None, _folder: folder }
    }

    pub(crate) fn start(&mut self, arguments: &[&str]) {
        let mut command = Command::new(program());
        command.args(["server", "--config"]).arg(&self.config).args(arguments);
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn();
        self.child = Some(child.expect("the program"));
    }

    pub(crate) fn start_unless_running(&mut self, arguments: &[&str]) {
        if self.child.is_none() {
            self.start(arguments);
        }
    }

    /// Waits until it refuses to go on: what it says.
    pub(crate) async fn refusal(&mut self) -> String {
        let mut child = self.child.take().expect("it was started");
        let ended = until(PATIENCE, async || child.try_wait().expect("a child")).await;
        if ended.is_none() {
            let _ = child.kill();
        }
        let output = child.wait_with_output().expect("its output");
        assert_eq!(output.status.code(), Some(1));
        String::from_utf8_lossy(&output.stderr).into_owned()
    }

    pub(crate) fn endpoint(&self) -> Endpoint {
        format!("http://127.0.0.1:{}", self.http).parse().expect("an endpoint")
    }

    pub(crate) fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Drop for Joiner {
    fn drop(&mut self) {
        self.kill();
    }
}

pub(crate) async fn ask(endpoint: &Endpoint, path: &str) -> Option<Value> {
    let mut connection = Connection::open(endpoint, PATIENCE).await.ok()?;
    let (status, body) = connection.ask(path).await.ok()?;
    (status == 200).then(|| serde_json::from_slice(&body).expect("JSON"))
}

/// Posts JSON: the status, and the answer.
pub(crate) async fn post(endpoint: &Endpoint, path: &str, body: &Value) -> (u16, Value) {
    let mut stream = TcpStream::connect(endpoint.authority()).await.expect("connected");
    let body = body.to_string();
    let head = format!(
        "POST {path} HTTP/1.1\r\nhost: h\r\nconnection: close\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all((head + &body).as_bytes()).await.expect("sent");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.expect("an answer");
    let status = answer.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status");
    let (_, body) = answer.split_once("\r\n\r\n").expect("a body");
    (status, serde_json::from_str(body).expect("JSON"))
}

async fn a_node_joins_and_is_given_a_shard(engine: &str) {
    let mut cluster = start(3, engine).await;
    put(&client(cluster.endpoints()), "early", "x").await;
    let one = endpoint_of(&mut cluster, 1);
    let mut joiner = Joiner::new(&mut cluster, 4, None);
    // With its scheme, as nodes are named elsewhere.
    joiner.start(&["--join", &one.to_string()]);
    let there = client(vec![joiner.endpoint()]);
    assert_eq!(get(&there, "early").await.as_deref(), Some("x"), "it holds nothing and forwards");
    put(&there, "through 4", "y").await;
    assert_eq!(get(&client_of(&mut cluster, 2), "through 4").await.as_deref(), Some("y"));

    let wanted = json!({ "name": "late", "engine": engine, "members": [4, 1, 2] });
    let (status, shard) = post(&one, "/v1/cluster/shards", &wanted).await;
    assert_eq!(status, 201, "{shard}");
    assert_eq!((&shard["id"], &shard["load_factor"]), (&json!(2), &json!(0)));
    let (status, problem) = post(&one, "/v1/cluster/shards", &wanted).await;
    assert_eq!(status, 400, "the name is taken: {problem}");
    let holds = async |endpoint: &Endpoint| {
        until(PATIENCE, async || {
            let status = ask(endpoint, "/v1/cluster/status").await?;
            let shards = status["shards"].as_array()?.clone();
            let late = shards.into_iter().find(|shard| shard["shard"] == 2)?;
            late["leader"].is_u64().then_some(())
        })
        .await
    };
    assert!(holds(&joiner.endpoint()).await.is_some(), "its replica has a leader");

    // Its folder knows all that it needs.
    joiner.kill();
    put(&client_of(&mut cluster, 3), "while it is away", "z").await;
    joiner.start(&[]);
    assert!(holds(&joiner.endpoint()).await.is_some());
    assert_eq!(get(&there, "while it is away").await.as_deref(), Some("z"));

    // A restart of everything keeps the map.
    cluster.kill_all().await.expect("killed");
    joiner.kill();
    cluster.start().expect("started");
    joiner.start(&["--join", one.authority()]);
    assert!(holds(&joiner.endpoint()).await.is_some());
    let map = ask(&one, "/v1/cluster/carp").await.expect("a map");
    assert_eq!(map["shards"].as_array().map(Vec::len), Some(3), "{map}");
    assert_eq!(map["nodes"].as_array().map(Vec::len), Some(4), "{map}");
}

async fn who_does_not_belong_to_the_cluster_is_refused(engine: &str) {
    let mut cluster = start(1, engine).await;
    let one = endpoint_of(&mut cluster, 1);
    let mut stranger = Joiner::new(&mut cluster, 2, Some("another secret of many letters"));
    stranger.start(&["--join", one.authority()]);
    let said = stranger.refusal().await;
    assert!(said.contains("secret"), "{said}");
    // A number that is taken, by another folder.
    let mut twin = Joiner::new(&mut cluster, 1, None);
    twin.start(&["--join", one.authority()]);
    let said = twin.refusal().await;
    assert!(said.contains("has a node 1 with another folder"), "{said}");
    assert_eq!(ask(&one, "/v1/cluster/carp").await.expect("a map")["epoch"], 1, "nothing has changed");
}

async fn a_node_whose_port_is_taken_changes_nothing(engine: &str) {
    let mut cluster = start(1, engine).await;
    let one = endpoint_of(&mut cluster, 1);
    for port in [|joiner: &Joiner| joiner.http, |joiner: &Joiner| joiner.peer] {
        let mut joiner = Joiner::new(&mut cluster, 2, None);
        let _taken = std::net::TcpListener::bind(("127.0.0.1", port(&joiner))).expect("a free port");
        joiner.start(&["--join", one.authority()]);
        let said = joiner.refusal().await;
        assert!(said.contains(&format!("can't listen on 127.0.0.1:{}", port(&joiner))), "{said}");
        assert!(!joiner.config.with_file_name("data").exists(), "no folder is made");
    }
    assert_eq!(ask(&one, "/v1/cluster/carp").await.expect("a map")["epoch"], 1, "nothing has changed");
}

/// Stops a node and starts it at other ports, which it alone is told.
async fn move_away(cluster: &mut TemporaryCluster, id: u64) {
    cluster.stop_node(id, PATIENCE).await.expect("stopped");
    let node = cluster.node(id).expect("a node");
    let port = free_ports(2);
    let mut text = fs::read_to_string(node.config()).expect("a configuration");
    for (address, port) in [(&mut node.http, port), (&mut node.peer, port + 1)] {
        let old = address.to_string();
        address.set_port(port);
        text = text.replace(&old, &address.to_string());
    }
    fs::write(node.config(), text).expect("written");
    cluster.start_node(id).expect("started");
}

async fn a_node_that_moves_is_followed_by_the_others(engine: &str) {
    let mut cluster = start(3, engine).await;
    put(&client(cluster.endpoints()), "key", "before").await;
    for moved in [2, 1] {
        move_away(&mut cluster, moved).await;
        let http = endpoint_of(&mut cluster, moved);
        // Also from the one that moved itself: its file may have the old address of another.
        for (from, to) in (1..=3).flat_map(|from| (1..=3).map(move |to| (from, to))) {
            let there = endpoint_of(&mut cluster, from);
            let reached = until(PATIENCE, async || {
                let nodes = ask(&there, "/v1/cluster/nodes").await?;
                let known = nodes.as_array()?.iter().find(|node| node["id"] == to)?.clone();
                let is_known = to != moved || known["http"] == http.authority();
                (is_known && known["reachable"] == true).then_some(())
            });
            assert!(reached.await.is_some(), "node {from} does not reach node {to}");
        }
        // It hears of what the others do.
        let value = format!("{moved} moved");
        put(&client_of(&mut cluster, 3), "key", &value).await;
        catches_up(&client_of(&mut cluster, moved), "key", &value).await;
    }
}
