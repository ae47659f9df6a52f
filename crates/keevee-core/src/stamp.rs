//! The hybrid logical clock that stamps entries (Kulkarni et al., "Logical Physical Clocks", 2014).
//!
//! Stamps follow the wall clock as long as it moves forward, and count on by themselves when it stands
//! still or jumps back; a stamp seen from another node is never undercut. Unlike the paper's, a stamp
//! is one number: a microsecond is finer than any use of stamps, so the logical part counts
//! microseconds too.
//!
//! It leaves out the wall clock itself, which the caller reads, and any bound on how far a stamp may
//! run ahead of it: whoever accepts stamps from others must set one.

/// Draws stamps: each larger than all that it drew or observed before.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HybridClock {
    last: u64,
}

impl HybridClock {
    /// A clock that has drawn and seen nothing yet.
    pub fn new() -> HybridClock {
        HybridClock::default()
    }

    /// Draws the next stamp, in microseconds since the Unix epoch.
    pub fn tick(&mut self, wall_micros: u64) -> u64 {
        self.last = self.last.saturating_add(1).max(wall_micros);
        self.last
    }

    /// Takes note of another's stamp: stamps drawn from now on are larger.
    pub fn observe(&mut self, stamp: u64) {
        self.last = self.last.max(stamp);
    }

    /// The largest stamp drawn or observed.
    pub fn last(&self) -> u64 {
        self.last
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stamps_follow_the_wall_clock() {
        let mut clock = HybridClock::new();
        assert_eq!(clock.tick(1_000), 1_000);
        assert_eq!(clock.tick(5_000), 5_000);
    }

    #[test]
    fn stamps_rise_when_the_wall_clock_stands_still_or_jumps_back() {
        let mut clock = HybridClock::new();
        assert_eq!(clock.tick(1_000), 1_000);
        assert_eq!(clock.tick(1_000), 1_001);
        assert_eq!(clock.tick(3), 1_002);
        assert_eq!(clock.last(), 1_002);
    }

    #[test]
    fn an_observed_stamp_is_never_undercut() {
        let mut clock = HybridClock::new();
        clock.observe(9_000);
        assert_eq!(clock.tick(1_000), 9_001);
        clock.observe(5);
        assert_eq!(clock.tick(1_000), 9_002);
    }

    #[test]
    fn the_last_stamp_of_all_does_not_wrap() {
        let mut clock = HybridClock::new();
        clock.observe(u64::MAX);
        assert_eq!(clock.tick(1), u64::MAX);
    }
}
