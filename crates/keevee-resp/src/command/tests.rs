use keevee_core::command::{Action, Expiry, ExpiryOnly, Only};

use super::*;

fn request(line: &str) -> Request {
    line.split(' ').map(|word| Bytes::copy_from_slice(word.as_bytes())).collect()
}

fn parse(line: &str) -> Result<Call, String> {
    let request = request(line);
    let parsed = find(&request).and_then(|position| COMMANDS[position].parse(&request));
    parsed.map_err(|error| error.to_string())
}

fn actions(line: &str) -> Vec<Action> {
    match parse(line) {
        Ok(Call::Data(data)) => data.operations.into_iter().map(|operation| operation.action).collect(),
        other => panic!("{line}: {other:?}"),
    }
}

#[test]
fn commands_are_in_order_and_found() {
    assert!(COMMANDS.is_sorted_by(|one, other| one.name < other.name));
    for (at, spec) in COMMANDS.iter().enumerate() {
        assert_eq!(position(spec.name.to_ascii_uppercase().as_bytes()), Some(at));
    }
    for name in [&[b'x'; 100][..], b"get\0", b"ge", b""] {
        assert_eq!(position(name), None, "{name:?}");
    }
}

#[test]
fn what_is_unknown_or_of_a_wrong_size_is_told_as_redis_does() {
    for (line, error) in [
        ("nope a b", "ERR unknown command 'nope', with args beginning with: 'a' 'b' "),
        ("nope", "ERR unknown command 'nope', with args beginning with: "),
        ("GET", "ERR wrong number of arguments for 'get' command"),
        ("get a b", "ERR wrong number of arguments for 'get' command"),
        ("mset a 1 b", "ERR wrong number of arguments for 'mset' command"),
        ("client setname", "ERR wrong number of arguments for 'client|setname' command"),
        ("client nope", "ERR unknown subcommand 'nope'. Try CLIENT HELP."),
        ("set a b nope", "ERR syntax error"),
        ("set a b nx xx", "ERR syntax error"),
        ("set a b ex", "ERR syntax error"),
        ("set a b ex 10 keepttl", "ERR syntax error"),
        ("set a b keepttl ex 10", "ERR syntax error"),
        ("set a b ex 10 px 10", "ERR syntax error"),
        ("set a b ex x nope", "ERR syntax error"),
        ("set a b ex x", "ERR value is not an integer or out of range"),
        ("set a b ex 0", "ERR invalid expire time in 'set' command"),
        ("set a b px -1", "ERR invalid expire time in 'set' command"),
        ("set a b ex 9223372036854775807", "ERR invalid expire time in 'set' command"),
        ("setex a 0 b", "ERR invalid expire time in 'setex' command"),
        ("getex a persist 1", "ERR syntax error"),
        ("expire a 1 nx xx", "ERR NX and XX, GT or LT options at the same time are not compatible"),
        ("expire a 1 gt lt", "ERR GT and LT options at the same time are not compatible"),
        ("expire a 1 nope", "ERR Unsupported option nope"),
        ("expire a x", "ERR value is not an integer or out of range"),
        ("decrby a -9223372036854775808", "ERR decrement would overflow"),
        ("setrange a -1 x", "ERR offset is out of range"),
        ("scan x", "ERR invalid cursor"),
        ("scan 0 count 0", "ERR syntax error"),
        ("scan 0 match", "ERR syntax error"),
        ("select 1", "ERR SELECT is not allowed in cluster mode"),
        ("hello 4", "NOPROTO unsupported protocol version"),
        ("hello x", "ERR Protocol version is not an integer or out of range"),
        ("hello 3 nope", "ERR Syntax error in HELLO option 'nope'"),
        ("auth other x", "WRONGPASS invalid username-password pair or user is disabled."),
        ("cluster countkeysinslot 16384", "ERR Invalid slot"),
    ] {
        assert_eq!(parse(line), Err(error.to_owned()), "{line}");
    }
}

#[test]
fn set_has_its_options() {
    let (key, value) = (Bytes::from("k"), Bytes::from("v"));
    let put = |expires, only| Action::Put { key: key.clone(), value: value.clone(), expires, only };
    assert_eq!(actions("set k v"), [put(Expiry::Never, Only::Always)]);
    assert_eq!(actions("SET k v NX EX 2"), [put(Expiry::After(2_000_000), Only::IfAbsent)]);
    assert_eq!(actions("SET k v keepttl xx"), [put(Expiry::Keep, Only::IfPresent)]);
    assert_eq!(actions("SET k v keepttl keepttl nx nx"), [put(Expiry::Keep, Only::IfAbsent)]);
    assert_eq!(actions("SET k v EX 1 EX 2"), [put(Expiry::After(2_000_000), Only::Always)]);
    assert_eq!(actions("SET k v PXAT 7"), [put(Expiry::At(7_000), Only::Always)]);
    let read = Action::Get { key: key.clone() };
    assert_eq!(actions("SET k v GET"), [read.clone(), put(Expiry::Never, Only::Always)]);
    assert_eq!(actions("getset k v"), [read.clone(), put(Expiry::Never, Only::Always)]);
    assert_eq!(actions("getdel k"), [read.clone(), Action::Delete { key: key.clone() }]);
    let only = ExpiryOnly::Always;
    let at = Action::SetExpiry { key: key.clone(), expires: Expiry::At(1_000_000), only };
    assert_eq!(actions("getex k exat 1"), [read, at]);
}

#[test]
fn a_time_that_has_come_is_the_beginning_of_time() {
    for line in [
        "expire k 0",
        "expire k -9223372036854775",
        "pexpire k -9223372036854775808",
        "pexpireat k 0",
        "expireat k -1",
    ] {
        let [Action::SetExpiry { expires, .. }] = &actions(line)[..] else { panic!("{line}") };
        assert_eq!(*expires, Expiry::At(0), "{line}");
    }
    let request = request("expire k -9223372036854775808");
    let refused = COMMANDS[find(&request).expect("a command")].parse(&request).expect_err("too long ago");
    assert_eq!(refused.to_string(), "ERR invalid expire time in 'expire' command");
}

#[test]
fn keys_of_a_request_are_where_the_table_says() {
    let keys = |line: &str| {
        let request = request(line);
        let spec = &COMMANDS[find(&request).expect("a command")];
        spec.keys(&request)
            .into_iter()
            .map(|key| String::from_utf8_lossy(key).into_owned())
            .collect::<Vec<_>>()
    };
    assert_eq!(keys("mset a 1 b 2"), ["a", "b"]);
    assert_eq!(keys("del a b c"), ["a", "b", "c"]);
    assert_eq!(keys("set a b ex 10"), ["a"]);
    assert!(keys("ping").is_empty());
    // The table, and what is made of the request, agree.
    for line in ["get a", "mget a b", "mset a 1 b 2", "expire a 5", "setrange a 1 x", "getdel a", "touch a b"]
    {
        let mut named: Vec<Bytes> = actions(line).iter().filter_map(|action| action.key().cloned()).collect();
        named.dedup();
        assert_eq!(named, keys(line), "{line}");
    }
}
