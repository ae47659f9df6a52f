//! Cuts: a shard's state as of one time, and when there is none.

use keevee_core::command::{Expiry, Only};
use keevee_core::ids::Namespace;

use super::quiescence::{is_quiesced, quiesce};
use super::*;
use crate::storage::MemorySource;
use crate::{Cut, CutRefusal, CutReply, CutRequest};

/// How far ahead of the clock cuts are asked for.
const AHEAD: Duration = Duration::from_millis(100);
const PATIENCE: Duration = Duration::from_secs(12);

type Taken = Result<Cut<MemorySource>, CutRefusal>;

/// Asks a node for a cut, without letting anything else happen.
fn ask<M: Maker>(cluster: &mut Cluster<'_, M>, id: u64, ticket: u64, time: u64) {
    let (now, deadline) = (cluster.now_of(id), cluster.now + PATIENCE);
    cluster.node(id).shard.cut_at(now, CutRequest { ticket, time, deadline });
    cluster.advance(id).expect("it goes on");
}

/// Asks a node for a cut a little ahead of the true time: returns that time.
fn ask_ahead<M: Maker>(cluster: &mut Cluster<'_, M>, id: u64) -> u64 {
    let time = cluster.wall() + AHEAD.as_micros() as u64;
    ask(cluster, id, 1, time);
    time
}

/// What a node has answered so far: each ticket once.
fn answers<M: Maker>(cluster: &mut Cluster<'_, M>, id: u64) -> BTreeMap<u64, Taken> {
    let replies = cluster.node(id).shard.take_cuts();
    let count = replies.len();
    let answers: BTreeMap<u64, Taken> =
        replies.into_iter().map(|CutReply { ticket, result }| (ticket, result)).collect();
    assert_eq!(answers.len(), count, "answered twice");
    answers
}

/// The only answer.
fn answer<M: Maker>(cluster: &mut Cluster<'_, M>, id: u64) -> Taken {
    let mut answers = answers(cluster, id);
    assert_eq!(answers.len(), 1);
    answers.remove(&1).expect("its ticket")
}

fn keys(cut: Taken, time: u64) -> Vec<String> {
    let cut = cut.expect("taken");
    assert_eq!(cut.time, time);
    let values = cut.source.values().expect("nothing was read");
    values.into_keys().map(|(_, key)| String::from_utf8(key.to_vec()).expect("text")).collect()
}

pub fn a_cut_holds_what_was_stamped_up_to_its_time_and_nothing_later<M: Maker>(maker: &M) {
    let (mut cluster, leader) = Cluster::led(maker, 3, Bounds::default());
    cluster.run(leader, put("before", "1")).expect("written");
    let time = ask_ahead(&mut cluster, leader);
    let mut late = Vec::new();
    // Writes in each step, until long after the time.
    for number in 0..20 {
        let key = format!("key-{number:02}");
        let is_late = cluster.wall() >= time;
        cluster.submit(leader, put(&key, "1"));
        if is_late {
            late.push(key);
        }
        cluster.elapse(Duration::from_millis(20));
    }
    let cut = answer(&mut cluster, leader);
    let stamps = cut.as_ref().expect("taken").source.clone().values().expect("nothing was read");
    assert!(stamps.values().all(|value| value.stamp < time));
    let held = keys(cut, time);
    assert!(held.contains(&"before".to_owned()));
    assert!(late.len() > 5 && held.len() > 3, "before: {held:?}, behind: {late:?}");
    assert_eq!(held.len() - 1 + late.len(), 20, "each write is on one side: {held:?}, {late:?}");
    for key in late {
        assert!(!held.contains(&key), "{key}");
        let value = cluster.node(leader).shard.state().values().find(|((_, at), _)| *at == key.as_bytes());
        assert!(value.expect("it is there").1.stamp > time, "{key}");
    }
}

pub fn a_cut_waits_for_its_time_and_comes_before_the_entry_behind_it<M: Maker>(maker: &M) {
    let (mut cluster, leader) = Cluster::led(maker, 3, Bounds::default());
    let time = ask_ahead(&mut cluster, leader);
    cluster.run(leader, put("early", "1")).expect("written");
    assert!(answers(&mut cluster, leader).is_empty(), "its time has not come");
    // In the step in which the time has come, commands wait as well.
    cluster.now += AHEAD;
    cluster.submit(leader, put("late", "1"));
    cluster.settle();
    let cut = answer(&mut cluster, leader);
    assert_eq!(keys(cut, time), ["early"]);
    assert_eq!(value_of(cluster.run(leader, get("late"))), Some(Bytes::from("1")));
}

pub fn a_quiesced_shard_is_cut_and_what_is_gone_by_then_is_left_out<M: Maker>(maker: &M) {
    let (mut cluster, leader) = Cluster::led(maker, 3, Bounds::default());
    let put_for = |key: &'static str, span: Duration| {
        let expires = Expiry::After(span.as_micros() as u64);
        let action = Action::Put { key: key.into(), value: "1".into(), expires, only: Only::Always };
        Command::single(action)
    };
    cluster.run(leader, put("stays", "1")).expect("written");
    cluster.run(leader, put_for("goes", Duration::from_secs(1))).expect("written");
    cluster.run(leader, put_for("lasts", Duration::from_secs(600))).expect("written");
    cluster.elapse(Duration::from_secs(2));
    quiesce(&mut cluster, leader);
    assert!(is_quiesced(&cluster, leader));
    let time = ask_ahead(&mut cluster, leader);
    cluster.elapse(2 * AHEAD);
    let cut = answer(&mut cluster, leader).expect("taken");
    let mut values = cut.source.values().expect("nothing was read");
    // Whoever reads the source leaves out what is gone by the time.
    values.retain(|_, value| value.expires.is_none_or(|expires| expires > time));
    let names = ["lasts", "stays"].map(|key| (Namespace::DEFAULT, Bytes::from(key)));
    assert!(values.into_keys().eq(names));
    // Nothing keeps it awake.
    cluster.elapse(Duration::from_secs(2));
    quiesce(&mut cluster, leader);
    assert!(is_quiesced(&cluster, leader));
}

pub fn who_does_not_lead_takes_no_cut<M: Maker>(maker: &M) {
    let (mut cluster, leader) = Cluster::led(maker, 3, Bounds::default());
    let follower = cluster.follower(leader);
    ask_ahead(&mut cluster, follower);
    let refused = answer(&mut cluster, follower).map(|cut| cut.time);
    assert_eq!(refused, Err(CutRefusal::Refused(Refusal::NotLeader(Some(NodeId(leader))))));
}

pub fn a_leader_that_is_cut_off_takes_no_cut<M: Maker>(maker: &M) {
    let (mut cluster, old) = Cluster::led(maker, 3, Bounds::default());
    cluster.run(old, put("a", "old")).expect("written");
    let others = std::mem::take(&mut cluster.nodes);
    let (own, others): (BTreeMap<_, _>, BTreeMap<_, _>) = others.into_iter().partition(|(id, _)| *id == old);
    cluster.nodes = own;
    ask_ahead(&mut cluster, old);
    cluster.elapse(2 * PATIENCE);
    let refused = answer(&mut cluster, old).map(|cut| cut.time);
    assert!(matches!(refused, Err(CutRefusal::Refused(_))), "{refused:?}");
    cluster.nodes.extend(others);
}

pub fn a_cut_of_a_deposed_leader_is_refused<M: Maker>(maker: &M) {
    let (mut cluster, old) = Cluster::led(maker, 3, Bounds::default());
    ask_ahead(&mut cluster, old);
    // Its entry is proposed, but nobody else hears of it.
    cluster.now += AHEAD;
    cluster.advance(old).expect("it goes on");
    cluster.network.clear();
    let node = cluster.nodes.remove(&old).expect("it exists");
    let new = cluster.wait_for_leader();
    cluster.run(new, put("a", "1")).expect("written");
    cluster.nodes.insert(old, node);
    cluster.elapse(2 * PATIENCE);
    let refused = answer(&mut cluster, old).map(|cut| cut.time);
    assert!(matches!(refused, Err(CutRefusal::Refused(_))), "{refused:?}");
}

pub fn a_time_that_has_passed_or_is_far_ahead_is_refused<M: Maker>(maker: &M) {
    let (mut cluster, leader) = Cluster::led(maker, 3, Bounds::default());
    cluster.run(leader, put("a", "1")).expect("written");
    let stamp = cluster.node(leader).shard.state().values().next().expect("a key").1.stamp;
    ask(&mut cluster, leader, 1, stamp);
    let wall = cluster.wall();
    assert_eq!(
        answer(&mut cluster, leader).map(|cut| cut.time),
        Err(CutRefusal::Past { clock: wall }),
        "an entry has that stamp"
    );
    ask(&mut cluster, leader, 1, wall + 60_000_000);
    let refused = answer(&mut cluster, leader).map(|cut| cut.time);
    assert_eq!(refused, Err(CutRefusal::TooFarAhead { clock: wall }));
    // Of a time that is past, but later than all that is stamped, the cut is taken at once.
    ask(&mut cluster, leader, 1, stamp + 1);
    cluster.settle();
    let cut = answer(&mut cluster, leader);
    assert_eq!(keys(cut, stamp + 1), ["a"]);
}

/// Lets things happen message by message, and asks whoever leads for a cut as of that moment, until it is not refused for
/// being too new a leader: who that is, and what it says.
fn ask_the_next_leader<M: Maker>(cluster: &mut Cluster<'_, M>) -> (u64, Taken) {
    let ids: Vec<u64> = cluster.nodes.keys().copied().collect();
    let mut asked = None;
    for _ in 0..500 {
        cluster.now += Duration::from_millis(20);
        for id in &ids {
            let now = cluster.now;
            cluster.node(*id).shard.tick(now).expect("memory does not fail");
            cluster.advance(*id).expect("it goes on");
        }
        loop {
            ids.iter().for_each(|id| cluster.sync(*id));
            let leads = |id: &&u64| cluster.nodes[*id].shard.leader() == Some(NodeId(**id));
            let leader = ids.iter().find(leads).copied().filter(|_| asked.is_none());
            if let Some(leader) = leader {
                let time = cluster.wall();
                ask(cluster, leader, 1, time);
                asked = Some(leader);
            }
            if let Some(leader) = asked {
                match answers(cluster, leader).remove(&1) {
                    Some(Err(CutRefusal::Refused(_))) => asked = None,
                    // Its last cut, of this moment as well, was refused after it was stamped.
                    Some(Err(CutRefusal::Past { clock })) if clock <= cluster.wall() => asked = None,
                    Some(answer) => return (leader, answer),
                    None => {}
                }
            }
            let Some((from, to, message)) = cluster.network.pop_front() else { break };
            if ids.contains(&to) {
                let now = cluster.now;
                let received = cluster.node(to).shard.receive(now, NodeId(from), message);
                received.expect("memory does not fail");
                cluster.advance(to).expect("it goes on");
            }
        }
    }
    panic!("no answer within ten seconds of virtual time");
}

pub fn a_stamp_of_an_earlier_leader_beyond_the_time_forbids_the_cut<M: Maker>(maker: &M) {
    let (mut cluster, old) = Cluster::led(maker, 3, Bounds::default());
    let ahead = 9_000_000;
    cluster.node(old).skew = ahead;
    // On two disks, and not known to be chosen.
    cluster.submit(old, put("ahead", "1"));
    for (from, to, message) in std::mem::take(&mut cluster.network) {
        let now = cluster.now;
        cluster.node(to).shard.receive(now, NodeId(from), message).expect("memory does not fail");
    }
    let ids: Vec<u64> = cluster.nodes.keys().copied().collect();
    ids.into_iter().for_each(|id| cluster.sync(id));
    cluster.network.clear();
    cluster.nodes.remove(&old);
    // Whoever leads next holds the entry, and has not applied it when it is asked first.
    let (new, answered) = ask_the_next_leader(&mut cluster);
    let clock = match answered.map(|cut| cut.time) {
        Err(CutRefusal::Past { clock }) => clock,
        other => panic!("{other:?}"),
    };
    assert!(clock > cluster.wall(), "it tells the clock that a cut must be ahead of");
    assert_eq!(value_of(cluster.run(new, get("ahead"))), Some(Bytes::from("1")));
    ask(&mut cluster, new, 1, clock + 1_000);
    cluster.elapse(Duration::from_secs(10));
    let cut = answer(&mut cluster, new);
    assert_eq!(keys(cut, clock + 1_000), ["ahead"]);
}

pub fn of_two_cuts_each_has_its_own_time<M: Maker>(maker: &M) {
    let (mut cluster, leader) = Cluster::led(maker, 3, Bounds::default());
    let first = cluster.wall() + AHEAD.as_micros() as u64;
    let second = first + AHEAD.as_micros() as u64;
    ask(&mut cluster, leader, 2, second);
    ask(&mut cluster, leader, 1, first);
    ask(&mut cluster, leader, 3, first);
    cluster.run(leader, put("one", "1")).expect("written");
    cluster.elapse(AHEAD);
    cluster.run(leader, put("two", "1")).expect("written");
    cluster.elapse(2 * AHEAD);
    let mut answers = answers(&mut cluster, leader);
    let (one, two) = (answers.remove(&1).expect("answered"), answers.remove(&2).expect("answered"));
    let third = answers.remove(&3).expect("answered").map(|cut| cut.time);
    assert!(matches!(third, Err(CutRefusal::Past { .. })), "two can't have one time: {third:?}");
    assert_eq!(keys(one, first), ["one"]);
    assert_eq!(keys(two, second), ["one", "two"]);
}
