//! What can go wrong with a local cluster, and what to do about it.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

/// Why a local cluster can't be made, started or stopped.
#[derive(Debug, thiserror::Error)]
pub enum ClusterError {
    /// A file or folder can't be used.
    #[error("can't {doing} {}: {source}", path.display())]
    File {
        /// What was tried: a verb.
        doing: &'static str,
        /// With what.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// The keevee program can't be run.
    #[error("can't run {}: {source}; `cargo build --release` builds it", program.display())]
    Program {
        /// The program.
        program: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// The plan can't be carried out.
    #[error("{0}")]
    Plan(String),
    /// There is no cluster where one was expected.
    #[error("there is no cluster in {}; `keevee cluster start --data {}` makes one", folder.display(), folder.display())]
    NoCluster {
        /// Where it was looked for.
        folder: PathBuf,
    },
    /// The cluster that is there is another one than the plan asks for.
    #[error(
        "the cluster in {} has {has}, not {wanted}; leave that setting out to use it as it is, \
         or choose another folder with --data",
        folder.display()
    )]
    OtherCluster {
        /// The cluster's folder.
        folder: PathBuf,
        /// What it has.
        has: String,
        /// What the plan says.
        wanted: String,
    },
    /// A configuration file of the cluster can't be understood.
    #[error("{}: {why}; remove the cluster's folder to make it anew (its data is lost)", config.display())]
    Damaged {
        /// The file.
        config: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// `keevee init` failed.
    #[error("can't format the data folder of node {node}: {output}")]
    Init {
        /// The node.
        node: u64,
        /// What `keevee init` said.
        output: String,
    },
    /// Something else listens where a node should.
    #[error(
        "{address} (node {node}) is in use by another program; stop it, or choose other ports \
         with --http-port, --peer-port and --resp-port (or in Config.toml) and another folder with --data"
    )]
    PortTaken {
        /// The node.
        node: u64,
        /// Its address.
        address: String,
    },
    /// Another program watches the cluster.
    #[error(
        "another program watches the cluster in {} already; end it, or stop all with `keevee cluster stop --data {}`",
        folder.display(), folder.display()
    )]
    Watched {
        /// The cluster's folder.
        folder: PathBuf,
    },
    /// A node ended by itself while it was waited for.
    #[error("node {node} ended; the end of {}:\n{tail}", log.display())]
    NodeEnded {
        /// The node.
        node: u64,
        /// Its log.
        log: PathBuf,
        /// The log's last lines.
        tail: String,
    },
    /// The cluster does not serve in time.
    #[error("the cluster does not serve after {waited:?}: {state}; see keevee.log in {}", folder.display())]
    NotReady {
        /// How long it was waited for.
        waited: Duration,
        /// What each node says.
        state: String,
        /// The cluster's folder.
        folder: PathBuf,
    },
    /// The cluster has no such node.
    #[error("the cluster has no node {0}")]
    UnknownNode(u64),
    /// The node is not running, so it can't be signalled.
    #[error("node {0} is not running")]
    NotRunning(u64),
    /// A signal could not be sent.
    #[error("can't send SIG{signal} to node {node} (process {pid}): {why}")]
    Signal {
        /// The node.
        node: u64,
        /// Its process.
        pid: u32,
        /// The signal's name without `SIG`.
        signal: &'static str,
        /// What went wrong.
        why: String,
    },
    /// A process is there even after SIGKILL.
    #[error("node {node} (process {pid}) does not end")]
    WontEnd {
        /// The node.
        node: u64,
        /// Its process.
        pid: u32,
    },
}

impl ClusterError {
    /// For `map_err` on what the file system says.
    pub(crate) fn file(
        doing: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(io::Error) -> ClusterError {
        let path = path.into();
        move |source| ClusterError::File { doing, path, source }
    }
}
