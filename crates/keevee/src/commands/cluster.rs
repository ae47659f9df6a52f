//! `keevee cluster`: a cluster on this machine. The scripts are thin wrappers on these commands.

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};
use keevee_client::{Client, Options};
use keevee_cluster::{Choices, Cluster, ClusterError, Ending, Plan};

use crate::check;
use crate::commands::status;
use crate::failure::Failure;

/// Start, stop, watch and check a cluster on this machine.
#[derive(Subcommand)]
#[command(after_help = "\
Examples:
  keevee cluster start
  keevee cluster status
  keevee cluster stop")]
pub(crate) enum Command {
    Start(StartArguments),
    /// Stop the nodes that run; their data stays
    #[command(after_help = "\
Examples:
  keevee cluster stop
  keevee cluster stop --data /var/tmp/kv")]
    Stop(FolderArguments),
    /// Show which nodes run and how they are
    #[command(after_help = "\
Examples:
  keevee cluster status
  keevee cluster status --data /var/tmp/kv")]
    Status(FolderArguments),
    #[command(subcommand)]
    Check(check::Command),
}

/// Start the nodes and wait until they serve.
///
/// Makes the cluster if the folder holds none; starts again what is not running of one that is there.
#[derive(Args)]
#[command(after_help = "\
Examples:
  keevee cluster start
  keevee cluster start --nodes 5
  keevee cluster start --consensus raft
  keevee cluster start --peer-transport http-json
  keevee cluster start --data /var/tmp/kv --http-port 8101 --peer-port 9101")]
pub(crate) struct StartArguments {
    #[command(flatten)]
    folder: FolderArguments,
    /// How many nodes, 1 to 9 [default: 3]
    #[arg(long, value_name = "COUNT")]
    nodes: Option<u64>,
    /// How the nodes of a new cluster agree [default: paxos]
    #[arg(long, value_enum)]
    consensus: Option<Consensus>,
    /// Node 1's public port; the others' follow [default: 8001]
    #[arg(long, value_name = "PORT")]
    http_port: Option<u16>,
    /// Node 1's port for the other nodes; theirs follow [default: 9001]
    #[arg(long, value_name = "PORT")]
    peer_port: Option<u16>,
    /// What the nodes speak to each other [default: grpc]
    #[arg(long, value_enum, value_name = "PROTOCOL")]
    peer_transport: Option<PeerTransport>,
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
        Choices { consensus: Some(self.name().to_owned()), peer_transport: None }
    }
}

/// Which cluster.
#[derive(Args)]
pub(crate) struct FolderArguments {
    /// The cluster's folder
    #[arg(long, value_name = "DIR", env = "KEEVEE_DATA", default_value = "./tmp/data")]
    pub(crate) data: PathBuf,
}

pub(crate) async fn run(command: Command) -> Result<(), Failure> {
    match command {
        Command::Start(arguments) => start(arguments).await,
        Command::Stop(arguments) => stop(&arguments.data).await,
        Command::Status(arguments) => show(&arguments.data).await,
        Command::Check(command) => check::run(command).await,
    }
}

async fn start(arguments: StartArguments) -> Result<(), Failure> {
    let folder = arguments.folder.data;
    let plan = Plan {
        folder: folder.clone(),
        program: std::env::current_exe()?,
        nodes: arguments.nodes,
        http_port: arguments.http_port,
        peer_port: arguments.peer_port,
        choices: Choices {
            consensus: arguments.consensus.map(|consensus| consensus.name().to_owned()),
            peer_transport: arguments.peer_transport.map(|transport| transport.name().to_owned()),
        },
    };
    let mut cluster = Cluster::open_or_create(&plan).await?;
    let started = cluster.start()?;
    if started.is_empty() {
        println!("A cluster is running in {}:", folder.display());
    } else {
        let ready = cluster.wait_ready(Duration::from_secs(60)).await;
        if let Err(error) = ready {
            end_started(&mut cluster, &started).await;
            return Err(error.into());
        }
        let all = started.len() == cluster.nodes().len();
        let what = if all { "The cluster".to_owned() } else { nodes_text(&started) };
        println!("{what} started in {}:", folder.display());
    }
    introduce(&mut cluster, &folder).await;
    Ok(())
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

/// Addresses, and what to do with them.
async fn introduce(cluster: &mut Cluster, folder: &Path) {
    let leader = cluster.leader().await;
    for node in cluster.nodes() {
        let role = if Some(node.id) == leader { "leads now" } else { "" };
        let line = format!("  node {}  http://{}  {role}", node.id, node.http);
        println!("{}", line.trim_end());
    }
    let ports: Vec<_> = cluster.nodes().iter().map(|node| node.http).collect();
    let (first, last) = (ports[0], ports[ports.len() - 1]);
    println!("Try it:");
    println!("  curl -X PUT http://{first}/kv/color/green");
    println!("  curl http://{last}/kv/color");
    println!("Logs: keevee.log in {}/node*/", folder.display());
}

async fn stop(folder: &Path) -> Result<(), Failure> {
    let mut cluster = Cluster::open(folder, &std::env::current_exe()?)?;
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

async fn show(folder: &Path) -> Result<(), Failure> {
    let mut cluster = match Cluster::open(folder, &std::env::current_exe()?) {
        Err(ClusterError::NoCluster { folder }) => {
            println!("There is no cluster in {}.", folder.display());
            return Ok(());
        }
        result => result?,
    };
    for node in cluster.nodes() {
        let state = match node.pid() {
            Some(pid) => format!("runs as process {pid}"),
            None => "is not running".to_owned(),
        };
        println!("node {} {state}: http://{}", node.id, node.http);
    }
    if cluster.running().is_empty() {
        return Ok(());
    }
    let options = Options { timeout: Duration::from_secs(5), ..Options::default() };
    let client = Client::new(cluster.endpoints(), options)?;
    print!("\n{}", status::table(&status::rows(&client).await?));
    Ok(())
}
