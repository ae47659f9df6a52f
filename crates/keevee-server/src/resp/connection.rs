//! One connection: reads what has come, has it carried out, writes the replies; then reads on.
//!
//! Nothing is read while replies wait to be written, so a client that does not take its replies is not read from, and
//! after a while cut off; nor may a request that has begun take for ever. What a connection holds is bounded: a little for each, more only while there is room that all
//! of them share. Idle, it holds no buffer at all.

use std::cell::RefCell;
use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::task::{Context, Poll};
use std::time::Instant;

use bytes::{Buf, BytesMut};
use futures_util::FutureExt;
use keevee_resp::command::{COMMANDS, Keyspace};
use keevee_resp::data::Data;
use keevee_resp::parser::Parser;
use keevee_resp::reply::{Reply, Version};
use keevee_resp::session::{Peer, Session, Step};
use tokio::io::{AsyncRead, AsyncReadExt, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, watch};

use super::group::{Answered, Group};
use super::{Resp, acquire, now};
use crate::metrics::RespEnd;

/// Room made for the rest of what has come in part, if nothing is known of it.
const READ_BYTES: usize = 16 << 10;
/// So much is read before it is looked at: what came together goes to the store together.
const GATHERED_BYTES: usize = 64 << 10;
/// So much a connection may hold without asking for shared room.
const OWN_BYTES: usize = GATHERED_BYTES + READ_BYTES;
/// So many bytes of replies are written before the next group is carried out.
const REPLY_BYTES: usize = 256 << 10;
/// Values that are read at once, while they are small.
const READS_MAX: usize = 1024;

thread_local! {
    /// What comes first is read into here and copied, so that a connection holds only as much as it got: a key or a value
    /// keeps the whole buffer alive that it lies in.
    static ARRIVED: RefCell<Box<[u8]>> = RefCell::new(vec![0; GATHERED_BYTES].into());
}

pub(super) struct Connection {
    stream: TcpStream,
    session: Session,
    parser: Parser,
    buffer: BytesMut,
    replies: BytesMut,
    /// The shared room that the buffer has.
    room: Option<OwnedSemaphorePermit>,
    /// Since when a part of a request is here, and nothing more to do than wait for the rest.
    begun: Option<Instant>,
    /// How many values are read at once, since nobody knows their sizes before.
    reads_at_once: usize,
}

impl Connection {
    pub(super) fn new(stream: TcpStream, id: u64, address: SocketAddr, resp: &Resp) -> Connection {
        let own = stream.local_addr().unwrap_or(address);
        let peer = Peer { id, address, own, since: now() };
        Connection {
            stream,
            session: Session::new(peer),
            parser: Parser::new(resp.parser_limits),
            buffer: BytesMut::new(),
            replies: BytesMut::new(),
            room: None,
            begun: None,
            reads_at_once: READS_MAX,
        }
    }
}

/// What follows what was gathered.
enum Next {
    /// Nothing has come yet.
    Nothing,
    /// The next group.
    More,
    /// A command about keys that is not part of this group.
    Data(Data),
    /// What is part of no group.
    Alone(Step),
    /// The end, after this reply.
    End(Option<Reply>, RespEnd),
}

fn without_waiting<T>(polled: Poll<T>) -> Poll<Option<T>> {
    match polled {
        Poll::Ready(done) => Poll::Ready(Some(done)),
        Poll::Pending => Poll::Ready(None),
    }
}

impl Connection {
    /// Serves the connection to its end.
    pub(super) async fn serve(&mut self, resp: &Resp, stopping: &mut watch::Receiver<()>) {
        resp.metrics.resp.connections.inc();
        // One for the whole connection: to begin and end a wait for it costs more than a read.
        let mut stopped = pin!(stopping.changed().map(drop));
        let end = loop {
            if let Err(end) = self.read(resp, stopped.as_mut()).await {
                break end;
            }
            // Not boxed: what is rare in it is, so it takes little room while the connection is idle.
            if let Err(end) = self.carry_out(resp).await {
                break end;
            }
        };
        resp.metrics.resp.connections.dec();
        resp.metrics.resp.ended(end);
    }

    /// Waits until something has come, and takes what has.
    async fn read(
        &mut self,
        resp: &Resp,
        mut stopped: Pin<&mut impl Future<Output = ()>>,
    ) -> Result<(), RespEnd> {
        if self.parser.is_idle(&self.buffer) {
            self.buffer = BytesMut::new();
            self.room = None;
            self.begun = None;
        } else {
            self.begun.get_or_insert_with(Instant::now);
        }
        loop {
            let is_ready = poll_fn(|context| self.stream.poll_read_ready(context));
            if let Some(begun) = self.begun {
                let holds_room = self.room.is_some();
                let left = resp.request_patience.saturating_sub(begun.elapsed());
                // Shared room is what others may need.
                let patience = if holds_room { left.min(resp.stalled) } else { left };
                let is_ready = Box::pin(tokio::time::timeout(patience, is_ready));
                tokio::select! {
                    biased;
                    () = stopped.as_mut(), if !holds_room => return Err(RespEnd::Closed),
                    is_ready = is_ready => {
                        is_ready.map_err(|_| RespEnd::Stalled)?.map_err(|_| RespEnd::Closed)?;
                    }
                }
            } else {
                tokio::select! {
                    biased;
                    () = stopped.as_mut() => return Err(RespEnd::Closed),
                    is_ready = is_ready => is_ready.map_err(|_| RespEnd::Closed)?,
                }
            }
            let before = self.buffer.len();
            loop {
                let (room, read) = if self.parser.is_idle(&self.buffer) {
                    (GATHERED_BYTES, self.take_first().await)
                } else {
                    self.make_room(resp).await?;
                    (self.buffer.capacity() - self.buffer.len(), self.take_more().await)
                };
                match read {
                    // What came before the end is answered: the client may only have ended its own side.
                    Some(Ok(0)) if self.buffer.len() > before => return Ok(()),
                    Some(Ok(0)) | Some(Err(_)) => return Err(RespEnd::Closed),
                    Some(Ok(read)) if read == room && self.buffer.len() - before < GATHERED_BYTES => {}
                    Some(Ok(_)) => return Ok(()),
                    None => break,
                }
            }
            // It said that something has come; that may have been wrong.
            if self.buffer.len() > before {
                return Ok(());
            }
        }
    }

    /// Reads without waiting, `None` if nothing is there.
    async fn take_first(&mut self) -> Option<io::Result<usize>> {
        let Connection { stream, buffer, .. } = self;
        let mut take = |context: &mut Context<'_>, arrived: &mut [u8]| {
            let mut read = ReadBuf::new(arrived);
            let polled = Pin::new(&mut *stream).poll_read(context, &mut read);
            buffer.extend_from_slice(read.filled());
            without_waiting(polled.map_ok(|()| read.filled().len()))
        };
        poll_fn(|context| ARRIVED.with_borrow_mut(|arrived| take(context, arrived))).await
    }

    /// As [`Connection::take_first`], straight into the buffer. Unlike `try_read_buf` both note when they have taken all,
    /// and so spare asking once more in vain.
    async fn take_more(&mut self) -> Option<io::Result<usize>> {
        let Connection { stream, buffer, .. } = self;
        let mut read = pin!(stream.read_buf(buffer));
        poll_fn(|context| without_waiting(read.as_mut().poll(context))).await
    }

    /// Makes room to read into: as much again as there is, so that who announces much and sends little holds little.
    async fn make_room(&mut self, resp: &Resp) -> Result<(), RespEnd> {
        let (length, needs) = (self.buffer.len(), self.parser.needs(&self.buffer));
        let enough = if needs > 0 { needs.min(READ_BYTES / 4) } else { READ_BYTES / 4 };
        if self.buffer.capacity() - length >= enough {
            return Ok(());
        }
        let wanted = needs.clamp(READ_BYTES, length.max(READ_BYTES));
        let held = OWN_BYTES + self.room.as_ref().map_or(0, OwnedSemaphorePermit::num_permits);
        if let Some(missing) = (length + wanted).checked_sub(held).filter(|missing| *missing > 0) {
            let Some(more) = acquire(&resp.room, missing).await else {
                let reply = Reply::Error("OOM too many large requests are under way: try again".to_owned());
                self.reply(&reply);
                self.write(resp).await?;
                return Err(RespEnd::NoRoom);
            };
            match &mut self.room {
                Some(room) => room.merge(more),
                None => self.room = Some(more),
            }
        }
        self.buffer.reserve(wanted);
        Ok(())
    }

    /// Carries out all commands that have come, in groups, and writes the replies.
    async fn carry_out(&mut self, resp: &Resp) -> Result<(), RespEnd> {
        let mut group = Group::new(resp);
        loop {
            let next = self.gather(&mut group, resp);
            self.finish(&mut group, resp).await?;
            match next {
                Next::Nothing => return self.write(resp).await,
                Next::More => {}
                Next::Data(data) if group.takes(&data) => {
                    group.push(data, self.session.is_readonly(), self.session.version());
                }
                Next::Data(data) => {
                    let answered = Box::pin(resp.in_parts(data, self.session.is_readonly())).await;
                    self.answer(answered, self.session.version(), resp).await?;
                }
                Next::Alone(step) => {
                    let answered = Box::pin(self.alone(step, resp)).await;
                    self.answer(answered, self.session.version(), resp).await?;
                }
                Next::End(reply, end) => {
                    if let Some(reply) = reply {
                        self.reply(&reply);
                    }
                    self.write(resp).await?;
                    return Err(end);
                }
            }
        }
    }

    /// Puts commands that have come into a group, as long as it takes them.
    fn gather(&mut self, group: &mut Group<'_>, resp: &Resp) -> Next {
        while !group.is_full() {
            let request = match self.parser.parse(&mut self.buffer) {
                Ok(Some(request)) => {
                    self.begun = None;
                    request
                }
                Ok(None) => return Next::Nothing,
                Err(error) => return Next::End(Some(Reply::error(error)), RespEnd::Protocol),
            };
            let refuse = |data: &Data| resp.not_here(data);
            let (command, step) = self.session.take(request, now, &resp.settings, &refuse);
            resp.metrics.resp.command(command);
            match step {
                Step::Reply(reply) => group.push_reply(reply, self.session.version()),
                Step::Data(data) if group.has_room_for(&data, self.reads_at_once) && group.takes(&data) => {
                    group.push(data, self.session.is_readonly(), self.session.version());
                }
                Step::Data(data) => return Next::Data(data),
                Step::CutOff => {
                    let command = command.map_or("", |command| COMMANDS[command].name);
                    tracing::warn!(command, "HTTP was sent to the RESP port: the connection is cut off");
                    return Next::End(None, RespEnd::Http);
                }
                Step::Close(reply) => return Next::End(Some(reply), RespEnd::Closed),
                step => return Next::Alone(step),
            }
        }
        Next::More
    }

    /// Carries out what can't be part of a group.
    async fn alone(&mut self, step: Step, resp: &Resp) -> Answered {
        let reply = match step {
            Step::Batch(batch) => return resp.transaction(batch).await,
            Step::Keyspace(Keyspace::Keys(pattern)) => {
                return resp.keys(&pattern).await.unwrap_or_else(Answered::from);
            }
            Step::Watch(keys) => match resp.versions(keys).await {
                Ok(found) => {
                    self.session.watch(found);
                    Reply::OK
                }
                Err(reply) => reply,
            },
            Step::Keyspace(keyspace) => resp.keyspace(keyspace).await.unwrap_or_else(|reply| reply),
            Step::Server(call) => resp.server_call(call).await,
            // They are what groups are made of, or ends.
            Step::Reply(reply) | Step::Close(reply) => reply,
            Step::Data(_) | Step::CutOff => Reply::error("not a command of its own"),
        };
        reply.into()
    }

    fn reply(&mut self, reply: &Reply) {
        reply.encode(self.session.version(), &mut self.replies);
    }

    /// Carries out the group, and writes the replies if they have become many.
    async fn finish<'a>(&mut self, group: &mut Group<'a>, resp: &'a Resp) -> Result<(), RespEnd> {
        if group.is_empty() {
            return Ok(());
        }
        let started = Instant::now();
        let mut done = group.carry_out(started).await;
        resp.metrics.resp.seconds.observe(started.elapsed().as_secs_f64());
        while let Some((answered, version)) = done.next().await {
            self.answer(answered, version, resp).await?;
        }
        // Commands that read are gathered while all that they read has room.
        let at_once = if done.has_read_again() { self.reads_at_once / 4 } else { self.reads_at_once * 2 };
        self.reads_at_once = at_once.clamp(1, READS_MAX);
        Ok(())
    }

    /// Adds a reply to those that will be written; one that has room of all connections is written at once.
    async fn answer(&mut self, answered: Answered, version: Version, resp: &Resp) -> Result<(), RespEnd> {
        answered.reply.encode(version, &mut self.replies);
        let holds_room = answered.room.is_some();
        if holds_room || self.replies.len() >= REPLY_BYTES { self.write(resp).await } else { Ok(()) }
    }

    async fn write(&mut self, resp: &Resp) -> Result<(), RespEnd> {
        while self.replies.has_remaining() {
            match self.stream.try_write(&self.replies) {
                Ok(0) => return Err(RespEnd::Closed),
                Ok(written) => self.replies.advance(written),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    // Boxed, so that who need not wait has no room for it.
                    let writable = Box::pin(tokio::time::timeout(resp.stalled, self.stream.writable())).await;
                    writable.map_err(|_| RespEnd::Stalled)?.map_err(|_| RespEnd::Closed)?;
                }
                Err(_) => return Err(RespEnd::Closed),
            }
        }
        self.replies = BytesMut::new();
        Ok(())
    }
}
