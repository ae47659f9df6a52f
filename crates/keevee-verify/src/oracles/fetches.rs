//! Snapshots go on: of one snapshot a receiver asks for one chunk after the other, perhaps again for the one that did not come,
//! and never for what came before it.
//!
//! openraft#808 and openraft#1719 sent snapshots from the start again and again, and over a slow link they never ended.

use std::collections::BTreeMap;

use super::Broken;

#[derive(Default)]
pub(crate) struct Fetches {
    /// Of each receiver, and its number for a snapshot: the last chunk that it asked for.
    asked: BTreeMap<(u64, u64), u64>,
}

impl Fetches {
    pub(crate) const NAME: &str = "snapshots go on";

    /// A node asks for a chunk.
    pub(crate) fn asks(&mut self, node: u64, snapshot: u64, chunk: u64) -> Result<(), Broken> {
        let last = self.asked.entry((node, snapshot)).or_insert(chunk);
        if (*last..=*last + 1).contains(&chunk) {
            *last = chunk;
            return Ok(());
        }
        Err(format!("node {node} asks for chunk {chunk} of a snapshot after chunk {last}"))
    }
}
