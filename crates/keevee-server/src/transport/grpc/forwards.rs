//! Forwards to one peer: numbered requests on one call, and their answers.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll, Waker};

use tokio::net::TcpStream;
use tokio::sync::{oneshot, watch};
use tokio::time::{Instant, timeout_at};

use super::caller::{Caller, Load};
use super::{item_bytes_max, server};
use crate::transport::identity::PeerConfig;
use crate::transport::lane::Progress;
use crate::transport::links::{Failure, Link, Protocol};
use crate::transport::listener::{self, Inbound};
use crate::transport::remote::{LinkError, Remote};
use crate::transport::wire::{self, proto};
use crate::transport::{BoxFuture, Forward, ForwardReply};

/// So many may be without an answer. Few are: whoever forwards waits for answers first.
const OPEN_MAX: usize = 1024;
/// What a forward counts for besides its commands.
const FORWARD_BYTES: usize = 128;

/// The forwards to one peer.
pub(in crate::transport) struct Forwards {
    item_bytes_max: usize,
    link: watch::Sender<Standing>,
    state: Mutex<State>,
}

/// Whether there is a connection.
#[derive(Clone)]
enum Standing {
    Connecting,
    Open,
    /// There is none, for this reason.
    Down(String),
}

#[derive(Default)]
struct State {
    next: u64,
    queue: VecDeque<(u64, Forward)>,
    /// All without an answer: those in the queue have not left.
    open: BTreeMap<u64, oneshot::Sender<Answer>>,
    /// Of the connection, if it waits for forwards.
    waker: Option<Waker>,
    progress: Progress,
}

type Answer = Result<Vec<ForwardReply>, Failure>;

impl Protocol for Forwards {
    fn new(_remote: &Arc<Remote>, config: &PeerConfig) -> Forwards {
        Forwards {
            item_bytes_max: item_bytes_max(config),
            link: watch::Sender::new(Standing::Connecting),
            state: Mutex::default(),
        }
    }

    fn connections(link: &Link<Forwards>, inbound: &Inbound) -> Vec<BoxFuture<()>> {
        let caller = Caller {
            config: inbound.config.clone(),
            remote: link.remote.clone(),
            handler: inbound.handler.clone(),
            refusals: inbound.refusals.clone(),
        };
        vec![
            Box::pin(caller.clone().run(link.lanes.control.clone())),
            Box::pin(caller.clone().run(link.lanes.log.clone())),
            Box::pin(caller.run(link.protocol.clone())),
        ]
    }

    async fn serve(stream: TcpStream, caller: listener::Caller, inbound: Arc<Inbound>) {
        server::serve(stream, caller, inbound).await;
    }

    async fn forward(&self, forward: Forward) -> Answer {
        let deadline = Instant::now() + forward.time_left;
        let bytes = forward_bytes(&forward);
        if bytes > self.item_bytes_max {
            let max = self.item_bytes_max;
            return Err(Failure::NotSent(format!(
                "{bytes} bytes of commands are more than the {max} allowed"
            )));
        }
        self.connected(deadline).await?;
        let (number, answered) = self.enqueue(forward)?;
        match timeout_at(deadline, answered).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) => Err(Failure::NoAnswer("this node is stopping".to_owned())),
            Err(_) => Err(self.give_up(number)),
        }
    }
    /// Tells all who wait that no answer will come.
    fn end(&self, cause: &str) {
        self.link.send_replace(Standing::Down(cause.to_owned()));
        let left = std::mem::take(&mut *self.lock());
        let unsent: Vec<u64> = left.queue.iter().map(|(number, _)| *number).collect();
        for (number, answer) in left.open {
            let failure = match unsent.binary_search(&number) {
                Ok(_) => Failure::NotSent(cause.to_owned()),
                Err(_) => Failure::NoAnswer(cause.to_owned()),
            };
            // Whoever asked may have gone away.
            let _ = answer.send(Err(failure));
        }
        // Numbers are never used twice: a late answer must not be taken for another's.
        self.lock().next = left.next;
    }
}

impl Forwards {
    /// Waits for an attempt to connect that is under way, but not for the next one.
    async fn connected(&self, deadline: Instant) -> Result<(), Failure> {
        let mut link = self.link.subscribe();
        let known = link.wait_for(|link| !matches!(link, Standing::Connecting));
        match timeout_at(deadline, known).await.map(|known| known.map(|link| link.clone())) {
            Ok(Ok(Standing::Down(cause))) => Err(Failure::NotSent(cause)),
            Ok(_) => Ok(()),
            Err(_) => Err(Failure::NotSent("no connection in time".to_owned())),
        }
    }

    fn enqueue(&self, forward: Forward) -> Result<(u64, oneshot::Receiver<Answer>), Failure> {
        let mut state = self.lock();
        // It changes before the state is emptied: nothing is left behind in a closed queue.
        if !matches!(*self.link.borrow(), Standing::Open) {
            return Err(Failure::NotSent("the connection is gone".to_owned()));
        }
        if state.open.len() >= OPEN_MAX {
            return Err(Failure::NotSent("too many forwards wait for an answer".to_owned()));
        }
        let (answer, answered) = oneshot::channel();
        let number = state.next;
        state.next += 1;
        state.open.insert(number, answer);
        if state.queue.is_empty() {
            state.progress.starts();
        }
        state.queue.push_back((number, forward));
        let waker = state.waker.take();
        drop(state);
        if let Some(waker) = waker {
            waker.wake();
        }
        Ok((number, answered))
    }

    /// The time is up.
    fn give_up(&self, number: u64) -> Failure {
        let mut state = self.lock();
        state.open.remove(&number);
        match state.queue.iter().position(|(queued, _)| *queued == number) {
            Some(position) => {
                state.queue.remove(position);
                Failure::NotSent("it was not written in time".to_owned())
            }
            None => Failure::NoAnswer("no answer in time".to_owned()),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

impl Load for Forwards {
    fn name(&self) -> &'static str {
        "forward"
    }

    fn tells_reachable(&self) -> bool {
        false
    }

    fn poll_item(&self, context: &mut Context<'_>) -> Poll<proto::Item> {
        let mut state = self.lock();
        let Some((number, forward)) = state.queue.pop_front() else {
            state.waker = Some(context.waker().clone());
            return Poll::Pending;
        };
        state.progress.took(forward_bytes(&forward));
        Poll::Ready(wire::forward_request(number, forward))
    }

    fn connects(&self) {
        self.link.send_replace(Standing::Connecting);
    }

    fn opens(&self) {
        self.link.send_replace(Standing::Open);
    }

    fn closes(&self, cause: &LinkError) {
        self.end(&cause.to_string());
    }

    fn answered(&self, answer: proto::ForwardAnswer) {
        let (number, replies) = wire::read_forward_answer(answer);
        // Whoever asked may have given up.
        if let Some(waiting) = self.lock().open.remove(&number) {
            let _ = waiting.send(replies.map_err(|error| Failure::NoAnswer(error.to_string())));
        }
    }

    fn is_stalled(&self) -> bool {
        let state = self.lock();
        !state.queue.is_empty() && state.progress.is_late()
    }
}

fn forward_bytes(forward: &Forward) -> usize {
    FORWARD_BYTES + forward.commands.iter().map(|command| FORWARD_BYTES / 8 + command.len()).sum::<usize>()
}
