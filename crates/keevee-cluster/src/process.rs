//! One node's process: found by its pid file, never taken for another.
//!
//! A pid file outlives a `kill -9`, and the system gives the pid away again. So a pid counts only if its
//! process runs `keevee server` with this very configuration file.

use std::fs::{self, File};
use std::io;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// The pid file that goes with a configuration file: `keevee.pid` beside `keevee.toml`.
pub fn pid_file(config: &Path) -> PathBuf {
    config.with_extension("pid")
}

/// The process that runs this configuration, if its pid file names one.
pub fn running(config: &Path) -> Option<u32> {
    let pid = fs::read_to_string(pid_file(config)).ok()?.trim().parse().ok()?;
    runs_config(pid, &absolute(config)).then_some(pid)
}

/// Writes the pid file of a process, at once or not at all.
pub fn write_pid_file(config: &Path, pid: u32) -> io::Result<()> {
    let path = pid_file(config);
    let draft = path.with_extension(format!("pid.{}", std::process::id()));
    fs::write(&draft, format!("{pid}\n"))?;
    fs::rename(&draft, &path)
}

/// Removes the pid file if it names this process.
pub fn remove_pid_file(config: &Path, pid: u32) {
    let path = pid_file(config);
    let names_it = |text: String| text.trim().parse() == Ok(pid);
    if fs::read_to_string(&path).is_ok_and(names_it) {
        // If it can't be removed it is stale, which every reader expects anyway.
        let _ = fs::remove_file(&path);
    }
}

/// Starts `keevee server` so that it outlives this program and the terminal's Ctrl-C; output goes to the end of `log`. The
/// variables of `environment` come on top of this program's own.
pub fn spawn(
    program: &Path,
    config: &Path,
    log: &Path,
    arguments: &[String],
    environment: &[(String, String)],
) -> io::Result<Child> {
    let output = File::options().create(true).append(true).open(log)?;
    Command::new(program)
        .arg("server")
        .arg("--config")
        .arg(absolute(config))
        .args(arguments)
        .envs(environment.iter().map(|(name, value)| (name, value)))
        .stdin(Stdio::null())
        .stdout(output.try_clone()?)
        .stderr(output)
        .process_group(0)
        .spawn()
}

/// Sends a signal, named without `SIG`.
pub fn signal(pid: u32, name: &'static str) -> Result<(), String> {
    // The shell's own `kill`: small systems have no program of that name.
    let output = Command::new("sh")
        .args(["-c", "kill -s \"$1\" \"$2\"", "sh", name, &pid.to_string()])
        .stdin(Stdio::null())
        .output()
        .map_err(|error| error.to_string())?;
    if output.status.success() {
        Ok(())
    } else {
        Err(String::from_utf8_lossy(&output.stderr).trim().to_owned())
    }
}

fn absolute(path: &Path) -> PathBuf {
    fs::canonicalize(path).unwrap_or_else(|_| path.to_owned())
}

/// True if the process is a `keevee server` with this configuration file.
fn runs_config(pid: u32, config: &Path) -> bool {
    let folder = PathBuf::from(format!("/proc/{pid}"));
    if Path::new("/proc/self/cmdline").exists() {
        let Ok(line) = fs::read(folder.join("cmdline")) else { return false };
        let arguments: Vec<String> =
            line.split(|byte| *byte == 0).map(|text| String::from_utf8_lossy(text).into()).collect();
        let from = fs::read_link(folder.join("cwd")).unwrap_or_default();
        let named = config_argument(&arguments).map(|path| absolute(&from.join(path)));
        return named.as_deref() == Some(config);
    }
    let output = Command::new("ps").args(["-p", &pid.to_string(), "-o", "command="]).output();
    let Ok(output) = output else { return false };
    let line = String::from_utf8_lossy(&output.stdout);
    names_config(line.trim(), config)
}

/// The configuration file among the arguments of a `keevee server`.
fn config_argument(arguments: &[String]) -> Option<&str> {
    let arguments = arguments.get(1..)?;
    arguments.iter().position(|argument| argument == "server")?;
    let joined = arguments.iter().find_map(|argument| argument.strip_prefix("--config="));
    let at = arguments.iter().position(|argument| argument == "--config");
    joined.or_else(|| Some(arguments.get(at? + 1)?.as_str()))
}

/// The same for a command line in one text, as `ps` prints it: where a word ends is not known for sure, and nor is
/// the folder that a relative path starts from.
fn names_config(line: &str, config: &Path) -> bool {
    let Some((program, rest)) = line.split_once(" server ") else { return false };
    if !program.ends_with("keevee") {
        return false;
    }
    if rest.contains(&*config.to_string_lossy()) {
        return true;
    }
    let words: Vec<String> =
        ["keevee", "server"].into_iter().chain(rest.split(' ')).map(str::to_owned).collect();
    let relative = config_argument(&words).map(|path| path.trim_start_matches("./"));
    relative.is_some_and(|path| !path.starts_with("..") && config.ends_with(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<String> {
        text.split(' ').map(str::to_owned).collect()
    }

    #[test]
    fn the_configuration_is_found_among_arguments() {
        for (line, config) in [
            ("keevee server --config /a/keevee.toml", Some("/a/keevee.toml")),
            ("./keevee server --log-level debug --config=keevee.toml", Some("keevee.toml")),
            ("keevee --config /a/keevee.toml", None),
            ("keevee server", None),
            ("keevee server --config", None),
            ("", None),
        ] {
            assert_eq!(config_argument(&words(line)), config, "{line}");
        }
    }

    #[test]
    fn the_configuration_is_found_in_a_line_of_ps() {
        let config = Path::new("/home/my user/tmp/data/node1/keevee.toml");
        for (line, ours) in [
            ("/bin/keevee server --config /home/my user/tmp/data/node1/keevee.toml", true),
            ("keevee server --config ./tmp/data/node1/keevee.toml", true),
            ("keevee server --config tmp/data/node2/keevee.toml", false),
            ("keevee server --config ../node1/keevee.toml", false),
            ("vi server --config tmp/data/node1/keevee.toml", false),
            ("vi /home/my user/tmp/data/node1/keevee.toml", false),
            ("(keevee)", false),
        ] {
            assert_eq!(names_config(line, config), ours, "{line}");
        }
    }

    #[test]
    fn a_recycled_pid_is_no_node() {
        let folder = tempfile::tempdir().expect("a folder");
        let config = folder.path().join("keevee.toml");
        fs::write(&config, "").expect("a file");
        assert_eq!(running(&config), None);
        write_pid_file(&config, std::process::id()).expect("a pid file");
        assert_eq!(running(&config), None, "this test is no node");
        remove_pid_file(&config, 1);
        assert!(pid_file(&config).exists(), "it names another process");
        remove_pid_file(&config, std::process::id());
        assert!(!pid_file(&config).exists());
    }
}
