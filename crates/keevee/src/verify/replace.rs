//! A node that is lost with its disk, and another one with a number of its own that comes in its place: the others do without it,
//! forget it, and have the newcomer join and take its share.

use std::fs;

use serde_json::Value;

use super::nodes::{Nodes, PATIENCE, member_id};
use crate::api::Api;
use crate::failure::Failure;

impl Nodes {
    /// Loses a node for good, and brings another one to where it was. False if it held nothing, or no number is left.
    pub(super) async fn replace(&mut self, node: u64) -> Result<bool, Failure> {
        let Some(newcomer) = self.newcomers.next() else { return Ok(false) };
        self.cluster.kill(node).await?;
        let moved = self.change_members(node, "drain").await?;
        let endpoints = self.http();
        let api = Api { nodes: &endpoints, timeout: PATIENCE };
        let _: Value = api.post(&format!("/v1/cluster/nodes/{node}/remove"), "{}").await?;
        self.make_newcomer(node, newcomer)?;
        self.network.reseat(node, newcomer);
        self.cluster.start_node(newcomer)?;
        self.ready().await?;
        Ok(self.change_members(newcomer, "add").await? && moved)
    }

    /// Makes the folder of a node that joins at another one's addresses, whose folder goes.
    fn make_newcomer(&mut self, node: u64, newcomer: u64) -> Result<(), Failure> {
        let config = self.cluster.node(node)?.config();
        let lost = config.parent().ok_or_else(|| Failure::other("the node has no folder"))?;
        let folder = lost.with_file_name(format!("node{newcomer}"));
        let text = fs::read_to_string(&config)?;
        fs::create_dir_all(folder.join("data"))?;
        fs::write(folder.join("keevee.toml"), renumbered(&text, node, newcomer)?)?;
        fs::remove_dir_all(lost)?;
        self.cluster.look_again()?;
        self.disks.remove(&node);
        self.give_disk(newcomer)?;
        let through = self.cluster.nodes().iter().find(|one| one.id != newcomer).map(|one| one.http);
        let through = through.ok_or_else(|| Failure::other("no node is left to join through"))?;
        self.cluster.node(newcomer)?.set_arguments(vec!["--join".to_owned(), through.to_string()]);
        Ok(())
    }
}

/// The file of a node that is where another one was.
fn renumbered(text: &str, node: u64, newcomer: u64) -> Result<String, Failure> {
    let mut file: toml::Table =
        text.parse().map_err(|error: toml::de::Error| Failure::other(error.message()))?;
    let id = toml::Value::try_from(newcomer).map_err(Failure::other)?;
    let number = |table: &mut toml::Value| {
        table.as_table_mut().map(|table| table.insert("id".to_owned(), id.clone()));
    };
    number(&mut file["node"]);
    if let Some(members) = file["member"].as_array_mut() {
        members.retain(|member| member_id(member) != Some(newcomer));
        members.iter_mut().filter(|member| member_id(member) == Some(node)).for_each(number);
    }
    Ok(file.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_newcomer_has_the_addresses_of_the_lost_node() {
        let member = |id: u64, peer: &str| format!("[[member]]\nid = {id}\npeer = \"{peer}\"\n");
        let text = |id: u64, members: &[String]| format!("[node]\nid = {id}\n{}", members.concat());
        let lost = text(2, &[member(1, "a"), member(2, "b"), member(4, "d")]);
        let newcomer: toml::Table = renumbered(&lost, 2, 4).expect("a file").parse().expect("a file");
        let wanted: toml::Table = text(4, &[member(1, "a"), member(4, "b")]).parse().expect("a file");
        assert_eq!(newcomer, wanted);
    }
}
