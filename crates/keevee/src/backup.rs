//! Backups: a cluster's keys as of one time, in a folder; and back into a cluster.
//!
//! What a cut of a shard is, and how it looks as bytes, is at home in `keevee_replica::Cut` and [`keevee_core::cut`];
//! `docs/backups.md` tells the folder's format to people. Backups of changes only, and of one shard alone, are left out.

pub(crate) mod folder;
pub(crate) mod restore;
pub(crate) mod take;
pub(crate) mod time;

use std::time::Instant;

use indicatif::{ProgressBar, ProgressStyle};

/// A bar for the standard error, drawn on a terminal only: what is done, in bytes.
pub(crate) fn bytes_bar(name: &'static str, bytes: u64) -> ProgressBar {
    let template = "{prefix} {bar:40} {bytes}/{total_bytes} {bytes_per_sec} {eta}";
    styled(ProgressBar::new(bytes), name, template)
}

/// The same where nobody knows how much there will be: by shards.
pub(crate) fn shards_bar(name: &'static str, shards: u64) -> ProgressBar {
    styled(ProgressBar::new(shards), name, "{prefix} {bar:40} {pos}/{len} shards {elapsed} {msg}")
}

fn styled(bar: ProgressBar, name: &'static str, template: &str) -> ProgressBar {
    match ProgressStyle::with_template(template) {
        Ok(style) => bar.with_style(style).with_prefix(name),
        Err(_) => bar.with_prefix(name),
    }
}

/// What was done, and how fast.
pub(crate) struct Rate {
    pub(crate) keys: u64,
    pub(crate) bytes: u64,
    pub(crate) seconds: f64,
}

impl Rate {
    pub(crate) fn since(start: Instant, keys: u64, bytes: u64) -> Rate {
        Rate { keys, bytes, seconds: start.elapsed().as_secs_f64() }
    }

    /// Keys per second.
    pub(crate) fn keys_per_second(&self) -> u64 {
        (self.keys as f64 / self.seconds.max(1e-3)) as u64
    }

    /// For people.
    pub(crate) fn text(&self) -> String {
        let Rate { keys, seconds, .. } = self;
        let (megabytes, per_second) = (self.bytes as f64 / 1e6, self.bytes as f64 / 1e6 / seconds.max(1e-3));
        let rate = self.keys_per_second();
        format!("{keys} keys, {megabytes:.1} MB, in {seconds:.1} s: {rate} keys/s, {per_second:.1} MB/s")
    }
}
