//! Servers that parse and answer, and do nothing: what tokio, axum and the load generator cost by themselves.

use std::io;
use std::net::SocketAddr;

use axum::Router;
use axum::routing::{get, put};
use bytes::Bytes;
use clap::{Args, ValueEnum};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::announce;
use super::resp::{self, Command};
use crate::Fallible;

/// What every read gives.
static VALUE: [u8; 128] = [b'x'; 128];

/// A server that only answers.
#[derive(Args)]
pub(crate) struct Arguments {
    /// What it speaks
    #[arg(long, value_enum)]
    protocol: Protocol,
    /// Where clients find it
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:0")]
    listen: SocketAddr,
}

#[derive(Clone, Copy, ValueEnum)]
enum Protocol {
    /// The Redis protocol, on tokio
    Resp,
    /// HTTP/1.1, by axum
    Http,
}

pub(crate) fn run(arguments: &Arguments) -> Fallible {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let listener = TcpListener::bind(arguments.listen).await?;
        announce(listener.local_addr()?)?;
        match arguments.protocol {
            Protocol::Resp => serve(listener).await?,
            Protocol::Http => {
                let key = put(async |_: Bytes| "{\"version\":1}").get(async || &VALUE[..]);
                // Asked by `keevee bench` before it starts.
                let leads = get(async || "true");
                let router = Router::new().route("/kv/{key}", key).route("/is_leader", leads);
                axum::serve(NoDelay(listener), router).await?;
            }
        }
        Ok(())
    })
}

/// A listener whose connections send small answers at once.
struct NoDelay(TcpListener);

impl axum::serve::Listener for NoDelay {
    type Io = TcpStream;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (TcpStream, SocketAddr) {
        let accepted = axum::serve::Listener::accept(&mut self.0).await;
        // Without it the answers are only slower.
        let _ = accepted.0.set_nodelay(true);
        accepted
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.0.local_addr()
    }
}

async fn serve(listener: TcpListener) -> io::Result<()> {
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        // How a connection ends is the client's affair.
        tokio::spawn(async move { converse(stream).await.unwrap_or(()) });
    }
}

async fn converse(mut stream: TcpStream) -> io::Result<()> {
    let (mut buffer, mut filled, mut replies) = (vec![0; 16 << 10], 0, Vec::new());
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
                Command::Set { .. } => replies.extend_from_slice(b"+OK\r\n"),
                Command::Get { .. } => resp::bulk(&mut replies, &VALUE),
                Command::Other => replies.extend_from_slice(b"-ERR unknown command\r\n"),
            }
            taken += length;
        }
        buffer.copy_within(taken..filled, 0);
        filled -= taken;
        stream.write_all(&replies).await?;
        replies.clear();
    }
}
