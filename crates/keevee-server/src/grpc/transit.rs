//! How long a request of a stream was on its way, beyond the shortest way.
//!
//! A node that was held up finds requests in its sockets that came long ago, of callers who have given up. Carried out for
//! nobody, they would make those behind them late as well, and so on (Bronson et al., *Metastable Failures in Distributed
//! Systems*, HotOS 2021). So a client says when it sent each, by its own clock from the stream's beginning. By how much the two
//! clocks differ nobody knows: what the shortest way took is taken for it. And clocks may drift apart, or stand still while their
//! machine sleeps: what comes on a stream that was waited for has not waited here, whatever its time says. Not here: what
//! becomes of what is late.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// How often a pulse beats.
const BEAT: Duration = Duration::from_millis(100);

/// When tasks were last run in time.
pub(super) struct Pulse {
    origin: Instant,
    /// In milliseconds from there.
    last: AtomicU64,
}

impl Pulse {
    /// Beats until nobody holds it any more.
    pub(super) fn start() -> Arc<Pulse> {
        let pulse = Arc::new(Pulse { origin: Instant::now(), last: AtomicU64::new(0) });
        let beating = Arc::downgrade(&pulse);
        tokio::spawn(async move {
            let mut before = Instant::now();
            loop {
                tokio::time::sleep(BEAT).await;
                let Some(pulse) = beating.upgrade() else { return };
                let now = Instant::now();
                // After a hold-up others must have run as well, and looked at what came meanwhile.
                if now - before < 2 * BEAT {
                    let last = (now - pulse.origin).as_millis();
                    pulse.last.store(u64::try_from(last).unwrap_or(u64::MAX), Ordering::Relaxed);
                }
                before = now;
            }
        });
        pulse
    }

    /// What somebody waited for until now came later.
    fn surely(&self, now: Instant) -> Instant {
        let last = self.origin + Duration::from_millis(self.last.load(Ordering::Relaxed));
        now.min(last + BEAT)
    }
}

/// The requests of one stream.
pub(super) struct Transit {
    pulse: Arc<Pulse>,
    began: Instant,
    /// What there is to be read came later.
    came_after: Instant,
    /// Nothing is there to be read.
    is_empty: bool,
    /// By how much the clocks differ, in milliseconds, with the shortest way.
    least: i64,
}

impl Transit {
    /// Of a stream that begins.
    pub(super) fn new(now: Instant, pulse: Arc<Pulse>) -> Transit {
        Transit { pulse, began: now, came_after: now, is_empty: true, least: i64::MAX }
    }

    /// There is nothing to be read.
    pub(super) fn wait(&mut self) {
        self.is_empty = true;
    }

    /// How long what was just read has waited, sent so many milliseconds after the stream's beginning; nothing if that is not known.
    pub(super) fn waited(&mut self, now: Instant, sent_ms: Option<u64>) -> Duration {
        // What comes without a wait before it has been there for as long as what came before it, perhaps.
        if std::mem::take(&mut self.is_empty) {
            self.came_after = self.pulse.surely(now);
        }
        let Some(sent_ms) = sent_ms else { return Duration::ZERO };
        let millis = |number: u128| i64::try_from(number).unwrap_or(i64::MAX);
        let since = |time: Instant| millis(now.saturating_duration_since(time).as_millis());
        let difference = since(self.began).saturating_sub(millis(sent_ms.into()));
        let at_most = since(self.came_after);
        self.least = self.least.min(difference).max(difference.saturating_sub(at_most));
        Duration::from_millis(difference.saturating_sub(self.least).unsigned_abs())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    /// A stream that has just begun on a node that is not held up, and to which nothing comes yet.
    fn begun() -> (Instant, Transit) {
        let began = Instant::now();
        let pulse = Arc::new(Pulse { origin: began, last: AtomicU64::new(0) });
        (began, Transit::new(began, pulse))
    }

    fn beat(transit: &Transit, millis: u64) {
        transit.pulse.last.store(millis, Ordering::Relaxed);
    }

    #[test]
    fn what_others_did_not_need_was_spent_waiting() {
        let (began, mut transit) = begun();
        // The client's clock is ahead.
        assert_eq!(transit.waited(began + ms(80), Some(5_000)), ms(0));
        // The node is held up, and then reads all that has come.
        assert_eq!(transit.waited(began + ms(900), Some(5_120)), ms(700));
        assert_eq!(transit.waited(began + ms(900), Some(5_820)), ms(0));
        assert_eq!(transit.waited(began + ms(901), Some(5_870)), ms(0), "a shorter way than any before");
        assert_eq!(transit.waited(began + ms(1_000), Some(5_920)), ms(49));
    }

    #[test]
    fn what_comes_after_a_hold_up_may_have_waited_for_all_of_it() {
        let (began, mut transit) = begun();
        transit.waited(began + ms(50), Some(50));
        transit.wait();
        assert_eq!(transit.waited(began + ms(5_000), Some(100)), ms(4_900), "within what the pulse allows");
        assert_eq!(transit.waited(began + ms(5_000), Some(4_000)), ms(1_000));
    }

    #[test]
    fn clocks_may_drift_and_stand_still() {
        let (began, mut transit) = begun();
        for seconds in 0..100_000_u64 {
            // The client's stops for an hour, and is slower by a thousandth before and after.
            let arrived = seconds * 1_001 + if seconds > 50_000 { 3_600_000 } else { 0 };
            beat(&transit, arrived - arrived % 100);
            assert_eq!(transit.waited(began + ms(arrived), Some(seconds * 1_000)), ms(0));
            transit.wait();
        }
    }

    #[test]
    fn no_number_is_too_much() {
        let (began, mut transit) = begun();
        for sent in [u64::MAX, 0, i64::MAX as u64, 1, u64::MAX] {
            assert!(transit.waited(began + ms(1), Some(sent)) <= ms(1));
        }
    }
}
