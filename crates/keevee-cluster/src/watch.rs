//! Watching a cluster: a node that dies is started again, after a pause that grows if it dies again and again.
//!
//! Whoever stops a cluster may be another program than the one that watches it. So what is wanted is in the
//! cluster's folder: a stop leaves a note there before it ends the nodes, and a start removes it.

use std::fmt;
use std::fs::{self, File, TryLockError};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::cluster::Cluster;
use crate::error::ClusterError;

/// Between two looks at the nodes.
const LOOK: Duration = Duration::from_millis(200);
/// Before a node is started again that ran well until it died.
const PAUSE_MIN: Duration = Duration::from_millis(250);
/// Before one that dies again and again.
const PAUSE_MAX: Duration = Duration::from_secs(30);
/// A node that ran as long ran well.
const RAN_WELL: Duration = Duration::from_secs(60);

/// What happened to a node that is watched.
#[derive(Debug)]
pub enum Event {
    /// It does not run any more.
    Died {
        /// The node.
        node: u64,
        /// Its log.
        log: PathBuf,
        /// When it will be started again.
        pause: Duration,
    },
    /// It was started again.
    Started {
        /// The node.
        node: u64,
    },
    /// It can't be started.
    Failed {
        /// The node.
        node: u64,
        /// Why.
        error: ClusterError,
        /// When that will be tried again.
        pause: Duration,
    },
}

impl fmt::Display for Event {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Event::Died { node, log, pause } => {
                write!(formatter, "node {node} died; it starts again in {pause:?}; see {}", log.display())
            }
            Event::Started { node } => write!(formatter, "node {node} was started again"),
            Event::Failed { node, error, pause } => {
                write!(formatter, "node {node} can't be started: {error}; the next try is in {pause:?}")
            }
        }
    }
}

/// When a node is started again.
#[derive(Debug)]
struct Watched {
    started: Instant,
    pause: Duration,
    /// Set while the node is down.
    due: Option<Instant>,
}

impl Watched {
    fn new(now: Instant) -> Watched {
        Watched { started: now, pause: Duration::ZERO, due: None }
    }

    /// The node died, or could not be started: how long to wait.
    fn is_down(&mut self, now: Instant) -> Duration {
        let ran_well = now.duration_since(self.started) >= RAN_WELL;
        self.pause = if ran_well { PAUSE_MIN } else { (2 * self.pause).clamp(PAUSE_MIN, PAUSE_MAX) };
        self.due = Some(now + self.pause);
        self.pause
    }

    fn is_up(&mut self, now: Instant) {
        self.started = now;
        self.due = None;
    }
}

impl Cluster {
    /// Starts nodes again that die, until the cluster is stopped by [`Cluster::stop`] of any program. Dropped, it stops
    /// nothing.
    ///
    /// # Errors
    ///
    /// [`ClusterError::Watched`] if another program does that already.
    pub async fn watch(&mut self, mut tell: impl FnMut(Event)) -> Result<(), ClusterError> {
        let _lock = lock(&self.folder)?;
        let mut watched: Vec<Watched> = self.nodes.iter().map(|_| Watched::new(Instant::now())).collect();
        loop {
            if !stop_file(&self.folder).exists() {
                self.look(&mut watched, &mut tell);
            } else if self.running().is_empty() {
                return Ok(());
            }
            sleep(LOOK).await;
        }
    }

    fn look(&mut self, watched: &mut [Watched], tell: &mut impl FnMut(Event)) {
        let now = Instant::now();
        for (node, watched) in self.nodes.iter_mut().zip(watched) {
            let is_running = node.pid().is_some();
            match watched.due {
                _ if node.is_removed() => watched.due = None,
                // Another program was faster.
                Some(_) if is_running => watched.is_up(now),
                Some(due) if due > now => {}
                Some(_) => match node.spawn(&self.program) {
                    Ok(()) => {
                        watched.is_up(now);
                        tell(Event::Started { node: node.id });
                    }
                    Err(error) => {
                        let pause = watched.is_down(now);
                        tell(Event::Failed { node: node.id, error, pause });
                    }
                },
                None if is_running => {}
                None => {
                    let pause = watched.is_down(now);
                    tell(Event::Died { node: node.id, log: node.log(), pause });
                }
            }
        }
    }
}

/// The note that the cluster shall not run.
fn stop_file(folder: &Path) -> PathBuf {
    folder.join("stopped")
}

pub(crate) fn note_stop(folder: &Path) -> Result<(), ClusterError> {
    let path = stop_file(folder);
    fs::write(&path, "").map_err(ClusterError::file("write", path))
}

pub(crate) fn forget_stop(folder: &Path) -> Result<(), ClusterError> {
    let path = stop_file(folder);
    match fs::remove_file(&path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(ClusterError::file("remove", path)(error)),
        _ => Ok(()),
    }
}

/// Two watchers would start a node twice. The lock goes with the process that holds it, however that ends.
fn lock(folder: &Path) -> Result<File, ClusterError> {
    let path = folder.join("watch.lock");
    let file = File::create(&path).map_err(ClusterError::file("make", &path))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(ClusterError::Watched { folder: folder.to_owned() }),
        Err(TryLockError::Error(error)) => Err(ClusterError::file("lock", path)(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_while_a_node_dies_again_and_again() {
        let start = Instant::now();
        let mut watched = Watched::new(start);
        let mut now = start;
        let mut pauses = Vec::new();
        for _ in 0..9 {
            now += Duration::from_secs(1);
            pauses.push(watched.is_down(now).as_millis());
            now += watched.pause;
            watched.is_up(now);
        }
        assert_eq!(pauses, [250, 500, 1_000, 2_000, 4_000, 8_000, 16_000, 30_000, 30_000]);
        assert_eq!(watched.is_down(now + RAN_WELL), PAUSE_MIN, "it ran well");
    }

    #[test]
    fn a_cluster_has_one_watcher() {
        let folder = tempfile::tempdir().expect("a folder");
        let first = lock(folder.path()).expect("the first");
        assert!(matches!(lock(folder.path()), Err(ClusterError::Watched { .. })));
        drop(first);
        lock(folder.path()).expect("the next one");
    }

    #[test]
    fn a_start_takes_back_a_stop() {
        let folder = tempfile::tempdir().expect("a folder");
        forget_stop(folder.path()).expect("there is none");
        note_stop(folder.path()).expect("noted");
        assert!(stop_file(folder.path()).exists());
        forget_stop(folder.path()).expect("removed");
        assert!(!stop_file(folder.path()).exists());
    }
}
