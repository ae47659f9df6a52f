//! When a replica stands for election. openraft's own ticks are off: a follower would wait for the longest timeout after a
//! heartbeat and then for another one, and candidates with slow disks would stand at the same time again and again.

use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use crate::engine::Timing;

/// How long a replica waits before it stands for election: anew after whatever says that another leads, or is about to.
pub(crate) struct Patience {
    timing: Timing,
    random: StdRng,
    since: Duration,
    span: Duration,
    /// Once is enough: where polls come from those who can't lead, nobody else would ever stand.
    has_given_way: bool,
}

impl Patience {
    pub(crate) fn new(timing: Timing, seed: u64, now: Duration) -> Patience {
        let random = StdRng::seed_from_u64(seed);
        let mut patience =
            Patience { timing, random, since: now, span: Duration::ZERO, has_given_way: false };
        patience.draw(now);
        patience
    }

    /// It begins anew, and lasts as long as before.
    pub(crate) fn renew(&mut self, now: Duration) {
        self.since = now;
        self.has_given_way = false;
    }

    /// It begins anew, and lasts for another time: two that stand at once shall not do so again.
    pub(crate) fn draw(&mut self, now: Duration) {
        let Timing { timeout_min, timeout_max, .. } = self.timing;
        self.since = now;
        self.span = self.random.random_range(timeout_min..=timeout_max);
        self.has_given_way = false;
    }

    /// Another one asks for votes and may get them: it is given another time, until this one has stood itself.
    pub(crate) fn give_way(&mut self, now: Duration) {
        if !self.has_given_way {
            self.draw(now);
            self.has_given_way = true;
        }
    }

    pub(crate) fn is_over(&self, now: Duration) -> bool {
        now >= self.since + self.span
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_gives_way_once_until_its_turn_or_a_leader_comes() {
        let millis = Duration::from_millis;
        let timing = Timing { heartbeat: millis(100), timeout_min: millis(600), timeout_max: millis(1200) };
        let mut patience = Patience::new(timing, 1, Duration::ZERO);
        patience.give_way(millis(500));
        assert!(!patience.is_over(millis(1099)));
        patience.give_way(millis(1000));
        assert!(patience.is_over(millis(1700)), "not a second time");
        for begins_anew in [Patience::renew, Patience::draw] {
            begins_anew(&mut patience, millis(2000));
            patience.give_way(millis(3000));
            assert!(!patience.is_over(millis(3599)));
        }
    }

    #[test]
    fn it_lasts_from_the_shortest_to_the_longest_timeout_and_is_drawn_anew() {
        let millis = Duration::from_millis;
        let timing = Timing { heartbeat: millis(100), timeout_min: millis(600), timeout_max: millis(1200) };
        let mut patience = Patience::new(timing, 1, millis(1000));
        let mut spans = Vec::new();
        for _ in 0..100 {
            patience.draw(millis(5000));
            assert!(!patience.is_over(millis(5599)) && patience.is_over(millis(6200)));
            patience.renew(millis(6000));
            assert!(!patience.is_over(millis(6599)) && patience.is_over(millis(7200)));
            spans.push(patience.span);
        }
        spans.sort_unstable();
        spans.dedup();
        assert!(spans.len() > 90, "{spans:?}");
    }
}
