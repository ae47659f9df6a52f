//! Which other nodes are alive: one small message now and then for each pair of nodes, however many shards they share.
//!
//! Quiesced shards ([`crate::quiescence`]) rely on it. It leaves out who sends the messages, and what follows for each
//! shard.

use std::collections::BTreeMap;
use std::time::Duration;

use keevee_core::ids::NodeId;

/// What one node knows of the others. The time is its own monotonic clock's.
#[derive(Debug)]
pub struct Neighbours {
    beat: Duration,
    silence: Duration,
    beat_at: Duration,
    known: BTreeMap<NodeId, Life>,
}

#[derive(Clone, Copy, Debug)]
struct Life {
    /// Drawn by the node's process when it started.
    boot: u64,
    heard: Duration,
}

impl Neighbours {
    /// Of a node that has heard of nobody yet. Whoever is not heard for `silence` is missed; it must be several times
    /// `beat`, and shorter than the shortest election timeout, so that nobody's failover waits for it.
    pub fn new(beat: Duration, silence: Duration) -> Neighbours {
        Neighbours { beat, silence, beat_at: Duration::ZERO, known: BTreeMap::new() }
    }

    /// True if it is time to tell the others that this node is alive.
    pub fn is_beat_due(&mut self, now: Duration) -> bool {
        let is_due = now >= self.beat_at;
        if is_due {
            self.beat_at = now + self.beat;
        }
        is_due
    }

    /// A node told that it is alive. False if it is not the process that was heard before: that one is dead.
    pub fn heard(&mut self, now: Duration, node: NodeId, boot: u64) -> bool {
        let before = self.known.insert(node, Life { boot, heard: now });
        before.is_none_or(|before| before.boot == boot)
    }

    /// The connection to a node was reset: it is missed until it is heard again.
    pub fn lost(&mut self, node: NodeId) {
        self.known.remove(&node);
    }

    /// Those that have not been heard for too long: each once.
    pub fn missed(&mut self, now: Duration) -> Vec<NodeId> {
        let silence = self.silence;
        let is_silent = |_: &NodeId, life: &mut Life| now >= life.heard + silence;
        self.known.extract_if(.., is_silent).map(|(node, _)| node).collect()
    }

    /// True if a node was heard lately.
    pub fn is_alive(&self, node: NodeId) -> bool {
        self.known.contains_key(&node)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn millis(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    #[test]
    fn who_is_silent_is_missed_once_until_it_is_heard_again() {
        let mut neighbours = Neighbours::new(millis(100), millis(400));
        assert!(!neighbours.is_alive(NodeId(2)), "nobody is alive before it was heard");
        assert!(neighbours.heard(millis(0), NodeId(2), 7));
        assert!(neighbours.heard(millis(300), NodeId(2), 7));
        assert_eq!(neighbours.missed(millis(699)), []);
        assert_eq!(neighbours.missed(millis(700)), [NodeId(2)]);
        assert!(!neighbours.is_alive(NodeId(2)));
        assert_eq!(neighbours.missed(millis(900)), []);
        assert!(neighbours.heard(millis(900), NodeId(2), 7));
        assert!(neighbours.is_alive(NodeId(2)));
    }

    #[test]
    fn another_process_under_the_same_name_is_noticed() {
        let mut neighbours = Neighbours::new(millis(100), millis(400));
        assert!(neighbours.heard(millis(0), NodeId(2), 7));
        assert!(!neighbours.heard(millis(100), NodeId(2), 8));
        assert!(neighbours.heard(millis(200), NodeId(2), 8));
        neighbours.lost(NodeId(2));
        assert!(!neighbours.is_alive(NodeId(2)));
    }

    #[test]
    fn beats_are_due_at_their_interval() {
        let mut neighbours = Neighbours::new(millis(100), millis(400));
        let due: Vec<u64> = (0..300).filter(|at| neighbours.is_beat_due(millis(*at))).collect();
        assert_eq!(due, [0, 100, 200]);
    }
}
