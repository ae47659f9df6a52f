//! What the node counts, as Prometheus text.
//!
//! One [`Metrics`] per node, handed around in an `Arc`. Whoever counts on a hot path asks once for its
//! handles ([`Metrics::shard`], [`Metrics::lane`]); requests are counted by [`Metrics::request`]. It
//! leaves out who serves the text: that is [`crate::http`].

use std::time::Duration;

use keevee_core::error::ErrorKind;
use keevee_core::ids::{NodeId, ShardId};
use keevee_resp::command::COMMANDS;
use prometheus::core::Collector;
use prometheus::{
    Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
    TextEncoder,
};

/// Seconds, from a cached read to a request that waited for a new leader.
const LATENCY_BUCKETS: [f64; 16] = [
    0.000_05, 0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5,
    5.0,
];
/// Records written by one sync.
const RECORDS_BUCKETS: [f64; 10] = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0];

/// The protocol that a request came by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// The public HTTP interface.
    Http,
    /// The public gRPC interface.
    Grpc,
}

/// What a request asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// To read a key.
    Get,
    /// To set a key.
    Put,
    /// To remove a key.
    Delete,
    /// Several at once, or to increment a key.
    Execute,
    /// To read a range of keys, over HTTP.
    Scan,
    /// To remove a range of keys, over HTTP.
    DeleteRange,
}

impl Protocol {
    const ALL: [Protocol; 2] = [Protocol::Http, Protocol::Grpc];

    fn name(self) -> &'static str {
        match self {
            Protocol::Http => "http",
            Protocol::Grpc => "grpc",
        }
    }
}

impl Operation {
    const ALL: [Operation; 6] = [
        Operation::Get,
        Operation::Put,
        Operation::Delete,
        Operation::Execute,
        Operation::Scan,
        Operation::DeleteRange,
    ];

    fn name(self) -> &'static str {
        match self {
            Operation::Get => "get",
            Operation::Put => "put",
            Operation::Delete => "delete",
            Operation::Execute => "execute",
            Operation::Scan => "scan",
            Operation::DeleteRange => "delete_range",
        }
    }
}

/// All that the node counts.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    requests: Vec<RequestMetrics>,
    /// The log writer's.
    pub log: LogMetrics,
    applied: IntGaugeVec,
    chosen: IntGaugeVec,
    last: IntGaugeVec,
    quiesced: IntGaugeVec,
    leader: IntGaugeVec,
    elections: IntCounterVec,
    snapshots: IntCounterVec,
    rebuilt: IntCounterVec,
    rebuilding: IntGaugeVec,
    scrub_ended: IntGaugeVec,
    scrub_records: IntGaugeVec,
    scrub_bytes: IntGaugeVec,
    scrub_differences: IntCounterVec,
    queued: IntGaugeVec,
    dropped: IntCounterVec,
    sent: IntCounterVec,
    sent_bytes: IntCounterVec,
    forwards: IntCounterVec,
    /// 1 while this node's clock differs from most others' and it therefore leads nothing, else 0.
    pub clock_off: IntGauge,
    /// Bytes that are free on the data folder's file system, as far as this node may use them.
    pub disk_free: IntGauge,
    /// 1 while that is too little to take writes that take room, else 0.
    pub disk_low: IntGauge,
    /// What was refused of peers.
    pub refusals: RefusalMetrics,
    /// The Redis protocol's.
    pub resp: RespMetrics,
}

/// Of one protocol and operation; looked up by position, since every request passes here.
#[derive(Debug)]
struct RequestMetrics {
    ok: IntCounter,
    failed: [IntCounter; ErrorKind::ALL.len()],
    seconds: Histogram,
}

/// Of the log writer.
#[derive(Clone, Debug)]
pub struct LogMetrics {
    /// Syncs done.
    pub syncs: IntCounter,
    /// Seconds that each took.
    pub sync_seconds: Histogram,
    /// Records that each made durable.
    pub sync_records: Histogram,
}

impl LogMetrics {
    /// Counts a sync.
    pub fn synced(&self, took: Duration, records: usize) {
        self.syncs.inc();
        self.sync_seconds.observe(took.as_secs_f64());
        self.sync_records.observe(records as f64);
    }
}

/// Of one shard's replica on this node.
#[derive(Clone, Debug)]
pub struct ShardMetrics {
    /// The applied index.
    pub applied: IntGauge,
    /// The chosen index.
    pub chosen: IntGauge,
    /// The last index in the log.
    pub last: IntGauge,
    /// 1 while the replica is quiesced, else 0.
    pub quiesced: IntGauge,
    /// 1 while this node leads, else 0.
    pub leader: IntGauge,
    /// Times that this node became leader.
    pub elections: IntCounter,
    /// Snapshots that took the place of a state that had fallen behind.
    pub snapshots: IntCounter,
    /// Snapshots that took the place of a state that was damaged.
    pub rebuilt: IntCounter,
    /// 1 while the state is lost and not rebuilt yet, else 0.
    pub rebuilding: IntGauge,
    /// When this node last read its state through, in seconds since the Unix epoch.
    pub scrub_ended: IntGauge,
    /// How many records it held then.
    pub scrub_records: IntGauge,
    /// Their bytes.
    pub scrub_bytes: IntGauge,
    /// States of other replicas that differed from this one's.
    pub scrub_differences: IntCounter,
}

/// Of one queue to one peer.
#[derive(Clone, Debug)]
pub struct LaneMetrics {
    /// Messages that wait.
    pub queued: IntGauge,
    /// Messages given up: the peer could not be reached, or the queue was full.
    pub dropped: IntCounter,
    /// Messages taken from the queue to be sent.
    pub sent: IntCounter,
    /// Bytes written to their connections, over gRPC.
    pub sent_bytes: IntCounter,
}

/// Why something that a peer sent, or somebody who is none, was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RefusalReason {
    /// The secret is wrong.
    Secret,
    /// It is of another cluster.
    Cluster,
    /// The sender is no member, or means another node.
    Identity,
    /// No version of the protocol is spoken on both sides.
    Version,
    /// It can't be read.
    Malformed,
    /// It is larger than allowed.
    TooLarge,
    /// It is of a kind that this version does not know.
    UnknownKind,
    /// It is for a shard that this node does not hold.
    UnknownShard,
    /// No correct replica can have sent it.
    Implausible,
    /// More waits for this node's replicas than may; peers repeat what matters.
    Overloaded,
}

impl RefusalReason {
    const ALL: [RefusalReason; 10] = [
        RefusalReason::Secret,
        RefusalReason::Cluster,
        RefusalReason::Identity,
        RefusalReason::Version,
        RefusalReason::Malformed,
        RefusalReason::TooLarge,
        RefusalReason::UnknownKind,
        RefusalReason::UnknownShard,
        RefusalReason::Implausible,
        RefusalReason::Overloaded,
    ];

    /// The name in metrics and logs.
    pub fn name(self) -> &'static str {
        match self {
            RefusalReason::Secret => "secret",
            RefusalReason::Cluster => "cluster",
            RefusalReason::Identity => "identity",
            RefusalReason::Version => "version",
            RefusalReason::Malformed => "malformed",
            RefusalReason::TooLarge => "too_large",
            RefusalReason::UnknownKind => "unknown_kind",
            RefusalReason::UnknownShard => "unknown_shard",
            RefusalReason::Implausible => "implausible",
            RefusalReason::Overloaded => "overloaded",
        }
    }
}

/// Of what was refused of peers.
#[derive(Clone, Debug)]
pub struct RefusalMetrics([IntCounter; RefusalReason::ALL.len()]);

impl RefusalMetrics {
    /// Counts one.
    pub fn count(&self, reason: RefusalReason) {
        self.0[reason as usize].inc();
    }
}

/// Why a connection of the Redis protocol ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RespEnd {
    /// In peace: by the client, or since the node stops.
    Closed,
    /// It was one too many.
    TooMany,
    /// What it sent can't be read.
    Protocol,
    /// It spoke HTTP.
    Http,
    /// It did not take its replies, or kept others waiting for the rest of a large request.
    Stalled,
    /// There was no room for its request.
    NoRoom,
}

impl RespEnd {
    const ALL: [RespEnd; 6] = [
        RespEnd::Closed,
        RespEnd::TooMany,
        RespEnd::Protocol,
        RespEnd::Http,
        RespEnd::Stalled,
        RespEnd::NoRoom,
    ];

    fn name(self) -> &'static str {
        match self {
            RespEnd::Closed => "closed",
            RespEnd::TooMany => "too_many",
            RespEnd::Protocol => "protocol",
            RespEnd::Http => "http",
            RespEnd::Stalled => "stalled",
            RespEnd::NoRoom => "no_room",
        }
    }
}

/// Of the Redis protocol.
#[derive(Clone, Debug)]
pub struct RespMetrics {
    /// Connections open.
    pub connections: IntGauge,
    /// By position in [`keevee_resp::command::COMMANDS`]; the last are those that are unknown.
    commands: Vec<IntCounter>,
    /// Seconds that the commands took which a connection had sent together.
    pub seconds: Histogram,
    ends: [IntCounter; RespEnd::ALL.len()],
}

impl RespMetrics {
    /// Counts a command, by its position in the list of all.
    pub fn command(&self, position: Option<usize>) {
        let counter = position.and_then(|position| self.commands.get(position)).or(self.commands.last());
        counter.inspect(|counter| counter.inc());
    }

    /// Counts a connection that has ended, or was not taken.
    pub fn ended(&self, end: RespEnd) {
        self.ends[end as usize].inc();
    }

    /// All commands so far.
    pub fn commands_processed(&self) -> u64 {
        self.commands.iter().map(IntCounter::get).sum()
    }
}

impl Default for Metrics {
    fn default() -> Metrics {
        Metrics::new()
    }
}

impl Metrics {
    /// All at zero.
    pub fn new() -> Metrics {
        let registry = Registry::new();
        let register = Registrar(&registry);
        let shard: &[&str] = &["shard"];
        Metrics {
            requests: request_metrics(&register),
            log: LogMetrics {
                syncs: register.add(IntCounter::new("keevee_log_syncs_total", "Syncs of the log to disk.")),
                sync_seconds: register.add(Histogram::with_opts(
                    HistogramOpts::new("keevee_log_sync_seconds", "Time of one sync of the log, in seconds.")
                        .buckets(LATENCY_BUCKETS.into()),
                )),
                sync_records: register.add(Histogram::with_opts(
                    HistogramOpts::new("keevee_log_sync_records", "Records made durable by one sync of the log.")
                        .buckets(RECORDS_BUCKETS.into()),
                )),
            },
            applied: register.gauges("keevee_applied_index", "Index of the last log entry applied.", shard),
            chosen: register.gauges("keevee_chosen_index", "Index up to which the log is chosen.", shard),
            last: register.gauges("keevee_last_index", "Index of the last entry in the log.", shard),
            quiesced: register.gauges("keevee_quiesced", "1 while nobody asks the shard anything, else 0.", shard),
            leader: register.gauges("keevee_leader", "1 while this node leads the shard, else 0.", shard),
            elections: register.counters(
                "keevee_elections_total",
                "Times that this node became leader of the shard.",
                shard,
            ),
            snapshots: register.counters(
                "keevee_snapshots_taken_over_total",
                "Snapshots that this node went on from because it lacked what no log holds any more.",
                shard,
            ),
            rebuilt: register.counters(
                "keevee_replicas_rebuilt_total",
                "Times that this node's replica got the state of another, since its own was damaged.",
                shard,
            ),
            rebuilding: register.gauges(
                "keevee_rebuilding",
                "1 while the replica's state is lost and not rebuilt yet, else 0.",
                shard,
            ),
            scrub_ended: register.gauges(
                "keevee_scrub_last_seconds",
                "When this node last read the shard's state through, in seconds since the Unix epoch; 0: not since its start.",
                shard,
            ),
            scrub_records: register.gauges(
                "keevee_scrub_records",
                "Records in the shard's state when it was last read through.",
                shard,
            ),
            scrub_bytes: register.gauges(
                "keevee_scrub_bytes",
                "Bytes of the shard's state when it was last read through.",
                shard,
            ),
            scrub_differences: register.counters(
                "keevee_scrub_differences_total",
                "Replicas whose state was found to hold something else than this node's.",
                shard,
            ),
            queued: register.gauges(
                "keevee_peer_queue_messages",
                "Messages that wait to be sent to a peer.",
                &["peer", "lane"],
            ),
            dropped: register.counters(
                "keevee_peer_dropped_messages_total",
                "Messages to a peer given up, since it was not reached or its queue was full.",
                &["peer", "lane"],
            ),
            sent: register.counters(
                "keevee_peer_sent_messages_total",
                "Messages given to connections with a peer.",
                &["peer", "lane"],
            ),
            sent_bytes: register.counters(
                "keevee_peer_sent_bytes_total",
                "Bytes written to connections with a peer, over gRPC.",
                &["peer", "lane"],
            ),
            forwards: register.counters(
                "keevee_forwards_total",
                "Batches of commands handed to a leader, by what the connection said: ok, not_sent, no_answer.",
                &["peer", "result"],
            ),
            clock_off: register.add(IntGauge::new(
                "keevee_clock_off",
                "1 while this node's clock differs from most others', so that it leads nothing, else 0.",
            )),
            disk_free: register.add(IntGauge::new(
                "keevee_disk_free_bytes",
                "Bytes that are free on the data folder's file system.",
            )),
            disk_low: register.add(IntGauge::new(
                "keevee_disk_low",
                "1 while too little room is free on the disk to take writes that take room, else 0.",
            )),
            refusals: refusal_metrics(&register),
            resp: resp_metrics(&register),
            registry,
        }
    }

    /// Counts a request that was answered: `None` if it succeeded, else the kind of its error.
    pub fn request(
        &self,
        protocol: Protocol,
        operation: Operation,
        error: Option<ErrorKind>,
        took: Duration,
    ) {
        let metrics = &self.requests[protocol as usize * Operation::ALL.len() + operation as usize];
        match error {
            None => metrics.ok.inc(),
            Some(kind) => {
                let position = ErrorKind::ALL.iter().position(|&known| known == kind);
                if let Some(counter) = position.and_then(|position| metrics.failed.get(position)) {
                    counter.inc();
                }
            }
        }
        metrics.seconds.observe(took.as_secs_f64());
    }

    /// The handles of a shard.
    pub fn shard(&self, shard: ShardId) -> ShardMetrics {
        let shard = shard.to_string();
        let labels = [shard.as_str()];
        ShardMetrics {
            applied: self.applied.with_label_values(&labels),
            chosen: self.chosen.with_label_values(&labels),
            last: self.last.with_label_values(&labels),
            quiesced: self.quiesced.with_label_values(&labels),
            leader: self.leader.with_label_values(&labels),
            elections: self.elections.with_label_values(&labels),
            snapshots: self.snapshots.with_label_values(&labels),
            rebuilt: self.rebuilt.with_label_values(&labels),
            rebuilding: self.rebuilding.with_label_values(&labels),
            scrub_ended: self.scrub_ended.with_label_values(&labels),
            scrub_records: self.scrub_records.with_label_values(&labels),
            scrub_bytes: self.scrub_bytes.with_label_values(&labels),
            scrub_differences: self.scrub_differences.with_label_values(&labels),
        }
    }

    /// A replica of this shard takes part no longer: nobody reads its last state as today's.
    pub fn drop_gauges(&self, shard: ShardId) {
        let shard = shard.to_string();
        let gauges =
            [&self.applied, &self.chosen, &self.last, &self.quiesced, &self.leader, &self.rebuilding];
        let scrubbed = [&self.scrub_ended, &self.scrub_records, &self.scrub_bytes];
        for gauge in gauges.into_iter().chain(scrubbed) {
            // None yet, if it left at once.
            let _ = gauge.remove_label_values(&[shard.as_str()]);
        }
    }

    /// The handles of a queue to a peer.
    pub fn lane(&self, peer: NodeId, lane: &str) -> LaneMetrics {
        let peer = peer.to_string();
        let labels = [peer.as_str(), lane];
        LaneMetrics {
            queued: self.queued.with_label_values(&labels),
            dropped: self.dropped.with_label_values(&labels),
            sent: self.sent.with_label_values(&labels),
            sent_bytes: self.sent_bytes.with_label_values(&labels),
        }
    }

    /// Counts forwarded batches to a peer by result: `ok`, `not_sent` or `no_answer`.
    pub fn forwards(&self, peer: NodeId, result: &str) -> IntCounter {
        self.forwards.with_label_values(&[peer.to_string().as_str(), result])
    }

    /// Everything counted, in Prometheus' text format.
    pub fn text(&self) -> String {
        let mut text = String::new();
        if let Err(error) = TextEncoder::new().encode_utf8(&self.registry.gather(), &mut text) {
            // Only a metric that is defined wrongly ends here; the tests gather all of them.
            tracing::warn!(%error, "metrics can't be written as text");
        }
        text
    }
}

/// Creates metrics in one registry. Every definition is a constant of this file, and the tests create
/// all of them: a wrong one never leaves here.
struct Registrar<'a>(&'a Registry);

impl Registrar<'_> {
    fn add<M: Collector + Clone + 'static>(&self, metric: prometheus::Result<M>) -> M {
        let metric = metric.expect("the definition is well-formed");
        self.0.register(Box::new(metric.clone())).expect("the name is used once");
        metric
    }

    fn gauges(&self, name: &str, help: &str, labels: &[&str]) -> IntGaugeVec {
        self.add(IntGaugeVec::new(Opts::new(name, help), labels))
    }

    fn counters(&self, name: &str, help: &str, labels: &[&str]) -> IntCounterVec {
        self.add(IntCounterVec::new(Opts::new(name, help), labels))
    }
}

fn resp_metrics(register: &Registrar<'_>) -> RespMetrics {
    let commands =
        register.counters("keevee_resp_commands_total", "Commands of the Redis protocol.", &["command"]);
    let ends = register.counters(
        "keevee_resp_connections_ended_total",
        "Connections of the Redis protocol that have ended, by why.",
        &["reason"],
    );
    let names = COMMANDS.iter().map(|spec| spec.name).chain(["unknown"]);
    RespMetrics {
        connections: register.add(IntGauge::new(
            "keevee_resp_connections",
            "Connections of the Redis protocol that are open.",
        )),
        commands: names.map(|name| commands.with_label_values(&[name])).collect(),
        seconds: register.add(Histogram::with_opts(
            HistogramOpts::new(
                "keevee_resp_group_seconds",
                "Time of the commands that a connection of the Redis protocol had sent together, in seconds.",
            )
            .buckets(LATENCY_BUCKETS.into()),
        )),
        ends: RespEnd::ALL.map(|end| ends.with_label_values(&[end.name()])),
    }
}

fn refusal_metrics(register: &Registrar<'_>) -> RefusalMetrics {
    let count = register.counters(
        "keevee_peer_refused_total",
        "What was refused on the listener for peers, by reason.",
        &["reason"],
    );
    RefusalMetrics(RefusalReason::ALL.map(|reason| count.with_label_values(&[reason.name()])))
}

fn request_metrics(register: &Registrar<'_>) -> Vec<RequestMetrics> {
    let count = register.counters(
        "keevee_requests_total",
        "Requests answered, by result: ok, or the kind of error.",
        &["protocol", "operation", "result"],
    );
    let seconds = register.add(HistogramVec::new(
        HistogramOpts::new("keevee_request_seconds", "Time from a request to its answer, in seconds.")
            .buckets(LATENCY_BUCKETS.into()),
        &["protocol", "operation"],
    ));
    let pairs = Protocol::ALL
        .into_iter()
        .flat_map(|protocol| Operation::ALL.map(|operation| (protocol.name(), operation.name())));
    let metrics = pairs.map(|(protocol, operation)| RequestMetrics {
        ok: count.with_label_values(&[protocol, operation, "ok"]),
        failed: ErrorKind::ALL.map(|kind| count.with_label_values(&[protocol, operation, kind.name()])),
        seconds: seconds.with_label_values(&[protocol, operation]),
    });
    metrics.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_counted_by_operation_and_result() {
        let metrics = Metrics::new();
        metrics.request(Protocol::Http, Operation::Put, None, Duration::from_millis(3));
        metrics.request(Protocol::Http, Operation::Put, Some(ErrorKind::Fatal), Duration::ZERO);
        metrics.request(Protocol::Http, Operation::Delete, Some(ErrorKind::Conflict), Duration::ZERO);
        let text = metrics.text();
        for line in [
            r#"keevee_requests_total{operation="put",protocol="http",result="ok"} 1"#,
            r#"keevee_requests_total{operation="put",protocol="http",result="fatal"} 1"#,
            r#"keevee_requests_total{operation="delete",protocol="http",result="conflict"} 1"#,
            r#"keevee_requests_total{operation="get",protocol="http",result="ok"} 0"#,
            r#"keevee_request_seconds_count{operation="put",protocol="http"} 2"#,
            r#"keevee_request_seconds_bucket{operation="put",protocol="http",le="0.005"} 2"#,
        ] {
            assert!(text.lines().any(|found| found == line), "no line {line} in\n{text}");
        }
    }

    #[test]
    fn handles_write_into_the_text_with_help() {
        let metrics = Metrics::new();
        metrics.shard(ShardId(1)).applied.set(7);
        metrics.shard(ShardId(1)).leader.set(1);
        metrics.lane(NodeId(2), "log").dropped.inc_by(3);
        metrics.lane(NodeId(2), "log").sent.inc_by(4);
        metrics.lane(NodeId(2), "log").sent_bytes.inc_by(500);
        metrics.forwards(NodeId(2), "ok").inc();
        metrics.log.sync_records.observe(128.0);
        metrics.refusals.count(RefusalReason::UnknownShard);
        let text = metrics.text();
        for part in [
            "keevee_applied_index{shard=\"1\"} 7\n",
            "keevee_leader{shard=\"1\"} 1\n",
            "keevee_peer_dropped_messages_total{lane=\"log\",peer=\"2\"} 3\n",
            "keevee_peer_sent_messages_total{lane=\"log\",peer=\"2\"} 4\n",
            "keevee_peer_sent_bytes_total{lane=\"log\",peer=\"2\"} 500\n",
            "keevee_forwards_total{peer=\"2\",result=\"ok\"} 1\n",
            "keevee_log_sync_records_sum 128\n",
            "keevee_peer_refused_total{reason=\"unknown_shard\"} 1\n",
            "keevee_peer_refused_total{reason=\"secret\"} 0\n",
            "# HELP keevee_log_sync_seconds Time of one sync of the log, in seconds.\n",
        ] {
            assert!(text.contains(part), "no {part} in\n{text}");
        }
    }
}
