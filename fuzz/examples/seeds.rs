//! Writes the seeds of the targets, of real bytes: `cargo +nightly run --example seeds` in this folder. Run it again after
//! a change of a layout; the seeds of before stay good for something.

use std::fs;
use std::path::Path;

use bytes::{Bytes, BytesMut};
use keevee_core::codec;
use keevee_core::command::{Action, Command, Expiry, Only};
use keevee_core::cut::{Encoder, Head};
use keevee_core::ids::{NodeId, ShardId, StoreId};
use keevee_core::slots::SlotSet;
use keevee_fuzz::storage::format::{self, Identity};
use keevee_paxos::{Ballot, Entry, Value};
use uuid::Uuid;

/// Every item of gRPC's, as hexadecimal text: `name bytes` on each line.
const ITEMS: &str = include_str!("../../crates/keevee-server/src/transport/wire/items_v1.txt");

fn main() {
    for (name, bytes) in ITEMS.lines().filter_map(|line| line.split_once(' ')) {
        write("peer_frames", name, 0, &bytes_of(bytes));
    }
    let put = Action::Put { key: "key".into(), value: "value".into(), expires: Expiry::Never, only: Only::Always };
    let command = codec::encode_command(&Command::single(put));
    let entry = codec::join_entry(1_700_000_000_000_000, Default::default(), &[command.clone()]);
    let value = Value::Data(entry.clone());
    let paxos = Entry { index: 7, ballot: Ballot { round: 3, node: 1 }, value };
    write("log_records", "paxos_entry", 0, &keevee_replica::records::encode_entry(&paxos));
    write("log_records", "entry", 4, &entry);
    write("log_records", "command", 5, &command);
    let id = Uuid::from_u128(7);
    let identity = Identity { cluster_id: id, node_id: NodeId(1), store_id: StoreId(id) };
    write("log_records", "identity", 11, &format::encode_identity(&identity));
    let members = [(NodeId(1), StoreId(id)), (NodeId(2), StoreId(id))];
    write("log_records", "first_members", 12, &format::encode_first_members(&members));
    write("log_records", "owned", 13, &SlotSet::all().to_bytes());
    let mut cut = BytesMut::new();
    let mut encoder =
        Encoder::begin(&Head { shard: ShardId(1), time: 1_700_000_000_000_000, owned: SlotSet::all() }, &mut cut);
    encoder.add(b"a", b"1", None, &mut cut);
    encoder.add(b"b", b"2", Some(1_800_000_000_000_000), &mut cut);
    encoder.end(&mut cut);
    write("manifests", "cut", 7, &cut);
    write("manifests", "manifest", 0, &fs::read(Path::new("examples/manifest.json")).expect("a sample"));
    for (name, path) in [("keevee", "examples/keevee.toml"), ("cluster", "../Config.toml")] {
        let text = fs::read(path).expect("a sample");
        put_file("configuration", name, &Bytes::from(text));
    }
}

/// A seed whose first byte says what it is.
fn write(target: &str, name: &str, kind: u8, bytes: &[u8]) {
    put_file(target, name, &[&[kind], bytes].concat());
}

fn put_file(target: &str, name: &str, bytes: &[u8]) {
    let folder = Path::new("seeds").join(target);
    fs::create_dir_all(&folder).and_then(|()| fs::write(folder.join(name), bytes)).expect("written");
}

fn bytes_of(hexadecimal: &str) -> Vec<u8> {
    let digits = hexadecimal.as_bytes().chunks(2);
    let byte = |pair| u8::from_str_radix(str::from_utf8(pair).expect("ASCII"), 16).expect("hexadecimal");
    digits.map(byte).collect()
}
