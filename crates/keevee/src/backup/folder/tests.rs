use bytes::{Bytes, BytesMut};
use keevee_core::cut::Encoder;
use keevee_core::slots::{Slot, slot};
use tempfile::TempDir;

use super::*;

const TIME: u64 = 1_700_000_000_000_000;

/// Even slots are the first shard's, odd ones the second's.
fn owned(shard: u32) -> SlotSet {
    (0..16_384).map(Slot).filter(|slot| u32::from(slot.0) % 2 == shard - 1).collect()
}

fn cut(shard: u32, time: u64, owned: SlotSet) -> BytesMut {
    let mut bytes = BytesMut::new();
    let head = Head { shard: ShardId(shard), time, owned: owned.clone() };
    let mut encoder = Encoder::begin(&head, &mut bytes);
    for key in (0..20).map(|number| format!("key-{number:02}")) {
        if owned.contains(slot(key.as_bytes())) {
            encoder.add(key.as_bytes(), b"value", None, &mut bytes);
        }
    }
    encoder.end(&mut bytes);
    bytes
}

fn entry(written: &Written) -> ShardEntry {
    let Written { head, keys, bytes, digest } = written;
    let (name, engine) = (format!("shard-{}", head.shard), "paxos".to_owned());
    ShardEntry { id: head.shard, name, engine, keys: *keys, bytes: *bytes, digest: digest_text(*digest) }
}

/// A backup of these shards, each of which has its file's bytes.
fn backup_of(cuts: &[BytesMut]) -> (TempDir, PathBuf) {
    let parent = tempfile::tempdir().expect("a folder");
    let path = parent.path().join("backup");
    let mut target = Target::create(&path).expect("made");
    let shards: Vec<ShardEntry> = (1..)
        .zip(cuts)
        .map(|(shard, cut)| {
            let mut file = target.file(ShardId(shard)).expect("made");
            cut.chunks(100).for_each(|piece| file.write(piece).expect("written"));
            entry(&file.finish().expect("whole"))
        })
        .collect();
    let manifest = Manifest::new("a cluster".to_owned(), TIME, shards, Value::Null);
    target.finish(&manifest).expect("finished");
    (parent, path)
}

fn backup() -> (TempDir, PathBuf) {
    backup_of(&[cut(1, TIME, owned(1)), cut(2, TIME, owned(2))])
}

fn read(path: &Path) -> Result<Vec<Bytes>, FolderError> {
    let backup = Backup::open(path)?;
    backup.verify(|_| ())?;
    let mut keys = Vec::new();
    for shard in &backup.manifest.shards {
        let mut records = backup.records(shard)?;
        while let Some(record) = records.next_record()? {
            keys.push(record.key);
        }
        records.finish()?;
    }
    Ok(keys)
}

fn refused(path: &Path) -> String {
    read(path).expect_err("no backup").to_string()
}

fn change_manifest(path: &Path, change: impl FnOnce(&mut Value)) {
    let path = path.join(MANIFEST);
    let mut manifest: Value = serde_json::from_slice(&fs::read(&path).expect("there")).expect("JSON");
    change(&mut manifest);
    fs::write(&path, manifest.to_string()).expect("written");
}

#[test]
fn what_was_written_is_read() {
    let (_parent, path) = backup();
    assert_eq!(read(&path).expect("a backup").len(), 20);
    let manifest = Backup::open(&path).expect("a backup").manifest;
    assert_eq!((manifest.keys(), manifest.taken.as_str()), (20, "2023-11-14T22:13:20.000000Z"));
    let bytes: usize = [1, 2].map(|shard| cut(shard, TIME, owned(shard)).len()).iter().sum();
    assert_eq!(manifest.bytes(), bytes as u64);
    let names: BTreeSet<_> =
        fs::read_dir(&path).expect("there").map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names, ["manifest.json", "shard-1.cut", "shard-2.cut"].map(Into::into).into());
}

#[test]
fn a_folder_that_is_not_empty_is_left_alone() {
    let (_parent, path) = backup();
    assert!(matches!(Target::create(&path), Err(FolderError::NotEmpty(_))));
    assert_eq!(read(&path).expect("as it was").len(), 20);
    // What a killed backup leaves is told from a user's files.
    fs::write(path.join("shard-9.cut.partial"), "").expect("written");
    assert!(matches!(Target::create(&path), Err(FolderError::Unfinished(_))));
}

#[test]
fn what_is_not_finished_leaves_nothing() {
    let parent = tempfile::tempdir().expect("a folder");
    let path = parent.path().join("backup");
    let mut target = Target::create(&path).expect("made");
    target.file(ShardId(1)).expect("made").write(&cut(1, TIME, SlotSet::all())[..50]).expect("written");
    assert!(matches!(Backup::open(&path), Err(FolderError::NoManifest(_))));
    drop(target);
    assert!(!path.exists());
    fs::create_dir(&path).expect("made");
    drop(Target::create(&path).expect("it is empty"));
    assert!(path.exists(), "it was there before");
}

#[test]
fn a_cut_that_breaks_off_gets_no_name() {
    let parent = tempfile::tempdir().expect("a folder");
    let mut target = Target::create(parent.path()).expect("it is empty");
    let bytes = cut(1, TIME, SlotSet::all());
    let mut file = target.file(ShardId(1)).expect("made");
    file.write(&bytes[..bytes.len() - 1]).expect("written");
    assert!(matches!(file.finish(), Err(FolderError::Cut { cause: CutError::Torn, .. })));
    target.clear();
    assert!(fs::read_dir(parent.path()).expect("there").next().is_none());
}

#[test]
fn damage_shows_wherever_it_is() {
    let (_parent, path) = backup();
    let file = path.join("shard-2.cut");
    let whole = fs::read(&file).expect("there");
    // `keevee_core::cut` tries every bit.
    for at in (0..whole.len()).step_by(31) {
        let mut flipped = whole.clone();
        flipped[at] ^= 0x10;
        fs::write(&file, flipped).expect("written");
        assert!(refused(&path).contains("shard-2.cut"), "byte {at}");
        fs::write(&file, &whole[..at]).expect("written");
        assert!(refused(&path).contains("shard-2.cut"), "cut off at {at}");
    }
    fs::write(&file, [&whole[..], b"x"].concat()).expect("written");
    assert!(refused(&path).contains("more follows its end"));
    fs::write(&file, whole).expect("written");
    assert_eq!(read(&path).expect("whole again").len(), 20);
}

#[test]
fn files_that_are_not_the_manifests_are_refused() {
    let (_parent, path) = backup();
    fs::copy(path.join("shard-1.cut"), path.join("shard-2.cut")).expect("copied");
    assert!(refused(&path).contains("is not the file"));
    fs::remove_file(path.join("shard-2.cut")).expect("removed");
    assert!(refused(&path).contains("shard-2.cut is missing"));
    fs::create_dir(path.join("shard-2.cut")).expect("made");
    assert!(refused(&path).contains("no part of the backup"), "it is no file");
    // Each whole in itself, and of another time.
    let (_parent, path) = backup_of(&[cut(1, TIME, owned(1)), cut(2, TIME + 1, owned(2))]);
    assert!(refused(&path).contains("is not the file"));
    for name in ["shard-3.cut", "shard-01.cut", "shard-1.cut.partial", "notes.txt"] {
        let (_parent, path) = backup();
        fs::write(path.join(name), "").expect("written");
        assert!(refused(&path).contains(name));
    }
}

#[test]
fn shards_that_share_slots_or_leave_some_out_are_no_cluster() {
    let (_parent, path) = backup_of(&[cut(1, TIME, SlotSet::all()), cut(2, TIME, owned(2))]);
    assert!(refused(&path).contains("has keys that another shard's file has too"));
    let (_parent, path) = backup_of(&[cut(1, TIME, owned(1))]);
    assert!(refused(&path).contains("does not name all shards"));
    let (_parent, path) = backup();
    fs::remove_file(path.join("shard-2.cut")).expect("removed");
    change_manifest(&path, |manifest| {
        manifest["shards"].as_array_mut().expect("shards").pop();
    });
    assert!(refused(&path).contains("does not name all shards"));
}

type Change = fn(&mut Value);

#[test]
fn manifests_are_read_strictly() {
    let changes: [(&str, Change); 14] = [
        ("format 2", |manifest| manifest["format"] = 2.into()),
        ("no format", |manifest| manifest["format"] = "1".into()),
        ("unknown field", |manifest| manifest["more"] = 1.into()),
        ("unknown field", |manifest| manifest["shards"][0]["path"] = "../../etc/passwd".into()),
        ("out of order", |manifest| manifest["shards"][1]["id"] = 1.into()),
        ("out of order", |manifest| manifest["shards"][0]["id"] = 0.into()),
        ("out of order", |manifest| manifest["shards"] = Value::Array(vec![])),
        ("invalid", |manifest| manifest["shards"][0]["id"] = "../1".into()),
        ("is not the file", |manifest| manifest["shards"][0]["keys"] = 1.into()),
        ("is not the file", |manifest| manifest["shards"][0]["bytes"] = u64::MAX.into()),
        ("is not the file", |manifest| manifest["shards"][0]["digest"] = "0".into()),
        ("is not the file", |manifest| {
            manifest["time"] = 1.into();
            manifest["taken"] = rfc3339(1).into();
        }),
        ("time in words", |manifest| manifest["time"] = 1.into()),
        ("time in words", |manifest| manifest["taken"] = "1999-01-01T00:00:00Z".into()),
    ];
    for (named, change) in changes {
        let (_parent, path) = backup();
        change_manifest(&path, change);
        assert!(refused(&path).contains(named), "{named}: {}", refused(&path));
    }
    let (_parent, path) = backup();
    change_manifest(&path, |manifest| manifest["shards"][0]["name"] = "../../../etc/passwd".into());
    assert_eq!(read(&path).expect("a name is for people").len(), 20);
    for text in ["", "{", "[]", "null", "{\"format\": 1, \"format\": 1}"] {
        fs::write(path.join(MANIFEST), text).expect("written");
        assert!(refused(&path).contains(MANIFEST), "{text}");
    }
    fs::remove_file(path.join(MANIFEST)).expect("removed");
    assert!(refused(&path).contains("no manifest.json"));
}

#[cfg(unix)]
#[test]
fn links_are_not_followed() {
    use std::os::unix::fs::symlink;

    for name in ["shard-1.cut", MANIFEST] {
        let (parent, path) = backup();
        let elsewhere = parent.path().join("elsewhere");
        fs::rename(path.join(name), &elsewhere).expect("moved");
        symlink(&elsewhere, path.join(name)).expect("linked");
        assert!(refused(&path).contains(name), "{name}");
    }
}
