//! How many instructions the hot paths take, as callgrind counts them. `scripts/count.sh` runs it and compares.
//!
//! Each case runs once, in a process of its own; its arguments are made, and its result is dropped, outside of what is
//! counted. It leaves out what instructions do not tell: cache misses, system calls, waits.

#![allow(missing_docs, unreachable_pub, reason = "of what gungraun's macros make")]

use std::hint::black_box;

use bytes::{Bytes, BytesMut};
use gungraun::Callgrind;
use gungraun::prelude::*;
use keevee_core::apply::Entry;
use keevee_core::codec;
use keevee_core::ids::ShardId;
use keevee_core::slot_table::SlotTable;
use keevee_core::slots::{self, Slot};
use keevee_paxos::{Input, Output, Replica};
use keevee_replica::records;
use keevee_replica::storage::StateStore;
use keevee_resp::parser::{Parser, Request};

mod group;
mod inputs;
mod shard;

use shard::Shard;

/// As the program has it.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// A thread's cache of free memory keeps what it gets. By default it gives some back at times, and what it finds when it
/// needs more depends on RocksDB's threads: counts would differ by some percent from run to run.
const ALLOCATOR_SETTINGS: &str =
    "tcache_gc_incr_bytes:1073741824,tcache_nslots_small_min:2000,tcache_nslots_small_max:2000";

/// An argument, after the same was done with one like it: the allocator has the memory at hand, as in a process that runs
/// for long.
fn warm<A, R>(make: impl Fn() -> A, run: impl Fn(A) -> R) -> A {
    drop(run(make()));
    make()
}

/// A connection's parser, what was read, and the requests in it.
type Connection = (Parser, BytesMut, Vec<Request>);

fn parse_all((mut parser, mut buffer, mut requests): Connection) -> Connection {
    while let Some(request) = parser.parse(&mut buffer).expect("requests are valid") {
        requests.push(request);
    }
    (parser, buffer, requests)
}

#[library_benchmark]
#[bench::one_set(warm(|| inputs::connection(&[inputs::set(1)]), parse_all))]
#[bench::sixteen_gets(warm(|| inputs::connection(&inputs::gets(16)), parse_all))]
fn parse(connection: Connection) -> Connection {
    parse_all(connection)
}

#[library_benchmark]
#[bench::of_a_key(inputs::key(1))]
fn slot(key: Bytes) -> (Bytes, Slot) {
    let slot = slots::slot(black_box(&key));
    (key, slot)
}

#[library_benchmark]
#[bench::among_64_shards(inputs::slot_table(64), inputs::key(1))]
fn owner(table: SlotTable, key: Bytes) -> (SlotTable, Bytes, ShardId) {
    let owner = table.owner_of_key(black_box(&key));
    (table, key, owner)
}

#[library_benchmark]
#[bench::of_64_puts(warm(|| inputs::entry(1), |entry| codec::encode_entry(&entry)))]
fn encode(entry: Entry) -> (Entry, Bytes) {
    let bytes = codec::encode_entry(black_box(&entry));
    (entry, bytes)
}

// What an acceptor writes to its log: the encoded entry once more, behind its ballot.
#[library_benchmark]
#[bench::of_64_puts(warm(|| inputs::accepted(1), |entry| records::encode_entry(&entry)))]
fn encode_for_log(entry: keevee_paxos::Entry) -> (keevee_paxos::Entry, Bytes) {
    let bytes = records::encode_entry(black_box(&entry));
    (entry, bytes)
}

#[library_benchmark]
#[bench::of_64_puts(warm(|| inputs::payload(1), codec::decode_entry))]
fn decode(bytes: Bytes) -> Entry {
    codec::decode_entry(bytes).expect("an entry")
}

#[library_benchmark]
#[bench::proposes(group::before_proposal())]
#[bench::acknowledges(group::before_own_acknowledgement())]
#[bench::chooses(args = (group::before_choice()), teardown = group::assert_chosen)]
fn leader((replica, input): (Replica, Input)) -> (Replica, Output) {
    group::step(replica, input)
}

#[library_benchmark]
#[bench::accepts(group::before_acceptance())]
fn follower((replica, input): (Replica, Input)) -> (Replica, Output) {
    group::step(replica, input)
}

// What it writes is gathered in memory: RocksDB is not asked.
#[library_benchmark]
#[bench::of_64_puts(Shard::with_applied(4), inputs::entry(5))]
fn apply(mut shard: Shard, entry: Entry) -> (Shard, Entry) {
    shard.apply(black_box(&entry));
    (shard, entry)
}

// RocksDB gets what is gathered.
#[library_benchmark]
#[bench::of_16_entries(Shard::with_applied(16))]
fn write_out(shard: Shard) -> (Shard, u64) {
    let flushed = shard.state.flushed().expect("a state that can be read");
    (shard, flushed)
}

library_benchmark_group!(name = resp, benchmarks = [parse]);
library_benchmark_group!(name = key, benchmarks = [slot, owner]);
library_benchmark_group!(name = entry, benchmarks = [encode, encode_for_log, decode]);
library_benchmark_group!(name = paxos, benchmarks = [leader, follower]);
library_benchmark_group!(name = state, benchmarks = [apply, write_out]);

main!(
    config = LibraryBenchmarkConfig::default()
        .env("MALLOC_CONF", ALLOCATOR_SETTINGS)
        .tool(Callgrind::with_args(["--cache-sim=no"])),
    library_benchmark_groups = [resp, key, entry, paxos, state]
);
