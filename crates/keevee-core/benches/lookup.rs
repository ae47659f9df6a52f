//! How long it takes to find a key's member, by method and number of members.
//!
//! Each measurement goes through 1,024 keys of 20 to 24 bytes, so that branches are not learned by heart.

use std::hint::black_box;
use std::time::Duration;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use keevee_core::slot_table::SlotTable;
use keevee_core::slots::{Slot, slot};

mod methods;

use methods::{METHODS, equal, shards};

const MEMBERS: [u32; 6] = [4, 16, 64, 256, 1024, 2048];
const KEYS: usize = 1024;

fn keys() -> Vec<Vec<u8>> {
    (0..KEYS as u64).map(|at| format!("user:{:016}", at * 7_919).into_bytes()).collect()
}

fn lookups(criterion: &mut Criterion) {
    let keys = keys();
    for count in MEMBERS {
        let mut group = criterion.benchmark_group("lookup");
        for (name, make) in METHODS {
            let method = make(&equal(count));
            // Methods that look at every member get fewer keys, so that a measurement ends.
            let keys = if count > 64 { &keys[..KEYS / 16] } else { &keys[..] };
            group.throughput(Throughput::Elements(keys.len() as u64));
            group.bench_function(BenchmarkId::new(name, count), |bencher| {
                bencher
                    .iter(|| keys.iter().map(|key| method.member(black_box(key))).fold(0, u32::wrapping_add));
            });
        }
    }
}

/// A look-up in the slot table without the key's CRC.
fn owners(criterion: &mut Criterion) {
    let table = SlotTable::compute(None, &shards(&equal(1024))).expect("members");
    let slots: Vec<Slot> = keys().iter().map(|key| slot(key)).collect();
    let mut group = criterion.benchmark_group("owner");
    group.throughput(Throughput::Elements(KEYS as u64));
    group.bench_function("of a slot", |bencher| {
        bencher.iter(|| slots.iter().map(|slot| table.owner(black_box(*slot)).0).fold(0, u32::wrapping_add));
    });
}

/// Computing tables: the first one, and the next one after a shard was added.
fn tables(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("table");
    for count in [4, 64, 1000, 2048] {
        let members = shards(&equal(count));
        group.bench_function(BenchmarkId::new("from nothing", count), |bencher| {
            bencher.iter(|| SlotTable::compute(None, black_box(&members)));
        });
        let table = SlotTable::compute(None, &members[1..]).expect("members");
        group.bench_function(BenchmarkId::new("one shard more", count), |bencher| {
            bencher.iter(|| SlotTable::compute(Some(&table), black_box(&members)));
        });
    }
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .sample_size(20)
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1));
    targets = lookups, owners, tables
}
criterion_main!(benches);
