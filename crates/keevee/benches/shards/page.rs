//! The figures as Markdown and as a plot.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use plotters::prelude::*;

use super::measure::{KINDS, Kind, WAYS, Way};
use super::{Fallible, Row};

/// One page of results: a table in Markdown, and a plot of it.
pub(crate) struct Page {
    /// The name of both files.
    name: String,
    command: String,
    subject: String,
    rows: Vec<Row>,
}

impl Page {
    /// `environment` stands before the command.
    pub(crate) fn new(environment: &str, engine: &str, subject: &str, rows: Vec<Row>) -> Page {
        let command = format!("{environment}cargo bench -p keevee --bench shards -- --write docs/benchmarks");
        let (name, command) = match engine {
            "paxos" => ("shards".to_owned(), command),
            other => (format!("shards-{other}"), format!("{command} --engine {other}")),
        };
        Page { name, command, subject: subject.to_owned(), rows }
    }

    pub(crate) fn markdown(&self) -> String {
        let Page { name, command, subject, .. } = self;
        let head = format!("<!-- Made by: {command} -->\n\n# Shards\n\n![Shards]({name}.svg)\n\n{subject}");
        head + &tables(&self.rows)
    }

    pub(crate) fn write(&self, folder: &Path) -> Fallible {
        fs::create_dir_all(folder)?;
        fs::write(folder.join(format!("{}.md", self.name)), self.markdown())?;
        let path = folder.join(format!("{}.svg", self.name));
        plot(&path, &self.rows)?;
        // Not as a comment: those of XML may not hold the two hyphens of an option.
        let svg = fs::read_to_string(&path)?;
        let made_by = format!(">\n<desc>Made by: {}</desc>", self.command);
        fs::write(&path, svg.replacen('>', &made_by, 1) + "\n")?;
        Ok(())
    }
}

fn tables(rows: &[Row]) -> String {
    let mut out = String::from(
        "; 256 requests under way, values of 128 bytes, 10,000 keys, linearizable\n\
         reads. Over 256 HTTP connections to all nodes, which forward what they do not lead; in parentheses: relative to\n\
         the first row.\n\n",
    );
    out.push_str("| shards | writes/s | p99 ms | reads/s | p99 ms |\n| --- | --- | --- | --- | --- |\n");
    for row in rows {
        let _ = write!(out, "| {} |", row.shards);
        for kind in KINDS {
            let (figure, first) = (row.figures[&(Way::Connections, kind)], &rows[0].figures);
            let ratio = figure.per_second / first[&(Way::Connections, kind)].per_second;
            let _ = write!(out, " {:.0} ({ratio:.2}) | {:.1} |", figure.per_second, figure.p99_ms);
        }
        out.push('\n');
    }
    out.push_str(
        "\nBy the Rust client, with one stream to each node: straight to the leaders, and through a client for each node\n\
         that lets it forward (of three nodes, two of three requests take a hop more).\n\n\
         | shards | writes/s direct | forwarded | ratio | reads/s direct | forwarded | ratio |\n\
         | --- | --- | --- | --- | --- | --- | --- |\n",
    );
    for row in rows {
        let _ = write!(out, "| {} |", row.shards);
        for kind in KINDS {
            let (direct, forwarded) = (
                row.figures[&(Way::Direct, kind)].per_second,
                row.figures[&(Way::Forwarded, kind)].per_second,
            );
            let _ = write!(out, " {direct:.0} | {forwarded:.0} | {:.2} |", direct / forwarded);
        }
        out.push('\n');
    }
    out
}

fn name(way: Way, kind: Kind) -> &'static str {
    match (way, kind) {
        (Way::Connections, Kind::Put) => "writes, HTTP",
        (Way::Connections, Kind::Get) => "reads, HTTP",
        (Way::Direct, Kind::Put) => "writes, direct",
        (Way::Direct, Kind::Get) => "reads, direct",
        (Way::Forwarded, Kind::Put) => "writes, forwarded",
        (Way::Forwarded, Kind::Get) => "reads, forwarded",
    }
}

/// By number of shards, on a logarithmic axis.
fn plot(path: &Path, rows: &[Row]) -> Fallible {
    let root = SVGBackend::new(path, (800, 480)).into_drawing_area();
    root.fill(&WHITE)?;
    let figures = rows.iter().flat_map(|row| row.figures.values());
    let top = figures.map(|figure| figure.per_second).fold(1.0, f64::max) * 1.5;
    let most = rows.iter().map(|row| row.shards).max().unwrap_or(1) as f64;
    let mut chart = ChartBuilder::on(&root)
        .caption("Operations per second, 256 under way", ("sans-serif", 17))
        .margin(12)
        .x_label_area_size(40)
        .y_label_area_size(70)
        .build_cartesian_2d((0.9..most * 1.2).log_scale(), 0.0..top)?;
    chart.configure_mesh().x_desc("shards").draw()?;
    let series = WAYS.into_iter().flat_map(|way| KINDS.map(|kind| (way, kind)));
    for (number, which) in series.enumerate() {
        let style = Palette99::pick(number).stroke_width(2);
        let points: Vec<(f64, f64)> =
            rows.iter().map(|row| (row.shards as f64, row.figures[&which].per_second)).collect();
        chart
            .draw_series([PathElement::new(points, style)])?
            .label(name(which.0, which.1))
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 20, y)], style));
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperRight)
        .background_style(WHITE.mix(0.8))
        .draw()?;
    root.present()?;
    Ok(())
}
