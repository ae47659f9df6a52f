//! Three replicas of which node 1 leads, brought to the step that is counted.
//!
//! Messages arrive at once and in order, and disks are quick.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use keevee_paxos::{
    Config, Entry, Index, Input, LogRead, Message, NodeId, Output, QuorumSystem, Replica, Restored,
};

use crate::inputs;

/// The time of every step. It stands still: nothing that is counted waits for time.
const NOW: Duration = Duration::from_secs(10);

const LEADER: NodeId = 1;
const FOLLOWER: NodeId = 2;
/// Entries that were chosen and applied before.
const ENTRIES_BEFORE: u64 = 32;

/// The log of replicas that still have in memory whatever is asked for.
struct NoLog;

impl LogRead for NoLog {
    fn read(&self, _from: Index, _to: Index, _bytes_max: usize) -> Vec<Entry> {
        unreachable!("no follower is behind")
    }
}

/// What is counted.
pub(crate) fn step(mut replica: Replica, input: Input) -> (Replica, Output) {
    let output = replica.step(NOW, input, &NoLog);
    (replica, output)
}

/// A leader, and the next entry to propose.
pub(crate) fn before_proposal() -> (Replica, Input) {
    let mut group = Group::led();
    (group.take(LEADER), next_proposal())
}

/// A follower, and the leader's accept of the next entry.
pub(crate) fn before_acceptance() -> (Replica, Input) {
    let mut group = Group::led();
    let output = group.step(LEADER, next_proposal());
    let to_follower = output.send.into_iter().find(|(to, _)| *to == FOLLOWER);
    let (_, message) = to_follower.expect("a leader sends what it proposes");
    (group.take(FOLLOWER), Input::Message { from: LEADER, message })
}

/// A leader, and its own acceptor's acknowledgement of the next entry.
pub(crate) fn before_own_acknowledgement() -> (Replica, Input) {
    let mut group = Group::led();
    let (own, _) = group.propose();
    (group.take(LEADER), own)
}

/// A leader, and the acknowledgement of a follower by which the next entry is chosen.
pub(crate) fn before_choice() -> (Replica, Input) {
    let mut group = Group::led();
    let (own, follower) = group.propose();
    group.step(LEADER, own);
    (group.take(LEADER), follower)
}

/// A step that does less than [`before_choice`] says would be counted like any other.
pub(crate) fn assert_chosen((_, output): (Replica, Output)) {
    assert_eq!(output.chosen.len(), 1);
}

fn next_proposal() -> Input {
    Input::Propose(inputs::payload(ENTRIES_BEFORE + 1))
}

struct Group {
    /// Node `id` at `id - 1`.
    replicas: Vec<Replica>,
    network: VecDeque<(NodeId, NodeId, Message)>,
}

impl Group {
    /// A group with a leader, and entries behind it.
    fn led() -> Group {
        let quorum = QuorumSystem::majority(1..=3);
        let replica = |id| {
            let config = Config::new(id, quorum.clone(), id);
            Replica::new(config, Restored::default(), Duration::ZERO)
        };
        let mut group = Group { replicas: (1..=3).map(replica).collect(), network: VecDeque::new() };
        // The one whose time has come; the others wait.
        let output = group.step(LEADER, Input::Tick);
        group.carry_out(LEADER, output);
        group.settle();
        assert_eq!(group.replica(LEADER).leader(), Some(LEADER));
        for index in 1..=ENTRIES_BEFORE {
            let output = group.step(LEADER, Input::Propose(inputs::payload(index)));
            assert!(output.proposed.is_some());
            group.carry_out(LEADER, output);
            group.settle();
        }
        group
    }

    /// Proposes the next entry: the acknowledgements of the leader itself and of a follower, on their way.
    fn propose(&mut self) -> (Input, Input) {
        let output = self.step(LEADER, next_proposal());
        self.carry_out(LEADER, output);
        let mut acknowledgements = BTreeMap::new();
        while let Some((from, to, message)) = self.network.pop_front() {
            match message {
                Message::Accepted { .. } => {
                    acknowledgements.insert(from, Input::Message { from, message });
                }
                _ => self.deliver(from, to, message),
            }
        }
        let mut of = |node| acknowledgements.remove(&node).expect("an acknowledgement");
        (of(LEADER), of(FOLLOWER))
    }

    fn settle(&mut self) {
        while let Some((from, to, message)) = self.network.pop_front() {
            self.deliver(from, to, message);
        }
    }

    fn deliver(&mut self, from: NodeId, to: NodeId, message: Message) {
        let output = self.step(to, Input::Message { from, message });
        self.carry_out(to, output);
    }

    /// Writes and applies at once, and hands messages to the network.
    fn carry_out(&mut self, node: NodeId, output: Output) {
        self.network.extend(output.send.into_iter().map(|(to, message)| (node, to, message)));
        if let Some(persist) = output.persist {
            let output = self.step(node, Input::Persisted(persist.token));
            self.network.extend(persist.then_send.into_iter().map(|(to, message)| (node, to, message)));
            self.carry_out(node, output);
        }
        if let Some(last) = output.chosen.last() {
            let output = self.step(node, Input::Applied(last.index));
            self.carry_out(node, output);
        }
    }

    fn step(&mut self, node: NodeId, input: Input) -> Output {
        self.replica(node).step(NOW, input, &NoLog)
    }

    fn replica(&mut self, node: NodeId) -> &mut Replica {
        &mut self.replicas[node as usize - 1]
    }

    fn take(&mut self, node: NodeId) -> Replica {
        self.replicas.swap_remove(node as usize - 1)
    }
}
