//! INFO and WAIT.

use keevee_resp::REDIS_VERSION;
use keevee_resp::command::ServerCall;
use keevee_resp::reply::Reply;

use super::Resp;

impl Resp {
    pub(super) async fn server_call(&self, call: ServerCall) -> Reply {
        match call {
            ServerCall::Cluster(call) => self.cluster(call).await,
            ServerCall::Info(sections) => self.info(&sections),
            ServerCall::Wait => Reply::Integer(self.replicas_that_hold_writes()),
        }
    }

    /// A write that was acknowledged is on the disks of a majority, whatever shard it is of: the others beside the leader.
    fn replicas_that_hold_writes(&self) -> i64 {
        let map = self.node.directory().map();
        map.data_shards().map(|shard| shard.members.len() as i64 / 2).min().unwrap_or(0)
    }

    fn info(&self, asked: &[String]) -> Reply {
        let metrics = &self.metrics.resp;
        let map = self.node.directory().map();
        let uptime = self.started.elapsed().as_secs();
        let sections = [
            (
                "Server",
                vec![
                    ("redis_version", REDIS_VERSION.to_owned()),
                    ("redis_mode", "cluster".to_owned()),
                    ("keevee_version", env!("CARGO_PKG_VERSION").to_owned()),
                    ("keevee_node", self.node.id().to_string()),
                    ("process_id", std::process::id().to_string()),
                    ("uptime_in_seconds", uptime.to_string()),
                    ("uptime_in_days", (uptime / 86_400).to_string()),
                ],
            ),
            (
                "Clients",
                vec![
                    ("connected_clients", metrics.connections.get().to_string()),
                    ("maxclients", self.connections_max.to_string()),
                ],
            ),
            (
                "Memory",
                vec![
                    ("keevee_requests_room_free", self.room.available_permits().to_string()),
                    ("keevee_replies_room_free", self.replies_room.available_permits().to_string()),
                ],
            ),
            ("Persistence", vec![("loading", "0".to_owned()), ("aof_enabled", "1".to_owned())]),
            (
                "Stats",
                vec![
                    ("total_commands_processed", metrics.commands_processed().to_string()),
                    (
                        "total_connections_received",
                        self.accepted.load(std::sync::atomic::Ordering::Relaxed).to_string(),
                    ),
                ],
            ),
            // To a client every node is one that takes writes.
            ("Replication", vec![("role", "master".to_owned()), ("connected_slaves", "0".to_owned())]),
            (
                "Cluster",
                vec![
                    ("cluster_enabled", "1".to_owned()),
                    ("keevee_epoch", map.epoch.to_string()),
                    ("keevee_shards", map.data_shards().count().to_string()),
                ],
            ),
        ];
        let is_asked = |name: &str| {
            let everything = ["all", "default", "everything"];
            asked.is_empty()
                || asked
                    .iter()
                    .any(|asked| asked.eq_ignore_ascii_case(name) || everything.contains(&asked.as_str()))
        };
        let told = sections.into_iter().filter(|(name, _)| is_asked(name)).map(|(name, lines)| {
            let lines = lines.into_iter().map(|(name, value)| format!("{name}:{value}\r\n"));
            format!("# {name}\r\n{}", lines.collect::<String>())
        });
        Reply::Text(told.collect::<Vec<_>>().join("\r\n"))
    }
}
