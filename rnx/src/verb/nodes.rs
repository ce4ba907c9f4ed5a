//! `rnx nodes`: what the client file knows. Talks to nobody and shows no key.

use serde_json::{Value, json};

use super::Session;
use crate::exit::{Failure, code};

pub(crate) fn nodes(session: &Session) -> Result<u8, Failure> {
    let config = session.config()?;
    // No default node is no error here: this is where one looks then.
    let default = config.default_name().ok();
    if session.out.json {
        let node = |(name, node): (&String, &rnx::Node)| {
            json!({
                "name": name,
                "address": node.address,
                "node_id": node.node_id,
                "default": default == Some(name.as_str()),
            })
        };
        session
            .out
            .json(&Value::Array(config.nodes().iter().map(node).collect()))?;
    } else {
        let row = |(name, node): (&String, &rnx::Node)| {
            let mark = if default == Some(name.as_str()) {
                "yes"
            } else {
                ""
            };
            vec![name.clone(), node.address.clone(), mark.to_owned()]
        };
        session.out.table(
            &["NAME", "ADDRESS", "DEFAULT"],
            config.nodes().iter().map(row).collect(),
        )?;
    }
    Ok(code::DONE)
}
