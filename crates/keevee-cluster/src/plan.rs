//! What a new cluster shall be like, and whether one that is there is like that.

use std::net::SocketAddr;
use std::path::PathBuf;

use crate::error::ClusterError;
use crate::folder::Existing;
use crate::ports::{self, Addresses};

/// More nodes than this on one machine only hide how little each of them gets.
pub const NODES_MAX: u64 = 30;
/// More shards than this no cluster has, however many nodes.
const SHARDS_MAX: u64 = 2048;
/// How many nodes a cluster has if nothing is said.
const NODES_DEFAULT: u64 = 3;
/// Node 1's public port if nothing is said.
pub(crate) const HTTP_PORT_DEFAULT: u16 = 8001;
/// Node 1's port for peers if nothing is said.
const PEER_PORT_DEFAULT: u16 = 9001;
/// Node 1's port for the Redis protocol if nothing is said.
const RESP_PORT_DEFAULT: u16 = 7001;

/// What a new cluster shall be like. What is `None` is as the cluster in the folder has it, else the default.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The cluster's folder.
    pub folder: PathBuf,
    /// The keevee program.
    pub program: PathBuf,
    /// How many nodes; 3 by default.
    pub nodes: Option<u64>,
    /// Node 1's public port, the others' follow; 8001 by default, and 0 for any that are free.
    pub http_port: Option<u16>,
    /// Node 1's port for peers, the others' follow; 9001 by default, and 0 for any that are free.
    pub peer_port: Option<u16>,
    /// Node 1's port for the Redis protocol, the others' follow; 7001 by default, and 0 for any that are free.
    pub resp_port: Option<u16>,
    /// What is chosen for the cluster as a whole.
    pub choices: Choices,
}

/// What is chosen for a new cluster as a whole.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Choices {
    /// How the nodes agree, as `keevee.toml` names it; `paxos` by default.
    pub consensus: Option<String>,
    /// What the nodes speak to each other, as `keevee.toml` names it; `grpc` by default.
    pub peer_transport: Option<String>,
    /// Which data shards there are; one on all nodes by default.
    pub layout: Option<Layout>,
}

/// Which data shards a new cluster has, and which nodes hold them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Layout {
    /// So many shards over all nodes.
    Shared {
        /// How many shards.
        shards: u16,
        /// How many nodes hold each of them; all by default, five at most.
        replicas: Option<u64>,
    },
    /// Shards over all nodes with unequal shares of the keys.
    Weighted {
        /// Each shard's share, relative to the others'.
        load_factors: Vec<u32>,
        /// As of [`Layout::Shared`].
        replicas: Option<u64>,
    },
    /// Groups of nodes, and one shard on each: no node is in two groups.
    Pinned {
        /// How many nodes a group has.
        group_nodes: u64,
        /// Each group's share of the keys, relative to the others'.
        load_factors: Vec<u32>,
    },
}

impl Default for Layout {
    fn default() -> Layout {
        Layout::Shared { shards: 1, replicas: None }
    }
}

impl Layout {
    /// The same for `keevee init`.
    pub(crate) fn init_arguments(&self) -> Vec<String> {
        let over_all = |option: &str, value: String, replicas: &Option<u64>| {
            let mut arguments = vec![option.to_owned(), value];
            arguments.extend(replicas.iter().flat_map(|count| ["--replicas".into(), count.to_string()]));
            arguments
        };
        match self {
            Layout::Shared { shards, replicas } => over_all("--shards", shards.to_string(), replicas),
            Layout::Weighted { load_factors, replicas } => {
                let load_factors: Vec<String> = load_factors.iter().map(u32::to_string).collect();
                over_all("--load-factors", load_factors.join(","), replicas)
            }
            Layout::Pinned { group_nodes, load_factors } => {
                let shard = |(group, load_factor): (u64, &u32)| {
                    let nodes = (group - 1) * group_nodes + 1..=group * group_nodes;
                    let nodes = nodes.map(|node| node.to_string()).collect::<Vec<_>>().join("+");
                    ["--shard".to_owned(), format!("name=group-{group},nodes={nodes},load={load_factor}")]
                };
                (1..).zip(load_factors).flat_map(shard).collect()
            }
        }
    }

    /// Checks that so many nodes can hold it.
    fn check(&self, nodes: u64) -> Result<(), ClusterError> {
        let why = match self {
            Layout::Weighted { load_factors, replicas } => {
                let shards = shard_count("load_factors", load_factors.len() as u64)?;
                Layout::Shared { shards, replicas: *replicas }.check(nodes)?;
                if load_factors.iter().any(|factor| *factor > 0) {
                    return Ok(());
                }
                "no shard has a load factor above 0, so none would hold a key".to_owned()
            }
            Layout::Shared { shards, .. } if shard_count("shards", u64::from(*shards))? == 0 => {
                "a cluster has at least one shard".to_owned()
            }
            Layout::Shared { replicas: Some(0), .. } => "a shard has at least one replica".to_owned(),
            Layout::Shared { replicas: Some(count), .. } if *count > nodes => {
                format!(
                    "{count} replicas need as many nodes, there are {nodes}: ask for fewer, or more nodes"
                )
            }
            Layout::Pinned { group_nodes, load_factors }
                if nodes != group_nodes * load_factors.len() as u64 =>
            {
                let groups = load_factors.len();
                format!("{groups} groups of {group_nodes} nodes are not {nodes} nodes")
            }
            Layout::Pinned { load_factors, .. } if load_factors.iter().all(|factor| *factor == 0) => {
                "no group has a load factor above 0, so none would hold a key".to_owned()
            }
            _ => return Ok(()),
        };
        Err(ClusterError::Plan(why))
    }
}

/// So many shards, if a cluster can have them: `key` says how many there are to be.
pub(crate) fn shard_count(key: &str, count: u64) -> Result<u16, ClusterError> {
    let fits = u16::try_from(count).ok().filter(|_| count <= SHARDS_MAX);
    fits.ok_or_else(|| {
        ClusterError::Plan(format!("`{key}`: a cluster has up to {SHARDS_MAX} shards, not {count}"))
    })
}

impl Plan {
    /// Where each node listens. The plan is checked on the way.
    pub(crate) fn addresses(&self) -> Result<Vec<Addresses>, ClusterError> {
        let count = self.nodes.unwrap_or(NODES_DEFAULT);
        if !(1..=NODES_MAX).contains(&count) {
            let text = format!("a local cluster has 1 to {NODES_MAX} nodes, not {count}");
            return Err(ClusterError::Plan(text));
        }
        self.choices.layout.clone().unwrap_or_default().check(count)?;
        let [http, peer, resp] = self.first_ports(count as u16);
        for (one, other) in [(http, peer), (http, resp), (peer, resp)] {
            if u64::from(one.abs_diff(other)) < count {
                let text = format!("ports from {one} and from {other} overlap for {count} nodes");
                return Err(ClusterError::Plan(text));
            }
        }
        let addresses = |id| {
            let (http, peer) = (ports::from_base(http, id)?, ports::from_base(peer, id)?);
            Ok(Addresses { http, peer, resp: Some(ports::from_base(resp, id)?) })
        };
        (1..=count).map(addresses).collect()
    }

    /// Node 1's ports: for HTTP, for peers, for the Redis protocol.
    fn first_ports(&self, count: u16) -> [u16; 3] {
        let asked = [
            self.http_port.unwrap_or(HTTP_PORT_DEFAULT),
            self.peer_port.unwrap_or(PEER_PORT_DEFAULT),
            self.resp_port.unwrap_or(RESP_PORT_DEFAULT),
        ];
        if asked.iter().all(|port| *port > 0) {
            return asked;
        }
        let mut free = ports::free_ports(3 * count);
        asked.map(|port| {
            free += count;
            if port > 0 { port } else { free - count }
        })
    }

    /// Checks that a cluster that is there already is what the plan asks for.
    pub(crate) fn check(&self, existing: &Existing) -> Result<(), ClusterError> {
        let differs = |has: String, wanted: String| ClusterError::OtherCluster {
            folder: self.folder.clone(),
            has,
            wanted,
        };
        let Existing { nodes, first_nodes, consensus, peer_transport, layout } = existing;
        for (name, wanted, has) in [
            ("the consensus", &self.choices.consensus, consensus),
            ("the peer transport", &self.choices.peer_transport, peer_transport),
        ] {
            if let Some(wanted) = wanted.as_ref().filter(|wanted| *wanted != has) {
                return Err(differs(format!("{name} {has}"), wanted.clone()));
            }
        }
        let count = *first_nodes as u64;
        if let Some(wanted) = self.nodes.filter(|wanted| *wanted != count) {
            return Err(differs(format!("{count} nodes"), wanted.to_string()));
        }
        if let Some(wanted) = &self.choices.layout {
            let wanted = wanted.init_arguments().join(" ");
            if wanted != *layout {
                return Err(differs(
                    format!("its shards from `keevee init {layout}`"),
                    format!("`{wanted}`"),
                ));
            }
        }
        let Some(first) = nodes.first() else { return Ok(()) };
        // Node 1 may be gone.
        let base = |address: SocketAddr| u64::from(address.port()) + 1 - first.id;
        let ports = |address: SocketAddr| format!("ports from {}", base(address));
        for (name, wanted, has) in [
            ("HTTP", self.http_port, Some(first.http)),
            ("peer", self.peer_port, Some(first.peer)),
            ("RESP", self.resp_port, first.resp),
        ] {
            let differs_from =
                |wanted: &u16| *wanted > 0 && has.is_none_or(|has| base(has) != u64::from(*wanted));
            if let Some(wanted) = wanted.filter(differs_from) {
                let has = has.map_or_else(|| "no ports".to_owned(), ports);
                return Err(differs(format!("{name} {has}"), wanted.to_string()));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(nodes: u64, http_port: u16, peer_port: u16) -> Plan {
        Plan {
            folder: PathBuf::from("."),
            program: PathBuf::from("keevee"),
            nodes: Some(nodes),
            http_port: Some(http_port),
            peer_port: Some(peer_port),
            resp_port: None,
            choices: Choices::default(),
        }
    }

    fn with_layout(nodes: u64, layout: Layout) -> Plan {
        let choices = Choices { layout: Some(layout), ..Choices::default() };
        Plan { choices, ..plan(nodes, 8001, 9001) }
    }

    #[test]
    fn a_plan_that_cannot_be_is_refused() {
        assert_eq!(plan(3, 8001, 9001).addresses().expect("fine").len(), 3);
        assert_eq!(plan(30, 8001, 9001).addresses().expect("fine").len(), 30);
        assert!(plan(0, 8001, 9001).addresses().is_err());
        assert!(plan(31, 8001, 9001).addresses().is_err());
        assert!(plan(3, 8001, 8003).addresses().is_err(), "ports overlap");
        assert!(plan(3, 65_534, 9001).addresses().is_err(), "ports end at 65,535");
    }

    #[test]
    fn port_0_is_any_that_is_free() {
        let addresses = plan(3, 0, 0).addresses().expect("fine");
        let http: Vec<u16> = addresses.iter().map(|node| node.http.port()).collect();
        assert!(http[0] > 0 && http[1] == http[0] + 1 && http[2] == http[0] + 2);
        assert_eq!(addresses[0].peer.port(), http[2] + 1);
        assert_eq!(plan(3, 8001, 0).addresses().expect("fine")[0].http.port(), 8001);
        let resp = |port| Plan { resp_port: port, ..plan(3, 8001, 9001) }.addresses();
        let first = |port| resp(port).expect("fine")[0].resp.expect("listens").port();
        assert_eq!((first(None), first(Some(7101))), (7001, 7101));
        assert!(first(Some(0)) > 0);
        assert!(resp(Some(8003)).is_err(), "ports overlap");
    }

    #[test]
    fn a_layout_that_the_nodes_cannot_hold_is_refused() {
        let shared = |shards, replicas| with_layout(3, Layout::Shared { shards, replicas }).addresses();
        assert!(shared(16, Some(3)).is_ok());
        assert!(shared(0, None).is_err());
        assert!(shared(2048, None).is_ok());
        assert!(shared(2049, None).is_err());
        assert!(shared(16, Some(0)).is_err());
        let error = shared(16, Some(4)).unwrap_err().to_string();
        assert!(error.contains("there are 3"), "{error}");
        let pinned = |nodes, load_factors: &[u32]| {
            let layout = Layout::Pinned { group_nodes: 3, load_factors: load_factors.to_vec() };
            with_layout(nodes, layout).addresses()
        };
        assert!(pinned(6, &[1, 2]).is_ok());
        assert!(pinned(5, &[1, 2]).is_err());
        assert!(pinned(6, &[0, 0]).is_err());
        let weighted = |load_factors: &[u32], replicas| {
            let layout = Layout::Weighted { load_factors: load_factors.to_vec(), replicas };
            with_layout(3, layout).addresses()
        };
        assert!(weighted(&[0, 2], Some(3)).is_ok());
        assert!(weighted(&[0, 0], None).is_err());
        assert!(weighted(&[], None).is_err());
        assert!(weighted(&[1], Some(4)).is_err());
    }

    #[test]
    fn layouts_are_arguments_of_init() {
        let layout = Layout::Shared { shards: 16, replicas: Some(3) };
        assert_eq!(layout.init_arguments(), ["--shards", "16", "--replicas", "3"]);
        let layout = Layout::Weighted { load_factors: vec![1, 3], replicas: None };
        assert_eq!(layout.init_arguments(), ["--load-factors", "1,3"]);
        let layout = Layout::Pinned { group_nodes: 2, load_factors: vec![1, 3] };
        let shards = ["name=group-1,nodes=1+2,load=1", "name=group-2,nodes=3+4,load=3"];
        assert_eq!(layout.init_arguments(), ["--shard", shards[0], "--shard", shards[1]]);
    }

    #[test]
    fn a_cluster_that_is_there_must_be_as_planned() {
        let node = |id: u64| {
            let port = |base| ports::from_base(base, id).expect("a port");
            let addresses = Addresses { http: port(8001), peer: port(9001), resp: Some(port(7001)) };
            crate::Node::new(id, PathBuf::from("."), addresses)
        };
        let existing = Existing {
            nodes: vec![node(1), node(2)],
            first_nodes: 2,
            consensus: "raft".to_owned(),
            peer_transport: "http-json".to_owned(),
            layout: "--shards 4".to_owned(),
        };
        assert!(plan(2, 8001, 9001).check(&existing).is_ok());
        assert!(plan(2, 0, 0).check(&existing).is_ok(), "any ports will do");
        assert!(plan(3, 8001, 9001).check(&existing).is_err());
        assert!(plan(2, 8101, 9001).check(&existing).is_err());
        assert!(Plan { resp_port: Some(7101), ..plan(2, 8001, 9001) }.check(&existing).is_err());
        let with = |consensus: &str, transport: &str| {
            let (consensus, peer_transport) = (Some(consensus.into()), Some(transport.into()));
            let choices = Choices { consensus, peer_transport, layout: None };
            Plan { choices, ..plan(2, 8001, 9001) }.check(&existing)
        };
        assert!(with("raft", "http-json").is_ok());
        assert!(with("raft", "grpc").is_err());
        assert!(with("paxos", "http-json").is_err());
        let shards = |shards| with_layout(2, Layout::Shared { shards, replicas: None }).check(&existing);
        assert!(shards(4).is_ok());
        let error = shards(8).unwrap_err().to_string();
        assert!(error.contains("`keevee init --shards 4`, not `--shards 8`"), "{error}");
    }
}
