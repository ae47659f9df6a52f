//! Which ports the nodes listen on.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};

use keevee_client::Endpoint;

use crate::error::ClusterError;

/// Where a node listens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Addresses {
    /// For clients.
    pub(crate) http: SocketAddr,
    /// For other nodes.
    pub(crate) peer: SocketAddr,
    /// For clients that speak the Redis protocol.
    pub(crate) resp: Option<SocketAddr>,
}

impl Addresses {
    pub(crate) fn all(&self) -> impl Iterator<Item = SocketAddr> {
        [Some(self.http), Some(self.peer), self.resp].into_iter().flatten()
    }
}

/// The address of node `id` where `base` is node 1's port.
pub(crate) fn from_base(base: u16, id: u64) -> Result<SocketAddr, ClusterError> {
    let port = u64::from(base) + id - 1;
    match u16::try_from(port) {
        Ok(port) if base > 0 => Ok(local(port)),
        _ => Err(ClusterError::Plan(format!(
            "there is no port {port} for node {id}; choose a first port from 1 to {}",
            65_536 - id
        ))),
    }
}

/// The first of so many successive ports on which nothing listens right now.
///
/// Not ports that the system gives for port 0: it gives those to outgoing connections as well, and one of
/// them would take the port of a node that is down for a moment. So they come from below that range (on
/// Linux it starts at 32,768, on macOS at 49,152), and the system is asked whether they are free. Another
/// program may still be faster: be ready to try again.
pub fn free_ports(count: u16) -> u16 {
    loop {
        let first = rand::random_range(10_000..32_000 - count);
        if (first..first + count).all(|port| is_free(local(port))) {
            return first;
        }
    }
}

/// A node's public address, for a client.
pub(crate) fn endpoint(http: SocketAddr) -> Endpoint {
    http.to_string().parse().expect("a socket address is an endpoint")
}

/// Fails if something listens where a node should.
pub(crate) fn check(node: u64, addresses: &Addresses) -> Result<(), ClusterError> {
    match addresses.all().find(|address| !is_free(*address)) {
        Some(address) => Err(ClusterError::PortTaken { node, address: address.to_string() }),
        None => Ok(()),
    }
}

/// True if a listener could be opened there.
pub fn is_free(address: SocketAddr) -> bool {
    TcpListener::bind(address).is_ok()
}

fn local(port: u16) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, port))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_follow_their_base() {
        assert_eq!(from_base(8001, 3).expect("in range").port(), 8003);
        assert_eq!(from_base(65_535, 1).expect("in range").port(), 65_535);
        assert!(from_base(65_535, 2).is_err());
        assert!(from_base(0, 1).is_err());
    }

    #[test]
    fn free_ports_are_free() {
        let first = free_ports(6);
        assert!((first..first + 6).all(|port| is_free(local(port))));
        let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
        assert!(!is_free(taken.local_addr().expect("its address")));
    }
}
