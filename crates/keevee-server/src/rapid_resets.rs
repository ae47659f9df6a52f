//! For tests: a client of HTTP/2 that takes its requests back before anybody looks at them (CVE-2023-44487).

use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Sends very many of them: the error codes of the farewells (GOAWAY) that come until the connection ends.
pub(crate) async fn farewells(address: SocketAddr) -> Vec<u32> {
    let mut stream = TcpStream::connect(address).await.unwrap();
    // The preface, and no settings.
    let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0".to_vec();
    for number in 0..200_u32 {
        let id = (2 * number + 1).to_be_bytes();
        // GET / over http, all of it from HPACK's static table; then RST_STREAM with CANCEL.
        bytes.extend([&[0, 0, 3, 1, 5], &id[..], &[0x82, 0x84, 0x86]].concat());
        bytes.extend([&[0, 0, 4, 3, 0], &id[..], &[0, 0, 0, 8]].concat());
    }
    stream.write_all(&bytes).await.unwrap();
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer).await;
    let (mut rest, mut farewells) = (&answer[..], Vec::new());
    while let Some((head, payload)) = rest.split_at_checked(9) {
        let length = usize::from(head[0]) << 16 | usize::from(head[1]) << 8 | usize::from(head[2]);
        let (payload, next) = payload.split_at(length);
        if head[3] == 7 {
            farewells.push(u32::from_be_bytes(payload[4..8].try_into().unwrap()));
        }
        rest = next;
    }
    farewells
}
