//! `rnx job delete ID…` and `rnx job delete-all`.

use rnx::{Client, Deleted};

use super::{FirstFailure, Session};
use crate::{
    exit::{Failure, code},
    flags::JobIds,
    json,
};

pub(crate) async fn delete(jobs: &JobIds, session: &Session) -> Result<u8, Failure> {
    let client = session.connect().await?;
    let deleted = delete_each(&client, &jobs.ids, session).await;
    client.close().await;
    deleted
}

/// Every job is tried, whatever becomes of the others; the first failure decides the exit code.
async fn delete_each(client: &Client, ids: &[String], session: &Session) -> Result<u8, Failure> {
    let out = session.out;
    let (mut failed, mut total, mut gone) = (FirstFailure::none(), Deleted::default(), Vec::new());
    for id in ids {
        match client.delete(id).await {
            Ok(Deleted { deleted, skipped }) => {
                total.deleted += deleted;
                total.skipped += skipped;
                gone.push(id.clone());
                if !out.json {
                    out.line(&format!("{id} deleted"))?;
                }
            }
            Err(error) => {
                failed.note(error, out);
                total.skipped += 1;
            }
        }
    }
    if out.json {
        out.json(&json::deleted(total, Some(&gone)))?;
    }
    Ok(failed.code())
}

pub(crate) async fn delete_all(session: &Session) -> Result<u8, Failure> {
    let client = session.connect().await?;
    let deleted = client.delete_all().await;
    client.close().await;
    let deleted = deleted?;
    if session.out.json {
        session.out.json(&json::deleted(deleted, None))?;
    } else {
        let Deleted { deleted, skipped } = deleted;
        session
            .out
            .line(&format!("{deleted} deleted, {skipped} skipped"))?;
    }
    Ok(code::DONE)
}
