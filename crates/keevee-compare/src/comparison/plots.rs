//! The figures as plots: throughput over connections, the distribution of latency, CPU time of a write, the sweeps.

use std::path::Path;

use plotters::coord::Shift;
use plotters::prelude::*;

use super::load::{CONNECTIONS, Case, TYPICAL_CONNECTIONS};
use super::sweep::Sweep;
use super::systems::System;
use super::{Fallible, Results, Series};

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

/// Up to which quantile: beyond it a few seconds tell little.
const QUANTILE_MAX: f64 = 0.9999;

pub(super) fn write(folder: &Path, results: &Results) -> Fallible {
    let lines = |name: &str, draw: fn(&Area<'_>, &Results, bool) -> Fallible| -> Fallible {
        let path = folder.join(name);
        let root = SVGBackend::new(&path, (1200, 480)).into_drawing_area();
        root.fill(&WHITE)?;
        for (area, is_read) in root.split_evenly((1, 2)).iter().zip([false, true]) {
            draw(area, results, is_read)?;
        }
        root.present()?;
        Ok(())
    };
    lines("compare-throughput.svg", throughput)?;
    lines("compare-latency.svg", latency)?;
    cpu(&folder.join("compare-cpu.svg"), results)?;
    sweeps(&folder.join("compare-sweep.svg"), results)
}

fn kind(is_read: bool) -> &'static str {
    if is_read { "reads" } else { "writes" }
}

/// By connections, both axes logarithmic.
fn throughput(area: &Area<'_>, results: &Results, is_read: bool) -> Fallible {
    let line = |series: &Series| -> Vec<(f64, f64)> {
        let point = |connections| {
            let figures = results.median(*series, Case::typical(is_read, connections))?;
            Some((f64::from(connections), figures.per_second.max(1.0)))
        };
        CONNECTIONS.into_iter().filter_map(point).collect()
    };
    let lines: Vec<_> = results.figures.keys().map(|series| (series.name(), line(series))).collect();
    let title = format!("{} per second, by connections", kind(is_read));
    draw(area, &title, "connections", &lines, |connections| format!("{connections:.0}"))
}

/// By quantile: each nine is as wide as the one before.
fn latency(area: &Area<'_>, results: &Results, is_read: bool) -> Fallible {
    let line = |series: &Series| -> Vec<(f64, f64)> {
        let figures = results.median(*series, Case::typical(is_read, TYPICAL_CONNECTIONS));
        let pairs = figures.map_or(Vec::new(), |figures| figures.quantiles_ms);
        let pairs = pairs.into_iter().filter(|(quantile, _)| *quantile <= QUANTILE_MAX);
        pairs.map(|(quantile, ms)| (1.0 / (1.0 - quantile), ms.max(0.001))).collect()
    };
    let lines: Vec<_> = results.figures.keys().map(|series| (series.name(), line(series))).collect();
    let title = format!("latency of {} in ms, {TYPICAL_CONNECTIONS} connections", kind(is_read));
    let label = |x: &f64| format!("{}%", (1.0 - 1.0 / x) * 100.0);
    draw(area, &title, "quantile", &lines, label)
}

/// Lines in logarithmic axes.
fn draw(
    area: &Area<'_>,
    title: &str,
    x_name: &str,
    lines: &[(String, Vec<(f64, f64)>)],
    x_label: impl Fn(&f64) -> String,
) -> Fallible {
    let points = || lines.iter().flat_map(|(_, points)| points);
    let right = points().map(|(x, _)| *x).fold(1.0, f64::max);
    let left = points().map(|(x, _)| *x).fold(right, f64::min);
    let top = points().map(|(_, y)| *y).fold(f64::MIN_POSITIVE, f64::max);
    let bottom = points().map(|(_, y)| *y).fold(top, f64::min);
    // The names lie above the lines, or they would hide some.
    let room = (top / bottom).max(10.0).powf(0.09 * lines.len() as f64);
    let mut chart = ChartBuilder::on(area)
        .caption(title, ("sans-serif", 17))
        .margin(12)
        .margin_right(36)
        .x_label_area_size(40)
        .y_label_area_size(70)
        .build_cartesian_2d((left * 0.9..right * 1.1).log_scale(), (bottom * 0.8..top * room).log_scale())?;
    chart.configure_mesh().x_desc(x_name).x_labels(6).x_label_formatter(&x_label).draw()?;
    for (number, (name, points)) in lines.iter().enumerate().filter(|(_, (_, points))| !points.is_empty()) {
        let style = Palette99::pick(number).stroke_width(2);
        chart
            .draw_series([PathElement::new(points.clone(), style)])?
            .label(name)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 20, y)], style));
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperLeft)
        .background_style(WHITE.mix(0.8))
        .draw()?;
    Ok(())
}

/// One picture for each sweep: the lines of both engines, writes and reads, at the leader.
fn sweeps(path: &Path, results: &Results) -> Fallible {
    if results.sweeps.is_empty() {
        return Ok(());
    }
    let line = |sweep: Sweep, system: System, is_read: bool| {
        let of = results.sweeps.iter().filter(move |((of, measured, case), _)| {
            (*of, *measured, case.is_read, case.to_followers) == (sweep, system, is_read, false)
        });
        let points =
            of.map(|((.., case), figures)| (sweep.varied(*case) as f64, figures.per_second.max(1.0)));
        (format!("{}, {}", system.name(), kind(is_read)), points.collect())
    };
    let root = SVGBackend::new(path, (1200, 420)).into_drawing_area();
    root.fill(&WHITE)?;
    for (area, sweep) in root.split_evenly((1, 3)).iter().zip(Sweep::ALL) {
        let systems = [System::Paxos, System::Raft];
        let lines = systems.map(|system| [false, true].map(|is_read| line(sweep, system, is_read))).concat();
        let title = format!("operations per second, by {}", sweep.name());
        draw(area, &title, sweep.name(), &lines, |x| format!("{x:.0}"))?;
    }
    root.present()?;
    Ok(())
}

/// Bars of all series.
fn cpu(path: &Path, results: &Results) -> Fallible {
    let case = Case::typical(false, TYPICAL_CONNECTIONS);
    let bar = |series: &Series| Some((series.name(), results.median(*series, case)?.cpu_micros));
    let bars: Vec<(String, f64)> = results.figures.keys().filter_map(bar).collect();
    let top = bars.iter().map(|(_, micros)| *micros).fold(1e-9, f64::max) * 1.25;
    let root = SVGBackend::new(path, (800, 60 + 36 * bars.len() as u32)).into_drawing_area();
    root.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&root)
        .caption(
            format!("CPU time of a write in µs, all replicas, {TYPICAL_CONNECTIONS} connections"),
            ("sans-serif", 17),
        )
        .margin(12)
        .build_cartesian_2d(0.0..top, 0.0..bars.len() as f64)?;
    for (number, (name, micros)) in bars.iter().rev().enumerate() {
        let (low, color) = (number as f64, Palette99::pick(bars.len() - 1 - number).mix(0.6));
        chart.draw_series([Rectangle::new([(0.0, low + 0.1), (*micros, low + 0.9)], color.filled())])?;
        let label = format!("{name}: {micros:.1}");
        chart.draw_series([Text::new(label, (top * 0.01, low + 0.6), ("sans-serif", 14).into_font())])?;
    }
    root.present()?;
    Ok(())
}
