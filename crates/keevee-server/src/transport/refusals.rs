//! What of peers is refused: counted by reason, and logged once per peer and minute.

use std::fmt::Display;
use std::time::Instant;

use super::throttle::{Party, PartyThrottle};
use crate::metrics::{Metrics, RefusalMetrics, RefusalReason};

/// Counts and logs.
pub(crate) struct Refusals {
    metrics: RefusalMetrics,
    complaints: PartyThrottle,
}

impl Refusals {
    pub(crate) fn new(metrics: &Metrics) -> Refusals {
        Refusals { metrics: metrics.refusals.clone(), complaints: PartyThrottle::default() }
    }

    /// Something of a peer, or of somebody who is none, was refused.
    pub(crate) fn note(&self, party: Party, reason: RefusalReason, detail: &dyn Display) {
        self.metrics.count(reason);
        if let Some(suppressed) = self.complaints.permit(party, Instant::now()) {
            tracing::warn!(%party, reason = reason.name(), %detail, suppressed, "peer refused");
        }
    }
}
