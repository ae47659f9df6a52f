//! The leader: an event loop for the clients, and one thread that makes a batch of all writes that wait, has it synced
//! here and on a follower, applies it, and answers; then the next.

use std::io::{self, Read, Write};
use std::mem;
use std::net::{SocketAddr, TcpStream as Peer};
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;

use clap::Args;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, oneshot};

use super::announce;
use super::resp::{self, Command};
use super::store::{self, Store};
use crate::Fallible;

/// A batch takes no more than this beside the first submission.
const BATCH_BYTES_MAX: usize = 2 << 20;

/// The replica that leads.
#[derive(Args)]
pub(crate) struct Arguments {
    /// Where clients find it
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:0")]
    listen: SocketAddr,
    /// Where the followers listen, with commas between
    #[arg(long, value_name = "HOST:PORT", value_delimiter = ',', required = true)]
    followers: Vec<SocketAddr>,
    /// An empty folder for its databases
    #[arg(long, value_name = "DIR")]
    data: PathBuf,
    /// How many threads serve clients; 0 is the one that accepts them
    #[arg(long, value_name = "COUNT", default_value_t = 0)]
    workers: usize,
}

/// Writes of one connection: when they are done, it is told.
struct Submission {
    batch: Vec<u8>,
    done: oneshot::Sender<()>,
}

/// What waits for the next batch.
#[derive(Default)]
struct Waiting {
    submissions: Mutex<Vec<Submission>>,
    is_some: Condvar,
}

impl Waiting {
    fn submit(&self, submission: Submission) {
        let mut submissions = self.submissions.lock().unwrap_or_else(PoisonError::into_inner);
        submissions.push(submission);
        if submissions.len() == 1 {
            self.is_some.notify_one();
        }
    }

    /// Waits until something waits: as much of it as one batch takes.
    fn take(&self) -> Vec<Submission> {
        let submissions = self.submissions.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self.is_some.wait_while(submissions, |submissions| submissions.is_empty());
        let mut submissions = waited.unwrap_or_else(PoisonError::into_inner);
        let mut bytes = 0;
        let fits = submissions.iter().take_while(|submission| {
            let is_first = bytes == 0;
            bytes += submission.batch.len();
            is_first || bytes <= BATCH_BYTES_MAX
        });
        let count = fits.count();
        let rest = submissions.split_off(count);
        mem::replace(&mut *submissions, rest)
    }
}

pub(crate) fn run(arguments: &Arguments) -> Fallible {
    let store = Arc::new(Store::open(&arguments.data)?);
    let (acknowledged, acknowledgements) = channel();
    let mut followers = Vec::new();
    for address in &arguments.followers {
        let follower = Peer::connect(address)?;
        follower.set_nodelay(true)?;
        let (reader, acknowledged) = (follower.try_clone()?, acknowledged.clone());
        thread::spawn(move || hear(reader, &acknowledged));
        followers.push(follower);
    }
    let (done, answers) = mpsc::unbounded_channel();
    let waiting = Arc::new(Waiting::default());
    let batcher =
        Batcher { store: store.clone(), waiting: waiting.clone(), followers, acknowledgements, done };
    thread::spawn(move || {
        let Err(error) = batcher.run();
        eprintln!("error: {error}");
        std::process::exit(1);
    });
    let mut builder = match arguments.workers {
        0 => tokio::runtime::Builder::new_current_thread(),
        _ => tokio::runtime::Builder::new_multi_thread(),
    };
    let runtime = builder.worker_threads(arguments.workers.max(1)).enable_io().build()?;
    runtime.block_on(async {
        tokio::spawn(answer(answers));
        let listener = TcpListener::bind(arguments.listen).await?;
        announce(listener.local_addr()?)?;
        loop {
            let (stream, _) = listener.accept().await?;
            stream.set_nodelay(true)?;
            let (store, waiting) = (store.clone(), waiting.clone());
            // How a connection ends is the client's affair.
            tokio::spawn(async move { serve(stream, &store, &waiting).await.unwrap_or(()) });
        }
    })
}

/// Hands on what a follower says.
fn hear(mut follower: Peer, acknowledged: &Sender<u64>) {
    let mut index = [0; 8];
    while follower.read_exact(&mut index).is_ok() {
        if acknowledged.send(u64::from_le_bytes(index)).is_err() {
            return;
        }
    }
}

struct Batcher {
    store: Arc<Store>,
    waiting: Arc<Waiting>,
    followers: Vec<Peer>,
    acknowledgements: Receiver<u64>,
    done: mpsc::UnboundedSender<Vec<oneshot::Sender<()>>>,
}

impl Batcher {
    fn run(mut self) -> Result<std::convert::Infallible, Box<dyn std::error::Error>> {
        let mut message = Vec::new();
        for index in 0_u64.. {
            let submissions = self.waiting.take();
            message.clear();
            message.extend_from_slice(&[0; 4]);
            submissions.iter().for_each(|submission| message.extend_from_slice(&submission.batch));
            let length = (message.len() - 4) as u32;
            message[..4].copy_from_slice(&length.to_le_bytes());
            for follower in &mut self.followers {
                follower.write_all(&message)?;
            }
            self.store.log(index, &message[4..])?;
            // One of two: with the leader that is a majority. What the other says later is skipped.
            while self.acknowledgements.recv()? < index {}
            self.store.apply(&message[4..])?;
            // All at once: to wake each connection from here would cost a system call each.
            self.done.send(submissions.into_iter().map(|submission| submission.done).collect())?;
        }
        unreachable!("there are more indexes than time")
    }
}

/// Tells connections, on their own event loop, that their writes are done.
async fn answer(mut answers: mpsc::UnboundedReceiver<Vec<oneshot::Sender<()>>>) {
    while let Some(batch) = answers.recv().await {
        for done in batch {
            // A connection that is gone waits no more.
            let _ = done.send(());
        }
    }
}

/// Answers a client in order: what it has sent together is one submission, up to the next read.
async fn serve(mut stream: TcpStream, store: &Store, waiting: &Waiting) -> io::Result<()> {
    let (mut buffer, mut filled) = (vec![0; 16 << 10], 0);
    let (mut batch, mut replies) = (Vec::new(), Vec::new());
    loop {
        if filled == buffer.len() {
            buffer.resize(2 * filled, 0);
        }
        match stream.read(&mut buffer[filled..]).await? {
            0 => return Ok(()),
            count => filled += count,
        }
        let mut taken = 0;
        while let Some((command, length)) = resp::parse(&buffer[taken..filled])? {
            match command {
                Command::Set { key, value } => {
                    store::add(&mut batch, key, value);
                    replies.extend_from_slice(b"+OK\r\n");
                }
                Command::Get { key } => {
                    write(&mut batch, waiting).await?;
                    match store.get(key).map_err(io::Error::other)? {
                        Some(value) => resp::bulk(&mut replies, &value),
                        None => replies.extend_from_slice(b"$-1\r\n"),
                    }
                }
                Command::Other => replies.extend_from_slice(b"-ERR unknown command\r\n"),
            }
            taken += length;
        }
        buffer.copy_within(taken..filled, 0);
        filled -= taken;
        write(&mut batch, waiting).await?;
        stream.write_all(&replies).await?;
        replies.clear();
    }
}

/// Has writes done, if there are any.
async fn write(batch: &mut Vec<u8>, waiting: &Waiting) -> io::Result<()> {
    if batch.is_empty() {
        return Ok(());
    }
    let (done, is_done) = oneshot::channel();
    waiting.submit(Submission { batch: mem::take(batch), done });
    is_done.await.map_err(io::Error::other)
}
