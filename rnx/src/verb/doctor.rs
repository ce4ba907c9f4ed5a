//! `rnx doctor`: what the server's machine keeps of the promises.

use rnx::proto::{Finding, Verdict};
use serde_json::Value;

use super::Session;
use crate::{
    exit::{Failure, code},
    json, text,
};

pub(crate) async fn doctor(session: &Session) -> Result<u8, Failure> {
    let client = session.connect().await?;
    let findings = client.doctor().await;
    client.close().await;
    let findings = findings?;
    let out = session.out;
    if out.json {
        out.json(&Value::Array(findings.iter().map(json::finding).collect()))?;
    } else {
        out.table(
            &["PROMISE", "VERDICT", "MECHANISM", "DETAIL"],
            findings.iter().map(row).collect(),
        )?;
        for finding in &findings {
            if let Some(remedy) = &finding.remedy {
                out.note(&format!("{}: {remedy}", finding.promise));
            }
        }
    }
    let all_kept = findings
        .iter()
        .all(|finding| finding.verdict != Verdict::NotEnforced);
    Ok(if all_kept { code::DONE } else { code::FAILED })
}

fn row(finding: &Finding) -> Vec<String> {
    vec![
        finding.promise.clone(),
        text::verdict(finding.verdict).to_owned(),
        finding.mechanism.clone(),
        finding.detail.clone(),
    ]
}
