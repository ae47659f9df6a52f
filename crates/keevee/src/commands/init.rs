//! `keevee init`: formats a node's data folder.

use std::path::PathBuf;

use clap::Args;
use keevee_core::ids::NodeId;
use keevee_core::shard_map::Consensus;
use keevee_core::shard_map::change::{Placement, ShardSpec};
use keevee_server::config::Config;
use keevee_server::storage::{DataFolder, StoreId};
use uuid::Uuid;

use crate::failure::Failure;

/// Format a node's data folder, so that `keevee server` takes it.
///
/// Formatting gives the folder an identity of its own, its store id. A node whose folder was wiped must not
/// vote under its old identity, so the first members of a cluster are pairs of node id and store id: run this
/// once on each node, then once more on each with the members that all of them printed. A cluster of one node
/// is ready after the first step.
#[derive(Args)]
#[command(after_help = "\
Examples:
  keevee init --config keevee.toml
      first, on each node: prints member 1=<store-id>
  keevee init --config keevee.toml --members 1=<store-id>,2=<store-id>,3=<store-id>
      then, on each node: the members that all of them printed
  keevee init --config keevee.toml --members 1=<store-id>,... --shards 16 --replicas 3
      the same, with the keys spread over 16 shards
  keevee init --config keevee.toml --members 1=<store-id>,... --shard name=a,nodes=1+2+3 --shard name=b,nodes=4+5+6
      shards on nodes of their own

`keevee cluster start` does both for a cluster on this machine.")]
pub(crate) struct Arguments {
    /// The node's configuration file
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// Fix the cluster's first members, as the first step printed them on each node
    #[arg(long, value_name = "ID=STORE,...", value_delimiter = ',', value_parser = parse_member)]
    members: Vec<(NodeId, StoreId)>,
    /// How many data shards the keys are spread over
    #[arg(long, value_name = "COUNT", conflicts_with = "shard", value_parser = clap::value_parser!(u16).range(1..=2048))]
    shards: Option<u16>,
    /// The same, with these shares of the keys relative to each other, one number for each shard
    #[arg(long, value_name = "1,2,...", value_delimiter = ',', conflicts_with_all = ["shard", "shards"])]
    load_factors: Vec<u32>,
    /// How many nodes hold each shard [default: all, five at most]
    #[arg(long, value_name = "COUNT", conflicts_with = "shard")]
    replicas: Option<usize>,
    /// A data shard on nodes of its own: may be given several times
    #[arg(long, value_name = "name=NAME,nodes=1+2+3[,engine=raft][,load=1]", value_parser = parse_shard)]
    shard: Vec<Pinned>,
}

/// A shard that is pinned to its nodes.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Pinned {
    name: String,
    nodes: Vec<NodeId>,
    engine: Option<Consensus>,
    load_factor: u32,
}

fn parse_shard(text: &str) -> Result<Pinned, String> {
    let malformed = || {
        "write a shard as name=NAME,nodes=1+2+3, with engine=paxos or raft and load=1 if wanted".to_owned()
    };
    let (mut name, mut nodes, mut engine, mut load_factor) = (None, None, None, 1);
    for part in text.split(',') {
        match part.split_once('=').ok_or_else(malformed)? {
            ("name", given) => name = Some(given.to_owned()),
            ("nodes", given) => {
                let given: Result<_, _> = given.split('+').map(|node| node.parse().map(NodeId)).collect();
                nodes = Some(given.map_err(|_| malformed())?);
            }
            ("engine", "paxos") => engine = Some(Consensus::Paxos),
            ("engine", "raft") => engine = Some(Consensus::Raft),
            ("load", given) => load_factor = given.parse().map_err(|_| malformed())?,
            _ => return Err(malformed()),
        }
    }
    let (Some(name), Some(nodes)) = (name, nodes) else { return Err(malformed()) };
    Ok(Pinned { name, nodes, engine, load_factor })
}

fn parse_member(text: &str) -> Result<(NodeId, StoreId), String> {
    let malformed = || "write a member as keevee init prints it: ID=STORE-ID".to_owned();
    let (id, store) = text.split_once('=').ok_or_else(malformed)?;
    let id = id.parse().map_err(|_| malformed())?;
    let store = Uuid::parse_str(store).map_err(|_| malformed())?;
    Ok((NodeId(id), StoreId(store)))
}

/// The first members can't be changed once they are set, so a slip is found before.
fn check_members(config: &Config, members: &[(NodeId, StoreId)]) -> Result<(), Failure> {
    let mut given: Vec<u64> = members.iter().map(|(node, _)| node.0).collect();
    let mut configured: Vec<u64> = config.members.iter().map(|member| member.id).collect();
    given.sort_unstable();
    configured.sort_unstable();
    if given == configured {
        return Ok(());
    }
    Err(Failure::usage(format!(
        "--members names the nodes {given:?}, the configuration's [[member]]s are {configured:?}: give each of \
         them once; nothing was written"
    )))
}

/// The data shards that the arguments ask for; none for the default.
fn specs(config: &Config, arguments: &Arguments) -> Vec<ShardSpec> {
    let spread = |load_factor: &u32| {
        let spec = ShardSpec { load_factor: *load_factor, ..config.shard(config.members.len()) };
        match arguments.replicas {
            Some(replicas) => ShardSpec { placement: Placement::Spread { replicas }, ..spec },
            None => spec,
        }
    };
    let pinned = |shard: &Pinned| ShardSpec {
        name: Some(shard.name.clone()),
        load_factor: shard.load_factor,
        consensus: shard.engine.unwrap_or(config.engine.consensus),
        placement: Placement::Pinned(shard.nodes.clone()),
    };
    if !arguments.shard.is_empty() {
        return arguments.shard.iter().map(pinned).collect();
    }
    match &arguments.load_factors[..] {
        [] => vec![spread(&1); arguments.shards.unwrap_or(1).into()],
        load_factors => load_factors.iter().map(spread).collect(),
    }
}

fn set_members(config: &Config, members: &[(NodeId, StoreId)], specs: &[ShardSpec]) -> Result<(), Failure> {
    let map = config.first_map(members, specs).map_err(Failure::usage)?;
    DataFolder::set_first_members(&config.node.data, members, &map).map_err(Failure::other)
}

pub(crate) fn run(arguments: Arguments) -> Result<(), Failure> {
    let config = Config::load(&arguments.config).map_err(Failure::other)?;
    let folder = &config.node.data;
    if !arguments.members.is_empty() {
        check_members(&config, &arguments.members)?;
        set_members(&config, &arguments.members, &specs(&config, &arguments))?;
        println!("{} is ready for keevee server", folder.display());
        return Ok(());
    }
    let node = config.node_id();
    let identity = DataFolder::format(folder, config.cluster.id, node).map_err(Failure::other)?;
    println!("member {node}={}", identity.store_id);
    if config.members.len() == 1 {
        set_members(&config, &[(node, identity.store_id)], &specs(&config, &arguments))?;
    }
    Ok(())
}
