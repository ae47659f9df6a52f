//! When to try again: pauses that grow and differ from client to client, and a budget that bounds what all calls
//! of a client may repeat.
//!
//! The budget is a bucket of tokens, as gRPC's and Finagle's clients have it: each call puts a fifth of a token in,
//! each repetition of what had reached a node takes one out. So nodes that answer nothing well get little more
//! than the calls themselves, however many wait. A few tokens a second come by themselves, or a lone call could not
//! outlast an election. A call that finds the bucket empty waits for a token, as long as its own time allows,
//! rather than fail: that bounds the load as well, and fails fewer.

use std::sync::Mutex;
use std::time::Duration;

use tokio::time::Instant;

/// What a repetition costs.
const TOKEN: u64 = 1000;
/// What a call earns.
const PER_CALL: u64 = TOKEN / 5;
/// What comes by itself.
const PER_SECOND: u64 = 10 * TOKEN;
/// The most that is kept, and what a client begins with.
const TOKENS_MAX: u64 = 100 * TOKEN;

/// What the calls of one client may still repeat.
#[derive(Debug)]
pub(crate) struct Budget {
    bucket: Mutex<Bucket>,
}

#[derive(Debug)]
struct Bucket {
    tokens: u64,
    refilled: Instant,
}

impl Budget {
    pub(crate) fn new() -> Budget {
        Budget { bucket: Mutex::new(Bucket { tokens: TOKENS_MAX, refilled: Instant::now() }) }
    }

    /// A call begins.
    pub(crate) fn earn(&self) {
        let mut bucket = self.lock();
        bucket.tokens = (bucket.tokens + PER_CALL).min(TOKENS_MAX);
    }

    /// Pays for a repetition.
    ///
    /// # Errors
    ///
    /// How long it takes at most until there is a token to pay with.
    pub(crate) fn spend(&self) -> Result<(), Duration> {
        let mut bucket = self.lock();
        let now = Instant::now();
        let earned = now.duration_since(bucket.refilled).as_millis() as u64 * PER_SECOND / 1000;
        if earned > 0 {
            bucket.tokens = bucket.tokens.saturating_add(earned).min(TOKENS_MAX);
            bucket.refilled = now;
        }
        match bucket.tokens.checked_sub(TOKEN) {
            Some(rest) => {
                bucket.tokens = rest;
                Ok(())
            }
            None => Err(Duration::from_millis((TOKEN - bucket.tokens).div_ceil(PER_SECOND / 1000))),
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Bucket> {
        // Whatever a panic left behind are numbers that mean something.
        self.bucket.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

/// Pauses between attempts: longer each time, and never the same for two clients.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Backoff {
    first: Duration,
    doublings_max: u32,
    doublings: u32,
}

impl Backoff {
    /// Begins at `first` and doubles so many times at most.
    pub(crate) fn new(first: Duration, doublings_max: u32) -> Backoff {
        Backoff { first, doublings_max, doublings: 0 }
    }

    pub(crate) fn next(&mut self) -> Duration {
        let longest = self.first * (1 << self.doublings);
        self.doublings = (self.doublings + 1).min(self.doublings_max);
        rand::random_range(longest / 2..=longest)
    }

    /// What went wrong so far counts no more.
    pub(crate) fn reset(&mut self) {
        self.doublings = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn repetitions_are_a_fifth_of_the_calls_and_a_reserve() {
        let budget = Budget::new();
        let reserve = (0..).take_while(|_| budget.spend().is_ok()).count();
        assert_eq!(reserve, 100);
        for _ in 0..50 {
            budget.earn();
        }
        assert_eq!((0..).take_while(|_| budget.spend().is_ok()).count(), 10);
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_as_long_as_told_has_a_token() {
        let budget = Budget::new();
        while budget.spend().is_ok() {}
        for _ in 0..3 {
            let wait = budget.spend().expect_err("it is empty");
            tokio::time::advance(wait).await;
            assert_eq!(budget.spend(), Ok(()));
        }
        tokio::time::advance(Duration::from_secs(3600)).await;
        assert_eq!((0..).take_while(|_| budget.spend().is_ok()).count(), 100, "a long rest saves up no more");
    }

    #[test]
    fn pauses_grow_up_to_a_bound() {
        let mut backoff = Backoff::new(Duration::from_millis(25), 4);
        for longest in [25, 50, 100, 200, 400, 400] {
            let pause = backoff.next().as_micros();
            assert!((longest * 500..=longest * 1000).contains(&pause), "{pause} µs of {longest} ms");
        }
        backoff.reset();
        assert!(backoff.next() <= Duration::from_millis(25));
    }
}
