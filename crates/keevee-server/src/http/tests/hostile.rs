//! Clients of HTTP/1 that are slow on purpose, and requests that can be read in two ways.

use super::*;

/// Between two bytes of a slow client.
const PAUSE: Duration = Duration::from_millis(5);
const SHORT: Duration = Duration::from_millis(300);

async fn start(bounds: Bounds) -> Server {
    Server::start_within(bounds, Duration::from_secs(30)).await
}

/// Sends this, then a byte of `more` now and then: all that comes until the connection ends.
async fn slowly(server: &Server, first: &str, more: &str) -> String {
    let stream = TcpStream::connect(server.address).await.unwrap();
    let (mut reads, mut writes) = stream.into_split();
    writes.write_all(first.as_bytes()).await.unwrap();
    let trickle = async {
        for byte in more.bytes().cycle() {
            if writes.write_all(&[byte]).await.is_err() {
                break;
            }
            tokio::time::sleep(PAUSE).await;
        }
        std::future::pending().await
    };
    let mut answer = Vec::new();
    // Closed or reset, it ends.
    let end = async {
        let _ = reads.read_to_end(&mut answer).await;
    };
    let ended = async {
        tokio::select! { () = end => {}, () = trickle => {} }
    };
    timeout(DEADLINE, ended).await.expect("it is cut off");
    String::from_utf8_lossy(&answer).into_owned()
}

/// Sends this and no more: all that comes until the connection ends.
async fn to_the_end(server: &Server, request: &str) -> String {
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    timeout(DEADLINE, stream.read_to_end(&mut answer)).await.expect("an end").unwrap();
    String::from_utf8_lossy(&answer).into_owned()
}

const GET: &str = "GET /healthz HTTP/1.1\r\nhost: h\r\n\r\n";

#[tokio::test]
async fn who_never_ends_a_head_is_cut_off_and_who_is_idle_is_not() {
    let server = start(Bounds { head_timeout: SHORT, ..Bounds::default() }).await;
    let mut idle = TcpStream::connect(server.address).await.unwrap();
    let mut ask = async || {
        let mut buffer = [0; 4096];
        idle.write_all(GET.as_bytes()).await.unwrap();
        let length = timeout(DEADLINE, idle.read(&mut buffer)).await.unwrap().unwrap();
        assert!(buffer[..length].starts_with(b"HTTP/1.1 200 "));
    };
    ask().await;
    // From the first byte, in the middle of a head, of the head after an answer, and of one that came with it.
    assert_eq!(slowly(&server, "", "G").await, "");
    assert_eq!(slowly(&server, "GET /healthz HTTP/1.1\r\n", "x: y\r\n").await, "");
    assert!(slowly(&server, GET, "GET / HTTP/1.1\r\nx: ").await.starts_with("HTTP/1.1 200 "));
    assert!(slowly(&server, &format!("{GET}GET"), "x").await.starts_with("HTTP/1.1 200 "));
    // By now this one has been silent for longer.
    ask().await;
}

#[tokio::test]
async fn who_never_ends_a_body_is_told_so_and_cut_off() {
    let server = Server::start_within(Bounds::default(), SHORT).await;
    let by_length = "PUT /kv/k HTTP/1.1\r\nhost: h\r\ncontent-length: 50000\r\n\r\n";
    let answer = slowly(&server, by_length, "v").await;
    assert!(answer.starts_with("HTTP/1.1 408 ") && answer.contains("did not arrive"), "{answer}");
    let chunked = "PUT /kv/k HTTP/1.1\r\nhost: h\r\ntransfer-encoding: chunked\r\n\r\n";
    let answer = slowly(&server, chunked, "1\r\nv\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 408 "), "{answer}");
    // Of one that nobody asked for.
    let unwanted = "GET /kv/k HTTP/1.1\r\nhost: h\r\ncontent-length: 50000\r\n\r\n";
    assert!(slowly(&server, unwanted, "v").await.starts_with("HTTP/1.1 404 "));
    assert!(server.asked_only_to_read());
    assert_eq!(server.put("/kv/k", b"v").await.status, StatusCode::OK);
}

impl Server {
    fn asked_only_to_read(&self) -> bool {
        let is_read = |action: &Action| matches!(action, Action::Get { .. });
        self.store
            .asked()
            .iter()
            .all(|(_, command)| command.operations.iter().all(|one| is_read(&one.action)))
    }
}

#[tokio::test]
async fn who_takes_no_answer_is_cut_off() {
    let server = start(Bounds { stalled_timeout: SHORT, ..Bounds::default() }).await;
    server.put("/kv/k", &vec![7; VALUE_BYTES_MAX]).await;
    let mut greedy = TcpStream::connect(server.address).await.unwrap();
    let asks = "GET /kv/k HTTP/1.1\r\nhost: h\r\n\r\n".repeat(100);
    // Sends until it is cut off, and never reads.
    let cut_off = async { while greedy.write_all(asks.as_bytes()).await.is_ok() {} };
    timeout(DEADLINE, cut_off).await.expect("it is cut off");
    assert_eq!(server.get("/kv/k").await.body.len(), VALUE_BYTES_MAX);
}

#[tokio::test]
async fn lengths_that_can_be_read_in_two_ways_are_refused() {
    let server = Server::start().await;
    let both = ["content-length: 3", "transfer-encoding: chunked"];
    for fields in [
        &both[..],
        &[both[1], both[0]],
        &[both[1], "x: y", "Content-Length:0"],
        &["content-length: 3", "content-length: 4"],
        &["content-length: 3, 4"],
        &["content-length: -3"],
        &["content-length: +3"],
        &["content-length: 3x"],
        &["content-length: 99999999999999999999999"],
        &["content-length : 3"],
        &["transfer-encoding: gzip"],
        &["transfer-encoding: chunked, identity"],
        &["transfer-encoding : chunked"],
    ] {
        let head = format!("PUT /kv/k HTTP/1.1\r\nhost: h\r\n{}\r\n\r\n", fields.join("\r\n"));
        let answer = to_the_end(&server, &format!("{head}3\r\nabc\r\n0\r\n\r\n{GET}")).await;
        assert!(answer.starts_with("HTTP/1.1 400 "), "{fields:?}: {answer}");
        assert_eq!(answer.matches("HTTP/1.1 ").count(), 1, "{fields:?}: {answer}");
    }
    assert!(server.store.asked().is_empty());
    // Behind a good one on the same connection it is found too, and what is in a body is none.
    let text = format!("PUT /kv/k HTTP/1.1\r\n{}\r\n\r\n", both.join("\r\n"));
    let length = text.len();
    let good =
        format!("PUT /kv/k HTTP/1.1\r\nhost: h\r\n{}\r\n\r\n{length:x}\r\n{text}\r\n0\r\n\r\n", both[1]);
    let answer = to_the_end(&server, &format!("{good}{GET}{text}0\r\n\r\n{GET}")).await;
    let statuses: Vec<&str> = answer.split("HTTP/1.1 ").skip(1).map(|answer| &answer[..3]).collect();
    assert_eq!(statuses, ["200", "200", "400"]);
    assert_eq!(server.get("/kv/k").await.body, text);
}

#[tokio::test]
async fn chunks_without_sense_are_refused() {
    let server = Server::start().await;
    let head = "PUT /kv/k HTTP/1.1\r\nhost: h\r\ntransfer-encoding: chunked\r\n\r\n";
    for chunks in
        ["x\r\nabc\r\n", "ffffffffffffffffff\r\n", "-1\r\n", "3\r\nabcd\r\n0\r\n\r\n", "3 x\r\nabc\r\n"]
    {
        let answer = to_the_end(&server, &format!("{head}{chunks}")).await;
        assert!(answer.starts_with("HTTP/1.1 400 "), "{chunks}: {answer}");
    }
    assert!(server.store.asked().is_empty());
}

#[tokio::test]
async fn a_head_has_a_bound() {
    let server = Server::start().await;
    let lines = "x: y\r\n".repeat(101);
    let long = format!("x: {}\r\n", "y".repeat(200_000));
    for more in [lines, long] {
        let answer = server.send_raw(&format!("GET /healthz HTTP/1.1\r\n{more}\r\n")).await;
        assert!(answer.starts_with("HTTP/1.1 431 "), "{answer}");
    }
}
