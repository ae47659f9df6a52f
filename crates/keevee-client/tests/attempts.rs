//! What the client makes of several attempts: against nodes that answer by a script.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use keevee_client::{Client, Consistency, Endpoint, ErrorKind, Expect, Options, Write};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

const WRITTEN: Step = Step::Answer(200, r#"{"version":7}"#);
const UNAVAILABLE: Step = Step::Answer(503, r#"{"kind":"unavailable","detail":"no leader"}"#);
const UNKNOWN: Step = Step::Answer(504, r#"{"kind":"outcome_unknown","detail":"no answer"}"#);
const CONFLICT: Step = Step::Answer(412, r#"{"kind":"conflict","detail":"version 3","version":3}"#);
const TOO_LARGE: Step = Step::Answer(413, r#"{"kind":"too_large","detail":"too large"}"#);
const EXPIRED: Step = Step::Answer(410, r#"{"kind":"request_expired","detail":"too old"}"#);

/// What a node does with a request.
#[derive(Clone, Copy)]
enum Step {
    /// Answers with this status and body.
    Answer(u16, &'static str),
    /// Breaks the connection.
    Break,
    /// Never answers.
    Hang,
}

/// A node that takes one step for each request, and the last one again and again.
struct Node {
    endpoint: Endpoint,
    requests: Arc<Mutex<Vec<String>>>,
}

impl Node {
    async fn start(steps: &'static [Step]) -> Node {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let endpoint = listener.local_addr().expect("an address").to_string().parse().expect("an endpoint");
        let requests = Arc::new(Mutex::new(Vec::new()));
        let seen = requests.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, steps, seen.clone()));
            }
        });
        Node { endpoint, requests }
    }

    fn requests(&self) -> Vec<String> {
        self.requests.lock().expect("no panic").clone()
    }

    /// The request ids of all requests.
    fn ids(&self) -> Vec<String> {
        let id = |request: &String| {
            let line = request.lines().find_map(|line| line.strip_prefix("idempotency-key: "));
            line.unwrap_or_default().to_owned()
        };
        self.requests().iter().map(id).collect()
    }
}

async fn serve(mut stream: TcpStream, steps: &'static [Step], seen: Arc<Mutex<Vec<String>>>) {
    while let Some(request) = read_request(&mut stream).await {
        let number = {
            let mut seen = seen.lock().expect("no panic");
            seen.push(request);
            seen.len() - 1
        };
        match steps[number.min(steps.len() - 1)] {
            Step::Answer(status, body) => {
                let date = "Sun, 06 Nov 1994 08:49:37 GMT";
                let head = format!("HTTP/1.1 {status} x\r\ndate: {date}\r\netag: \"7\"\r\n");
                let answer = format!("{head}content-length: {}\r\n\r\n{body}", body.len());
                if stream.write_all(answer.as_bytes()).await.is_err() {
                    return;
                }
            }
            Step::Break => return,
            Step::Hang => std::future::pending().await,
        }
    }
}

/// Reads a request whose body is at most `value`; `None` at the end of the connection.
async fn read_request(stream: &mut TcpStream) -> Option<String> {
    let mut bytes = Vec::new();
    loop {
        let text = String::from_utf8_lossy(&bytes).into_owned();
        let complete = match text.split_once("\r\n\r\n") {
            Some((head, body)) => !head.starts_with("PUT") || body == "value",
            None => false,
        };
        if complete {
            return Some(text.to_ascii_lowercase());
        }
        match stream.read_buf(&mut bytes).await {
            Ok(0) | Err(_) => return None,
            Ok(_) => {}
        }
    }
}

fn client(nodes: &[&Node]) -> Client {
    let endpoints = nodes.iter().map(|node| node.endpoint.clone()).collect();
    let options = Options {
        timeout: Duration::from_secs(2),
        attempt_timeout: Duration::from_millis(300),
        connect_timeout: Duration::from_secs(1),
    };
    Client::new(endpoints, options).expect("endpoints")
}

/// Puts through these nodes: the version, or the kind of the error.
async fn put(nodes: &[&Node]) -> Result<u64, ErrorKind> {
    let put = client(nodes).put(b"key", "value", Write::default()).await;
    put.map_err(|error| error.kind)
}

#[tokio::test]
async fn a_refusal_is_tried_elsewhere_under_the_same_id() {
    let (one, two) = (Node::start(&[UNAVAILABLE]).await, Node::start(&[WRITTEN]).await);
    assert_eq!(put(&[&one, &two]).await, Ok(7));
    assert_eq!(one.ids(), two.ids());
    assert!(!one.ids()[0].is_empty());
}

#[tokio::test]
async fn a_lost_answer_is_asked_for_again_under_the_same_id() {
    for step in [&[UNKNOWN, WRITTEN], &[Step::Break, WRITTEN], &[Step::Hang, WRITTEN]] {
        let node = Node::start(step).await;
        assert_eq!(put(&[&node]).await, Ok(7));
        let ids = node.ids();
        assert!(ids.len() == 2 && ids[0] == ids[1], "{ids:?}");
    }
}

#[tokio::test]
async fn a_node_that_cannot_be_reached_is_passed_over() {
    let closed = TcpListener::bind("127.0.0.1:0").await.expect("a port").local_addr().expect("an address");
    let gone = Node { endpoint: closed.to_string().parse().expect("an endpoint"), requests: Arc::default() };
    let node = Node::start(&[WRITTEN]).await;
    assert_eq!(put(&[&gone, &node]).await, Ok(7));
    assert_eq!(put(&[&gone]).await, Err(ErrorKind::Unavailable));
}

#[tokio::test]
async fn refusals_until_the_end_mean_that_nothing_happened() {
    let node = Node::start(&[UNAVAILABLE]).await;
    assert_eq!(put(&[&node]).await, Err(ErrorKind::Unavailable));
    assert!(node.requests().len() > 2);
}

#[tokio::test]
async fn a_refusal_says_nothing_about_an_earlier_lost_answer() {
    for refusal in [UNAVAILABLE, TOO_LARGE, EXPIRED] {
        let steps: &'static [Step] = Box::leak(Box::new([UNKNOWN, refusal]));
        let node = Node::start(steps).await;
        assert_eq!(put(&[&node]).await, Err(ErrorKind::OutcomeUnknown));
    }
    let node = Node::start(&[Step::Break, UNAVAILABLE]).await;
    assert_eq!(put(&[&node]).await, Err(ErrorKind::OutcomeUnknown));
}

#[tokio::test]
async fn a_conflict_answers_for_all_attempts() {
    let node = Node::start(&[UNKNOWN, CONFLICT]).await;
    let write = Write::only_if(Expect::Version(2));
    let error = client(&[&node]).put(b"key", "value", write).await.expect_err("a conflict");
    assert_eq!((error.kind, error.version), (ErrorKind::Conflict, Some(3)));
    assert!(node.requests()[0].contains("if-match: \"2\""));
}

#[tokio::test]
async fn an_answer_that_is_final_is_not_asked_for_again() {
    let node = Node::start(&[TOO_LARGE, WRITTEN]).await;
    assert_eq!(put(&[&node]).await, Err(ErrorKind::TooLarge));
    assert_eq!(node.requests().len(), 1);
}

#[tokio::test]
async fn a_wrong_clock_is_set_by_the_refusal() {
    let node = Node::start(&[EXPIRED, WRITTEN]).await;
    assert_eq!(put(&[&node]).await, Ok(7));
    let ids = node.ids();
    let seconds = |id: &str| {
        let id = uuid::Uuid::parse_str(id).expect("a UUID");
        id.get_timestamp().expect("version 7").to_unix().0
    };
    assert!((784_111_777..784_111_877).contains(&seconds(&ids[1])), "{ids:?}");
    // An id that the caller chose is the caller's affair.
    let node = Node::start(&[EXPIRED, WRITTEN]).await;
    let write = Write { condition: None, request_id: Some("mine".to_owned()) };
    let error = client(&[&node]).put(b"key", "value", write).await.expect_err("expired");
    assert_eq!(error.kind, ErrorKind::RequestExpired);
}

#[tokio::test]
async fn a_read_whose_answer_is_lost_is_only_late() {
    let node = Node::start(&[Step::Break, Step::Answer(200, "bytes")]).await;
    let value = client(&[&node]).get(b"key", Consistency::Linearizable).await.expect("a read");
    assert_eq!(value.map(|value| (value.version, value.bytes)), Some((7, "bytes".into())));
    let node = Node::start(&[Step::Break]).await;
    let error = client(&[&node]).get(b"key", Consistency::Stale).await.expect_err("no answer");
    assert_eq!(error.kind, ErrorKind::Unavailable);
    let first = node.requests()[0].clone();
    assert!(first.starts_with("get /kv/key?consistency=stale&timeout_ms="), "{first}");
}

#[tokio::test]
async fn one_connection_serves_one_call_after_the_other() {
    let node = Node::start(&[WRITTEN]).await;
    let client = client(&[&node]);
    for _ in 0..10 {
        client.put(b"key", "value", Write::default()).await.expect("a write");
    }
    assert_eq!(node.requests().len(), 10);
    let ids = node.ids();
    assert!(ids.windows(2).all(|pair| pair[0] != pair[1]), "each call has an id of its own");
}
