//! The client: its operations, each as one call.
//!
//! It leaves out how a call comes to its answer (`attempts.rs`).

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream;
use keevee_core::command::{Expect, Expiry, ExpiryOnly, Only};
use keevee_core::error::ErrorKind;
use keevee_core::kv::{self, condition, request, response};
use keevee_core::shard_map::view::CarpView;
use tokio::time::{Instant, sleep};

use crate::answer::{Answer, Error, NodeStatus, PeerStatus, Value};
use crate::attempts::{Attempts, Call, Effect, Place, read_failure};
use crate::batch::{Appended, Batch, Counter, OperationResult};
use crate::connection::get_once;
use crate::endpoint::{Endpoint, EndpointError};
use crate::map::Keys;
use crate::retry::{Backoff, Budget};
use crate::router::{CARP, Router, Served};
use crate::server_time::ServerTime;

/// Keys of one `multi_get` or `multi_put` that are under way at once.
const MULTI_KEYS_MAX: usize = 256;

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
    /// One node's own state, however old: of a node that holds the key's shard, and of one that the client was
    /// given if it can be.
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

/// A client of one cluster. Cheap to clone; clones share connections, the shard map and the retry budget.
///
/// Every method may be given up by dropping its future. Then nobody waits for the answer, but what was sent stays
/// sent: a write may have happened, or may yet.
#[derive(Clone, Debug)]
pub struct Client {
    pub(crate) shared: Arc<Shared>,
}

/// What all calls of a client have in common.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) options: Options,
    pub(crate) router: Arc<Router>,
    pub(crate) budget: Budget,
    pub(crate) time: ServerTime,
}

impl Shared {
    /// A new request id, as it travels.
    pub(crate) fn mint(&self) -> Bytes {
        let mut text = uuid::Uuid::encode_buffer();
        Bytes::copy_from_slice(self.time.mint().hyphenated().encode_lower(&mut text).as_bytes())
    }
}

impl Client {
    /// A client of the cluster that these nodes belong to. It asks them for the shard map and goes to the leaders by
    /// itself, so they need not be all nodes. Connects at the first call.
    ///
    /// # Errors
    ///
    /// If there is no endpoint.
    pub fn new(endpoints: Vec<Endpoint>, options: Options) -> Result<Client, EndpointError> {
        Client::with_routing(endpoints, options, true)
    }

    /// A client that uses these nodes alone and lets them forward what they do not lead: where the other nodes can't
    /// be reached under the addresses that the cluster gives them, or to see what one node answers.
    ///
    /// # Errors
    ///
    /// If there is no endpoint.
    pub fn unrouted(endpoints: Vec<Endpoint>, options: Options) -> Result<Client, EndpointError> {
        Client::with_routing(endpoints, options, false)
    }

    fn with_routing(
        endpoints: Vec<Endpoint>,
        options: Options,
        routes: bool,
    ) -> Result<Client, EndpointError> {
        if endpoints.is_empty() {
            return Err(EndpointError::Empty);
        }
        let router = Arc::new(Router::new(endpoints, &options, routes));
        let (budget, time) = (Budget::new(), ServerTime::default());
        Ok(Client { shared: Arc::new(Shared { options, router, budget, time }) })
    }

    /// Sets a key: returns its new version.
    pub async fn put(&self, key: &[u8], value: impl Into<Bytes>, write: Write) -> Result<u64, Error> {
        self.put_bytes(Bytes::copy_from_slice(key), value.into(), write).await
    }

    /// Sets a key and says when it is gone: returns its new version.
    pub async fn put_with(
        &self,
        key: &[u8],
        value: impl Into<Bytes>,
        expires: Expiry,
        write: Write,
    ) -> Result<u64, Error> {
        let batch = Batch::new().put_with(Bytes::copy_from_slice(key), value, expires, Only::Always);
        match self.single(batch, write).await? {
            OperationResult::Written { version } => Ok(version),
            other => Err(unexpected(&other)),
        }
    }

    /// Says anew when a key is gone: returns its new version, or `None` if the key is absent.
    pub async fn set_expiry(&self, key: &[u8], expires: Expiry, write: Write) -> Result<Option<u64>, Error> {
        let batch = Batch::new().set_expiry(Bytes::copy_from_slice(key), expires, ExpiryOnly::Always);
        match self.single(batch, write).await? {
            OperationResult::Written { version } => Ok(Some(version)),
            OperationResult::Skipped => Ok(None),
            other => Err(unexpected(&other)),
        }
    }

    async fn put_bytes(&self, key: Bytes, value: Bytes, write: Write) -> Result<u64, Error> {
        let condition = write.condition.map(wire_condition);
        let (id, effect) = self.identify(write.request_id);
        let keys = Keys::new([key.clone()]);
        let put = kv::PutRequest { key, value, condition, idempotency_key: Some(id) };
        match self.call(request::Operation::Put(put), keys, effect).await? {
            response::Result::Put(answer) => Ok(answer.version),
            other => Err(unexpected(&other)),
        }
    }

    /// Reads a key: `None` if it holds no value.
    pub async fn get(&self, key: &[u8], consistency: Consistency) -> Result<Option<Value>, Error> {
        let key = Bytes::copy_from_slice(key);
        let keys = Keys::new([key.clone()]);
        let (consistency, served) = consistency.on_wire();
        let get = kv::GetRequest { key, consistency: consistency.into(), ..kv::GetRequest::default() };
        match self.call(request::Operation::Get(get), keys, Effect::Reads(served)).await {
            Ok(response::Result::Get(kv::GetResponse { version, value, expires_unix_ms, .. })) => {
                Ok(Some(Value { version, bytes: value, expires_ms: expires_unix_ms }))
            }
            Ok(other) => Err(read_failure(unexpected(&other))),
            // A key that is not there is no error to who reads it.
            Err(error) if error.kind == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Removes a key: returns true if it held a value.
    pub async fn delete(&self, key: &[u8], write: Write) -> Result<bool, Error> {
        let key = Bytes::copy_from_slice(key);
        let keys = Keys::new([key.clone()]);
        let condition = write.condition.map(wire_condition);
        let (id, effect) = self.identify(write.request_id);
        let delete = kv::DeleteRequest { key, condition, idempotency_key: Some(id) };
        match self.call(request::Operation::Delete(delete), keys, effect).await? {
            response::Result::Delete(answer) => Ok(answer.deleted),
            other => Err(unexpected(&other)),
        }
    }

    /// Adds to a 64-bit integer that is kept as decimal text; an absent key counts as 0.
    ///
    /// # Errors
    ///
    /// [`Error::failed`] says if the key holds something else, or the sum does not fit; then nothing happened.
    pub async fn increment(&self, key: &[u8], by: i64, write: Write) -> Result<Counter, Error> {
        match self.single(Batch::new().increment(Bytes::copy_from_slice(key), by), write).await? {
            OperationResult::Incremented(counter) => Ok(counter),
            other => Err(unexpected(&other)),
        }
    }

    /// Appends bytes; an absent key counts as empty.
    ///
    /// # Errors
    ///
    /// [`Error::failed`] says if the value would grow too large; then nothing happened.
    pub async fn append(
        &self,
        key: &[u8],
        suffix: impl Into<Bytes>,
        write: Write,
    ) -> Result<Appended, Error> {
        match self.single(Batch::new().append(Bytes::copy_from_slice(key), suffix), write).await? {
            OperationResult::Appended(appended) => Ok(appended),
            other => Err(unexpected(&other)),
        }
    }

    /// Carries out a batch: one result for each operation, in order. A request id is as [`Write`]'s.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Invalid`] if its keys are in several shards, [`ErrorKind::Conflict`] with
    /// [`Error::condition`] if one of its conditions does not hold, [`Error::failed`] if an operation failed.
    pub async fn execute(
        &self,
        batch: Batch,
        request_id: Option<String>,
    ) -> Result<Vec<OperationResult>, Error> {
        let keys = Keys::new(batch.keys());
        let (is_read_only, expected) = (batch.is_read_only(), batch.operations.len());
        let (id, effect) = if is_read_only {
            (None, Effect::Reads(Served::ByLeader))
        } else {
            let (id, effect) = self.identify(request_id);
            (Some(id), effect)
        };
        let Batch { conditions: preconditions, operations } = batch;
        let consistency = kv::Consistency::Linearizable.into();
        let execute =
            kv::ExecuteRequest { preconditions, operations, idempotency_key: id, consistency, shard: None };
        let results = match self.call(request::Operation::Execute(execute), keys, effect).await? {
            response::Result::Execute(answer) if answer.results.len() == expected => {
                answer.results.into_iter().map(OperationResult::try_from).collect()
            }
            other => Err(unexpected(&other)),
        };
        results.map_err(|error| if is_read_only { read_failure(error) } else { error })
    }

    /// Reads many keys: what [`Client::get`] says of each, in the order asked.
    ///
    /// Each key is a call of its own, so they are read at different moments. Those of one shard travel together.
    pub async fn multi_get(
        &self,
        keys: &[impl AsRef<[u8]>],
        consistency: Consistency,
    ) -> Vec<Result<Option<Value>, Error>> {
        let gets = keys.iter().map(|key| self.get(key.as_ref(), consistency));
        stream::iter(gets).buffered(MULTI_KEYS_MAX).collect().await
    }

    /// Sets many keys: what [`Client::put`] says of each, in the order given.
    ///
    /// Each key is a call of its own: some may fail while others happen, and a key that is given twice ends with
    /// either value. Those of one shard travel together. For all or nothing, use [`Client::execute`].
    pub async fn multi_put<K, V>(&self, pairs: impl IntoIterator<Item = (K, V)>) -> Vec<Result<u64, Error>>
    where
        K: Into<Bytes>,
        V: Into<Bytes>,
    {
        let pairs: Vec<(Bytes, Bytes)> =
            pairs.into_iter().map(|(key, value)| (key.into(), value.into())).collect();
        let puts = pairs.into_iter().map(|(key, value)| self.put_bytes(key, value, Write::default()));
        stream::iter(puts).buffered(MULTI_KEYS_MAX).collect().await
    }

    /// The state of a node (the first of the endpoints that answers) and its shards.
    pub async fn status(&self) -> Result<NodeStatus, Error> {
        self.ask("/v1/cluster/status", self.deadline()).await?.json().map_err(read_failure)
    }

    /// All nodes of the cluster, as the first endpoint that answers sees them.
    pub async fn nodes(&self) -> Result<Vec<PeerStatus>, Error> {
        self.ask("/v1/cluster/nodes", self.deadline()).await?.json().map_err(read_failure)
    }

    /// True if the asked node leads the first data shard. Ask a client of one endpoint.
    pub async fn is_leader(&self) -> Result<bool, Error> {
        self.ask("/is_leader", self.deadline()).await?.json().map_err(read_failure)
    }

    /// The shard map, as the first endpoint that answers knows it.
    pub(crate) async fn carp(&self, deadline: Instant) -> Result<CarpView, Error> {
        self.ask(CARP, deadline).await?.json().map_err(read_failure)
    }

    /// Until when a call that begins now may take.
    fn deadline(&self) -> Instant {
        Instant::now() + self.shared.options.timeout
    }

    /// One operation under the condition of a write.
    async fn single(&self, batch: Batch, write: Write) -> Result<OperationResult, Error> {
        let key = batch.keys().next();
        let batch = match (write.condition, key) {
            (Some(condition), Some(key)) => batch.only_if(key, condition),
            _ => batch,
        };
        let mut results = self.execute(batch, write.request_id).await?;
        results.pop().ok_or_else(|| Error::unreadable("it has no result"))
    }

    /// Every write has an id, so that it can be sent again.
    fn identify(&self, request_id: Option<String>) -> (Bytes, Effect) {
        match request_id {
            Some(id) => (id.into(), Effect::Writes { is_minted: false }),
            None => (self.shared.mint(), Effect::Writes { is_minted: true }),
        }
    }

    async fn call(
        &self,
        operation: request::Operation,
        keys: Keys,
        effect: Effect,
    ) -> Result<response::Result, Error> {
        let deadline = self.deadline();
        let call = Call { operation, place: Place::Keys(keys), effect };
        Attempts::until(&self.shared, call, deadline).run().await
    }

    /// Asks one endpoint after the other over HTTP until one answers or the time is up.
    async fn ask(&self, path: &str, deadline: Instant) -> Result<Answer, Error> {
        let options = &self.shared.options;
        let mut backoff = Backoff::new(Duration::from_millis(25), 4);
        loop {
            let mut last = None;
            for link in self.shared.router.seeds() {
                let left = deadline.saturating_duration_since(Instant::now());
                let connect_timeout = options.connect_timeout.min(left);
                let patience = options.attempt_timeout.min(left);
                let answer = get_once(link.endpoint(), path, connect_timeout, patience).await;
                match answer.map_err(Error::from).and_then(Answer::success) {
                    Ok(answer) => return Ok(answer),
                    Err(error) => match error.kind {
                        ErrorKind::OutcomeUnknown | ErrorKind::Unavailable | ErrorKind::Fatal => {
                            last = Some(read_failure(error));
                        }
                        _ => return Err(error),
                    },
                }
            }
            let pause = backoff.next();
            if Instant::now() + pause >= deadline {
                let nobody = || Error::new(ErrorKind::Unavailable, "no endpoint is known");
                return Err(last.unwrap_or_else(nobody));
            }
            sleep(pause).await;
        }
    }
}

/// A condition as it travels.
pub(crate) fn wire_condition(expect: Expect) -> kv::Condition {
    let expect = match expect {
        Expect::Absent => condition::Expect::Absent(kv::Nothing {}),
        Expect::Present => condition::Expect::Present(kv::Nothing {}),
        Expect::Version(version) => condition::Expect::Version(version),
    };
    kv::Condition { expect: Some(expect) }
}

/// A success that is of another kind than what was asked for. Its text holds no values.
pub(crate) fn unexpected<T>(_: &T) -> Error {
    Error::unreadable("it answers another question")
}
