//! Where a call goes: the shard map, kept up to date, and who leads.
//!
//! The map is fetched from any node when the first call needs it, and again when it is old, when an answer speaks of
//! a newer epoch, when a key turns out to be elsewhere, and when a node can't be reached. One fetch is under way at
//! a time; calls go on with the map that there is unless they can't. The map only routes: a node that is asked
//! wrongly says so, and its hint leads on. So an old map costs a detour and never a wrong answer.
//!
//! Who leads a shard is what traffic has told, by answers and hints; the map's word counts where it has told nothing.
//!
//! It leaves out what a call makes of an answer (`attempts.rs`).

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use http::StatusCode;
use keevee_core::error::ErrorKind;
use keevee_core::ids::ShardId;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until, timeout_at};

use crate::answer::Error;
use crate::client::Options;
use crate::connection::get_once;
use crate::endpoint::Endpoint;
use crate::link::Link;
use crate::map::Map;
use crate::retry::Backoff;

/// Where a node tells its shard map.
pub(crate) const CARP: &str = "/v1/cluster/carp";
/// How long one node may take to tell it before another is asked.
const FETCH_TIMEOUT: Duration = Duration::from_secs(2);
/// The most that is waited between two fetches, and how often that doubles while they bring nothing.
const FETCH_PAUSE: (Duration, u32) = (Duration::from_millis(50), 5);

/// The nodes of a cluster, and what is known of them.
#[derive(Debug)]
pub(crate) struct Router {
    connect_timeout: Duration,
    seeds: Vec<Arc<Link>>,
    /// False if nodes are to route for us.
    routes: bool,
    known: watch::Sender<Known>,
    state: Mutex<State>,
}

/// What the last fetch brought.
#[derive(Clone, Debug, Default)]
struct Known {
    /// How many fetches there were.
    fetches: u64,
    map: Option<Arc<Map>>,
    /// Why the last one brought nothing.
    failure: Option<Error>,
}

#[derive(Debug)]
struct State {
    /// Every node that was heard of, by its address.
    links: HashMap<Endpoint, Arc<Link>>,
    leaders: HashMap<ShardId, Arc<Link>>,
    is_fetching: bool,
    /// An epoch that was heard of: a node that tells an older map is not the last to be asked.
    wanted_epoch: u64,
    /// Who spoke of it.
    ask_first: Option<Arc<Link>>,
    /// When the next fetch may begin.
    next_fetch: Option<Instant>,
    backoff: Backoff,
}

/// How fresh an answer is needed, and so who may give it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Served {
    ByLeader,
    ByAnyMember,
}

impl Router {
    /// Knows only these nodes. If it does not route, it uses them alone and lets them forward.
    pub(crate) fn new(seeds: Vec<Endpoint>, options: &Options, routes: bool) -> Router {
        let connect_timeout = options.connect_timeout;
        let mut links = HashMap::new();
        let mut link = |endpoint: Endpoint| {
            let link = links.entry(endpoint.clone());
            link.or_insert_with(|| Arc::new(Link::new(endpoint, connect_timeout, routes))).clone()
        };
        let seeds: Vec<Arc<Link>> = seeds.into_iter().map(&mut link).collect();
        let map = (!routes).then(|| Arc::new(Map::of_one_shard(&seeds, false)));
        let state = State {
            links,
            leaders: HashMap::new(),
            is_fetching: false,
            wanted_epoch: 0,
            ask_first: None,
            next_fetch: None,
            backoff: Backoff::new(FETCH_PAUSE.0, FETCH_PAUSE.1),
        };
        let (known, _) = watch::channel(Known { map, ..Known::default() });
        Router { connect_timeout, seeds, routes, known, state: Mutex::new(state) }
    }

    /// False if nodes are to route for us.
    pub(crate) fn routes(&self) -> bool {
        self.routes
    }

    /// The nodes that the client was given.
    pub(crate) fn seeds(&self) -> &[Arc<Link>] {
        &self.seeds
    }

    /// The map, however old; fetched first if there is none.
    pub(crate) async fn map(self: &Arc<Self>, deadline: Instant) -> Result<Arc<Map>, Error> {
        let known = self.known.borrow().map.clone();
        match known {
            Some(map) => {
                if map.has_expired() {
                    self.refresh_soon(None, 0);
                }
                Ok(map)
            }
            None => self.refreshed(deadline).await,
        }
    }

    /// The map after one more fetch; the old one if that brought none.
    pub(crate) async fn refreshed(self: &Arc<Self>, deadline: Instant) -> Result<Arc<Map>, Error> {
        let mut known = self.known.subscribe();
        let before = known.borrow_and_update().fetches;
        self.refresh_soon(None, 0);
        if self.routes {
            // The sender lives as long as the router does.
            let _ = timeout_at(deadline, known.wait_for(|known| known.fetches > before)).await;
        }
        let Known { map, failure, .. } = known.borrow().clone();
        let late = || Error::new(ErrorKind::Unavailable, "no node told its shard map in time");
        map.ok_or_else(|| failure.unwrap_or_else(late))
    }

    /// Starts a fetch unless one is under way. `by` spoke of this epoch.
    pub(crate) fn refresh_soon(self: &Arc<Self>, by: Option<&Arc<Link>>, epoch: u64) {
        if !self.routes {
            return;
        }
        let mut state = self.lock();
        state.wanted_epoch = state.wanted_epoch.max(epoch);
        if let Some(by) = by {
            state.ask_first = Some(by.clone());
        }
        if !std::mem::replace(&mut state.is_fetching, true) {
            tokio::spawn(Fetch { router: self.clone(), is_done: false }.run());
        }
    }

    /// The node to ask, of those not tried yet; `None` if all were tried.
    pub(crate) fn target(
        &self,
        map: &Map,
        shard: ShardId,
        served: Served,
        tried: &[Arc<Link>],
    ) -> Option<Arc<Link>> {
        let is_new = |link: &&Arc<Link>| !tried.iter().any(|tried| Arc::ptr_eq(tried, link));
        let members = map.members(shard);
        let is_member = |link: &&Arc<Link>| members.iter().any(|member| Arc::ptr_eq(member, link));
        let leader = match served {
            Served::ByLeader => self.lock().leaders.get(&shard).or(map.leaders.get(&shard)).cloned(),
            // Any node will do, and one that the caller named most of all.
            Served::ByAnyMember => self.seeds.iter().find(|seed| is_member(seed) && is_new(seed)).cloned(),
        };
        let mut candidates = leader.iter().chain(members).chain(&self.seeds).filter(is_new);
        let sound = candidates.clone().find(|link| !link.is_doubtful());
        sound.or_else(|| candidates.next()).cloned()
    }

    /// A node answered for a shard, or another one named it as its leader.
    pub(crate) fn leads(&self, shard: ShardId, link: &Arc<Link>) {
        let mut state = self.lock();
        if !state.leaders.get(&shard).is_some_and(|known| Arc::ptr_eq(known, link)) {
            state.leaders.insert(shard, link.clone());
        }
    }

    /// A node does not answer for a shard any more.
    pub(crate) fn leads_no_more(&self, shard: ShardId, link: &Arc<Link>) {
        let mut state = self.lock();
        if state.leaders.get(&shard).is_some_and(|known| Arc::ptr_eq(known, link)) {
            state.leaders.remove(&shard);
        }
    }

    /// The link to an address.
    pub(crate) fn link(&self, endpoint: Endpoint) -> Arc<Link> {
        let mut state = self.lock();
        let link = state.links.entry(endpoint.clone());
        link.or_insert_with(|| Arc::new(Link::new(endpoint, self.connect_timeout, self.routes))).clone()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Whom to ask for the map, in which order.
    fn informants(&self, first: Option<Arc<Link>>) -> Vec<Arc<Link>> {
        let known = self.known.borrow();
        let mut order: Vec<Arc<Link>> = Vec::new();
        let members = known.map.iter().flat_map(|map| map.nodes());
        for link in first.iter().chain(members).chain(&self.seeds) {
            if !order.iter().any(|other| Arc::ptr_eq(other, link)) {
                order.push(link.clone());
            }
        }
        // Stable: who is doubtful comes last.
        order.sort_by_key(|link| link.is_doubtful());
        order
    }

    /// Asks one node after the other until one tells a map that is not older than what was heard of.
    async fn fetch(&self, first: Option<Arc<Link>>, wanted_epoch: u64) -> Result<Map, Error> {
        let (mut best, mut last): (Option<Map>, Option<Error>) = (None, None);
        for link in self.informants(first) {
            match self.fetch_from(&link).await {
                Ok(map) if map.epoch >= wanted_epoch => return Ok(map),
                Ok(map) if best.as_ref().is_none_or(|best| best.epoch < map.epoch) => best = Some(map),
                Ok(_) => {}
                Err(error) => last = Some(error),
            }
        }
        let nobody = || Error::new(ErrorKind::Unavailable, "no node is known");
        best.ok_or_else(|| last.unwrap_or_else(nobody))
    }

    async fn fetch_from(&self, link: &Link) -> Result<Map, Error> {
        let endpoint = link.endpoint();
        let answer = get_once(endpoint, CARP, self.connect_timeout, FETCH_TIMEOUT).await;
        let answer = answer.map_err(|error| Error::new(ErrorKind::Unavailable, error.to_string()))?;
        if answer.status == StatusCode::NOT_FOUND {
            // A version before shard maps: every node serves every key.
            return Ok(Map::of_one_shard(&self.seeds, true));
        }
        let unusable = |why: String| {
            let detail = format!("the shard map of {endpoint} is of no use: {why}");
            Error::new(ErrorKind::Unavailable, detail)
        };
        if !answer.status.is_success() {
            return Err(unusable(format!("HTTP status {}", answer.status.as_u16())));
        }
        Map::from_json(&answer.body, |endpoint| self.link(endpoint)).map_err(|why| unusable(why.to_string()))
    }

    /// Takes in what a fetch brought. A map that is older than the present one is of no use.
    fn publish(&self, fetched: Result<Map, Error>) {
        let mut state = self.lock();
        let State { links, leaders, is_fetching, backoff, next_fetch, .. } = &mut *state;
        *is_fetching = false;
        self.known.send_modify(|known| {
            known.fetches += 1;
            match fetched {
                Ok(map) if known.map.as_ref().is_none_or(|known| known.epoch <= map.epoch) => {
                    known.map = Some(Arc::new(map));
                    known.failure = None;
                    backoff.reset();
                }
                Ok(_) => known.failure = None,
                Err(error) => known.failure = Some(error),
            }
            // Nodes that are gone are forgotten, and their connections end.
            let Some(map) = &known.map else { return };
            let is_kept =
                |link: &Arc<Link>| map.nodes().chain(&self.seeds).any(|kept| Arc::ptr_eq(kept, link));
            links.retain(|_, link| is_kept(link));
            leaders.retain(|_, link| is_kept(link));
        });
        *next_fetch = Some(Instant::now() + backoff.next());
    }
}

/// A fetch under way. However it ends, those who wait for it are told.
struct Fetch {
    router: Arc<Router>,
    is_done: bool,
}

impl Fetch {
    async fn run(mut self) {
        let pause = self.router.lock().next_fetch;
        if let Some(until) = pause {
            sleep_until(until).await;
        }
        let (first, wanted_epoch) = {
            let mut state = self.router.lock();
            (state.ask_first.take(), std::mem::take(&mut state.wanted_epoch))
        };
        let present = self.router.known.borrow().map.as_ref().map_or(0, |map| map.epoch);
        let fetched = self.router.fetch(first, wanted_epoch.max(present)).await;
        self.is_done = true;
        self.router.publish(fetched);
    }
}

impl Drop for Fetch {
    fn drop(&mut self) {
        // Its runtime was shut down.
        if !self.is_done {
            let stopped = Error::new(ErrorKind::Unavailable, "the fetch of the shard map was stopped");
            self.router.publish(Err(stopped));
        }
    }
}
