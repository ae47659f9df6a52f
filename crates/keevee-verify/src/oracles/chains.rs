//! Equal chain hashes at equal indexes, and equal content in the end: replicas that applied the same log are the
//! same.
//!
//! etcd#13766 and etcd#14139: replicas diverged in silence, for months.

use std::collections::BTreeMap;

use bytes::Bytes;
use keevee_core::command::Versioned;
use keevee_core::ids::Namespace;

use super::Broken;

#[derive(Default)]
pub(crate) struct Chains(BTreeMap<u64, u128>);

impl Chains {
    pub(crate) const NAME: &str = "replicas are the same";

    /// A replica has applied an entry.
    pub(crate) fn applied(&mut self, node: u64, index: u64, chain: u128) -> Result<(), Broken> {
        let known = *self.0.entry(index).or_insert(chain);
        if known == chain {
            return Ok(());
        }
        Err(format!("node {node} has chain hash {chain:032x} at index {index}, another had {known:032x}"))
    }

    /// All replicas have applied the same log.
    pub(crate) fn compare(states: &[(u64, Content)]) -> Result<(), Broken> {
        let Some(((first, expected), others)) = states.split_first() else { return Ok(()) };
        let different = others.iter().find(|(_, content)| content != expected);
        match different {
            None => Ok(()),
            Some((node, content)) => {
                let mut keys = expected.keys().chain(content.keys());
                let key = keys.find(|key| expected.get(key) != content.get(key));
                let values = key.map(|key| (key, expected.get(key), content.get(key)));
                Err(format!("nodes {first} and {node} hold different values: {values:?}"))
            }
        }
    }
}

/// All values of a state, in order.
pub(crate) type Content = BTreeMap<(Namespace, Bytes), Versioned>;
