//! `grpc.health.v1.Health`.

use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use super::*;

fn of(service: &str) -> HealthCheckRequest {
    HealthCheckRequest { service: service.to_owned() }
}

#[tokio::test]
async fn a_node_is_serving_while_it_is_ready() {
    let server = Server::start().await;
    let mut client = HealthClient::new(server.channel().await);
    for service in ["", "keevee.v1.Kv"] {
        for (is_ready, expected) in [(true, ServingStatus::Serving), (false, ServingStatus::NotServing)] {
            server.store.set_ready(is_ready);
            let status = client.check(of(service)).await.unwrap().into_inner().status();
            assert_eq!(status, expected, "{service}");
        }
    }
    let status = client.check(of("keevee.v2.Kv")).await.unwrap_err();
    assert_eq!(status.code(), Code::NotFound);
}

#[tokio::test]
async fn who_watches_is_told_of_changes_and_of_the_end() {
    let mut server = Server::start().await;
    let mut client = HealthClient::new(server.channel().await);
    let mut watched = client.watch(of("keevee.v1.Kv")).await.unwrap().into_inner();
    let mut unknown = client.watch(of("keevee.v2.Kv")).await.unwrap().into_inner();
    let status = within(unknown.message()).await.unwrap().unwrap().status();
    assert_eq!(status, ServingStatus::ServiceUnknown);
    for (is_ready, expected) in
        [(true, ServingStatus::Serving), (false, ServingStatus::NotServing), (true, ServingStatus::Serving)]
    {
        server.store.set_ready(is_ready);
        let status = within(watched.message()).await.unwrap().unwrap().status();
        assert_eq!(status, expected);
    }
    server.stop.take().unwrap().send(()).unwrap();
    let status = within(watched.message()).await.unwrap().unwrap().status();
    assert_eq!(status, ServingStatus::NotServing);
    assert_eq!(within(watched.message()).await.unwrap(), None);
    assert_eq!(within(unknown.message()).await.unwrap(), None);
    within(server.task).await.unwrap();
}
