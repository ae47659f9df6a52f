//! At most once: a request takes effect at one place of the log, or nowhere.
//!
//! Jepsen on jetcd 0.8.2 (2024) and tidb#47060: a retry whose first attempt had been applied was applied again.

use std::collections::BTreeMap;

use keevee_core::command::{Action, Command, Operation};
use keevee_core::requests::RequestId;

use super::Broken;

#[derive(Default)]
pub(crate) struct Once {
    /// Where each request was executed.
    executed: BTreeMap<RequestId, u64>,
    /// Of each entry: its commands, each with its id and how many mutations it makes at most.
    commands: BTreeMap<u64, Vec<(Option<RequestId>, u64)>>,
}

impl Once {
    pub(crate) const NAME: &str = "at most once";

    /// A replica executed a request of the entry at an index.
    pub(crate) fn executed(&mut self, id: RequestId, index: u64) -> Result<(), Broken> {
        match self.executed.insert(id, index) {
            None => Ok(()),
            Some(earlier) if earlier == index => Ok(()),
            Some(earlier) => Err(format!("{id:x?} was executed at index {earlier} and again at {index}")),
        }
    }

    /// An entry is known, before any replica applies it. `owns` tells the commands whose keys are of this shard: the
    /// others must change nothing.
    pub(crate) fn entry(&mut self, index: u64, commands: &[Command], owns: impl Fn(&Command) -> bool) {
        let mutates = |operation: &&Operation| {
            !matches!(operation.action, Action::Get { .. } | Action::RemoveExpired { .. })
        };
        let mutations = |command: &Command| command.operations.iter().filter(mutates).count() as u64;
        let owned = commands.iter().filter(|command| owns(command));
        let commands = owned.map(|command| (command.request_id, mutations(command)));
        self.commands.insert(index, commands.collect());
    }

    /// A replica applied an entry, by which its count of mutations rose: not by more than its commands make, each
    /// executed once. This sees a retry that is executed in the same entry as its original.
    pub(crate) fn applied(&self, node: u64, index: u64, (before, after): (u64, u64)) -> Result<(), Broken> {
        let is_old = |id: &RequestId| self.executed.get(id).is_some_and(|earlier| *earlier < index);
        let mut of_ids: BTreeMap<RequestId, u64> = BTreeMap::new();
        let mut most = 0;
        for (id, mutations) in self.commands.get(&index).into_iter().flatten() {
            match id {
                None => most += mutations,
                Some(id) if is_old(id) => {}
                Some(id) => {
                    let known = of_ids.entry(*id).or_default();
                    *known = (*known).max(*mutations);
                }
            }
        }
        most += of_ids.values().sum::<u64>();
        let made = after - before;
        if made <= most {
            return Ok(());
        }
        Err(format!(
            "node {node} made {made} mutations of entry {index}, where its requests, once each, make {most} at most"
        ))
    }

    /// A request without an id, which nobody may send twice, stands in the log of the shard that owns its keys. Any
    /// other shard has turned it away.
    pub(crate) fn placed(number: u64, places: &[u64]) -> Result<(), Broken> {
        match places {
            [] | [_] => Ok(()),
            _ => Err(format!("request {number} has no id and stands in the log at {places:?}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_retry_in_one_entry_with_its_original_counts_once() {
        let id = RequestId::Free(7);
        let add = Action::Increment { key: "counter".into(), by: 1 };
        let command = Command { request_id: Some(id), ..Command::single(add.clone()) };
        let mut once = Once::default();
        let own = [command.clone(), command.clone(), Command::single(add)];
        once.entry(1, &own, |_| true);
        assert_eq!(once.applied(1, 1, (10, 12)), Ok(()));
        assert!(once.applied(1, 1, (10, 13)).is_err(), "the retry was executed too");
        once.executed(id, 1).expect("for the first time");
        once.entry(2, std::slice::from_ref(&command), |_| true);
        assert_eq!(once.applied(1, 2, (12, 12)), Ok(()));
        assert!(once.applied(1, 2, (12, 13)).is_err(), "it was executed by an earlier entry");
        once.entry(3, &[Command { request_id: None, ..command }], |_| false);
        assert!(once.applied(1, 3, (12, 13)).is_err(), "another shard owns its key");
    }
}
