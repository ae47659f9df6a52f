//! The figures as Markdown.

use std::fmt::Write;
use std::fs;
use std::path::Path;

use super::load::{Case, Figures, KEYS, VALUE_BYTES};
use super::systems::System;
use super::{Arguments, Fallible, Memory, Results, Series};

pub(super) fn write(folder: &Path, arguments: &Arguments, machine: &[String], results: &Results) -> Fallible {
    fs::create_dir_all(folder)?;
    let Arguments { seconds, rounds, memory_keys, .. } = arguments;
    let mut page = format!(
        "<!-- Made by: scripts/compare.sh --seconds {seconds} --rounds {rounds} --memory-keys {memory_keys} -->\n\n\
         # Comparison\n\n\
         All on one machine, one system at a time, each with the same load from `keevee bench`, which shares the machine's\n\
         cores. Medians of rounds ({rounds}) of {seconds} s; each round starts each system anew on empty folders. Values of \
         {VALUE_BYTES} bytes,\n{KEYS} keys of 16, requests to the leader. \"64 x 16\" is 64 connections with 16 requests under way \
         on each;\notherwise it is one.\n\n\
         Writes are synced before the answer: on a majority of three nodes with etcd, keevee and the ceiling (three\n\
         replicas without consensus, `crates/keevee-compare/src/ceiling.rs`), on its only node with Redis (`appendfsync always`).\n\
         Reads are linearizable with etcd and keevee; the ceiling's and Redis's ask nobody else.\n\n"
    );
    for fact in machine {
        let _ = writeln!(page, "- {fact}");
    }
    throughput(&mut page, results);
    ratios(&mut page, results);
    cpu(&mut page, results);
    memory(&mut page, *memory_keys, results);
    commands(&mut page, results);
    fs::write(folder.join("compare.md"), page)?;
    Ok(())
}

/// All cases of any series, writes first.
fn cases(results: &Results) -> Vec<Case> {
    let mut cases: Vec<Case> = results.figures.values().flat_map(|cases| cases.keys().copied()).collect();
    cases.sort_unstable();
    cases.dedup();
    cases
}

impl Series {
    pub(super) fn name(self) -> String {
        match (self.system, self.protocol) {
            (System::Paxos | System::Raft, protocol) => {
                let protocol = if protocol == "grpc" { "gRPC".to_owned() } else { protocol.to_uppercase() };
                format!("{}, {protocol}", self.system.name())
            }
            (system, _) => system.name().to_owned(),
        }
    }
}

/// A table with a column for each series, and a row for each case that one of them has.
fn table(page: &mut String, results: &Results, series: &[Series], show: impl Fn(&Figures) -> String) {
    let _ = write!(page, "\n| |");
    series.iter().for_each(|series| page.push_str(&format!(" {} |", series.name())));
    let _ = write!(page, "\n| --- |{}\n", " ---: |".repeat(series.len()));
    for case in cases(results) {
        let cells: Vec<String> = series
            .iter()
            .map(|series| results.median(*series, case).map_or(String::new(), |figures| show(&figures)))
            .collect();
        if cells.iter().any(|cell| !cell.is_empty()) {
            let _ = writeln!(page, "| {case} | {} |", cells.join(" | "));
        }
    }
}

fn throughput(page: &mut String, results: &Results) {
    page.push_str("\n## Operations per second, and p50 / p99 in milliseconds\n\n![Throughput](compare-throughput.svg)\n");
    page.push_str("\n![Latency](compare-latency.svg)\n");
    let show = |figures: &Figures| {
        let errors = if figures.errors > 0 { format!(", {} errors", figures.errors) } else { String::new() };
        format!("{:.0} ({:.2} / {:.2}{errors})", figures.per_second, figures.p50_ms, figures.p99_ms)
    };
    // In two, or they would be too wide to be read.
    for is_http in [false, true] {
        let of = |series: &Series| matches!(series.protocol, "http" | "grpc") == is_http;
        let series: Vec<Series> = results.figures.keys().copied().filter(of).collect();
        if !series.is_empty() {
            table(page, results, &series, show);
        }
    }
}

/// keevee's throughput over that of the others, and its p99 over etcd's.
fn ratios(page: &mut String, results: &Results) {
    page.push_str(
        "\n## keevee over the others\n\nThroughput in multiples of theirs, in the same run; the last column is the p99 latency.\n\n\
         | | over etcd | over Redis | over the ceiling | over the echo | p99 over etcd's |\n\
         | --- | ---: | ---: | ---: | ---: | ---: |\n",
    );
    let ours = |series: &&Series| matches!(series.system, System::Paxos | System::Raft);
    for series in results.figures.keys().filter(ours) {
        let echo = if series.protocol == "http" { System::EchoHttp } else { System::EchoResp };
        for case in cases(results) {
            let Some(own) = results.median(*series, case) else { continue };
            let of =
                |system: System, protocol: &'static str| results.median(Series { system, protocol }, case);
            let over = |other: Option<Figures>| {
                other.map_or(String::new(), |other| format!("{:.2}", own.per_second / other.per_second))
            };
            let resp = |system| if series.protocol == "resp" { of(system, "resp") } else { None };
            let etcd = of(System::Etcd, "etcd");
            let p99 = etcd.as_ref().map_or(String::new(), |etcd| format!("{:.2}", own.p99_ms / etcd.p99_ms));
            let _ = writeln!(
                page,
                "| {}: {case} | {} | {} | {} | {} | {p99} |",
                series.name(),
                over(etcd),
                over(resp(System::Redis)),
                over(resp(System::Ceiling)),
                over(of(echo, series.protocol)),
            );
        }
    }
}

fn cpu(page: &mut String, results: &Results) {
    page.push_str(
        "\n## CPU time of an operation\n\nMicroseconds, all replicas together, without the load generator. This carries over to \
         machines with a node each.\n\n![CPU per write](compare-cpu.svg)\n",
    );
    let series: Vec<Series> = results.figures.keys().copied().collect();
    table(page, results, &series, |figures| format!("{:.1}", figures.cpu_micros));
}

fn memory(page: &mut String, keys: u64, results: &Results) {
    let _ = write!(
        page,
        "\n## Resident memory\n\nMiB, all processes together.\n\n| | at rest | under load, at most | with {keys} keys |\n\
         | --- | ---: | ---: | ---: |\n"
    );
    for (system, Memory { at_rest, under_load, with_keys }) in &results.memory {
        let mib = |bytes: &u64| if *bytes == 0 { String::new() } else { (bytes >> 20).to_string() };
        let [at_rest, under_load, with_keys] = [at_rest, under_load, with_keys].map(mib);
        let _ = writeln!(page, "| {} | {at_rest} | {under_load} | {with_keys} |", system.name());
    }
}

fn commands(page: &mut String, results: &Results) {
    page.push_str("\n## Commands\n\n```sh\n");
    for (system, commands) in &results.commands {
        let _ = writeln!(page, "# {}\n{}", system.name(), commands.join("\n"));
    }
    let _ = writeln!(
        page,
        "# the last load; the others differ by protocol, place, reads, connections, pipeline\n{}\n```",
        results.load_command
    );
    for failure in &results.failures {
        let _ = writeln!(page, "\nFailed: {failure}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_are_held_against_the_others_of_the_same_case() {
        let case = Case { is_read: false, pipeline: 1, connections: 64 };
        let figures = |per_second: f64, p99_ms: f64| Figures {
            per_second,
            p50_ms: 1.0,
            p99_ms,
            cpu_micros: 7.0,
            quantiles_ms: Vec::new(),
            errors: 0,
        };
        let mut results = Results::default();
        for (system, protocol, rounds) in [
            (System::Etcd, "etcd", [100.0, 90.0, 5.0]),
            (System::Ceiling, "resp", [1000.0, 1000.0, 1000.0]),
            (System::Paxos, "resp", [400.0, 900.0, 450.0]),
        ] {
            let rounds = rounds.map(|rate| figures(rate, 1000.0 / rate)).to_vec();
            results.figures.insert(Series { system, protocol }, [(case, rounds)].into());
        }
        let mut page = String::new();
        ratios(&mut page, &results);
        let row = "| keevee, Paxos, RESP: write, 64 | 5.00 |  | 0.45 |  | 0.20 |";
        assert!(page.contains(row), "{page}");
    }
}
