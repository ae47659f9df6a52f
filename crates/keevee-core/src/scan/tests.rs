use std::collections::BTreeSet;

use super::*;
use crate::command::Versioned;
use crate::tests::Random;

fn scanned(key: &str, value_bytes: usize) -> ScannedKey {
    let value = Versioned { version: 1, stamp: 1, expires: None, value: vec![0; value_bytes].into() };
    ScannedKey { key: Bytes::copy_from_slice(key.as_bytes()), value }
}

/// Shards and what they hold, in order.
type Shards = BTreeMap<ShardId, BTreeMap<String, usize>>;

/// What a shard answers, by the rules of `apply`.
fn answer(held: &BTreeMap<String, usize>, ask: &Ask) -> (Vec<ScannedKey>, Option<Bytes>) {
    let (mut keys, mut bytes) = (Vec::new(), 0);
    for (key, value_bytes) in held.iter().filter(|(key, _)| ask.range.contains(key.as_bytes())) {
        let may_exceed = keys.is_empty() && ask.bytes_max >= SCAN_BYTES_MAX;
        let has_room = may_exceed || bytes + key.len() + value_bytes <= ask.bytes_max as usize;
        if keys.len() == ask.limit as usize || !has_room {
            return (keys, Some(Bytes::copy_from_slice(key.as_bytes())));
        }
        bytes += key.len() + value_bytes;
        keys.push(scanned(key, *value_bytes));
    }
    (keys, None)
}

/// What a page took.
#[derive(Debug, Default)]
struct Cost {
    /// How often a shard was asked.
    asked: usize,
    /// How often several were waited for.
    rounds: usize,
    /// What they answered.
    bytes: usize,
}

/// One page, and what it took.
fn page(shards: &Shards, range: &KeyRange, limit: u32) -> (Page, Cost) {
    let mut merge = Merge::new(range, shards.keys().copied(), limit);
    let mut cost = Cost::default();
    loop {
        let asks = merge.asks();
        if asks.is_empty() {
            return (merge.finish(), cost);
        }
        cost.rounds += 1;
        for ask in asks {
            cost.asked += 1;
            assert!(cost.asked < 10_000, "it comes to no end");
            let (keys, next) = answer(&shards[&ask.shard], &ask);
            cost.bytes += keys.iter().map(ScannedKey::bytes).sum::<usize>();
            merge.take_in(&ask, keys, next).unwrap();
        }
    }
}

/// All pages of a range: their keys.
fn all(shards: &Shards, range: &KeyRange, limit: u32) -> Vec<String> {
    let mut keys = Vec::new();
    let mut rest = range.clone();
    loop {
        let (page, _) = page(shards, &rest, limit);
        assert!(page.keys.len() <= limit as usize);
        let bytes: usize = page.keys.iter().map(ScannedKey::bytes).sum();
        assert!(page.keys.len() <= 1 || bytes <= SCAN_BYTES_MAX as usize);
        keys.extend(page.keys.iter().map(|key| String::from_utf8(key.key.to_vec()).unwrap()));
        let Some(next) = page.next else { return keys };
        assert!(!page.keys.is_empty(), "a page that is not the last has keys");
        rest = crate::scan::rest(range, &cursor(range, &next)).unwrap();
    }
}

#[test]
fn pages_of_random_shards_are_all_keys_in_order() {
    let mut random = Random::new(7);
    for round in 0..60 {
        let count = 1 + random.below(20) as u32;
        let mut shards: Shards = (1..=count).map(|shard| (ShardId(shard), BTreeMap::new())).collect();
        // Spread evenly, all in one shard, or in runs.
        let way = round % 3;
        for number in 0..random.below(2_000) {
            let shard = match way {
                0 => random.below(count.into()) as u32,
                1 => count - 1,
                _ => (number / 100) as u32 % count,
            };
            let value_bytes = if random.below(50) == 0 { 100_000 } else { random.below(100) as usize };
            let held = shards.get_mut(&ShardId(1 + shard)).unwrap();
            held.insert(format!("key-{number:05}"), value_bytes);
        }
        let expected: BTreeSet<String> = shards.values().flat_map(|held| held.keys().cloned()).collect();
        let limit = 1 + random.below(400) as u32;
        assert!(all(&shards, &KeyRange::default(), limit).iter().eq(&expected), "round {round}");
        let part = KeyRange { start: "key-00100".into(), end: Some("key-00900".into()) };
        let expected = expected.iter().filter(|key| part.contains(key.as_bytes()));
        assert!(all(&shards, &part, limit).iter().eq(expected), "round {round}");
    }
}

#[test]
fn shards_are_asked_for_their_share() {
    let keys = (0..16_000).map(|number| (ShardId(1 + number % 16), format!("key-{number:05}")));
    let mut shards = Shards::new();
    keys.for_each(|(shard, key)| _ = shards.entry(shard).or_default().insert(key, 10));
    let mut merge = Merge::new(&KeyRange::default(), shards.keys().copied(), 1000);
    let asks = merge.asks();
    assert!(asks.len() == 16 && asks.iter().all(|ask| ask.limit < 100), "{asks:?}");
    let (page, cost) = page(&shards, &KeyRange::default(), 1000);
    assert_eq!((page.keys.len(), cost.asked), (1000, 16));
}

#[test]
fn a_page_costs_what_it_holds_however_large_values_are() {
    for (value_bytes, on_page, rounds_max) in
        [(8 << 20, 1, 2), (300_000, 3, 5), (30_000, 34, 36), (20_000, 52, 1)]
    {
        let keys = (0..640).map(|number| (ShardId(1 + number * 5 % 128), format!("key-{number:03}")));
        let mut shards = Shards::new();
        keys.for_each(|(shard, key)| _ = shards.entry(shard).or_default().insert(key, value_bytes));
        let (page, cost) = page(&shards, &KeyRange::default(), 1000);
        assert_eq!((page.keys.len(), page.next.is_some()), (on_page, true));
        let held: usize = page.keys.iter().map(ScannedKey::bytes).sum();
        let shares = SCAN_BYTES_MAX as usize * 5 / 4 + 128 * BYTES_BESIDE_SHARE;
        assert!(cost.bytes <= held + shares && cost.rounds <= rounds_max, "{value_bytes}: {cost:?}");
        if value_bytes > shares / 128 {
            assert_eq!(cost.bytes, held, "{value_bytes}: nothing is read in vain");
        }
    }
}

#[test]
fn a_page_holds_one_key_that_is_larger_than_a_page() {
    let held = [("a", 3 << 20), ("b", 1)].map(|(key, bytes)| (key.to_owned(), bytes));
    let shards = Shards::from([(ShardId(1), BTreeMap::from(held)), (ShardId(2), BTreeMap::new())]);
    let (first, _) = page(&shards, &KeyRange::default(), 10);
    assert_eq!((first.keys.len(), first.next), (1, Some("b".into())));
}

#[test]
fn a_key_that_two_shards_tell_of_is_shown_once() {
    let held = || BTreeMap::from([("a".to_owned(), 1), ("b".to_owned(), 1)]);
    let shards = Shards::from([(ShardId(1), held()), (ShardId(2), held())]);
    assert_eq!(all(&shards, &KeyRange::default(), 10), ["a", "b"]);
    assert_eq!(all(&shards, &KeyRange::default(), 1), ["a", "b"]);
}

#[test]
fn an_answer_to_something_else_is_refused() {
    let range = KeyRange { start: "b".into(), end: Some("m".into()) };
    let of = |keys: &[&str]| keys.iter().map(|key| scanned(key, 1)).collect::<Vec<_>>();
    for (keys, next) in [
        (of(&["c", "b"]), None),
        (of(&["c", "c"]), None),
        (of(&["a"]), None),
        (of(&["m"]), None),
        (of(&["c"]), Some("c")),
        (of(&["c"]), Some("n")),
        (of(&[]), Some("c")),
    ] {
        let mut merge = Merge::new(&range, [ShardId(1)], 10);
        let ask = merge.asks().remove(0);
        let refused = merge.take_in(&ask, keys.clone(), next.map(Bytes::from));
        assert_eq!(refused, Err(Disordered(ShardId(1))), "{keys:?}, {next:?}");
        assert_eq!(merge.asks(), std::slice::from_ref(&ask), "it is asked again");
        assert_eq!(merge.take_in(&ask, of(&["b", "c"]), None), Ok(()));
        assert_eq!(merge.take_in(&ask, of(&["d"]), None), Err(Disordered(ShardId(1))), "twice");
    }
}

#[test]
fn a_cursor_is_good_for_its_own_range_only() {
    let range = KeyRange::of_prefix("user:");
    let text = cursor(&range, &"user:7".into());
    assert_eq!(rest(&range, &text), Ok(range.rest("user:7".into())));
    let end = Bytes::copy_from_slice(b"user:7\xff\x00");
    assert_eq!(rest(&range, &cursor(&range, &end)), Ok(range.rest(end)));
    for other in [KeyRange::of_prefix("use"), KeyRange::default(), KeyRange { end: None, ..range.clone() }] {
        assert_eq!(rest(&other, &text), Err(BadCursor));
    }
    assert_eq!(rest(&range, &cursor(&range, &"v".into())), Err(BadCursor), "outside");
    for at in 0..text.len() {
        assert_eq!(rest(&range, &text[..at]), Err(BadCursor));
        let mut bent = text.clone().into_bytes();
        bent[at] = if bent[at] == b'A' { b'B' } else { b'A' };
        assert_eq!(rest(&range, &String::from_utf8(bent).unwrap()), Err(BadCursor), "byte {at}");
    }
    assert_eq!(rest(&range, "no cursor"), Err(BadCursor));
}
