//! openraft's state machine, which applies nothing: it hands committed entries to the engine, and the shard
//! applies them.
//!
//! openraft drops the beginning of a log only where a snapshot covers it, and wants to send that to whoever lacks what was
//! dropped. Its snapshots are empty: they say how far the log may be dropped. A replica that needs one fetches the state
//! itself, and starts anew on it (`keevee_replica::snapshot`); openraft only waits until that replica says that it is
//! there (`network.rs`).

use std::io;

use futures_util::{Stream, TryStreamExt};
use keevee_replica::storage::LogStore;
use openraft::alias::{LogIdOf, SnapshotMetaOf, SnapshotOf, StoredMembershipOf};
use openraft::storage::{EntryResponder, RaftStateMachine};
use openraft::{EntryPayload, RaftSnapshotBuilder};

use crate::log::SharedLog;
use crate::message::LogId;
use crate::types::{FIRST, Types, ours, stored_membership, theirs};

pub(crate) struct Machine<L> {
    log: SharedLog<L>,
    applied: Option<LogId>,
}

impl<L: LogStore> Machine<L> {
    pub(crate) fn new(log: SharedLog<L>, applied: Option<LogId>) -> Machine<L> {
        Machine { log, applied }
    }

    fn snapshot(&self) -> Option<SnapshotOf<Types, ()>> {
        let last = self.log.droppable()?;
        let meta = SnapshotMetaOf::<Types> {
            last_log_id: Some(theirs(last)),
            last_membership: stored_membership(self.log.members_at(last.index).as_ref()),
        };
        Some(SnapshotOf::<Types, ()> { meta, snapshot: () })
    }
}

impl<L: LogStore + Send + 'static> RaftStateMachine<Types> for Machine<L> {
    type SnapshotData = ();
    type SnapshotBuilder = Machine<L>;

    async fn applied_state(
        &mut self,
    ) -> Result<(Option<LogIdOf<Types>>, StoredMembershipOf<Types>), io::Error> {
        // What is behind it openraft finds in the log, the first members too.
        let members = self.applied.and_then(|applied| self.log.members_at(applied.index));
        Ok((self.applied.map(theirs), stored_membership(members.as_ref())))
    }

    async fn apply<S>(&mut self, mut entries: S) -> Result<(), io::Error>
    where
        S: Stream<Item = Result<EntryResponder<Types>, io::Error>> + Unpin + Send,
    {
        while let Some((entry, responder)) = entries.try_next().await? {
            let id = ours(&entry.log_id);
            let payload = match entry.payload {
                EntryPayload::Normal(proposal) => Some(proposal.payload),
                EntryPayload::Blank | EntryPayload::Membership(_) => None,
            };
            // The first members are not news.
            if id != FIRST {
                self.log.choose(id.index, payload);
            }
            self.applied = Some(id);
            if let Some(responder) = responder {
                responder.send(());
            }
        }
        Ok(())
    }

    async fn get_snapshot_builder(&mut self) -> Machine<L> {
        Machine { log: self.log.clone(), applied: self.applied }
    }

    async fn install_snapshot(&mut self, _meta: &SnapshotMetaOf<Types>, _data: ()) -> Result<(), io::Error> {
        Err(io::Error::new(io::ErrorKind::Unsupported, "nobody sends a snapshot by openraft"))
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<SnapshotOf<Types, ()>>, io::Error> {
        Ok(self.snapshot())
    }
}

impl<L: LogStore + Send + 'static> RaftSnapshotBuilder<Types> for Machine<L> {
    type SnapshotData = ();

    async fn build_snapshot(&mut self) -> Result<SnapshotOf<Types, ()>, io::Error> {
        self.snapshot().ok_or_else(|| io::Error::other("nothing may be dropped yet"))
    }
}
