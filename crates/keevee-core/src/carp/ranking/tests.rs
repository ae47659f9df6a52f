use super::*;
use crate::carp::v1;
use crate::tests::Random;

#[test]
fn hashes_of_pairs_never_change() {
    // Every slot table was computed with them: other numbers would rank the slots of old tables anew.
    let ranking = Ranking::new(&[(ShardId(1), 1), (ShardId(2), 1)]);
    assert_eq!(ranking.score(0, 0), Score(0xcdb7_0e3d_6346_ed22));
    assert_eq!(ranking.score(1, 16383), Score(0x1cad_325d_910b_1c71));
    assert_eq!(rank_nodes(ShardId(1), &[1, 2, 3, 4, 5].map(NodeId)), [2, 5, 1, 4, 3].map(NodeId));
}

#[test]
fn multipliers_are_the_drafts() {
    let mut random = Random::new(1);
    for count in [1, 2, 3, 10, 100] {
        let load_factors: Vec<u32> = (0..count).map(|_| random.below(20) as u32).collect();
        for (ours, drafts) in multipliers(&load_factors).into_iter().zip(v1::multipliers(&load_factors)) {
            assert!((ours - f64::from(drafts)).abs() < 1e-5, "{load_factors:?}: {ours} {drafts}");
        }
    }
}

#[test]
fn equal_load_factors_have_equal_multipliers() {
    let mut random = Random::new(2);
    for count in [1, 2, 3, 1000, 2048] {
        assert!(multipliers(&vec![5; count]).iter().all(|&multiplier| (multiplier - 1.0).abs() < 1e-12));
        let load_factors: Vec<u32> = (0..count).map(|_| random.below(8) as u32).collect();
        let multipliers = multipliers(&load_factors);
        for (one, other) in
            load_factors.iter().zip(&multipliers).zip(load_factors.iter().zip(&multipliers).rev())
        {
            assert_eq!(one.0.cmp(other.0), one.1.total_cmp(other.1));
        }
    }
}

/// The shares that multipliers give, calculated back. The chance that `X_k * U_k` is the largest is, in
/// ascending order and in units where the product of all is 1, the sum over `j <= k` of
/// `(X_j^r - X_{j-1}^r) / r * X_1 * ... * X_{j-1}`, where `r` is `K - j + 1`.
fn shares(ascending: &[f64]) -> Vec<f64> {
    let (mut share, mut last, mut product) = (0.0, 0.0_f64, 1.0_f64);
    let step = |(at, &multiplier): (usize, &f64)| {
        let remaining = (ascending.len() - at) as f64;
        share += (multiplier.powf(remaining) - last.powf(remaining)) * product / remaining;
        last = multiplier;
        product *= multiplier;
        share
    };
    ascending.iter().enumerate().map(step).collect()
}

#[test]
fn multipliers_give_the_shares_that_they_were_made_for() {
    let mut random = Random::new(3);
    for count in [2, 5, 64, 1000, 2048] {
        let mut load_factors: Vec<u32> = (0..count).map(|_| 1 + random.below(1000) as u32).collect();
        load_factors.sort();
        let total: f64 = load_factors.iter().map(|&load| f64::from(load)).sum();
        let shares = shares(&multipliers(&load_factors));
        for (share, load_factor) in shares.into_iter().zip(&load_factors) {
            let wanted = f64::from(*load_factor) / total;
            assert!((share / wanted - 1.0).abs() < 1e-6, "{count} members: {share} of {wanted}");
        }
    }
}

/// Why the draft's 32 bits are not enough here.
#[test]
fn multipliers_of_32_bits_put_thousands_of_shares_off_by_thousandths() {
    let mut random = Random::new(3);
    let mut load_factors: Vec<u32> = (0..2048).map(|_| 1 + random.below(1000) as u32).collect();
    load_factors.sort();
    let total: f64 = load_factors.iter().map(|&load| f64::from(load)).sum();
    let rounded: Vec<f64> = v1::multipliers(&load_factors).into_iter().map(f64::from).collect();
    let scale = (rounded.iter().map(|multiplier| multiplier.ln()).sum::<f64>() / 2048.0).exp();
    let shares = shares(&rounded.iter().map(|multiplier| multiplier / scale).collect::<Vec<_>>());
    let off =
        shares.iter().zip(&load_factors).map(|(share, load)| (share / f64::from(*load) * total - 1.0).abs());
    let worst = off.fold(0.0, f64::max);
    assert!((1e-3..1e-2).contains(&worst), "{worst}");
}

#[test]
fn multipliers_are_sound_for_the_most_unequal_members() {
    let powers: Vec<u32> = (0..2048).map(|member| 1 << (member % 32)).collect();
    let mut halves = vec![1; 1024];
    halves.resize(2048, u32::MAX);
    let mut one_large = vec![1; 2047];
    one_large.push(u32::MAX);
    for load_factors in [vec![1, u32::MAX], powers, halves, one_large, vec![u32::MAX; 2048]] {
        let multipliers = multipliers(&load_factors);
        assert!(multipliers.iter().all(|multiplier| multiplier.is_finite() && *multiplier > 0.0));
        let product: f64 = multipliers.iter().map(|multiplier| multiplier.ln()).sum();
        assert!(product.abs() < 1e-6, "the multipliers are roots of 1: {product}");
        let shards: Vec<_> = (0..).map(ShardId).zip(load_factors).collect();
        let ranking = Ranking::new(&shards);
        assert!(ranking.shards.iter().all(|shard| shard.scale > 0));
        assert!(ranking.shards.iter().any(|shard| shard.scale == u64::MAX));
    }
}

#[test]
fn load_factor_0_gets_nothing() {
    assert_eq!(multipliers(&[0, 0]), [0.0, 0.0]);
    assert!(multipliers(&[]).is_empty());
    let ranking = Ranking::new(&[(ShardId(1), 0), (ShardId(2), 3), (ShardId(3), 0)]);
    assert!((0..1000).all(|item| ranking.best(item) == Some(ShardId(2))));
    assert_eq!(ranking.ranked(Slot(5))[1..], [(ShardId(1), Score(0)), (ShardId(3), Score(0))]);
    assert_eq!(Ranking::new(&[(ShardId(1), 0)]).best(7), None);
}

#[test]
fn the_order_of_the_shards_decides_nothing() {
    let shards: Vec<_> = (1..50).map(|shard| (ShardId(shard), shard % 4)).collect();
    let reversed: Vec<_> = shards.iter().copied().rev().collect();
    let (one, other) = (Ranking::new(&shards), Ranking::new(&reversed));
    for slot in 0..1000 {
        assert_eq!(one.best(slot), other.best(slot));
        assert_eq!(one.ranked(Slot(slot as u16)), other.ranked(Slot(slot as u16)));
    }
}

#[test]
fn a_shard_that_goes_takes_its_own_items_only() {
    let shards: Vec<_> = (1..20).map(|shard| (ShardId(shard), 1)).collect();
    let all = Ranking::new(&shards);
    let rest = Ranking::new(&shards[..18]);
    for item in 0..10_000 {
        let (before, after) = (all.best(item), rest.best(item));
        assert!(before == after || before == Some(ShardId(19)), "{before:?} lost item {item} to {after:?}");
    }
}

#[test]
fn shares_are_near_the_load_factors() {
    let load_factors = [1, 1, 2, 3, 5, 8, 100];
    let shards: Vec<_> = (1..).map(ShardId).zip(load_factors).collect();
    let ranking = Ranking::new(&shards);
    let count = 200_000;
    let mut counts = [0.0; 8];
    for item in 0..count {
        counts[ranking.best(item).unwrap().0 as usize] += 1.0;
    }
    for (shard, load_factor) in shards {
        let share = f64::from(load_factor) / 120.0;
        let mean = count as f64 * share;
        // Five standard deviations of a binomial distribution.
        let bound = 5.0 * (mean * (1.0 - share)).sqrt();
        let got = counts[shard.0 as usize];
        assert!((got - mean).abs() < bound, "shard {shard}: {got} of {mean} within {bound}");
    }
}
