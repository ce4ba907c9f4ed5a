//! Idempotency keys: what a repeated submit is known by.

use rusqlite::{OptionalExtension, Statement, params};

use super::StoreError;
use crate::job::JobId;

/// What makes a repeated submit the same one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Key {
    /// Common name of the certificate: keys of different peers never meet.
    pub owner: String,
    /// As the client chose it.
    pub key: String,
    /// Digest of the request: the same key for another request is a conflict.
    pub fingerprint: [u8; 32],
    /// When it is forgotten, nanoseconds since the epoch: [`crate::limits::IDEMPOTENCY_KEY_KEPT`] after the submit.
    pub expires_ns: i64,
}

/// Which job a key stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Remembered {
    /// None, or its time is over.
    Nothing,
    /// The one that the very same request made.
    Job(JobId),
    /// One that was asked for differently.
    Other(JobId),
}

/// The statement that [`find`] asks.
pub(super) const FIND: &str = "SELECT job_id, fingerprint, expires_ns FROM idempotency_keys \
     WHERE owner = ?1 AND key = ?2";

/// What `key` stands for at `now_ns`, nanoseconds since the epoch.
pub(super) fn find(
    statement: &mut Statement<'_>,
    key: &Key,
    now_ns: i64,
) -> Result<Remembered, StoreError> {
    let row = statement
        .query_row(params![key.owner, key.key], |row| {
            Ok((
                row.get::<_, [u8; 16]>(0)?,
                row.get::<_, [u8; 32]>(1)?,
                row.get::<_, i64>(2)?,
            ))
        })
        .optional()
        .map_err(StoreError::from_sqlite("read"))?;
    Ok(match row {
        Some((id, fingerprint, expires_ns)) if expires_ns > now_ns => {
            let id = JobId::from_bytes(id);
            if fingerprint == key.fingerprint {
                Remembered::Job(id)
            } else {
                Remembered::Other(id)
            }
        }
        Some(_) | None => Remembered::Nothing,
    })
}
