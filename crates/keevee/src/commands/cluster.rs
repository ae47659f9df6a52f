//! `keevee cluster`: a cluster on this machine. The scripts are thin wrappers on these commands.

use std::path::{Path, PathBuf};
use std::pin::pin;
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};
use keevee_client::{Client, Options};
use keevee_cluster::{Choices, Cluster, ClusterError, Config, Ending, Layout, Plan};
use serde::Serialize;
use serde_json::json;

use crate::api::Api;
use crate::check;
use crate::commands::Output;
use crate::commands::server::asked_to_stop;
use crate::commands::shards;
use crate::commands::status::{self, Row};
use crate::commands::table::list;
use crate::failure::Failure;

/// How long a cluster may take to serve, and how much longer for each node that starts: they share the machine.
const START_PATIENCE: Duration = Duration::from_secs(60);
const START_PATIENCE_PER_NODE: Duration = Duration::from_secs(5);
/// How long nodes that run may take to say how they are.
const ASK_PATIENCE: Duration = Duration::from_secs(5);

/// Start, stop, watch and check a cluster on this machine.
#[derive(Subcommand)]
#[command(after_help = "\
Examples:
  keevee cluster start
  keevee cluster start --config Config.toml
  keevee cluster status
  keevee cluster stop")]
pub(crate) enum Command {
    Start(StartArguments),
    /// Stop the nodes that run; their data stays
    #[command(after_help = "\
Examples:
  keevee cluster stop
  keevee cluster stop --config Config.toml
  keevee cluster stop --data /var/tmp/kv")]
    Stop(FolderArguments),
    /// Show which nodes run, and how they and the shards are
    #[command(after_help = "\
Examples:
  keevee cluster status
  keevee cluster status --config Config.toml
  keevee cluster status --data /var/tmp/kv --output json")]
    Status(StatusArguments),
    #[command(subcommand)]
    Check(check::Command),
}

impl Command {
    /// True if it stays until it is asked to stop, and then has something to do.
    pub(crate) fn watches(&self) -> bool {
        matches!(self, Command::Start(arguments) if arguments.watch)
    }
}

/// Start the nodes and wait until they serve.
///
/// Makes the cluster if the folder holds none; starts again what is not running of one that is there. The nodes
/// run on when this command ends; with --watch it stays, starts nodes again that die, and stops all on Ctrl-C.
#[derive(Args)]
#[command(after_help = "\
Examples:
  keevee cluster start
  keevee cluster start --watch
  keevee cluster start --nodes 5 --shards 16 --replicas 3
  keevee cluster start --consensus raft
  keevee cluster start --peer-transport http-json
  keevee cluster start --data /var/tmp/kv --http-port 8101 --peer-port 9101 --resp-port 7101
  keevee cluster start --config Config.toml --output json

docs/operations.md explains every key of Config.toml.")]
pub(crate) struct StartArguments {
    #[command(flatten)]
    folder: FolderArguments,
    /// How many nodes, 1 to 30 [default: 3]
    #[arg(long, value_name = "COUNT", conflicts_with = "config")]
    nodes: Option<u64>,
    /// How many shards a new cluster's keys are spread over [default: 1]
    #[arg(long, value_name = "COUNT", conflicts_with = "config", value_parser = clap::value_parser!(u16).range(1..=2048))]
    shards: Option<u16>,
    /// How many nodes hold each shard [default: all, five at most]
    #[arg(long, value_name = "COUNT", conflicts_with = "config")]
    replicas: Option<u64>,
    /// How the nodes of a new cluster agree [default: paxos]
    #[arg(long, value_enum, conflicts_with = "config")]
    consensus: Option<Consensus>,
    /// Node 1's public port, the others' follow; 0: any that are free [default: 8001]
    #[arg(long, value_name = "PORT", conflicts_with = "config")]
    http_port: Option<u16>,
    /// Node 1's port for the other nodes, theirs follow; 0: any that are free [default: 9001]
    #[arg(long, value_name = "PORT", conflicts_with = "config")]
    peer_port: Option<u16>,
    /// Node 1's port for the Redis protocol, the others' follow; 0: any that are free [default: 7001]
    #[arg(long, value_name = "PORT", conflicts_with = "config")]
    resp_port: Option<u16>,
    /// What the nodes speak to each other [default: grpc]
    #[arg(long, value_enum, value_name = "PROTOCOL", conflicts_with = "config")]
    peer_transport: Option<PeerTransport>,
    /// Stay, start nodes again that die, and stop all on Ctrl-C
    #[arg(long)]
    watch: bool,
    /// How to print what was started
    #[arg(long, value_enum, default_value_t = Output::Text)]
    output: Output,
}

#[derive(Args)]
pub(crate) struct StatusArguments {
    #[command(flatten)]
    folder: FolderArguments,
    /// How to print the answer
    #[arg(long, value_enum, default_value_t = Output::Text)]
    output: Output,
}

#[derive(Clone, Copy, ValueEnum)]
enum PeerTransport {
    /// Streams of gRPC
    Grpc,
    /// Readable JSON over HTTP, for teaching and debugging
    HttpJson,
}

impl PeerTransport {
    /// As `keevee.toml` names it.
    fn name(self) -> &'static str {
        match self {
            PeerTransport::Grpc => "grpc",
            PeerTransport::HttpJson => "http-json",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Consensus {
    /// keevee's own Multi-Paxos
    Paxos,
    /// Raft, by openraft
    Raft,
}

impl Consensus {
    /// As `keevee.toml` names it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Consensus::Paxos => "paxos",
            Consensus::Raft => "raft",
        }
    }

    /// What the nodes of a cluster that agree so have in common.
    pub(crate) fn choices(self) -> Choices {
        Choices { consensus: Some(self.name().to_owned()), ..Choices::default() }
    }
}

/// Which cluster.
#[derive(Args)]
pub(crate) struct FolderArguments {
    /// The cluster's folder [env: KEEVEE_DATA] [default: what --config says, or ./tmp/data]
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// A Config.toml that describes the cluster
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

impl FolderArguments {
    /// The cluster's folder. What is nearer to this very call comes first: the option, the file, the environment.
    pub(crate) fn folder(&self) -> Result<PathBuf, Failure> {
        let from_file = self.config()?.and_then(|config| config.data);
        let from_environment = || std::env::var_os("KEEVEE_DATA").map(PathBuf::from);
        let named = self.data.clone().or(from_file).or_else(from_environment);
        Ok(named.unwrap_or_else(|| PathBuf::from("./tmp/data")))
    }

    fn config(&self) -> Result<Option<Config>, Failure> {
        Ok(self.config.as_deref().map(Config::load).transpose()?)
    }
}

pub(crate) async fn run(command: Command) -> Result<(), Failure> {
    match command {
        Command::Start(arguments) if arguments.watch => start_and_watch(arguments).await,
        Command::Start(arguments) => start(&arguments).await.map(|_| ()),
        Command::Stop(arguments) => stop(&mut open(&arguments.folder()?)?).await,
        Command::Status(arguments) => show(&arguments).await,
        Command::Check(command) => check::run(command).await,
    }
}

fn open(folder: &Path) -> Result<Cluster, Failure> {
    Ok(Cluster::open(folder, &std::env::current_exe()?)?)
}

impl StartArguments {
    fn plan(&self) -> Result<Plan, Failure> {
        let (folder, program) = (self.folder.folder()?, std::env::current_exe()?);
        if let Some(config) = self.folder.config()? {
            return Ok(config.plan(folder, program));
        }
        let replicas = self.replicas;
        let layout = match self.shards {
            None if replicas.is_none() => None,
            shards => Some(Layout::Shared { shards: shards.unwrap_or(1), replicas }),
        };
        let choices = Choices {
            consensus: self.consensus.map(|consensus| consensus.name().to_owned()),
            peer_transport: self.peer_transport.map(|transport| transport.name().to_owned()),
            layout,
        };
        let StartArguments { nodes, http_port, peer_port, resp_port, .. } = *self;
        Ok(Plan { folder, program, nodes, http_port, peer_port, resp_port, choices })
    }
}

async fn start(arguments: &StartArguments) -> Result<Cluster, Failure> {
    let plan = arguments.plan()?;
    let mut cluster = Cluster::open_or_create(&plan).await?;
    let started = cluster.start()?;
    if !started.is_empty() {
        let patience = START_PATIENCE + START_PATIENCE_PER_NODE * started.len() as u32;
        if let Err(error) = cluster.wait_ready(patience).await {
            end_started(&mut cluster, &started).await;
            return Err(error.into());
        }
    }
    let rows = status::rows(&client(&cluster)?).await?;
    match arguments.output {
        Output::Json => {
            let nodes = with_pids(&mut cluster, rows);
            println!("{}", json!({ "folder": plan.folder, "started": started, "nodes": nodes }));
        }
        Output::Text => introduce(&mut cluster, &started, &rows),
    }
    Ok(cluster)
}

/// Stays until the cluster is stopped: by a signal to this program, or by another program.
async fn start_and_watch(arguments: StartArguments) -> Result<(), Failure> {
    if arguments.output == Output::Json {
        return Err(Failure::usage(
            "--output json is one document, which --watch does not end: leave one out",
        ));
    }
    let mut asked_to_stop = pin!(asked_to_stop());
    let mut cluster = tokio::select! {
        started = start(&arguments) => started?,
        () = &mut asked_to_stop => {
            // Whatever runs by now; there may be no cluster yet.
            if let Ok(mut cluster) = open(&arguments.folder.folder()?) {
                stop(&mut cluster).await?;
            }
            return Err(Failure::other("interrupted"));
        }
    };
    println!("Watching. Ctrl-C stops the cluster.");
    tokio::select! {
        watched = cluster.watch(|event| println!("{event}")) => {
            println!("The cluster was stopped.");
            return Ok(watched?);
        }
        () = &mut asked_to_stop => {}
    }
    stop(&mut cluster).await
}

/// A start that failed leaves nothing running that did not run before.
async fn end_started(cluster: &mut Cluster, started: &[u64]) {
    for id in started {
        // The failure to start is what the user must know, not that there was nothing left to end.
        let _ = cluster.stop_node(*id, Duration::from_secs(10)).await;
    }
}

fn nodes_text(ids: &[u64]) -> String {
    let ids: Vec<String> = ids.iter().map(u64::to_string).collect();
    match ids.as_slice() {
        [id] => format!("Node {id} was"),
        ids => format!("Nodes {} were", ids.join(", ")),
    }
}

/// What was started, its addresses, and what to do with them.
fn introduce(cluster: &mut Cluster, started: &[u64], rows: &[Row]) {
    let folder = cluster.folder().display().to_string();
    match started.len() {
        0 => println!("A cluster is running in {folder}:"),
        count if count == cluster.nodes().len() => println!("The cluster started in {folder}:"),
        _ => println!("{} started in {folder}:", nodes_text(started)),
    }
    for node in cluster.nodes() {
        let row = rows.iter().find(|row| row.node == node.id);
        let resp = node.resp.map_or_else(String::new, |resp| format!("redis://{resp}  "));
        let leads = row.map_or_else(String::new, leads);
        let line = format!("  node {}  http://{}  {resp}{leads}", node.id, node.http);
        println!("{}", line.trim_end());
    }
    let ports: Vec<_> = cluster.nodes().iter().map(|node| node.http).collect();
    let (first, last) = (ports[0], ports[ports.len() - 1]);
    println!("Try it:");
    println!("  curl -X PUT http://{first}/kv/color/green");
    println!("  curl http://{last}/kv/color");
    if let Some(resp) = cluster.nodes()[0].resp {
        println!("  redis-cli -p {} GET color", resp.port());
    }
    println!("Logs: keevee.log in {folder}/node*/");
}

/// What a node leads of the data shards.
fn leads(row: &Row) -> String {
    let shards = row.status.iter().flat_map(|status| &status.shards).filter(|shard| shard.shard > 0);
    let led: Vec<u32> = shards.filter(|shard| shard.role == "leader").map(|shard| shard.shard).collect();
    match led.len() {
        0 => String::new(),
        1 => format!("leads shard {} now", led[0]),
        2..=5 => format!("leads shards {} now", list(led)),
        count => format!("leads {count} shards now"),
    }
}

/// A client of the cluster's nodes.
fn client(cluster: &Cluster) -> Result<Client, Failure> {
    let options = Options { timeout: ASK_PATIENCE, ..Options::default() };
    Ok(Client::new(cluster.endpoints(), options)?)
}

async fn stop(cluster: &mut Cluster) -> Result<(), Failure> {
    let endings = cluster.stop(Duration::from_secs(30)).await?;
    for (id, ending) in endings {
        match ending {
            Ending::NotRunning => println!("node {id} was not running"),
            Ending::Graceful => println!("node {id} stopped"),
            Ending::Killed => println!("node {id} did not stop in time and was killed"),
        }
    }
    Ok(())
}

async fn show(arguments: &StatusArguments) -> Result<(), Failure> {
    let (folder, as_json) = (arguments.folder.folder()?, arguments.output == Output::Json);
    let mut cluster = match Cluster::open(&folder, &std::env::current_exe()?) {
        Err(ClusterError::NoCluster { folder }) if as_json => {
            println!("{}", json!({ "folder": folder, "nodes": [], "shards": [] }));
            return Ok(());
        }
        Err(ClusterError::NoCluster { folder }) => {
            println!("There is no cluster in {}.", folder.display());
            return Ok(());
        }
        result => result?,
    };
    if !as_json {
        processes(&mut cluster);
    }
    let (mut rows, mut shards) = (Vec::new(), Vec::new());
    if !cluster.running().is_empty() {
        rows = status::rows(&client(&cluster)?).await?;
        shards = shards::all(&Api { nodes: &cluster.endpoints(), timeout: ASK_PATIENCE }).await?;
    }
    if as_json {
        if rows.is_empty() {
            let silent = cluster.nodes().iter().map(|node| Row {
                resp: node.resp.map(|resp| resp.to_string()),
                ..Row::new(node.id, node.http.to_string(), None)
            });
            rows = silent.collect();
        }
        let nodes = with_pids(&mut cluster, rows);
        println!("{}", json!({ "folder": folder, "nodes": nodes, "shards": shards }));
    } else if !rows.is_empty() {
        print!("\n{}", status::tables(&rows, &shards));
    }
    Ok(())
}

fn processes(cluster: &mut Cluster) {
    for node in cluster.nodes() {
        let state = match node.pid() {
            Some(pid) => format!("runs as process {pid}"),
            None => "is not running".to_owned(),
        };
        println!("node {} {state}: http://{}", node.id, node.http);
    }
}

/// A node, as `keevee status` has it, and its process if it runs.
#[derive(Serialize)]
struct WithPid {
    pid: Option<u32>,
    #[serde(flatten)]
    row: Row,
}

fn with_pids(cluster: &mut Cluster, rows: Vec<Row>) -> Vec<WithPid> {
    // The map may have nodes that are not of this folder.
    let mut pid = |id| cluster.node(id).ok().and_then(|node| node.pid());
    rows.into_iter().map(|row| WithPid { pid: pid(row.node), row }).collect()
}
