//! `keevee init`: formats a node's data folder.

use std::path::PathBuf;

use clap::Args;
use keevee_core::ids::NodeId;
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

`keevee cluster start` does both for a cluster on this machine.")]
pub(crate) struct Arguments {
    /// The node's configuration file
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// Fix the cluster's first members, as the first step printed them on each node
    #[arg(long, value_name = "ID=STORE,...", value_delimiter = ',', value_parser = parse_member)]
    members: Vec<(NodeId, StoreId)>,
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

pub(crate) fn run(arguments: Arguments) -> Result<(), Failure> {
    let config = Config::load(&arguments.config).map_err(Failure::other)?;
    let folder = &config.node.data;
    if !arguments.members.is_empty() {
        check_members(&config, &arguments.members)?;
        DataFolder::set_first_members(folder, &arguments.members).map_err(Failure::other)?;
        println!("{} is ready for keevee server", folder.display());
        return Ok(());
    }
    let node = config.node_id();
    let identity = DataFolder::format(folder, config.cluster.id, node).map_err(Failure::other)?;
    println!("member {node}={}", identity.store_id);
    if config.members.len() == 1 {
        let members = [(node, identity.store_id)];
        DataFolder::set_first_members(folder, &members).map_err(Failure::other)?;
    }
    Ok(())
}
