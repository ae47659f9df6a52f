//! When what was done: from the histories, for people, and to tell how long a fault kept a shard from answering.

use std::collections::BTreeMap;
use std::time::Duration;

use keevee_core::ids::ShardId;
use keevee_core::shard_map::view::CarpView;
use keevee_core::slots::slot;
use serde::Serialize;

use super::history::Key;

/// What is counted together to find silences.
const WINDOW_MICROS: u64 = 50_000;
const SECOND_MICROS: u64 = 1_000_000;

/// What was done in one second.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct Second {
    pub(crate) done: usize,
    pub(crate) p50_ms: f64,
    pub(crate) p99_ms: f64,
    pub(crate) slowest_ms: f64,
}

pub(crate) struct Timeline {
    pub(crate) seconds: Vec<Second>,
    /// How much was done in each window, by shard.
    windows: BTreeMap<ShardId, Vec<u32>>,
}

impl Timeline {
    /// Of these histories, whose keys are where the map says.
    pub(crate) fn new(keys: &[Key], map: &CarpView) -> Timeline {
        let mut latencies: Vec<Vec<u32>> = Vec::new();
        let mut windows: BTreeMap<ShardId, Vec<u32>> = BTreeMap::new();
        for key in keys {
            let slot = slot(key.name.as_bytes());
            let run = map.slots.iter().find(|run| (run.first..=run.last).contains(&slot));
            let Some(run) = run else { continue };
            let shard = windows.entry(run.shard).or_default();
            for operation in &key.operations {
                let Some(returned) = operation.returned else { continue };
                *at(shard, returned / WINDOW_MICROS) += 1;
                at(&mut latencies, returned / SECOND_MICROS).push((returned - operation.called) as u32);
            }
        }
        Timeline { seconds: latencies.into_iter().map(second).collect(), windows }
    }

    /// The longest time within a span in which some shard answered nothing.
    pub(crate) fn silence(&self, from: Duration, to: Duration) -> Duration {
        let longest =
            self.windows.values().map(|windows| silence(windows, from, to)).max().unwrap_or_default();
        Duration::from_micros(longest * WINDOW_MICROS)
    }
}

fn at<T: Clone + Default>(list: &mut Vec<T>, place: u64) -> &mut T {
    let place = place as usize;
    list.resize(list.len().max(place + 1), T::default());
    &mut list[place]
}

fn second(mut latencies: Vec<u32>) -> Second {
    latencies.sort_unstable();
    let of = |part: usize| latencies.get(latencies.len().saturating_sub(1) * part / 1000).copied();
    let millis = |part| f64::from(of(part).unwrap_or_default()) / 1000.0;
    Second { done: latencies.len(), p50_ms: millis(500), p99_ms: millis(990), slowest_ms: millis(1000) }
}

/// In windows.
fn silence(windows: &[u32], from: Duration, to: Duration) -> u64 {
    let place = |time: Duration| (time.as_micros() as u64 / WINDOW_MICROS) as usize;
    let span = windows.get(place(from)..place(to).min(windows.len())).unwrap_or_default();
    span.split(|count| *count > 0).map(|empty| empty.len() as u64).max().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn silence_is_the_longest_run_of_empty_windows() {
        let silence = |windows: &[u32], from: u64, to: u64| {
            let time = |windows: u64| Duration::from_micros(windows * WINDOW_MICROS);
            silence(windows, time(from), time(to))
        };
        assert_eq!(silence(&[5, 0, 0, 3, 0, 0, 0, 1], 0, 8), 3);
        assert_eq!(silence(&[5, 0, 0, 3, 0, 0, 0, 1], 0, 5), 2);
        assert_eq!(silence(&[5, 5], 0, 2), 0);
        assert_eq!(silence(&[], 3, 9), 0);
    }
}
