//! The peer transport as readable JSON over HTTP/1.1: for teaching and debugging, and sound enough to
//! run on.
//!
//! Every request is a `POST` with `authorization: Bearer <secret>` and a body of `proto/peer.proto`'s
//! types as JSON. Messages go as `{"envelope":{…},"messages":[…]}`, each kind to its own path, and are
//! answered by 204 as soon as the node has them; what the node says to them comes as posts of its own.
//!
//! | path | messages |
//! | --- | --- |
//! | `/heartbeat`, `/heartbeat/reply` | a leader's heartbeat; what a follower has |
//! | `/paxos/poll`, `/paxos/poll/reply` | may I stand for leader |
//! | `/paxos/prepare`, `/paxos/promise` | phase 1 |
//! | `/paxos/accept`, `/paxos/accepted` | phase 2 |
//! | `/paxos/chosen`, `/paxos/refused` | more is chosen; a higher ballot is promised |
//! | `/paxos/read_index`, `/paxos/read_index/reply` | which index a linearizable read must have applied |
//! | `/paxos/take_over` | leadership is handed over |
//! | `/chain_hash` | a replica's chain hash at an index |
//! | `/hello` | the first post of a lane, and one now and then: `{"envelope":{…}}` |
//! | `/forward` | commands for a leader; answered by 200 and a reply to each, when they are done |
//!
//! To each peer there are two lanes, one for what tells that a node is alive (heartbeats, polls, read
//! indexes) and one for the rest, each one keep-alive connection on which posts keep their order; and a
//! few connections for forwards. Who does not prove to be a peer gets 403; every error is an
//! `application/problem+json` that says what is wrong.
//!
//! It leaves out encryption: peers must share a network that nobody else listens to.

mod forward;
mod posts;
pub(super) mod server;
pub(super) mod text;

pub(super) use self::forward::Pool;
