//! The network between the nodes: each reaches each other one through a proxy of this program, which holds back what
//! goes in one direction, or delays it.
//!
//! What is held back is neither lost nor refused: it arrives once the way is open, as TCP would have it. A proxy needs no
//! rights and works wherever the nodes do, and it can delay, which network namespaces alone can't. Left out is the
//! way of clients, and the few questions (for the shard map, to join) that nodes ask at each other's public address.

use std::collections::BTreeMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
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

/// From one node to another.
struct Gate {
    way: watch::Sender<Way>,
    /// Chunks that were held back or delayed.
    hindered: AtomicU64,
}

/// The ways between all nodes.
pub(crate) struct Network {
    gates: BTreeMap<(u64, u64), Arc<Gate>>,
    /// Where a node reaches another one.
    addresses: BTreeMap<(u64, u64), SocketAddr>,
    tasks: Vec<AbortHandle>,
}

impl Network {
    /// Between nodes that listen at these addresses for peers.
    pub(crate) async fn open(peers: &BTreeMap<u64, SocketAddr>) -> io::Result<Network> {
        let pairs = || peers.keys().flat_map(|from| peers.keys().map(move |to| (*from, *to)));
        let gate = || Arc::new(Gate { way: watch::Sender::new(Way::Open), hindered: AtomicU64::new(0) });
        let gates: BTreeMap<_, _> =
            pairs().filter(|(from, to)| from != to).map(|pair| (pair, gate())).collect();
        let (mut addresses, mut tasks) = (BTreeMap::new(), Vec::new());
        for (from, to) in gates.keys() {
            let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
            addresses.insert((*from, *to), listener.local_addr()?);
            let (there, back) = (gates[&(*from, *to)].clone(), gates[&(*to, *from)].clone());
            tasks.push(tokio::spawn(serve(listener, peers[to], there, back)).abort_handle());
        }
        Ok(Network { gates, addresses, tasks })
    }

    /// Where `from` reaches `to`.
    pub(crate) fn address(&self, from: u64, to: u64) -> SocketAddr {
        self.addresses[&(from, to)]
    }

    /// From now on, of what goes from one to the other.
    pub(crate) fn set(&self, from: u64, to: u64, way: Way) {
        self.gates[&(from, to)].way.send_replace(way);
    }

    /// Opens all ways.
    pub(crate) fn heal(&self) {
        for gate in self.gates.values() {
            gate.way.send_replace(Way::Open);
        }
    }

    /// How often something was held back or delayed so far.
    pub(crate) fn hindered(&self) -> u64 {
        self.gates.values().map(|gate| gate.hindered.load(Ordering::Relaxed)).sum()
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        self.tasks.iter().for_each(AbortHandle::abort);
    }
}

async fn serve(listener: TcpListener, to: SocketAddr, there: Arc<Gate>, back: Arc<Gate>) {
    loop {
        let Ok((near, _)) = listener.accept().await else {
            // Too many files are open, or whoever came has gone: the next one may do better.
            tokio::time::sleep(Duration::from_millis(10)).await;
            continue;
        };
        let (there, back) = (there.clone(), back.clone());
        tokio::spawn(async move {
            // A node that is down refuses; closing tells whoever came the same.
            let Ok(far) = TcpStream::connect(to).await else { return };
            if near.set_nodelay(true).and(far.set_nodelay(true)).is_err() {
                return;
            }
            let ((near_read, near_write), (far_read, far_write)) = (near.into_split(), far.into_split());
            // When one direction ends, so does the connection.
            tokio::select! {
                () = pass_on(near_read, far_write, &there) => {}
                () = pass_on(far_read, near_write, &back) => {}
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
        let network = Network::open(&[(1, address), (2, address)].into()).await.expect("proxies");
        let mut near = TcpStream::connect(network.address(1, 2)).await.expect("connected");
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
}
