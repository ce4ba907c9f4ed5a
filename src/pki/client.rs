//! The client file: what `rnx` needs to reach one daemon and to be believed there.

use serde_json::Value;

use super::{Identity, PkiError};
use crate::limits;

/// One node of a client file.
#[derive(Debug, Clone, Copy)]
pub struct ClientNode<'a> {
    /// What the user calls it; see [`check_node_name`].
    pub name: &'a str,
    /// Host and port; see [`check_address`].
    pub address: &'a str,
    /// The instance of the daemon.
    pub node_id: &'a str,
    /// Certificate and key of the client.
    pub identity: &'a Identity,
    /// Certificate of the authority.
    pub authority_pem: &'a str,
}

impl ClientNode<'_> {
    /// A whole client file with this one node, which is the default one.
    #[must_use]
    pub fn to_file(&self) -> String {
        // Double-quoted JSON text is YAML.
        let quote = |text: &str| Value::from(text).to_string();
        format!(
            "# Client file of rnx. It holds a private key: keep its mode at 0600.\n\
             version: \"3.0\"\n\
             nodes:\n  {name}:\n    address: {address}\n    nodeId: {id}\n    isDefault: true\n\
             {cert}{key}{ca}",
            name = quote(self.name),
            address = quote(self.address),
            id = quote(self.node_id),
            cert = block("cert", &self.identity.certificate_pem),
            key = block("key", &self.identity.key_pem),
            ca = block("ca", self.authority_pem),
        )
    }
}

fn block(key: &str, pem: &str) -> String {
    let mut text = format!("    {key}: |\n");
    for line in pem.lines() {
        text.push_str("      ");
        text.push_str(line);
        text.push('\n');
    }
    text
}

/// Whether a client file has a node that trusts the authority `authority_pem`. A file that cannot be read has
/// none.
#[must_use]
pub fn names_authority(file: &str, authority_pem: &str) -> bool {
    let Ok(value) = serde_saphyr::from_str::<Value>(file) else {
        return false;
    };
    let nodes = value.get("nodes").and_then(Value::as_object);
    nodes.into_iter().flatten().any(|(_, node)| {
        node.get("ca")
            .and_then(Value::as_str)
            .is_some_and(|ca| ca.lines().eq(authority_pem.lines()))
    })
}

/// Checks the name of a node: letters, digits, dots, dashes, underscores, 1 to 63 of them.
///
/// # Errors
/// [`PkiError::NodeName`].
pub fn check_node_name(name: &str) -> Result<(), PkiError> {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_');
    if name.is_empty() || name.len() > limits::NODE_NAME_BYTES_MAX || !name.bytes().all(allowed) {
        return Err(PkiError::NodeName {
            name: name.to_owned(),
        });
    }
    Ok(())
}

/// Checks the address of a server: `host:port`, `1.2.3.4:port` or `[::1]:port`, with a port other than 0.
///
/// # Errors
/// [`PkiError::Address`].
pub fn check_address(address: &str) -> Result<(), PkiError> {
    let refuse = || PkiError::Address {
        address: address.to_owned(),
    };
    let (host, port) = address.rsplit_once(':').ok_or_else(refuse)?;
    let port_ok =
        port.bytes().all(|b| b.is_ascii_digit()) && port.parse::<u16>().is_ok_and(|port| port != 0);
    let host_ok = match host
        .strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'))
    {
        Some(v6) => v6.parse::<std::net::Ipv6Addr>().is_ok(),
        None => super::ServerName::dns(host).is_some(),
    };
    if port_ok && host_ok {
        Ok(())
    } else {
        Err(refuse())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(authority_pem: &str) -> String {
        let identity = Identity {
            certificate_pem: "-----BEGIN C-----\nAAAA\nBB==\n-----END C-----\n".to_owned(),
            key_pem: "-----BEGIN K-----\nCCCC\n-----END K-----\n".to_owned(),
        };
        let address = "[::1]:50051";
        ClientNode {
            name: "default",
            address,
            node_id: "00c0ffee",
            identity: &identity,
            authority_pem,
        }
        .to_file()
    }

    #[test]
    fn the_file_reads_back_as_it_was_meant() {
        let value: Value =
            serde_saphyr::from_str(&sample("-----BEGIN A-----\nDDDD\n-----END A-----\n")).unwrap();
        let expected = serde_json::json!({"version": "3.0", "nodes": {"default": {
            "address": "[::1]:50051",
            "nodeId": "00c0ffee",
            "isDefault": true,
            "cert": "-----BEGIN C-----\nAAAA\nBB==\n-----END C-----\n",
            "key": "-----BEGIN K-----\nCCCC\n-----END K-----\n",
            "ca": "-----BEGIN A-----\nDDDD\n-----END A-----\n",
        }}});
        assert_eq!(value, expected);
    }

    #[test]
    fn a_file_is_ours_when_a_node_trusts_our_authority() {
        let file = sample("one\ntwo\n");
        assert!(names_authority(&file, "one\r\ntwo"));
        assert!(!names_authority(&file, "one\n"));
        for foreign in ["", "nodes: []", "nodes: {a: 5}", "}", "version: \"3.0\""] {
            assert!(!names_authority(foreign, "one\n"), "{foreign:?}");
        }
    }

    #[test]
    fn addresses_have_a_host_and_a_port() {
        for good in [
            "127.0.0.1:1",
            "[::1]:65535",
            "node-1.example.org:50051",
            "localhost:50051",
        ] {
            assert!(check_address(good).is_ok(), "{good:?}");
        }
        for bad in [
            "",
            "host",
            ":50051",
            "host:",
            "host:0",
            "host:65536",
            "host:+5",
            "::1:5",
            "[x]:5",
            "a b:5",
        ] {
            assert!(
                matches!(check_address(bad), Err(PkiError::Address { .. })),
                "{bad:?}"
            );
        }
    }

    #[test]
    fn names_of_nodes_are_plain_words() {
        for good in ["default", "n1.example-x_y", &"x".repeat(63)] {
            assert!(check_node_name(good).is_ok(), "{good:?}");
        }
        for bad in ["", "a b", "a/b", "ä", "a\n", &"x".repeat(64)] {
            assert!(
                matches!(check_node_name(bad), Err(PkiError::NodeName { .. })),
                "{bad:?}"
            );
        }
    }
}
