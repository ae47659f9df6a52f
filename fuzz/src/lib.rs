//! What the targets need of code that is private where it belongs.
//!
//! Files of `keevee-server` and of the command line are read from where they are. As crates they bring RocksDB, whose C++
//! takes ages under a sanitizer; these files do not need it. Around them stand the few types that they name.
#![allow(dead_code, unused_imports, unreachable_pub)]

#[path = "../../crates/keevee-server/src/config.rs"]
pub mod config;
#[path = "../../crates/keevee/src/backup/folder.rs"]
mod folder;
#[path = "../../crates/keevee-server/src/storage/format.rs"]
pub mod format;
#[path = "../../crates/keevee-server/src/transport/messages.rs"]
mod messages;
#[path = "../../crates/keevee-server/src/storage/journal/scan.rs"]
mod scan;
#[path = "../../crates/keevee-server/src/storage/journal/sector.rs"]
mod sector;
#[path = "../../crates/keevee-replica/src/snapshot.rs"]
mod snapshot;
#[path = "../../crates/keevee-server/src/transport/http_json/text.rs"]
mod text;
#[path = "../../crates/keevee/src/backup/time.rs"]
mod time;
#[path = "../../crates/keevee-server/src/transport/wire.rs"]
mod wire;

use messages::{Forward, ForwardReply, PeerMessage};

/// Of `keevee-server/src/engine.rs`: what the configuration says.
pub mod engine {
    use std::time::Duration;

    pub struct Timing {
        pub heartbeat: Duration,
        pub timeout_min: Duration,
        pub timeout_max: Duration,
    }
}

/// Of `keevee-server/src/storage.rs` and `keevee-replica/src/storage.rs`.
pub mod storage {
    pub use super::format;
    pub use super::format::FirstMember;
    pub use keevee_replica::storage::*;
}

/// One snapshot from a source to a target, without replicas.
pub mod transfer {
    use std::time::Duration;

    use bytes::Bytes;
    use keevee_core::ids::NodeId;

    pub use super::snapshot::SnapshotChunk;
    use super::snapshot::{Answer, Progress, Receiving, Sending};
    use super::storage::{Intake, SnapshotRecord, SnapshotSource, SnapshotTarget, StorageError};

    /// One record to a chunk.
    struct Source(std::vec::IntoIter<SnapshotRecord>);

    impl SnapshotSource for Source {
        const LAYOUT: u32 = 3;

        fn read(&mut self, _: usize) -> Result<Vec<SnapshotRecord>, StorageError> {
            Ok(self.0.by_ref().take(1).collect())
        }
    }

    #[derive(Default)]
    struct Target {
        records: Vec<SnapshotRecord>,
        has_ended: bool,
    }

    impl SnapshotTarget for Target {
        fn write(&mut self, records: Vec<SnapshotRecord>) {
            assert!(!self.has_ended);
            self.records.extend(records);
        }

        fn end(&mut self) {
            self.has_ended = true;
        }

        fn progress(&mut self) -> Intake {
            Intake::Ready
        }
    }

    /// All chunks of these records, which ascend.
    pub fn chunks(records: Vec<SnapshotRecord>) -> Vec<SnapshotChunk> {
        let mark = Bytes::from_static(b"mark");
        let source = Source(records.into_iter());
        let mut sending = Sending::new(Duration::ZERO, 9, 100, 0, mark, source, 1).expect("no disk");
        let mut chunks = Vec::new();
        while let Answer::Chunk(chunk) = sending.answer(Duration::ZERO, chunks.len() as u64).expect("no disk") {
            chunks.push(chunk);
        }
        chunks
    }

    /// What a receiver makes of chunks: all records, if it takes them for whole.
    pub fn receive(chunks: Vec<SnapshotChunk>) -> Option<Vec<SnapshotRecord>> {
        let mut receiving = Receiving::new(Duration::ZERO, NodeId(2), 9, Target::default());
        for chunk in chunks {
            if receiving.take(Duration::ZERO, Source::LAYOUT, 1 << 20, chunk) == Progress::Unfit {
                return None;
            }
        }
        receiving.end()?;
        Some(receiving.target.records)
    }
}

/// Of `keevee-server/src/transport.rs`.
pub mod transport {
    pub mod http_json {
        pub(crate) use crate::text;
    }

    use bytes::Bytes;
    use keevee_core::ids::ShardId;
    use prost::Message;

    pub use super::messages::{Forward, ForwardReply, PeerMessage, PeerProtocol};
    use super::wire::{self, proto};

    /// Reads an item of gRPC's as a node does. What is read must come back the same once it is written again.
    pub fn read_item(bytes: Bytes) {
        let Ok(item) = proto::Item::decode(bytes) else { return };
        let _ = wire::read_handshake(Some(item.clone()));
        match item.item {
            Some(wire::Item::Batch(batch)) => {
                for messages in batch.shards {
                    if let Ok((shard, messages, _)) = wire::read_shard(messages) {
                        comes_back(shard, messages);
                    }
                }
            }
            Some(wire::Item::Request(request)) => {
                let (number, forward) = wire::read_forward_request(request);
                let again = wire::forward_request(number, forward.clone());
                let Some(wire::Item::Request(again)) = again.item else { panic!("a request") };
                let (number_again, again) = wire::read_forward_request(again);
                assert_eq!((number, forward.shard, forward.time_left), (number_again, again.shard, again.time_left));
                assert_eq!(forward.commands, again.commands);
            }
            Some(wire::Item::Answer(answer)) => {
                if let (number, Ok(replies)) = wire::read_forward_answer(answer) {
                    let again = wire::forward_answer(number, replies.clone());
                    let Some(wire::Item::Answer(again)) = again.item else { panic!("an answer") };
                    let (number_again, again) = wire::read_forward_answer(again);
                    assert_eq!((number, replies), (number_again, again.expect("what was written")));
                }
            }
            Some(wire::Item::Handshake(_)) | None => {}
        }
    }

    fn comes_back(shard: ShardId, messages: Vec<PeerMessage>) {
        if messages.is_empty() {
            return;
        }
        let written = wire::batch(messages.iter().map(|message| (shard, message.clone())).collect());
        let read = proto::Item::decode(written.encode_to_vec().as_slice()).expect("what was written");
        let Some(wire::Item::Batch(mut batch)) = read.item else { panic!("a batch") };
        let (shard_again, again, unknown) = wire::read_shard(batch.shards.remove(0)).expect("what was written");
        assert_eq!((shard, messages, 0), (shard_again, again, unknown));
    }

    /// Where messages are posted as JSON.
    const PATHS: [&str; 13] = [
        "/heartbeat",
        "/paxos/poll",
        "/paxos/prepare",
        "/paxos/promise",
        "/paxos/accept",
        "/paxos/read_index/reply",
        "/chain_hash",
        "/raft",
        "/alive",
        "/snapshot/chunk",
        wire::HELLO_PATH,
        wire::FORWARD_PATH,
        "/else",
    ];

    /// Reads a post of JSON's as a node does.
    pub fn read_post(path: u8, body: &[u8]) {
        let path = PATHS[usize::from(path) % PATHS.len()];
        match path {
            wire::HELLO_PATH => drop(wire::read_hello(body)),
            wire::FORWARD_PATH => drop((wire::read_forward(body), wire::read_replies(body))),
            path => {
                if let Ok((envelope, messages)) = wire::read_messages(path, body) {
                    comes_back(ShardId(envelope.shard), messages);
                }
            }
        }
    }
}

/// Of `keevee-server/src/storage/journal.rs`.
pub mod journal {
    use keevee_core::ids::StoreId;

    use super::scan::{Scan, first_missing};
    use super::sector::{RecordShape, SECTOR, segment_seed};

    /// What befalls a segment on its disk. Places count sectors, from the front of what was written.
    #[derive(Clone, Copy, Debug)]
    pub enum Damage {
        Flip { place: u16, byte: u16, bits: u8 },
        /// It was never written.
        Empty { place: u16 },
        /// It was written to another place.
        Misdirect { from: u16, to: u16 },
    }

    /// Writes records of these lengths into a segment, damages it and reads it as a node does at its start. It is refused, or
    /// what is read is what was written, up to some record.
    pub fn damage_is_found(lengths: &[u16], damage: &[Damage]) {
        let seed = segment_seed(StoreId(uuid::Uuid::from_u128(7)), 1);
        let mut bytes = Vec::new();
        let written: Vec<Vec<u8>> =
            (1..).zip(lengths).map(|(fill, length)| vec![fill; usize::from(*length)]).collect();
        for (sequence, record) in (1..).zip(&written) {
            let (shape, offset) = (RecordShape::of(record.len()), bytes.len());
            bytes.resize(offset + shape.bytes() as usize, 0);
            shape.encode(record, sequence, seed.wrapping_add((offset / SECTOR) as u64), &mut bytes[offset..]);
        }
        let whole = bytes.clone();
        let (sectors, _) = bytes.as_chunks_mut::<SECTOR>();
        if sectors.is_empty() {
            return;
        }
        let count = sectors.len();
        let at = |place: u16| usize::from(place) % count;
        for damage in damage {
            match *damage {
                Damage::Flip { place, byte, bits } => sectors[at(place)][usize::from(byte) % SECTOR] ^= bits,
                Damage::Empty { place } => sectors[at(place)].fill(0),
                Damage::Misdirect { from, to } => sectors[at(to)] = sectors[at(from)],
            }
        }
        let mut found = Vec::new();
        let mut scan = Scan::new(1, seed);
        // As a file is read, a part at a time.
        if sectors.chunks(3).any(|some| scan.read(some, &mut found).is_err()) {
            return;
        }
        found.sort_unstable_by_key(|record| record.sequence);
        if first_missing(&found, 0, scan.highest()).is_some() {
            return;
        }
        for (record, written) in found.iter().zip(&written) {
            let (from, shape) = (record.offset as usize, &record.shape);
            assert_eq!(shape.decode(&bytes[from..from + shape.bytes() as usize]), *written);
        }
        assert!(found.len() <= written.len());
        assert!(bytes != whole || found.len() == written.len(), "nothing was damaged");
    }
}

/// Of the command line's `backup.rs`.
pub mod backup {
    use super::folder;

    /// Reads a manifest as `keevee restore` does. What is read must come back the same.
    pub fn read_manifest(text: &[u8]) {
        if let Ok(manifest) = folder::Manifest::parse(text, "manifest.json".into()) {
            let again = serde_json::to_vec_pretty(&manifest).expect("JSON");
            let again = folder::Manifest::parse(&again, "manifest.json".into()).expect("what was written");
            assert_eq!(manifest, again);
            let _ = (manifest.keys(), manifest.bytes());
        }
    }
}
