//! `keevee server`: runs a node until it is asked to stop.

use std::collections::BTreeMap;
use std::io;
use std::panic::resume_unwind;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::{Args, ValueEnum};
use keevee_client::{Client, Endpoint, Options};
use keevee_cluster::process;
use keevee_core::ids::{NodeId, ShardId};
use keevee_core::shard_map::ShardMap;
use keevee_server::config::{self, Config, NodeConfig};
use keevee_server::join;
use keevee_server::server::{self, Listeners, Server, ServerError};
use keevee_server::storage::{FolderError, give_up_state};
use tokio::runtime::Handle;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::spawn_blocking;
use tokio::time::sleep;
use tracing_appender::non_blocking::WorkerGuard;
use tracing_subscriber::EnvFilter;

use crate::failure::Failure;

/// How long a node whose state is damaged waits for others that have one: all may be starting…
const OTHERS_AWAITED: Duration = Duration::from_secs(60);
/// …and how often it asks.
const ASKED_AGAIN: Duration = Duration::from_secs(1);

/// Run a node in the foreground.
///
/// Its data folder must have been formatted by `keevee init`; `keevee cluster start` does that for
/// clusters on this machine. On SIGTERM or Ctrl-C the node finishes what is under way, hands its
/// leadership over and exits with 0; a second Ctrl-C ends it at once.
#[derive(Args)]
#[command(after_help = "\
Examples:
  keevee server --config ./tmp/data/node1/keevee.toml
  keevee server --config keevee.toml --join 10.0.0.1:8001
      a new node: its configuration has the cluster's id and secret, and an id and addresses of its own
  keevee server --config keevee.toml --log-level debug --log-format json
  KEEVEE_LOG=info,keevee_server=trace keevee server --config keevee.toml

Logs go to the standard error. While it runs, its process id is in keevee.pid beside keevee.toml.")]
pub(crate) struct Arguments {
    /// The node's configuration file
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// Join the cluster that this node belongs to, unless the data folder is a member's already: it is formatted if need be
    #[arg(long, value_name = "HOST:PORT")]
    join: Option<Endpoint>,
    /// What to log: error, warn, info, debug, trace, or filters such as info,keevee_server=debug
    #[arg(long, value_name = "FILTER", env = "KEEVEE_LOG")]
    log_level: Option<String>,
    /// How to log
    #[arg(long, value_enum)]
    log_format: Option<LogFormat>,
}

#[derive(Clone, Copy, ValueEnum)]
enum LogFormat {
    /// Lines for people
    Text,
    /// One JSON document a line
    Json,
}

pub(crate) fn run(arguments: Arguments) -> Result<(), Failure> {
    let config = Config::load(&arguments.config).map_err(Failure::other)?;
    let level = arguments.log_level.unwrap_or_else(|| config.log.level.clone());
    let json = match arguments.log_format {
        Some(format) => matches!(format, LogFormat::Json),
        None => config.log.format == config::LogFormat::Json,
    };
    // Dropped last: it writes what is still queued.
    let _guard = start_logging(&level, json)?;
    let _pid_file = PidFile::claim(&arguments.config);
    raise_file_limit();
    let result = run_rebuilding(&config, arguments.join.as_ref());
    if let Err(error) = &result {
        tracing::error!("{error}");
    }
    result
}

/// Runs the node, and again with an empty state whenever its state is found to be damaged.
fn run_rebuilding(config: &Config, join: Option<&Endpoint>) -> Result<(), Failure> {
    loop {
        // With the runtime everything that the node left behind ends, its connections among them.
        let ended = runtime(config.io_threads())?.block_on(serve(config, join))?;
        let Err(error) = ended else { return Ok(()) };
        if let Some(damage) = error.state_damage() {
            let given_up = runtime(1)?.block_on(give_up(config));
            given_up.map_err(|error| Failure::other(format!("{damage}; {error}")))?;
            tracing::error!(damage, "the state of all shards is given up, and rebuilt from the other nodes");
            continue;
        }
        if let ServerError::Removed(_) = error {
            // For who starts nodes; without it they hear it from the node.
            let _ = std::fs::write(config.node.data.join(keevee_cluster::REMOVED), "");
        }
        return Err(Failure::other(error));
    }
}

/// Gives the state up once other nodes have what it takes to rebuild it, which may be about to start.
async fn give_up(config: &Config) -> Result<(), FolderError> {
    let until = Instant::now() + OTHERS_AWAITED;
    let mut told = String::new();
    loop {
        let (path, own) = (config.node.data.clone(), config.node_id());
        let runtime = Handle::current();
        let given_up =
            spawn_blocking(move || give_up_state(&path, |map| runtime.block_on(states_elsewhere(map, own))));
        match given_up.await.unwrap_or_else(|panic| resume_unwind(panic.into_panic())) {
            Err(error @ FolderError::NoOtherState { .. }) if Instant::now() < until => {
                let why = error.to_string();
                if why != told {
                    tracing::warn!("{why}; it is asked for again and again for {OTHERS_AWAITED:?}");
                    told = why;
                }
                tokio::select! {
                    () = sleep(ASKED_AGAIN) => {}
                    () = stop_requested() => return Err(error),
                }
            }
            ended => return ended,
        }
    }
}

/// How far other nodes have applied each shard, of those that have its state.
async fn states_elsewhere(map: &ShardMap, own: NodeId) -> BTreeMap<ShardId, u64> {
    let mut applied = BTreeMap::new();
    for node in map.nodes.iter().filter(|node| node.id != own) {
        let options = Options { timeout: Duration::from_secs(2), ..Options::default() };
        let endpoint = format!("http://{}", node.http).parse();
        let Ok(client) = endpoint.and_then(|endpoint| Client::unrouted(vec![endpoint], options)) else {
            continue;
        };
        // Whoever has taken that address since is none of the cluster's.
        let Ok(status) = client.status().await else { continue };
        if status.node_id != node.id.0 {
            continue;
        }
        for replica in status.shards.into_iter().filter(|replica| !replica.is_rebuilding()) {
            let most = applied.entry(ShardId(replica.shard)).or_insert(0);
            *most = replica.applied.max(*most);
        }
    }
    applied
}

/// With one thread nothing is ever handed to another, and nobody is woken for it.
fn runtime(threads: usize) -> io::Result<tokio::runtime::Runtime> {
    let mut builder = match threads {
        1 => tokio::runtime::Builder::new_current_thread(),
        _ => tokio::runtime::Builder::new_multi_thread(),
    };
    builder.worker_threads(threads).enable_all().build()
}

/// Runs the node until it is asked to stop, or has to.
async fn serve(config: &Config, join: Option<&Endpoint>) -> Result<Result<(), ServerError>, Failure> {
    let Some(member) = join else {
        return Ok(server::run(config.clone(), stop_requested()).await);
    };
    // Before the cluster hears of the node: at an address that is taken, another one would answer for it.
    let NodeConfig { http, peer, resp, .. } = &config.node;
    let listeners = Listeners::bind(http, peer, resp.as_deref()).await.map_err(Failure::other)?;
    join::join(config, member.authority()).await.map_err(Failure::other)?;
    Ok(match Server::start_on(config, listeners).await {
        Ok(server) => server.run(stop_requested()).await,
        Err(error) => Err(error),
    })
}

/// Connections and files of the store are file descriptors, and by default a process may have 1024 of them.
fn raise_file_limit() {
    match rlimit::increase_nofile_limit(u64::MAX) {
        Ok(files) => tracing::debug!(files, "files and connections that may be open at once"),
        Err(error) => tracing::warn!(%error, "the limit of open files can't be raised: see `ulimit -n`"),
    }
}

fn start_logging(level: &str, json: bool) -> Result<WorkerGuard, Failure> {
    // It tells of every heartbeat, and of every one that a dead node does not answer.
    let directives =
        if level.contains("openraft") { level.to_owned() } else { format!("{level},openraft=error") };
    let filter = EnvFilter::try_new(directives)
        .map_err(|error| Failure::usage(format!("{level}: not a log filter: {error}; try info")))?;
    // A node must never wait for whoever reads its log.
    let (writer, guard) = tracing_appender::non_blocking(io::stderr());
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(writer);
    if json {
        builder.json().init();
    } else {
        builder.with_ansi(io::IsTerminal::is_terminal(&io::stderr())).init();
    }
    Ok(guard)
}

/// Resolves at the first request to stop; a second one ends the process at once.
async fn stop_requested() {
    asked_to_stop().await;
    tokio::spawn(async {
        asked_to_stop().await;
        // Not `std::process::exit`: its handlers take down what RocksDB's threads are using, and those abort.
        signal_hook::low_level::exit(130);
    });
}

/// Resolves at the next SIGTERM or Ctrl-C.
pub(crate) async fn asked_to_stop() {
    let signals = signal(SignalKind::terminate())
        .and_then(|terminate| Ok((terminate, signal(SignalKind::interrupt())?)));
    match signals {
        Ok((mut terminate, mut interrupt)) => {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
        }
        // Without handlers the signals still end the process, if less gently.
        Err(_) => std::future::pending().await,
    }
}

/// The pid file that lets the cluster manager find this node, also when it was started by hand.
struct PidFile(Option<PathBuf>);

impl PidFile {
    /// Writes it unless another process runs this configuration: that one is found out by the data folder's lock.
    fn claim(config: &Path) -> PidFile {
        let own = std::process::id();
        if process::running(config).is_some_and(|pid| pid != own) {
            return PidFile(None);
        }
        match process::write_pid_file(config, own) {
            Ok(()) => PidFile(Some(config.to_owned())),
            Err(error) => {
                let path = process::pid_file(config);
                tracing::warn!("can't write {}: {error}", path.display());
                PidFile(None)
            }
        }
    }
}

impl Drop for PidFile {
    fn drop(&mut self) {
        if let Some(config) = &self.0 {
            process::remove_pid_file(config, std::process::id());
        }
    }
}
