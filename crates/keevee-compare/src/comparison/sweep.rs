//! Where a cliff could be: keevee over the Redis protocol, with one property of the load taken from small to large.
//!
//! In one round, which finds a cliff; small differences need the rounds that the typical cases have. Properties together
//! (large values of many connections), and gRPC and HTTP, are left out.

use std::iter::successors;
use std::path::Path;

use super::load::{Case, KEYS, Loader, TYPICAL_CONNECTIONS};
use super::systems::System;
use super::{Fallible, Results};

/// What varies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Sweep {
    Values,
    Connections,
    Keys,
}

const VALUE_BYTES: [u32; 6] = [16, 128, 1 << 10, 4 << 10, 16 << 10, 64 << 10];
const CONNECTIONS: [u32; 7] = [1, 4, 16, 64, 128, 256, 512];
const FOLLOWERS_CONNECTIONS: [u32; 2] = [64, 256];
/// Of all keys: three nodes keep each value some times, in their logs and until RocksDB has merged its files.
const TOTAL_BYTES_MAX: u64 = 256 << 20;

impl Sweep {
    pub(super) const ALL: [Sweep; 3] = [Sweep::Values, Sweep::Connections, Sweep::Keys];

    /// By what its rows differ.
    pub(super) fn name(self) -> &'static str {
        match self {
            Sweep::Values => "bytes of a value",
            Sweep::Connections => "connections",
            Sweep::Keys => "keys",
        }
    }

    /// What is measured, by writes and by reads: the writes.
    pub(super) fn rows(self, keys_max: u64) -> Vec<Case> {
        let with = |connections| Case::typical(false, connections);
        let typical = with(TYPICAL_CONNECTIONS);
        match self {
            Sweep::Values => VALUE_BYTES
                .map(|value_bytes| Case {
                    value_bytes,
                    keys: KEYS.min(TOTAL_BYTES_MAX / u64::from(value_bytes)),
                    ..typical
                })
                .into(),
            Sweep::Connections => {
                let to_followers =
                    FOLLOWERS_CONNECTIONS.map(|count| Case { to_followers: true, ..with(count) });
                CONNECTIONS.map(with).into_iter().chain(to_followers).collect()
            }
            Sweep::Keys => successors(Some(KEYS), |keys| keys.checked_mul(10))
                .take_while(|keys| *keys <= keys_max)
                .map(|keys| Case { keys, ..typical })
                .collect(),
        }
    }

    /// How much of it a case has.
    pub(super) fn varied(self, case: Case) -> u64 {
        match self {
            Sweep::Values => case.value_bytes.into(),
            Sweep::Connections => case.connections.into(),
            Sweep::Keys => case.keys,
        }
    }

    /// The same in words, with what differs beside.
    pub(super) fn row_name(self, case: Case) -> String {
        let amount = self.varied(case).to_string();
        match self {
            Sweep::Values if case.keys != KEYS => format!("{amount}, {} keys", case.keys),
            Sweep::Connections if case.to_followers => format!("{amount}, to the followers"),
            _ => amount,
        }
    }
}

/// All sweeps of one system, each on a cluster of its own: what one leaves behind is in no figure of another.
pub(super) async fn measure(
    system: System,
    keevee: &Path,
    loader: &Loader,
    keys_max: u64,
    results: &mut Results,
) -> Fallible {
    for sweep in Sweep::ALL {
        let folder = tempfile::tempdir()?;
        let running = system.start(keevee, folder.path()).await?;
        loader.wait_ready(&running).await?;
        let resp = running.places.iter().find(|place| place.protocol == "resp");
        let resp = resp.ok_or("it does not speak the Redis protocol")?;
        let mut filled = None;
        for row in sweep.rows(keys_max) {
            let wanted = Some((row.keys, row.value_bytes));
            if filled != wanted {
                loader.fill(resp, row.keys, row.value_bytes).await?;
                filled = wanted;
            }
            for case in [row, Case { is_read: true, ..row }] {
                let (figures, ..) = loader.measure(resp, case, &running.pids).await?;
                let kind = if case.is_read { "read" } else { "write" };
                let (by, row) = (sweep.name(), sweep.row_name(case));
                eprintln!("  {kind}, by {by}, {row}: {:.0} each second", figures.per_second);
                results.sweeps.insert((sweep, system, case), figures);
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_bounded_by_their_number_and_their_bytes() {
        let keys = |sweep: Sweep, keys_max| -> Vec<u64> {
            sweep.rows(keys_max).iter().map(|case| case.keys).collect()
        };
        assert_eq!(keys(Sweep::Keys, 10_000), [10_000]);
        assert_eq!(keys(Sweep::Keys, 999_999), [10_000, 100_000]);
        assert_eq!(keys(Sweep::Keys, 10_000_000), [10_000, 100_000, 1_000_000, 10_000_000]);
        assert_eq!(keys(Sweep::Keys, u64::MAX).len(), 16);
        assert_eq!(keys(Sweep::Values, 10_000), [10_000, 10_000, 10_000, 10_000, 10_000, 4_096]);
    }

    #[test]
    fn rows_are_named_by_what_they_have_of_their_own() {
        let names = |sweep: Sweep| -> Vec<String> {
            sweep.rows(100_000).into_iter().map(|case| sweep.row_name(case)).collect()
        };
        assert_eq!(names(Sweep::Values)[4..], ["16384", "65536, 4096 keys"]);
        assert_eq!(names(Sweep::Connections)[6..8], ["512", "64, to the followers"]);
        assert_eq!(names(Sweep::Keys), ["10000", "100000"]);
        for sweep in Sweep::ALL {
            let mut names = names(sweep);
            names.sort_unstable();
            let count = names.len();
            names.dedup();
            assert_eq!(names.len(), count, "{sweep:?}");
        }
    }
}
