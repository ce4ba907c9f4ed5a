//! Names in certificates: of clients, and of the machine that serves.

use std::{collections::BTreeSet, net::IpAddr};

use rcgen::SanType;

use super::PkiError;
use crate::limits;

/// The name that clients check, whatever the machine is called.
pub const SERVER_NAME: &str = "joblet";

/// One name or address that a server certificate is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerName(SanType);

impl ServerName {
    /// A DNS name; `None` when it cannot be one.
    #[must_use]
    pub fn dns(name: &str) -> Option<Self> {
        let label = |label: &str| {
            !label.is_empty()
                && label.len() <= 63
                && label
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
        };
        if name.len() > 253 || !name.split('.').all(label) {
            return None;
        }
        name.try_into().ok().map(SanType::DnsName).map(Self)
    }

    /// An address.
    #[must_use]
    pub const fn address(address: IpAddr) -> Self {
        Self(SanType::IpAddress(address))
    }

    pub(super) fn to_san(&self) -> SanType {
        self.0.clone()
    }
}

/// All names of this machine: `joblet`, `localhost`, loopback, its host name, the addresses of its
/// interfaces and `more`.
#[must_use]
pub fn server_names(more: impl IntoIterator<Item = IpAddr>) -> Vec<ServerName> {
    let hostname = nix::unistd::gethostname()
        .ok()
        .and_then(|name| name.into_string().ok());
    let mut dns = vec![SERVER_NAME.to_owned(), "localhost".to_owned()];
    dns.extend(hostname.filter(|name| !dns.contains(name)));
    let mut addresses = BTreeSet::from([
        IpAddr::from([127, 0, 0, 1]),
        std::net::Ipv6Addr::LOCALHOST.into(),
    ]);
    addresses.extend(interface_addresses());
    addresses.extend(more.into_iter().filter(|address| !address.is_unspecified()));
    dns.iter()
        .filter_map(|name| ServerName::dns(name))
        .chain(addresses.into_iter().map(ServerName::address))
        .collect()
}

/// Addresses of this machine's interfaces, without those that mean something on one link only.
fn interface_addresses() -> Vec<IpAddr> {
    let Ok(interfaces) = nix::ifaddrs::getifaddrs() else {
        return Vec::new();
    };
    interfaces
        .filter_map(|interface| {
            let address = interface.address?;
            let v4 = address.as_sockaddr_in().map(|v4| IpAddr::V4(v4.ip()));
            v4.or_else(|| address.as_sockaddr_in6().map(|v6| IpAddr::V6(v6.ip())))
        })
        .filter(|address| match address {
            IpAddr::V4(v4) => !v4.is_link_local(),
            IpAddr::V6(v6) => !v6.is_unicast_link_local(),
        })
        .collect()
}

/// Checks the name of a client: 1 to 64 printable ASCII characters, no space at its ends.
///
/// # Errors
/// [`PkiError::Name`].
pub fn check_peer_name(name: &str) -> Result<(), PkiError> {
    let printable = name.bytes().all(|b| matches!(b, b' '..=b'~'));
    if name.is_empty()
        || name.len() > limits::PEER_NAME_BYTES_MAX
        || !printable
        || name.trim() != name
    {
        return Err(PkiError::Name {
            name: name.to_owned(),
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn client_names_are_printable_and_short() {
        for good in ["a", "ann@example.org", "Ann B. C.", &"x".repeat(64)] {
            assert!(check_peer_name(good).is_ok(), "{good:?}");
        }
        for bad in ["", " a", "a ", "a\n", "\0", "ä", "a\u{7f}", &"x".repeat(65)] {
            assert!(
                matches!(check_peer_name(bad), Err(PkiError::Name { .. })),
                "{bad:?}"
            );
        }
    }

    #[test]
    fn the_machine_has_at_least_its_fixed_names_and_each_once() {
        let more = [
            "10.9.8.7".parse().unwrap(),
            "0.0.0.0".parse().unwrap(),
            "127.0.0.1".parse().unwrap(),
        ];
        let names = server_names(more);
        for fixed in ["127.0.0.1", "::1", "10.9.8.7"] {
            let name = ServerName::address(fixed.parse().unwrap());
            assert_eq!(
                names.iter().filter(|found| **found == name).count(),
                1,
                "{fixed}"
            );
        }
        assert_eq!(names[0], ServerName::dns("joblet").unwrap());
        assert!(!names.contains(&ServerName::address("0.0.0.0".parse().unwrap())));
    }

    #[test]
    fn what_is_no_dns_name_is_left_out() {
        for bad in ["", "a..b", "höst", "a b", ".", &"x".repeat(64)] {
            assert_eq!(ServerName::dns(bad), None, "{bad:?}");
        }
        assert!(ServerName::dns("node-1.example_2.org").is_some());
    }
}
