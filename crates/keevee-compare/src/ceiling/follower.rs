//! A follower: one thread that takes a batch, syncs it, says so, applies it.

use std::io::{BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;

use clap::Args;

use super::announce;
use super::store::Store;
use crate::Fallible;

/// A replica that follows.
#[derive(Args)]
pub(crate) struct Arguments {
    /// Where the leader finds it
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:0")]
    listen: SocketAddr,
    /// An empty folder for its databases
    #[arg(long, value_name = "DIR")]
    data: PathBuf,
}

pub(crate) fn run(arguments: &Arguments) -> Fallible {
    let store = Store::open(&arguments.data)?;
    let listener = TcpListener::bind(arguments.listen)?;
    announce(listener.local_addr()?)?;
    let (mut leader, _) = listener.accept()?;
    leader.set_nodelay(true)?;
    let mut batches = BufReader::with_capacity(1 << 20, leader.try_clone()?);
    let mut batch = Vec::new();
    for index in 0_u64.. {
        let mut length = [0; 4];
        if batches.read_exact(&mut length).is_err() {
            // The leader has ended.
            break;
        }
        batch.resize(u32::from_le_bytes(length) as usize, 0);
        batches.read_exact(&mut batch)?;
        store.log(index, &batch)?;
        leader.write_all(&index.to_le_bytes())?;
        store.apply(&batch)?;
    }
    Ok(())
}
