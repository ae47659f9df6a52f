//! No key goes early: one that a client let expire is gone only once some node's clock has shown its expiry.
//!
//! Stamps of entries are what keys expire by, so none may lie ahead of all that clocks have shown; what is removed without
//! a client's delete must have been due; and a read that finds nothing must not miss a key that is not due by any clock. That
//! no key comes back is what a history that is linearizable says: [`crate::checker::key`] lets an expiry happen once.
//!
//! Redis before 3.2 showed expired keys on replicas until the primary had deleted them.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use keevee_core::apply::Entry;
use keevee_core::command::{Action, Versioned};
use keevee_core::ids::Namespace;

use super::Broken;
use crate::plan::MILLISECOND;
use crate::world::Written;

/// Stamps count on by themselves while a clock stands still or is behind: so far ahead they may be of all clocks.
const COUNTED_MAX: u64 = 100 * MILLISECOND;

#[derive(Default)]
pub(crate) struct Early {
    /// What each key holds by the last entry that was applied anywhere, and when that was.
    held: BTreeMap<(Namespace, Bytes), (Option<Versioned>, u64)>,
    /// Of each entry: the keys that clients delete in it.
    deleted: BTreeMap<u64, BTreeSet<Bytes>>,
    last: u64,
}

impl Early {
    pub(crate) const NAME: &str = "no key goes early";

    /// An entry is known, before any replica applies it. `latest` is the latest that any clock has shown.
    pub(crate) fn entry(&mut self, index: u64, entry: &Entry, latest: u64) -> Result<(), Broken> {
        let operations = entry.commands.iter().flat_map(|command| &command.operations);
        let deleted = operations.filter_map(|operation| match &operation.action {
            Action::Delete { key } => Some(key.clone()),
            _ => None,
        });
        self.deleted.insert(index, deleted.collect());
        if entry.stamp <= latest + COUNTED_MAX {
            return Ok(());
        }
        let ahead = entry.stamp - latest;
        Err(format!("entry {index} is stamped {ahead} us ahead of every clock"))
    }

    /// A replica has applied an entry; the first one counts. How many keys were removed that were gone.
    pub(crate) fn applied(&mut self, written: &Written, now: u64) -> Result<u64, Broken> {
        if written.index < self.last {
            return Ok(0);
        }
        self.last = written.index;
        let deleted = self.deleted.get(&written.index);
        let mut removed = 0;
        for (key, value) in &written.values {
            let before = self.held.insert(key.clone(), (value.clone(), now)).and_then(|(before, _)| before);
            let is_deleted = deleted.is_some_and(|deleted| deleted.contains(&key.1));
            let (None, Some(before), false) = (value, before, is_deleted) else { continue };
            if !before.is_gone(written.time) {
                let (index, key) = (written.index, String::from_utf8_lossy(&key.1));
                return Err(format!("entry {index} removes {key}, which nobody deletes, before its time"));
            }
            removed += 1;
        }
        Ok(removed)
    }

    /// True if a key was set last to expire, and was not removed.
    pub(crate) fn has_expired(&self, key: &Bytes) -> bool {
        let held = self.held.get(&(Namespace::DEFAULT, key.clone()));
        held.is_some_and(|(value, _)| value.as_ref().is_some_and(|value| value.expires.is_some()))
    }

    /// A read that was sent at a time found nothing.
    pub(crate) fn found_nothing(&self, key: &Bytes, called: u64, latest: u64) -> Result<(), Broken> {
        let held = self.held.get(&(Namespace::DEFAULT, key.clone()));
        let Some((Some(value), applied)) = held else { return Ok(()) };
        if *applied >= called || value.is_gone(latest) {
            return Ok(());
        }
        let key = String::from_utf8_lossy(key);
        Err(format!("a read finds nothing in {key}, which is due by no clock"))
    }
}
