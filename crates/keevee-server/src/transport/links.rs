//! The links to all peers and the life of a transport: the same whatever is spoken.
//!
//! A [`Protocol`] keeps the connections of a link and serves those from peers. Here is which links there are, and when
//! they begin and end.

use std::future::Future;
use std::sync::{Arc, OnceLock};

use http::HeaderValue;
use keevee_core::ids::{NodeId, ShardId};
use prometheus::IntCounter;
use tokio::net::{TcpListener, TcpStream};

use super::identity::PeerConfig;
use super::lane::Lanes;
use super::listener::{self, Caller, Inbound};
use super::refusals::Refusals;
use super::remote::{ByNode, Remote, remotes};
use super::tasks::Tasks;
use super::{
    BoxFuture, Forward, ForwardError, ForwardReply, ForwardResult, Handler, Peer, PeerConfigError,
    PeerMessage, PeerTransport, Transport,
};
use crate::metrics::Metrics;

/// What is spoken, to one peer: it hands forwards over, and knows how lanes are sent.
pub(super) trait Protocol: Sized + Send + Sync + 'static {
    fn new(remote: &Arc<Remote>, config: &PeerConfig) -> Self;

    /// The tasks that keep connections to the peer, for ever.
    fn connections(link: &Link<Self>, inbound: &Inbound) -> Vec<BoxFuture<()>>;

    /// Serves a connection from any peer until it ends.
    fn serve(
        stream: TcpStream,
        caller: Caller,
        inbound: Arc<Inbound>,
    ) -> impl Future<Output = ()> + Send + 'static;

    /// Hands commands to the peer and waits for its answers, no longer than the callers' time.
    fn forward(&self, forward: Forward) -> impl Future<Output = Result<Vec<ForwardReply>, Failure>> + Send;

    /// Tells all who wait that no answer will come, and closes connections that no task keeps.
    fn end(&self, cause: &str);
}

/// Why a forward has no answer, before the node's name is added. What the caller must learn is whether the commands may
/// have taken effect: the first only where they never left this node, or were refused as a whole.
pub(super) enum Failure {
    NotSent(String),
    NoAnswer(String),
}

/// All that leads to one peer.
pub(super) struct Link<P> {
    pub(super) remote: Arc<Remote>,
    pub(super) lanes: Lanes,
    pub(super) protocol: Arc<P>,
    ok: IntCounter,
    not_sent: IntCounter,
    no_answer: IntCounter,
}

impl<P: Protocol> Link<P> {
    fn new(remote: Arc<Remote>, config: &PeerConfig, metrics: &Metrics) -> Link<P> {
        let counter = |result| metrics.forwards(remote.id, result);
        Link {
            ok: counter("ok"),
            not_sent: counter("not_sent"),
            no_answer: counter("no_answer"),
            lanes: Lanes::new(remote.id, metrics),
            protocol: Arc::new(P::new(&remote, config)),
            remote,
        }
    }

    async fn forward(&self, forward: Forward) -> ForwardResult {
        let (node, count) = (self.remote.id, forward.commands.len());
        let failure = match self.protocol.forward(forward).await {
            Ok(replies) if replies.len() == count => {
                self.ok.inc();
                return Ok(replies);
            }
            Ok(replies) => Failure::NoAnswer(format!("{} replies to {count} commands", replies.len())),
            Err(failure) => failure,
        };
        Err(match failure {
            Failure::NotSent(cause) => {
                self.not_sent.inc();
                ForwardError::NotSent { node, cause }
            }
            Failure::NoAnswer(cause) => {
                self.no_answer.inc();
                ForwardError::NoAnswer { node, cause }
            }
        })
    }
}

/// The transport of one node.
pub(super) struct Links<P> {
    config: PeerConfig,
    authorization: HeaderValue,
    links: ByNode<Link<P>>,
    remotes: ByNode<Remote>,
    /// Set once this node listens.
    inbound: OnceLock<Arc<Inbound>>,
    tasks: Tasks,
    metrics: Arc<Metrics>,
}

impl<P: Protocol> Links<P> {
    pub(super) fn new(config: PeerConfig, metrics: &Arc<Metrics>) -> Result<Links<P>, PeerConfigError> {
        let (authorization, remotes) = (config.authorization()?, remotes(&config)?);
        let links = Links {
            config,
            authorization,
            links: ByNode::default(),
            remotes: ByNode::default(),
            inbound: OnceLock::new(),
            tasks: Tasks::default(),
            metrics: metrics.clone(),
        };
        remotes.into_iter().for_each(|remote| links.link(remote));
        Ok(links)
    }

    fn link(&self, remote: Arc<Remote>) {
        let peer = remote.id;
        let link = Arc::new(Link::new(remote.clone(), &self.config, &self.metrics));
        self.remotes.insert(peer, remote);
        self.links.insert(peer, link.clone());
        self.inbound.get().into_iter().for_each(|inbound| self.connect(&link, inbound));
    }

    fn connect(&self, link: &Link<P>, inbound: &Inbound) {
        P::connections(link, inbound).into_iter().for_each(|connection| self.tasks.spawn(connection));
    }
}

impl<P: Protocol> PeerTransport for Links<P> {
    fn start(&self, handler: Handler, listener: TcpListener) {
        let inbound = self.inbound.get_or_init(|| {
            Arc::new(Inbound {
                authorization: self.authorization.clone(),
                config: self.config.clone(),
                remotes: self.remotes.clone(),
                handler,
                refusals: Arc::new(Refusals::new(&self.metrics)),
                stop: self.tasks.stop.clone(),
            })
        });
        self.tasks.spawn(listener::run(listener, inbound.clone(), P::serve));
        self.links.all().iter().for_each(|link| self.connect(link, inbound));
    }

    fn set_peer(&self, peer: Peer) {
        if peer.id == self.config.node {
            return;
        }
        let set = match self.links.get(peer.id) {
            Some(link) if link.remote.address() == peer.address => return,
            Some(link) => {
                // First: what goes to the new address must not end.
                link.protocol.end("the node moved");
                link.remote.move_to(&peer.address)
            }
            None => Remote::new(&self.config, &peer).map(|remote| {
                self.config.peers.add(peer);
                self.link(Arc::new(remote));
            }),
        };
        if let Err(error) = set {
            tracing::error!(%error, "a node of the shard map can't be spoken with");
        }
    }

    fn drain(&self) -> BoxFuture<()> {
        self.tasks.drain()
    }

    fn stop(&self) {
        self.tasks.abort();
        for link in self.links.all() {
            link.protocol.end("this node is stopping");
        }
    }
}

impl<P: Protocol> Transport for Links<P> {
    fn send(&self, to: NodeId, messages: Vec<(ShardId, PeerMessage)>) {
        match self.links.get(to) {
            Some(link) => link.lanes.push(messages),
            None => tracing::debug!(%to, "messages to an unknown node are dropped"),
        }
    }

    fn forward(&self, to: NodeId, forward: Forward) -> BoxFuture<ForwardResult> {
        let Some(link) = self.links.get(to) else {
            let cause = "neither the configuration nor the shard map names it".to_owned();
            return Box::pin(std::future::ready(Err(ForwardError::NotSent { node: to, cause })));
        };
        Box::pin(async move { link.forward(forward).await })
    }

    fn is_reachable(&self, node: NodeId) -> bool {
        self.links.get(node).is_some_and(|link| link.remote.is_reachable())
    }
}
