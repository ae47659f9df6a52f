//! One connection, whatever it speaks: operations are added, sent together, and answered in order.

use std::io;
use std::sync::Arc;

use keevee_client::Endpoint;

use super::grpc::Calls;
use super::wire::{Wire, invalid};
use super::workload::{Kind, Protocol, Workload};
use super::{http, resp};

/// What to do, to which key. The value is a put's.
#[derive(Clone, Copy, Debug)]
pub(super) struct Operation<'a> {
    pub(super) kind: Kind,
    pub(super) key: &'a str,
    pub(super) value: &'a [u8],
}

/// What became of an operation: done, or the kind of its failure.
pub(super) type Answer = Result<(), String>;

pub(super) struct Connection {
    workload: Arc<Workload>,
    endpoint: Endpoint,
    requests: Requests,
}

/// What is added and what carries it.
enum Requests {
    Bytes { waiting: Vec<u8>, wire: Wire },
    Calls(Box<Calls>),
}

impl Connection {
    pub(super) async fn open(workload: Arc<Workload>, endpoint: Endpoint) -> io::Result<Connection> {
        let requests = match workload.protocol {
            Protocol::Grpc | Protocol::Etcd => {
                Requests::Calls(Box::new(Calls::open(&endpoint, workload.clone()).await?))
            }
            Protocol::Http | Protocol::Resp => {
                let mut wire = Wire::open(&endpoint).await?;
                if workload.protocol == Protocol::Resp && workload.stale {
                    resp::read_only(&mut wire).await?;
                }
                Requests::Bytes { waiting: Vec::new(), wire }
            }
        };
        Ok(Connection { workload, endpoint, requests })
    }

    pub(super) fn add(&mut self, operation: &Operation<'_>) {
        match &mut self.requests {
            Requests::Calls(calls) => calls.add(operation),
            Requests::Bytes { waiting, .. } if self.workload.protocol == Protocol::Resp => {
                resp::add(waiting, operation);
            }
            Requests::Bytes { waiting, .. } => http::add(waiting, operation, &self.endpoint, &self.workload),
        }
    }

    /// Sends what was added since.
    pub(super) async fn send(&mut self) -> io::Result<()> {
        match &mut self.requests {
            Requests::Calls(calls) => calls.send().await,
            Requests::Bytes { waiting, wire } => {
                wire.send(waiting).await?;
                waiting.clear();
                Ok(())
            }
        }
    }

    /// The answer to the first operation that was sent and has none yet, which is of this kind.
    pub(super) async fn answer(&mut self, kind: Kind) -> io::Result<Answer> {
        match &mut self.requests {
            Requests::Calls(calls) => calls.answer(kind).await,
            Requests::Bytes { wire, .. } if self.workload.protocol == Protocol::Resp => {
                resp::answer(wire).await
            }
            Requests::Bytes { wire, .. } => http::answer(wire, kind).await,
        }
    }

    /// Fails if more came than was asked for: then no answer is sure to be that to its request.
    pub(super) fn check_is_quiet(&self) -> io::Result<()> {
        match &self.requests {
            Requests::Bytes { wire, .. } if wire.has_more() => {
                Err(invalid("more answers came than requests went"))
            }
            _ => Ok(()),
        }
    }
}
