use super::*;

fn operation(action: Action) -> Operation {
    Operation { action, on_error: OnError::Abort }
}

/// A command with every kind of precondition and operation.
fn sample_command() -> Command {
    let precondition = |key: &'static str, expect| Precondition { key: key.into(), expect };
    Command {
        namespace: Namespace(3),
        request_id: Some(RequestId::Timed(0x0190_0000_0000_7000_8000_0000_0000_0001)),
        preconditions: vec![
            precondition("a", Expect::Absent),
            precondition("b", Expect::Present),
            precondition("c", Expect::Version(300)),
        ],
        operations: vec![
            operation(Action::Get { key: "g".into() }),
            operation(Action::put("p", "value")),
            operation(Action::Delete { key: "d".into() }),
            Operation { action: Action::Increment { key: "i".into(), by: -7 }, on_error: OnError::Continue },
            operation(Action::Append { key: "x".into(), suffix: "suffix".into() }),
        ],
        answer_bytes_max: None,
    }
}

fn sample_entry() -> Entry {
    let mut free = Command::single(Action::put("k", Bytes::new()));
    free.request_id = Some(RequestId::Free(u128::MAX));
    Entry {
        stamp: 1_700_000_000_000_000,
        proposal: ProposalId { node: 2, boot: 0x1122_3344_5566_7788, sequence: 300 },
        commands: vec![sample_command(), free],
    }
}

/// An outcome with every kind of result and error.
fn sample_done() -> Outcome {
    let versioned = Versioned { version: 9, stamp: 1_700_000_000_000_000, expires: None, value: "v".into() };
    Outcome::Done(vec![
        OperationResult::Value(None),
        OperationResult::Value(Some(versioned)),
        OperationResult::Written { version: 0 },
        OperationResult::Deleted { existed: false },
        OperationResult::Deleted { existed: true },
        OperationResult::Incremented { value: i64::MIN, version: 11 },
        OperationResult::Appended { length: 12, version: 13 },
        OperationResult::Failed(OperationError::NotAnInteger),
        OperationResult::Failed(OperationError::Overflow),
        OperationResult::Failed(OperationError::ValueTooLarge),
    ])
}

/// Kinds that came later: scans and deletes of ranges.
fn sample_range_command() -> Command {
    let range = KeyRange { start: "a".into(), end: Some("b".into()) };
    let delete = Action::DeleteRange { range: range.clone(), limit: 300 };
    let scan = Action::Scan { range: KeyRange { end: None, ..range }, limit: 10, bytes_max: 300 };
    let operations = vec![operation(scan), operation(delete)];
    Command { operations, ..Command::single(Action::Get { key: Bytes::new() }) }
}

fn sample_range_outcome() -> Outcome {
    let value = Versioned { version: 9, stamp: 1_700_000_000_000_000, expires: None, value: "v".into() };
    let keys = vec![ScannedKey { key: "a".into(), value }];
    Outcome::Done(vec![
        OperationResult::Scanned { keys, next: Some("b".into()) },
        OperationResult::Scanned { keys: vec![], next: None },
        OperationResult::DeletedRange { deleted: 300, next: Some("c".into()) },
        OperationResult::DeletedRange { deleted: 0, next: None },
    ])
}

/// Kinds and fields that came with expiry.
fn sample_expiry_command() -> Command {
    let put = |expires, only| Action::Put { key: "p".into(), value: "v".into(), expires, only };
    let set_expiry = |expires, only| Action::SetExpiry { key: "e".into(), expires, only };
    let actions = [
        put(Expiry::Keep, Only::Always),
        put(Expiry::At(1_700_000_000_000_000), Only::IfAbsent),
        put(Expiry::After(300), Only::IfPresent),
        put(Expiry::After(0), Only::Always),
        set_expiry(Expiry::Never, ExpiryOnly::Always),
        set_expiry(Expiry::Keep, ExpiryOnly::IfNone),
        set_expiry(Expiry::At(0), ExpiryOnly::IfSome),
        set_expiry(Expiry::After(1), ExpiryOnly::IfLater),
        set_expiry(Expiry::Never, ExpiryOnly::IfSooner),
        Action::SetRange { key: "r".into(), offset: 300, bytes: "bytes".into() },
        Action::RemoveExpired { limit: 300 },
    ];
    let operations = actions.map(operation).to_vec();
    Command { operations, ..Command::single(Action::Get { key: Bytes::new() }) }
}

fn sample_expiry_outcome() -> Outcome {
    let expires = Some(1_800_000_000_000_000);
    let value = Versioned { version: 9, stamp: 1_700_000_000_000_000, expires, value: "v".into() };
    Outcome::Done(vec![
        OperationResult::Value(Some(value)),
        OperationResult::Skipped,
        OperationResult::RemovedExpired { removed: 300 },
    ])
}

/// What came with bounded answers.
fn sample_bounded_command() -> Command {
    let (key, only) = (Bytes::from("e"), ExpiryOnly::IfSomeAndSooner);
    let action = Action::SetExpiry { key, expires: Expiry::Never, only };
    Command { answer_bytes_max: Some(0), ..Command::single(action) }
}

fn sample_bounded_outcome() -> Outcome {
    Outcome::Done(vec![OperationResult::Failed(OperationError::AnswerTooLarge)])
}

fn sample_outcomes() -> Vec<Outcome> {
    vec![
        sample_done(),
        Outcome::Done(vec![]),
        Outcome::Conflict { precondition: 0, version: None },
        Outcome::Conflict { precondition: 1, version: Some(0) },
        Outcome::Aborted { operation: 2, error: OperationError::Overflow },
        Outcome::WrongShard,
        Outcome::RequestReused,
        Outcome::RequestExpired,
        Outcome::RequestMemoryFull,
    ]
}

fn sample_record() -> RequestRecord {
    RequestRecord {
        time: 1_700_000_000_000_000,
        id: RequestId::Free(5),
        payload_hash: 1 << 127,
        outcome: encode_outcome(&Outcome::Conflict { precondition: 1, version: Some(4) }),
    }
}

fn sample_meta() -> ShardMeta {
    ShardMeta {
        applied: 300,
        time: 1_700_000_000_000_000,
        version: 12,
        chain: 0x0123_4567_89ab_cdef,
        owned: SlotSet::all(),
        request_horizon: 1_600_000_000_000_000,
        expiring: 0,
    }
}

#[test]
fn everything_survives_its_encoding() {
    assert_eq!(decode_entry(encode_entry(&sample_entry())), Ok(sample_entry()));
    assert_eq!(decode_command(encode_command(&sample_command())), Ok(sample_command()));
    assert_eq!(decode_command(encode_command(&sample_range_command())), Ok(sample_range_command()));
    assert_eq!(decode_command(encode_command(&sample_expiry_command())), Ok(sample_expiry_command()));
    assert_eq!(decode_command(encode_command(&sample_bounded_command())), Ok(sample_bounded_command()));
    let later = [sample_range_outcome(), sample_expiry_outcome(), sample_bounded_outcome()];
    for outcome in sample_outcomes().into_iter().chain(later) {
        assert_eq!(decode_outcome(encode_outcome(&outcome)), Ok(outcome));
    }
    assert_eq!(decode_request(encode_request(&sample_record())), Ok(sample_record()));
    let meta = ShardMeta { expiring: 300, ..sample_meta() };
    assert_eq!(decode_meta(encode_meta(&meta), meta.owned.clone()), Ok(meta));
}

#[test]
fn an_entry_of_defaults_survives_its_encoding() {
    let entry = Entry { stamp: 0, proposal: ProposalId::default(), commands: vec![] };
    assert_eq!(decode_entry(encode_entry(&entry)), Ok(entry));
}

/// Bytes as format 1 wrote them. They must decode for ever, and be written the same as long as format
/// 1 is the one written: never change them, add others.
mod format_1 {
    use super::*;

    const ENTRY: &str = "08011100401e18240a06001a0e080211887766554433221118ac022262080312120a100190000000\
        00700080000000000000011a050a016112001a050a01621a001a060a016320ac0222050a030a0167\
        220c120a0a0170120576616c756522051a030a0164220922050a0169100d7801220d2a0b0a017812\
        06737566666978221b12121210ffffffffffffffffffffffffffffffff220512030a016b";
    const DONE: &str = "0a490a020a000a120a100a0e08091100401e18240a06001a01760a0210000a0218000a0218010a0f\
        220d08ffffffffffffffffff01100b0a062a04080c100d0a0230010a0230020a023003";
    const OTHER_OUTCOMES: [&str; 8] =
        ["0a00", "1200", "120408011000", "1a0408021002", "2200", "2a00", "3200", "3a00"];
    const RECORD: &str = "08011100401e18240a06001a12121000000000000000000000000000000005221080000000000000\
        0000000000000000002a06120408011004";
    const META: &str = "080110ac021900401e18240a0600200c2a1000000000000000000123456789abcdef390000\
        a40731af0500";

    const RANGE_COMMAND: &str = "220c320a0a030a0161100a18ac02220d3a0b0a060a016112016210ac02";
    const RANGE_OUTCOME: &str = "0a2e0a1a3a180a130a0161120e08091100401e18240a06001a01761201620a023a000a08420608ac021201630a\
        024200";

    const EXPIRY_COMMAND: &str = "220c120a0a01701201761a020a00221512130a01701201761a091100401e18240a06002001220f120d0a0170\
        1201761a0318ac022002220c120a0a01701201761a021800220542030a0165220b42090a016512020a001801\
        221242100a016512091100000000000000001802220b42090a0165120218011803220742050a01651804220f\
        4a0d0a017210ac021a0562797465732205520308ac02";
    const EXPIRY_OUTCOME: &str =
        "0a260a1b0a190a1708091100401e18240a06001a01762100809828176506000a024a000a0350ac02";

    const BOUNDED_COMMAND: &str = "220742050a016518052800";
    const BOUNDED_OUTCOME: &str = "0a040a023004";

    fn from_hex(text: &str) -> Bytes {
        let digits = |at: usize| u8::from_str_radix(&text[at..at + 2], 16).unwrap();
        (0..text.len()).step_by(2).map(digits).collect::<Vec<u8>>().into()
    }

    fn to_hex(bytes: &Bytes) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    #[test]
    fn bytes_are_written_the_same() {
        assert_eq!(to_hex(&encode_entry(&sample_entry())), ENTRY);
        assert_eq!(to_hex(&encode_outcome(&sample_done())), DONE);
        let others: Vec<String> =
            sample_outcomes()[1..].iter().map(|outcome| to_hex(&encode_outcome(outcome))).collect();
        assert_eq!(others, OTHER_OUTCOMES);
        assert_eq!(to_hex(&encode_command(&sample_range_command())), RANGE_COMMAND);
        assert_eq!(to_hex(&encode_outcome(&sample_range_outcome())), RANGE_OUTCOME);
        assert_eq!(to_hex(&encode_command(&sample_expiry_command())), EXPIRY_COMMAND);
        assert_eq!(to_hex(&encode_outcome(&sample_expiry_outcome())), EXPIRY_OUTCOME);
        assert_eq!(to_hex(&encode_command(&sample_bounded_command())), BOUNDED_COMMAND);
        assert_eq!(to_hex(&encode_outcome(&sample_bounded_outcome())), BOUNDED_OUTCOME);
        assert_eq!(to_hex(&encode_request(&sample_record())), RECORD);
        assert_eq!(to_hex(&encode_meta(&sample_meta())), META);
    }

    #[test]
    fn bytes_decode_for_ever() {
        assert_eq!(decode_entry(from_hex(ENTRY)), Ok(sample_entry()));
        assert_eq!(decode_outcome(from_hex(DONE)), Ok(sample_done()));
        for (hex, outcome) in OTHER_OUTCOMES.iter().zip(&sample_outcomes()[1..]) {
            assert_eq!(decode_outcome(from_hex(hex)).as_ref(), Ok(outcome));
        }
        assert_eq!(decode_command(from_hex(RANGE_COMMAND)), Ok(sample_range_command()));
        assert_eq!(decode_outcome(from_hex(RANGE_OUTCOME)), Ok(sample_range_outcome()));
        assert_eq!(decode_command(from_hex(EXPIRY_COMMAND)), Ok(sample_expiry_command()));
        assert_eq!(decode_outcome(from_hex(EXPIRY_OUTCOME)), Ok(sample_expiry_outcome()));
        assert_eq!(decode_command(from_hex(BOUNDED_COMMAND)), Ok(sample_bounded_command()));
        assert_eq!(decode_outcome(from_hex(BOUNDED_OUTCOME)), Ok(sample_bounded_outcome()));
        assert_eq!(decode_request(from_hex(RECORD)), Ok(sample_record()));
        assert_eq!(decode_meta(from_hex(META), sample_meta().owned), Ok(sample_meta()));
    }
}

#[test]
fn an_entry_is_what_protobuf_makes_of_it() {
    let large = Command::single(Action::put("k", vec![7; 100_000]));
    let later = [sample_range_command(), sample_expiry_command(), sample_bounded_command(), large];
    let mut entry = sample_entry();
    entry.commands.extend(later);
    for commands in [entry.commands, Vec::new()] {
        let entry = Entry { commands, ..entry };
        let whole = proto::Entry {
            format: FORMAT,
            stamp: entry.stamp,
            proposal: Some(proto::ProposalId {
                node: entry.proposal.node,
                boot: entry.proposal.boot,
                sequence: entry.proposal.sequence,
            }),
            commands: entry.commands.iter().map(command_to_proto).collect(),
        };
        assert_eq!(encode_entry(&entry), whole.encode_to_vec());
    }
}

#[test]
fn decoding_copies_no_values() {
    let value = Bytes::from(vec![7; 100_000]);
    let put = Action::put("k", value);
    let entry = Entry { stamp: 1, proposal: ProposalId::default(), commands: vec![Command::single(put)] };
    let bytes = encode_entry(&entry);
    let decoded = decode_entry(bytes.clone()).unwrap();
    let Action::Put { value, .. } = &decoded.commands[0].operations[0].action else { panic!("not a put") };
    assert!(bytes.as_ptr_range().contains(&value.as_ptr()));
}

#[test]
fn a_newer_format_asks_for_an_upgrade() {
    // Format 2, alone; then with a stamp that is no longer a fixed64.
    for bytes in [&[0x08, 2][..], &[0x08, 2, 0x12, 1, 0]] {
        for error in [
            decode_entry(Bytes::from_static(bytes)).unwrap_err(),
            decode_meta(Bytes::from_static(bytes), SlotSet::all()).unwrap_err(),
            decode_request(Bytes::from_static(bytes)).unwrap_err(),
        ] {
            assert_eq!(error, DecodeError::UnknownFormat(2));
            assert!(error.to_string().contains("upgrade this node"));
        }
    }
}

#[test]
fn nothing_at_all_is_no_record() {
    assert_eq!(decode_entry(Bytes::new()), Err(DecodeError::BadField("format version")));
    assert_eq!(decode_meta(Bytes::new(), SlotSet::all()), Err(DecodeError::BadField("format version")));
    assert_eq!(decode_outcome(Bytes::new()), Err(DecodeError::UnknownKind("outcome")));
}

#[test]
fn an_unknown_kind_asks_for_an_upgrade() {
    // Field 14 (an empty message), where operations and outcomes have up to 7 kinds.
    let unknown = [0x72, 0];
    let command = [&[0x22, 2][..], &unknown].concat();
    let error = decode_command(command.into()).unwrap_err();
    assert_eq!(error, DecodeError::UnknownKind("operation"));
    assert!(error.to_string().contains("upgrade this node"));

    let outcome = decode_outcome(unknown.to_vec().into());
    assert_eq!(outcome, Err(DecodeError::UnknownKind("outcome")));
    let result = [&[0x0a, 4, 0x0a, 2][..], &unknown].concat();
    let expected = Err(DecodeError::UnknownKind("operation result"));
    assert_eq!(decode_outcome(result.into()), expected);
    let precondition = [&[0x1a, 2][..], &unknown].concat();
    let expected = Err(DecodeError::UnknownKind("precondition"));
    assert_eq!(decode_command(precondition.into()), expected);
    let request_id = [&[0x12, 2][..], &unknown].concat();
    assert_eq!(decode_command(request_id.into()), Err(DecodeError::UnknownKind("request id")));
    // A put's expiry of field 14; then 99 as what a put, and a change of an expiry, demand.
    for (operation, what) in [
        (&[0x12, 4, 0x1a, 2, 0x72, 0][..], "expiry"),
        (&[0x12, 2, 0x20, 99], "condition of a put"),
        (&[0x42, 2, 0x18, 99], "condition of an expiry"),
    ] {
        let command = [&[0x22, operation.len() as u8][..], operation].concat();
        assert_eq!(decode_command(command.into()), Err(DecodeError::UnknownKind(what)));
    }
    let error = decode_outcome(vec![0x1a, 2, 0x10, 99].into());
    assert_eq!(error, Err(DecodeError::UnknownKind("operation error")));
}

#[test]
fn an_unknown_field_is_not_skipped() {
    // Field 9, a varint, in a put.
    let put = [0x0a, 1, b'k', 0x48, 1];
    let operation = [&[0x12, put.len() as u8][..], &put].concat();
    let command = [&[0x22, operation.len() as u8][..], &operation].concat();
    assert_eq!(decode_command(command.into()), Err(DecodeError::UnknownField));
    let entry = [&encode_entry(&sample_entry())[..], &[0x48, 1]].concat();
    assert_eq!(decode_entry(entry.into()), Err(DecodeError::UnknownField));
}

#[test]
fn a_request_id_has_16_bytes() {
    let command = vec![0x12, 3, 0x0a, 1, 7];
    assert_eq!(decode_command(command.into()), Err(DecodeError::BadField("request id")));
}

#[test]
fn damaged_bytes_never_panic_and_never_decode_to_something_shorter() {
    let mut entry = sample_entry();
    entry.commands.extend([sample_range_command(), sample_expiry_command()]);
    let samples = [
        encode_entry(&entry),
        encode_outcome(&sample_done()),
        encode_outcome(&sample_range_outcome()),
        encode_outcome(&sample_expiry_outcome()),
        encode_request(&sample_record()),
        encode_meta(&sample_meta()),
    ];
    let mut random = crate::tests::Random::new(1);
    for sample in &samples {
        for _ in 0..5_000 {
            let mut bytes = sample.to_vec();
            for _ in 0..1 + random.below(3) {
                let at = random.below(bytes.len() as u64) as usize;
                bytes[at] = random.next() as u8;
            }
            bytes.truncate(random.below(2 * bytes.len() as u64) as usize);
            let bytes = Bytes::from(bytes);
            // What does decode was understood to the last byte.
            if let Ok(entry) = decode_entry(bytes.clone()) {
                assert_eq!(encode_entry(&entry).len(), bytes.len());
            }
            if let Ok(outcome) = decode_outcome(bytes.clone()) {
                assert_eq!(encode_outcome(&outcome).len(), bytes.len());
            }
            _ = (
                decode_command(bytes.clone()),
                decode_request(bytes.clone()),
                decode_meta(bytes, SlotSet::all()),
            );
        }
    }
}
