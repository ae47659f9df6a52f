use std::collections::VecDeque;
use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use hyper::body::Frame;

use super::*;

/// Frames as they come; then the end, or silence.
struct Frames {
    frames: VecDeque<Bytes>,
    is_silent_then: bool,
}

impl Body for Frames {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        match self.frames.pop_front() {
            Some(frame) => Poll::Ready(Some(Ok(Frame::data(frame)))),
            None if self.is_silent_then => Poll::Pending,
            None => Poll::Ready(None),
        }
    }
}

const ROOM: usize = 1000;
const BODY_TIMEOUT: Duration = Duration::from_secs(30);

fn messages(frames: &[&[u8]], patience: Patience) -> Messages<Frames> {
    let frames = frames.iter().map(|frame| Bytes::copy_from_slice(frame)).collect();
    Messages {
        body: Frames { frames, is_silent_then: false },
        buffer: BytesMut::new(),
        room: Arc::new(Semaphore::new(ROOM)),
        bytes_max: 10,
        patience,
        limit: BODY_TIMEOUT,
        begun: None,
        taken: None,
    }
}

fn framed(payload: &[u8]) -> Vec<u8> {
    [&[0], &(payload.len() as u32).to_be_bytes()[..], payload].concat()
}

async fn next(messages: &mut Messages<Frames>) -> Result<Option<Bytes>, ErrorKind> {
    let message = messages.next().await.map_err(|problem| problem.kind)?;
    Ok(message.map(|message| message.bytes))
}

#[tokio::test]
async fn messages_are_found_wherever_frames_are_cut() {
    let all = [framed(b"first"), framed(b""), framed(b"the second")].concat();
    for cut in 0..=all.len() {
        let mut messages = messages(&[&all[..cut], b"", &all[cut..]], Patience::Wait);
        for expected in ["first", "", "the second"] {
            assert_eq!(next(&mut messages).await, Ok(Some(expected.into())), "{cut}");
        }
        assert_eq!(next(&mut messages).await, Ok(None));
        assert_eq!(messages.room.available_permits(), ROOM);
    }
    let bytes: Vec<&[u8]> = all.chunks(1).collect();
    assert_eq!(next(&mut messages(&bytes, Patience::Wait)).await, Ok(Some("first".into())));
}

#[tokio::test]
async fn what_is_no_message_is_refused() {
    let whole = framed(b"first");
    for length in 1..whole.len() {
        let mut messages = messages(&[&whole[..length]], Patience::Wait);
        assert_eq!(next(&mut messages).await, Err(ErrorKind::Invalid), "{length}");
        drop(messages.taken.take());
        assert_eq!(messages.room.available_permits(), ROOM);
    }
    let compressed = [&[1], &whole[1..]].concat();
    assert_eq!(next(&mut messages(&[&compressed], Patience::Wait)).await, Err(ErrorKind::Invalid));
}

#[tokio::test]
async fn a_message_that_is_too_large_is_refused_by_its_header() {
    for header in [[0, 0, 0, 0, 11], [0, 0xff, 0xff, 0xff, 0xff]] {
        let mut messages = messages(&[&header], Patience::Wait);
        assert_eq!(next(&mut messages).await, Err(ErrorKind::TooLarge));
        assert!(messages.buffer.capacity() < 1000);
    }
}

#[tokio::test]
async fn a_message_has_its_room_before_it_is_read() {
    let whole = framed(b"first");
    let mut refused = messages(&[&whole], Patience::Refuse { timeout: BODY_TIMEOUT });
    let all = Arc::clone(&refused.room).acquire_many_owned(ROOM as u32 - 4).await.unwrap();
    assert_eq!(next(&mut refused).await, Err(ErrorKind::Unavailable));

    let mut waiting = messages(&[&whole], Patience::Wait);
    waiting.room = Arc::clone(&refused.room);
    // Dropped while it waits, as by another branch of a select, it goes on with the same message. Others that need
    // less get what there is.
    assert!(futures_util::FutureExt::now_or_never(waiting.next()).is_none());
    drop(waiting.room.try_acquire_many(4).unwrap());
    drop(all);
    let message = waiting.next().await.unwrap().unwrap();
    assert_eq!((&message.bytes[..], waiting.room.available_permits()), (&b"first"[..], ROOM - 5));
    drop(message);
    assert_eq!(waiting.room.available_permits(), ROOM);
}

#[tokio::test]
async fn a_message_that_has_begun_must_arrive_in_time() {
    let whole = framed(b"first");
    for length in 1..whole.len() {
        let mut slow = messages(&[&whole[..length]], Patience::Wait);
        (slow.body.is_silent_then, slow.limit) = (true, Duration::from_millis(1));
        assert_eq!(next(&mut slow).await, Err(ErrorKind::Invalid));
    }
    // Between messages there is any time; a call that is one message has no such pause.
    let mut idle = messages(&[&whole], Patience::Wait);
    idle.body.is_silent_then = true;
    assert_eq!(next(&mut idle).await, Ok(Some("first".into())));
    assert_eq!(idle.begun, None);
}
