use super::*;

const TIME: u64 = 1_700_000_000_000_000;

fn head() -> Head {
    Head { shard: ShardId(3), time: TIME, owned: SlotSet::all() }
}

fn records() -> Vec<Record> {
    let record = |key: &'static str, value: &'static [u8], expires| Record {
        key: key.into(),
        value: Bytes::from_static(value),
        expires,
    };
    vec![record("a", b"", None), record("b", b"two\0", Some(TIME + 1)), record("bb", b"three", None)]
}

fn encoded(head: &Head, records: &[Record]) -> BytesMut {
    let mut bytes = BytesMut::new();
    let mut encoder = Encoder::begin(head, &mut bytes);
    records.iter().for_each(|Record { key, value, expires }| encoder.add(key, value, *expires, &mut bytes));
    encoder.end(&mut bytes);
    bytes
}

fn decoded(pieces: &[&[u8]]) -> Result<(Head, Vec<Record>, End), CutError> {
    let (mut decoder, mut records) = (Decoder::new(), Vec::new());
    for piece in pieces {
        decoder.feed(piece);
        while let Some(record) = decoder.next_record()? {
            records.push(record);
        }
    }
    decoder.finish().map(|(head, end)| (head, records, end))
}

#[test]
fn what_was_written_is_read_however_it_comes() {
    let bytes = encoded(&head(), &records());
    for at in 0..=bytes.len() {
        let (head_read, records_read, end) = decoded(&[&bytes[..at], &bytes[at..]]).expect("a cut");
        assert_eq!((head_read, records_read, end.keys), (head(), records(), 3), "in two pieces, at {at}");
    }
    let single: Vec<&[u8]> = bytes.chunks(1).collect();
    assert_eq!(decoded(&single).expect("a cut").1, records());
}

#[test]
fn a_cut_without_keys_is_one() {
    let none = Head { owned: SlotSet::none(), ..head() };
    let (head_read, records, _) = decoded(&[&encoded(&none, &[])]).expect("a cut");
    assert_eq!((head_read, records), (none, vec![]));
}

/// The bytes are what backups have on disk: a change of them is a new format.
#[test]
fn the_layout_is_pinned() {
    let bytes = encoded(&head(), &records()[..1]);
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    let (front, digest) = hex.split_at(hex.len() - 32);
    let head = "6b6565766565424b000000010000000300060a24181e40000000000101";
    assert_eq!(front, format!("{head}0000000100000000000000000000000061000000000000000000000001"));
    assert_eq!(digest, "ebcb1ba21fc84d2df98b6c6cd36b7ab2");
}

#[test]
fn what_breaks_off_is_torn_wherever_it_does() {
    let bytes = encoded(&head(), &records());
    for at in 0..bytes.len() {
        assert_eq!(decoded(&[&bytes[..at]]), Err(CutError::Torn), "at {at}");
    }
}

#[test]
fn every_flipped_bit_shows() {
    let bytes = encoded(&head(), &records());
    for bit in 0..bytes.len() * 8 {
        let mut flipped = bytes.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        assert!(decoded(&[&flipped]).is_err(), "bit {bit}");
    }
}

#[test]
fn what_no_cut_says_is_refused() {
    let damaged = |bytes: &[u8]| match decoded(&[bytes]) {
        Err(CutError::Damaged(why)) => why,
        other => panic!("{other:?}"),
    };
    let whole = encoded(&head(), &records());
    assert_eq!(damaged(&[&whole[..], b"x"].concat()), "more follows its end");
    let backwards: Vec<Record> = records().into_iter().rev().collect();
    assert_eq!(damaged(&encoded(&head(), &backwards)), "its keys are out of order");
    let foreign = Head { owned: SlotSet::none(), ..head() };
    assert_eq!(damaged(&encoded(&foreign, &records())), "a key is not of this shard");
    let gone = Record { expires: Some(TIME), ..records().remove(0) };
    assert_eq!(damaged(&encoded(&head(), &[gone])), "a key was gone already");
    let mut endless = encoded(&head(), &[]);
    let end = endless.len() - END_BYTES;
    endless[end..end + 4].copy_from_slice(&u32::MAX.to_be_bytes());
    assert_eq!(damaged(&endless), "a key or a value is longer than any can be");
    assert_eq!(decoded(&[b"SQLite format 3"]), Err(CutError::NoCut));
    let mut newer = whole;
    newer[11] = 2;
    assert_eq!(decoded(&[&newer]), Err(CutError::UnknownFormat(2)));
}
