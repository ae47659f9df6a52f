//! Golden scripts: each file under `tests/scripts/` is a scenario and its whole trace. Read one to see what the
//! protocol does; `UPDATE_GOLDENFILES=1 cargo test -p keevee-paxos --test scripts` writes the traces anew, and
//! a reviewer reads the difference.

mod cluster;
mod disk;

use std::error::Error;
use std::path::Path;
use std::time::Duration;

use cluster::{Cluster, Envelope, format};
use keevee_paxos::NodeId;

/// What a script can say. Nodes are numbers from 1; without any, a command means all of them.
#[derive(goldenscript::Command)]
enum Command {
    /// A new group.
    Cluster {
        #[arg(key)]
        nodes: u64,
        /// How many take part, if not all. The others know nobody.
        #[arg(key)]
        members: Option<u64>,
        /// The most bytes of a page.
        #[arg(key)]
        page: Option<usize>,
        /// The most bytes of applied entries in memory.
        #[arg(key)]
        cache: Option<usize>,
    },
    /// Ticks, with no time passing.
    Tick(#[arg(optional, many)] Vec<NodeId>),
    /// Lets milliseconds pass at some nodes, with ticks; nothing is delivered or synced.
    Elapse(u64, #[arg(optional, many)] Vec<NodeId>),
    /// Lets time pass at one node until it is a candidate.
    Timeout(NodeId),
    /// Lets milliseconds pass everywhere, with all messages delivered; traces roles, applied entries and reads.
    Run(u64),
    /// Delivers and syncs until nothing is left to do.
    Settle,
    /// Delivers the matching messages that are under way now.
    Deliver {
        #[arg(key)]
        from: Option<NodeId>,
        #[arg(key)]
        to: Option<NodeId>,
        #[arg(key)]
        kind: Option<String>,
    },
    /// Loses the matching messages that are under way.
    Drop {
        #[arg(key)]
        from: Option<NodeId>,
        #[arg(key)]
        to: Option<NodeId>,
        #[arg(key)]
        kind: Option<String>,
    },
    /// Copies the matching messages, and holds the copies.
    Duplicate {
        #[arg(key)]
        from: Option<NodeId>,
        #[arg(key)]
        to: Option<NodeId>,
        #[arg(key)]
        kind: Option<String>,
    },
    /// Holds the matching messages back.
    Hold {
        #[arg(key)]
        from: Option<NodeId>,
        #[arg(key)]
        to: Option<NodeId>,
        #[arg(key)]
        kind: Option<String>,
    },
    /// Lets held messages go.
    Release {
        #[arg(key)]
        from: Option<NodeId>,
        #[arg(key)]
        to: Option<NodeId>,
        #[arg(key)]
        kind: Option<String>,
    },
    /// Syncs what nodes have written.
    Persist(#[arg(optional, many)] Vec<NodeId>),
    Propose(NodeId, String),
    Read(NodeId),
    Status(#[arg(optional, many)] Vec<NodeId>),
    /// Shows what disks hold.
    Disk(#[arg(optional, many)] Vec<NodeId>),
    Transfer(NodeId),
    /// At the first node, the connection to the second is reset.
    Disconnect(NodeId, NodeId),
    /// Cuts all links between these sides, each written `"1,2"`.
    Partition(#[arg(many)] Vec<String>),
    /// Cuts links: `1-2` both ways, `1>2` one way.
    Cut(#[arg(many)] Vec<String>),
    /// Mends all links.
    Heal,
    Crash(#[arg(many)] Vec<NodeId>),
    Restart(#[arg(many)] Vec<NodeId>),
    /// The node neither hears nor ticks; messages wait for it, and its clock goes on.
    Pause(NodeId),
    Resume(NodeId),
    /// The node's disk syncs nothing by itself.
    Stall(NodeId),
    Unstall(NodeId),
    /// The applied state survives a crash.
    Flush(#[arg(optional, many)] Vec<NodeId>),
    /// The log need not be kept for members that lack some of it.
    Compact(#[arg(optional, many)] Vec<NodeId>),
    /// The first node takes over the state of the second.
    Snapshot(NodeId, NodeId),
    /// Proposes who takes part, each written as traces show it: `{1,2,3}{3,4}+5`.
    Configure(NodeId, String),
}

/// A predicate on messages under way.
fn selection(from: Option<NodeId>, to: Option<NodeId>, kind: Option<&str>) -> impl Fn(&Envelope) -> bool {
    move |envelope| {
        from.is_none_or(|from| envelope.from == from)
            && to.is_none_or(|to| envelope.to == to)
            && kind.is_none_or(|kind| format::kind(&envelope.message) == kind)
    }
}

struct Runner {
    cluster: Cluster,
}

impl Runner {
    /// The nodes named, or all.
    fn nodes(&self, named: &[NodeId]) -> Vec<NodeId> {
        if named.is_empty() { self.cluster.ids() } else { named.to_vec() }
    }

    fn for_each(&mut self, named: &[NodeId], run: impl Fn(&mut Cluster, NodeId)) {
        for id in self.nodes(named) {
            run(&mut self.cluster, id);
        }
    }

    fn run_on_messages(&mut self, command: &Command) -> Result<(), Box<dyn Error>> {
        let cluster = &mut self.cluster;
        match command {
            Command::Deliver { from, to, kind } => {
                let matches = selection(*from, *to, kind.as_deref());
                let waiting = cluster.count_matching(&matches);
                if waiting == 0 {
                    return Err("no such message is under way".into());
                }
                for _ in 0..waiting {
                    cluster.deliver_one(&|envelope| !envelope.held && matches(envelope));
                }
            }
            Command::Drop { from, to, kind } => {
                cluster.drop_matching(selection(*from, *to, kind.as_deref()));
            }
            Command::Duplicate { from, to, kind } => {
                cluster.duplicate_matching(selection(*from, *to, kind.as_deref()));
            }
            Command::Hold { from, to, kind } => {
                cluster.hold_matching(true, selection(*from, *to, kind.as_deref()));
            }
            Command::Release { from, to, kind } => {
                cluster.hold_matching(false, selection(*from, *to, kind.as_deref()));
            }
            _ => unreachable!("matched by the caller"),
        }
        Ok(())
    }

    fn run_on_network(&mut self, command: &Command) -> Result<(), Box<dyn Error>> {
        match command {
            Command::Partition(sides) => {
                let side =
                    |text: &String| text.split(',').map(str::parse).collect::<Result<Vec<NodeId>, _>>();
                let sides = sides.iter().map(side).collect::<Result<Vec<_>, _>>()?;
                for (one, other) in sides.iter().flat_map(|one| sides.iter().map(move |other| (one, other))) {
                    if one != other {
                        let links: Vec<_> =
                            one.iter().flat_map(|from| other.iter().map(|to| (*from, *to))).collect();
                        self.cluster.cut(&links);
                    }
                }
            }
            Command::Cut(links) => {
                for link in links {
                    let (from, to) = link.split_once(['-', '>']).ok_or("a link is 1-2 or 1>2")?;
                    let (from, to) = (from.parse()?, to.parse()?);
                    self.cluster.cut(&[(from, to)]);
                    if link.contains('-') {
                        self.cluster.cut(&[(to, from)]);
                    }
                }
            }
            Command::Heal => self.cluster.heal(),
            _ => unreachable!("matched by the caller"),
        }
        Ok(())
    }
}

impl goldenscript::Runner for Runner {
    type Command = Command;

    fn run(&mut self, command: &Command, _context: &goldenscript::Context) -> Result<String, Box<dyn Error>> {
        match command {
            Command::Cluster { nodes, members, page, cache } => {
                let members = members.unwrap_or(*nodes);
                self.cluster =
                    Cluster::new(*nodes, members, page.unwrap_or(1 << 20), cache.unwrap_or(1 << 20));
            }
            Command::Tick(nodes) => self.for_each(nodes, |cluster, id| {
                cluster.step(id, keevee_paxos::Input::Tick);
            }),
            Command::Elapse(span, nodes) => {
                let nodes = self.nodes(nodes);
                self.cluster.elapse(Duration::from_millis(*span), &nodes);
            }
            Command::Timeout(node) => self.cluster.time_out(*node),
            Command::Run(span) => self.cluster.run(Duration::from_millis(*span)),
            Command::Settle => self.cluster.settle(),
            Command::Deliver { .. }
            | Command::Drop { .. }
            | Command::Duplicate { .. }
            | Command::Hold { .. }
            | Command::Release { .. } => self.run_on_messages(command)?,
            Command::Persist(nodes) => self.for_each(nodes, |cluster, id| {
                cluster.persist(id);
            }),
            Command::Propose(node, value) => self.cluster.propose(*node, value),
            Command::Read(node) => self.cluster.read(*node),
            Command::Status(nodes) => self.for_each(nodes, Cluster::status),
            Command::Disk(nodes) => self.for_each(nodes, Cluster::durable_log),
            Command::Transfer(node) => {
                self.cluster.step(*node, keevee_paxos::Input::TransferLeadership(None));
            }
            Command::Disconnect(node, other) => {
                self.cluster.step(*node, keevee_paxos::Input::Disconnected(*other));
            }
            Command::Partition(_) | Command::Cut(_) | Command::Heal => self.run_on_network(command)?,
            Command::Crash(nodes) => self.for_each(nodes, Cluster::crash),
            Command::Restart(nodes) => self.for_each(nodes, Cluster::start),
            Command::Pause(node) => self.cluster.pause(*node, true),
            Command::Resume(node) => self.cluster.pause(*node, false),
            Command::Stall(node) => self.cluster.stall(*node, true),
            Command::Unstall(node) => self.cluster.stall(*node, false),
            Command::Flush(nodes) => self.for_each(nodes, Cluster::flush),
            Command::Compact(nodes) => self.for_each(nodes, Cluster::compact),
            Command::Snapshot(to, from) => self.cluster.take_over(*to, *from),
            Command::Configure(node, members) => self.cluster.configure(*node, &format::configured(members)?),
        }
        Ok(self.cluster.take_trace())
    }
}

/// Runs every script, and names each that differs.
#[test]
fn scripts() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/scripts");
    let entries = std::fs::read_dir(&folder).expect("the scripts' folder");
    let mut paths: Vec<_> = entries.map(|entry| entry.expect("a script").path()).collect();
    paths.sort();
    assert!(!paths.is_empty());
    let mut failures = Vec::new();
    for path in paths {
        let mut runner = Runner { cluster: Cluster::new(1, 1, 1 << 20, 1 << 20) };
        let run = || goldenscript::run(&mut runner, &path);
        match std::panic::catch_unwind(std::panic::AssertUnwindSafe(run)) {
            Ok(Ok(())) => {}
            Ok(Err(error)) => failures.push(format!("{}: {error}", path.display())),
            Err(_) => failures.push(format!("{}: differs, as printed above", path.display())),
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}
