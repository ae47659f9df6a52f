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
    /// Of clients that ask the leaders: others wait as long as the nodes that they ask.
    pub(crate) leaders_p99_ms: f64,
}

pub(crate) struct Timeline {
    pub(crate) seconds: Vec<Second>,
    /// How much was done in each window, by shard, until the end.
    windows: BTreeMap<ShardId, Vec<u32>>,
}

impl Timeline {
    /// Of these histories, whose keys are where the map says, until a time; and of the microseconds, by second, that answers to
    /// those took who ask the leaders.
    pub(crate) fn new(keys: &[Key], map: &CarpView, by_leaders: Vec<Vec<u32>>, ended: Duration) -> Timeline {
        let mut latencies: Vec<Vec<u32>> = Vec::new();
        let last = ended.as_micros() as u64 / WINDOW_MICROS;
        let none = || vec![0; last as usize + 1];
        let mut windows: BTreeMap<ShardId, Vec<u32>> =
            map.slots.iter().map(|run| (run.shard, none())).collect();
        for key in keys {
            let slot = slot(key.name.as_bytes());
            let run = map.slots.iter().find(|run| (run.first..=run.last).contains(&slot));
            let Some(run) = run else { continue };
            let Some(shard) = windows.get_mut(&run.shard) else { continue };
            for operation in &key.operations {
                let Some(returned) = operation.returned else { continue };
                *at(shard, returned / WINDOW_MICROS) += 1;
                at(&mut latencies, returned / SECOND_MICROS).push((returned - operation.called) as u32);
            }
        }
        let by_leaders = by_leaders.into_iter().chain(std::iter::repeat_with(Vec::new));
        let seconds = latencies.into_iter().zip(by_leaders).map(|(all, by_leaders)| second(all, by_leaders));
        Timeline { seconds: seconds.collect(), windows }
    }

    /// The longest time within a span in which some shard answered nothing.
    pub(crate) fn silence(&self, from: Duration, to: Duration) -> Duration {
        let longest =
            self.windows.values().map(|windows| silence(windows, from, to)).max().unwrap_or_default();
        Duration::from_micros(longest * WINDOW_MICROS)
    }
}

/// What is at a place, which there is from now on.
pub(super) fn at<T: Clone + Default>(list: &mut Vec<T>, place: u64) -> &mut T {
    let place = place as usize;
    list.resize(list.len().max(place + 1), T::default());
    &mut list[place]
}

fn second(mut all: Vec<u32>, mut by_leaders: Vec<u32>) -> Second {
    all.sort_unstable();
    by_leaders.sort_unstable();
    Second {
        done: all.len(),
        p50_ms: millis(&all, 500),
        p99_ms: millis(&all, 990),
        slowest_ms: millis(&all, 1000),
        leaders_p99_ms: millis(&by_leaders, 990),
    }
}

/// What so many of a thousand took at most, of sorted microseconds.
fn millis(sorted: &[u32], part: usize) -> f64 {
    let of = sorted.get(sorted.len().saturating_sub(1) * part / 1000).copied();
    f64::from(of.unwrap_or_default()) / 1000.0
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

    #[test]
    fn what_never_answers_again_is_silent_to_the_end() {
        let map = r#"{"epoch": 1, "shards": [], "nodes": [], "slots": [[0, 8191, 1], [8192, 16383, 2]]}"#;
        let map: CarpView = serde_json::from_str(map).expect("a map");
        let seconds = Duration::from_secs;
        let timeline = Timeline::new(&[], &map, Vec::new(), seconds(9));
        assert_eq!(timeline.silence(seconds(3), seconds(9)), seconds(6));
    }
}
