//! The ceiling as processes: it stores what it is given, and echo servers answer.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// Killed when dropped.
struct Started {
    child: Child,
    address: String,
}

impl Started {
    fn new(arguments: &[&str], folder: &Path) -> Started {
        let mut command = Command::new(env!("CARGO_BIN_EXE_keevee-compare"));
        command.args(arguments).current_dir(folder).stdin(Stdio::null()).stdout(Stdio::piped());
        let mut child = command.spawn().expect("the program");
        let mut line = String::new();
        let output = child.stdout.take().expect("its output");
        BufReader::new(output).read_line(&mut line).expect("a line");
        let address = line.trim().strip_prefix("listening on ").unwrap_or_default().to_owned();
        let started = Started { child, address };
        assert!(!started.address.is_empty(), "{arguments:?}: {line}");
        started
    }

    /// Sends all of it, and reads as much as is expected.
    fn assert_answers(&self, requests: &str, expected: &str) {
        let mut stream = TcpStream::connect(&self.address).expect("a connection");
        stream.set_read_timeout(Some(Duration::from_secs(60))).expect("set");
        stream.write_all(requests.as_bytes()).expect("sent");
        let mut answers = vec![0; expected.len()];
        stream.read_exact(&mut answers).expect("answers");
        assert_eq!(String::from_utf8_lossy(&answers), expected);
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

const SET: &str = "*3\r\n$3\r\nSET\r\n$5\r\ncolor\r\n$5\r\ngreen\r\n";
const GET: &str = "*2\r\n$3\r\nGET\r\n$5\r\ncolor\r\n";

#[test]
fn replicas_store_what_the_leader_answers_for() {
    let folder = tempfile::tempdir().expect("a folder");
    let [one, other] =
        ["one", "other"].map(|name| Started::new(&["follower", "--data", name], folder.path()));
    let followers = format!("{},{}", one.address, other.address);
    let leader = Started::new(&["leader", "--data", "leader", "--followers", &followers], folder.path());
    let requests = format!("{GET}{SET}{SET}{GET}*1\r\n$4\r\nPING\r\n{GET}");
    let value = "$5\r\ngreen\r\n";
    leader.assert_answers(&requests, &format!("$-1\r\n+OK\r\n+OK\r\n{value}-ERR unknown command\r\n{value}"));
    drop(other);
    leader.assert_answers(GET, value);
}

#[test]
fn echo_servers_answer() {
    let folder = tempfile::tempdir().expect("a folder");
    let resp = Started::new(&["echo", "--protocol", "resp"], folder.path());
    resp.assert_answers(&format!("{SET}{GET}"), "+OK\r\n$128\r\nxxx");
    let http = Started::new(&["echo", "--protocol", "http"], folder.path());
    http.assert_answers("PUT /kv/a HTTP/1.1\r\nhost: a\r\ncontent-length: 1\r\n\r\nb", "HTTP/1.1 200 OK\r\n");
}
