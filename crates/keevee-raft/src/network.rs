//! openraft's network: requests become messages for the engine to send, and answers find whoever waits for them.
//!
//! Messages may be lost, so every request has a time limit. Appends are pipelined. One that comes before those it
//! follows conflicts: that tells nothing of the follower's log, and openraft starts again with what is not
//! acknowledged.

use std::collections::{BTreeMap, VecDeque};
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::{FutureExt, Stream, StreamExt};
use openraft::alias::{LogIdOf, OneshotReceiverOf, OneshotSenderOf, SleepOf, SnapshotOf, VoteOf};
use openraft::async_runtime::oneshot::OneshotSender;
use openraft::base::{BoxFuture, BoxStream};
use openraft::errors::{RPCError, ReplicationClosed, StreamingError, Unreachable};
use openraft::network::RPCOption;
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, StreamAppendResult, TransferLeaderRequest,
    TransferLeaderResponse, VoteRequest, VoteResponse,
};
use openraft::type_config::TypeConfigExt;
use openraft::{EmptyNode, RaftNetworkFactory, RaftNetworkV2};

use keevee_core::ids::NodeId;

use crate::message::{AppendResult, LogEntry, LogId, RaftMessage, Vote};
use crate::types::{Types, our_entry, our_vote, ours, their_append_response, their_vote_response};

/// Appends on their way to one follower.
const APPENDS_MAX: usize = 64;

/// An answer to a request.
pub(crate) enum Answer {
    Appended(AppendResult),
    Voted { vote: Vote, granted: bool, last: Option<LogId> },
    CaughtUp { has_all: bool },
}

/// What goes out, and who waits for an answer. Shared by the engine and openraft's tasks.
#[derive(Clone)]
pub(crate) struct Exchange(Arc<Mutex<Desk>>);

#[derive(Default)]
struct Desk {
    outgoing: Vec<(NodeId, RaftMessage)>,
    /// True while appends are not sent.
    is_silent: bool,
    calls: u64,
    waiting: BTreeMap<u64, Waiting>,
    read_indexes: Vec<ReadIndex>,
    /// True if a poll was granted.
    has_granted_poll: bool,
}

struct Waiting {
    asked: NodeId,
    is_append: bool,
    waiter: OneshotSenderOf<Types, Answer>,
}

/// What a replica answered to a round of reads.
pub(crate) struct ReadIndex {
    pub(crate) from: NodeId,
    pub(crate) round: u64,
    /// None if it does not lead.
    pub(crate) index: Option<u64>,
}

impl Exchange {
    /// Numbers requests from `first` on. It must differ from life to life, so that an answer to a request of an earlier
    /// one, which comes late, is not taken for one to a request of this.
    pub(crate) fn new(first: u64) -> Exchange {
        Exchange(Arc::new(Mutex::new(Desk { calls: first, ..Desk::default() })))
    }

    /// A number for a request that nobody here waits for.
    pub(crate) fn number(&self) -> u64 {
        let mut desk = self.desk();
        desk.calls += 1;
        desk.calls
    }

    pub(crate) fn send(&self, to: NodeId, message: RaftMessage) {
        self.desk().outgoing.push((to, message));
    }

    /// Whether appends are not sent, as if they were lost.
    pub(crate) fn be_silent(&self, is_silent: bool) {
        self.desk().is_silent = is_silent;
    }

    pub(crate) fn take_outgoing(&self) -> Vec<(NodeId, RaftMessage)> {
        std::mem::take(&mut self.desk().outgoing)
    }

    /// An answer came. Late ones find nobody.
    pub(crate) fn answer(&self, from: NodeId, call: u64, answer: Answer) {
        let mut desk = self.desk();
        if desk.waiting.get(&call).is_some_and(|waiting| waiting.asked == from)
            && let Some(Waiting { waiter, .. }) = desk.waiting.remove(&call)
        {
            drop(waiter.send(answer));
        }
    }

    /// Appends to a node with lower numbers are lost: nobody need wait for their answers.
    pub(crate) fn appends_are_lost(&self, node: NodeId, below: u64) {
        let is_lost =
            |call: u64, waiting: &Waiting| waiting.is_append && waiting.asked == node && call < below;
        self.desk().waiting.retain(|call, waiting| !is_lost(*call, waiting));
    }

    pub(crate) fn answer_read(&self, from: NodeId, round: u64, index: Option<u64>) {
        self.desk().read_indexes.push(ReadIndex { from, round, index });
    }

    pub(crate) fn take_read_indexes(&self) -> Vec<ReadIndex> {
        std::mem::take(&mut self.desk().read_indexes)
    }

    pub(crate) fn note_granted_poll(&self) {
        self.desk().has_granted_poll = true;
    }

    /// Whether a poll was granted since the last look.
    pub(crate) fn take_granted_poll(&self) -> bool {
        std::mem::take(&mut self.desk().has_granted_poll)
    }

    fn ask(&self, to: NodeId, message: impl FnOnce(u64) -> RaftMessage) -> Call {
        let (sender, answer) = Types::oneshot();
        let mut desk = self.desk();
        desk.calls += 1;
        let number = desk.calls;
        let message = message(number);
        let is_append = matches!(message, RaftMessage::Append { .. } | RaftMessage::Heartbeat { .. });
        desk.waiting.insert(number, Waiting { asked: to, is_append, waiter: sender });
        if !(desk.is_silent && is_append) {
            desk.outgoing.push((to, message));
        }
        Call { exchange: self.clone(), number, answer }
    }

    fn desk(&self) -> MutexGuard<'_, Desk> {
        // A panic while it is held ends the replica.
        self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

/// A request without an answer yet. Dropped, it is forgotten.
struct Call {
    exchange: Exchange,
    number: u64,
    answer: OneshotReceiverOf<Types, Answer>,
}

impl Drop for Call {
    fn drop(&mut self) {
        self.exchange.desk().waiting.remove(&self.number);
    }
}

impl Call {
    async fn answer(mut self, limit: Duration) -> Result<Answer, RPCError<Types>> {
        match Types::timeout(limit, &mut self.answer).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(_)) | Err(_) => Err(no_answer()),
        }
    }
}

fn no_answer() -> RPCError<Types> {
    RPCError::Unreachable(Unreachable::from_string("no answer in time"))
}

/// Makes a [`Peer`] for each follower.
pub(crate) struct Network {
    pub(crate) exchange: Exchange,
    /// How long an answer to an append may take: its disk may be slow.
    pub(crate) append_timeout: Duration,
}

impl RaftNetworkFactory<Types> for Network {
    type Network = Peer;

    async fn new_client(&mut self, target: u64, _node: &EmptyNode) -> Peer {
        self.peer(target, Use::Log)
    }

    async fn new_heartbeat_client(&mut self, target: u64, _node: &EmptyNode) -> Peer {
        self.peer(target, Use::Heartbeats)
    }
}

impl Network {
    fn peer(&self, target: u64, use_of: Use) -> Peer {
        let (exchange, append_timeout) = (self.exchange.clone(), self.append_timeout);
        Peer { node: NodeId(target), use_of, exchange, append_timeout }
    }
}

/// What openraft uses a [`Peer`] for.
#[derive(Clone, Copy)]
enum Use {
    /// Everything but heartbeats.
    Log,
    /// Appends without entries, one at a time.
    Heartbeats,
}

/// One other replica, as openraft reaches it.
pub(crate) struct Peer {
    node: NodeId,
    use_of: Use,
    exchange: Exchange,
    append_timeout: Duration,
}

impl Peer {
    fn append(&self, request: &AppendEntriesRequest<Types>) -> Call {
        let vote = our_vote(&request.vote);
        let previous = request.prev_log_id.as_ref().map(ours);
        let committed = request.leader_commit.as_ref().map(ours);
        let entries: Vec<LogEntry> = request.entries.iter().map(our_entry).collect();
        self.exchange.ask(self.node, |call| match self.use_of {
            Use::Heartbeats => RaftMessage::Heartbeat { call, vote, previous, committed },
            Use::Log => RaftMessage::Append { call, vote, previous, entries, committed },
        })
    }

    async fn ask_for_vote(
        &self,
        poll: bool,
        request: VoteRequest<Types>,
        limit: Duration,
    ) -> Result<VoteResponse<Types>, RPCError<Types>> {
        let call = self.exchange.ask(self.node, |call| RaftMessage::RequestVote {
            call,
            poll,
            vote: our_vote(&request.vote),
            last: request.last_log_id.as_ref().map(ours),
            transfer: request.leadership_transfer,
        });
        match call.answer(limit).await? {
            Answer::Voted { vote, granted, last } => Ok(their_vote_response(vote, granted, last)),
            Answer::Appended(_) | Answer::CaughtUp { .. } => Err(no_answer()),
        }
    }
}

impl RaftNetworkV2<Types> for Peer {
    type SnapshotData = ();

    async fn append_entries(
        &mut self,
        request: AppendEntriesRequest<Types>,
        _option: RPCOption,
    ) -> Result<AppendEntriesResponse<Types>, RPCError<Types>> {
        match self.append(&request).answer(self.append_timeout).await? {
            Answer::Appended(result) => Ok(their_append_response(result)),
            Answer::Voted { .. } | Answer::CaughtUp { .. } => Err(no_answer()),
        }
    }

    fn stream_append<'s, S>(
        &'s mut self,
        input: S,
        _option: RPCOption,
    ) -> BoxFuture<
        's,
        Result<BoxStream<'s, Result<StreamAppendResult<Types>, RPCError<Types>>>, RPCError<Types>>,
    >
    where
        S: Stream<Item = AppendEntriesRequest<Types>> + Send + Unpin + 'static,
    {
        let pipeline =
            Pipeline { peer: self, input: Some(input), under_way: VecDeque::new(), has_answers: false };
        let pipeline: BoxStream<'s, _> = Box::pin(pipeline);
        Box::pin(std::future::ready(Ok(pipeline)))
    }

    async fn vote(
        &mut self,
        request: VoteRequest<Types>,
        _option: RPCOption,
    ) -> Result<VoteResponse<Types>, RPCError<Types>> {
        self.ask_for_vote(false, request, self.append_timeout).await
    }

    async fn pre_vote(
        &mut self,
        request: VoteRequest<Types>,
        option: RPCOption,
    ) -> Result<VoteResponse<Types>, RPCError<Types>> {
        self.ask_for_vote(true, request, option.soft_ttl()).await
    }

    /// Tells the follower that it needs a snapshot, which it fetches by itself. Asked again and again until it has
    /// got so far.
    async fn full_snapshot(
        &mut self,
        vote: VoteOf<Types>,
        snapshot: SnapshotOf<Types, ()>,
        _cancel: impl Future<Output = ReplicationClosed> + Send + 'static,
        _option: RPCOption,
    ) -> Result<SnapshotResponse<Types>, StreamingError<Types>> {
        let (our_vote, through) = (our_vote(&vote), snapshot.meta.last_log_id.map_or(0, |id| id.index));
        let asked = |call| RaftMessage::TooFarBehind { call, vote: our_vote, through };
        match self.exchange.ask(self.node, asked).answer(self.append_timeout).await {
            Ok(Answer::CaughtUp { has_all: true }) => Ok(SnapshotResponse::new(vote)),
            Ok(_) | Err(_) => {
                let error = io::Error::other("it lacks entries that were dropped, and has no snapshot yet");
                Err(StreamingError::Unreachable(Unreachable::new(&error)))
            }
        }
    }

    async fn transfer_leader(
        &mut self,
        request: TransferLeaderRequest<Types>,
        _option: RPCOption,
    ) -> Result<TransferLeaderResponse<Types>, RPCError<Types>> {
        let vote = our_vote(request.from_leader());
        let (to, last) = (*request.to_node_id(), request.last_log_id().map(ours));
        self.exchange.send(self.node, RaftMessage::TransferLeader { vote, to, last });
        Ok(Ok(()))
    }
}

/// Appends on their way to one follower, answered in their order.
struct Pipeline<'s, S> {
    peer: &'s mut Peer,
    /// None once it has ended.
    input: Option<S>,
    under_way: VecDeque<UnderWay>,
    has_answers: bool,
}

struct UnderWay {
    call: Call,
    previous: Option<LogIdOf<Types>>,
    last: Option<LogIdOf<Types>>,
    limit: SleepOf<Types>,
}

impl<S: Stream<Item = AppendEntriesRequest<Types>> + Unpin> Pipeline<'_, S> {
    fn send_what_comes(&mut self, context: &mut Context<'_>) {
        while self.under_way.len() < APPENDS_MAX
            && let Some(input) = &mut self.input
            && let Poll::Ready(request) = input.poll_next_unpin(context)
        {
            let Some(request) = request else {
                self.input = None;
                return;
            };
            let last = request.entries.last().map(|entry| entry.log_id).or(request.prev_log_id);
            self.under_way.push_back(UnderWay {
                call: self.peer.append(&request),
                previous: request.prev_log_id,
                last,
                limit: Types::sleep(self.peer.append_timeout),
            });
        }
    }

    /// What comes after a failure is of no use.
    fn end(&mut self) {
        self.input = None;
        self.under_way.clear();
    }
}

impl<S: Stream<Item = AppendEntriesRequest<Types>> + Unpin> Stream for Pipeline<'_, S> {
    type Item = Result<StreamAppendResult<Types>, RPCError<Types>>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let pipeline = self.get_mut();
        pipeline.send_what_comes(context);
        let Some(first) = pipeline.under_way.front_mut() else {
            return if pipeline.input.is_none() { Poll::Ready(None) } else { Poll::Pending };
        };
        let answer = match first.call.answer.poll_unpin(context) {
            Poll::Ready(answer) => answer.ok(),
            Poll::Pending if first.limit.poll_unpin(context).is_pending() => return Poll::Pending,
            Poll::Pending => None,
        };
        let Some(Answer::Appended(result)) = answer else {
            pipeline.end();
            return Poll::Ready(Some(Err(no_answer())));
        };
        let Some(UnderWay { previous, last, .. }) = pipeline.under_way.pop_front() else {
            return Poll::Ready(None);
        };
        if result != AppendResult::Success {
            pipeline.end();
        }
        // It overtook the one before, which is on the follower's disk by now. openraft would take the follower to
        // have lost that, and want to send a snapshot.
        if std::mem::replace(&mut pipeline.has_answers, true) && result == AppendResult::Conflict {
            return Poll::Ready(None);
        }
        // Nothing comes before the first entry, so nothing can conflict with that: it is no answer to this.
        if previous.is_none() && result == AppendResult::Conflict {
            return Poll::Ready(Some(Err(no_answer())));
        }
        let response = their_append_response(result);
        Poll::Ready(Some(Ok(response.into_stream_result(previous, last))))
    }
}
