//! Keeps a repeated complaint from filling the log.

use std::sync::Mutex;
use std::time::{Duration, Instant};

/// Between two complaints about the same thing.
const EVERY: Duration = Duration::from_secs(10);

/// Lets one complaint through every ten seconds.
#[derive(Debug, Default)]
pub(crate) struct Throttle {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    last: Option<Instant>,
    suppressed: u64,
}

impl Throttle {
    /// `Some` if it is time to complain: with the number of complaints kept back since the last one.
    pub(crate) fn permit(&self, now: Instant) -> Option<u64> {
        let mut state = self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if state.last.is_some_and(|last| now.duration_since(last) < EVERY) {
            state.suppressed += 1;
            return None;
        }
        state.last = Some(now);
        Some(std::mem::take(&mut state.suppressed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_complaint_passes_per_interval_and_the_rest_are_counted() {
        let (throttle, start) = (Throttle::default(), Instant::now());
        assert_eq!(throttle.permit(start), Some(0));
        assert_eq!(throttle.permit(start), None);
        assert_eq!(throttle.permit(start + EVERY / 2), None);
        assert_eq!(throttle.permit(start + EVERY), Some(2));
    }
}
