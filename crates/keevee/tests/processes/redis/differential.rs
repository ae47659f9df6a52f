//! Random commands to a real `redis-server` and to keevee: every reply is the same.
//!
//! `KEEVEE_SEED` replays a seed that failed, `KEEVEE_SEEDS` says how many are tried.

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::client::{Reply, Resp};
use super::{RedisServer, address, left_out};
use crate::start;

/// Commands of one seed.
const STEPS: usize = 600;
const SEEDS: u64 = 4;
/// How far apart the two may be in how long a key has to live: each reads its own clock.
const SLACK_MS: i64 = 5_000;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_reply_is_that_of_redis() {
    let Some(redis) = RedisServer::start().await else {
        return left_out("the comparison with Redis", "redis-server");
    };
    let mut cluster = start(3, "paxos").await;
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let seeds = match number("KEEVEE_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("KEEVEE_SEEDS").unwrap_or(SEEDS),
    };
    for seed in seeds {
        let mut theirs = Resp::connect(&redis.address).await;
        let mut ours = Resp::connect(&address(&mut cluster, 1 + seed % 3)).await;
        for resp in [&mut theirs, &mut ours] {
            assert_eq!(resp.ask(&["FLUSHDB"]).await, Reply::ok());
        }
        let mut random = StdRng::seed_from_u64(seed);
        let mut state = State::default();
        let mut trail: Vec<Vec<String>> = Vec::new();
        for step in 0..STEPS {
            let request = request(&mut random, &mut state);
            // What a failure tells: all since the last transaction.
            if trail.last().is_some_and(|last| ["EXEC", "DISCARD"].contains(&last[0].to_uppercase().as_str()))
            {
                trail.clear();
            }
            trail.push(request.clone());
            theirs.send(&request).await;
            ours.send(&request).await;
            let (mut expected, mut got) = (theirs.receive().await, ours.receive().await);
            // Not DBSIZE: Redis counts keys that are gone until it comes upon them.
            if request[0].eq_ignore_ascii_case("keys") {
                expected.sort();
                got.sort();
            }
            let is_time = request[0].to_ascii_lowercase().ends_with("ttl")
                || request[0].to_ascii_lowercase().ends_with("expiretime")
                || request[0].eq_ignore_ascii_case("exec");
            assert!(
                is_same(&expected, &got, is_time),
                "seed {seed}, step {step}: {trail:?}\nredis:  {}\nkeevee: {}",
                expected.text(),
                got.text()
            );
        }
    }
}

fn is_same(expected: &Reply, got: &Reply, is_time: bool) -> bool {
    match (expected, got) {
        (Reply::Integer(expected), Reply::Integer(got)) if is_time && *expected > 0 => {
            expected.abs_diff(*got) <= SLACK_MS as u64
        }
        (Reply::Array(expected), Reply::Array(got)) => {
            let mut pairs = expected.iter().zip(got);
            expected.len() == got.len() && pairs.all(|(expected, got)| is_same(expected, got, is_time))
        }
        _ => expected == got,
    }
}

fn pick<'a>(random: &mut StdRng, from: &[&'a str]) -> &'a str {
    from[random.random_range(0..from.len())]
}

fn key(random: &mut StdRng) -> String {
    pick(random, &["a", "b", "c", "d", "{t}e", "{t}f", "with space", "g\r\n"]).to_owned()
}

fn value(random: &mut StdRng) -> String {
    match random.random_range(0..8) {
        0 => String::new(),
        1 => "9223372036854775806".to_owned(),
        2 => "not a number".to_owned(),
        3 => "x".repeat(random.random_range(0..3000)),
        _ => random.random_range(-50..50).to_string(),
    }
}

/// What makes no number such as `05` of another, which is one to keevee and none to Redis.
fn letters(random: &mut StdRng) -> String {
    pick(random, &["", "abc", "xyzxyzxyz", "q"]).to_owned()
}

/// Mostly a small number, sometimes none.
fn number(random: &mut StdRng) -> String {
    match random.random_range(0..12) {
        0 => pick(random, &["", "x", "1.5", "9223372036854775807", "-9223372036854775808", "+1", "01"])
            .to_owned(),
        _ => random.random_range(-20..40).to_string(),
    }
}

/// A time to live: long, or over already; what ends during the test would be seen or not by chance.
fn seconds(random: &mut StdRng) -> String {
    match random.random_range(0..10) {
        0 => pick(random, &["0", "-1", "x", "", "9223372036854775807"]).to_owned(),
        _ => random.random_range(1000..100_000).to_string(),
    }
}

/// A point in time: far ahead or long gone.
fn time(random: &mut StdRng, unit_per_second: u64) -> String {
    match random.random_range(0..4) {
        0 => (1_000_000 * unit_per_second).to_string(),
        1 => pick(random, &["0", "-5", "x"]).to_owned(),
        _ => ((4_000_000_000 + random.random_range(0..1000)) * unit_per_second).to_string(),
    }
}

/// What the next request depends on.
#[derive(Default)]
struct State {
    /// A transaction is open.
    is_open: bool,
    /// What must come next.
    next: Option<Vec<String>>,
}

fn request(random: &mut StdRng, State { is_open, next }: &mut State) -> Vec<String> {
    if let Some(next) = next.take() {
        return next;
    }
    let mut request = one(random);
    if request[0] == "WATCH" && !*is_open {
        // A key that is there: one that is made and removed again is untouched to keevee, and touched to Redis.
        let set = vec!["SET".to_owned(), request[1].clone(), "1".to_owned()];
        *next = Some(request);
        return set;
    }
    // These can't be part of a transaction.
    if *is_open && ["MSETNX", "KEYS"].contains(&request[0].as_str()) {
        request = vec!["PING".to_owned()];
    }
    // Names count in any case.
    if random.random_bool(0.3) {
        request[0] = request[0].to_lowercase();
    }
    // Now and then one argument too many, or too few.
    if random.random_bool(0.02) {
        request.push("extra".to_owned());
    } else if random.random_bool(0.02) && request.len() > 1 {
        request.pop();
    }
    match (request[0].to_uppercase().as_str(), request.len()) {
        ("MULTI", 1) => *is_open = true,
        ("DISCARD", 1) | ("EXEC", _) => *is_open = false,
        _ => {}
    }
    request
}

fn one(random: &mut StdRng) -> Vec<String> {
    let owned = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<String>>();
    let k = key(random);
    let with = |name: &str, rest: Vec<String>| [vec![name.to_owned(), k.clone()], rest].concat();
    match random.random_range(0..46) {
        0..=4 => with("GET", vec![]),
        5..=8 => with("SET", [vec![value(random)], set_options(random)].concat()),
        9 => with("SETNX", vec![value(random)]),
        10 => with("SETEX", vec![seconds(random), value(random)]),
        11 => with("PSETEX", vec![seconds(random) + "000", value(random)]),
        12 => with("GETSET", vec![value(random)]),
        13 => with("GETDEL", vec![]),
        14 => with("GETEX", getex_options(random)),
        15 => with("MGET", vec![key(random), key(random)]),
        16 => with("MSET", vec![value(random), key(random), value(random)]),
        17 => with("MSETNX", vec![value(random), key(random), value(random)]),
        18 => with("APPEND", vec![letters(random)]),
        19 => with("STRLEN", vec![]),
        20 => with("GETRANGE", vec![number(random), number(random)]),
        21 => with("SETRANGE", vec![number(random), letters(random)]),
        22 | 23 => with("INCR", vec![]),
        24 => with("DECR", vec![]),
        25 => with("INCRBY", vec![number(random)]),
        26 => with("DECRBY", vec![number(random)]),
        27 => with(pick(random, &["DEL", "UNLINK"]), vec![key(random)]),
        28 => with(pick(random, &["EXISTS", "TOUCH"]), vec![key(random), key(random)]),
        29 => with("TYPE", vec![]),
        30 => with(pick(random, &["TTL", "PTTL"]), vec![]),
        31 => with(pick(random, &["EXPIRETIME", "PEXPIRETIME"]), vec![]),
        32 => with("EXPIRE", [vec![seconds(random)], expire_options(random)].concat()),
        33 => with("PEXPIRE", [vec![seconds(random) + "000"], expire_options(random)].concat()),
        34 => with("EXPIREAT", [vec![time(random, 1)], expire_options(random)].concat()),
        35 => with("PEXPIREAT", [vec![time(random, 1000)], expire_options(random)].concat()),
        36 => with("PERSIST", vec![]),
        37 => owned(&["KEYS", pick(random, &["*", "[a-c]", "{t}?", "*s*"])]),
        38 => owned(&["MULTI"]),
        39 | 40 => owned(&["EXEC"]),
        41 => owned(&["DISCARD"]),
        42 => with("WATCH", vec![]),
        43 => owned(&["UNWATCH"]),
        44 => owned(&["PING"]),
        _ => owned(pick_from(
            random,
            &[&["ECHO", "hi"], &["nope", "a", "b"], &["PING", "hi"], &["SELECT", "0"]],
        )),
    }
}

fn pick_from<'a>(random: &mut StdRng, from: &[&'a [&'a str]]) -> &'a [&'a str] {
    from[random.random_range(0..from.len())]
}

fn set_options(random: &mut StdRng) -> Vec<String> {
    let mut options = Vec::new();
    if random.random_bool(0.3) {
        options.push(pick(random, &["NX", "XX", "nx"]).to_owned());
    }
    if random.random_bool(0.2) {
        options.push("GET".to_owned());
    }
    match random.random_range(0..8) {
        0 => options.push("KEEPTTL".to_owned()),
        1 => options.extend(["EX".to_owned(), seconds(random)]),
        2 => options.extend(["PX".to_owned(), seconds(random) + "000"]),
        3 => options.extend(["EXAT".to_owned(), time(random, 1)]),
        4 => options.extend(["pxat".to_owned(), time(random, 1000)]),
        _ => {}
    }
    if random.random_bool(0.03) {
        options.push(pick(random, &["XX", "EX", "nope", "KEEPTTL"]).to_owned());
    }
    options
}

/// Without wrong times: of those Redis tells only if the key is there.
fn getex_options(random: &mut StdRng) -> Vec<String> {
    let seconds = random.random_range(1000..100_000).to_string();
    match random.random_range(0..7) {
        0 => vec![],
        1 => vec!["PERSIST".to_owned()],
        2 => vec!["EX".to_owned(), seconds],
        3 => vec!["px".to_owned(), seconds + "000"],
        4 => vec!["PXAT".to_owned(), pick(random, &["1000000", "4000000000000"]).to_owned()],
        5 => vec!["EXAT".to_owned(), pick(random, &["1000000", "4000000000"]).to_owned()],
        _ => vec!["nope".to_owned()],
    }
}

fn expire_options(random: &mut StdRng) -> Vec<String> {
    match random.random_range(0..10) {
        0 => vec!["NX".to_owned()],
        1 => vec!["XX".to_owned()],
        2 => vec!["GT".to_owned()],
        3 => vec!["LT".to_owned()],
        4 => vec!["XX".to_owned(), "GT".to_owned()],
        5 => vec![pick(random, &["nope", "NX"]).to_owned(), "GT".to_owned()],
        _ => vec![],
    }
}
