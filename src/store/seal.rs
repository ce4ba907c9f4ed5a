//! Values of secrets: sealed while their job may still have to be started, and gone with its end.
//!
//! AES-256-GCM with a random nonce in front; job id and name of the variable are authenticated, so a value cannot
//! be moved to where it would be shown. The key is the caller's to keep.

use std::fmt;

use base64::{Engine, engine::general_purpose::STANDARD};
use ring::{
    aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey},
    rand::{SecureRandom, SystemRandom},
};

use super::StoreError;
use crate::job::{EnvEntry, JobId};

/// What secrets are sealed with.
#[derive(Clone)]
pub struct SealKey(LessSafeKey);

impl SealKey {
    /// A key of 32 random bytes.
    ///
    /// # Panics
    /// Never: that is how long a key is.
    #[must_use]
    pub fn from_bytes(bytes: &[u8; 32]) -> Self {
        let key = UnboundKey::new(&AES_256_GCM, bytes).expect("a key of AES-256 has 32 bytes");
        Self(LessSafeKey::new(key))
    }

    /// The sealed values of all secrets in `env`, in their order; `None` when there are none.
    pub(super) fn seal(&self, id: JobId, env: &[EnvEntry]) -> Result<Option<String>, StoreError> {
        let mut sealed = Vec::new();
        for entry in env.iter().filter(|entry| entry.is_secret) {
            let value = self.seal_value(id, entry).ok_or_else(|| StoreError::Seal {
                id,
                name: entry.name.clone(),
            })?;
            sealed.push(STANDARD.encode(value));
        }
        let text = || serde_json::to_string(&sealed).expect("a list of texts can be written");
        Ok((!sealed.is_empty()).then(text))
    }

    /// Puts the values that [`SealKey::seal`] has sealed into the secrets of `env`.
    pub(super) fn unseal(
        &self,
        id: JobId,
        env: &mut [EnvEntry],
        sealed: Option<&str>,
    ) -> Result<(), StoreError> {
        let sealed: Vec<String> = match sealed {
            Some(text) => serde_json::from_str(text).map_err(|_| StoreError::Row {
                id,
                column: "secrets",
            })?,
            None => Vec::new(),
        };
        let mut values = sealed.into_iter();
        for entry in env.iter_mut().filter(|entry| entry.is_secret) {
            let value = values.next().and_then(|text| STANDARD.decode(text).ok());
            entry.value = value
                .and_then(|value| self.unseal_value(id, &entry.name, value))
                .ok_or_else(|| StoreError::Unseal {
                    id,
                    name: entry.name.clone(),
                })?;
        }
        Ok(())
    }

    /// Nonce, value and tag; `None` when the host gives no random bytes.
    fn seal_value(&self, id: JobId, entry: &EnvEntry) -> Option<Vec<u8>> {
        let mut nonce = [0; NONCE_LEN];
        SystemRandom::new().fill(&mut nonce).ok()?;
        let mut value = entry.value.clone();
        self.0
            .seal_in_place_append_tag(
                Nonce::assume_unique_for_key(nonce),
                place(id, &entry.name),
                &mut value,
            )
            .ok()?;
        Some([&nonce[..], &value].concat())
    }

    fn unseal_value(&self, id: JobId, name: &str, mut sealed: Vec<u8>) -> Option<Vec<u8>> {
        let nonce = *sealed.first_chunk::<NONCE_LEN>()?;
        let nonce = Nonce::assume_unique_for_key(nonce);
        let value = self
            .0
            .open_within(nonce, place(id, name), &mut sealed, NONCE_LEN..)
            .ok()?;
        Some(value.to_vec())
    }
}

/// What a value belongs to.
fn place(id: JobId, name: &str) -> Aad<Vec<u8>> {
    Aad::from([&id.to_bytes()[..], name.as_bytes()].concat())
}

impl fmt::Debug for SealKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SealKey(***)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secret(name: &str, value: &[u8]) -> EnvEntry {
        EnvEntry {
            name: name.into(),
            value: value.into(),
            is_secret: true,
        }
    }

    #[test]
    fn a_value_opens_with_its_key_in_its_place_and_nowhere_else() {
        let key = SealKey::from_bytes(&[7; 32]);
        let id = JobId::random();
        let env = [secret("TOKEN", b"hunter2"), secret("EMPTY", b"")];
        let sealed = key.seal(id, &env).unwrap().unwrap();
        assert_ne!(
            sealed,
            key.seal(id, &env).unwrap().unwrap(),
            "a nonce is used once"
        );

        let open = |key: &SealKey, id, names: [&str; 2], sealed: Option<&str>| {
            let mut found = names.map(|name| secret(name, b"***"));
            key.unseal(id, &mut found, sealed)
                .map(|()| found.map(|entry| entry.value))
        };
        let names = ["TOKEN", "EMPTY"];
        assert_eq!(
            open(&key, id, names, Some(&sealed)).unwrap(),
            [b"hunter2".to_vec(), Vec::new()]
        );
        let other_key = SealKey::from_bytes(&[8; 32]);
        let refusals = [
            open(&other_key, id, names, Some(&sealed)),
            open(&key, JobId::random(), names, Some(&sealed)),
            open(&key, id, ["EMPTY", "TOKEN"], Some(&sealed)),
            open(&key, id, names, None),
            open(&key, id, names, Some("[\"\",\"AAAA\"]")),
        ];
        for refused in refusals {
            assert!(
                matches!(refused, Err(StoreError::Unseal { .. })),
                "{refused:?}"
            );
        }
        assert!(matches!(
            open(&key, id, names, Some("[")),
            Err(StoreError::Row { .. })
        ));
    }

    #[test]
    fn what_is_no_secret_is_not_sealed_and_the_key_is_not_shown() {
        let key = SealKey::from_bytes(&[7; 32]);
        let mut open = secret("A", b"1");
        open.is_secret = false;
        assert_eq!(key.seal(JobId::random(), &[open.clone()]).unwrap(), None);
        let mut env = [open];
        key.unseal(JobId::random(), &mut env, None).unwrap();
        assert_eq!(env[0].value, b"1");
        assert_eq!(format!("{key:?}"), "SealKey(***)");
    }
}
