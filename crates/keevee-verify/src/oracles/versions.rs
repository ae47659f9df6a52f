//! Every mutation has a version of its own, higher than all before it.
//!
//! etcd's API promises the same of its revisions, and every transaction compares them. A compare-and-set is only
//! as good as the versions that it compares: two writes of one entry that shared a version would let it pass over a
//! value that it never saw.

use super::Broken;
use crate::world::Written;

pub(crate) struct Versions;

impl Versions {
    pub(crate) const NAME: &str = "versions differ";

    pub(crate) fn applied(&self, node: u64, written: &Written) -> Result<(), Broken> {
        let (before, after) = written.versions;
        let mut versions: Vec<u64> = written.values.values().flatten().map(|value| value.version).collect();
        versions.sort_unstable();
        let distinct = versions.windows(2).all(|pair| pair[0] < pair[1]);
        let new = versions.iter().all(|version| (before + 1..=after).contains(version));
        if distinct && new {
            return Ok(());
        }
        let index = written.index;
        Err(format!(
            "node {node}: entry {index} took versions from {before} to {after} and used {versions:?}"
        ))
    }
}
