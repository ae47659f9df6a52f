//! The client: finds a node that answers, retries, and says what is known in the end.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http::header::{DATE, HeaderName, IF_MATCH, IF_NONE_MATCH};
use http::{HeaderValue, Method};
use keevee_core::command::Expect;
use keevee_core::error::ErrorKind;
use tokio::time::{Instant, sleep, timeout};

use crate::answer::{Answer, Error, NodeStatus, PeerStatus, Value};
use crate::connection::{Connection, SendError, key_path, request, value_or_absent};
use crate::endpoint::{Endpoint, EndpointError};
use crate::server_time::ServerTime;

const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");

/// How patient a client is.
#[derive(Clone, Debug)]
pub struct Options {
    /// How long one call may take, all its attempts together.
    pub timeout: Duration,
    /// How long one node may take to answer before another is asked. The node is told, so that its own answer,
    /// which says what is known, mostly comes before that.
    pub attempt_timeout: Duration,
    /// How long connecting to one node may take.
    pub connect_timeout: Duration,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            timeout: Duration::from_secs(15),
            attempt_timeout: Duration::from_secs(4),
            connect_timeout: Duration::from_secs(1),
        }
    }
}

/// How fresh a read must be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Consistency {
    /// It sees every write acknowledged before the read was sent.
    #[default]
    Linearizable,
    /// The asked node's own state, however old.
    Stale,
}

/// What goes with a write.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Write {
    /// What must hold of the key, or nothing happens ([`ErrorKind::Conflict`]).
    pub condition: Option<Expect>,
    /// Set it to continue, under its id, a write that an earlier call left unknown. Otherwise each call mints its own.
    pub request_id: Option<String>,
}

impl Write {
    /// A write that happens only if this holds of its key.
    pub fn only_if(condition: Expect) -> Write {
        Write { condition: Some(condition), request_id: None }
    }
}

/// A client of one cluster. Cheap to clone; clones share connections.
#[derive(Clone, Debug)]
pub struct Client {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    options: Options,
    pools: Vec<Pool>,
    /// The endpoint that answered last: the next call starts there.
    preferred: AtomicUsize,
    time: ServerTime,
}

/// One endpoint's idle connections.
#[derive(Debug)]
struct Pool {
    endpoint: Endpoint,
    idle: Mutex<Vec<Connection>>,
}

/// One call of the API, to be sent as often as it takes.
struct Call {
    method: Method,
    path: String,
    headers: Vec<(HeaderName, HeaderValue)>,
    body: Bytes,
}

/// What one attempt brought.
enum Attempt {
    /// The answer; or an error that no further attempt will change.
    Final(Result<Answer, Error>),
    /// Nothing happened: another node, or another time, may do better.
    Refused(Error),
    /// It may have happened, or may yet.
    Unknown(Error),
}

impl Client {
    /// A client of the cluster that these nodes belong to. Connects at the first call.
    pub fn new(endpoints: Vec<Endpoint>, options: Options) -> Result<Client, EndpointError> {
        if endpoints.is_empty() {
            return Err(EndpointError::Empty);
        }
        let pool = |endpoint| Pool { endpoint, idle: Mutex::new(Vec::new()) };
        let pools = endpoints.into_iter().map(pool).collect();
        let (preferred, time) = (AtomicUsize::new(0), ServerTime::default());
        Ok(Client { shared: Arc::new(Shared { options, pools, preferred, time }) })
    }

    /// Sets a key: returns its new version.
    pub async fn put(&self, key: &[u8], value: impl Into<Bytes>, write: Write) -> Result<u64, Error> {
        self.write(Method::PUT, key, value.into(), write).await?.version()
    }

    /// Reads a key: `None` if it holds no value.
    pub async fn get(&self, key: &[u8], consistency: Consistency) -> Result<Option<Value>, Error> {
        let mut path = key_path(key);
        if consistency == Consistency::Stale {
            path.push_str("?consistency=stale");
        }
        value_or_absent(self.read(path).await.and_then(Answer::into_value).map_err(read_failure))
    }

    /// Removes a key: returns true if it held a value.
    pub async fn delete(&self, key: &[u8], write: Write) -> Result<bool, Error> {
        self.write(Method::DELETE, key, Bytes::new(), write).await?.deleted()
    }

    /// The state of a node (the first that answers) and its shards.
    pub async fn status(&self) -> Result<NodeStatus, Error> {
        self.read("/v1/cluster/status".to_owned()).await?.json().map_err(read_failure)
    }

    /// All nodes of the cluster, as the first node that answers sees them.
    pub async fn nodes(&self) -> Result<Vec<PeerStatus>, Error> {
        self.read("/v1/cluster/nodes".to_owned()).await?.json().map_err(read_failure)
    }

    /// True if the asked node leads the first data shard. Ask a client of one endpoint.
    pub async fn is_leader(&self) -> Result<bool, Error> {
        self.read("/is_leader".to_owned()).await?.json().map_err(read_failure)
    }

    async fn read(&self, path: String) -> Result<Answer, Error> {
        let (headers, body) = (Vec::new(), Bytes::new());
        self.call(Call { method: Method::GET, path, headers, body }).await
    }

    async fn write(&self, method: Method, key: &[u8], body: Bytes, write: Write) -> Result<Answer, Error> {
        let mut headers = Vec::with_capacity(2);
        headers.extend(write.condition.map(condition_header));
        let minted = write.request_id.is_none();
        let id = match write.request_id {
            Some(id) => id,
            None => self.shared.time.mint().to_string(),
        };
        let id = HeaderValue::from_str(&id)
            .map_err(|_| Error::new(ErrorKind::Invalid, "a request id must be visible ASCII characters"))?;
        headers.push((IDEMPOTENCY_KEY, id));
        let call = Call { method, path: key_path(key), headers, body };
        self.shared.attempt_all(call, minted).await
    }

    async fn call(&self, call: Call) -> Result<Answer, Error> {
        self.shared.attempt_all(call, false).await
    }
}

fn condition_header(condition: Expect) -> (HeaderName, HeaderValue) {
    match condition {
        Expect::Absent => (IF_NONE_MATCH, HeaderValue::from_static("*")),
        Expect::Present => (IF_MATCH, HeaderValue::from_static("*")),
        Expect::Version(version) => {
            let etag = format!("\"{version}\"");
            // Digits in quotes are always a header value.
            (IF_MATCH, HeaderValue::from_str(&etag).unwrap_or(HeaderValue::from_static("\"0\"")))
        }
    }
}

impl Shared {
    /// Sends the call to one node after the other until one answers for good or the time is up.
    async fn attempt_all(&self, mut call: Call, mut may_mint_anew: bool) -> Result<Answer, Error> {
        let deadline = Instant::now() + self.options.timeout;
        let mut unknown: Option<Error> = None;
        let mut backoff = Backoff::default();
        let mut turn = self.preferred.load(Ordering::Relaxed);
        for tried in 1.. {
            let number = turn % self.pools.len();
            let refusal = match self.attempt(&self.pools[number], &call, deadline).await {
                Attempt::Final(Err(error))
                    if error.kind == ErrorKind::RequestExpired && may_mint_anew && unknown.is_none() =>
                {
                    // Our clock is wrong, not the request: `attempt` learned the servers' time.
                    may_mint_anew = false;
                    self.mint_anew(&mut call);
                    continue;
                }
                Attempt::Final(result) => {
                    self.preferred.store(number, Ordering::Relaxed);
                    return result.map_err(|error| covering_all(error, unknown));
                }
                Attempt::Unknown(error) => {
                    unknown = Some(error.clone());
                    error
                }
                Attempt::Refused(error) => error,
            };
            turn += 1;
            if tried % self.pools.len() == 0 {
                let pause = backoff.next();
                if Instant::now() + pause >= deadline {
                    return Err(covering_all(refusal, unknown));
                }
                sleep(pause).await;
            }
            if Instant::now() >= deadline {
                return Err(covering_all(refusal, unknown));
            }
        }
        unreachable!("the loop ends by its deadline")
    }

    fn mint_anew(&self, call: &mut Call) {
        let id = HeaderValue::from_str(&self.time.mint().to_string());
        for (name, value) in &mut call.headers {
            if let (true, Ok(id)) = (*name == IDEMPOTENCY_KEY, &id) {
                *value = id.clone();
            }
        }
    }

    async fn attempt(&self, pool: &Pool, call: &Call, deadline: Instant) -> Attempt {
        // A connection that broke while it was idle says nothing about the node: a new one is tried.
        while let Some(connection) = pool.take() {
            match self.send(pool, connection, call, deadline).await {
                Err(SendError::NotSent { .. }) => continue,
                result => return self.judge(result, call),
            }
        }
        let left = deadline.saturating_duration_since(Instant::now());
        let patience = self.options.connect_timeout.min(left);
        let result = match Connection::open(&pool.endpoint, patience).await {
            Ok(connection) => self.send(pool, connection, call, deadline).await,
            Err(error) => Err(error),
        };
        self.judge(result, call)
    }

    async fn send(
        &self,
        pool: &Pool,
        mut connection: Connection,
        call: &Call,
        deadline: Instant,
    ) -> Result<Answer, SendError> {
        let left = deadline.saturating_duration_since(Instant::now());
        let patience = left.min(self.options.attempt_timeout);
        let path = path_with_timeout(&call.path, patience);
        let mut request = request(call.method.clone(), path, call.body.clone());
        for (name, value) in &call.headers {
            request.headers_mut().insert(name.clone(), value.clone());
        }
        // Of a send that is cut short nobody knows how far it came, and its connection is of no more use.
        let Ok(result) = timeout(patience, connection.send(request)).await else {
            let (endpoint, cause) = (pool.endpoint.clone(), "too slow".to_owned());
            return Err(SendError::NoAnswer { endpoint, cause });
        };
        if result.is_ok() {
            pool.put_back(connection);
        }
        result
    }

    fn judge(&self, result: Result<Answer, SendError>, call: &Call) -> Attempt {
        let changes = call.method != Method::GET;
        let lost = |error: Error| if changes { Attempt::Unknown(error) } else { Attempt::Refused(error) };
        let answer = match result {
            Ok(answer) => answer,
            Err(error @ SendError::NotSent { .. }) => return Attempt::Refused(error.into()),
            Err(error @ SendError::NoAnswer { .. }) => return lost(error.into()),
        };
        let date = answer.header(DATE).map(str::to_owned);
        let error = match answer.success() {
            Ok(answer) => return Attempt::Final(Ok(answer)),
            Err(error) => error,
        };
        match error.kind {
            ErrorKind::OutcomeUnknown | ErrorKind::Fatal => lost(error),
            ErrorKind::Unavailable | ErrorKind::NotLeader | ErrorKind::WrongShard => Attempt::Refused(error),
            ErrorKind::RequestExpired => {
                date.map(|date| self.time.learn(&date));
                Attempt::Final(Err(error))
            }
            _ => Attempt::Final(Err(error)),
        }
    }
}

/// Tells the node how long it may take, where its API has a word for that: less than we wait, for the way there and back.
fn path_with_timeout(path: &str, patience: Duration) -> String {
    if !path.starts_with("/kv/") {
        return path.to_owned();
    }
    let separator = if path.contains('?') { '&' } else { '?' };
    let milliseconds = (patience * 7 / 8).as_millis().clamp(1, 60_000);
    format!("{path}{separator}timeout_ms={milliseconds}")
}

/// The error that is true of all attempts: a refusal of the last one says nothing about an earlier one
/// that nobody answered for. A conflict does: under the same request id it is the answer to all of them.
fn covering_all(last: Error, unknown: Option<Error>) -> Error {
    let Some(unknown) = unknown else { return read_failure(last) };
    if last.kind == ErrorKind::Conflict {
        return last;
    }
    let detail =
        if last == unknown { last.detail } else { format!("{}; the last attempt: {last}", unknown.detail) };
    Error { kind: ErrorKind::OutcomeUnknown, detail, ..last }
}

/// Without an attempt whose outcome matters, an answer that got lost is just no answer.
fn read_failure(last: Error) -> Error {
    match last.kind {
        ErrorKind::OutcomeUnknown => Error { kind: ErrorKind::Unavailable, ..last },
        _ => last,
    }
}

impl Pool {
    fn take(&self) -> Option<Connection> {
        let mut idle = self.idle.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        while let Some(connection) = idle.pop() {
            if connection.is_open() {
                return Some(connection);
            }
        }
        None
    }

    fn put_back(&self, connection: Connection) {
        let mut idle = self.idle.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        idle.push(connection);
    }
}

/// The pause after every node was tried in vain: longer each time, and never the same for two clients.
#[derive(Default)]
struct Backoff {
    rounds: u32,
}

impl Backoff {
    fn next(&mut self) -> Duration {
        let longest = 25 << self.rounds.min(4);
        self.rounds += 1;
        Duration::from_millis(rand::random_range(longest / 2..=longest))
    }
}
