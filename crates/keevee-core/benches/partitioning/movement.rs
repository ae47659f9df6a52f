//! How many keys move when a member comes, goes, or is weighed anew.

use std::fmt::Write as _;
use std::path::Path;

use keevee_core::slot_table::SlotTable;
use plotters::prelude::*;

use super::keys::Kind;
use super::methods::{METHODS, Member, Method, equal, shards, unequal};
use super::{Fallible, Page, head};

const MEMBERS: u32 = 16;

struct Moved {
    method: &'static str,
    change: &'static str,
    moved: f64,
    least: f64,
}

pub(crate) fn page(keys: u64) -> Page {
    let (same, unequal) = (equal(MEMBERS), unequal(MEMBERS));
    let without =
        |members: &[Member], gone: u32| members.iter().copied().filter(|(id, _)| *id != gone).collect();
    let reweighed = same.iter().map(|&(id, load_factor)| (id, load_factor + u32::from(id == 3)));
    let changes: [(&str, &[Member], Vec<Member>); 4] = [
        ("a member comes", &same, equal(MEMBERS + 1)),
        ("a member goes", &same, without(&same, 7)),
        ("a load factor from 1 to 2", &same, reweighed.collect()),
        ("one of unequal members goes", &unequal, without(&unequal, 7)),
    ];
    let mut results = Vec::new();
    for (change, before, after) in &changes {
        for (method, make) in METHODS {
            let (old, new) = (make(before), next(method, make, before, after));
            let mut moved = 0_u64;
            Kind::Url.each(keys, |key| moved += u64::from(old.member(key) != new.member(key)));
            let moved = moved as f64 / keys as f64;
            results.push(Moved { method, change, moved, least: least(before, after) });
        }
    }
    let markdown = markdown(keys, &results);
    Page { name: "movement", markdown, plot: Box::new(move |path| plot(path, &results)) }
}

/// The slot table is computed from the one in force; the others know members only.
fn next(method: &str, make: super::methods::Make, before: &[Member], after: &[Member]) -> Box<dyn Method> {
    if method != "slot table" {
        return make(after);
    }
    let in_force = SlotTable::compute(None, &shards(before)).expect("members");
    Box::new(SlotTable::compute(Some(&in_force), &shards(after)).expect("members"))
}

/// The least that must move: what those who get less give up.
fn least(before: &[Member], after: &[Member]) -> f64 {
    let share = |members: &[Member], id: u32| {
        let total: u32 = members.iter().map(|(_, load_factor)| load_factor).sum();
        let load_factor = members.iter().find(|member| member.0 == id).map_or(0, |member| member.1);
        f64::from(load_factor) / f64::from(total)
    };
    before.iter().map(|&(id, _)| (share(before, id) - share(after, id)).max(0.0)).sum()
}

fn markdown(keys: u64, results: &[Moved]) -> String {
    let mut out = head("Movement", "movement");
    let _ = writeln!(
        out,
        "\n{MEMBERS} members, {keys} URL-like keys. Members have equal loads, but for the last change: there, load \
         factors are 1, 2, 3, 4, and again, and one of 3 goes. The least is what any method must move to reach the new \
         shares from exact old ones; who starts unevenly may move less, and stays uneven. Jump hash can drop \
         its last member only: another's place is taken by those after it.\n"
    );
    out.push_str("| change | method | moved | least | times the least |\n| --- | --- | --- | --- | --- |\n");
    for Moved { method, change, moved, least } in results {
        let times = moved / least;
        let _ = writeln!(
            out,
            "| {change} | {method} | {:.2}% | {:.2}% | {times:.2} |",
            moved * 100.0,
            least * 100.0
        );
    }
    out
}

/// A panel for each change, a bar for each method.
fn plot(path: &Path, results: &[Moved]) -> Fallible {
    let root = SVGBackend::new(path, (1100, 640)).into_drawing_area();
    root.fill(&WHITE)?;
    let mut changes: Vec<&str> = results.iter().map(|result| result.change).collect();
    changes.dedup();
    for (area, change) in root.split_evenly((2, 2)).iter().zip(changes) {
        let panel: Vec<&Moved> = results.iter().filter(|result| result.change == change).collect();
        let least = panel[0].least * 100.0;
        // Jump hash may be far beyond all others: its bar is cut, its number stands.
        let top = least * 3.0;
        let mut chart = ChartBuilder::on(area)
            .caption(format!("{change}: % of keys moved"), ("sans-serif", 16))
            .margin(10)
            .y_label_area_size(35)
            .build_cartesian_2d(0.0..panel.len() as f64, 0.0..top)?;
        chart.configure_mesh().disable_x_mesh().x_labels(0).draw()?;
        for (at, result) in panel.iter().enumerate() {
            let (left, value) = (at as f64, result.moved * 100.0);
            let shown = value.min(top * 0.9);
            let bar = [(left + 0.15, 0.0), (left + 0.85, shown)];
            chart.draw_series([Rectangle::new(bar, Palette99::pick(at).mix(0.7).filled())])?;
            let font = ("sans-serif", 12).into_font();
            chart.draw_series([Text::new(
                format!("{value:.1}"),
                (left + 0.25, shown + top * 0.06),
                font.clone(),
            )])?;
            for (line, word) in result.method.split(' ').enumerate() {
                let place = (left + 0.18, top * (0.12 - 0.05 * line as f64));
                chart.draw_series([Text::new(word.to_owned(), place, font.clone())])?;
            }
        }
        let line = [(0.0, least), (panel.len() as f64, least)];
        chart.draw_series([PathElement::new(line, BLACK.stroke_width(1))])?;
    }
    root.present()?;
    Ok(())
}
