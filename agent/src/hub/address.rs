//! Where the hub is: `https://host[:port]`, and nothing more.

use std::fmt;

use http::{Uri, uri::Scheme};
use rustls_pki_types::ServerName;

/// A checked address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address {
    pub(super) host: String,
    pub(super) port: u16,
}

/// Why a text is no address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not {wanted}")]
pub struct NotAnAddress {
    text: String,
    wanted: &'static str,
}

impl Address {
    /// Reads the address of a hub.
    ///
    /// # Errors
    /// When it is not `https://HOST[:PORT]`.
    pub fn hub(text: &str) -> Result<Self, NotAnAddress> {
        Self::read(text, &Scheme::HTTPS, 443)
            .filter(|a| a.server_name().is_some())
            .ok_or_else(|| NotAnAddress { text: text.to_owned(), wanted: "https://HOST[:PORT]" })
    }

    /// Reads the address of a proxy.
    ///
    /// # Errors
    /// When it is not `http://HOST[:PORT]`.
    pub fn proxy(text: &str) -> Result<Self, NotAnAddress> {
        Self::read(text, &Scheme::HTTP, 3128)
            .ok_or_else(|| NotAnAddress { text: text.to_owned(), wanted: "http://HOST[:PORT]" })
    }

    fn read(text: &str, scheme: &Scheme, default_port: u16) -> Option<Self> {
        let uri: Uri = text.parse().ok()?;
        let authority = uri.authority()?;
        let bare = uri.path_and_query().is_none_or(|p| p.as_str() == "/");
        if uri.scheme() != Some(scheme) || !bare || authority.as_str().contains('@') {
            return None;
        }
        let host = authority.host().trim_start_matches('[').trim_end_matches(']').to_owned();
        let port = match authority.as_str().rsplit_once(':') {
            Some((_, port)) if !port.ends_with(']') => port.parse().ok()?,
            _ => default_port,
        };
        (!host.is_empty() && port != 0).then_some(Self { host, port })
    }

    /// The name that the hub's certificate must have.
    pub(super) fn server_name(&self) -> Option<ServerName<'static>> {
        ServerName::try_from(self.host.clone()).ok()
    }

    /// `host:port`, as it stands in `Host` and `CONNECT`.
    pub(super) fn authority(&self) -> String {
        let Self { host, port } = self;
        if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "https://{}", self.authority())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_scheme_host_and_port_make_an_address() {
        let at = |text| Address::hub(text).map(|a| a.authority()).ok();
        assert_eq!(at("https://hub.example").as_deref(), Some("hub.example:443"));
        assert_eq!(at("https://hub.example:8443/").as_deref(), Some("hub.example:8443"));
        assert_eq!(at("https://[::1]:8443").as_deref(), Some("[::1]:8443"));
        for bad in [
            "",
            "hub.example",
            "http://hub.example",
            "https://",
            "https://hub/path",
            "https://hub/?q",
            "https://user:pw@hub",
            "https://hub example",
            "https://hub:99999",
            "https://hub:0",
            "https://hub:",
        ] {
            assert_eq!(at(bad), None, "{bad}");
        }
        assert!(Address::hub("ftp://x").unwrap_err().to_string().contains("https://HOST[:PORT]"));
    }
}
