//! What came of a load.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt;
use std::rc::Rc;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use serde::Serialize;

use crate::load::workload::Kind;

/// Counts and times while the load runs, of one thread or of all.
#[derive(Debug)]
pub(crate) struct Tally {
    gets: Histogram<u64>,
    puts: Histogram<u64>,
    deletes: Histogram<u64>,
    errors: BTreeMap<String, u64>,
    end: Option<Instant>,
}

impl Default for Tally {
    fn default() -> Tally {
        // Microseconds, to three digits; it grows with what it sees.
        let histogram = || Histogram::new(3).expect("three digits are allowed");
        let (gets, puts, deletes) = (histogram(), histogram(), histogram());
        Tally { gets, puts, deletes, errors: BTreeMap::new(), end: None }
    }
}

impl Tally {
    pub(crate) fn shared() -> SharedTally {
        SharedTally(Rc::new(RefCell::new(Tally::default())))
    }

    pub(crate) fn failed(error: &str) -> Tally {
        let mut tally = Tally::default();
        tally.errors.insert(error.to_owned(), 1);
        tally
    }

    pub(crate) fn add(&mut self, other: &Tally) {
        // Histograms that grow by themselves take any other.
        let _ = self.gets.add(&other.gets);
        let _ = self.puts.add(&other.puts);
        let _ = self.deletes.add(&other.deletes);
        for (kind, count) in &other.errors {
            *self.errors.entry(kind.clone()).or_default() += count;
        }
        self.end = self.end.max(other.end);
    }
}

/// The tally of one thread, in the hands of all its connections.
#[derive(Clone, Debug)]
pub(crate) struct SharedTally(Rc<RefCell<Tally>>);

impl SharedTally {
    pub(crate) fn record(&self, kind: Kind, took: Duration, end: Instant) {
        let mut tally = self.0.borrow_mut();
        let histogram = match kind {
            Kind::Get => &mut tally.gets,
            Kind::Put => &mut tally.puts,
            Kind::Delete => &mut tally.deletes,
        };
        // It grows to hold the value; what took longer than a u64 of microseconds can't be here.
        let _ = histogram.record(took.as_micros() as u64);
        tally.end = Some(end);
    }

    pub(crate) fn error(&self, kind: &str) {
        let mut tally = self.0.borrow_mut();
        match tally.errors.get_mut(kind) {
            Some(count) => *count += 1,
            None => {
                tally.errors.insert(kind.to_owned(), 1);
            }
        }
    }

    pub(crate) fn take(&self) -> Tally {
        self.0.take()
    }
}

/// The figures.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    /// How long the measured part took.
    pub(crate) seconds: f64,
    /// How many operations succeeded in it.
    pub(crate) operations: u64,
    /// How many that is each second.
    pub(crate) operations_per_second: f64,
    /// Of gets; `None` if there were none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) get: Option<Latencies>,
    /// Of puts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) put: Option<Latencies>,
    /// Of deletes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) delete: Option<Latencies>,
    /// What failed, by kind.
    pub(crate) errors: BTreeMap<String, u64>,
    /// Of an open loop.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) rate: Option<Rate>,
}

/// What was asked of an open loop, and how far it fell behind.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct Rate {
    /// How many operations were due each second.
    pub(crate) per_second: f64,
    /// How many were due and unsent when it was over. They have no latency, so they are in no other figure.
    pub(crate) unsent: u64,
}

/// Which quantiles a document has, beside those with a name: enough for the shape of the distribution.
const QUANTILES: [f64; 12] = [0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 0.995, 0.999, 0.9999, 1.0];

/// How many operations of one kind, and how long they took, in milliseconds.
#[derive(Debug, Serialize)]
pub(crate) struct Latencies {
    /// How many.
    pub(crate) count: u64,
    pub(crate) mean_ms: f64,
    pub(crate) p50_ms: f64,
    pub(crate) p90_ms: f64,
    pub(crate) p99_ms: f64,
    pub(crate) p999_ms: f64,
    pub(crate) max_ms: f64,
    /// Pairs of a quantile and its latency.
    pub(crate) quantiles_ms: Vec<(f64, f64)>,
}

impl Latencies {
    fn new(histogram: &Histogram<u64>) -> Option<Latencies> {
        let at = |quantile| histogram.value_at_quantile(quantile) as f64 / 1000.0;
        (!histogram.is_empty()).then(|| Latencies {
            count: histogram.len(),
            mean_ms: (histogram.mean().round()) / 1000.0,
            p50_ms: at(0.5),
            p90_ms: at(0.9),
            p99_ms: at(0.99),
            p999_ms: at(0.999),
            max_ms: histogram.max() as f64 / 1000.0,
            quantiles_ms: QUANTILES.map(|quantile| (quantile, at(quantile))).to_vec(),
        })
    }
}

impl Report {
    pub(crate) fn new(tally: Tally, begin: Instant, rate: Option<Rate>) -> Report {
        let took = tally.end.map_or(Duration::ZERO, |end| end.saturating_duration_since(begin));
        let operations = tally.gets.len() + tally.puts.len() + tally.deletes.len();
        let seconds = took.as_secs_f64();
        let per_second = if seconds > 0.0 { operations as f64 / seconds } else { 0.0 };
        Report {
            seconds: (seconds * 1000.0).round() / 1000.0,
            operations,
            operations_per_second: per_second.round(),
            get: Latencies::new(&tally.gets),
            put: Latencies::new(&tally.puts),
            delete: Latencies::new(&tally.deletes),
            errors: tally.errors,
            rate,
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            formatter,
            "{} operations in {:.1} s: {:.0} each second",
            self.operations, self.seconds, self.operations_per_second
        )?;
        writeln!(formatter, "{}", Latencies::HEAD)?;
        for (name, latencies) in [("get", &self.get), ("put", &self.put), ("delete", &self.delete)] {
            if let Some(latencies) = latencies {
                writeln!(formatter, "{name:<10}{latencies}")?;
            }
        }
        if let Some(Rate { per_second, unsent }) = self.rate {
            write!(formatter, "{per_second} were due each second; latencies count from then")?;
            let behind = if unsent > 0 { format!("; {unsent} were never sent") } else { String::new() };
            writeln!(formatter, "{behind}")?;
        }
        for (kind, count) in &self.errors {
            writeln!(formatter, "errors: {count} {kind}")?;
        }
        Ok(())
    }
}

impl Latencies {
    /// The head of the columns that [`Latencies`] prints, after ten for a name.
    pub(crate) const HEAD: &str =
        "             count   mean ms    p50 ms    p90 ms    p99 ms  p99.9 ms    max ms";
}

impl fmt::Display for Latencies {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Latencies { count, mean_ms, p50_ms, p90_ms, p99_ms, p999_ms, max_ms, .. } = self;
        write!(
            formatter,
            "{count:>8}{mean_ms:>10.2}{p50_ms:>10.2}{p90_ms:>10.2}{p99_ms:>10.2}{p999_ms:>10.2}{max_ms:>10.2}"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_of_all_threads() {
        let begin = Instant::now();
        let mut all = Tally::default();
        for thread in 0..2 {
            let tally = Tally::shared();
            for number in 1..=50 {
                let took = Duration::from_millis(thread * 50 + number);
                tally.record(Kind::Put, took, begin + Duration::from_secs(2));
            }
            tally.error("unavailable");
            all.add(&tally.take());
        }
        let report = Report::new(all, begin, None);
        assert_eq!((report.operations, report.operations_per_second), (100, 50.0));
        assert_eq!(report.errors["unavailable"], 2);
        let put = report.put.expect("there were puts");
        assert!((put.p50_ms - 50.0).abs() < 0.1 && (put.max_ms - 100.0).abs() < 0.1, "{put:?}");
        assert!(report.get.is_none());
    }
}
