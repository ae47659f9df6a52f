//! How fast the checker is. Nothing is asserted of time: run it alone, with `--ignored --nocapture`.

use std::time::Instant;

use keevee_verify::checker::{self, key::Key};
use keevee_verify::random::Random;

use crate::recording::{Style, record};

#[test]
#[ignore = "prints numbers that are only worth reading on an idle machine"]
fn operations_per_second() {
    for clients in [12, 16] {
        for operations in [10_000, 100_000] {
            let style = Style { clients, operations, ..Style::TWELVE_CLIENTS };
            measure(style);
            measure(Style { has_few_values: true, ..style });
            measure(Style { unheard_percent: 1, ..style });
        }
    }
}

/// The fastest of a few times.
fn measure(style: Style) {
    let history = record(style, &mut Random::new(1, 4));
    let checks = (0..3).map(|_| {
        let begin = Instant::now();
        let checked = checker::check(&Key, &history, u64::MAX).expect("it was recorded");
        (begin.elapsed(), checked.steps)
    });
    let (took, steps) = checks.min().expect("there are some");
    let count = style.operations as f64;
    println!(
        "{} clients, {} operations, {} values, {}% unheard: {:.0} operations/s, {:.2} steps per operation",
        style.clients,
        style.operations,
        if style.has_few_values { "few" } else { "many" },
        style.unheard_percent,
        count / took.as_secs_f64(),
        steps as f64 / count
    );
}
