//! A small process under each fault: this test's own program, started again.
#![cfg(all(target_os = "linux", target_env = "gnu"))]

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use keevee_shim::{Disk, Fault, Injected, Shim};
use tempfile::TempDir;

const FOLDER: &str = "KEEVEE_SHIM_TEST_FOLDER";

const EIO: &str = "error 5";
const ENOSPC: &str = "error 28";

/// Carries out a line of the test at a time, and tells what came of it.
#[test]
#[ignore = "run by the others, in a process of its own"]
fn a_child_that_obeys() {
    let Ok(folder) = std::env::var(FOLDER) else { return };
    let folder = PathBuf::from(folder);
    // Opened before any fault is set.
    let mut known = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(folder.join("known"))
        .unwrap();
    println!("\nready");
    for line in io::stdin().lines() {
        let told = match obey(line.unwrap().trim(), &folder, &mut known) {
            Ok(said) => format!("ok {said}"),
            Err(error) => format!("error {}", error.raw_os_error().unwrap()),
        };
        println!("said {told}");
    }
}

fn obey(line: &str, folder: &Path, known: &mut File) -> io::Result<String> {
    let (order, rest) = line.split_once(' ').unwrap_or((line, ""));
    let said = match order {
        "append" => {
            let at = known.metadata()?.len();
            known.write_all_at(rest.as_bytes(), at)?;
            String::new()
        }
        "overwrite" => known.write_all_at(rest.as_bytes(), 0).map(|()| String::new())?,
        "read" => {
            let mut bytes = vec![0; known.metadata()?.len() as usize];
            known.read_exact_at(&mut bytes, 0)?;
            String::from_utf8_lossy(&bytes).into_owned()
        }
        "cut" => known.set_len(rest.parse().unwrap()).map(|()| String::new())?,
        "sync" => known.sync_data().map(|()| String::new())?,
        "durable" => {
            let durable = custom_flags(OpenOptions::new().write(true)).open(folder.join("known"))?;
            durable.write_all_at(rest.as_bytes(), 0).map(|()| String::new())?
        }
        "make" => fs::write(folder.join(rest), rest).map(|()| String::new())?,
        "make-elsewhere" => fs::write(folder.parent().unwrap().join(rest), rest).map(|()| String::new())?,
        "remove" => fs::remove_file(folder.join(rest)).map(|()| String::new())?,
        "time" => SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs().to_string(),
        other => panic!("{other}"),
    };
    Ok(said)
}

fn custom_flags(options: &mut OpenOptions) -> &mut OpenOptions {
    use std::os::unix::fs::OpenOptionsExt;
    const O_DSYNC: i32 = 0o10000;
    options.custom_flags(O_DSYNC)
}

/// A child, its disk, and its folder.
struct Run {
    temp: TempDir,
    disk: Disk,
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Run {
    fn start() -> Run {
        let temp = TempDir::new().unwrap();
        let shim = Shim::install(temp.path()).unwrap();
        let folder = temp.path().join("data");
        fs::create_dir(&folder).unwrap();
        let disk = Disk::new(&shim, &temp.path().join("control"), &folder).unwrap();
        let (child, input, output) = spawn(&disk, &folder);
        Run { temp, disk, child, input, output }
    }

    fn folder(&self) -> PathBuf {
        self.temp.path().join("data")
    }

    fn order(&mut self, line: &str) {
        writeln!(self.input, "{line}").unwrap();
    }

    fn answer(&mut self) -> String {
        loop {
            let mut line = String::new();
            assert!(self.output.read_line(&mut line).unwrap() > 0, "the child ended");
            if let Some(said) = line.trim_end().strip_prefix("said ") {
                return said.trim_end().to_owned();
            }
        }
    }

    fn ask(&mut self, line: &str) -> String {
        self.order(line);
        self.answer()
    }

    fn set(&self, fault: Fault) {
        self.disk.set(fault).unwrap();
    }

    fn injected(&self) -> Injected {
        self.disk.injected().unwrap()
    }

    fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    fn start_again(&mut self) {
        (self.child, self.input, self.output) = spawn(&self.disk, &self.folder());
    }

    fn known(&self) -> String {
        String::from_utf8_lossy(&fs::read(self.folder().join("known")).unwrap()).into_owned()
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn spawn(disk: &Disk, folder: &Path) -> (Child, ChildStdin, BufReader<ChildStdout>) {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "a_child_that_obeys", "--ignored", "--nocapture"])
        .envs(disk.environment())
        .env(FOLDER, folder)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let input = child.stdin.take().unwrap();
    let mut output = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    while line.trim_end() != "ready" {
        line.clear();
        assert!(output.read_line(&mut line).unwrap() > 0, "the child ended");
    }
    (child, input, output)
}

#[test]
fn without_a_fault_nothing_is_wrong() {
    let mut run = Run::start();
    assert_eq!(run.ask("append one"), "ok");
    assert_eq!(run.ask("sync"), "ok");
    assert_eq!(run.ask("read"), "ok one");
    assert_eq!(run.injected(), Injected::default());
}

#[test]
fn syncs_fail_until_it_is_healed() {
    let mut run = Run::start();
    run.set(Fault::FailSync);
    assert_eq!(run.ask("append one"), "ok");
    assert_eq!(run.ask("sync"), EIO);
    assert_eq!(run.ask("durable two"), EIO, "a write that is a sync");
    assert_eq!(run.known(), "one");
    assert_eq!(run.injected().failed_syncs, 2);
    run.disk.heal().unwrap();
    assert_eq!(run.ask("sync"), "ok");
    assert_eq!(run.ask("durable two"), "ok");
    assert_eq!(run.known(), "two");
}

#[test]
fn a_sync_stalls_until_it_is_healed() {
    let mut run = Run::start();
    run.set(Fault::StallSync(Duration::MAX));
    run.order("durable two");
    while run.injected().stalled_syncs == 0 {
        std::thread::yield_now();
    }
    assert_eq!(run.known(), "", "it waits");
    run.disk.heal().unwrap();
    assert_eq!(run.answer(), "ok");
    assert_eq!(run.known(), "two");
    run.set(Fault::StallSync(Duration::from_millis(1)));
    assert_eq!(run.ask("sync"), "ok", "and no longer than it says");
    assert_eq!(run.injected().stalled_syncs, 2);
}

#[test]
fn a_full_disk_takes_what_needs_no_room() {
    let mut run = Run::start();
    assert_eq!(run.ask("append one"), "ok");
    assert_eq!(run.ask("make there"), "ok");
    run.set(Fault::Full);
    assert_eq!(run.ask("append two"), ENOSPC);
    assert_eq!(run.ask("make new"), ENOSPC);
    assert!(!run.folder().join("new").exists());
    assert_eq!(run.ask("overwrite ONE"), "ok");
    assert_eq!(run.ask("remove there"), "ok");
    assert_eq!(run.ask("make-elsewhere other"), "ok", "only what is below the folder");
    assert_eq!(run.known(), "ONE");
    assert_eq!(run.injected().refused_full, 2);
    run.disk.heal().unwrap();
    assert_eq!(run.ask("append two"), "ok");
}

#[test]
fn reads_and_writes_fail() {
    let mut run = Run::start();
    assert_eq!(run.ask("append one"), "ok");
    run.set(Fault::FailReads);
    assert_eq!(run.ask("read"), EIO);
    assert_eq!(run.ask("append two"), "ok");
    run.set(Fault::FailWrites);
    assert_eq!(run.ask("append three"), EIO);
    assert_eq!(run.ask("cut 0"), EIO);
    let Injected { failed_reads, failed_writes, .. } = run.injected();
    assert_eq!((failed_reads, failed_writes), (1, 2));
    assert_eq!(run.known(), "onetwo");
}

#[test]
fn one_bit_is_flipped_once() {
    let mut run = Run::start();
    run.set(Fault::FlipWritten { ending: ".other", seed: 1 });
    assert_eq!(run.ask("append 0000"), "ok");
    assert_eq!(run.known(), "0000", "its name ends otherwise");
    run.set(Fault::FlipWritten { ending: "known", seed: 3 });
    assert_eq!(run.ask("overwrite 0000"), "ok");
    let written = fs::read(run.folder().join("known")).unwrap();
    let flipped: u32 = written.iter().map(|byte| (byte ^ b'0').count_ones()).sum();
    assert_eq!(flipped, 1);
    assert_eq!(run.ask("overwrite 1111"), "ok");
    assert_eq!(run.known(), "1111", "once");
    run.set(Fault::FlipRead { ending: "", seed: 3 });
    assert_ne!(run.ask("read"), "ok 1111");
    assert_eq!(run.ask("read"), "ok 1111");
    let Injected { flipped_written, flipped_read, .. } = run.injected();
    assert_eq!((flipped_written, flipped_read), (1, 1));
}

#[test]
fn the_wall_clock_is_off() {
    let mut run = Run::start();
    let time = |run: &mut Run| -> u64 { run.ask("time").trim_start_matches("ok ").parse().unwrap() };
    let before = time(&mut run);
    run.set(Fault::ClockOffset(3_600_000_000));
    let ahead = time(&mut run);
    assert!((3_590..7_200).contains(&(ahead - before)), "{before} {ahead}");
    run.set(Fault::ClockOffset(-86_400_000_001));
    let behind = time(&mut run);
    assert!((80_000..86_402).contains(&(before - behind)), "{before} {behind}");
    assert!(run.injected().clock_reads > 0);
}

#[test]
fn what_was_not_synced_is_lost_with_the_process() {
    let mut run = Run::start();
    assert_eq!(run.ask("append before"), "ok");
    run.set(Fault::DropUnsynced);
    assert_eq!(run.ask("append -synced"), "ok");
    assert_eq!(run.ask("sync"), "ok");
    assert_eq!(run.ask("append -lost"), "ok");
    assert_eq!(run.ask("overwrite LOST"), "ok");
    assert_eq!(run.ask("cut 3"), "ok");
    assert_eq!(run.ask("make gone"), "ok");
    assert_eq!(run.ask("remove gone"), "ok");
    assert_eq!(run.ask("make empty"), "ok");
    run.kill();
    assert_eq!(run.known(), "LOS");
    assert_eq!(run.disk.drop_unsynced().unwrap(), 4);
    assert_eq!(run.known(), "before-synced");
    assert_eq!(fs::read(run.folder().join("empty")).unwrap(), b"");
    // The next process begins with nothing to lose.
    run.start_again();
    assert_eq!(run.ask("append -kept"), "ok");
    assert_eq!(run.ask("sync"), "ok");
    run.kill();
    assert_eq!(run.disk.drop_unsynced().unwrap(), 0);
    assert_eq!(run.known(), "before-synced-kept");
}

#[test]
fn what_was_remembered_before_a_pause_of_the_fault_is_forgotten() {
    let mut run = Run::start();
    run.set(Fault::DropUnsynced);
    assert_eq!(run.ask("append one"), "ok");
    run.disk.heal().unwrap();
    assert_eq!(run.ask("sync"), "ok");
    run.set(Fault::DropUnsynced);
    assert_eq!(run.ask("append two"), "ok");
    run.kill();
    assert_eq!(run.disk.drop_unsynced().unwrap(), 1);
    assert_eq!(run.known(), "one");
}

#[test]
fn the_control_file_is_not_below_the_folder() {
    let temp = TempDir::new().unwrap();
    let shim = Shim::install(temp.path()).unwrap();
    let refused = Disk::new(&shim, &temp.path().join("control"), temp.path()).unwrap_err();
    assert_eq!(refused.kind(), io::ErrorKind::InvalidInput);
}
