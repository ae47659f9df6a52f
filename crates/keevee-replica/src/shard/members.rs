//! A shard's members: the leader takes one step after the other until those are in force that the shard shall have.

use std::collections::BTreeSet;
use std::time::Duration;

use keevee_core::ids::NodeId;

use super::Shard;
use crate::engine::{Engine, EngineStatus, Role};
use crate::members::{Members, Step, next_step};
use crate::storage::StateStore;

/// So many entries may a learner lack that becomes a voter, if they are few of all: under load it never lacks none.
const LAG_MAX: u64 = 256;
/// How long a leader waits for a successor to take over before it asks again.
const HAND_OVER_AGAIN: Duration = Duration::from_secs(2);

#[derive(Debug, Default)]
pub(super) struct Membership {
    /// The voters that the shard shall have, and the leadership to which this was told.
    wanted: Option<(String, BTreeSet<NodeId>)>,
    /// When leadership was last handed over for the change under way, and to whom.
    handed_over: Option<(Duration, NodeId)>,
}

impl<E: Engine, S: StateStore> Shard<E, S> {
    /// Who takes part, as far as this replica knows. Nobody, if it is new and has not been told.
    pub fn members(&self) -> &Members {
        &self.members
    }

    /// Tells the leader of this ballot which voters the shard shall have. Nothing is done about it under any other: what is
    /// wanted may have changed since, and changed the members too, which a leader would take back.
    pub fn want_voters(&mut self, now: Duration, ballot: &str, voters: BTreeSet<NodeId>) {
        let EngineStatus { role, ballot: own, .. } = self.engine.status();
        let wanted = Some((own, voters)).filter(|(own, _)| role == Role::Leader && own == ballot);
        if wanted.is_some() && self.membership.wanted != wanted {
            self.membership.wanted = wanted;
            self.wake(now);
        }
    }

    /// The replica takes part no longer, and hears nothing more: what waits here is turned away, to be asked elsewhere, and no
    /// snapshot is fetched. Its log stays: should it take part again, it must not have forgotten what it promised.
    pub fn retire(&mut self) {
        self.forget_snapshots();
        self.refuse_all();
    }

    /// True while a change is under way, or due.
    pub fn is_changing_members(&self) -> bool {
        let is_wanted = |(_, wanted): &(String, _)| *wanted == self.members.voters;
        self.members.next.is_some() || !self.membership.wanted.as_ref().is_none_or(is_wanted)
    }

    /// Of the leader: the next step of a change. A step that was lost is taken again.
    pub(super) fn steer_members(&mut self, now: Duration) {
        let is_settled = self.members.learners.is_empty() && !self.is_changing_members();
        if is_settled || self.engine.is_changing_members() {
            return;
        }
        let again = |at: Duration| now >= at + HAND_OVER_AGAIN;
        let EngineStatus { role, ballot, chosen, members, acknowledged, .. } = self.engine.status();
        self.membership.wanted.take_if(|(told, _)| role != Role::Leader || *told != ballot);
        let wanted = self.membership.wanted.as_ref().map(|(_, wanted)| wanted);
        let Some(wanted) = wanted.or(members.next.as_ref()).filter(|_| role == Role::Leader) else {
            return;
        };
        let has_caught_up = |node: NodeId| {
            let known = acknowledged.iter().find(|(member, _)| *member == node);
            known.is_some_and(|(_, index)| index + LAG_MAX.min(chosen / 4) >= chosen)
        };
        // It leads again or still: whoever should have led could not, or its clock is off.
        let gave_back = self.membership.handed_over.filter(|(at, _)| again(*at)).map(|(_, to)| to);
        let has_all = |node| node == self.own() || has_caught_up(node);
        match next_step(&members, wanted, self.own(), gave_back, has_all) {
            Step::Done | Step::Wait => {}
            Step::Propose(members) => self.engine.propose_members(self.time(now), members),
            Step::HandOver(successor) => {
                if self.membership.handed_over.is_none_or(|(at, _)| again(at)) {
                    self.membership.handed_over = Some((now, successor));
                    self.engine.transfer_leadership(self.time(now), Some(successor));
                }
            }
        }
    }

    /// Others are in force.
    pub(super) fn take_members(&mut self, members: Members) {
        if members.next.is_none() {
            self.membership.handed_over = None;
        }
        if members != self.members {
            self.scrubs.give_way();
        }
        self.hashes.set_members(members.all());
        self.members = members;
    }
}
