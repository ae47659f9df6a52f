//! The search against that of another checker: random histories of a plain register.

use keevee_verify::checker::{self, Model, Operation, Violation};
use keevee_verify::random::Random;
use porcupine_rs::{Model as PorcupineModel, Operation as PorcupineOperation, check_operations};

const HISTORIES: u64 = 40_000;

#[test]
fn another_checker_comes_to_the_same_verdict() {
    let mut linearizable = 0;
    for seed in 0..HISTORIES {
        let history = random_history(&mut Random::new(seed, 3));
        let verdict = match checker::check(&Register, &history, u64::MAX) {
            Ok(_) => true,
            Err(Violation::NotLinearizable(_)) => false,
            Err(Violation::GaveUp(_)) => unreachable!("it may take all the steps there are"),
        };
        let theirs: Vec<_> = history.iter().map(as_theirs).collect();
        assert_eq!(verdict, check_operations(&theirs), "seed {seed}: {history:#?}");
        linearizable += u64::from(verdict);
    }
    println!("{linearizable} of {HISTORIES} histories are linearizable");
    assert!((HISTORIES / 10..=HISTORIES * 9 / 10).contains(&linearizable), "{linearizable}");
}

/// One number, 0 at first.
#[derive(Clone, Debug)]
struct Register;

#[derive(Clone, Copy, Debug)]
enum Request {
    Write(u64),
    Read,
}

/// What a read was told.
type Told = Option<u64>;

impl Model for Register {
    type State = u64;
    type Input = Request;
    type Output = Told;

    fn initial(&self) -> u64 {
        0
    }

    fn step(&self, state: &u64, request: &Request, output: Option<&Told>) -> Option<u64> {
        match request {
            Request::Write(value) => Some(*value),
            Request::Read => (output == Some(&Some(*state))).then_some(*state),
        }
    }

    fn is_neutral(&self, request: &Request, _: Option<&Told>) -> bool {
        matches!(request, Request::Read)
    }
}

impl PorcupineModel for Register {
    type State = u64;
    type Op = (Request, Told);
    type Metadata = ();

    fn init() -> u64 {
        0
    }

    fn step(state: &u64, (request, told): &(Request, Told)) -> (bool, u64) {
        match request {
            Request::Write(value) => (true, *value),
            Request::Read => (*told == Some(*state), *state),
        }
    }
}

/// Each of a few clients asks one thing after another. What a read is told is a guess: there are few values, so
/// that it is often right.
fn random_history(random: &mut Random) -> Vec<Operation<Request, Told>> {
    let mut history = Vec::new();
    let value_max = random.between(1, 4);
    for _ in 0..random.between(3, 4) {
        let mut now = random.below(6);
        for _ in 0..random.between(1, 3) {
            let (called, returned) = (now, now + random.below(8));
            now = returned + random.below(4);
            let value = random.between(0, value_max);
            let (input, output) =
                if random.percent(50) { (Request::Write(value), None) } else { (Request::Read, Some(value)) };
            history.push(Operation { input, output: Some(output), called, returned: Some(returned) });
        }
    }
    history
}

fn as_theirs(operation: &Operation<Request, Told>) -> PorcupineOperation<Register> {
    PorcupineOperation {
        client_id: None,
        call_time: operation.called as i64,
        return_time: operation.returned.expect("all return") as i64,
        op: (operation.input, operation.output.flatten()),
        metadata: None,
    }
}
