//! The report as one HTML page that needs nothing else: what came of it, and what happened when.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use super::report::{Event, KindReport, Leadership, Report};
use super::schedule::Kind;

/// What a plot is wide, and where its axis begins, in pixels.
const WIDTH: f64 = 1100.0;
const LEFT: f64 = 70.0;
/// What a plot of numbers is high.
const HEIGHT: f64 = 140.0;
const ROW: f64 = 16.0;
/// Parts of the time axis.
const TICKS: u32 = 6;
const BLUE: &str = "#4477aa";
const RED: &str = "#ee6677";

/// The page.
pub(crate) fn page(report: &Report) -> String {
    let verdict = if report.passed { "passed" } else { "FAILED" };
    let title = format!("keevee verify: {verdict} ({}, seed {})", report.consensus, report.seed);
    let style = "body{font:14px sans-serif;max-width:1180px;margin:2em auto}table{border-collapse:collapse}\
                 td,th{padding:2px 12px;text-align:right}td:first-child,th:first-child{text-align:left}\
                 pre{white-space:pre-wrap}svg text{font:11px sans-serif}";
    let scale = Scale { seconds: report.seconds.max(1.0) };
    let done: Vec<f64> = report.timeline.iter().map(|second| second.done as f64).collect();
    let p50: Vec<f64> = report.timeline.iter().map(|second| second.p50_ms).collect();
    let p99: Vec<f64> = report.timeline.iter().map(|second| second.p99_ms).collect();
    format!(
        "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><title>{title}</title><style>{style}</style>\
         <h1>{title}</h1><pre>{}</pre><h2>Operations done, per second</h2><p>Shaded: while a fault holds.</p>{}\
         <h2>Latency, ms (logarithmic)</h2><p>{} {}</p>{}<h2>Leaders, by shard</h2>{}<h2>Faults</h2>{}{}</html>\n",
        escape(&report.to_string()),
        lines(&scale, &report.events, &[(BLUE, &done)], (0.0, |value| value)),
        coloured(BLUE, "median"),
        coloured(RED, "p99"),
        lines(&scale, &report.events, &[(BLUE, &p50), (RED, &p99)], (0.1, f64::log10)),
        leaders(&scale, &report.leaderships),
        rows(&scale, &report.events, &report.faults),
        table(&report.events),
    )
}

struct Scale {
    seconds: f64,
}

impl Scale {
    fn x(&self, seconds: f64) -> f64 {
        LEFT + (WIDTH - LEFT) * seconds / self.seconds
    }
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

/// An entry of a legend.
fn coloured(colour: &str, text: &str) -> String {
    format!("<span style=\"color:{colour}\">&#9632;</span> {text}")
}

/// Far from the colours of the nodes with numbers near this one's.
fn colour(node: u64) -> String {
    format!("hsl({},65%,45%)", node * 137 % 360)
}

fn svg(height: f64, content: &str) -> String {
    format!("<svg width=\"{WIDTH}\" height=\"{height}\" viewBox=\"0 0 {WIDTH} {height}\">{content}</svg>")
}

fn bar(scale: &Scale, event: &Event, y: f64, height: f64, colour: &str) -> String {
    let (from, to) = (scale.x(event.from_ms as f64 / 1e3), scale.x(event.healed_ms as f64 / 1e3));
    let (width, title) = ((to - from).max(1.0), format!("{} of node {}", event.kind, event.node));
    format!(
        "<rect x=\"{from:.1}\" y=\"{y}\" width=\"{width:.1}\" height=\"{height}\" fill=\"{colour}\"><title>{title}, \
         {} ms without an answer</title></rect>",
        event.silence_ms
    )
}

/// Numbers by second, with the faults behind them: from a least one on, each as high as a function has it.
fn lines(
    scale: &Scale,
    events: &[Event],
    series: &[(&str, &[f64])],
    (least, height): (f64, fn(f64) -> f64),
) -> String {
    let top = series.iter().flat_map(|(_, values)| values.iter().copied()).fold(1.0, f64::max);
    let mut content: String = events.iter().map(|event| bar(scale, event, 0.0, HEIGHT, "#f0e0c0")).collect();
    for (colour, values) in series {
        let mut points = String::new();
        for (second, value) in values.iter().enumerate() {
            let part = (height(value.max(least)) - height(least)) / (height(top) - height(least));
            let y = HEIGHT - (HEIGHT - 12.0) * part;
            // Writing to a text does not fail.
            let _ = write!(points, "{:.1},{y:.1} ", scale.x(second as f64 + 0.5));
        }
        let _ = write!(content, "<polyline points=\"{points}\" fill=\"none\" stroke=\"{colour}\"/>");
    }
    let _ =
        write!(content, "<text x=\"0\" y=\"12\">{top:.0}</text><text x=\"0\" y=\"{HEIGHT}\">{least}</text>");
    for part in 0..=TICKS {
        let seconds = scale.seconds * f64::from(part) / f64::from(TICKS);
        let (x, y) = (scale.x(seconds), HEIGHT + ROW);
        let anchor = if part == TICKS { "end" } else { "start" };
        let _ =
            write!(content, "<text x=\"{x:.1}\" y=\"{y}\" text-anchor=\"{anchor}\">{seconds:.0} s</text>");
    }
    svg(HEIGHT + ROW + 4.0, &content)
}

fn leaders(scale: &Scale, seen: &[Leadership]) -> String {
    let mut shards: BTreeMap<u32, Vec<&Leadership>> = BTreeMap::new();
    seen.iter().for_each(|one| shards.entry(one.shard).or_default().push(one));
    let mut content = String::new();
    for (row, (shard, seen)) in shards.iter().enumerate() {
        let y = row as f64 * ROW;
        let _ = write!(content, "<text x=\"0\" y=\"{}\">shard {shard}</text>", y + 12.0);
        for one in seen {
            let colour = colour(one.node);
            let x = scale.x(one.at.as_secs_f64());
            let _ = write!(
                content,
                "<rect x=\"{x:.1}\" y=\"{y}\" width=\"3\" height=\"{}\" fill=\"{colour}\"><title>node {}</title></rect>",
                ROW - 3.0,
                one.node
            );
        }
    }
    let nodes: BTreeSet<u64> = seen.iter().map(|one| one.node).collect();
    let legend = nodes.into_iter().map(|node| coloured(&colour(node), &format!("node {node}")));
    let legend = legend.collect::<Vec<_>>().join(" ");
    format!("<p>{legend}</p>{}", svg(shards.len() as f64 * ROW + 2.0, &content))
}

/// The faults, one row for each kind.
fn rows(scale: &Scale, events: &[Event], kinds: &BTreeMap<Kind, KindReport>) -> String {
    let mut content = String::new();
    for (row, kind) in kinds.keys().enumerate() {
        let y = row as f64 * ROW;
        let _ = write!(content, "<text x=\"0\" y=\"{}\">{kind}</text>", y + 12.0);
        for event in events.iter().filter(|event| event.kind == *kind) {
            content += &bar(scale, event, y, ROW - 3.0, "#cc8833");
        }
    }
    svg(kinds.len() as f64 * ROW + 2.0, &content)
}

fn table(events: &[Event]) -> String {
    let mut table =
        "<table><tr><th>fault<th>with<th>node<th>at, s<th>undone after, ms<th>all ready after, ms\
                     <th>without an answer, ms<th>really happened</tr>"
            .to_owned();
    for Event { kind, node, with, happened, from_ms, healed_ms, ready_ms, silence_ms, .. } in events {
        let with = with.map_or_else(String::new, Kind::name);
        let happened = if *happened { "yes" } else { "no" };
        let at = *from_ms as f64 / 1e3;
        let (healed, ready) = (healed_ms - from_ms, ready_ms - from_ms);
        let _ = write!(
            table,
            "<tr><td>{kind}<td>{with}<td>{node}<td>{at:.1}<td>{healed}<td>{ready}<td>{silence_ms}<td>{happened}</tr>"
        );
    }
    table + "</table>"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_told_is_escaped() {
        assert_eq!(escape("a < b && c > d"), "a &lt; b &amp;&amp; c &gt; d");
    }
}
