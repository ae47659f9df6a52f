//! Keeps a repeated complaint from filling the log.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use keevee_core::ids::NodeId;

/// Between two complaints about the same thing.
const EVERY: Duration = Duration::from_secs(60);
/// So many parties are told apart at a time; further ones share one place.
const PARTIES_MAX: usize = 1024;

/// Lets one complaint through every minute.
#[derive(Debug, Default)]
pub(crate) struct Throttle {
    state: Mutex<State>,
}

/// Lets one complaint about each party through every minute.
#[derive(Debug, Default)]
pub(crate) struct PartyThrottle {
    states: Mutex<BTreeMap<Party, State>>,
}

/// Whom a complaint is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Party {
    /// A node that proved who it is.
    Node(NodeId),
    /// Somebody who did not.
    Stranger(IpAddr),
    /// One of more strangers than are told apart.
    Crowd,
}

impl fmt::Display for Party {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Party::Node(node) => write!(formatter, "node {node}"),
            Party::Stranger(address) => write!(formatter, "a stranger at {address}"),
            Party::Crowd => formatter.write_str("one of many strangers"),
        }
    }
}

#[derive(Debug, Default)]
struct State {
    last: Option<Instant>,
    suppressed: u64,
}

impl State {
    fn permit(&mut self, now: Instant) -> Option<u64> {
        if self.is_fresh(now) {
            self.suppressed += 1;
            return None;
        }
        self.last = Some(now);
        Some(std::mem::take(&mut self.suppressed))
    }

    fn is_fresh(&self, now: Instant) -> bool {
        self.last.is_some_and(|last| now.duration_since(last) < EVERY)
    }
}

impl Throttle {
    /// `Some` if it is time to complain: with the number of complaints kept back since the last one.
    pub(crate) fn permit(&self, now: Instant) -> Option<u64> {
        lock(&self.state).permit(now)
    }
}

impl PartyThrottle {
    /// As [`Throttle::permit`], for each party by itself.
    pub(crate) fn permit(&self, party: Party, now: Instant) -> Option<u64> {
        let mut states = lock(&self.states);
        if states.len() >= PARTIES_MAX && !states.contains_key(&party) {
            states.retain(|_, state| state.is_fresh(now));
        }
        let is_full = states.len() >= PARTIES_MAX && !states.contains_key(&party);
        states.entry(if is_full { Party::Crowd } else { party }).or_default().permit(now)
    }
}

fn lock<T>(state: &Mutex<T>) -> MutexGuard<'_, T> {
    state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    #[test]
    fn one_complaint_passes_per_interval_and_the_rest_are_counted() {
        let (throttle, start) = (Throttle::default(), Instant::now());
        assert_eq!(throttle.permit(start), Some(0));
        assert_eq!(throttle.permit(start), None);
        assert_eq!(throttle.permit(start + EVERY / 2), None);
        assert_eq!(throttle.permit(start + EVERY), Some(2));
    }

    #[test]
    fn each_party_has_its_own_minute_up_to_a_bound() {
        let (throttle, start) = (PartyThrottle::default(), Instant::now());
        let stranger = |number: usize| Party::Stranger(Ipv4Addr::from_bits(number as u32).into());
        for number in 0..PARTIES_MAX {
            assert_eq!(throttle.permit(stranger(number), start), Some(0));
            assert_eq!(throttle.permit(stranger(number), start), None);
        }
        // No room: two more strangers share one complaint.
        assert_eq!(throttle.permit(stranger(PARTIES_MAX), start), Some(0));
        assert_eq!(throttle.permit(stranger(PARTIES_MAX + 1), start), None);
        // After a minute there is room again.
        assert_eq!(throttle.permit(Party::Node(NodeId(2)), start + EVERY), Some(0));
        assert_eq!(throttle.permit(stranger(PARTIES_MAX), start + EVERY), Some(0));
        assert!(lock(&throttle.states).len() <= PARTIES_MAX + 1);
    }
}
