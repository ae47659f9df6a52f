//! The network between the nodes: each reaches each other one through a proxy of this program, which holds back what
//! goes in one direction, or delays it. Nodes have seats, where they listen; when one is lost for good, another one may
//! get its seat, which the others reach under its own number.
//!
//! What is held back is neither lost nor refused: it arrives once the way is open, as TCP would have it. A proxy needs no
//! rights and works wherever the nodes do, and it can delay, which network namespaces alone can't. Left out is the
//! way of clients, and the few questions (for the shard map, to join) that nodes ask at each other's public address.

use std::collections::BTreeMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::AbortHandle;

/// Bytes taken at once.
const CHUNK_BYTES: usize = 64 << 10;

/// What becomes of what goes one way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    Open,
    Closed,
    /// Each chunk takes so much longer.
    Slow(Duration),
}

/// From one seat to another.
struct Gate {
    way: watch::Sender<Way>,
    /// Chunks that were held back or delayed.
    hindered: AtomicU64,
}

/// The ways between all nodes.
pub(crate) struct Network {
    ways: Arc<Ways>,
    /// Where a node of a seat reaches a node of a number.
    addresses: BTreeMap<(usize, u64), SocketAddr>,
    tasks: Vec<AbortHandle>,
}

struct Ways {
    /// Where the nodes of the seats listen for peers.
    seats: Vec<SocketAddr>,
    gates: BTreeMap<(usize, usize), Gate>,
    /// Which node has which seat.
    seated: Mutex<BTreeMap<u64, usize>>,
}

impl Ways {
    fn seat(&self, node: u64) -> Option<usize> {
        self.seated.lock().unwrap_or_else(PoisonError::into_inner).get(&node).copied()
    }

    fn gate(&self, from: u64, to: u64) -> Option<&Gate> {
        self.gates.get(&(self.seat(from)?, self.seat(to)?))
    }
}

impl Network {
    /// Between seats that are at these addresses. Nodes will have numbers up to `last`; the first ones are seated, in order.
    pub(crate) async fn open(seats: Vec<SocketAddr>, last: u64) -> io::Result<Network> {
        let count = seats.len();
        let pairs = (0..count).flat_map(|from| (0..count).map(move |to| (from, to)));
        let gate = || Gate { way: watch::Sender::new(Way::Open), hindered: AtomicU64::new(0) };
        let gates = pairs.filter(|(from, to)| from != to).map(|pair| (pair, gate())).collect();
        let seated = Mutex::new((1..).zip(0..count).collect());
        let ways = Arc::new(Ways { seats, gates, seated });
        let (mut addresses, mut tasks) = (BTreeMap::new(), Vec::new());
        for (from, to) in (0..count).flat_map(|from| (1..=last).map(move |to| (from, to))) {
            let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
            addresses.insert((from, to), listener.local_addr()?);
            tasks.push(tokio::spawn(serve(listener, from, to, Arc::clone(&ways))).abort_handle());
        }
        Ok(Network { ways, addresses, tasks })
    }

    /// Where a seated node reaches others: those of all numbers that there will be.
    pub(crate) fn addresses(&self, from: u64) -> impl Iterator<Item = (u64, SocketAddr)> {
        let seat = self.ways.seat(from);
        let own = self.addresses.iter().filter(move |((from, _), _)| Some(*from) == seat);
        own.map(|((_, to), address)| (*to, *address))
    }

    /// Gives a node's seat to one of another number.
    pub(crate) fn reseat(&self, node: u64, newcomer: u64) {
        let mut seated = self.ways.seated.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(seat) = seated.remove(&node) {
            seated.insert(newcomer, seat);
        }
    }

    /// From now on, of what goes from one to the other.
    pub(crate) fn set(&self, from: u64, to: u64, way: Way) {
        if let Some(gate) = self.ways.gate(from, to) {
            gate.way.send_replace(way);
        }
    }

    /// Opens all ways.
    pub(crate) fn heal(&self) {
        for gate in self.ways.gates.values() {
            gate.way.send_replace(Way::Open);
        }
    }

    /// How often something was held back or delayed so far.
    pub(crate) fn hindered(&self) -> u64 {
        self.ways.gates.values().map(|gate| gate.hindered.load(Ordering::Relaxed)).sum()
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        self.tasks.iter().for_each(AbortHandle::abort);
    }
}

/// Passes on what comes from a seat for a node.
async fn serve(listener: TcpListener, from: usize, node: u64, ways: Arc<Ways>) {
    loop {
        let Ok((near, _)) = listener.accept().await else {
            // Too many files are open, or whoever came has gone: the next one may do better.
            tokio::time::sleep(Duration::from_millis(10)).await;
            continue;
        };
        let ways = Arc::clone(&ways);
        tokio::spawn(async move {
            // A node that is not there refuses; closing tells whoever came the same.
            let Some(to) = ways.seat(node) else { return };
            let Ok(far) = TcpStream::connect(ways.seats[to]).await else { return };
            let (Some(there), Some(back)) = (ways.gates.get(&(from, to)), ways.gates.get(&(to, from))) else {
                return;
            };
            if near.set_nodelay(true).and(far.set_nodelay(true)).is_err() {
                return;
            }
            let ((near_read, near_write), (far_read, far_write)) = (near.into_split(), far.into_split());
            // When one direction ends, so does the connection.
            tokio::select! {
                () = pass_on(near_read, far_write, there) => {}
                () = pass_on(far_read, near_write, back) => {}
            }
        });
    }
}

async fn pass_on(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, gate: &Gate) {
    let mut way = gate.way.subscribe();
    let mut chunk = vec![0; CHUNK_BYTES];
    loop {
        let Ok(count @ 1..) = from.read(&mut chunk).await else { return };
        let now = *way.borrow_and_update();
        if now != Way::Open {
            gate.hindered.fetch_add(1, Ordering::Relaxed);
        }
        if let Way::Slow(by) = now {
            tokio::time::sleep(by).await;
        }
        if way.wait_for(|way| *way != Way::Closed).await.is_err()
            || to.write_all(&chunk[..count]).await.is_err()
        {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_closed_way_holds_back_and_loses_nothing() {
        let far = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a port");
        let address = far.local_addr().expect("bound");
        let network = Network::open(vec![address, address], 2).await.expect("proxies");
        let mut near = TcpStream::connect(reached(&network, 1, 2)).await.expect("connected");
        let (mut far, _) = far.accept().await.expect("passed on");
        network.set(1, 2, Way::Closed);
        near.write_all(b"there").await.expect("sent");
        // The other direction is open: once this is here, the other would have been too.
        far.write_all(b"back").await.expect("sent");
        let mut back = [0; 4];
        near.read_exact(&mut back).await.expect("it came");
        assert_eq!(&back, b"back");
        while network.hindered() == 0 {
            tokio::task::yield_now().await;
        }
        let mut there = [0; 5];
        assert!(far.try_read(&mut there).is_err(), "nothing came");
        network.heal();
        far.read_exact(&mut there).await.expect("it came");
        assert_eq!(&there, b"there");
    }

    #[tokio::test]
    async fn who_has_a_seat_is_reached_there_and_nobody_else_is() {
        let seats = [(); 2].map(|()| std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port"));
        let seats = seats.map(|seat| {
            seat.set_nonblocking(true).expect("a socket");
            TcpListener::from_std(seat).expect("a listener")
        });
        let addresses = seats.iter().map(|seat| seat.local_addr().expect("bound")).collect();
        let network = Network::open(addresses, 3).await.expect("proxies");
        network.reseat(2, 3);
        let _near = TcpStream::connect(reached(&network, 1, 3)).await.expect("connected");
        let _far = seats[1].accept().await.expect("passed on");
        let mut gone = TcpStream::connect(reached(&network, 1, 2)).await.expect("connected");
        assert_eq!(gone.read(&mut [0; 1]).await.unwrap_or(0), 0, "nobody is there");
        network.set(1, 3, Way::Closed);
        assert_eq!(*network.ways.gates[&(0, 1)].way.borrow(), Way::Closed);
    }

    fn reached(network: &Network, from: u64, to: u64) -> SocketAddr {
        network.addresses(from).find(|(node, _)| *node == to).expect("an address").1
    }
}
