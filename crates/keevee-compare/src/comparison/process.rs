//! A process that was started here, and what processes take of the machine, as Linux tells it.

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use crate::Fallible;

/// Linux tells the CPU time of processes in hundredths of a second, whatever its clock.
const TICK_MICROS: u64 = 10_000;

/// Killed when dropped.
pub(super) struct Process {
    child: Child,
    /// As it would be typed.
    pub(super) command: String,
}

impl Process {
    /// Starts a program in a folder; what it says of errors goes to `NAME.log` there.
    pub(super) fn start(program: &str, arguments: &[&str], folder: &Path, name: &str) -> Fallible<Process> {
        let mut command = Command::new(program);
        command.args(arguments).current_dir(folder).stdin(Stdio::null()).stdout(Stdio::piped());
        command.stderr(File::create(folder.join(format!("{name}.log")))?);
        let child = command.spawn().map_err(|error| format!("{program}: {error}"))?;
        let short = Path::new(program).file_name().unwrap_or_default().to_string_lossy();
        let typed = arguments.iter().map(|word| if word.is_empty() { "''" } else { word });
        let command = [&*short].into_iter().chain(typed).collect::<Vec<_>>().join(" ");
        let mut process = Process { child, command };
        // A pipe that nobody reads would stop those that say much.
        if !matches!(arguments.first(), Some(&("leader" | "follower" | "echo"))) {
            let output = process.child.stdout.take();
            std::thread::spawn(move || {
                output.map(|mut output| std::io::copy(&mut output, &mut std::io::sink()))
            });
        }
        Ok(process)
    }

    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Where it says that it listens: of the programs of this crate.
    pub(super) fn listens_at(&mut self) -> Fallible<String> {
        let output = self.child.stdout.take().ok_or("its output is taken")?;
        let mut line = String::new();
        BufReader::new(output).read_line(&mut line)?;
        let address = line.trim().strip_prefix("listening on ");
        Ok(address.ok_or_else(|| format!("`{}` does not listen", self.command))?.to_owned())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The CPU time of these processes together.
pub(super) fn cpu_micros(pids: &[u32]) -> u64 {
    pids.iter().filter_map(|pid| ticks(*pid)).sum::<u64>() * TICK_MICROS
}

/// The 14th and 15th field of `/proc/PID/stat`, of which the second is in parentheses.
fn ticks(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, fields) = stat.rsplit_once(')')?;
    fields.split_whitespace().skip(11).take(2).map(str::parse::<u64>).sum::<Result<u64, _>>().ok()
}

/// The memory that these processes have in RAM.
pub(super) fn resident_bytes(pids: &[u32]) -> u64 {
    let of = |pid: &u32| {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
        line.trim().strip_suffix(" kB")?.parse::<u64>().ok()
    };
    pids.iter().filter_map(of).sum::<u64>() * 1024
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_takes_time_and_memory() {
        let own = [std::process::id()];
        assert!(resident_bytes(&own) > 1 << 20);
        let start = cpu_micros(&own);
        while cpu_micros(&own) < start + 2 * TICK_MICROS {}
    }
}
