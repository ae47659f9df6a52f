use keevee_core::command::Versioned;

use super::*;

fn settings() -> Settings {
    let limits = Limits { key_bytes_max: 16, value_bytes_max: 64, operations_max: 4, ..Limits::default() };
    Settings { limits, config: vec![("save", String::new()), ("appendonly", "yes".to_owned())] }
}

fn new(id: u64) -> Session {
    let address = |port| SocketAddr::from(([127, 0, 0, 1], port));
    Session::new(Peer { id, address: address(50_001), own: address(7001), since: 1_600_000_000_000_000 })
}

fn take(session: &mut Session, line: &str) -> Step {
    let request = line.split(' ').map(|word| Bytes::copy_from_slice(word.as_bytes())).collect();
    // A key that another node leads.
    let refuse = |data: &Data| {
        data.keys().any(|key| key == "far").then(|| Reply::Error("MOVED 1 127.0.0.1:7002".to_owned()))
    };
    session.take(request, || 1_700_000_000_000_001, &settings(), &refuse).1
}

/// What is answered at once, as RESP2 text.
fn answer(session: &mut Session, line: &str) -> String {
    let Step::Reply(reply) = take(session, line) else { panic!("{line} is not answered at once") };
    let mut out = bytes::BytesMut::new();
    reply.encode(session.version(), &mut out);
    String::from_utf8_lossy(&out).into_owned()
}

#[test]
fn a_connection_answers_for_itself() {
    let session = &mut new(7);
    for (line, expected) in [
        ("PING", "+PONG\r\n"),
        ("ping hi", "$2\r\nhi\r\n"),
        ("ECHO x", "$1\r\nx\r\n"),
        ("SELECT 0", "+OK\r\n"),
        ("SELECT 1", "-ERR SELECT is not allowed in cluster mode\r\n"),
        ("CLIENT ID", ":7\r\n"),
        ("CLIENT GETNAME", "$-1\r\n"),
        ("CLIENT SETNAME me", "+OK\r\n"),
        ("CLIENT GETNAME", "$2\r\nme\r\n"),
        ("TIME", "*2\r\n$10\r\n1700000000\r\n$1\r\n1\r\n"),
        ("CONFIG GET SAVE", "*2\r\n$4\r\nsave\r\n$0\r\n\r\n"),
        ("CONFIG GET nope", "*0\r\n"),
        ("COMMAND GETKEYS mget a b", "*2\r\n$1\r\na\r\n$1\r\nb\r\n"),
        (
            "COMMAND INFO get nope",
            "*2\r\n*10\r\n$3\r\nget\r\n:2\r\n*1\r\n+readonly\r\n:1\r\n:1\r\n:1\r\n*0\r\n*0\r\n*0\r\n*0\r\n*-1\r\n",
        ),
        ("AUTH x y", "-WRONGPASS invalid username-password pair or user is disabled.\r\n"),
    ] {
        assert_eq!(answer(session, line), expected, "{line}");
    }
    assert!(answer(session, "HELLO 3").starts_with("%7\r\n$6\r\nserver\r\n$5\r\nredis\r\n"));
    assert_eq!(answer(session, "UNWATCH"), "+OK\r\n");
    assert_eq!(take(session, "QUIT"), Step::Close(Reply::OK));
}

#[test]
fn http_is_cut_off() {
    let session = &mut new(1);
    assert_eq!(take(session, "POST / HTTP/1.1"), Step::CutOff);
    assert_eq!(take(session, "Host: localhost"), Step::CutOff);
    assert!(matches!(take(session, "SET page HTTP/1.1"), Step::Data(_)), "a value may be anything");
}

#[test]
fn a_transaction_is_held_until_exec() {
    let session = &mut new(1);
    assert_eq!(answer(session, "MULTI"), "+OK\r\n");
    assert_eq!(answer(session, "MULTI"), "-ERR MULTI calls can not be nested\r\n");
    assert_eq!(answer(session, "WATCH a"), "-ERR WATCH inside MULTI is not allowed\r\n");
    for line in ["SET a 1", "GETSET a 2", "PING", "SET a b nope"] {
        assert_eq!(answer(session, line), "+QUEUED\r\n");
    }
    let Step::Batch(batch) = take(session, "EXEC") else { panic!("a batch") };
    let found = Versioned { version: 1, stamp: 1, expires: None, value: "1".into() };
    let written = |version| OperationResult::Written { version };
    let results = [written(1), OperationResult::Value(Some(found)), written(2)];
    let replies = vec![Reply::OK, Reply::bulk("1"), Reply::Simple("PONG"), Reply::error("syntax error")];
    assert_eq!(batch.reply(&results, || 0), Reply::Array(replies));
    assert_eq!(answer(session, "EXEC"), "-ERR EXEC without MULTI\r\n");
    assert_eq!(answer(session, "DISCARD"), "-ERR DISCARD without MULTI\r\n");
}

#[test]
fn a_transaction_that_lacks_a_command_is_not_carried_out() {
    for wrong in ["nope", "GET", "KEYS *", "MSETNX a 1"] {
        let session = &mut new(1);
        answer(session, "MULTI");
        answer(session, "SET a 1");
        assert!(answer(session, wrong).starts_with("-ERR "), "{wrong}");
        assert_eq!(answer(session, "GET a"), "+QUEUED\r\n");
        let aborted = "-EXECABORT Transaction discarded because of previous errors.\r\n";
        assert_eq!(answer(session, "EXEC"), aborted, "{wrong}");
    }
}

#[test]
fn a_wrong_exec_ends_the_transaction() {
    let session = &mut new(1);
    answer(session, "MULTI");
    let aborted =
        "-EXECABORT Transaction discarded because of: wrong number of arguments for 'exec' command\r\n";
    assert_eq!(answer(session, "EXEC now"), aborted);
    assert_eq!(answer(session, "EXEC"), "-ERR EXEC without MULTI\r\n");
}

#[test]
fn a_transaction_is_bounded() {
    let session = &mut new(1);
    answer(session, "MULTI");
    for _ in 0..4 {
        assert_eq!(answer(session, "GET a"), "+QUEUED\r\n");
    }
    assert_eq!(answer(session, "PING"), "-ERR transaction too large\r\n");
    assert!(answer(session, "EXEC").starts_with("-EXECABORT"));
}

#[test]
fn watched_keys_go_with_the_transaction() {
    let session = &mut new(1);
    assert_eq!(take(session, "WATCH a b"), Step::Watch(vec!["a".into(), "b".into()]));
    session.watch([("a".into(), Expect::Version(3)), ("b".into(), Expect::Absent)]);
    session.watch([("a".into(), Expect::Version(4))]);
    answer(session, "MULTI");
    let Step::Batch(batch) = take(session, "EXEC") else { panic!("a batch") };
    assert_eq!(batch.watched, [("a".into(), Expect::Version(3)), ("b".into(), Expect::Absent)]);
    answer(session, "MULTI");
    assert_eq!(take(session, "EXEC"), Step::Batch(Batch::default()), "they are watched once");
    session.watch([("a".into(), Expect::Absent)]);
    answer(session, "UNWATCH");
    answer(session, "MULTI");
    assert_eq!(take(session, "EXEC"), Step::Batch(Batch::default()));
}

#[test]
fn what_the_store_would_refuse_is_refused_here() {
    let session = &mut new(1);
    let refused = |session: &mut Session, line: &str| answer(session, line);
    assert!(refused(session, &format!("SET a {}", "x".repeat(65))).starts_with("-ERR string exceeds"));
    assert!(refused(session, &format!("GET {}", "x".repeat(17))).starts_with("-ERR a key has 17 bytes"));
    assert!(refused(session, "SETRANGE a 64 x").starts_with("-ERR string exceeds"));
    assert!(refused(session, "MSET a 1 b 1 c 1 d 1 e 1").starts_with("-ERR the command has 5 operations"));
    let Step::Data(data) = take(session, "DEL a b c d e") else { panic!("spread over commands") };
    assert!(data.spreads);
}

#[test]
fn a_transaction_refuses_what_is_led_elsewhere() {
    let session = &mut new(1);
    take(session, "MULTI");
    assert_eq!(answer(session, "SET near 1"), "+QUEUED\r\n");
    assert_eq!(answer(session, "SET far 1"), "-MOVED 1 127.0.0.1:7002\r\n");
    assert!(answer(session, "EXEC").starts_with("-EXECABORT"));
    assert!(
        matches!(take(session, "SET far 1"), Step::Data(_)),
        "alone it is routed by whoever has the store"
    );
}

#[test]
fn a_client_is_told_of_itself_in_fields_with_names() {
    let session = &mut new(9);
    let info = answer(session, "CLIENT INFO");
    for field in
        ["id=9 ", "addr=127.0.0.1:50001 ", "laddr=127.0.0.1:7001 ", "age=100000000 ", "sub=0 ", "resp=2\n"]
    {
        assert!(info.contains(field), "no {field} in {info}");
    }
}
