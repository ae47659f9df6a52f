//! The local cluster manager: makes, starts, watches and stops the nodes of a cluster on this machine.
//!
//! A cluster is a folder. Node *i* lives in `node<i>/`: `keevee.toml` (its configuration), `data/`,
//! `keevee.log` and `keevee.pid`. Nothing else is remembered: [`Cluster::open`] finds all it needs
//! there, so a cluster outlives the program that started it. Nodes are `keevee server` processes; the
//! folders are formatted by `keevee init`. This crate knows neither consensus nor storage.
//!
//! - [`Cluster`] is what scripts and the command line use; [`Cluster::watch`] starts nodes again that die.
//! - [`Config`] is `Config.toml`: clusters as a file.
//! - [`TemporaryCluster`] is for tests and measurements: free ports, a folder of its own, and nothing is
//!   left of it when it goes.
//! - [`process`] finds, starts and signals single nodes.
//!
//! Machines other than this one are left out: there a service manager starts `keevee server`.

mod cluster;
mod config;
mod error;
mod folder;
mod plan;
mod ports;
pub mod process;
mod temporary;
mod wait;
mod watch;

pub use cluster::{Cluster, Ending, Node, REMOVED};
pub use config::{Config, ConfigError};
pub use error::ClusterError;
pub use plan::{Choices, Layout, NODES_MAX, Plan};
pub use ports::{free_ports, is_free};
pub use temporary::TemporaryCluster;
pub use wait::until;
pub use watch::Event;
