//! On what it was measured: the machine, its disk, and the versions of what was compared.

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use crate::Fallible;

/// How often the disk is asked.
const SYNCS: usize = 200;

/// One line for each fact.
pub(super) fn describe(keevee: &Path) -> Fallible<Vec<String>> {
    let cpu = field("/proc/cpuinfo", "model name").unwrap_or_default();
    let cores = std::thread::available_parallelism()?;
    let memory = field("/proc/meminfo", "MemTotal").unwrap_or_default();
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let folder = std::env::temp_dir();
    let mut facts = vec![
        format!("machine: {cores} cores ({cpu}), {memory} of memory, Linux {}", kernel.trim()),
        format!(
            "disk: {} takes {} µs (median of {SYNCS})",
            "a write of 4 KiB with its fdatasync",
            sync_micros(&folder)?
        ),
    ];
    for program in ["etcd", "redis-server", &*keevee.to_string_lossy()] {
        let output = Command::new(program).arg("--version").output();
        let text = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
        // One that is not there was not measured.
        facts.extend(text.ok().and_then(|text| Some(format!("version: {}", text.lines().next()?))));
    }
    Ok(facts)
}

fn field(path: &str, name: &str) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    let line = text.lines().find(|line| line.starts_with(name))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}

fn sync_micros(folder: &Path) -> Fallible<u128> {
    let folder = tempfile::tempdir_in(folder)?;
    let mut file = File::create(folder.path().join("file"))?;
    let mut times = Vec::new();
    for _ in 0..SYNCS {
        let start = Instant::now();
        file.write_all(&[0; 4096])?;
        file.sync_data()?;
        times.push(start.elapsed().as_micros());
    }
    times.sort_unstable();
    Ok(times[SYNCS / 2])
}
