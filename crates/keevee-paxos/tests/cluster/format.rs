//! How messages, writes and states read in a trace. An entry is `index=value@ballot`.

use std::collections::BTreeSet;
use std::error::Error;

use keevee_paxos::{
    Configuration, Entry, HardState, Message, NodeId, Persist, QuorumSystem, Record, Status, Value,
};

pub(crate) fn value(value: &Value) -> String {
    match value {
        Value::Noop => "noop".to_owned(),
        Value::Data(bytes) => String::from_utf8_lossy(bytes).into_owned(),
        Value::Configuration(members) => configuration(members),
    }
}

fn nodes(nodes: &BTreeSet<NodeId>) -> String {
    nodes.iter().map(NodeId::to_string).collect::<Vec<_>>().join(",")
}

/// Like `{1,2,3}`, `{1,2,3}{3,4}` while both decide, `{1,2,3}+4` with a learner.
pub(crate) fn configuration(Configuration { quorum, learners }: &Configuration) -> String {
    let decide = match quorum {
        QuorumSystem::Joint { old, new } => format!("{{{}}}{{{}}}", nodes(old), nodes(new)),
        other => format!("{{{}}}", nodes(&other.members())),
    };
    if learners.is_empty() { decide } else { format!("{decide}+{}", nodes(learners)) }
}

fn entries(entries: &[Entry]) -> String {
    let entry = |entry: &Entry| format!("{}={}@{}", entry.index, value(&entry.value), entry.ballot);
    format!("[{}]", entries.iter().map(entry).collect::<Vec<_>>().join(" "))
}

/// What [`configuration`] writes.
pub(crate) fn configured(text: &str) -> Result<Configuration, Box<dyn Error>> {
    let nodes = |text: &str| text.split(',').map(str::parse).collect::<Result<BTreeSet<NodeId>, _>>();
    let (decide, learners) = text.split_once('+').unwrap_or((text, ""));
    let learners = if learners.is_empty() { BTreeSet::new() } else { nodes(learners)? };
    let decide = decide.strip_prefix('{').and_then(|decide| decide.strip_suffix('}')).ok_or("braces")?;
    let quorum = match decide.split_once("}{") {
        Some((old, new)) => QuorumSystem::Joint { old: nodes(old)?, new: nodes(new)? },
        None => QuorumSystem::Majority(nodes(decide)?),
    };
    Ok(Configuration { quorum, learners })
}

/// The first word of a message, by which scripts select it.
pub(crate) fn kind(message: &Message) -> &'static str {
    match message {
        Message::Poll { .. } => "Poll",
        Message::PollReply { .. } => "PollReply",
        Message::Prepare { .. } => "Prepare",
        Message::Promise { .. } => "Promise",
        Message::Accept { .. } => "Accept",
        Message::Accepted { .. } => "Accepted",
        Message::Heartbeat { .. } => "Heartbeat",
        Message::HeartbeatReply { .. } => "HeartbeatReply",
        Message::Chosen { .. } => "Chosen",
        Message::Refused { .. } => "Refused",
        Message::ReadIndex { .. } => "ReadIndex",
        Message::ReadIndexReply { .. } => "ReadIndexReply",
        Message::TakeOver { .. } => "TakeOver",
        Message::Dropped { .. } => "Dropped",
    }
}

pub(crate) fn message(message: &Message) -> String {
    let rest = match message {
        Message::Poll { .. } | Message::ReadIndex { .. } => String::new(),
        Message::PollReply { granted, .. } => (if *granted { "granted" } else { "denied" }).to_owned(),
        Message::Prepare { ballot, from } => format!("{ballot} from={from}"),
        Message::Promise { ballot, from, entries: page, next, chosen, first } => {
            let next = next.map_or("end".to_owned(), |next| format!("next={next}"));
            format!("{ballot} from={from} {} {next} chosen={chosen} first={first}", entries(page))
        }
        Message::Accept { ballot, entries: page, chosen, .. } => {
            format!("{ballot} {} chosen={chosen}", entries(page))
        }
        Message::Accepted { ballot, through, chosen, .. } => {
            format!("{ballot} through={through} chosen={chosen}")
        }
        Message::Heartbeat { ballot, chosen, connected, flushed, .. } => {
            let connected = if *connected { "connected" } else { "not connected" };
            format!("{ballot} chosen={chosen} flushed={flushed} {connected}")
        }
        Message::HeartbeatReply { ballot, through, chosen, flushed, .. } => {
            format!("{ballot} through={through} chosen={chosen} flushed={flushed}")
        }
        Message::Chosen { ballot, chosen } => format!("{ballot} chosen={chosen}"),
        Message::Refused { ballot, promised } => format!("{ballot}: promised {promised}"),
        Message::ReadIndexReply { ballot, index, .. } => format!("{ballot} index={index}"),
        Message::TakeOver { ballot } => ballot.to_string(),
        Message::Dropped { ballot, first } => format!("{ballot} ..{}", first - 1),
    };
    format!("{} {rest}", kind(message)).trim_end().to_owned()
}

fn record(record: &Record) -> String {
    match record {
        Record::Accepted(Entry { index, ballot, value: bytes }) => {
            format!("accepted {index}={}@{ballot}", value(bytes))
        }
        Record::HardState(HardState { promised, chosen, first, configuration: members }) => {
            let members = members.as_ref();
            let members =
                members.map_or(String::new(), |(at, members)| format!(" {at}={}", configuration(members)));
            format!("promised {promised} chosen={chosen} first={first}{members}")
        }
        Record::DropFrom(index) => format!("drop from {index}"),
        Record::DropBelow(first) => format!("drop below {first}"),
    }
}

/// The records of a write; what is sent after it is traced when it is sent.
pub(crate) fn write(persist: &Persist) -> String {
    let records: Vec<String> = persist.records.iter().map(record).collect();
    let records = if records.is_empty() { "nothing, in order".to_owned() } else { records.join(", ") };
    let held: Vec<String> =
        persist.then_send.iter().map(|(to, held)| format!("{} to {to}", kind(held))).collect();
    if held.is_empty() { records } else { format!("{records}; holds back {}", held.join(", ")) }
}

pub(crate) fn status(status: &Status) -> String {
    let Status { role, leader, promised, first, last, chosen, applied, flushed, .. } = status;
    let leader = leader.map_or("none".to_owned(), |leader| leader.to_string());
    format!(
        "{role:?} leader={leader} promised={promised} first={first} last={last} chosen={chosen} applied={applied} \
         flushed={flushed}"
    )
}
