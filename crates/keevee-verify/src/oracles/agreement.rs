//! Agreement: no two replicas, in any of their lives, take different values for chosen at one index.
//!
//! Lamport, *Paxos Made Simple* (2001), section 2.1: only a single value is chosen, and a process never learns
//! that a value has been chosen unless it actually has been.

use bytes::Bytes;

use super::Broken;

#[derive(Default)]
pub(crate) struct Agreement {
    /// By index, from 1. `None` is a no-op.
    values: Vec<Option<Bytes>>,
}

impl Agreement {
    pub(crate) const NAME: &str = "agreement";

    /// A replica hands out a value as chosen. True if nobody did so at this index before.
    pub(crate) fn chosen(&mut self, node: u64, index: u64, value: &Option<Bytes>) -> Result<bool, Broken> {
        match self.values.get(index as usize - 1) {
            Some(known) if known == value => Ok(false),
            Some(_) => Err(format!("node {node} takes for chosen at index {index} what another did not")),
            None if self.values.len() as u64 == index - 1 => {
                self.values.push(value.clone());
                Ok(true)
            }
            None => Err(format!("node {node} takes index {index} for chosen before what is below it")),
        }
    }

    /// The highest index that any replica took for chosen.
    pub(crate) fn last(&self) -> u64 {
        self.values.len() as u64
    }
}
