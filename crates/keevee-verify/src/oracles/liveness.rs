//! Progress: once faults have not changed for four election timeouts, a group in which some node reaches a
//! majority both ways serves writes, and keeps its leader.
//!
//! Ng, Haridi, Carbone, *Omni-Paxos* (2023), section 2: quorum-loss, constrained and chained partitions, in which
//! other protocols stop or change leaders for ever; Cloudflare's six hours of 2020. The same is asked with a
//! node down, paused, or with a disk that does not answer (etcd#13527).

use super::Broken;
use crate::plan::SLOW_PATIENCE;

/// What the world shows of itself.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sight {
    pub(crate) now: u64,
    /// False while messages are lost or late, or disks slow, beyond what the settings say.
    pub(crate) is_quiet: bool,
    /// How many times longer than usual settling may take.
    pub(crate) patience: u64,
    /// True if some node that works, and whose clock is not off, reaches a majority of working nodes, itself included,
    /// both ways.
    pub(crate) has_connected: bool,
    /// Who leads at the highest ballot, of the nodes that run.
    pub(crate) leader: Option<Leader>,
}

/// A leadership. One node may have several, one after another: each is a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Leader {
    /// The number by which its ballot is ordered.
    pub(crate) round: u64,
    pub(crate) node: u64,
}

/// What the world must do for the judgement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Demand {
    Nothing,
    /// Write something at this leader, and tell by this number what became of it.
    Write {
        leader: u64,
        number: u64,
    },
}

pub(crate) struct Liveness {
    settling: u64,
    timeout_max: u64,
    /// Between an acknowledged write and the next that is demanded.
    pause: u64,
    changed_at: u64,
    /// The write that was demanded last.
    write: Option<Write>,
    write_count: u64,
    /// When one was acknowledged last. A change of faults does not forget it: it is older then.
    acknowledged_at: u64,
    /// The leader since the group should have settled.
    settled: Option<Leader>,
    /// True once a whole calm was seen through.
    judged: bool,
}

struct Write {
    number: u64,
    leader: Leader,
    is_answered: bool,
    is_acknowledged: bool,
}

impl Liveness {
    pub(crate) const NAME: &str = "progress";

    /// A shard that is quiesced when nobody asks anything for a while is given that while.
    pub(crate) fn new(settling: u64, timeout_max: u64, may_quiesce: bool) -> Liveness {
        Liveness {
            settling,
            timeout_max,
            pause: if may_quiesce { timeout_max / 2 } else { 0 },
            changed_at: 0,
            write: None,
            write_count: 0,
            acknowledged_at: 0,
            settled: None,
            judged: false,
        }
    }

    /// A fault began or ended.
    pub(crate) fn changed(&mut self, now: u64) {
        self.changed_at = now;
        self.write = None;
        self.settled = None;
        self.judged = false;
    }

    /// The write of a number is acknowledged, or refused.
    pub(crate) fn written(&mut self, now: u64, number: u64, is_acknowledged: bool) {
        let Some(write) = self.write.as_mut().filter(|write| write.number == number) else { return };
        write.is_answered = true;
        write.is_acknowledged = is_acknowledged;
        if is_acknowledged {
            self.acknowledged_at = now;
        }
    }

    /// True once, when progress was demanded and seen.
    pub(crate) fn take_judged(&mut self) -> bool {
        std::mem::take(&mut self.judged)
    }

    /// Looks at the world; call it several times per election timeout.
    pub(crate) fn look(&mut self, sight: Sight) -> Result<Demand, Broken> {
        let Sight { now, is_quiet, patience, has_connected, leader } = sight;
        if !is_quiet || !has_connected {
            self.changed(now);
            return Ok(Demand::Nothing);
        }
        if now - self.changed_at >= patience * self.settling {
            let patience = if patience > 1 { SLOW_PATIENCE } else { 1 };
            self.judge(now, leader, patience * self.timeout_max)?;
        }
        let Some(leader) = leader else { return Ok(Demand::Nothing) };
        // From the start: a disk that does not answer is noticed by those that write only.
        let pauses = now < self.acknowledged_at + self.pause;
        let is_open = |write: &Write| !write.is_answered || write.is_acknowledged && pauses;
        if self.write.as_ref().is_some_and(|write| write.leader == leader && is_open(write)) {
            return Ok(Demand::Nothing);
        }
        self.write_count += 1;
        let number = self.write_count;
        self.write = Some(Write { number, leader, is_answered: false, is_acknowledged: false });
        Ok(Demand::Write { leader: leader.node, number })
    }

    fn judge(&mut self, now: u64, leader: Option<Leader>, wait_max: u64) -> Result<(), Broken> {
        let since = (now - self.changed_at) / 1_000;
        let Some(leader) = leader else {
            return Err(format!("nobody leads, {since} ms after the last change of faults"));
        };
        if let Some(settled) = self.settled
            && settled != leader
        {
            return Err(format!(
                "node {} leads in round {} instead of node {} in round {}, {since} ms after the last change of faults",
                leader.node, leader.round, settled.node, settled.round
            ));
        }
        // Whether writes wait or are refused is the same to a client.
        let last = self.acknowledged_at.max(self.changed_at);
        if now - last > wait_max {
            let (wait, node) = ((now - last) / 1_000, leader.node);
            return Err(format!(
                "no write at leader {node} was acknowledged for {wait} ms, {since} ms after the last change of faults"
            ));
        }
        if self.settled.is_none() {
            self.settled = Some(leader);
            self.judged = true;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOOK: u64 = 50;
    const TIMEOUT_MAX: u64 = 400;

    /// Looks at a group whose writes have these fates, until a rule is broken; when that was.
    fn broken(leader: impl Fn(u64) -> Option<Leader>, is_acknowledged: impl Fn(u64) -> bool) -> Option<u64> {
        let mut liveness = Liveness::new(4 * TIMEOUT_MAX, TIMEOUT_MAX, false);
        (0..200).map(|look| look * LOOK).find(|now| {
            let leader = leader(*now);
            let sight = Sight { now: *now, is_quiet: true, patience: 1, has_connected: true, leader };
            match liveness.look(sight) {
                Ok(Demand::Write { number, .. }) => liveness.written(now + 10, number, is_acknowledged(*now)),
                Ok(Demand::Nothing) => {}
                Err(_) => return true,
            }
            false
        })
    }

    fn leader(round: u64) -> Option<Leader> {
        Some(Leader { round, node: 1 })
    }

    #[test]
    fn a_leader_that_acknowledges_holds() {
        assert_eq!(broken(|_| leader(1), |_| true), None);
        let late = |now| if now < 1_000 { None } else { leader(1) };
        assert_eq!(broken(late, |_| true), None, "within the window");
    }

    #[test]
    fn a_leader_that_refuses_every_write_does_not() {
        assert_eq!(broken(|_| leader(1), |_| false), Some(4 * TIMEOUT_MAX));
        assert_eq!(broken(|_| leader(1), |now| now <= 5_000), Some(5_450), "nor if it begins to");
    }

    #[test]
    fn a_leader_that_is_elected_again_is_another_one() {
        assert_eq!(broken(|now| leader(1 + now / 5_000), |_| true), Some(5_000));
    }

    #[test]
    fn nobody_leading_is_no_progress() {
        assert_eq!(broken(|_| None, |_| true), Some(4 * TIMEOUT_MAX));
    }
}
