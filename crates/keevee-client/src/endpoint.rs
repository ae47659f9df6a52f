//! Where a node listens.

use std::fmt;
use std::str::FromStr;

/// A node's public address: `http://host:port`, or `host:port` for short.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Endpoint {
    authority: String,
}

impl Endpoint {
    /// `host:port`, as a socket address and as the `Host` header.
    pub fn authority(&self) -> &str {
        &self.authority
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "http://{}", self.authority)
    }
}

/// Why a text is no [`Endpoint`], or a list of them is of no use.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EndpointError {
    /// The text asks for TLS.
    #[error("{0}: TLS is not supported; write http://host:port")]
    Tls(String),
    /// The text has another shape.
    #[error("{0}: not an endpoint; write http://host:port, such as http://127.0.0.1:8001")]
    Malformed(String),
    /// There is no endpoint at all.
    #[error("no endpoint given; name at least one node, such as http://127.0.0.1:8001")]
    Empty,
}

impl FromStr for Endpoint {
    type Err = EndpointError;

    fn from_str(text: &str) -> Result<Endpoint, EndpointError> {
        if text.starts_with("https://") {
            return Err(EndpointError::Tls(text.to_owned()));
        }
        let rest = text.strip_prefix("http://").unwrap_or(text);
        let authority = rest.strip_suffix('/').unwrap_or(rest);
        let malformed = || EndpointError::Malformed(text.to_owned());
        let parsed: http::uri::Authority = authority.parse().map_err(|_| malformed())?;
        let has_user = authority.contains('@');
        if parsed.host().is_empty() || parsed.port_u16().is_none() || has_user {
            return Err(malformed());
        }
        Ok(Endpoint { authority: authority.to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_are_read_in_both_forms() {
        for text in ["http://127.0.0.1:8001", "127.0.0.1:8001", "http://127.0.0.1:8001/"] {
            let endpoint: Endpoint = text.parse().expect(text);
            assert_eq!(endpoint.authority(), "127.0.0.1:8001");
            assert_eq!(endpoint.to_string(), "http://127.0.0.1:8001");
        }
        let v6: Endpoint = "[::1]:8001".parse().expect("IPv6");
        assert_eq!(v6.authority(), "[::1]:8001");
    }

    #[test]
    fn what_is_no_endpoint_is_refused() {
        assert!(matches!("https://a:1".parse::<Endpoint>(), Err(EndpointError::Tls(_))));
        for text in ["", "localhost", "http://", "a:b", ":80", "a:1/path", "u@a:1", "http:// a:1"] {
            assert!(
                matches!(text.parse::<Endpoint>(), Err(EndpointError::Malformed(_))),
                "{text:?} was taken"
            );
        }
    }
}
