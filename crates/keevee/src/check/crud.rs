//! Create, read, update, delete: through every node, seen by every other.

use std::fmt::Debug;

use keevee_client::{Client, Consistency, ErrorKind, Expect, Write};

use crate::check::{ClusterArguments, prefix};
use crate::failure::Failure;

pub(crate) async fn run(arguments: ClusterArguments) -> Result<(), Failure> {
    let subject = arguments.subject().await?;
    let clients = subject.clients()?;
    let endpoints = subject.endpoints();
    for (number, client) in clients.iter().enumerate() {
        let other = &clients[(number + 1) % clients.len()];
        let key = format!("{}{number}", prefix("crud"));
        one_key(client, other, key.as_bytes()).await?;
        conditions(client, other, format!("{key}-conditions").as_bytes()).await?;
        odd_keys_and_values(client, other, &key).await?;
        println!("ok  {}: create, read, update, delete, conditions, binary keys", endpoints[number]);
    }
    Ok(())
}

/// Fails with what was found and what should be.
fn expect<T: PartialEq + Debug>(what: &str, found: T, wanted: T) -> Result<(), Failure> {
    if found == wanted {
        return Ok(());
    }
    Err(Failure::other(format!("mismatch: {what}: found {found:?}, wanted {wanted:?}")))
}

async fn read(client: &Client, key: &[u8]) -> Result<Option<Vec<u8>>, Failure> {
    let value = client.get(key, Consistency::Linearizable).await?;
    Ok(value.map(|value| value.bytes.to_vec()))
}

async fn one_key(client: &Client, other: &Client, key: &[u8]) -> Result<(), Failure> {
    expect("a key never written", read(client, key).await?, None)?;
    let created = client.put(key, "first", Write::default()).await?;
    for reader in [client, other] {
        expect("a key just created", read(reader, key).await?, Some(b"first".to_vec()))?;
    }
    let updated = client.put(key, "second", Write::default()).await?;
    expect("the version grows with a write", updated > created, true)?;
    let value = other.get(key, Consistency::Linearizable).await?;
    let found = value.map(|value| (value.version, value.bytes.to_vec()));
    expect("a key just updated", found, Some((updated, b"second".to_vec())))?;
    expect("a delete of what is there", client.delete(key, Write::default()).await?, true)?;
    for reader in [client, other] {
        expect("a key just deleted", read(reader, key).await?, None)?;
    }
    expect("a delete of what is gone", client.delete(key, Write::default()).await?, false)
}

async fn conditions(client: &Client, other: &Client, key: &[u8]) -> Result<(), Failure> {
    let kind = |result: Result<u64, keevee_client::Error>| result.map_err(|error| error.kind);
    let conflict = Err(ErrorKind::Conflict);
    let only_if = Write::only_if;
    let put = kind(client.put(key, "x", only_if(Expect::Present)).await);
    expect("a put only if present, of an absent key", put, conflict)?;
    let version = client.put(key, "x", only_if(Expect::Absent)).await?;
    let put = kind(other.put(key, "y", only_if(Expect::Absent)).await);
    expect("a put only if absent, of a present key", put, conflict)?;
    let newer = other.put(key, "y", only_if(Expect::Version(version))).await?;
    let put = kind(client.put(key, "z", only_if(Expect::Version(version))).await);
    expect("a put only if of an old version", put, conflict)?;
    expect("what conflicts left behind", read(client, key).await?, Some(b"y".to_vec()))?;
    let deleted = client.delete(key, only_if(Expect::Version(newer))).await?;
    expect("a delete only if of the right version", deleted, true)?;
    // The same request sent again through another node: the answer of the first time, and no second effect.
    let write = || Write { condition: None, request_id: Some(uuid::Uuid::now_v7().to_string()) };
    let write = write();
    let first = client.put(key, "once", write.clone()).await?;
    client.put(key, "between", Write::default()).await?;
    expect("a retry's answer", other.put(key, "once", write).await?, first)?;
    expect("a retry's effect", read(client, key).await?, Some(b"between".to_vec()))?;
    client.delete(key, Write::default()).await?;
    Ok(())
}

async fn odd_keys_and_values(client: &Client, other: &Client, key: &str) -> Result<(), Failure> {
    let every_byte: Vec<u8> = (0..=255).collect();
    let long_key = vec![b'k'; 4_096 - key.len()];
    let suffixes: [&[u8]; 5] = [b"/a/b", b" %2F+?#", &every_byte, "grün".as_bytes(), &long_key];
    let values = [Vec::new(), every_byte.clone(), vec![7; 1024 * 1024]];
    for (number, suffix) in suffixes.iter().enumerate() {
        let key = [key.as_bytes(), suffix].concat();
        let value = &values[number % values.len()];
        client.put(&key, value.clone(), Write::default()).await?;
        let found = read(other, &key).await?;
        if found.as_ref() != Some(value) {
            let text = String::from_utf8_lossy(&key).into_owned();
            return Err(Failure::other(format!("mismatch: the value of {text:?} came back otherwise")));
        }
        client.delete(&key, Write::default()).await?;
    }
    let too_long = vec![b'k'; 4_097];
    for key in [&b""[..], &too_long] {
        let put = client.put(key, "x", Write::default()).await.map_err(|error| error.kind);
        let refused = matches!(put, Err(ErrorKind::Invalid | ErrorKind::TooLarge));
        expect("a key of no or too many bytes is refused", refused, true)?;
    }
    Ok(())
}
