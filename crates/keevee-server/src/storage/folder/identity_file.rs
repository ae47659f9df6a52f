//! `identity.json`: whose folder it is, for people and for checks.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

use keevee_core::ids::NodeId;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::FolderError;
use crate::storage::format::{FORMAT_VERSION, Identity};
use keevee_core::ids::StoreId;

const NAME: &str = "identity.json";
const UNFINISHED_NAME: &str = "identity.json.unfinished";

/// The file's layout. `format_version` stays in every version to come.
#[derive(Serialize, Deserialize)]
struct IdentityFile {
    format_version: u32,
    cluster_id: String,
    node_id: u64,
    store_id: String,
}

/// The part that can be read of a file of any version.
#[derive(Deserialize)]
struct AnyIdentityFile {
    format_version: u32,
}

/// The identity in a folder's file; `None` if there is no such file.
pub(super) fn read(folder: &Path) -> Result<Option<Identity>, FolderError> {
    let path = folder.join(NAME);
    let bytes = match fs::read(&path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(FolderError::Io { what: "reading", path, source }),
    };
    let bad = |cause: String| FolderError::BadIdentityFile { path: path.clone(), cause };
    let any: AnyIdentityFile = serde_json::from_slice(&bytes).map_err(|error| bad(error.to_string()))?;
    if any.format_version != FORMAT_VERSION {
        return Err(FolderError::Version { path: folder.to_owned(), found: any.format_version });
    }
    let file: IdentityFile = serde_json::from_slice(&bytes).map_err(|error| bad(error.to_string()))?;
    let uuid = |text: &str| Uuid::parse_str(text).map_err(|error| bad(format!("{text}: {error}")));
    Ok(Some(Identity {
        cluster_id: uuid(&file.cluster_id)?,
        node_id: NodeId(file.node_id),
        store_id: StoreId(uuid(&file.store_id)?),
    }))
}

/// Puts the file into its place, whole and synced; the caller syncs the folder.
pub(super) fn write(folder: &Path, identity: &Identity) -> Result<(), FolderError> {
    let unfinished = folder.join(UNFINISHED_NAME);
    let write = || -> io::Result<()> {
        let mut text = serde_json::to_vec_pretty(&IdentityFile {
            format_version: FORMAT_VERSION,
            cluster_id: identity.cluster_id.to_string(),
            node_id: identity.node_id.0,
            store_id: identity.store_id.to_string(),
        })?;
        text.push(b'\n');
        let mut file = File::create(&unfinished)?;
        file.write_all(&text)?;
        file.sync_all()?;
        fs::rename(&unfinished, folder.join(NAME))
    };
    write().map_err(|source| FolderError::Io { what: "writing", path: unfinished.clone(), source })
}
