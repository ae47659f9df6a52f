use super::*;
use crate::tests::Random;

type Shards = Vec<(ShardId, u32)>;

fn shards(load_factors: &[u32]) -> Shards {
    (1..).map(ShardId).zip(load_factors.iter().copied()).collect()
}

fn random_shards(random: &mut Random, count: u64) -> Shards {
    let spread = [1, 3, 1000][random.below(3) as usize];
    let mut shards: Shards = (0..count)
        .map(|_| (ShardId(1 + random.below(3000) as u32), random.below(spread + 1) as u32))
        .collect();
    shards.push((ShardId(4000), 1));
    shards.sort();
    shards.dedup_by_key(|(shard, _)| *shard);
    shards
}

fn compute(in_force: Option<&SlotTable>, shards: &[(ShardId, u32)]) -> SlotTable {
    SlotTable::compute(in_force, shards).unwrap()
}

/// Exactness: each has the floor or the ceiling of its quota, in whole numbers.
fn assert_exact(table: &SlotTable, shards: &[(ShardId, u32)]) {
    let total: u64 = shards.iter().map(|(_, load_factor)| u64::from(*load_factor)).sum();
    let counts = table.counts();
    for (shard, load_factor) in shards {
        let quota = u64::from(SLOTS) * u64::from(*load_factor);
        let count = counts.get(shard).copied().unwrap_or(0) as u64;
        assert!(
            count == quota / total || count == quota.div_ceil(total),
            "{shard}: {count} of {quota}/{total}"
        );
    }
    assert!(counts.keys().all(|owner| shards.iter().any(|(shard, _)| shard == owner)));
}

/// The fewest moves that any table with exact shares can do with. Each shard keeps at most its floor, and
/// one slot more if it may have the ceiling; of the ceilings there are only so many.
fn fewest_moves(in_force: &SlotTable, shards: &[(ShardId, u32)]) -> usize {
    let total: u64 = shards.iter().map(|(_, load_factor)| u64::from(*load_factor)).sum();
    let counts = in_force.counts();
    let (mut kept, mut floors, mut want_one_more) = (0, 0, 0);
    for (shard, load_factor) in shards {
        let quota = u64::from(SLOTS) * u64::from(*load_factor);
        let (floor, held) = ((quota / total) as usize, counts.get(shard).copied().unwrap_or(0));
        floors += floor;
        kept += held.min(floor);
        want_one_more += usize::from(held > floor && quota % total != 0);
    }
    usize::from(SLOTS) - kept - want_one_more.min(usize::from(SLOTS) - floors)
}

#[test]
fn one_shard_owns_everything() {
    let table = compute(None, &shards(&[1]));
    assert_eq!(table, SlotTable::of_one(ShardId(1)));
    assert_eq!(table.runs(), [Run { first: Slot(0), last: Slot(16383), shard: ShardId(1) }]);
    assert_eq!(table.owner_of_key(b"foo"), ShardId(1));
    assert!(table.slots_of(ShardId(1)).is_all() && table.slots_of(ShardId(2)).is_empty());
}

#[test]
fn shares_are_exact_whatever_the_load_factors() {
    assert_eq!(compute(None, &shards(&[1, 1])).counts().into_values().collect::<Vec<_>>(), [8192, 8192]);
    let mut random = Random::new(1);
    for round in 0..40 {
        let shards = random_shards(&mut random, 1 + round * 5);
        assert_exact(&compute(None, &shards), &shards);
    }
    for load_factors in [&[u32::MAX; 2048][..], &[1, u32::MAX], &[u32::MAX, 1, 0, 7]] {
        let shards = shards(load_factors);
        assert_exact(&compute(None, &shards), &shards);
    }
}

#[test]
fn the_fewest_slots_move() {
    let mut random = Random::new(2);
    for count in [1, 2, 5, 20, 100] {
        let mut members = random_shards(&mut random, count);
        let mut table = compute(None, &members);
        for _ in 0..10 {
            // Adds a shard, drops one, weighs one anew: each now and then.
            if random.below(2) == 0 {
                members.push((ShardId(5000 + random.next() as u32 % 10_000), random.below(3) as u32));
                members.sort();
                members.dedup_by_key(|(shard, _)| *shard);
            }
            if random.below(2) == 0 && members.len() > 2 {
                members.remove(random.below(members.len() as u64) as usize);
            }
            let at = random.below(members.len() as u64) as usize;
            members[at].1 = 1 + random.below(5) as u32;
            let next = compute(Some(&table), &members);
            assert_exact(&next, &members);
            assert_eq!(table.moves_to(&next).count(), fewest_moves(&table, &members));
            table = next;
        }
    }
}

/// All targets that are floors or ceilings, tried one by one, for few slots: none needs fewer moves.
#[test]
fn targets_need_the_fewest_moves_of_all() {
    let mut random = Random::new(3);
    for _ in 0..200 {
        let count = 1 + random.below(6) as usize;
        let load_factors: Vec<u32> = (0..count).map(|_| 1 + random.below(9) as u32).collect();
        let shards = shards(&load_factors);
        let mut held = vec![0_usize; count];
        for _ in 0..SLOTS {
            held[random.below(count as u64 * 2) as usize % count] += 1;
        }
        let total: u64 = load_factors.iter().map(|&load_factor| u64::from(load_factor)).sum();
        let moves = |targets: &[usize]| -> usize {
            held.iter().zip(targets).map(|(held, target)| held.saturating_sub(*target)).sum()
        };
        let mut least = usize::MAX;
        for ceilings in 0_u32..1 << count {
            let target = |at: usize| {
                let quota = u64::from(SLOTS) * u64::from(load_factors[at]);
                (if ceilings >> at & 1 == 1 { quota.div_ceil(total) } else { quota / total }) as usize
            };
            let targets: Vec<usize> = (0..count).map(target).collect();
            if targets.iter().sum::<usize>() == usize::from(SLOTS) {
                least = least.min(moves(&targets));
            }
        }
        assert_eq!(moves(&targets(&shards, &held).unwrap()), least, "{load_factors:?} {held:?}");
    }
}

#[test]
fn ceilings_go_to_those_who_hold_more_then_to_holders_then_by_id() {
    // 16384 = 3 * 5461 + 1: one of three gets one more.
    let equal = shards(&[1, 1, 1]);
    assert_eq!(targets(&equal, &[0, 0, 0]).unwrap(), [5462, 5461, 5461]);
    assert_eq!(targets(&equal, &[0, 0, 100]).unwrap(), [5461, 5461, 5462]);
    assert_eq!(targets(&equal, &[5461, 5462, 5461]).unwrap(), [5461, 5462, 5461]);
    assert_eq!(targets(&equal, &[5462, 5463, 5459]).unwrap(), [5461, 5462, 5461]);
}

#[test]
fn what_is_right_already_stays() {
    let mut random = Random::new(4);
    for count in [1, 3, 50, 500] {
        let shards = random_shards(&mut random, count);
        let table = compute(None, &shards);
        assert_eq!(compute(Some(&table), &shards), table);
        // A shard without a share changes nothing, nor does a common factor.
        let mut more: Shards = shards.iter().map(|&(shard, load_factor)| (shard, load_factor * 7)).collect();
        more.push((ShardId(9999), 0));
        assert_eq!(compute(Some(&table), &more), table);
    }
}

#[test]
fn a_new_shard_gets_slots_and_nobody_else_does() {
    let before = compute(None, &shards(&[1; 10]));
    let after = compute(Some(&before), &shards(&[1; 11]));
    let moves: Vec<Move> = before.moves_to(&after).collect();
    assert!(moves.iter().all(|moved| moved.to == ShardId(11) && moved.from != ShardId(11)));
    assert_eq!(moves.len(), after.counts()[&ShardId(11)]);
}

#[test]
fn a_shard_that_goes_gives_its_own_slots_and_no_others_move() {
    let before = compute(None, &shards(&[1; 10]));
    let rest: Shards = shards(&[1; 10]).into_iter().filter(|(shard, _)| *shard != ShardId(4)).collect();
    let after = compute(Some(&before), &rest);
    assert!(before.moves_to(&after).all(|moved| moved.from == ShardId(4)));
    assert_eq!(before.moves_to(&after).count(), before.counts()[&ShardId(4)]);
}

/// Sorts all pairs of a movable slot and a shard, and takes from the top what fits.
fn naive(holders: &[Option<usize>], held: &[usize], targets: &[usize], ranking: &Ranking) -> Vec<usize> {
    let (mut held, mut owners, mut moved) = (held.to_vec(), holders.to_vec(), vec![false; holders.len()]);
    let mut pairs: Vec<(Score, usize, usize)> = Vec::new();
    for slot in 0..holders.len() {
        pairs.extend((0..targets.len()).map(|shard| (ranking.score(shard, slot as u64), slot, shard)));
    }
    pairs.sort_by_key(|&(score, slot, shard)| (Reverse(score), slot, shard));
    let had = held.clone();
    for (_, slot, shard) in pairs {
        let may_leave = holders[slot].is_none_or(|holder| held[holder] > targets[holder]);
        // Who had too many receives nothing, who had too few gives nothing up.
        if moved[slot] || !may_leave || had[shard] >= targets[shard] || held[shard] >= targets[shard] {
            continue;
        }
        if let Some(holder) = holders[slot] {
            held[holder] -= 1;
        }
        held[shard] += 1;
        (owners[slot], moved[slot]) = (Some(shard), true);
    }
    owners.into_iter().map(Option::unwrap).collect()
}

#[test]
fn the_matching_is_what_sorting_all_pairs_gives() {
    let mut random = Random::new(5);
    for round in 0..300 {
        let (slots, count) = (1 + random.below(200) as usize, 1 + random.below(12) as usize);
        let load_factors: Vec<u32> = (0..count).map(|_| random.below(4) as u32).collect();
        let ranking = Ranking::new(&shards(&load_factors));
        let mut holders: Vec<Option<usize>> = vec![None; slots];
        let mut targets = vec![0; count];
        for holder in &mut holders {
            // Every third round from nothing; else some are held, unevenly.
            if round % 3 > 0 && random.below(5) > 0 {
                *holder = Some((random.below(count as u64).min(random.below(count as u64))) as usize);
            }
            targets[random.below(count as u64) as usize] += 1;
        }
        let mut held = vec![0; count];
        holders.iter().flatten().for_each(|&holder| held[holder] += 1);
        let expected = naive(&holders, &held, &targets, &ranking);
        assert_eq!(Matching::new(holders, &held, &targets, &ranking).run(), expected, "round {round}");
    }
}

#[test]
fn the_order_of_the_shards_decides_nothing() {
    let shards = shards(&[3, 1, 4, 1, 5]);
    let reversed: Shards = shards.iter().copied().rev().collect();
    assert_eq!(compute(None, &shards), compute(None, &reversed));
}

#[test]
fn a_table_survives_its_runs_and_json() {
    for load_factors in [&[1][..], &[1, 2, 3], &[1; 300]] {
        let table = compute(None, &shards(load_factors));
        let runs = table.runs();
        assert_eq!(SlotTable::from_runs(&runs), Ok(table));
        let json = serde_json::to_string(&runs).unwrap();
        assert!(json.starts_with("[[0,"), "{json}");
        assert_eq!(serde_json::from_str::<Vec<Run>>(&json).unwrap(), runs);
    }
}

#[test]
fn runs_that_are_no_table_are_refused() {
    let refused = |runs: &[(u16, u16, u32)]| {
        let runs: Vec<Run> = runs
            .iter()
            .map(|&(first, last, shard)| (Slot(first), Slot(last), ShardId(shard)).into())
            .collect();
        SlotTable::from_runs(&runs).unwrap_err()
    };
    assert_eq!(refused(&[]), SlotTableError::BadRuns(Slot(0)));
    assert_eq!(refused(&[(0, 16382, 1)]), SlotTableError::BadRuns(Slot(16383)));
    assert_eq!(refused(&[(0, 16384, 1)]), SlotTableError::BadRuns(Slot(0)));
    assert_eq!(refused(&[(0, 99, 1), (99, 16383, 2)]), SlotTableError::BadRuns(Slot(99)));
    assert_eq!(refused(&[(0, 99, 1), (101, 16383, 2)]), SlotTableError::BadRuns(Slot(101)));
    assert_eq!(refused(&[(0, 99, 1), (100, 98, 1), (99, 16383, 2)]), SlotTableError::BadRuns(Slot(100)));
    assert_eq!(refused(&[(0, 16383, 1), (16384, 16384, 1)]), SlotTableError::BadRuns(Slot(16384)));
}

#[test]
fn what_gives_no_table_is_refused() {
    assert_eq!(SlotTable::compute(None, &[]), Err(SlotTableError::NoShards));
    assert_eq!(SlotTable::compute(None, &shards(&[0, 0])), Err(SlotTableError::NoShards));
    let twice = [(ShardId(1), 1), (ShardId(2), 1), (ShardId(1), 1)];
    assert_eq!(SlotTable::compute(None, &twice), Err(SlotTableError::DuplicateShard(ShardId(1))));
    assert_eq!(SlotTable::compute(None, &shards(&[1; 2049])), Err(SlotTableError::TooManyShards(2049)));
}
