//! What the other benchmark, `lookup`, measured, as a table and a plot. Criterion leaves its estimates in
//! files.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use plotters::prelude::*;

use super::methods::METHODS;
use super::{Fallible, Page, head};

/// By method, by number of members: nanoseconds for a look-up.
type Lookups = Vec<(&'static str, BTreeMap<u32, f64>)>;

/// `None` if `lookup` was not run.
pub(crate) fn page() -> Fallible<Option<Page>> {
    let folder = criterion_folder()?;
    if !folder.join("lookup").is_dir() {
        return Ok(None);
    }
    let mut lookups = Vec::new();
    for (method, _) in METHODS {
        lookups.push((method, estimates(&folder.join("lookup").join(method))?));
    }
    let markdown = markdown(&folder, &lookups)?;
    Ok(Some(Page { name: "lookup", markdown, plot: Box::new(move |path| plot(path, &lookups)) }))
}

/// Beside the profile's folder, in which this program is.
fn criterion_folder() -> Fallible<PathBuf> {
    let program = std::env::current_exe()?;
    let target = program.ancestors().nth(3).ok_or("this program is not in a target folder")?;
    Ok(target.join("criterion"))
}

/// The estimates below a folder: one folder for each number.
fn estimates(folder: &Path) -> Fallible<BTreeMap<u32, f64>> {
    let mut estimates = BTreeMap::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if let Some(number) = entry.file_name().to_str().and_then(|name| name.parse().ok()) {
            estimates.insert(number, nanoseconds(&entry.path())?);
        }
    }
    Ok(estimates)
}

/// The median, of one element if the throughput is known.
fn nanoseconds(folder: &Path) -> Fallible<f64> {
    let read = |file: &str| -> Fallible<serde_json::Value> {
        Ok(serde_json::from_slice(&fs::read(folder.join("new").join(file))?)?)
    };
    let median = read("estimates.json")?["median"]["point_estimate"].as_f64().ok_or("no median")?;
    let elements = read("benchmark.json")?["throughput"]["Elements"].as_f64().unwrap_or(1.0);
    Ok(median / elements)
}

fn markdown(folder: &Path, lookups: &Lookups) -> Fallible<String> {
    let mut out = head("Look-ups", "lookup");
    out.push_str(
        "\nNanoseconds to find a key's member, by number of members. Keys have 21 bytes. Measured by\n",
    );
    out.push_str(
        "`cargo bench -p keevee-core --bench lookup`; medians, hashing the key included.\n\n| method |",
    );
    let counts: Vec<u32> = lookups
        .iter()
        .flat_map(|(_, costs)| costs.keys().copied())
        .collect::<std::collections::BTreeSet<_>>()
        .into_iter()
        .collect();
    counts.iter().for_each(|count| out.push_str(&format!(" {count} |")));
    out.push_str("\n| --- |");
    counts.iter().for_each(|_| out.push_str(" --- |"));
    out.push('\n');
    for (method, costs) in lookups {
        let _ = write!(out, "| {method} |");
        for count in &counts {
            let cost = costs.get(count).copied().unwrap_or(f64::NAN);
            let _ = write!(out, " {cost:.*} |", usize::from(cost < 100.0));
        }
        out.push('\n');
    }
    let owner = nanoseconds(&folder.join("owner/of a slot"))?;
    let _ = writeln!(
        out,
        "\nOf a look-up in the slot table, finding the slot's owner takes {owner:.1} ns; the rest is the key's CRC16.\n"
    );
    out.push_str("Milliseconds to compute a slot table:\n\n| shards | from nothing | with one shard more |\n| --- | --- | --- |\n");
    let (first, next) =
        (estimates(&folder.join("table/from nothing"))?, estimates(&folder.join("table/one shard more"))?);
    for (count, cost) in first {
        let _ = writeln!(
            out,
            "| {count} | {:.1} | {:.2} |",
            cost / 1e6,
            next.get(&count).unwrap_or(&f64::NAN) / 1e6
        );
    }
    Ok(out)
}

/// Both axes logarithmic.
fn plot(path: &Path, lookups: &Lookups) -> Fallible {
    let root = SVGBackend::new(path, (800, 480)).into_drawing_area();
    root.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&root)
        .caption("Nanoseconds to find a key's member", ("sans-serif", 17))
        .margin(12)
        .x_label_area_size(40)
        .y_label_area_size(70)
        .build_cartesian_2d((3.0..2500.0_f64).log_scale(), (5.0..1e6_f64).log_scale())?;
    chart.configure_mesh().x_desc("members").draw()?;
    for (number, (method, costs)) in lookups.iter().enumerate() {
        let style = Palette99::pick(number).stroke_width(2);
        let points: Vec<(f64, f64)> = costs.iter().map(|(&count, &cost)| (f64::from(count), cost)).collect();
        chart
            .draw_series([PathElement::new(points, style)])?
            .label(*method)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 20, y)], style));
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperLeft)
        .background_style(WHITE.mix(0.8))
        .draw()?;
    root.present()?;
    Ok(())
}
