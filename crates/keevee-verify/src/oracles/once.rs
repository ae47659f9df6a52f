//! At most once: a request takes effect at one place of the log, or nowhere.
//!
//! Jepsen on jetcd 0.8.2 (2024) and tidb#47060: a retry whose first attempt had been applied was applied again.

use std::collections::BTreeMap;

use keevee_core::requests::RequestId;

use super::Broken;

#[derive(Default)]
pub(crate) struct Once(BTreeMap<RequestId, u64>);

impl Once {
    pub(crate) const NAME: &str = "at most once";

    /// A replica executed a request of the entry at an index.
    pub(crate) fn executed(&mut self, id: RequestId, index: u64) -> Result<(), Broken> {
        match self.0.insert(id, index) {
            None => Ok(()),
            Some(earlier) if earlier == index => Ok(()),
            Some(earlier) => Err(format!("{id:x?} was executed at index {earlier} and again at {index}")),
        }
    }

    /// A request without an id, which nobody may send twice, stands in the log for the second time.
    pub(crate) fn placed(number: u64, places: &[u64]) -> Result<(), Broken> {
        match places {
            [] | [_] => Ok(()),
            _ => Err(format!("request {number} has no id and stands in the log at {places:?}")),
        }
    }
}
