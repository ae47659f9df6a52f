//! Reading a body into memory, never more of it than allowed.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::Body;
use keevee_core::error::ErrorKind;
use tokio::time::timeout;

use super::problem::Problem;

/// Of a body that nobody wants, no more than this is read…
const DISCARD_BYTES_MAX: usize = 64 << 20;
/// …for no longer than this, or than a body may take at all.
const DISCARD_TIMEOUT: Duration = Duration::from_secs(10);

/// Why a body was not read.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum BodyError {
    /// It is larger than allowed, whether that was declared or found out.
    #[error("the body is larger than the {max} bytes allowed")]
    TooLarge {
        /// The limit in bytes.
        max: usize,
    },
    /// The connection broke, or the body's framing is wrong.
    #[error("the body could not be read: {0}")]
    Broken(String),
}

impl From<BodyError> for Problem {
    fn from(error: BodyError) -> Problem {
        let kind = match error {
            BodyError::TooLarge { .. } => ErrorKind::TooLarge,
            BodyError::Broken(_) => ErrorKind::Invalid,
        };
        Problem::new(kind, error.to_string())
    }
}

/// The whole body, which may be `max` bytes long. What is declared is checked before anything is
/// read or allocated, what is streamed as it comes.
pub(crate) async fn read<B>(body: &mut B, max: usize) -> Result<Bytes, BodyError>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: std::fmt::Display,
{
    let declared = body.size_hint();
    if declared.lower() > max as u64 {
        return Err(BodyError::TooLarge { max });
    }
    if body.is_end_stream() {
        return Ok(Bytes::new());
    }
    // A small body is one frame: it is handed on as it is, without a copy.
    let first = match next_data(body).await? {
        Some(first) if !body.is_end_stream() => first,
        Some(first) if first.len() <= max => return Ok(first),
        Some(_) => return Err(BodyError::TooLarge { max }),
        None => return Ok(Bytes::new()),
    };
    let mut whole = Vec::with_capacity(declared.lower() as usize);
    let mut next = Some(first);
    while let Some(data) = next {
        if whole.len() + data.len() > max {
            return Err(BodyError::TooLarge { max });
        }
        whole.extend_from_slice(&data);
        next = next_data(body).await?;
    }
    Ok(whole.into())
}

/// Reads on and forgets, within bounds, while the answer is already on its way: were the connection
/// closed under a client that still sends, the client would see that and not the answer.
pub(super) async fn discard<B>(mut body: B, body_timeout: Duration)
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: std::fmt::Display,
{
    let read_on = async {
        let mut left = DISCARD_BYTES_MAX;
        while let Ok(Some(data)) = next_data(&mut body).await {
            let Some(rest) = left.checked_sub(data.len()) else { break };
            left = rest;
        }
    };
    // What does not end in time is cut off, as what is too long.
    let _ = timeout(DISCARD_TIMEOUT.min(body_timeout), read_on).await;
}

/// The next frame of data; trailers are of no interest.
async fn next_data<B>(body: &mut B) -> Result<Option<Bytes>, BodyError>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: std::fmt::Display,
{
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| BodyError::Broken(error.to_string()))?;
        if let Ok(data) = frame.into_data() {
            return Ok(Some(data));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::convert::Infallible;
    use std::pin::Pin;
    use std::task::{Context, Poll};

    use hyper::body::Frame;

    use super::*;

    /// Frames of unknown number: a chunked body.
    struct Chunks(VecDeque<&'static str>);

    impl Body for Chunks {
        type Data = Bytes;
        type Error = Infallible;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
            Poll::Ready(self.0.pop_front().map(|chunk| Ok(Frame::data(chunk.into()))))
        }
    }

    #[tokio::test]
    async fn a_body_up_to_the_limit_is_read_whole() {
        for (chunks, whole) in [(&[][..], ""), (&["abcde"], "abcde"), (&["ab", "", "cde"], "abcde")] {
            let mut body = Chunks(chunks.iter().copied().collect());
            assert_eq!(read(&mut body, 5).await, Ok(Bytes::from(whole)));
        }
        assert_eq!(read(&mut http_body_util::Full::new(Bytes::from("abcde")), 5).await, Ok("abcde".into()));
    }

    #[tokio::test]
    async fn a_longer_body_is_refused_declared_or_streamed() {
        let too_large = Err(BodyError::TooLarge { max: 4 });
        for chunks in [&["abcde"][..], &["ab", "cde"], &["abcd", "e"]] {
            assert_eq!(read(&mut Chunks(chunks.iter().copied().collect()), 4).await, too_large);
        }
        assert_eq!(read(&mut http_body_util::Full::new(Bytes::from("abcde")), 4).await, too_large);
    }
}
