//! What a seed draws before its run begins: the size of the group, its settings, its clients, and the faults,
//! each with its time. A plan is data, so that it can be printed, and cut down while a failure stays.

use std::fmt;

use clap::ValueEnum;
use serde::Serialize;

use crate::random::Random;

/// A microsecond of virtual time is 1.
pub const MILLISECOND: u64 = 1_000;
/// In microseconds.
pub const SECOND: u64 = 1_000 * MILLISECOND;

/// What makes the replicas of a run agree.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum EngineKind {
    /// keevee's own Multi-Paxos
    #[default]
    Paxos,
    /// Raft, by openraft
    Raft,
}

impl EngineKind {
    /// Its name on command lines and in files.
    pub fn name(self) -> &'static str {
        match self {
            EngineKind::Paxos => "paxos",
            EngineKind::Raft => "raft",
        }
    }

    /// How many of the longest election timeouts a group may take to settle.
    ///
    /// Multi-Paxos: four (Omni-Paxos 2023, section 7.2). Raft: six. A leader that hears nobody falls silent after one
    /// timeout, and those who heard it wait for up to one more before they ask. Votes may be split, and then it takes another
    /// and another.
    fn settling_timeouts(self) -> u64 {
        match self {
            EngineKind::Paxos => SETTLING_TIMEOUTS,
            EngineKind::Raft => 6,
        }
    }

    /// How many times longer than usual a group may take to settle while [`FaultKind::SlowElection`] lasts: each
    /// attempt of a candidate may fail, and is repeated with another timeout. Multi-Paxos takes longer than usual in
    /// 2 of 100 such elections, than twice as long in 2 of 1,000, and so on: at 4, once in a million seeds or so. For
    /// Raft, whose usual is more, as much as such a fault lasts.
    pub fn slow_patience(self) -> u64 {
        match self {
            EngineKind::Paxos => SLOW_PATIENCE,
            EngineKind::Raft => 2,
        }
    }

    /// The engine of a name.
    pub fn from_name(name: &str) -> Option<EngineKind> {
        [EngineKind::Paxos, EngineKind::Raft].into_iter().find(|engine| engine.name() == name)
    }
}

/// Everything drawn before a run.
#[derive(Clone, Debug, Serialize)]
pub struct Plan {
    /// The seed that drew it; also that of the run's own stream.
    pub seed: u64,
    /// What the replicas run on. It is not drawn: each engine is put through the same.
    pub engine: EngineKind,
    /// 3 to 5.
    pub nodes: u64,
    /// The shards, and who has their map.
    pub shards: ShardsPlan,
    /// How long faults happen, in microseconds. Then everything heals.
    pub faulty_micros: u64,
    /// The group's settings.
    pub settings: Settings,
    /// Of each node in turn: how fast its clock runs, in thousandths.
    pub clock_rates: Vec<u64>,
    /// Of each node in turn: how far its wall clock is off at first, in microseconds.
    pub wall_offsets: Vec<i64>,
    /// The clients.
    pub clients: Vec<ClientPlan>,
    /// How many keys they share.
    pub keys: u64,
    /// True if clients let some of their keys expire. Then most clocks agree, within seconds.
    pub expiry: bool,
    /// In order of their times.
    pub faults: Vec<Fault>,
}

/// The shards that the nodes hold, and what nodes know of them at first.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ShardsPlan {
    /// 1 to 4.
    pub count: u32,
    /// How many nodes hold a replica of each. The others forward, and are told who leads.
    pub replicas: u64,
    /// Who starts with the map of an earlier epoch, without the last shard: its slots were others' then.
    pub behind: Vec<u64>,
    /// After how long without a request a shard is quiesced, in microseconds; never, if there is no such time. Then
    /// clients think longer.
    pub idle: Option<u64>,
}

/// Settings of nodes, network and disks. Times in microseconds.
#[derive(Clone, Debug, Serialize)]
pub struct Settings {
    /// Between a leader's heartbeats.
    pub heartbeat: u64,
    /// The shortest election timeout.
    pub timeout_min: u64,
    /// The longest.
    pub timeout_max: u64,
    /// Between two ticks.
    pub tick: u64,
    /// The shortest way of a message.
    pub latency_min: u64,
    /// The longest, while nothing is wrong.
    pub latency_max: u64,
    /// True if a link delivers in order, as a stream does.
    pub ordered: bool,
    /// The longest sync, while nothing is wrong.
    pub sync_max: u64,
    /// Between two flushes of a state, on average.
    pub flush_every: u64,
    /// [`keevee_paxos::Config::page_bytes_max`].
    pub page_bytes_max: usize,
    /// [`keevee_paxos::Config::window_bytes_max`].
    pub window_bytes_max: usize,
    /// [`keevee_paxos::Config::cache_bytes_max`].
    pub cache_bytes_max: usize,
    /// [`keevee_replica::Bounds::unsynced_entries_max`].
    pub unsynced_entries_max: usize,
    /// [`keevee_replica::Bounds::log_bytes_max`].
    pub log_bytes_max: u64,
    /// [`keevee_replica::Bounds::snapshot_chunk_bytes`].
    pub snapshot_chunk_bytes: usize,
}

/// One client: one request at a time.
#[derive(Clone, Debug, Serialize)]
pub struct ClientPlan {
    /// Its number, from 1.
    pub number: u64,
    /// Between an answer and the next request, on average, in microseconds.
    pub think_micros: u64,
    /// So many of a hundred requests are reads.
    pub reads_percent: u64,
    /// So many of a hundred writes carry a request id.
    pub ids_percent: u64,
    /// How often it sends an unanswered request with an id again.
    pub retries: u64,
    /// How far its clock is off, in microseconds.
    pub clock_offset: i64,
    /// True if it stays at one node while that answers.
    pub faithful: bool,
}

/// A fault: what, when, how long.
#[derive(Clone, Debug, Serialize)]
pub struct Fault {
    /// Names it within its plan, however many others are left out.
    pub number: usize,
    /// When it begins, in microseconds.
    pub at: u64,
    /// How long it lasts, in microseconds.
    pub lasts: u64,
    /// What it is.
    pub kind: FaultKind,
}

/// Whom a fault strikes, settled when it begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum Target {
    /// This node.
    Node(u64),
    /// Whoever leads then. Of several shards another one's leader is meant by each fault.
    Leader,
    /// The follower so many places after the leader.
    Follower(u64),
}

/// What can go wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub enum FaultKind {
    /// The process dies, and is started again when the fault ends.
    Crash {
        /// Who.
        node: Target,
        /// What of the writes that were not reported as synced is found on the disk.
        unsynced: Unsynced,
        /// True if its peers notice at once: their connections are reset.
        resets: bool,
    },
    /// Every process dies at once.
    CrashAll {
        /// As for one.
        unsynced: Unsynced,
    },
    /// The process dies at the worst moment: when a higher promise, or an entry, is on its way to the disk.
    CrashInWrite {
        /// Who.
        node: Target,
        /// What of that write is found on the disk.
        unsynced: Unsynced,
    },
    /// The process dies in the middle of applying: it has written to its state once more, and does nothing else of
    /// what it was about to do.
    CrashInApply {
        /// Who.
        node: Target,
    },
    /// The process stands still; what comes waits for it.
    Pause {
        /// Who.
        node: Target,
    },
    /// Syncs do not come back.
    Stall {
        /// Whose.
        node: Target,
    },
    /// The next sync fails, and the node stops.
    FailSync {
        /// Whose.
        node: Target,
    },
    /// Syncs take up to so long.
    SlowDisk {
        /// Whose.
        node: Target,
        /// In microseconds.
        sync_max: u64,
    },
    /// The leader's process starts anew while every sync takes exactly so long: a write more than half of the shortest
    /// election timeout, so that a candidate must be given more than that.
    SlowElection {
        /// In microseconds.
        sync: u64,
    },
    /// The network between nodes is cut.
    Partition {
        /// How.
        shape: Shape,
        /// True if what is sent meanwhile is not lost but comes in the end, as from a connection that hung.
        holds: bool,
    },
    /// Messages are lost, those of clients too.
    Loss {
        /// So many of a hundred.
        percent: u64,
    },
    /// Messages come twice, the second time late.
    Duplicates {
        /// So many of a hundred.
        percent: u64,
    },
    /// Messages come late, and thereby out of order.
    Delay {
        /// So many of a hundred.
        percent: u64,
        /// In microseconds.
        latency_max: u64,
    },
    /// A wall clock jumps.
    ClockJump {
        /// Whose.
        node: Target,
        /// From its first offset, in microseconds.
        offset: i64,
    },
    /// The connections of a node are reset.
    Reset {
        /// Whose.
        node: Target,
    },
    /// The leader is asked to hand over.
    Transfer,
    /// Replicas compare what their states hold: the leader is asked for it.
    Scrub,
    /// A shard shall have other members.
    ChangeMembers {
        /// Who shall go, if enough are left.
        node: Target,
        /// True if another one shall come, if there is one.
        joins: bool,
        /// How many at once: the next ones go too, and as many come.
        count: u64,
        /// For how long after the change those who have gone do not hear of the map that says so, in microseconds.
        lingers: u64,
    },
    /// The process dies whenever a configuration is on its way to the disk, and starts again at once.
    CrashInChange {
        /// Who.
        node: Target,
        /// What of that write is found on the disk.
        unsynced: Unsynced,
    },
    /// The process dies when its log next makes a file, whose name is lost.
    CrashInNewFile {
        /// Who.
        node: Target,
        /// What of that write is found on the disk.
        unsynced: Unsynced,
    },
    /// What is on the disk changes, and the next start finds it: the node is lost, and replaced by another one. Nothing happens if
    /// a majority would be lost.
    DamageDisk {
        /// Whose.
        node: Target,
        /// What changes.
        damage: DiskDamage,
    },
    /// The log can't be read, and a node that tries it ends.
    FailReads {
        /// Whose.
        node: Target,
        /// True if the process dies first, and finds that at its start.
        dies: bool,
    },
    /// No write finds room: the node stops with the first, and does not start before there is some.
    FullDisk {
        /// Whose.
        node: Target,
    },
    /// The network between nodes is cut in the middle of a change of members.
    CutInChange {
        /// How.
        shape: Shape,
        /// With which write of a configuration that reaches a disk it begins, from 1.
        writes: u64,
    },
}

/// What a crash leaves of writes under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum Unsynced {
    /// Nothing.
    Lost,
    /// Those before a point.
    Some,
    /// All that the disk was writing.
    Kept,
    /// Those before a point, and the first half of the next.
    Torn,
}

/// How a disk changes what is on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum DiskDamage {
    /// A bit of the log, while the process is down.
    FlippedLog,
    /// A bit of a value in a state, while the process is down.
    FlippedState,
    /// A write of the log lands where another record is, and the disk says that it is done. The process dies in the end.
    Misdirected,
}

/// A cut of the network. Links are meant from one node to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum Shape {
    /// One node is alone.
    Isolate(Target),
    /// Two sides; bit `n` says on which one node `n` is.
    Split(u64),
    /// Nothing from this node arrives.
    Mute(Target),
    /// Nothing to this node arrives.
    Deaf(Target),
    /// One side of a split does not hear the other.
    OneWaySplit(u64),
    /// Only the links of one node are left (Omni-Paxos 2023, section 2: quorum loss).
    Hub(Target),
    /// The same without the leader, after the hub has missed some entries (constrained election).
    Constrained(Target),
    /// Each node reaches its neighbours only (chained).
    Chain,
    /// One link.
    Link(Target, u64),
    /// One direction of one link.
    HalfLink(Target, u64),
}

/// How many of a hundred plans have keys that expire.
const EXPIRY_PERCENT: u64 = 15;

impl Plan {
    /// What a seed draws, for Multi-Paxos; see [`Plan::on`].
    pub fn draw(seed: u64) -> Plan {
        let mut random = Random::new(seed, 1);
        let (mut shards, nodes) = ShardsPlan::draw(random.pick(&[3, 3, 5]), Random::new(seed, 3));
        let mut settings = Settings::draw(&mut random);
        settings.draw_logs(Random::new(seed, 6));
        settings.empty_logs(Random::new(seed, EMPTY_STREAM));
        shards.draw_idle(&settings, Random::new(seed, 4));
        let drift = random.pick(&[0, 0, 20, 150]);
        let skew = random.pick(&[0, 1, 20]) * SECOND;
        let offset = |random: &mut Random| random.between(0, 2 * skew) as i64 - skew as i64;
        let clock_rates = (0..nodes).map(|_| 1_000 - drift + random.below(2 * drift + 1)).collect();
        let wall_offsets = (0..nodes).map(|_| offset(&mut random)).collect();
        let clients = random.between(3, 8);
        let think = random.pick(&[60, 150, 150, 300]) * MILLISECOND;
        let think = if shards.idle.is_some() { think * ShardsPlan::QUIET_THINKING } else { think };
        let reads_percent = random.pick(&[30, 50, 70]);
        let ids_percent = random.pick(&[50, 80, 100]);
        let client = |number| ClientPlan {
            number,
            think_micros: think,
            reads_percent,
            ids_percent,
            retries: random.below(4),
            clock_offset: random.between(0, 2 * SECOND) as i64 - SECOND as i64,
            faithful: random.percent(50),
        };
        let clients = (1..=clients).map(client).collect();
        let keys = random.pick(&[2, 4, 9]).max(shards.keys_min());
        let faulty_micros = 60 * SECOND;
        let mut faults = Schedule::new(nodes, shards.count, &settings, random).draw(faulty_micros);
        add_changes(&mut faults, nodes, faulty_micros, Random::new(seed, CHANGES_STREAM));
        aim_at_changes(&mut faults, nodes, faulty_micros, Random::new(seed, AIMED_STREAM));
        add_disk_faults(&mut faults, nodes, faulty_micros, Random::new(seed, DISKS_STREAM));
        add_scrubs(&mut faults, faulty_micros, Random::new(seed, SCRUBS_STREAM));
        let expiry = Random::new(seed, 5).percent(EXPIRY_PERCENT);
        let engine = EngineKind::Paxos;
        Plan {
            seed,
            engine,
            nodes,
            shards,
            faulty_micros,
            settings,
            clock_rates,
            wall_offsets,
            clients,
            keys,
            expiry,
            faults,
        }
        .with_clocks()
    }

    /// Where keys expire, most clocks agree: all but that of node 1, which may be anywhere, run within 2% of the true
    /// speed and stay within two seconds of the true time. So a majority always has clocks to go by.
    fn with_clocks(mut self) -> Plan {
        if !self.expiry {
            return self;
        }
        const NEAR: i64 = 2 * SECOND as i64;
        let near = |offset: i64| offset % NEAR;
        for rate in &mut self.clock_rates {
            *rate = 980 + *rate % 41;
        }
        self.wall_offsets.iter_mut().skip(1).for_each(|offset| *offset = near(*offset));
        for fault in &mut self.faults {
            if let FaultKind::ClockJump { node, offset } = &mut fault.kind
                && *node != Target::Node(1)
            {
                *offset = near(*offset);
            }
        }
        self
    }

    /// True if what is on disks is struck.
    pub(crate) fn has_disk_faults(&self) -> bool {
        let strikes = |kind: &FaultKind| {
            matches!(
                kind,
                FaultKind::DamageDisk { .. }
                    | FaultKind::FailReads { .. }
                    | FaultKind::FullDisk { .. }
                    | FaultKind::CrashInNewFile { .. }
            )
        };
        self.faults.iter().any(|fault| strikes(&fault.kind))
    }

    /// The highest number that a node may have: those that are lost are replaced by others.
    pub fn nodes_max(&self) -> u64 {
        let is_damage = |fault: &&Fault| matches!(fault.kind, FaultKind::DamageDisk { .. });
        self.nodes + self.faults.iter().filter(is_damage).count() as u64
    }

    /// The same on another engine.
    pub fn on(self, engine: EngineKind) -> Plan {
        Plan { engine, ..self }
    }
}

/// A virtual time as traces show it.
pub fn seconds(micros: u64) -> String {
    format!("{}.{:06} s", micros / SECOND, micros % SECOND)
}

/// All that was drawn. Taken apart by name, so that a new parameter can't be left out.
impl fmt::Display for Plan {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Plan {
            seed,
            engine,
            nodes,
            shards,
            faulty_micros,
            settings,
            clock_rates,
            wall_offsets,
            clients,
            keys,
            expiry,
            faults,
        } = self;
        let (engine, faulty) = (engine.name(), seconds(*faulty_micros));
        writeln!(formatter, "seed {seed}: {engine}, {nodes} nodes, {keys} keys, faults for {faulty}")?;
        writeln!(formatter, "{shards:?}")?;
        writeln!(formatter, "keys {}", if *expiry { "that expire" } else { "that stay" })?;
        writeln!(formatter, "clock rates {clock_rates:?} thousandths, wall offsets {wall_offsets:?} us")?;
        writeln!(formatter, "{settings:#?}")?;
        for client in clients {
            writeln!(formatter, "{client:?}")?;
        }
        for Fault { number, at, lasts, kind } in faults {
            let (at, lasts) = (seconds(*at), seconds(*lasts));
            writeln!(formatter, "fault {number:>3} at {at:>12} for {lasts:>11}: {kind:?}")?;
        }
        Ok(())
    }
}

impl ShardsPlan {
    /// How many of a hundred plans have several shards. More are slower, and do not see more of one shard.
    const SEVERAL_PERCENT: u64 = 20;

    /// The shards, and on how many nodes: one more than three if each shard is to be missing on one of them. From a
    /// stream of its own, so that plans of one shard are drawn as if there were no others.
    fn draw(nodes: u64, mut random: Random) -> (ShardsPlan, u64) {
        if !random.percent(ShardsPlan::SEVERAL_PERCENT) {
            return (ShardsPlan { count: 1, replicas: nodes, behind: Vec::new(), idle: None }, nodes);
        }
        let count = random.between(2, 4) as u32;
        let nodes = if random.percent(50) { nodes.max(4) } else { nodes };
        let replicas = if random.percent(50) { 3 } else { nodes };
        let behind_percent = random.pick(&[0, 40]);
        let behind = (1..=nodes).filter(|_| random.percent(behind_percent)).collect();
        (ShardsPlan { count, replicas, behind, idle: None }, nodes)
    }

    /// How many of a hundred plans have shards that are quiesced.
    const QUIET_PERCENT: u64 = 20;
    /// So many times longer than otherwise clients think in such a plan.
    const QUIET_THINKING: u64 = 20;

    /// Whether idle shards are quiesced, from another stream of its own. The demanded writes leave them time for it.
    fn draw_idle(&mut self, settings: &Settings, mut random: Random) {
        if random.percent(ShardsPlan::QUIET_PERCENT) {
            self.idle = Some(settings.timeout_max / random.pick(&[8, 16]));
        }
    }

    /// So many keys that several shards have some.
    fn keys_min(&self) -> u64 {
        if self.count == 1 { 2 } else { 3 * u64::from(self.count) }
    }
}

impl Settings {
    fn draw(random: &mut Random) -> Settings {
        let (heartbeat, timeout_min) = random.pick(&[(100, 600), (100, 400), (50, 300), (50, 200)]);
        let (latency_min, latency_max) =
            random.pick(&[(100, 500), (100, 500), (200, 4_000), (1_000, 12_000)]);
        let sync_max = random.pick(&[300, 300, 3_000, 12_000]);
        // Where each page or window holds one entry, a group can only be as fast as one entry goes there and back.
        let is_fast = latency_max + sync_max < MILLISECOND;
        let page_bytes_max = random.pick(&[1, 300, 2_000, 1 << 20]);
        let window_bytes_max = random.pick(&[1, 1_000, 8 << 20]);
        Settings {
            heartbeat: heartbeat * MILLISECOND,
            timeout_min: timeout_min * MILLISECOND,
            timeout_max: 2 * timeout_min * MILLISECOND,
            tick: 20 * MILLISECOND,
            latency_min,
            latency_max,
            ordered: random.percent(30),
            sync_max,
            flush_every: random.pick(&[200, 2_000, 20_000]) * MILLISECOND,
            page_bytes_max: if is_fast { page_bytes_max } else { 1 << 20 },
            window_bytes_max: if is_fast { window_bytes_max } else { 8 << 20 },
            cache_bytes_max: random.pick(&[0, 1_000, 16 << 20]),
            unsynced_entries_max: random.pick(&[1, 1, 4]),
            log_bytes_max: u64::MAX,
            snapshot_chunk_bytes: 1 << 20,
        }
    }

    /// How many of a hundred plans have logs that are short, so that who was away needs a snapshot.
    const SHORT_LOGS_PERCENT: u64 = 50;

    /// How many of a hundred of these keep nothing.
    const EMPTY_LOGS_PERCENT: u64 = 15;

    fn has_short_logs(&self) -> bool {
        self.log_bytes_max < u64::MAX
    }

    /// How long logs are, from a stream of its own.
    fn draw_logs(&mut self, mut random: Random) {
        if random.percent(Settings::SHORT_LOGS_PERCENT) {
            self.log_bytes_max = random.pick(&[1_000, 5_000, 20_000]);
            self.snapshot_chunk_bytes = random.pick(&[300, 2_000, 1 << 20]);
        }
    }

    /// Lets some of the short logs keep nothing that all members have, from a stream of its own.
    fn empty_logs(&mut self, mut random: Random) {
        if self.has_short_logs() && random.percent(Settings::EMPTY_LOGS_PERCENT) {
            self.log_bytes_max = 0;
        }
    }

    /// The time within which a group must agree again, by clocks that run slow too: four of the longest
    /// election timeouts (Omni-Paxos 2023, section 7.2).
    pub fn settling(&self, slowest_clock_rate: u64) -> u64 {
        SETTLING_TIMEOUTS * self.timeout_max * 1_000 / slowest_clock_rate
    }
}

impl Plan {
    /// [`Settings::settling`] for this plan's clocks and engine. Where logs are short, a replica that a quorum needs may
    /// have to fetch a snapshot first, from another one than it has begun with.
    pub fn settling(&self) -> u64 {
        let slowest = self.clock_rates.iter().copied().min().unwrap_or(1_000).min(1_000);
        let agreeing = self.settings.settling(slowest) * self.engine.settling_timeouts() / SETTLING_TIMEOUTS;
        agreeing + if self.settings.has_short_logs() { FETCHING } else { 0 }
    }
}

/// The number of the stream that draws which logs keep nothing: as [`CHANGES_STREAM`].
const EMPTY_STREAM: u64 = 11;

/// How many of a hundred plans have members that change.
const CHANGES_PERCENT: u64 = 35;
/// The number of the stream that draws them: one by which the plans of the seeds that are recorded for mutants stay as they were.
const CHANGES_STREAM: u64 = 3_657;

/// One time in `out_of` each the leader and a follower, else any node.
fn any_target(random: &mut Random, nodes: u64, out_of: u64) -> Target {
    match random.below(out_of) {
        0 => Target::Leader,
        1 => Target::Follower(random.between(1, nodes - 1)),
        _ => Target::Node(random.between(1, nodes)),
    }
}

/// Adds changes of members, from a stream of its own. Not at first: what other faults find they find as before.
fn add_changes(faults: &mut Vec<Fault>, nodes: u64, end: u64, mut random: Random) {
    if !random.percent(CHANGES_PERCENT) {
        return;
    }
    for _ in 0..random.between(2, 10) {
        let at = random.between(end / 3, end - SECOND);
        let node = any_target(&mut random, nodes, 4);
        let kind = FaultKind::ChangeMembers { node, joins: random.percent(70), count: 1, lingers: 0 };
        faults.push(Fault { number: faults.len() + 1, at, lasts: SECOND, kind });
    }
    faults.sort_by_key(|fault| fault.at);
}

/// How many of a hundred plans with changes of members have faults that are aimed at these.
const AIMED_PERCENT: u64 = 60;
const AIMED_STREAM: u64 = 7;

/// Makes changes of members larger, and adds faults that strike in the middle of them. From a stream of its own, and only to
/// plans with changes: all others are as they would be without.
fn aim_at_changes(faults: &mut Vec<Fault>, nodes: u64, end: u64, mut random: Random) {
    if !random.percent(AIMED_PERCENT) {
        return;
    }
    let mut added = Vec::new();
    for fault in faults.iter_mut() {
        let FaultKind::ChangeMembers { count, lingers, .. } = &mut fault.kind else { continue };
        *count = random.pick(&[1, 1, 2]);
        *lingers = random.pick(&[0, 3, 10]) * SECOND;
        let mut add = |begin: u64, lasts: u64, kind| {
            let at = begin.min(end - SECOND / 2);
            added.push(Fault { number: 0, at, lasts: lasts.min(end - at), kind });
        };
        let at = fault.at;
        let mut node = || Target::Node(random.between(1, nodes));
        let (one, other) = (node(), node());
        if random.percent(50) {
            let unsynced = random.pick(&[Unsynced::Kept, Unsynced::Kept, Unsynced::Some, Unsynced::Lost]);
            let lasts = random.between(SECOND, 5 * SECOND);
            add(at, lasts, FaultKind::CrashInChange { node: one, unsynced });
        }
        if random.percent(40) {
            let (begin, lasts) = (at + random.below(SECOND / 2), random.between(SECOND / 2, 2 * SECOND));
            let shape = random.pick(&[Shape::Isolate(other), Shape::Mute(other), Shape::Deaf(other)]);
            add(begin, lasts, FaultKind::Partition { shape, holds: random.percent(20) });
        }
        if random.percent(70) {
            let sides = random.between(1, (1 << nodes) - 2) << 1;
            let shape =
                random.pick(&[Shape::Split(sides), Shape::Split(sides), Shape::Isolate(Target::Leader)]);
            let (writes, lasts) = (random.between(1, 4 * nodes), random.between(2 * SECOND, 6 * SECOND));
            add(at, lasts, FaultKind::CutInChange { shape, writes });
        }
    }
    for mut fault in added {
        fault.number = faults.len() + 1;
        faults.push(fault);
    }
    faults.sort_by_key(|fault| fault.at);
}

/// How many of a hundred plans have faults that strike what is on disks.
const DISKS_PERCENT: u64 = 30;
/// As [`CHANGES_STREAM`].
const DISKS_STREAM: u64 = 3_088;

/// Adds faults that strike what is on disks, from a stream of its own.
fn add_disk_faults(faults: &mut Vec<Fault>, nodes: u64, end: u64, mut random: Random) {
    if !random.percent(DISKS_PERCENT) {
        return;
    }
    for _ in 0..random.between(2, 6) {
        let at = random.between(end / 20, end - SECOND);
        let lasts = random.between(SECOND / 4, 4 * SECOND);
        let node = any_target(&mut random, nodes, 3);
        let kind = match random.below(8) {
            0 | 1 => FaultKind::DamageDisk { node, damage: DiskDamage::FlippedLog },
            2 => FaultKind::DamageDisk { node, damage: DiskDamage::FlippedState },
            3 | 4 => FaultKind::DamageDisk { node, damage: DiskDamage::Misdirected },
            5 => FaultKind::FailReads { node, dies: random.percent(50) },
            6 => FaultKind::FullDisk { node },
            _ => {
                let unsynced = random.pick(&[Unsynced::Lost, Unsynced::Some, Unsynced::Torn]);
                FaultKind::CrashInNewFile { node, unsynced }
            }
        };
        // A file is made now and then only.
        let is_rare = matches!(kind, FaultKind::CrashInNewFile { .. });
        let lasts = if is_rare { 3 * lasts } else { lasts }.min(end - at);
        faults.push(Fault { number: faults.len() + 1, at, lasts, kind });
    }
    faults.sort_by_key(|fault| fault.at);
}

/// How many of a hundred plans have scrubs. Each writes an entry, and so changes the course of the run.
const SCRUBS_PERCENT: u64 = 15;
/// As [`CHANGES_STREAM`].
const SCRUBS_STREAM: u64 = 363;

/// Adds scrubs, from a stream of its own.
fn add_scrubs(faults: &mut Vec<Fault>, end: u64, mut random: Random) {
    if !random.percent(SCRUBS_PERCENT) {
        return;
    }
    for _ in 0..random.between(3, 12) {
        let at = random.between(end / 20, end - SECOND);
        faults.push(Fault { number: faults.len() + 1, at, lasts: SECOND, kind: FaultKind::Scrub });
    }
    faults.sort_by_key(|fault| fault.at);
}

/// Draws the faults: storms, in which many follow and overlap each other, and calms, in which one of them
/// lasts, so that progress can be demanded in spite of it.
struct Schedule {
    random: Random,
    nodes: u64,
    /// True if shards share a disk: a write waits for the sync of another one's, then for its own.
    shares_disks: bool,
    timeout_max: u64,
    calm: u64,
    /// True if a window holds as many entries as come while slow disks sync.
    has_room: bool,
    /// The kinds that this plan knows: all at once hide each other.
    kinds: Vec<u64>,
    faults: Vec<Fault>,
}

/// How long it takes to give up a sender that is gone while there is another, a second, and to fetch a small snapshot from that.
pub(crate) const FETCHING: u64 = 1_500 * MILLISECOND;

/// Plans are drawn for Multi-Paxos, whatever they run on: see [`EngineKind::settling_timeouts`] and
/// [`EngineKind::slow_patience`].
const SETTLING_TIMEOUTS: u64 = 4;
/// How many times longer than usual a group may take to settle while [`FaultKind::SlowElection`] lasts: each
/// attempt of a candidate may fail, and is repeated with another timeout. Of 600 such elections of correct code 12 took
/// longer than usual, 1 twice as long, none three times as long; one more is for hunts that see very many.
pub(crate) const SLOW_PATIENCE: u64 = 4;

/// The least faults of a plan.
pub const FAULTS_MIN: usize = 5;

/// How many kinds [`Schedule::kind`] knows.
const KINDS: u64 = 20;

impl Schedule {
    fn new(nodes: u64, shards: u32, settings: &Settings, mut random: Random) -> Schedule {
        let share = random.pick(&[20, 45, 100]);
        let mut kinds: Vec<u64> = (0..KINDS).filter(|_| random.percent(share)).collect();
        while kinds.len() < 3 {
            kinds.push(random.below(KINDS));
        }
        let timeout_max = settings.timeout_max;
        // As long again as it takes to settle: what then happens is what is judged.
        let calm = 2 * settings.settling(850) + SECOND;
        let has_room = settings.page_bytes_max.min(settings.window_bytes_max) > 2_000;
        let shares_disks = shards > 1;
        Schedule { random, nodes, shares_disks, timeout_max, calm, has_room, kinds, faults: Vec::new() }
    }

    fn draw(mut self, end: u64) -> Vec<Fault> {
        let calm_percent = self.random.pick(&[0, 15, 40]);
        // The group is left alone until it has had the time to elect its first leader.
        let mut at = self.random.between(0, 3 * self.timeout_max);
        while at < end {
            let slow = SLOW_PATIENCE * self.calm / 2 + SECOND;
            if self.random.percent(calm_percent / 3) && at + slow < end && self.has_room {
                let slow_write = self.timeout_max / 2 * self.random.between(55, 65) / 100;
                let sync = if self.shares_disks { slow_write / 2 } else { slow_write };
                self.add(at, slow - SECOND / 2, FaultKind::SlowElection { sync });
                at += slow;
            } else if self.random.percent(calm_percent) && at + self.calm < end {
                self.add_lasting(at);
                at += self.calm;
            } else {
                at = self.add_storm(at, end);
            }
        }
        // A plan of calms only has few.
        while self.faults.len() < FAULTS_MIN {
            let at = self.random.below(end);
            self.add_passing(at, end);
        }
        self.faults.sort_by_key(|fault| fault.at);
        self.faults.iter_mut().zip(1..).for_each(|(fault, number)| fault.number = number);
        self.faults
    }

    fn add(&mut self, at: u64, lasts: u64, kind: FaultKind) {
        self.faults.push(Fault { number: 0, at, lasts, kind });
    }

    fn add_storm(&mut self, begin: u64, end: u64) -> u64 {
        let gap = self.random.pick(&[1, 3, 8]) * self.timeout_max / 4;
        let mut at = begin;
        for _ in 0..self.random.between(3, 12) {
            if at >= end {
                break;
            }
            self.add_passing(at, end);
            at += self.random.between(gap / 8, 2 * gap);
        }
        at
    }

    fn add_passing(&mut self, at: u64, end: u64) {
        let kind = self.random.pick(&self.kinds);
        let kind = self.kind(kind);
        let (short, long) = (self.timeout_max / 50, 2 * self.timeout_max);
        let lasts = match self.random.below(3) {
            0 => self.random.between(short, long / 8),
            1 => self.random.between(short, long / 2),
            _ => self.random.between(short, long),
        };
        self.add(at, lasts.min(end - at), kind);
    }

    /// A fault that a group must live with.
    fn add_lasting(&mut self, at: u64) {
        let node = self.target();
        let other = self.random.between(1, self.nodes - 1);
        let lost = Unsynced::Lost;
        let kind = match self.random.below(14) {
            0 => FaultKind::Crash { node, unsynced: lost, resets: false },
            1 => FaultKind::Pause { node },
            2 => FaultKind::Stall { node },
            3 => FaultKind::Stall { node: Target::Leader },
            4 => FaultKind::Transfer,
            _ => {
                let shape = match self.random.below(11) {
                    0 => Shape::Isolate(node),
                    1 => Shape::Hub(Target::Follower(other)),
                    2 => Shape::Hub(node),
                    3 => Shape::Constrained(Target::Follower(other)),
                    4 => Shape::Chain,
                    5 => Shape::Link(node, other),
                    6 => Shape::HalfLink(node, other),
                    7 => Shape::Mute(node),
                    8 => Shape::Deaf(node),
                    9 => Shape::Split(self.sides()),
                    _ => Shape::OneWaySplit(self.sides()),
                };
                FaultKind::Partition { shape, holds: self.random.percent(20) }
            }
        };
        let before_the_next = self.calm - SECOND / 2;
        self.add(at, before_the_next, kind);
    }

    /// Two sides with somebody on each.
    fn sides(&mut self) -> u64 {
        self.random.between(1, (1 << self.nodes) - 2) << 1
    }

    fn target(&mut self) -> Target {
        match self.random.below(4) {
            0 | 1 => Target::Leader,
            2 => Target::Follower(self.random.between(1, self.nodes - 1)),
            _ => Target::Node(self.random.between(1, self.nodes)),
        }
    }

    fn unsynced(&mut self) -> Unsynced {
        self.random.pick(&[Unsynced::Lost, Unsynced::Lost, Unsynced::Some, Unsynced::Kept, Unsynced::Torn])
    }

    fn kind(&mut self, kind: u64) -> FaultKind {
        let node = self.target();
        let unsynced = self.unsynced();
        match kind {
            0 | 1 => FaultKind::Crash { node, unsynced, resets: self.random.percent(50) },
            2 => FaultKind::CrashAll { unsynced },
            3 | 4 => FaultKind::CrashInWrite { node, unsynced },
            5 => FaultKind::CrashInApply { node },
            6 => FaultKind::Pause { node },
            7 => FaultKind::Stall { node },
            8 => FaultKind::FailSync { node },
            9 => FaultKind::SlowDisk { node, sync_max: self.random.between(10, 200) * MILLISECOND },
            10..=13 => FaultKind::Partition { shape: self.shape(node), holds: self.random.percent(40) },
            14 => FaultKind::Loss { percent: self.random.pick(&[3, 10, 30]) },
            15 => FaultKind::Duplicates { percent: self.random.pick(&[10, 50]) },
            16 | 17 => FaultKind::Delay {
                percent: self.random.pick(&[5, 30, 100]),
                latency_max: self.random.pick(&[50, 300, 1_500]) * MILLISECOND,
            },
            18 => {
                let offset = self.random.between(0, 60 * SECOND) as i64 - 30 * SECOND as i64;
                FaultKind::ClockJump { node, offset }
            }
            _ => match self.random.below(2) {
                0 => FaultKind::Reset { node },
                _ => FaultKind::Transfer,
            },
        }
    }

    fn shape(&mut self, node: Target) -> Shape {
        let sides = self.sides();
        let other = self.random.between(1, self.nodes - 1);
        match self.random.below(11) {
            0 | 1 => Shape::Isolate(node),
            2 => Shape::Split(sides),
            3 => Shape::Mute(node),
            4 => Shape::Deaf(node),
            5 => Shape::OneWaySplit(sides),
            6 => Shape::Hub(node),
            7 => Shape::Constrained(Target::Follower(other)),
            8 => Shape::Chain,
            9 => Shape::Link(node, other),
            _ => Shape::HalfLink(node, other),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_fault_lasts_and_every_split_has_two_sides() {
        for seed in 0..2_000 {
            let plan = Plan::draw(seed);
            assert!(plan.faults.len() >= FAULTS_MIN, "seed {seed}");
            for fault in plan.faults {
                assert!(
                    fault.lasts > 0 && fault.at + fault.lasts <= plan.faulty_micros,
                    "seed {seed}: {fault:?}"
                );
                if let FaultKind::Partition {
                    shape: Shape::Split(sides) | Shape::OneWaySplit(sides), ..
                } = fault.kind
                {
                    let on_one = (1..=plan.nodes).filter(|node| sides >> node & 1 == 1).count() as u64;
                    assert!((1..plan.nodes).contains(&on_one), "seed {seed}: {fault:?}");
                }
            }
        }
    }
}
