//! The figures as Markdown.

use std::fmt::Write;
use std::fs;
use std::path::Path;

use super::load::{Case, Figures, KEYS, TYPICAL_CONNECTIONS, VALUE_BYTES};
use super::sweep::Sweep;
use super::systems::System;
use super::{Arguments, Fallible, Memory, Results, Series};

pub(super) fn write(folder: &Path, arguments: &Arguments, machine: &[String], results: &Results) -> Fallible {
    fs::create_dir_all(folder)?;
    let Arguments { seconds, rounds, memory_keys, sweep_keys_max, .. } = arguments;
    let mut page = format!(
        "<!-- Made by: scripts/compare.sh --seconds {seconds} --rounds {rounds} --memory-keys {memory_keys} \
         --sweep-keys-max {sweep_keys_max} -->\n\n\
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
    sweeps(&mut page, *sweep_keys_max, results);
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
    // In two, or they would be too wide to be read.
    for is_http in [false, true] {
        let of = |series: &Series| matches!(series.protocol, "http" | "grpc") == is_http;
        let series: Vec<Series> = results.figures.keys().copied().filter(of).collect();
        if !series.is_empty() {
            table(page, results, &series, rate_and_latency);
        }
    }
}

fn rate_and_latency(figures: &Figures) -> String {
    let errors = if figures.errors > 0 { format!(", {} errors", figures.errors) } else { String::new() };
    format!("{:.0} ({:.2} / {:.2}{errors})", figures.per_second, figures.p50_ms, figures.p99_ms)
}

/// keevee's throughput over that of the others, and its p99 over etcd's.
fn ratios(page: &mut String, results: &Results) {
    page.push_str(
        "\n## keevee over the others\n\nThroughput in multiples of theirs, in the same run; the last column is the p99 latency.\n\n\
         | | over etcd | over Redis | over the ceiling | over the echo | p99 over etcd's |\n\
         | --- | ---: | ---: | ---: | ---: | ---: |\n",
    );
    for series in results.figures.keys().filter(|series| series.system.is_keevee()) {
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

/// A table for each sweep, with a column for writes and one for reads of each engine.
fn sweeps(page: &mut String, keys_max: u64, results: &Results) {
    let mut systems: Vec<System> = results.sweeps.keys().map(|(_, system, _)| *system).collect();
    systems.sort_unstable();
    systems.dedup();
    if systems.is_empty() {
        return;
    }
    let columns: Vec<(System, bool)> =
        systems.into_iter().flat_map(|system| [(system, false), (system, true)]).collect();
    let _ = writeln!(
        page,
        "\n## No cliff\n\nkeevee over the Redis protocol: operations per second, and p50 / p99 in milliseconds. What a table does not vary is\n\
         {VALUE_BYTES} bytes, {KEYS} keys and {TYPICAL_CONNECTIONS} connections, to the leader if nothing else is said; each has \
         clusters of its own. Of one round:\nsingle figures vary more than those above.\n\n\
         ![Sweeps](compare-sweep.svg)"
    );
    for sweep in Sweep::ALL {
        let _ = write!(page, "\n| by {} |", sweep.name());
        for (system, is_read) in &columns {
            let _ = write!(page, " {}, {} |", system.name(), if *is_read { "reads" } else { "writes" });
        }
        let _ = write!(page, "\n| --- |{}\n", " ---: |".repeat(columns.len()));
        for row in sweep.rows(keys_max) {
            let cell = |(system, is_read): &(System, bool)| {
                let figures = results.sweeps.get(&(sweep, *system, Case { is_read: *is_read, ..row }));
                figures.map_or(String::new(), |figures| show(sweep, row, figures))
            };
            let cells: Vec<String> = columns.iter().map(cell).collect();
            let _ = writeln!(page, "| {} | {} |", sweep.row_name(row), cells.join(" | "));
        }
    }
}

fn show(sweep: Sweep, case: Case, figures: &Figures) -> String {
    let shown = rate_and_latency(figures);
    if sweep != Sweep::Values {
        return shown;
    }
    let mib_per_second = figures.per_second * f64::from(case.value_bytes) / f64::from(1 << 20);
    format!("{shown}, {mib_per_second:.1} MiB/s")
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
        "# the last load; the others differ by protocol, place, reads, connections, pipeline, keys, value size\n{}\n```",
        results.load_command
    );
    for failure in &results.failures {
        let _ = writeln!(page, "\nFailed: {failure}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figures(per_second: f64, p99_ms: f64) -> Figures {
        let (p50_ms, cpu_micros, quantiles_ms, errors) = (1.0, 7.0, Vec::new(), 0);
        Figures { per_second, p50_ms, p99_ms, cpu_micros, quantiles_ms, errors }
    }

    #[test]
    fn medians_are_held_against_the_others_of_the_same_case() {
        let case = Case::typical(false, 64);
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

    #[test]
    fn a_row_of_a_sweep_has_writes_and_reads_beside_each_other() {
        let mut results = Results::default();
        let mut page = String::new();
        sweeps(&mut page, KEYS, &results);
        assert_eq!(page, "");
        let write = Sweep::Values.rows(KEYS)[2];
        let read = Case { is_read: true, ..write };
        results.sweeps.insert((Sweep::Values, System::Raft, write), figures(2048.0, 3.0));
        results.sweeps.insert((Sweep::Values, System::Raft, read), figures(10240.0, 2.0));
        sweeps(&mut page, KEYS, &results);
        let row = "| 1024 | 2048 (1.00 / 3.00), 2.0 MiB/s | 10240 (1.00 / 2.00), 10.0 MiB/s |";
        assert!(page.contains(row), "{page}");
    }
}
