//! A node's clocks: one that counts at its own rate and never jumps, and one on the wall that does.

use std::time::Duration;

use keevee_replica::Now;

/// Where every wall clock would stand at the start of a run, in microseconds since the Unix epoch, if it were
/// right.
pub(crate) const EPOCH_MICROS: u64 = 1_750_000_000_000_000;

pub(crate) struct Clock {
    /// Thousandths of the true speed.
    rate: u64,
    offset: i64,
}

impl Clock {
    pub(crate) fn new(rate: u64, offset: i64) -> Clock {
        Clock { rate, offset }
    }

    /// What the node's clocks show at a true time.
    pub(crate) fn read(&self, now: u64) -> Now {
        let monotonic = now * self.rate / 1_000;
        let wall_micros = (EPOCH_MICROS + monotonic).saturating_add_signed(self.offset);
        Now { monotonic: Duration::from_micros(monotonic), wall_micros }
    }

    /// How long a span by this clock truly takes.
    pub(crate) fn true_span(&self, span: u64) -> u64 {
        (span * 1_000).div_ceil(self.rate)
    }

    pub(crate) fn jump_to(&mut self, offset: i64) {
        self.offset = offset;
    }
}
