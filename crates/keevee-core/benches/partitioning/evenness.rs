//! How evenly the methods divide keys.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

use plotters::prelude::*;

use super::keys::Kind;
use super::methods::{CarpV1, METHODS, Member, Method, equal, unequal};
use super::{Fallible, Page, head};

const MEMBERS: u32 = 16;

/// What each member got, over what it should have got.
struct Division {
    method: &'static str,
    what: String,
    ratios: Vec<f64>,
}

pub(crate) fn page(keys: u64) -> Page {
    let mut results = Vec::new();
    let members = equal(MEMBERS);
    for kind in Kind::ALL {
        for (method, made) in methods(&members) {
            results.push(Division {
                method,
                what: kind.name().to_owned(),
                ratios: ratios(&*made, &members, kind, keys),
            });
        }
    }
    let unequal = unequal(MEMBERS);
    for (method, made) in methods(&unequal) {
        let ratios = ratios(&*made, &unequal, Kind::Random, keys);
        results.push(Division { method, what: "random, unequal loads".to_owned(), ratios });
    }
    let markdown = markdown(keys, &results) + &by_members(keys);
    Page { name: "evenness", markdown, plot: Box::new(move |path| plot(path, &results)) }
}

/// All methods, and the draft with names that have nothing in common.
fn methods(members: &[Member]) -> Vec<(&'static str, Box<dyn Method>)> {
    let other_name = |id: u32| format!("{:016x}-{id}", xxhash_rust::xxh3::xxh3_64(&id.to_le_bytes()));
    let mut methods: Vec<(&'static str, Box<dyn Method>)> =
        METHODS.iter().map(|(name, make)| (*name, make(members))).collect();
    methods.insert(1, ("carp v1, random names", Box::new(CarpV1::new(members, other_name))));
    methods
}

fn ratios(method: &dyn Method, members: &[Member], kind: Kind, keys: u64) -> Vec<f64> {
    let mut counts: BTreeMap<u32, u64> = members.iter().map(|&(id, _)| (id, 0)).collect();
    let mut dense = vec![0_u64; members.len() + 1];
    kind.each(keys, |key| dense[method.member(key) as usize] += 1);
    counts.iter_mut().for_each(|(id, count)| *count = dense[*id as usize]);
    let total: u32 = members.iter().map(|(_, load_factor)| load_factor).sum();
    let fair = |load_factor: u32| keys as f64 * f64::from(load_factor) / f64::from(total);
    members.iter().map(|(id, load_factor)| counts[id] as f64 / fair(*load_factor)).collect()
}

fn markdown(keys: u64, results: &[Division]) -> String {
    let mut out = head("Evenness", "evenness");
    let _ = writeln!(
        out,
        "\n{keys} keys among {MEMBERS} members. A member's part is what it got over what it should have got: 1 is \
         perfect. With unequal loads, the load factors are 1, 2, 3, 4, and again. Chance alone (every key thrown \
         by dice) has a coefficient of variation of {:.4} at equal loads.\n",
        (f64::from(MEMBERS) / keys as f64).sqrt()
    );
    out.push_str(
        "| keys | method | max | min | coefficient of variation |\n| --- | --- | --- | --- | --- |\n",
    );
    for Division { method, what, ratios } in results {
        let (max, min) =
            (ratios.iter().copied().fold(0.0, f64::max), ratios.iter().copied().fold(f64::MAX, f64::min));
        let _ = writeln!(out, "| {what} | {method} | {max:.4} | {min:.4} | {:.4} |", variation(ratios));
    }
    out
}

/// The coefficient of variation by number of members, without the one method that is too slow for it.
fn by_members(keys: u64) -> String {
    const COUNTS: [u32; 5] = [4, 16, 64, 256, 1024];
    let chance = COUNTS.map(|count| (f64::from(count) / keys as f64).sqrt());
    let mut rows: Vec<(&str, Vec<f64>)> = vec![("chance", chance.to_vec())];
    rows.extend(methods(&equal(1)).iter().map(|(name, _)| (*name, Vec::new())));
    rows.retain(|(name, _)| *name != "rendezvous sha256");
    for count in COUNTS {
        let members = equal(count);
        for (name, method) in methods(&members) {
            if let Some((_, row)) = rows.iter_mut().find(|(row, _)| *row == name) {
                row.push(variation(&ratios(&*method, &members, Kind::Random, keys)));
            }
        }
    }
    let mut out =
        format!("\nCoefficients of variation by number of members, {keys} random keys:\n\n| method |");
    COUNTS.iter().for_each(|count| out.push_str(&format!(" {count} |")));
    out.push_str("\n| --- | --- | --- | --- | --- | --- |\n");
    for (name, row) in rows {
        let cells: Vec<String> = row.iter().map(|variation| format!("{variation:.4}")).collect();
        let _ = writeln!(out, "| {name} | {} |", cells.join(" | "));
    }
    out
}

/// The standard deviation over the mean.
fn variation(ratios: &[f64]) -> f64 {
    let mean = ratios.iter().sum::<f64>() / ratios.len() as f64;
    let square = ratios.iter().map(|ratio| (ratio - mean).powi(2)).sum::<f64>() / ratios.len() as f64;
    square.sqrt() / mean
}

/// A panel for each kind of keys, a column for each method, a dot for each member.
fn plot(path: &Path, results: &[Division]) -> Fallible {
    let root = SVGBackend::new(path, (1100, 900)).into_drawing_area();
    root.fill(&WHITE)?;
    let mut kinds: Vec<&str> = results.iter().map(|result| result.what.as_str()).collect();
    kinds.dedup();
    for (area, kind) in root.split_evenly((2, 2)).iter().zip(kinds) {
        let panel: Vec<&Division> = results.iter().filter(|result| result.what == kind).collect();
        let top = panel.iter().flat_map(|result| &result.ratios).copied().fold(1.0, f64::max);
        let names: Vec<&str> = panel.iter().map(|result| result.method).collect();
        let mut chart = ChartBuilder::on(area)
            .caption(format!("{kind}: each member's part (1 = fair)"), ("sans-serif", 16))
            .margin(10)
            .y_label_area_size(40)
            .build_cartesian_2d(-0.5..names.len() as f64 - 0.5, 0.0..top * 1.08)?;
        chart.configure_mesh().disable_x_mesh().x_labels(0).draw()?;
        chart.draw_series([PathElement::new(
            [(-0.5, 1.0), (names.len() as f64 - 0.5, 1.0)],
            BLACK.mix(0.5),
        )])?;
        for (at, result) in panel.iter().enumerate() {
            let color = Palette99::pick(at).mix(0.7);
            let dots = result.ratios.iter().enumerate();
            let spread = |member: usize| (member as f64 / f64::from(MEMBERS) - 0.5) * 0.5;
            chart.draw_series(dots.map(|(member, &ratio)| {
                Circle::new((at as f64 + spread(member), ratio), 3, color.filled())
            }))?;
            let words = result.method.split(' ').enumerate();
            for (line, word) in words {
                let place = (at as f64 - 0.4, top * (0.13 - 0.045 * line as f64));
                chart.draw_series([Text::new(word.to_owned(), place, ("sans-serif", 12).into_font())])?;
            }
        }
    }
    root.present()?;
    Ok(())
}
