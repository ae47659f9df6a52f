//! The Proxy Array Membership Table of the draft (draft-vinod-carp-v1-03, section 2): the text that tells
//! clients and proxies who the members of an array are.
//!
//! ```text
//! Proxy Array Information/1.0
//! ArrayEnabled: 1
//! ConfigID: 12345
//! ArrayName: My-Array
//! ListTTL: 3600
//!
//! proxy1.isp.net 10.2.3.4 3128 http://proxy.isp.net/carp.txt SmartCache-v1 21600 UP 1 2048
//! ```
//!
//! The example is Wessels's (*Web Caching*, O'Reilly 2001, appendix C). Reading is strict, but for white
//! space: lines may end in CR LF or LF. It leaves out how the text travels.

use std::fmt;
use std::net::IpAddr;
use std::num::ParseIntError;

use serde::{Deserialize, Serialize};

use super::v1::{Router, RouterError};

/// The first line: the only version there is.
const VERSION: &str = "Proxy Array Information/1.0";
/// How many fields a member's line has.
const FIELDS: usize = 9;

/// An array of proxies.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct MembershipTable {
    /// False if the sender speaks CARP but is in no array (`ArrayEnabled`).
    pub is_enabled: bool,
    /// Names this very table (`ConfigID`): equal ids mean equal tables, and no order is told by them.
    pub config_id: u32,
    /// The array's name (`ArrayName`).
    pub array_name: String,
    /// How long a copy may be used, in seconds (`ListTTL`). Sun's Web Proxy Server counted minutes.
    pub list_ttl_seconds: u32,
    /// The members.
    pub members: Vec<Proxy>,
}

/// A member of the array. No text in it has white space.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct Proxy {
    /// The name that is hashed.
    pub name: String,
    /// Its address.
    pub address: IpAddr,
    /// The port on which it takes requests.
    pub port: u16,
    /// Where it serves this table.
    pub table_url: String,
    /// Its maker and version.
    pub agent: String,
    /// How long it has been in this state, in seconds.
    pub state_seconds: u64,
    /// Whether it serves.
    pub status: Status,
    /// Its share of the load, relative to the other members'.
    pub load_factor: u32,
    /// How much it caches at most, in megabytes.
    pub cache_megabytes: u64,
}

/// Whether a member serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Status {
    /// It does.
    Up,
    /// It does not.
    Down,
}

impl Status {
    fn name(self) -> &'static str {
        match self {
            Status::Up => "UP",
            Status::Down => "DOWN",
        }
    }
}

/// Where a text is no membership table, and what should stand there.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TableError {
    /// The first line is not the version line.
    #[error("the first line must be {VERSION:?}: this is no membership table of CARP 1.0")]
    Version,
    /// A line of the head is missing, in another place, or of another form.
    #[error("the head must have a line \"{0}: …\" here, of the draft's form")]
    Head(&'static str),
    /// No empty line after the head.
    #[error("an empty line must follow the head")]
    NoBlankLine,
    /// A member's line has fields too few or too many.
    #[error("line {line}: a member has {FIELDS} fields, this one {found}")]
    Fields {
        /// The line, from 1.
        line: usize,
        /// How many there are.
        found: usize,
    },
    /// A member's field is not of its form.
    #[error("line {line}: {field} is not of the draft's form")]
    Field {
        /// The line, from 1.
        line: usize,
        /// Which field.
        field: &'static str,
    },
}

impl MembershipTable {
    /// Reads a table.
    pub fn parse(text: &str) -> Result<MembershipTable, TableError> {
        let mut lines = text.lines().map(str::trim_end).enumerate();
        let mut next = || lines.next().map(|(_, line)| line);
        if next() != Some(VERSION) {
            return Err(TableError::Version);
        }
        let is_enabled = match head(next(), "ArrayEnabled")? {
            "0" => false,
            "1" => true,
            _ => return Err(TableError::Head("ArrayEnabled")),
        };
        let config_id = number(head(next(), "ConfigID")?).map_err(|_| TableError::Head("ConfigID"))?;
        let array_name = head(next(), "ArrayName")?.to_owned();
        let list_ttl_seconds = number(head(next(), "ListTTL")?).map_err(|_| TableError::Head("ListTTL"))?;
        if next() != Some("") {
            return Err(TableError::NoBlankLine);
        }
        let members = lines.filter(|(_, line)| !line.is_empty());
        let members = members.map(|(at, line)| proxy(at + 1, line)).collect::<Result<_, _>>()?;
        Ok(MembershipTable { is_enabled, config_id, array_name, list_ttl_seconds, members })
    }

    /// The members as a router, those that are down too: a caller goes on to the next best.
    pub fn router(&self) -> Result<Router, RouterError> {
        let members = self.members.iter().map(|proxy| (proxy.name.as_str(), proxy.load_factor));
        Router::new(&members.collect::<Vec<_>>())
    }
}

/// Writes the text that [`MembershipTable::parse`] reads, with lines that end in CR LF.
impl fmt::Display for MembershipTable {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{VERSION}\r\nArrayEnabled: {}\r\n", u8::from(self.is_enabled))?;
        write!(out, "ConfigID: {}\r\nArrayName: {}\r\n", self.config_id, self.array_name)?;
        write!(out, "ListTTL: {}\r\n\r\n", self.list_ttl_seconds)?;
        for Proxy {
            name,
            address,
            port,
            table_url,
            agent,
            state_seconds,
            status,
            load_factor,
            cache_megabytes,
        } in &self.members
        {
            write!(out, "{name} {address} {port} {table_url} {agent} {state_seconds} ")?;
            write!(out, "{} {load_factor} {cache_megabytes}\r\n", status.name())?;
        }
        Ok(())
    }
}

fn head<'a>(line: Option<&'a str>, field: &'static str) -> Result<&'a str, TableError> {
    let value = line.and_then(|line| line.strip_prefix(field)).and_then(|rest| rest.strip_prefix(':'));
    value.map(str::trim).ok_or(TableError::Head(field))
}

fn proxy(line: usize, text: &str) -> Result<Proxy, TableError> {
    let fields: Vec<&str> = text.split_whitespace().collect();
    let &[name, address, port, table_url, agent, state_seconds, status, load_factor, cache_megabytes] =
        fields.as_slice()
    else {
        return Err(TableError::Fields { line, found: fields.len() });
    };
    let bad = |field| TableError::Field { line, field };
    Ok(Proxy {
        name: name.to_owned(),
        address: address.parse().map_err(|_| bad("the address"))?,
        port: number(port).map_err(|_| bad("the port"))?,
        table_url: table_url.to_owned(),
        agent: agent.to_owned(),
        state_seconds: number(state_seconds).map_err(|_| bad("the state time"))?,
        status: match status {
            "UP" => Status::Up,
            "DOWN" => Status::Down,
            _ => return Err(bad("the status")),
        },
        load_factor: number(load_factor).map_err(|_| bad("the load factor"))?,
        cache_megabytes: number(cache_megabytes).map_err(|_| bad("the cache size"))?,
    })
}

fn number<N: std::str::FromStr<Err = ParseIntError>>(text: &str) -> Result<N, ParseIntError> {
    text.parse()
}

#[cfg(test)]
mod tests {
    use super::*;

    const EXAMPLE: &str = "Proxy Array Information/1.0\r\n\
        ArrayEnabled: 1\r\n\
        ConfigID: 12345\r\n\
        ArrayName: My-Array\r\n\
        ListTTL: 3600\r\n\
        \r\n\
        proxy1.isp.net 10.2.3.4 3128 http://proxy.isp.net/carp.txt SmartCache-v1 21600 UP 1 2048\r\n\
        proxy2.isp.net 10.2.3.5 3128 http://proxy.isp.net/carp.txt SmartCache-v1 20127 DOWN 2 2048\r\n";

    #[test]
    fn a_table_is_read_and_written_as_the_same_text() {
        let table = MembershipTable::parse(EXAMPLE).unwrap();
        assert_eq!((table.config_id, table.list_ttl_seconds, table.is_enabled), (12345, 3600, true));
        assert_eq!(table.array_name, "My-Array");
        assert_eq!((table.members[1].status, table.members[1].load_factor), (Status::Down, 2));
        assert_eq!(table.to_string(), EXAMPLE);
        assert_eq!(MembershipTable::parse(&EXAMPLE.replace("\r\n", "\n")), Ok(table));
    }

    #[test]
    fn a_table_routes_to_its_members() {
        let table = MembershipTable::parse(EXAMPLE).unwrap();
        let ranked = table.router().unwrap();
        let ranked = ranked.ranked(b"http://www.squid-cache.org/");
        assert_eq!(ranked.len(), 2);
    }

    #[test]
    fn a_table_survives_json() {
        let table = MembershipTable::parse(EXAMPLE).unwrap();
        let json = serde_json::to_string(&table).unwrap();
        assert!(json.contains(r#""list_ttl_seconds":3600"#), "{json}");
        assert_eq!(serde_json::from_str::<MembershipTable>(&json).unwrap(), table);
    }

    #[test]
    fn what_is_no_table_is_refused_with_the_place() {
        let broken = |from: &str, to: &str| MembershipTable::parse(&EXAMPLE.replace(from, to)).unwrap_err();
        assert_eq!(broken("/1.0", "/1.1"), TableError::Version);
        assert_eq!(broken("ArrayEnabled: 1", "ArrayEnabled: 2"), TableError::Head("ArrayEnabled"));
        assert_eq!(broken("ConfigID: 12345", "ConfigID: -1"), TableError::Head("ConfigID"));
        assert_eq!(broken("ListTTL", "TTL"), TableError::Head("ListTTL"));
        assert_eq!(broken("\r\n\r\n", "\r\n"), TableError::NoBlankLine);
        assert_eq!(broken(" 2 2048", " 2"), TableError::Fields { line: 8, found: 8 });
        assert_eq!(broken(" DOWN ", " OFF "), TableError::Field { line: 8, field: "the status" });
        assert_eq!(broken("10.2.3.4", "10.2.3"), TableError::Field { line: 7, field: "the address" });
        assert_eq!(MembershipTable::parse(""), Err(TableError::Version));
    }
}
