//! The open loop: when each operation is due, whatever becomes of those before it.
//!
//! Operations are due at a fixed rate. A connection without a request under way takes the next one; while all are
//! busy, what is due waits, and its wait counts, since latencies start when an operation was due and not when it
//! was sent. So a slow answer shows in the figures of all that it held up (no coordinated omission). A load that
//! falls behind sends as fast as it gets answers; what was due and is unsent at the end is counted.

use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use tokio::sync::Semaphore;

/// How long the pacer sleeps at most, so that it hears of an early end.
const NAP_MAX: Duration = Duration::from_millis(50);

/// When operations are due, and which of them are taken.
pub(crate) struct Schedule {
    start: Instant,
    per_second: f64,
    /// A permit for each operation that is due and not taken. Closed when it is over.
    due: Semaphore,
    released: AtomicU64,
    taken: AtomicU64,
}

impl Schedule {
    pub(crate) fn new(start: Instant, per_second: f64) -> Schedule {
        let due = Semaphore::new(0);
        Schedule { start, per_second, due, released: AtomicU64::new(0), taken: AtomicU64::new(0) }
    }

    /// Waits for the next operation, and takes it: when it was due. `None` when it is over.
    pub(crate) async fn next(&self) -> Option<Instant> {
        self.due.acquire().await.ok()?.forget();
        Some(self.take())
    }

    /// The same if one is due by now.
    pub(crate) fn next_due(&self) -> Option<Instant> {
        self.due.try_acquire().ok()?.forget();
        Some(self.take())
    }

    fn take(&self) -> Instant {
        self.due_at(self.taken.fetch_add(1, Ordering::Relaxed))
    }

    fn due_at(&self, number: u64) -> Instant {
        self.start + Duration::from_secs_f64(number as f64 / self.per_second)
    }

    /// Whoever waits is told that it is over.
    pub(crate) fn close(&self) {
        self.due.close();
    }

    /// How many were due and nobody took.
    pub(crate) fn unsent(&self) -> u64 {
        self.released.load(Ordering::Relaxed).saturating_sub(self.taken.load(Ordering::Relaxed))
    }

    /// Releases operations when they are due, up to so many or up to `end`. On a thread of its own: an event loop's timers
    /// go by whole milliseconds, in which many are due.
    pub(crate) fn pace(&self, operations: u64, end: Option<Instant>, mut is_stopped: impl FnMut() -> bool) {
        let mut released = 0;
        while !self.due.is_closed() && !is_stopped() {
            let now = Instant::now();
            if end.is_some_and(|end| now >= end) {
                break;
            }
            let passed = now.saturating_duration_since(self.start).as_secs_f64();
            // The first is due at once, so that it is one more than have passed.
            let due = ((passed * self.per_second) as u64 + 1).min(operations);
            self.due.add_permits((due - released) as usize);
            released = due;
            self.released.store(released, Ordering::Relaxed);
            let next = if released < operations { self.due_at(released) } else { now + NAP_MAX };
            thread::sleep(next.saturating_duration_since(now).min(NAP_MAX));
        }
        self.close();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn operations_are_due_at_even_times_however_late_they_are_taken() {
        let start = Instant::now();
        let schedule = Schedule::new(start, 1_000_000.0);
        let mut asked = 0;
        // Stopped after one round.
        schedule.pace(10, None, || std::mem::replace(&mut asked, 1) > 0);
        assert!((1..=10).contains(&schedule.unsent()), "nobody took what was due");
        assert!(schedule.next().await.is_none(), "it is over");

        let schedule = Schedule::new(start, 1_000_000.0);
        thread::scope(|scope| {
            scope.spawn(|| schedule.pace(10, None, || false));
            let taken = (0..10).map(|number| {
                let due = loop {
                    if let Some(due) = schedule.next_due() {
                        break due;
                    }
                    thread::yield_now();
                };
                assert_eq!(due, start + Duration::from_micros(number));
            });
            assert_eq!(taken.count(), 10);
            assert!(schedule.next_due().is_none() && schedule.unsent() == 0);
            schedule.close();
        });
    }
}
