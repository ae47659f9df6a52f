//! The task that runs a node's replicas: inputs come in by one queue, and everything that one round of
//! inputs brought about goes out together; what waited begins in the next round, if there were answers.
//!
//! A replica is only ever touched here, so that it needs no lock. The task shares its runtime with the connections, so
//! that a request passes from one to the other without waking a thread (decision 0016). What need not be done at every step
//! is in `housekeeping`. It leaves out where inputs come from (HTTP, peers, the log writer) and where effects go (the transport).

mod housekeeping;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use keevee_core::command::{Command, Outcome};
use keevee_core::ids::{NodeId, ShardId};
use keevee_core::shard_map::{ShardInfo, ShardMap};
use keevee_core::slot_table::SlotTable;
use keevee_replica::storage::StorageError;
use keevee_replica::{
    CLOCK_DIFFERENCE_MAX, Cut, CutRefusal, CutRequest, Effects, Failure, Neighbours, Now, Refusal, Reply,
    Request, Shard, ShardStatus as ReplicaStatus,
};
use rand::Rng;
use tokio::sync::mpsc::error::SendError;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender};
use tokio::sync::{Notify, oneshot};
use tokio::task::{unconstrained, yield_now};
use tokio::time::timeout_at;

use crate::config::Config;
use crate::directory::Directory;
use crate::engine::{EngineMessage, ShardEngine};
use crate::metrics::{Metrics, RefusalReason, ShardMetrics};
use crate::room::Room;
use crate::scrub::Scrubber;
use crate::server::ServerError;
use crate::storage::{RocksState, StateSource, remove_given_up};
use crate::transport::refusals::Refusals;
use crate::transport::throttle::Party;
use crate::transport::{PeerMessage, Transport};

/// The replicas that a node runs.
pub(crate) type Replica = Shard<ShardEngine, RocksState>;

/// How often replicas are told the time…
const TICK: Duration = Duration::from_millis(20);
/// …and this node's neighbours are looked after while all replicas are quiesced.
const QUIET_TICK: Duration = Duration::from_millis(100);
/// How often late requests are looked for, room, and gauges set…
const HOUSEKEEPING: Duration = Duration::from_millis(100);
/// …and all else that is done now and then.
const WHOLE_HOUSEKEEPING: Duration = Duration::from_secs(1);
/// How often leaderships are spread over the nodes.
const SPREADING: Duration = Duration::from_secs(2);
/// How often messages for a shard that is not here have the map looked at.
const MAP_LOOKS: Duration = Duration::from_millis(500);
/// Inputs taken from the queue before their effects are carried out.
const ROUND_MAX: usize = 4096;
/// How often a round lets connections bring more before it ends, while they do.
const WAITS_MAX: usize = 3;

/// What a command is answered with.
pub(crate) type Answer = Result<Outcome, Refusal>;

/// What is said to whoever asks for a cut.
pub(crate) type CutAnswer = Result<Cut<StateSource>, CutRefusal>;

/// A command on its way to a replica.
pub(crate) struct Submission {
    pub(crate) command: Command,
    pub(crate) deadline: Instant,
    pub(crate) stale: bool,
    pub(crate) answer: oneshot::Sender<Answer>,
}

impl Submission {
    /// Tells whoever waits for it that nothing happened.
    fn turn_away(self) {
        let _ = self.answer.send(Err(Refusal::NotLeader(None)));
    }
}

/// An input of the executor.
pub(crate) enum Job {
    Submit(ShardId, Submission),
    Peer {
        from: NodeId,
        shard: ShardId,
        messages: Vec<PeerMessage>,
        /// What they count in `peer_bytes`.
        bytes: usize,
    },
    /// See [`crate::storage::LogEvent`].
    Persisted {
        shard: ShardId,
        token: u64,
    },
    LogFailed(StorageError),
    /// What was applied some time ago is in sorted files.
    Flushed,
    /// A shard's state was found to be damaged, by whoever reads it besides its replica: the node stops, gives its state up and
    /// has it rebuilt.
    StateDamaged {
        shard: ShardId,
        error: StorageError,
    },
    Disconnected(NodeId),
    Status(oneshot::Sender<Vec<(ShardId, ReplicaStatus)>>),
    /// The shard's state as of a time.
    Cut {
        shard: ShardId,
        time: u64,
        deadline: Instant,
        answer: oneshot::Sender<CutAnswer>,
    },
    /// Scrubs this shard, or all, of those that this node leads; which they are.
    Scrub {
        shard: Option<ShardId>,
        answer: oneshot::Sender<Vec<ShardId>>,
    },
    /// Hosts the replicas that a newer map gives to this node.
    Host(Arc<ShardMap>),
    /// Which voters a shard shall have, if this node leads it under this ballot.
    WantVoters {
        shard: ShardId,
        ballot: String,
        voters: BTreeSet<NodeId>,
    },
    TransferLeadership,
    /// Ends the executor once no answer is owed, or at this time.
    Stop {
        latest: Instant,
    },
}

impl Job {
    /// Tells whoever waits for it that nothing happened.
    fn turn_away(self) {
        if let Job::Submit(_, submission) = self {
            submission.turn_away();
        }
    }
}

/// Why an executor ended before it was told to.
#[derive(Clone, Debug, thiserror::Error)]
pub enum FatalError {
    /// A replica must not go on.
    #[error("shard {shard}: {failure}")]
    Replica {
        /// The shard.
        shard: ShardId,
        /// Why.
        failure: Failure,
    },
    /// The log can't be written.
    #[error(transparent)]
    Log(StorageError),
    /// A replica that a newer map gives to this node can't be made.
    #[error("a shard that is new here: {cause}")]
    Host {
        /// Why.
        cause: String,
    },
}

/// Opens the replica of a shard that has this node among its members, as its folder has it.
pub(crate) type OpenReplica =
    Box<dyn FnMut(&ShardInfo, &SlotTable, Duration) -> Result<Replica, ServerError> + Send>;

/// A replica, and what belongs to it on this node.
struct Hosted {
    replica: Replica,
    /// As the directory was told.
    leader: Option<NodeId>,
    metrics: ShardMetrics,
    /// When its state was last scrubbed, or else when it was opened.
    scrubbed_at: Duration,
    /// Who waits for cuts, by ticket.
    cuts: BTreeMap<u64, oneshot::Sender<CutAnswer>>,
    /// When it was told last that its state is lost.
    told_at: Option<Duration>,
}

pub(crate) struct Executor {
    node: NodeId,
    origin: Instant,
    jobs: UnboundedReceiver<Job>,
    shards: BTreeMap<ShardId, Hosted>,
    /// Those that take part no longer: they say nothing and hear nothing. What they promised is kept, should they take part
    /// again, and what was asked of them before is answered.
    parked: BTreeMap<ShardId, Replica>,
    open: OpenReplica,
    directory: Arc<Directory>,
    transport: Arc<dyn Transport>,
    metrics: Arc<Metrics>,
    tickets: Tickets,
    /// Which other nodes are alive.
    neighbours: Neighbours,
    /// How many shards each of them said that it leads.
    led: BTreeMap<NodeId, usize>,
    /// Tells this process from others under the same node id.
    boot: u64,
    /// What the replicas want to say, until all of them have gone as far as they can.
    outgoing: BTreeMap<NodeId, Vec<(ShardId, PeerMessage)>>,
    /// Shared with the inbox: what waits in `jobs`.
    peer_bytes: Arc<AtomicUsize>,
    refusals: Refusals,
    /// Has the map looked at.
    map_changed: Arc<Notify>,
    /// When it was last, for what peers sent.
    looked_at_map: Option<Duration>,
    stop: Option<Instant>,
    /// True while this node's clock differs from most others'.
    is_clock_off: bool,
    /// The data folder.
    folder: PathBuf,
    /// What this node's disk has left.
    room: Room,
    /// Other nodes whose disks are nearly full, as they said.
    short_of_room: BTreeSet<NodeId>,
    scrubber: Scrubber,
    /// How often the shards that this node leads are scrubbed, if at all.
    scrub_interval: Option<Duration>,
    /// Those that somebody wants to be scrubbed now.
    scrubs_wanted: BTreeSet<ShardId>,
    /// True once this node hands its leaderships over to end.
    is_leaving: bool,
}

/// What an executor shares with the rest of its node.
pub(crate) struct Surroundings {
    pub(crate) jobs: UnboundedReceiver<Job>,
    pub(crate) directory: Arc<Directory>,
    pub(crate) transport: Arc<dyn Transport>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) peer_bytes: Arc<AtomicUsize>,
    pub(crate) map_changed: Arc<Notify>,
    pub(crate) scrubber: Scrubber,
}

/// The answers that are owed.
#[derive(Default)]
struct Tickets {
    next: u64,
    owed: HashMap<u64, oneshot::Sender<Answer>, foldhash::fast::FixedState>,
}

impl Tickets {
    fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    fn issue(&mut self, answer: oneshot::Sender<Answer>) -> u64 {
        let ticket = self.number();
        self.owed.insert(ticket, answer);
        ticket
    }

    fn redeem(&mut self, ticket: u64, result: Answer) {
        if let Some(answer) = self.owed.remove(&ticket) {
            // Whoever asked may have gone away.
            let _ = answer.send(result);
        }
    }
}

impl Executor {
    /// One without replicas yet.
    pub(crate) fn new(config: &Config, surroundings: Surroundings, open: OpenReplica) -> Executor {
        let Surroundings { jobs, directory, transport, metrics, peer_bytes, map_changed, scrubber } =
            surroundings;
        let scrub_interval = Some(config.engine.scrub_interval_ms).filter(|interval| *interval > 0);
        Executor {
            node: config.node_id(),
            origin: Instant::now(),
            jobs,
            shards: BTreeMap::new(),
            parked: BTreeMap::new(),
            open,
            directory,
            transport,
            tickets: Tickets::default(),
            neighbours: config.timing().neighbours(),
            led: BTreeMap::new(),
            boot: rand::rng().next_u64(),
            outgoing: BTreeMap::new(),
            peer_bytes,
            refusals: Refusals::new(&metrics),
            metrics,
            map_changed,
            looked_at_map: None,
            stop: None,
            is_clock_off: false,
            folder: config.node.data.clone(),
            room: Room::new(&config.node.data, config.limits.disk_free_bytes_min),
            short_of_room: BTreeSet::new(),
            scrubber,
            scrub_interval: scrub_interval.map(Duration::from_millis),
            scrubs_wanted: BTreeSet::new(),
            is_leaving: false,
        }
    }

    /// Runs until it is stopped or a replica fails. What it has not taken in by then never happened.
    pub(crate) async fn run(mut self) -> Result<(), FatalError> {
        // openraft's tasks run within and may take more steps at once than tokio grants a task; else they would starve.
        let result = unconstrained(self.run_until_stopped()).await;
        self.jobs.close();
        while let Ok(job) = self.jobs.try_recv() {
            job.turn_away();
        }
        result
    }

    async fn run_until_stopped(&mut self) -> Result<(), FatalError> {
        let mut tick_at = Instant::now();
        let mut housekeeping_at = tick_at;
        let mut whole_at = tick_at;
        // Not at once: nodes that start together first find out who leads what.
        let mut spreading_at = tick_at + SPREADING;
        // What goes on once the answers just given have brought more.
        let mut again = BTreeSet::new();
        loop {
            let mut touched = std::mem::take(&mut again);
            if touched.is_empty() {
                match timeout_at(tick_at.into(), self.jobs.recv()).await {
                    Ok(Some(job)) => self.take(self.now(), job, &mut touched)?,
                    Ok(None) => return Ok(()),
                    Err(_) => {}
                }
            }
            self.gather(&mut touched).await?;
            let now = Instant::now();
            if now >= tick_at {
                tick_at = now + QUIET_TICK;
                self.tick(&mut touched)?;
            }
            if now >= housekeeping_at {
                housekeeping_at = now + HOUSEKEEPING;
                let is_whole = now >= whole_at;
                if is_whole {
                    whole_at = now + WHOLE_HOUSEKEEPING;
                }
                self.keep_house(is_whole, &mut touched)?;
            }
            if now >= spreading_at {
                spreading_at = now + SPREADING;
                touched.extend(self.spread_leaders());
            }
            self.check_clock(&mut touched);
            for shard in touched {
                let is_quiesced = self.advance(shard, &mut again)?;
                if !is_quiesced {
                    tick_at = tick_at.min(now + TICK);
                }
            }
            // Of all shards together, so that a node is woken once.
            for (to, messages) in std::mem::take(&mut self.outgoing) {
                self.transport.send(to, messages);
            }
            if self.stop.is_some_and(|latest| now >= latest || self.is_idle()) {
                return Ok(());
            }
        }
    }

    /// Takes everything that waits, so that it shares the syncs and messages that follow.
    async fn gather(&mut self, touched: &mut BTreeSet<ShardId>) -> Result<(), FatalError> {
        let mut taken = 0;
        for _ in 0..WAITS_MAX {
            // Connections that have something to read go first: they are about to bring more.
            yield_now().await;
            let (now, before) = (self.now(), taken);
            while taken < ROUND_MAX
                && let Ok(job) = self.jobs.try_recv()
            {
                self.take(now, job, touched)?;
                taken += 1;
            }
            if taken == before {
                break;
            }
        }
        Ok(())
    }

    fn take(&mut self, now: Now, job: Job, touched: &mut BTreeSet<ShardId>) -> Result<(), FatalError> {
        match job {
            Job::Submit(shard, submission) => {
                self.submit(now, shard, submission)?;
                touched.insert(shard);
            }
            Job::Peer { from, shard, messages, bytes } => {
                self.peer_bytes.fetch_sub(bytes, Ordering::Relaxed);
                self.receive(now.monotonic, from, shard, messages, touched)?;
            }
            Job::Persisted { shard, token } => {
                let hosted = self.shards.get_mut(&shard).map(|hosted| &mut hosted.replica);
                if let Some(replica) = hosted.or_else(|| self.parked.get_mut(&shard)) {
                    replica.persisted(now.monotonic, token);
                    touched.insert(shard);
                }
            }
            Job::LogFailed(error) => return Err(FatalError::Log(error)),
            Job::Flushed => {
                for (id, Hosted { replica, .. }) in &mut self.shards {
                    let noted = replica.note_flushed(now.monotonic);
                    noted.map_err(|failure| FatalError::Replica { shard: *id, failure })?;
                    if !replica.is_quiesced() {
                        touched.insert(*id);
                    }
                }
            }
            Job::StateDamaged { shard, error } => {
                return Err(FatalError::Replica { shard, failure: error.of_state().into() });
            }
            Job::Disconnected(node) => {
                self.neighbours.lost(node);
                self.disconnected(now.monotonic, node, touched);
            }
            Job::Status(answer) => {
                let statuses = self.shards.iter().map(|(id, hosted)| (*id, hosted.replica.status()));
                let _ = answer.send(statuses.collect());
            }
            Job::Cut { shard, time, deadline, answer } => {
                // If there is no replica, whoever waits hears that by the end of the channel.
                if let Some(Hosted { replica, cuts, .. }) = self.shards.get_mut(&shard) {
                    let ticket = self.tickets.number();
                    cuts.insert(ticket, answer);
                    let deadline = deadline.saturating_duration_since(self.origin);
                    replica.cut_at(now, CutRequest { ticket, time, deadline });
                    touched.insert(shard);
                }
            }
            Job::Scrub { shard, answer } => {
                let is_meant = |id: &ShardId| shard.is_none_or(|shard| shard == *id);
                let led = self.shards.iter().filter(|(_, hosted)| hosted.leader == Some(self.node));
                let wanted: Vec<ShardId> = led.map(|(id, _)| *id).filter(is_meant).collect();
                self.scrubs_wanted.extend(&wanted);
                // Whoever asked may have gone away.
                let _ = answer.send(wanted);
            }
            Job::TransferLeadership => {
                for (id, Hosted { replica, .. }) in &mut self.shards {
                    replica.transfer_leadership(now.monotonic, None);
                    touched.insert(*id);
                }
                self.is_leaving = true;
            }
            Job::Host(map) => {
                touched.extend(self.host(&map).map_err(not_hosted)?);
            }
            Job::WantVoters { shard, ballot, voters } => {
                if let Some(Hosted { replica, .. }) = self.shards.get_mut(&shard) {
                    replica.want_voters(now.monotonic, &ballot, voters);
                    touched.insert(shard);
                }
            }
            Job::Stop { latest } => self.stop = Some(latest),
        }
        Ok(())
    }

    fn submit(&mut self, now: Now, shard: ShardId, submission: Submission) -> Result<(), FatalError> {
        let Some(Hosted { replica, .. }) = self.shards.get_mut(&shard) else {
            submission.turn_away();
            return Ok(());
        };
        let Submission { command, deadline, stale, answer } = submission;
        if answer.is_closed() {
            // Whoever asked has gone: nothing has happened, and nobody need know.
            return Ok(());
        }
        let deadline = deadline.saturating_duration_since(self.origin);
        let request = Request { ticket: self.tickets.issue(answer), command, deadline, stale };
        replica.submit(now, [request]).map_err(|failure| FatalError::Replica { shard, failure })
    }

    fn receive(
        &mut self,
        now: Duration,
        from: NodeId,
        shard: ShardId,
        messages: Vec<PeerMessage>,
        touched: &mut BTreeSet<ShardId>,
    ) -> Result<(), FatalError> {
        let (mut refused, mut homeless) = (0, false);
        for message in messages {
            if let PeerMessage::Alive { boot, leads, wall_micros, short_of_room, map_epoch } = message {
                self.directory.told_of(map_epoch);
                self.led.insert(from, leads as usize);
                if short_of_room {
                    self.short_of_room.insert(from);
                } else {
                    self.short_of_room.remove(&from);
                }
                self.heard(now, from, boot, wall_micros, touched);
            } else if let Some(Hosted { replica, .. }) = self.shards.get_mut(&shard)
                && let Some(message) = message.for_replica()
            {
                let received = replica.receive(now, from, message);
                refused += usize::from(!received.map_err(|failure| FatalError::Replica { shard, failure })?);
                touched.insert(shard);
            } else {
                homeless = true;
            }
        }
        if homeless {
            // Whoever sends this may know of a map by which there is one.
            if self.looked_at_map.is_none_or(|at| now >= at + MAP_LOOKS) {
                self.looked_at_map = Some(now);
                self.map_changed.notify_one();
            }
            let detail = format!("this node has no replica of shard {shard}");
            self.refusals.note(Party::Node(from), RefusalReason::UnknownShard, &detail);
        }
        if refused > 0 {
            let detail = format!(
                "{refused} messages of another engine than shard {shard}'s, or with numbers that no replica reaches"
            );
            self.refusals.note(Party::Node(from), RefusalReason::Implausible, &detail);
        }
        Ok(())
    }

    /// A node is alive: it vouches for what it leads, unless its process is another than before.
    fn heard(
        &mut self,
        now: Duration,
        node: NodeId,
        boot: u64,
        wall_micros: Option<u64>,
        touched: &mut BTreeSet<ShardId>,
    ) {
        if self.neighbours.heard(now, node, boot, wall_micros) {
            self.shards.values_mut().for_each(|hosted| hosted.replica.vouch(now, node));
        } else {
            self.disconnected(now, node, touched);
        }
    }

    fn disconnected(&mut self, now: Duration, node: NodeId, touched: &mut BTreeSet<ShardId>) {
        for (id, Hosted { replica, .. }) in &mut self.shards {
            replica.disconnected(now, node);
            touched.insert(*id);
        }
    }

    fn tick(&mut self, touched: &mut BTreeSet<ShardId>) -> Result<(), FatalError> {
        let now = self.now().monotonic;
        for node in self.neighbours.missed(now) {
            for (id, Hosted { replica, .. }) in &mut self.shards {
                replica.missed(now, node);
                touched.insert(*id);
            }
        }
        for (id, Hosted { replica, .. }) in &mut self.shards {
            if !replica.is_quiesced() {
                replica.tick(now).map_err(|failure| FatalError::Replica { shard: *id, failure })?;
                touched.insert(*id);
            }
        }
        if self.neighbours.is_beat_due(now) {
            let others: BTreeSet<NodeId> =
                self.shards.values().flat_map(|hosted| hosted.replica.others()).collect();
            let leads = u32::try_from(self.leads()).unwrap_or(u32::MAX);
            let wall_micros = Some(self.now().wall_micros);
            let (boot, short_of_room) = (self.boot, self.room.is_short());
            let map_epoch = self.directory.epoch();
            let alive = PeerMessage::Alive { boot, leads, wall_micros, short_of_room, map_epoch };
            let alive = (ShardId::SYSTEM, alive);
            others.into_iter().for_each(|node| self.outgoing.entry(node).or_default().push(alive.clone()));
        }
        Ok(())
    }

    /// Looks at this node's clock, which may jump at any time, before anything is stamped by it.
    fn check_clock(&mut self, touched: &mut BTreeSet<ShardId>) {
        let now = self.now();
        let is_off = self.neighbours.is_clock_off(now);
        if is_off == self.is_clock_off {
            return;
        }
        self.is_clock_off = is_off;
        self.metrics.clock_off.set(i64::from(is_off));
        if is_off {
            tracing::warn!(
                "this node's clock is more than {CLOCK_DIFFERENCE_MAX:?} away from most others': it leads no \
                 shard until it is set right"
            );
        } else {
            tracing::info!("this node's clock agrees with most others' again");
        }
        for (id, Hosted { replica, .. }) in &mut self.shards {
            replica.mind_clock(now, is_off);
            touched.insert(*id);
        }
    }

    /// True if the replica is quiesced.
    fn advance(&mut self, shard: ShardId, again: &mut BTreeSet<ShardId>) -> Result<bool, FatalError> {
        let now = self.now();
        let Some(Hosted { replica, leader, cuts, .. }) = self.shards.get_mut(&shard) else {
            self.advance_parked(shard, again)?;
            return Ok(true);
        };
        let effects = replica.advance(now).map_err(|failure| FatalError::Replica { shard, failure })?;
        answer_cuts(replica, cuts);
        if let Some(scrub) = replica.take_scrub() {
            self.scrubber.add(shard, scrub);
        }
        if *leader != replica.leader() {
            *leader = replica.leader();
            self.directory.set_leader(shard, *leader);
        }
        let is_quiesced = replica.is_quiesced();
        if effects.has_more {
            again.insert(shard);
        }
        let is_replaced = effects.is_replaced;
        self.carry_out(shard, effects);
        if is_replaced {
            self.replace(shard)?;
            again.insert(shard);
        }
        Ok(is_quiesced)
    }

    /// Of what a parked replica brings about only its answers go out.
    fn advance_parked(&mut self, shard: ShardId, again: &mut BTreeSet<ShardId>) -> Result<(), FatalError> {
        let now = self.now();
        let Some(replica) = self.parked.get_mut(&shard) else { return Ok(()) };
        let effects = replica.advance(now).map_err(|failure| FatalError::Replica { shard, failure })?;
        if effects.has_more {
            again.insert(shard);
        }
        if effects.is_replaced {
            // It is opened anew if it takes part again.
            self.parked.remove(&shard);
        }
        self.answer(effects.replies);
        Ok(())
    }

    /// A replica has taken over a snapshot: it is opened anew, as at a start.
    fn replace(&mut self, shard: ShardId) -> Result<(), FatalError> {
        let map = self.directory.map();
        let was_lost = self.directory.is_rebuilding(shard);
        // Before the new one looks at what it wrote.
        drop(self.shards.remove(&shard));
        self.directory.set_leader(shard, None);
        self.metrics.drop_gauges(shard);
        self.host(&map).map_err(not_hosted)?;
        if was_lost {
            self.metrics.shard(shard).rebuilt.inc();
            tracing::info!(%shard, "a replica whose state was lost is rebuilt, and takes part again");
            self.forget_given_up();
        } else {
            self.metrics.shard(shard).snapshots.inc();
            tracing::info!(%shard, "a replica that had fallen behind goes on from a snapshot");
        }
        Ok(())
    }

    /// Removes the damaged state that was put aside, once all is rebuilt.
    pub(crate) fn forget_given_up(&self) {
        if self.shards.values().any(|hosted| hosted.replica.is_rebuilding()) {
            return;
        }
        let folder = self.folder.clone();
        tokio::task::spawn_blocking(move || {
            if let Err(error) = remove_given_up(&folder) {
                let folder = folder.display();
                tracing::warn!(%error, "{folder}/damaged can't be removed, and is of no use any more");
            }
        });
    }

    fn carry_out(&mut self, shard: ShardId, effects: Effects<EngineMessage>) {
        for (to, message) in effects.send {
            self.outgoing.entry(to).or_default().push((shard, message.into()));
        }
        self.answer(effects.replies);
    }

    fn answer(&mut self, replies: Vec<Reply>) {
        for reply in replies {
            self.tickets.redeem(reply.ticket, reply.result);
        }
    }

    /// Opens the replicas that a map gives to this node and that are not here yet, and parks those that it does not. Those that
    /// have something to say.
    pub(crate) fn host(&mut self, map: &ShardMap) -> Result<Vec<ShardId>, ServerError> {
        let is_here = |id: &ShardId| map.shard(*id).is_some_and(|shard| shard.is_on(self.node));
        let leaving: Vec<(ShardId, Hosted)> = self.shards.extract_if(.., |id, _| !is_here(id)).collect();
        let mut touched = Vec::new();
        for (id, Hosted { mut replica, mut cuts, .. }) in leaving {
            replica.retire();
            answer_cuts(&mut replica, &mut cuts);
            // From now on others tell.
            self.directory.set_leader(id, None);
            self.directory.set_rebuilding(id, false);
            self.metrics.drop_gauges(id);
            self.parked.insert(id, replica);
            touched.push(id);
        }
        let now = self.now();
        for shard in map.shards.iter().filter(|shard| shard.is_on(self.node)) {
            if self.shards.contains_key(&shard.id) {
                continue;
            }
            let mut replica = match self.parked.remove(&shard.id) {
                Some(replica) => replica,
                None => (self.open)(shard, &map.slots, now.monotonic)?,
            };
            replica.mind_clock(now, self.is_clock_off);
            // Others may have told meanwhile, while no replica here was asked.
            self.directory.set_leader(shard.id, None);
            let metrics = self.metrics.shard(shard.id);
            self.directory.set_rebuilding(shard.id, replica.is_rebuilding());
            let (scrubbed_at, cuts, told_at) = (now.monotonic, BTreeMap::new(), None);
            let hosted = Hosted { replica, leader: None, metrics, scrubbed_at, cuts, told_at };
            self.shards.insert(shard.id, hosted);
            touched.push(shard.id);
        }
        Ok(touched)
    }

    /// How many shards this node leads.
    fn leads(&self) -> usize {
        self.shards.values().filter(|hosted| hosted.leader == Some(self.node)).count()
    }

    fn is_idle(&self) -> bool {
        let mut replicas = self.shards.values().map(|hosted| &hosted.replica).chain(self.parked.values());
        replicas.all(|replica| !replica.is_busy())
    }

    fn now(&self) -> Now {
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Now {
            monotonic: self.origin.elapsed(),
            wall_micros: u64::try_from(wall.as_micros()).unwrap_or(u64::MAX),
        }
    }
}

fn answer_cuts(replica: &mut Replica, cuts: &mut BTreeMap<u64, oneshot::Sender<CutAnswer>>) {
    for reply in replica.take_cuts() {
        // Whoever asked may have gone away.
        let _ = cuts.remove(&reply.ticket).map(|answer| answer.send(reply.result));
    }
}

/// Why the executor ends if a replica can't be opened.
fn not_hosted(error: ServerError) -> FatalError {
    match error {
        ServerError::Replica { shard, failure } => FatalError::Replica { shard, failure },
        other => FatalError::Host { cause: other.to_string() },
    }
}

/// Sends inputs to the executor. Once it has ended, inputs go nowhere, and answers never come.
#[derive(Clone)]
pub(crate) struct Jobs(pub(crate) UnboundedSender<Job>);

impl Jobs {
    pub(crate) fn send(&self, job: Job) {
        if let Err(SendError(job)) = self.0.send(job) {
            job.turn_away();
        }
    }
}
