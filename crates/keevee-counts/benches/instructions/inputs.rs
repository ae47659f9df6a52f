//! What the hot paths are given: keys of 20 bytes, values of 128, entries of 64 puts.

use bytes::{Bytes, BytesMut};
use keevee_core::apply::{Entry, ProposalId};
use keevee_core::codec;
use keevee_core::command::{Action, Command, Expiry, Only};
use keevee_core::ids::ShardId;
use keevee_core::slot_table::SlotTable;
use keevee_paxos::{Ballot, Value};
use keevee_resp::parser::{Parser, ParserLimits};

use crate::Connection;

const VALUE_BYTES: usize = 128;
const PUTS: u64 = 64;

/// Keys of consecutive numbers are far from each other.
pub(crate) fn key(number: u64) -> Bytes {
    // Fibonacci hashing (Knuth, volume 3): a bijection, so no key comes twice.
    format!("key:{:016x}", number.wrapping_mul(0x9e37_79b9_7f4a_7c15)).into()
}

fn value(number: u64) -> Bytes {
    vec![number as u8; VALUE_BYTES].into()
}

pub(crate) fn set(number: u64) -> Vec<Bytes> {
    vec![Bytes::from_static(b"SET"), key(number), value(number)]
}

pub(crate) fn gets(count: u64) -> Vec<Vec<Bytes>> {
    (0..count).map(|number| vec![Bytes::from_static(b"GET"), key(number)]).collect()
}

/// A connection that has read these requests, and room for what the parser makes of them.
pub(crate) fn connection(requests: &[Vec<Bytes>]) -> Connection {
    let limits = ParserLimits { arguments_max: 1024, bulk_bytes_max: 1 << 20, request_bytes_max: 2 << 20 };
    let mut buffer = BytesMut::with_capacity(16 << 10);
    for request in requests {
        buffer.extend_from_slice(format!("*{}\r\n", request.len()).as_bytes());
        for argument in request {
            buffer.extend_from_slice(format!("${}\r\n", argument.len()).as_bytes());
            buffer.extend_from_slice(argument);
            buffer.extend_from_slice(b"\r\n");
        }
    }
    (Parser::new(limits), buffer, Vec::with_capacity(requests.len()))
}

/// A slot table of as many equal shards.
pub(crate) fn slot_table(shards: u32) -> SlotTable {
    let members: Vec<(ShardId, u32)> = (1..=shards).map(|id| (ShardId(id), 1)).collect();
    SlotTable::compute(None, &members).expect("members")
}

/// The entry for an index: puts of keys that no other index has.
pub(crate) fn entry(index: u64) -> Entry {
    let put = |number| {
        let (key, value) = (key(number), value(number));
        Command::single(Action::Put { key, value, expires: Expiry::Never, only: Only::Always })
    };
    Entry {
        stamp: 1_700_000_000_000_000 + index,
        proposal: ProposalId { node: 1, boot: 0x5eed, sequence: index },
        commands: (index * PUTS..(index + 1) * PUTS).map(put).collect(),
    }
}

/// The entry for an index as the protocol carries it.
pub(crate) fn payload(index: u64) -> Bytes {
    codec::encode_entry(&entry(index))
}

/// The entry for an index as an acceptor has it.
pub(crate) fn accepted(index: u64) -> keevee_paxos::Entry {
    let ballot = Ballot { round: 1, node: 1 };
    keevee_paxos::Entry { index, ballot, value: Value::Data(payload(index)) }
}
