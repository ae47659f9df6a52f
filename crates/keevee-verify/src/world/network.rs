//! The network: who reaches whom, what is lost, how long a message takes.

use std::collections::{BTreeMap, BTreeSet};

use crate::plan::Settings;
use crate::random::Random;

/// A node's number, or 0 for the clients, which no partition cuts off.
pub(crate) type Place = u64;

pub(crate) struct Network {
    latency_min: u64,
    latency_max: u64,
    ordered: bool,
    /// Links that lose everything, from and to.
    pub(crate) cut: BTreeSet<(Place, Place)>,
    pub(crate) loss_percent: u64,
    pub(crate) duplicate_percent: u64,
    pub(crate) delay_percent: u64,
    pub(crate) delay_max: u64,
    /// Of an ordered link: when its last message arrives.
    arrives: BTreeMap<(Place, Place), u64>,
    /// When the last message arrives that took longer than the settings say.
    late_until: u64,
}

/// What the network does with one message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    Lost,
    Arrives { at: u64, again_at: Option<u64> },
}

impl Network {
    pub(crate) fn new(settings: &Settings) -> Network {
        Network {
            latency_min: settings.latency_min,
            latency_max: settings.latency_max,
            ordered: settings.ordered,
            cut: BTreeSet::new(),
            loss_percent: 0,
            duplicate_percent: 0,
            delay_percent: 0,
            delay_max: 0,
            arrives: BTreeMap::new(),
            late_until: 0,
        }
    }

    pub(crate) fn is_open(&self, from: Place, to: Place) -> bool {
        !self.cut.contains(&(from, to))
    }

    pub(crate) fn send(&mut self, now: u64, from: Place, to: Place, random: &mut Random) -> Way {
        if self.cut.contains(&(from, to)) || random.percent(self.loss_percent) {
            return Way::Lost;
        }
        let mut at = now + random.between(self.latency_min, self.latency_max);
        if self.delay_percent > 0 && random.percent(self.delay_percent) {
            at += random.below(self.delay_max);
        }
        if self.ordered {
            let last = self.arrives.entry((from, to)).or_default();
            at = at.max(*last + 1);
            *last = at;
        }
        if at > now + self.latency_max {
            self.late_until = self.late_until.max(at);
        }
        let again = self.duplicate_percent > 0 && random.percent(self.duplicate_percent);
        let again_at = again.then(|| at + random.below(40 * self.latency_max));
        Way::Arrives { at, again_at }
    }

    /// False while something is on its way that a fault held up, though the fault may have ended.
    pub(crate) fn is_prompt(&self, now: u64) -> bool {
        now > self.late_until
    }

    pub(crate) fn heal(&mut self) {
        self.cut.clear();
        (self.loss_percent, self.duplicate_percent, self.delay_percent) = (0, 0, 0);
    }
}
