//! A backup's folder: a file for each shard, and a manifest that is written last.
//!
//! A folder without a manifest is no backup. The names of files are made of shards' numbers; none is taken from what a
//! folder says. Whoever reads one trusts nothing: all of it is checked before any of it is used.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use keevee_core::cut::{CutError, Decoder, Head, Record};
use keevee_core::ids::ShardId;
use keevee_core::slots::SlotSet;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::time::rfc3339;

/// The version of the manifest. A change of it is a new one.
const FORMAT: u32 = 1;
const MANIFEST: &str = "manifest.json";
/// What a file is called until it is whole.
const PARTIAL: &str = ".partial";
/// No manifest of 2048 shards comes near this.
const MANIFEST_BYTES_MAX: u64 = 64 << 20;
/// Bytes that are read of a file at once.
const PIECE_BYTES: usize = 256 << 10;

/// Why a folder is no backup that can be used, or can't become one.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FolderError {
    #[error("{} is there already, and not empty: name a new folder", .0.display())]
    NotEmpty(PathBuf),
    #[error("{} has what is left of a backup that was not finished: remove it, or name a new folder", .0.display())]
    Unfinished(PathBuf),
    #[error("{} has no {MANIFEST}: it is no backup, or one that was not finished", .0.display())]
    NoManifest(PathBuf),
    #[error("{}: {cause}; take another backup", .path.display())]
    BadManifest { path: PathBuf, cause: String },
    #[error("{} has format {found}, and this version knows {FORMAT}: use a newer keevee", .path.display())]
    UnknownFormat { path: PathBuf, found: u64 },
    #[error("{} is no part of the backup: move it away, if the rest is to be used", .0.display())]
    Foreign(PathBuf),
    #[error("{} is missing: the backup is not whole, take another one", .0.display())]
    Missing(PathBuf),
    #[error("{}: {cause}; the backup can't be used, take another one", .path.display())]
    Cut { path: PathBuf, cause: CutError },
    #[error("{} {cause}: the backup can't be used, take another one", .path.display())]
    Other { path: PathBuf, cause: &'static str },
    #[error("{}: {cause}", .path.display())]
    Io { path: PathBuf, cause: io::Error },
}

fn at(path: &Path) -> impl Fn(io::Error) -> FolderError {
    move |cause| FolderError::Io { path: path.to_owned(), cause }
}

/// What a backup says of itself.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Manifest {
    format: u32,
    /// The cluster's id.
    pub(crate) cluster: String,
    /// The time of all cuts, in microseconds since the Unix epoch.
    pub(crate) time: u64,
    /// The same for people.
    pub(crate) taken: String,
    /// In the order of their numbers.
    pub(crate) shards: Vec<ShardEntry>,
    /// The shard map as it was, for people: nothing is made of it.
    pub(crate) map: Value,
}

/// A shard of a backup.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ShardEntry {
    pub(crate) id: ShardId,
    pub(crate) name: String,
    pub(crate) engine: String,
    pub(crate) keys: u64,
    /// Of its file.
    pub(crate) bytes: u64,
    /// Of its file, in hexadecimal.
    pub(crate) digest: String,
}

impl Manifest {
    pub(crate) fn new(cluster: String, time: u64, shards: Vec<ShardEntry>, map: Value) -> Manifest {
        Manifest { format: FORMAT, cluster, time, taken: rfc3339(time), shards, map }
    }

    /// Reads and checks the text of the file at `path`.
    pub(crate) fn parse(text: &[u8], path: PathBuf) -> Result<Manifest, FolderError> {
        let bad = |cause: String| FolderError::BadManifest { path: path.clone(), cause };
        let value: Value = serde_json::from_slice(text).map_err(|error| bad(error.to_string()))?;
        match value["format"].as_u64() {
            None => return Err(bad("it names no format".to_owned())),
            Some(found) if found != u64::from(FORMAT) => {
                return Err(FolderError::UnknownFormat { path, found });
            }
            Some(_) => {}
        }
        // Of the text: a value has lost names that came twice.
        let manifest: Manifest = serde_json::from_slice(text).map_err(|error| bad(error.to_string()))?;
        let ids: Vec<ShardId> = manifest.shards.iter().map(|shard| shard.id).collect();
        if !ids.is_sorted_by(|one, next| one < next) || ids.first().is_none_or(|id| *id == ShardId::SYSTEM) {
            return Err(bad("its shards are none, out of order, or named twice".to_owned()));
        }
        if manifest.taken != rfc3339(manifest.time) {
            return Err(bad("its time in words is another than in numbers".to_owned()));
        }
        Ok(manifest)
    }

    pub(crate) fn keys(&self) -> u64 {
        self.shards.iter().map(|shard| shard.keys).fold(0, u64::saturating_add)
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.shards.iter().map(|shard| shard.bytes).fold(0, u64::saturating_add)
    }
}

fn file_name(shard: ShardId) -> String {
    format!("shard-{}.cut", shard.0)
}

/// A folder that is to become a backup. Dropped before it is one, it takes back what it has made.
pub(crate) struct Target {
    path: PathBuf,
    has_made_folder: bool,
    made: BTreeSet<PathBuf>,
    is_finished: bool,
}

impl Target {
    /// Makes the folder, unless there is an empty one.
    pub(crate) fn create(path: &Path) -> Result<Target, FolderError> {
        let exists = path.try_exists().map_err(at(path))?;
        let found = if exists { fs::read_dir(path).map_err(at(path))?.collect() } else { Vec::new() };
        let is_partial = |entry: &io::Result<fs::DirEntry>| {
            entry.as_ref().is_ok_and(|entry| entry.file_name().to_string_lossy().ends_with(PARTIAL))
        };
        if found.iter().any(is_partial) {
            return Err(FolderError::Unfinished(path.to_owned()));
        }
        if !found.is_empty() {
            return Err(FolderError::NotEmpty(path.to_owned()));
        }
        fs::create_dir_all(path).map_err(at(path))?;
        let (path, made) = (path.to_owned(), BTreeSet::new());
        Ok(Target { path, has_made_folder: !exists, made, is_finished: false })
    }

    /// Removes what an earlier attempt has made.
    pub(crate) fn clear(&mut self) {
        for file in std::mem::take(&mut self.made) {
            // What stays is found when the folder is read.
            let _ = fs::remove_file(file);
        }
    }

    /// A shard's file, to be written.
    pub(crate) fn file(&mut self, shard: ShardId) -> Result<CutFile, FolderError> {
        let path = self.path.join(file_name(shard));
        let partial = with_suffix(&path);
        let file = File::create_new(&partial).map_err(at(&partial))?;
        self.made.extend([path.clone(), partial.clone()]);
        Ok(CutFile { path, partial, file, decoder: Decoder::new(), bytes: 0 })
    }

    /// Makes it a backup: all files are there.
    pub(crate) fn finish(mut self, manifest: &Manifest) -> Result<(), FolderError> {
        let path = self.path.join(MANIFEST);
        let partial = with_suffix(&path);
        self.made.insert(partial.clone());
        let mut text = serde_json::to_vec_pretty(manifest).map_err(io::Error::other).map_err(at(&path))?;
        text.push(b'\n');
        // The files' names come to the disk before the manifest's.
        sync_folder(&self.path)?;
        let written = File::create_new(&partial).and_then(|mut file| {
            file.write_all(&text)?;
            file.sync_all()
        });
        written.map_err(at(&partial))?;
        self.made.insert(path.clone());
        fs::rename(&partial, &path).map_err(at(&path))?;
        sync_folder(&self.path)?;
        if let Some(parent) = self.path.canonicalize().ok().as_deref().and_then(Path::parent) {
            sync_folder(parent)?;
        }
        self.is_finished = true;
        Ok(())
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        if !self.is_finished {
            self.clear();
            if self.has_made_folder {
                let _ = fs::remove_dir(&self.path);
            }
        }
    }
}

fn with_suffix(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(PARTIAL);
    name.into()
}

fn sync_folder(path: &Path) -> Result<(), FolderError> {
    File::open(path).and_then(|folder| folder.sync_all()).map_err(at(path))
}

/// A shard's file that is being written. What comes is read as well: only a whole cut gets its name.
pub(crate) struct CutFile {
    path: PathBuf,
    partial: PathBuf,
    file: File,
    decoder: Decoder,
    bytes: u64,
}

/// What a file holds.
pub(crate) struct Written {
    pub(crate) head: Head,
    pub(crate) keys: u64,
    pub(crate) bytes: u64,
    pub(crate) digest: u128,
}

impl CutFile {
    /// Appends what came.
    pub(crate) fn write(&mut self, bytes: &[u8]) -> Result<(), FolderError> {
        let damaged = |cause| FolderError::Cut { path: self.partial.clone(), cause };
        self.decoder.feed(bytes);
        while self.decoder.next_record().map_err(damaged)?.is_some() {}
        self.file.write_all(bytes).map_err(at(&self.partial))?;
        self.bytes += bytes.len() as u64;
        Ok(())
    }

    /// How many keys there are so far.
    pub(crate) fn keys(&self) -> u64 {
        self.decoder.keys()
    }

    /// Puts what was written to the disk. Blocks for as long as that takes.
    pub(crate) fn sync(&self) -> Result<(), FolderError> {
        self.file.sync_all().map_err(at(&self.partial))
    }

    /// All of it has come, and is on the disk: it gets its name.
    pub(crate) fn finish(self) -> Result<Written, FolderError> {
        let CutFile { path, partial, decoder, bytes, .. } = self;
        let (head, end) =
            decoder.finish().map_err(|cause| FolderError::Cut { path: partial.clone(), cause })?;
        fs::rename(&partial, &path).map_err(at(&path))?;
        Ok(Written { head, keys: end.keys, bytes, digest: end.digest })
    }
}

/// How a digest is written in a manifest.
pub(crate) fn digest_text(digest: u128) -> String {
    format!("{digest:032x}")
}

/// A folder that says that it is a backup.
#[derive(Clone, Debug)]
pub(crate) struct Backup {
    path: PathBuf,
    pub(crate) manifest: Manifest,
}

impl Backup {
    /// Reads the manifest, and looks whether what it names is there, and nothing else.
    pub(crate) fn open(path: &Path) -> Result<Backup, FolderError> {
        let manifest = read_manifest(path)?;
        let backup = Backup { path: path.to_owned(), manifest };
        let mut names = BTreeMap::from([(MANIFEST.to_owned(), false)]);
        let shards = &backup.manifest.shards;
        names.extend(shards.iter().map(|shard| (file_name(shard.id), false)));
        for entry in fs::read_dir(path).map_err(at(path))? {
            let entry = entry.map_err(at(path))?;
            let is_file = entry.file_type().map_err(at(path))?.is_file();
            let name = entry.file_name();
            match name.to_str().and_then(|name| names.get_mut(name)) {
                Some(is_there) if is_file => *is_there = true,
                _ => return Err(FolderError::Foreign(entry.path())),
            }
        }
        match names.into_iter().find(|(_, is_there)| !is_there) {
            Some((name, _)) => Err(FolderError::Missing(path.join(name))),
            None => Ok(backup),
        }
    }

    /// Reads all of it, and tells how far it is, in bytes.
    pub(crate) fn verify(&self, mut progress: impl FnMut(u64)) -> Result<(), FolderError> {
        let mut owned = SlotSet::none();
        for shard in &self.manifest.shards {
            let mut records = self.records(shard)?;
            while records.next_record()?.is_some() {
                progress(std::mem::take(&mut records.progress));
            }
            progress(records.progress);
            let head = records.finish()?;
            if head.owned.iter().any(|slot| !owned.insert(slot)) {
                let cause = "has keys that another shard's file has too";
                return Err(self.other(shard.id, cause));
            }
        }
        if owned.is_all() {
            return Ok(());
        }
        let (path, cause) = (self.path.join(MANIFEST), "does not name all shards");
        Err(FolderError::Other { path, cause })
    }

    /// A shard's keys, in order.
    pub(crate) fn records(&self, shard: &ShardEntry) -> Result<Records, FolderError> {
        let path = self.path.join(file_name(shard.id));
        let file = File::open(&path).map_err(at(&path))?;
        let (shard, time, decoder) = (shard.clone(), self.manifest.time, Decoder::new());
        let piece = vec![0; PIECE_BYTES].into();
        Ok(Records { path, file, shard, time, decoder, piece, bytes: 0, progress: 0 })
    }

    fn other(&self, shard: ShardId, cause: &'static str) -> FolderError {
        FolderError::Other { path: self.path.join(file_name(shard)), cause }
    }
}

fn read_manifest(folder: &Path) -> Result<Manifest, FolderError> {
    let path = folder.join(MANIFEST);
    let bad = |cause: String| FolderError::BadManifest { path: path.clone(), cause };
    match fs::symlink_metadata(&path) {
        Ok(found) if !found.is_file() => return Err(bad("it is no file".to_owned())),
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(FolderError::NoManifest(folder.to_owned()));
        }
        Err(error) => return Err(at(&path)(error)),
    }
    let mut text = Vec::new();
    let read = File::open(&path).and_then(|file| file.take(MANIFEST_BYTES_MAX).read_to_end(&mut text));
    read.map_err(at(&path))?;
    Manifest::parse(&text, path.clone())
}

/// The keys of a shard's file. They count only once [`Records::finish`] has found the file whole.
pub(crate) struct Records {
    path: PathBuf,
    file: File,
    shard: ShardEntry,
    time: u64,
    decoder: Decoder,
    piece: Box<[u8]>,
    bytes: u64,
    /// Bytes that were read since somebody looked here.
    pub(crate) progress: u64,
}

impl Records {
    /// The next key; `None` at the end of the file.
    pub(crate) fn next_record(&mut self) -> Result<Option<Record>, FolderError> {
        loop {
            let record = self.decoder.next_record();
            if let Some(record) =
                record.map_err(|cause| FolderError::Cut { path: self.path.clone(), cause })?
            {
                return Ok(Some(record));
            }
            let count = self.file.read(&mut self.piece).map_err(at(&self.path))?;
            if count == 0 {
                return Ok(None);
            }
            self.decoder.feed(&self.piece[..count]);
            self.bytes += count as u64;
            self.progress += count as u64;
        }
    }

    /// Checks the file as a whole, behind its last key.
    pub(crate) fn finish(self) -> Result<Head, FolderError> {
        let Records { path, shard, time, decoder, bytes, .. } = self;
        let (head, end) = match decoder.finish() {
            Ok(whole) => whole,
            Err(cause) => return Err(FolderError::Cut { path, cause }),
        };
        let is_same =
            (end.keys, bytes, digest_text(end.digest)) == (shard.keys, shard.bytes, shard.digest.clone());
        if head.shard != shard.id || head.time != time || !is_same {
            return Err(FolderError::Other { path, cause: "is not the file that the manifest names" });
        }
        Ok(head)
    }
}

#[cfg(test)]
mod tests;
