//! `rnx version`: ours, and the server's when there is one.

use rnx::proto;
use serde_json::{Value, json};

use super::Session;
use crate::{
    exit::{Failure, code},
    json, text,
};

const OURS: &str = env!("CARGO_PKG_VERSION");

pub(crate) async fn version(session: &Session) -> Result<u8, Failure> {
    let server = server(session).await;
    let (node, failure) = match server {
        Ok(node) => (Some(node), None),
        Err(failure) => (None, Some(failure)),
    };
    let out = session.out;
    if out.json {
        let client = json!({"version": OURS, "protocol": proto::VERSION});
        out.json(
            &json!({"client": client, "server": node.as_deref().map_or(Value::Null, json::node)}),
        )?;
    } else {
        out.line(&format!(
            "client  rnx {OURS}, protocol {}",
            String::from_utf8_lossy(proto::ALPN)
        ))?;
        if let Some(node) = &node {
            let (version, host, kernel) = (&node.version, &node.hostname, &node.kernel);
            let line = format!(
                "server  joblet {version} on {host}, kernel {kernel}, you are {} ({})",
                node.you, node.role
            );
            out.line(&text::plain(&line))?;
        }
    }
    match failure {
        None => Ok(code::DONE),
        // Without a client file nobody asked for a server.
        Some(failure) if failure.code == code::NOT_FOUND => {
            out.note(&format!(
                "server  none: {}",
                failure.message.as_deref().unwrap_or_default()
            ));
            Ok(code::DONE)
        }
        Some(failure) => Err(failure),
    }
}

async fn server(session: &Session) -> Result<Box<proto::Node>, Failure> {
    let client = session.connect().await?;
    let node = client.node().await;
    client.close().await;
    Ok(node?)
}
