//! Runs all futures of one HTTP/2 connection in the connection's own task.
//!
//! hyper wants to spawn a task for the connection and one for each call. Between tasks, a message would wait for the
//! scheduler twice before it is written; in one task, the same turn that takes it from its queue writes it.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll};

use futures_util::stream::{FuturesUnordered, StreamExt};

use crate::transport::BoxFuture;

/// Takes the futures that hyper would spawn.
#[derive(Clone, Default)]
pub(super) struct Crew(Arc<Mutex<Vec<BoxFuture<()>>>>);

impl<F: Future<Output = ()> + Send + 'static> hyper::rt::Executor<F> for Crew {
    fn execute(&self, future: F) {
        self.lock().push(Box::pin(future));
    }
}

impl Crew {
    fn lock(&self) -> MutexGuard<'_, Vec<BoxFuture<()>>> {
        self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

/// Polls them.
#[derive(Default)]
pub(super) struct Work {
    pub(super) crew: Crew,
    running: FuturesUnordered<BoxFuture<()>>,
}

impl Work {
    /// Runs all of them until `main` is ready.
    pub(super) async fn until<F: Future>(&mut self, mut main: Pin<&mut F>) -> F::Output {
        poll_fn(|context| {
            loop {
                self.poll_all(context);
                // Last: what they hand to the connection is written now.
                if let Poll::Ready(output) = main.as_mut().poll(context) {
                    return Poll::Ready(output);
                }
                if self.crew.lock().is_empty() {
                    return Poll::Pending;
                }
            }
        })
        .await
    }

    /// Runs all of them until none is left.
    pub(super) async fn rest(&mut self) {
        poll_fn(|context| {
            self.poll_all(context);
            if self.running.is_empty() { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
    }

    fn poll_all(&mut self, context: &mut Context<'_>) {
        loop {
            let new = std::mem::take(&mut *self.crew.lock());
            self.running.extend(new);
            while let Poll::Ready(Some(())) = self.running.poll_next_unpin(context) {}
            if self.crew.lock().is_empty() {
                return;
            }
        }
    }
}
