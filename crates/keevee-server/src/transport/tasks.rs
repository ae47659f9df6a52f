//! The tasks of a transport, and how they end.

use std::future::Future;
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::BoxFuture;

/// How long a stopping node waits until its answers to peers are written.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(1);

/// The tasks.
#[derive(Default)]
pub(super) struct Tasks {
    running: Mutex<JoinSet<()>>,
    /// Sent once: connections from peers end as soon as what is under way on them is answered.
    pub(super) stop: watch::Sender<()>,
}

impl Tasks {
    pub(super) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.lock().spawn(task);
    }

    /// Tells connections from peers to end, and waits until they have, for a second at most.
    pub(super) fn drain(&self) -> BoxFuture<()> {
        let stop = self.stop.clone();
        Box::pin(async move {
            stop.send_replace(());
            let _ = timeout(DRAIN_TIMEOUT, stop.closed()).await;
        })
    }

    /// Ends all of them where they are.
    pub(super) fn abort(&self) {
        self.lock().abort_all();
    }

    fn lock(&self) -> MutexGuard<'_, JoinSet<()>> {
        self.running.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}
