//! Puts a node together, runs it, and takes it apart in the right order.
//!
//! An embedding program needs no more than this:
//!
//! ```no_run
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! use keevee_server::config::Config;
//! use keevee_server::server::Server;
//!
//! let config = Config::load("keevee.toml".as_ref())?;
//! let server = Server::start(&config).await?;
//! let node = server.node().clone(); // node.execute(..) reads and writes
//! # drop(node);
//! server.run(async { /* until this is ready */ }).await?;
//! # Ok(())
//! # }
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::future::Future;
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use keevee_core::ids::{NodeId, ShardId};
use keevee_core::shard_map::change::ChangeError;
use keevee_core::shard_map::{NodeInfo, ShardInfo, ShardMap};
use keevee_core::slot_table::SlotTable;
use keevee_core::slots::SlotSet;
use keevee_replica::storage::{LogStore, StateStore, StorageError};
use keevee_replica::{Bounds, Failure, Shard};
use rand::Rng;
use tokio::net::TcpListener;
use tokio::runtime::{self, Handle, RuntimeFlavor};
use tokio::sync::mpsc::unbounded_channel;
use tokio::sync::{Notify, oneshot, watch};
use tokio::task::JoinHandle;

use crate::config::{Config, NodeConfig};
use crate::cut::Cuts;
use crate::directory::Directory;
use crate::engine::ShardEngine;
use crate::executor::{Executor, FatalError, Job, Jobs, OpenReplica, Replica, Surroundings};
use crate::forward::Forwarder;
use crate::http::{self, Api, Settings, serve_within};
use crate::inbox::Inbox;
use crate::map_keeper::MapKeeper;
use crate::member_keeper;
use crate::metrics::Metrics;
use crate::node::{Node, Parts};
use crate::resp::{self, Resp};
use crate::scrub::Scrubber;
use crate::seeker::Seeker;
use crate::storage::LogEvent;
use crate::storage::LogWriter;
use crate::storage::LogWriterHandle;
use crate::storage::RocksLog;
use crate::storage::RocksState;
use crate::storage::ValueCache;
use crate::storage::flush_states;
use crate::storage::{DataFolder, FolderError, FolderLock, Journal, OpenFolder};
use crate::transport::refusals::Refusals;
use crate::transport::{
    self, BODY_BYTES_MAX_DEFAULT, Peer, PeerBounds, PeerConfig, PeerConfigError, PeerTransport, Transport,
};

/// How long a stopping leader waits for another one.
const HAND_OVER_TIMEOUT: Duration = Duration::from_secs(2);
/// How long a stopping node waits for answers that it owes.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);

/// Why a node did not start, or stopped by itself.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// The data folder can't be used.
    #[error(transparent)]
    Folder(#[from] FolderError),
    /// The data folder belongs to another node or cluster than the configuration says.
    #[error("the configuration and the data folder {data} do not belong together: {cause}")]
    Mismatch {
        /// The folder.
        data: String,
        /// What differs.
        cause: String,
    },
    /// An address can't be listened on.
    #[error("can't listen on {address}: {cause}; is another process using it?")]
    Listen {
        /// The address.
        address: String,
        /// What the system said.
        cause: std::io::Error,
    },
    /// The system does not tell which port it gave.
    #[error("a listener's address is not known: {0}")]
    NoAddress(std::io::Error),
    /// The configuration can't be used for peers.
    #[error(transparent)]
    Peer(#[from] PeerConfigError),
    /// What is stored can't be used.
    #[error("shard {shard}: {failure}")]
    Replica {
        /// The shard.
        shard: ShardId,
        /// Why.
        failure: Failure,
    },
    /// The log can't be used.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// The cluster began with other shards than this node's folder was told.
    #[error(
        "the cluster's shard map of epoch {epoch} is another than this node's: its folder was told other shards by \
         `keevee init` than the other nodes' folders; format a new folder and join with it"
    )]
    OtherShards {
        /// The epoch of both maps.
        epoch: u64,
    },
    /// The cluster knows this node no longer.
    #[error(
        "node {0} was removed from the cluster, by `keevee node remove`: delete its folder. To join again, it needs a new \
         folder and another id"
    )]
    Removed(NodeId),
    /// The configuration's nodes and shards make no map.
    #[error("the first shard map: {0}")]
    FirstMap(#[from] ChangeError),
    /// The running node had to stop.
    #[error("the node stopped: {0}")]
    Fatal(#[from] FatalError),
    /// A part of the node panicked.
    #[error("the node stopped: a part of it panicked; please report this with the log")]
    Panicked,
}

impl ServerError {
    /// What is wrong if the applied state of this node is damaged, and nothing else: [`crate::storage::give_up_state`] makes it
    /// start again, and rebuild the state from other nodes.
    pub fn state_damage(&self) -> Option<String> {
        match self {
            ServerError::Folder(error) => error.state_damage(),
            ServerError::Storage(error)
            | ServerError::Replica { failure: Failure::Storage(error), .. }
            | ServerError::Fatal(FatalError::Replica { failure: Failure::Storage(error), .. })
                if error.is_damage() =>
            {
                Some(self.to_string())
            }
            _ => None,
        }
    }
}

/// A running node.
pub struct Server {
    node: Node,
    api: Api<Node>,
    http: TcpListener,
    http_bounds: http::Bounds,
    resp: Option<(TcpListener, Arc<Resp>)>,
    transport: Arc<dyn PeerTransport>,
    keeper: MapKeeper,
    seeker: Seeker,
    workers: Workers,
    lock: FolderLock,
}

/// Where a node listens, already bound.
pub struct Listeners {
    http: TcpListener,
    peer: TcpListener,
    resp: Option<TcpListener>,
}

impl Listeners {
    /// Listens at these addresses, `host:port`; port 0 is any that is free. Without an address for it, the Redis protocol
    /// is not spoken.
    pub async fn bind(http: &str, peer: &str, resp: Option<&str>) -> Result<Listeners, ServerError> {
        let resp = match resp {
            Some(resp) => Some(listen(resp).await?),
            None => None,
        };
        Ok(Listeners { http: listen(http).await?, peer: listen(peer).await?, resp })
    }

    /// What was bound: for clients, for peers.
    pub fn addresses(&self) -> Result<[String; 2], ServerError> {
        let address = |listener: &TcpListener| {
            let bound = listener.local_addr();
            bound.map(|address| address.to_string()).map_err(ServerError::NoAddress)
        };
        Ok([address(&self.http)?, address(&self.peer)?])
    }
}

impl Server {
    /// Starts a node: its folder is open and all listeners are bound when this returns.
    pub async fn start(config: &Config) -> Result<Server, ServerError> {
        let (folder, journal) = open(config)?;
        let NodeConfig { http, peer, resp, .. } = &config.node;
        let listeners = Listeners::bind(http, peer, resp.as_deref()).await?;
        Server::assemble(config, folder, journal, listeners)
    }

    /// As [`Server::start`], where the listeners came first: with port 0 the configuration can't have the addresses
    /// before.
    pub async fn start_on(config: &Config, listeners: Listeners) -> Result<Server, ServerError> {
        let (folder, journal) = open(config)?;
        Server::assemble(config, folder, journal, listeners)
    }

    fn assemble(
        config: &Config,
        folder: OpenFolder,
        journal: Journal,
        listeners: Listeners,
    ) -> Result<Server, ServerError> {
        let map = match &folder.shard_map {
            Some(map) => map.clone(),
            // Of a folder of the first versions.
            None => config.first_map(&folder.first_members, &[])?,
        };
        if map.removed.contains(&config.node_id()) {
            return Err(ServerError::Removed(config.node_id()));
        }
        let metrics = Arc::new(Metrics::new());
        let protocol = config.cluster.peer_transport;
        let peers = peer_config(config, &folder, &map);
        let authorization = peers.authorization()?;
        let transport = transport::open(protocol, peers, &metrics)?;
        let directory = Arc::new(Directory::new(map));
        let (sender, receiver) = unbounded_channel();
        let jobs = Jobs(sender);
        let peer_bytes = Arc::new(AtomicUsize::new(0));
        let changed = Arc::new(Notify::new());
        let scrubber = Scrubber::start(config.engine.scrub_bytes_per_second)?;
        let surroundings = Surroundings {
            jobs: receiver,
            directory: Arc::clone(&directory),
            transport: transport.clone(),
            metrics: Arc::clone(&metrics),
            peer_bytes: Arc::clone(&peer_bytes),
            map_changed: Arc::clone(&changed),
            scrubber,
        };
        let executor = |open| Executor::new(config, surroundings, open);
        // The last that can fail.
        let workers = Workers::start(config, &folder, journal, &directory.map(), &jobs, &metrics, executor)?;
        let inbox = Inbox {
            jobs: jobs.clone(),
            limits: config.limits(),
            waiting_bytes: peer_bytes,
            refusals: Refusals::new(&metrics),
        };
        transport.start(Arc::new(inbox), listeners.peer);

        let shared: Arc<dyn Transport> = transport.clone();
        let node = Node::new(Parts {
            id: config.node_id(),
            cluster_id: config.cluster.id.to_string(),
            directory: Arc::clone(&directory),
            limits: config.limits(),
            leader_wait: Duration::from_millis(config.limits.leader_wait_ms),
            jobs: jobs.clone(),
            forwarder: Forwarder::new(Arc::clone(&shared)),
            transport: shared,
            map_changed: Arc::clone(&changed),
            clock_off: metrics.clock_off.clone(),
            disk_low: metrics.disk_low.clone(),
            only_thread: only_thread(),
            cuts: Cuts::new(jobs.clone()),
        });
        let configured: BTreeMap<NodeId, String> =
            config.members.iter().map(|member| (NodeId(member.id), member.peer.clone())).collect();
        let seeker = Seeker::new(configured.clone(), directory, transport.clone());
        let keeper = MapKeeper {
            configured,
            node: node.clone(),
            own: config.own_node(folder.identity.store_id),
            cluster: config.cluster.clone(),
            log: Arc::clone(&folder.log),
            jobs,
            transport: transport.clone(),
            changed,
        };
        let settings = Settings {
            limits: config.limits(),
            timeout: Duration::from_millis(config.limits.request_timeout_ms),
            body_timeout: Duration::from_millis(config.http.body_ms),
            peer_address: config.node.peer.clone(),
            cluster_id: config.cluster.id,
            authorization,
        };
        let NodeConfig { id, http: public, peer, resp, .. } = &config.node;
        tracing::info!(node = id, http = public, peer, resp, "node started");
        let resp = |listener| (listener, Arc::new(Resp::new(node.clone(), config, Arc::clone(&metrics))));
        let resp = listeners.resp.map(resp);
        let api = Api::new(node.clone(), settings, metrics);
        Ok(Server {
            node,
            api,
            http: listeners.http,
            http_bounds: http::Bounds::from(&config.http),
            resp,
            transport,
            keeper,
            seeker,
            workers,
            lock: folder.lock,
        })
    }

    /// The store.
    pub fn node(&self) -> &Node {
        &self.node
    }

    /// Serves until `shutdown` is ready, then hands leadership over, answers what is in flight, flushes and
    /// returns; or returns the reason why the node had to stop.
    pub async fn run(self, shutdown: impl Future<Output = ()>) -> Result<(), ServerError> {
        let Server { node, api, http, http_bounds, resp, transport, keeper, seeker, mut workers, lock } =
            self;
        let mut keeping = Box::pin(async {
            tokio::select! {
                error = keeper.run() => error,
                never = member_keeper::run(node.clone()) => match never {},
                never = seeker.run() => match never {},
            }
        });
        let (stop, mut stopped) = watch::channel(false);
        let mut stopped_too = stopped.clone();
        let http = serve_within(http_bounds, http, api, async move {
            let _ = stopped.wait_for(|stop| *stop).await;
        });
        let mut serving = tokio::spawn(async move {
            let Some((listener, resp)) = resp else { return http.await };
            let resp = resp::serve(listener, resp, async move {
                let _ = stopped_too.wait_for(|stop| *stop).await;
            });
            tokio::join!(http, resp);
        });
        let mut ended = tokio::select! {
            () = shutdown => Ok(()),
            () = workers.any_ended() => Err(ServerError::Panicked),
            _ = &mut serving => Err(ServerError::Panicked),
            error = &mut keeping => Err(error),
        };
        node.end_cuts();
        let latest = if ended.is_ok() {
            tracing::info!("stopping: handing over, answering what is in flight");
            node.step_aside(Instant::now() + HAND_OVER_TIMEOUT).await;
            stop.send_replace(true);
            ended = serving.await.map_err(|_| ServerError::Panicked);
            Instant::now() + DRAIN_TIMEOUT
        } else {
            // Nothing more can be promised: no orderly end.
            transport.stop();
            serving.abort();
            Instant::now()
        };
        // On every way out: what uses the databases has ended before others may open them, and before the
        // process exits, which RocksDB would not survive.
        node.stop(latest);
        drop(keeping);
        let joined = workers.join(ended.is_ok(), &transport).await;
        node.cuts_ended().await;
        drop((node, lock));
        // A thread's own error says more than that one of them ended.
        joined.and(ended)?;
        tracing::info!("stopped");
        Ok(())
    }
}

/// Starts a node and runs it until `shutdown` is ready. If its state is damaged, this ends: see [`ServerError::state_damage`].
pub async fn run(config: Config, shutdown: impl Future<Output = ()>) -> Result<(), ServerError> {
    Server::start(&config).await?.run(shutdown).await
}

fn open(config: &Config) -> Result<(OpenFolder, Journal), ServerError> {
    let (folder, journal) = DataFolder::open(&config.node.data)?;
    check_identity(config, &folder)?;
    Ok((folder, journal))
}

/// The folder knows who the node is; the configuration must agree.
fn check_identity(config: &Config, folder: &OpenFolder) -> Result<(), ServerError> {
    let mismatch =
        |cause: String| ServerError::Mismatch { data: config.node.data.display().to_string(), cause };
    let identity = &folder.identity;
    if identity.cluster_id != config.cluster.id {
        let ours = config.cluster.id;
        return Err(mismatch(format!("[cluster] id is {ours}, the folder's is {}", identity.cluster_id)));
    }
    if identity.node_id != config.node_id() {
        return Err(mismatch(format!(
            "[node] id is {}, the folder's is {}",
            config.node.id, identity.node_id
        )));
    }
    let configured: BTreeSet<u64> = config.members.iter().map(|member| member.id).collect();
    let members: BTreeSet<u64> = folder.first_members.iter().map(|(node, _)| node.0).collect();
    // Those that joined later may be named as well: where they are reached from here.
    if !members.is_subset(&configured) {
        return Err(mismatch(format!(
            "the [[member]]s are {configured:?}; those of the folder are {members:?}, and each must be named"
        )));
    }
    Ok(())
}

/// The peers: where the configuration has them, else where the map has them.
fn peer_config(config: &Config, folder: &OpenFolder, map: &ShardMap) -> PeerConfig {
    let configured = |node: NodeId| config.members.iter().find(|member| member.id == node.0);
    let peer = |node: &NodeInfo| Peer {
        id: node.id,
        store_id: node.store.to_string(),
        address: configured(node.id).map_or(&node.peer, |member| &member.peer).clone(),
    };
    PeerConfig {
        cluster_id: config.cluster.id.to_string(),
        secret: config.cluster.secret.clone(),
        node: config.node_id(),
        store_id: folder.identity.store_id.to_string(),
        peers: map.nodes.iter().map(peer).collect(),
        body_bytes_max: BODY_BYTES_MAX_DEFAULT,
        bounds: PeerBounds {
            connections_max: config.peers.connections_max,
            handshake_timeout: Duration::from_millis(config.peers.handshake_ms),
            ..PeerBounds::default()
        },
    }
}

/// The runtime that this node is started in, if it has one thread.
fn only_thread() -> Option<runtime::Id> {
    let runtime = Handle::current();
    (runtime.runtime_flavor() == RuntimeFlavor::CurrentThread).then(|| runtime.id())
}

/// Opens replicas as the folder has them.
fn replica_opener(
    config: &Config,
    folder: &OpenFolder,
    writer: LogWriterHandle,
) -> impl FnMut(&ShardInfo, &SlotTable, Duration) -> Result<Replica, ServerError> + Send + use<> {
    let (config, log, data) = (config.clone(), Arc::clone(&folder.log), Arc::clone(&folder.data));
    let values = Arc::new(ValueCache::new(config.engine.value_cache_bytes));
    let is_founder = !folder.first_members.is_empty();
    move |shard, slots, now| {
        let failed = |failure| ServerError::Replica { shard: shard.id, failure };
        let log = RocksLog::open(shard.id, Arc::clone(&log), writer.clone())?;
        // The system shard's keys are its own: they are in no slot of the table.
        let owned = if shard.id == ShardId::SYSTEM { SlotSet::all() } else { slots.slots_of(shard.id) };
        let (data, values) = (Arc::clone(&data), Arc::clone(&values));
        let state = RocksState::enter(shard.id, log.incarnation()?, data, values, owned)
            .map_err(|error| failed(error.into()))?;
        let is_lost = state.is_lost();
        let applied = if is_lost { log.applied_at_least() } else { state.meta()?.applied };
        log.check_fits(applied).map_err(|error| failed(error.into()))?;
        check_consensus(&config, is_founder, shard, &log)?;
        let mut random = rand::rng();
        let seed = random.next_u64();
        let (node, timing) = (config.node_id(), config.timing());
        let engine = ShardEngine::open(shard, node, timing, seed, log, applied, now)?;
        let bounds = Bounds {
            waiting_commands_max: config.limits.waiting_commands_max,
            unsynced_entries_max: config.engine.unsynced_entries_max,
            log_bytes_max: config.engine.log_bytes_max,
            snapshot_bytes_per_second: config.engine.snapshot_bytes_per_second,
            ..Bounds::default()
        };
        let boot = random.next_u64();
        let mut replica = Shard::new(shard.id, node, boot, engine, state, bounds).map_err(failed)?;
        if is_lost {
            replica.lose_state();
        }
        Ok(replica)
    }
}

/// A shard keeps the engine that it began with: another could not read its log.
fn check_consensus(
    config: &Config,
    is_founder: bool,
    shard: &ShardInfo,
    log: &RocksLog,
) -> Result<(), ServerError> {
    let has = log.engine(shard.consensus)?;
    // The system shard has what the cluster was made with. Who joined later was told by the map.
    let made_with = is_founder && shard.id == ShardId::SYSTEM;
    let wanted = if made_with { config.engine.consensus } else { shard.consensus };
    if has == wanted && shard.consensus == has {
        return Ok(());
    }
    Err(ServerError::Mismatch {
        data: config.node.data.display().to_string(),
        cause: format!("[engine] consensus is \"{}\", the folder's is \"{}\"", wanted.name(), has.name()),
    })
}

async fn listen(address: &str) -> Result<TcpListener, ServerError> {
    let failed = |cause| ServerError::Listen { address: address.to_owned(), cause };
    TcpListener::bind(address).await.map_err(failed)
}

/// All that uses the databases.
struct Workers {
    executor: Worker,
    flusher: Flusher,
    log_writer: LogWriter,
}

impl Workers {
    /// Starts all of them, or leaves none behind.
    fn start(
        config: &Config,
        folder: &OpenFolder,
        journal: Journal,
        map: &ShardMap,
        jobs: &Jobs,
        metrics: &Metrics,
        executor: impl FnOnce(OpenReplica) -> Executor,
    ) -> Result<Workers, ServerError> {
        let data = Arc::clone(&folder.data);
        let interval = Duration::from_millis(config.engine.flush_interval_ms);
        let (events, log_metrics) = (jobs.clone(), metrics.log.clone());
        let (orders, ordered) = mpsc::channel();
        let flushes = orders.clone();
        let on_event = move |event| match event {
            // Counted here: the executor would be woken for it.
            LogEvent::Synced { took, records } => log_metrics.synced(took, records),
            LogEvent::Persisted { shard, token } => events.send(Job::Persisted { shard, token }),
            // Before the log is written out it can be cut then, and much of it never takes the disk's time twice.
            LogEvent::WritesOutSoon => drop(flushes.send(FlushOrder::Now)),
            LogEvent::Failed { error } => events.send(Job::LogFailed(error)),
        };
        let (log_writer, log) = LogWriter::start(journal, on_event)?;
        let started = || {
            let mut executor = executor(Box::new(replica_opener(config, folder, log)));
            executor.host(map)?;
            executor.forget_given_up();
            Ok(executor)
        };
        let flushed = jobs.clone();
        let flush = move || {
            flush_states(&data)?;
            flushed.send(Job::Flushed);
            Ok(())
        };
        match started() {
            Ok(executor) => Ok(Workers {
                executor: Worker::start("executor", tokio::spawn(executor.run())),
                flusher: Flusher::start(flush, interval, (orders, ordered)),
                log_writer,
            }),
            Err(error) => {
                // With the executor all its handles are gone.
                log_writer.join();
                Err(error)
            }
        }
    }

    /// Resolves once the executor or the flusher has ended, for whatever reason. The log writer tells the
    /// executor.
    async fn any_ended(&mut self) {
        tokio::select! {
            _ = &mut self.executor.ended => {}
            _ = &mut self.flusher.worker.ended => {}
        }
    }

    /// Waits for the executor, which was told to stop, then for the others. The state is flushed once more if
    /// all is well.
    async fn join(self, is_well: bool, transport: &Arc<dyn PeerTransport>) -> Result<(), ServerError> {
        let executed = self.executor.join().await;
        if is_well {
            // The last answers to peers are on their way.
            transport.drain().await;
        }
        transport.stop();
        self.flusher.stop(is_well && executed.is_ok());
        let flushed = self.flusher.worker.join().await;
        let logged = tokio::task::spawn_blocking(|| self.log_writer.join()).await;
        let logged = if logged.unwrap_or(false) { Ok(()) } else { Err(ServerError::Panicked) };
        executed.and(flushed).and(logged)
    }
}

/// What ends with the node. If it ends before, so does the node.
struct Worker {
    work: JoinHandle<Result<(), ServerError>>,
    /// Nothing is ever sent: the work holds the sender, so this resolves at its end.
    ended: oneshot::Receiver<Infallible>,
}

impl Worker {
    fn start<E: Into<ServerError> + Send + 'static>(
        name: &'static str,
        work: JoinHandle<Result<(), E>>,
    ) -> Worker {
        let (end, ended) = oneshot::channel();
        let work = tokio::spawn(async move {
            let _end = end;
            let result = work.await.map_err(|_| ServerError::Panicked)?.map_err(Into::into);
            if let Err(error) = &result {
                tracing::error!(worker = name, %error, "the node stops");
            }
            result
        });
        Worker { work, ended }
    }

    async fn join(self) -> Result<(), ServerError> {
        self.work.await.unwrap_or(Err(ServerError::Panicked))
    }
}

/// The thread that flushes applied state now and then, and before the log is written out, so that the log can be truncated and a
/// restart has little to replay. A flush that fails is not tried again.
struct Flusher {
    orders: mpsc::Sender<FlushOrder>,
    worker: Worker,
}

enum FlushOrder {
    Now,
    End {
        /// Flushes a last time.
        flushes: bool,
    },
}

impl Flusher {
    fn start(
        flush: impl Fn() -> Result<(), StorageError> + Send + 'static,
        interval: Duration,
        (orders, ordered): (mpsc::Sender<FlushOrder>, mpsc::Receiver<FlushOrder>),
    ) -> Flusher {
        let run = move || {
            loop {
                let order = match ordered.recv_timeout(interval) {
                    Err(mpsc::RecvTimeoutError::Disconnected) => return Ok(()),
                    Err(mpsc::RecvTimeoutError::Timeout) => FlushOrder::Now,
                    // What was asked for during a flush is done by one more.
                    Ok(FlushOrder::Now) => {
                        let is_end = |order: &FlushOrder| matches!(order, FlushOrder::End { .. });
                        ordered.try_iter().find(is_end).unwrap_or(FlushOrder::Now)
                    }
                    Ok(end) => end,
                };
                match order {
                    FlushOrder::Now => flush()?,
                    FlushOrder::End { flushes: true } => return flush(),
                    FlushOrder::End { flushes: false } => return Ok(()),
                }
            }
        };
        Flusher { orders, worker: Worker::start("flusher", tokio::task::spawn_blocking(run)) }
    }

    fn stop(&self, flushes: bool) {
        // If it has ended, its result says why.
        let _ = self.orders.send(FlushOrder::End { flushes });
    }
}

#[cfg(test)]
mod tests;
