//! Which other nodes are alive: one small message now and then for each pair of nodes, however many shards they share.
//!
//! Quiesced shards ([`crate::quiescence`]) rely on it. The messages also tell the sender's wall clock, so that a node finds
//! out whether its own is off. It leaves out who sends the messages, and what follows for each
//! shard.

use std::collections::BTreeMap;
use std::time::Duration;

use keevee_core::ids::NodeId;

use crate::request::Now;

/// How far two clocks may lie apart before one of them is off: far more than clocks that are looked after ever do, or
/// than a message takes; far less than the minute by which request ids may be ahead of shard time.
pub const CLOCK_DIFFERENCE_MAX: Duration = Duration::from_secs(10);

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
    /// Its wall clock then, in microseconds since the Unix epoch, if it told.
    wall_micros: Option<u64>,
}

impl Life {
    /// True if its clock and the one of `now` lie far apart, and `None` if that is not known.
    fn differs(&self, now: Now) -> Option<bool> {
        let since = now.monotonic.saturating_sub(self.heard).as_micros() as u64;
        let theirs = self.wall_micros?.saturating_add(since);
        Some(theirs.abs_diff(now.wall_micros) > CLOCK_DIFFERENCE_MAX.as_micros() as u64)
    }
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

    /// A node told that it is alive, and its wall clock, unless it is of a version that does not. False if it is not the process that was heard before: that one is dead.
    pub fn heard(&mut self, now: Duration, node: NodeId, boot: u64, wall_micros: Option<u64>) -> bool {
        let before = self.known.insert(node, Life { boot, heard: now, wall_micros });
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

    /// True if this node's clock differs from more clocks of living nodes than it agrees with, itself included. It may
    /// jump at any time: ask before each use.
    pub fn is_clock_off(&self, now: Now) -> bool {
        let told = self.known.values().filter_map(|life| life.differs(now));
        let (differ, agree) =
            told.fold(
                (0, 1),
                |(differ, agree), differs| {
                    if differs { (differ + 1, agree) } else { (differ, agree + 1) }
                },
            );
        differ > agree
    }

    /// True if a node's clock is known to differ from this one's.
    pub fn differs(&self, now: Now, node: NodeId) -> bool {
        self.known.get(&node).is_some_and(|life| life.differs(now) == Some(true))
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
        assert!(neighbours.heard(millis(0), NodeId(2), 7, None));
        assert!(neighbours.heard(millis(300), NodeId(2), 7, None));
        assert_eq!(neighbours.missed(millis(699)), []);
        assert_eq!(neighbours.missed(millis(700)), [NodeId(2)]);
        assert!(!neighbours.is_alive(NodeId(2)));
        assert_eq!(neighbours.missed(millis(900)), []);
        assert!(neighbours.heard(millis(900), NodeId(2), 7, None));
        assert!(neighbours.is_alive(NodeId(2)));
    }

    #[test]
    fn another_process_under_the_same_name_is_noticed() {
        let mut neighbours = Neighbours::new(millis(100), millis(400));
        assert!(neighbours.heard(millis(0), NodeId(2), 7, None));
        assert!(!neighbours.heard(millis(100), NodeId(2), 8, None));
        assert!(neighbours.heard(millis(200), NodeId(2), 8, None));
        neighbours.lost(NodeId(2));
        assert!(!neighbours.is_alive(NodeId(2)));
    }

    #[test]
    fn a_clock_is_off_if_it_differs_from_more_than_it_agrees_with() {
        let mut neighbours = Neighbours::new(millis(100), millis(400));
        let now = |monotonic, wall_seconds: u64| Now {
            monotonic: millis(monotonic),
            wall_micros: wall_seconds * 1_000_000,
        };
        assert!(!neighbours.is_clock_off(now(0, 1_000)), "nobody tells another time");
        neighbours.heard(millis(0), NodeId(2), 7, Some(1_011 * 1_000_000));
        assert!(!neighbours.is_clock_off(now(0, 1_000)), "one against one: nobody knows");
        assert!(
            neighbours.differs(now(0, 1_000), NodeId(2)) && !neighbours.differs(now(0, 1_001), NodeId(2))
        );
        neighbours.heard(millis(0), NodeId(3), 7, None);
        assert!(!neighbours.is_clock_off(now(0, 1_000)), "it said nothing");
        neighbours.heard(millis(0), NodeId(3), 7, Some(1_011 * 1_000_000));
        assert!(neighbours.is_clock_off(now(0, 1_000)) && neighbours.is_clock_off(now(0, 1_022)));
        assert!(!neighbours.is_clock_off(now(0, 1_001)) && !neighbours.is_clock_off(now(0, 1_021)));
        // Time goes on since they were heard.
        assert!(
            !neighbours.is_clock_off(now(300_000, 1_311)) && neighbours.is_clock_off(now(300_000, 1_300))
        );
        neighbours.lost(NodeId(2));
        assert!(!neighbours.is_clock_off(now(0, 1_000)));
    }

    #[test]
    fn beats_are_due_at_their_interval() {
        let mut neighbours = Neighbours::new(millis(100), millis(400));
        let due: Vec<u64> = (0..300).filter(|at| neighbours.is_beat_due(millis(*at))).collect();
        assert_eq!(due, [0, 100, 200]);
    }
}
