//! A new cluster from what is left of one that has lost a majority for good.
//!
//! [`Survey::take`] opens the data folders that survive, whose nodes are stopped, and reads all of them without changing anything:
//! what each has of each shard, what of it would be kept ([`plan`]), and whether anything that was acknowledged may be lost.
//! [`Survey::make`] writes a new folder of one node, which alone holds every shard: the state copied from one survivor,
//! behind it all entries that are kept, as if they were chosen, and a hard state in which the new node alone decides. Cluster
//! id and store id are new, so that no node of before can take part in it.
//!
//! It leaves out asking whoever gives the order whether they mean it (the command line), and getting from one node to several:
//! nodes join the new cluster as they join any other.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use keevee_core::ids::{NodeId, ShardId, StoreId};
use keevee_core::shard_map::{ShardInfo, ShardMap};
use keevee_replica::storage::StorageError;
use uuid::Uuid;

use crate::config::Config;
use crate::storage::{DataFolder, FolderError, Identity, NewFolder, Survivor};
use plan::{Holding, Kept};

mod holding;
mod new_log;
pub mod plan;

/// The new map is newer by so much than any that is known, so that none of which only lost nodes and clients know
/// passes for it.
const EPOCHS_SKIPPED: u64 = 1000;

/// Why nothing can be told, or nothing was made. Each says what to do.
#[derive(Debug, thiserror::Error)]
pub enum RecoverError {
    /// A folder can't be read or made, for a reason other than damage.
    #[error(transparent)]
    Folder(#[from] FolderError),
    /// A path leads to something else.
    #[error("{} is no data folder of a node: name what its `keevee.toml` has as `[node] data`, or that file", .0.display())]
    NoDataFolder(PathBuf),
    /// What a folder holds can't be read, for a reason other than damage.
    #[error("{}: {cause}; mend that, and run this again", path.display())]
    Unreadable {
        /// The folder.
        path: PathBuf,
        /// Why.
        cause: String,
    },
    /// No folder is whole.
    #[error("none of the folders can be used: {0}; restore a backup with `keevee restore`")]
    NoneUsable(String),
    /// Folders are of different clusters.
    #[error("{} is of cluster {other}, {} of cluster {cluster}: name folders of one cluster", path.display(), first.display())]
    OtherCluster {
        /// The folder that differs.
        path: PathBuf,
        /// Its cluster.
        other: Uuid,
        /// The first folder.
        first: PathBuf,
        /// Its cluster.
        cluster: Uuid,
    },
    /// Two folders say that they are one node's.
    #[error("{} and {} are both of node {node}: name the one that the node ran with last", path.display(), first.display())]
    Twice {
        /// The node.
        node: NodeId,
        /// One folder.
        first: PathBuf,
        /// The other.
        path: PathBuf,
    },
    /// A folder is not the one with which its node took part: it was formatted anew.
    #[error(
        "{} is not the folder that node {node} had: {} knows that one by another store id. It was formatted anew, and holds nothing \
         of the cluster: leave it out",
        path.display(),
        knows.display()
    )]
    Stranger {
        /// The folder.
        path: PathBuf,
        /// Whose it says that it is.
        node: NodeId,
        /// A folder that knows another one.
        knows: PathBuf,
    },
    /// Folders have shard maps of one epoch that differ.
    #[error(
        "{} and {} have different shard maps of epoch {epoch}: one of them was formatted anew, leave that one out",
        path.display(),
        first.display()
    )]
    OtherMap {
        /// One folder.
        path: PathBuf,
        /// The other.
        first: PathBuf,
        /// The epoch.
        epoch: u64,
    },
    /// No folder knows of any shards.
    #[error(
        "none of the folders has a shard map: start keevee of a newer version on one of them once, then run this again"
    )]
    NoMap,
    /// The new cluster would have the old one's id.
    #[error("[cluster] id is the lost cluster's: give the new one an id of its own, `uuidgen` makes one")]
    SameCluster,
    /// Writing the new folder failed; nothing of it is left.
    #[error("shard {shard}: {}; nothing was made, run this again once that is mended", self::cause(.cause))]
    Writing {
        /// The shard.
        shard: ShardId,
        /// What went wrong.
        cause: StorageError,
    },
}

/// A folder as it was found.
#[derive(Debug)]
pub struct Folder {
    /// Where it is.
    pub path: PathBuf,
    /// Open, if it is whole; else what is wrong with it.
    pub found: Result<Survivor, String>,
}

/// A shard as the folders have it.
#[derive(Debug)]
pub struct ShardSurvey {
    /// The shard.
    pub info: ShardInfo,
    /// What folders have of it: each with its folder's place among them all.
    pub folders: Vec<usize>,
    /// The same: what that is.
    pub holdings: Vec<Holding>,
    /// Folders whose replica is damaged, and how.
    pub damaged: Vec<(usize, String)>,
    /// What would be kept; `None` if no folder has anything of it.
    pub kept: Option<Kept>,
}

impl ShardSurvey {
    /// The voters that are not here.
    pub fn lost(&self) -> Vec<NodeId> {
        let voters = self.kept.iter().flat_map(|kept| &kept.voters);
        let is_here = |node: &&NodeId| self.holdings.iter().any(|holding| holding.node == **node);
        voters.filter(|node| !is_here(node)).copied().collect()
    }

    /// True if nothing that was acknowledged can be lost.
    pub fn is_complete(&self) -> bool {
        self.kept.as_ref().is_some_and(|kept| kept.is_complete)
    }

    /// True if all of the shard is lost: it would be empty.
    pub fn is_lost(&self) -> bool {
        let is_empty = |kept: &Kept| !kept.is_complete && kept.last(&self.holdings) == 0;
        self.kept.as_ref().is_none_or(is_empty)
    }
}

/// All that is known of a cluster from the folders that survive.
#[derive(Debug)]
pub struct Survey {
    /// The cluster.
    pub cluster: Uuid,
    /// The folders, in the order in which they were given.
    pub folders: Vec<Folder>,
    /// The newest shard map that any of them knows.
    pub map: ShardMap,
    /// The data shards, by id. The system shard holds nothing but the map, and begins anew.
    pub shards: Vec<ShardSurvey>,
}

/// What was made.
#[derive(Clone, Debug)]
pub struct Made {
    /// The new cluster and its one node.
    pub identity: Identity,
    /// Its shard map.
    pub map: ShardMap,
}

impl Survey {
    /// Opens folders of nodes that are stopped, and reads all that they have. It takes as long as that takes, and changes nothing.
    pub fn take(paths: &[PathBuf]) -> Result<Survey, RecoverError> {
        let folders = once_each(paths).map(|path| open(&path)).collect::<Result<Vec<_>, _>>()?;
        let cluster = check_belong_together(&folders)?;
        check_maps(&folders)?;
        let map = newest_map(&folders)?;
        let data_shards = map.data_shards();
        let shards = data_shards.map(|info| survey(info, &folders)).collect::<Result<_, _>>()?;
        Ok(Survey { cluster, folders, map, shards })
    }

    /// Makes the folder of a new cluster's one node, as its configuration says. It has what [`Survey::shards`] tell.
    pub fn make(&self, config: &Config) -> Result<Made, RecoverError> {
        if config.cluster.id == self.cluster {
            return Err(RecoverError::SameCluster);
        }
        let new = NewFolder::begin(&config.node.data, config.cluster.id, config.node_id())?;
        let identity = new.identity;
        for shard in self.shards.iter().filter(|shard| !shard.is_lost()) {
            let id = shard.info.id;
            let failed = |cause| RecoverError::Writing { shard: id, cause };
            self.write(&new, shard).map_err(failed)?;
        }
        let map = self.new_map(config, identity.store_id);
        new.finish(&map)?;
        Ok(Made { identity, map })
    }

    fn write(&self, new: &NewFolder, shard: &ShardSurvey) -> Result<(), StorageError> {
        let Some(kept) = &shard.kept else { return Ok(()) };
        let sources: Vec<&Survivor> = shard.folders.iter().filter_map(|at| self.survivor(*at)).collect();
        let base = sources[kept.base];
        new.copy_state(shard.info.id, base, base.log.incarnation(shard.info.id)?)?;
        new_log::write(new, shard, kept, &sources)
    }

    fn survivor(&self, at: usize) -> Option<&Survivor> {
        self.folders[at].found.as_ref().ok()
    }

    /// The same shards with the same slots, all on the new node.
    fn new_map(&self, config: &Config, store: StoreId) -> ShardMap {
        let mut map = self.map.clone();
        map.epoch += EPOCHS_SKIPPED;
        map.nodes = vec![config.own_node(store)];
        // Nobody of the new cluster has heard of the nodes of before.
        map.removed.clear();
        map.drained.clear();
        for info in &mut map.shards {
            info.members = vec![config.node_id()];
            info.next = None;
            let kept = self.shards.iter().find(|shard| shard.info.id == info.id && !shard.is_lost());
            // Who takes part is in the logs that are kept; where there is none, it is as in a new cluster.
            info.changes = if kept.is_some() { info.changes.saturating_add(1) } else { 0 };
        }
        map
    }
}

/// Where a node's configuration is, its data folder mostly is as well: either may be named.
fn data_folder(path: &Path) -> PathBuf {
    let within = path.join("data");
    let is_formatted = |path| matches!(DataFolder::identity(path), Ok(Some(_)));
    if !is_formatted(path) && is_formatted(&within) { within } else { path.to_owned() }
}

/// The data folders, each once, whatever it is called.
fn once_each(paths: &[PathBuf]) -> impl Iterator<Item = PathBuf> {
    let mut seen = BTreeSet::new();
    let folders = paths.iter().map(|path| data_folder(path));
    folders.filter(move |path| seen.insert(fs::canonicalize(path).unwrap_or_else(|_| path.clone())))
}

/// A damaged folder is left out. What an operator can mend is an error: left out, it could be the one with the last writes.
fn open(path: &Path) -> Result<Folder, RecoverError> {
    let found = match Survivor::open(path) {
        Ok(survivor) => Ok(survivor),
        Err(
            error @ (FolderError::Unusable { .. }
            | FolderError::BadIdentityFile { .. }
            | FolderError::IdentityMismatch { .. }),
        ) => Err(error.to_string()),
        Err(FolderError::NotFormatted { path }) => return Err(RecoverError::NoDataFolder(path)),
        Err(error) => return Err(error.into()),
    };
    Ok(Folder { path: path.to_owned(), found })
}

/// The cluster of all folders.
fn check_belong_together(folders: &[Folder]) -> Result<Uuid, RecoverError> {
    let usable =
        folders.iter().filter_map(|folder| Some((&folder.path, folder.found.as_ref().ok()?.identity)));
    let usable: Vec<(&PathBuf, Identity)> = usable.collect();
    let Some((first, Identity { cluster_id: cluster, .. })) = usable.first().copied() else {
        let causes = folders.iter().filter_map(|folder| folder.found.as_ref().err().cloned());
        return Err(RecoverError::NoneUsable(causes.collect::<Vec<_>>().join("; ")));
    };
    for (at, (path, identity)) in usable.iter().enumerate() {
        if identity.cluster_id != cluster {
            let (path, first) = ((*path).clone(), first.clone());
            return Err(RecoverError::OtherCluster { path, other: identity.cluster_id, first, cluster });
        }
        if let Some((first, _)) = usable[..at].iter().find(|(_, other)| other.node_id == identity.node_id) {
            let (path, first) = ((*path).clone(), (*first).clone());
            return Err(RecoverError::Twice { node: identity.node_id, first, path });
        }
    }
    Ok(cluster)
}

/// A folder that was formatted anew knows nothing, but would count as a voter who does: a quorum of such folders says that
/// nothing is lost.
fn check_maps(folders: &[Folder]) -> Result<(), RecoverError> {
    let mapped = || {
        let usable = folders.iter().filter_map(|folder| Some((&folder.path, folder.found.as_ref().ok()?)));
        usable.filter_map(|(path, survivor)| Some((path, survivor.identity, survivor.shard_map.as_ref()?)))
    };
    for (at, (path, identity, map)) in mapped().enumerate() {
        if let Some((first, ..)) =
            mapped().take(at).find(|(_, _, other)| other.epoch == map.epoch && *other != map)
        {
            let (path, first) = (path.clone(), first.clone());
            return Err(RecoverError::OtherMap { path, first, epoch: map.epoch });
        }
        let node = identity.node_id;
        let knows_another =
            |map: &ShardMap| map.node(node).is_some_and(|known| known.store != identity.store_id);
        if let Some((knows, ..)) = mapped().find(|(_, _, map)| knows_another(map)) {
            return Err(RecoverError::Stranger { path: path.clone(), node, knows: knows.clone() });
        }
    }
    Ok(())
}

/// Of two of one epoch, of which one was refused, the one that was applied, or came first in the log.
fn newest_map(folders: &[Folder]) -> Result<ShardMap, RecoverError> {
    let mut newest: Option<ShardMap> = None;
    for Folder { path, found } in folders {
        let Ok(survivor) = found else { continue };
        let known = match holding::maps(survivor) {
            Err(StorageError::Corrupt { .. }) => survivor.shard_map.iter().cloned().collect(),
            known => known.map_err(|error| unreadable(path, &error))?,
        };
        for map in known {
            if newest.as_ref().is_none_or(|newest| newest.epoch < map.epoch) {
                newest = Some(map);
            }
        }
    }
    newest.ok_or(RecoverError::NoMap)
}

fn survey(info: &ShardInfo, folders: &[Folder]) -> Result<ShardSurvey, RecoverError> {
    let mut survey = ShardSurvey {
        info: info.clone(),
        folders: Vec::new(),
        holdings: Vec::new(),
        damaged: Vec::new(),
        kept: None,
    };
    for (at, Folder { path, found }) in folders.iter().enumerate() {
        let Ok(survivor) = found else { continue };
        match holding::read(survivor, info) {
            Ok(Some(holding)) => {
                survey.folders.push(at);
                survey.holdings.push(holding);
            }
            Ok(None) => {}
            Err(error @ StorageError::Corrupt { .. }) => survey.damaged.push((at, cause(&error))),
            Err(error) => return Err(unreadable(path, &error)),
        }
    }
    survey.kept = plan::plan(info.consensus, &survey.holdings);
    Ok(survey)
}

fn unreadable(path: &Path, error: &StorageError) -> RecoverError {
    RecoverError::Unreadable { path: path.to_owned(), cause: cause(error) }
}

/// What is wrong, without what a running node would do about it.
fn cause(error: &StorageError) -> String {
    let (StorageError::Io { what, cause }
    | StorageError::Corrupt { what, cause }
    | StorageError::Damaged { what, cause }) = error;
    format!("{what}: {cause}")
}
