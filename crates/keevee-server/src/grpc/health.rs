//! `grpc.health.v1.Health`: serving while the node would say on HTTP's `/readyz` that it is ready.

use std::time::Duration;

use axum::body::Body;
use axum::response::{IntoResponse, Response};
use http::Request;
use hyper::body::Incoming;
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_server::{self, HealthServer};
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse};
use tower_service::Service;

use super::failure::Failure;
use super::stops;
use crate::http::Store;
use crate::http::problem::Problem;

/// The node as a whole, and its one service.
const SERVICES: [&str; 2] = ["", "keevee.v1.Kv"];
/// A request holds the name of a service, and nothing else.
const MESSAGE_BYTES_MAX: usize = 4096;
/// How often a watched node is looked at. Nobody watches most of the time, and then nothing is done.
const WATCH_INTERVAL: Duration = Duration::from_millis(100);

/// The service. Cheap to clone.
#[derive(Clone)]
pub(super) struct Health<S> {
    server: HealthServer<Readiness<S>>,
    body_timeout: Duration,
}

struct Readiness<S> {
    store: S,
    stopping: watch::Receiver<bool>,
}

impl<S: Store> Health<S> {
    pub(super) fn new(store: S, body_timeout: Duration, stopping: watch::Receiver<bool>) -> Health<S> {
        let server = HealthServer::new(Readiness { store, stopping });
        Health { server: server.max_decoding_message_size(MESSAGE_BYTES_MAX), body_timeout }
    }

    pub(super) async fn handle(&self, request: Request<Incoming>) -> Response {
        // The answer to a watch begins at once, so this bounds the time in which the request arrives.
        match timeout(self.body_timeout, self.server.clone().call(request)).await {
            Ok(Ok(response)) => response.map(Body::new),
            Ok(Err(never)) => match never {},
            Err(_) => {
                let detail = format!("the message did not arrive within {:?}", self.body_timeout);
                Failure::from(Problem::invalid(detail)).into_response()
            }
        }
    }
}

impl<S: Store> Readiness<S> {
    fn status(&self, service: &str) -> ServingStatus {
        if !SERVICES.contains(&service) {
            ServingStatus::ServiceUnknown
        } else if self.store.is_ready() && !*self.stopping.borrow() {
            ServingStatus::Serving
        } else {
            ServingStatus::NotServing
        }
    }
}

#[tonic::async_trait]
impl<S: Store> health_server::Health for Readiness<S> {
    async fn check(
        &self,
        request: tonic::Request<HealthCheckRequest>,
    ) -> Result<tonic::Response<HealthCheckResponse>, Status> {
        match self.status(&request.get_ref().service) {
            ServingStatus::ServiceUnknown => Err(Status::not_found("there is no such service")),
            status => Ok(tonic::Response::new(HealthCheckResponse { status: status.into() })),
        }
    }

    type WatchStream = ReceiverStream<Result<HealthCheckResponse, Status>>;

    /// An unknown service is told as that and watched on, as the protocol wants. A node that stops says so, and
    /// ends the stream.
    async fn watch(
        &self,
        request: tonic::Request<HealthCheckRequest>,
    ) -> Result<tonic::Response<Self::WatchStream>, Status> {
        let service = request.into_inner().service;
        let mut stopping = self.stopping.clone();
        let readiness = Readiness { store: self.store.clone(), stopping: self.stopping.clone() };
        let (statuses, sent) = mpsc::channel(1);
        tokio::spawn(async move {
            let (mut told, mut is_last) = (None, false);
            loop {
                let status = readiness.status(&service);
                if told.replace(status) != Some(status) {
                    let response = HealthCheckResponse { status: status.into() };
                    if statuses.send(Ok(response)).await.is_err() {
                        return;
                    }
                }
                if is_last {
                    return;
                }
                tokio::select! {
                    () = tokio::time::sleep(WATCH_INTERVAL) => {}
                    () = stops(&mut stopping) => is_last = true,
                    () = statuses.closed() => return,
                }
            }
        });
        Ok(tonic::Response::new(ReceiverStream::new(sent)))
    }
}
