//! Whatever requests come on a connection: each is answered or is a step, and what goes on to the store is within its
//! limits.
#![no_main]

use bytes::{Bytes, BytesMut};
use keevee_core::limits::Limits;
use keevee_resp::command::COMMANDS;
use keevee_resp::data;
use keevee_resp::session::{Peer, Queued, Session, Settings, Step};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|requests: Vec<(u8, Vec<Vec<u8>>)>| {
    let limits = Limits { operations_max: 16, ..Limits::default() };
    let settings = Settings { limits, config: vec![("save", String::new())] };
    let address = std::net::SocketAddr::from(([127, 0, 0, 1], 7001));
    let peer = Peer { id: 1, address, own: address, since: 0 };
    let mut session = Session::new(peer);
    for (command, arguments) in requests {
        // By number, so that names need not be guessed; the last of them are the input's own.
        let name = COMMANDS.get(usize::from(command)).map(|spec| Bytes::from_static(spec.name.as_bytes()));
        let request: Vec<Bytes> = name.into_iter().chain(arguments.into_iter().map(Bytes::from)).collect();
        if request.is_empty() {
            continue;
        }
        let (_, step) = session.take(request, || 1_700_000_000_000_000, &settings, &|_| None);
        match step {
            Step::Reply(reply) | Step::Close(reply) => {
                let mut out = BytesMut::new();
                reply.encode(session.version(), &mut out);
                assert!(out.ends_with(b"\r\n"));
            }
            Step::Data(data) => {
                let is_short = !data.spreads || data.operations.len() <= limits.operations_max;
                let checked = data::command(data.preconditions(), data.operations).validate(&limits);
                assert!(checked.is_ok() || !is_short, "{checked:?}");
            }
            Step::Batch(batch) => {
                let of = |queued: &Queued| match queued {
                    Queued::Data(data) => data.operations.clone(),
                    Queued::Reply(_) => Vec::new(),
                };
                let operations: Vec<_> = batch.queue.iter().flat_map(of).collect();
                let checked = data::command(Vec::new(), operations.clone()).validate(&limits);
                assert!(operations.is_empty() || checked.is_ok(), "{checked:?}");
            }
            Step::Watch(_) | Step::Keyspace(_) | Step::Server(_) | Step::CutOff => {}
        }
    }
});
