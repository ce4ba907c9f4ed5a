//! The variables of a job: from flags and files to `NAME=value` entries.
//!
//! Files come first, then flags, each in the order given; of two with one name the later one counts. A name
//! without `=` takes the value from our own environment, as it does with Docker, so that a secret need not
//! stand on a command line; one that is not set there is left out.

use std::{
    collections::HashMap,
    ffi::{OsStr, OsString},
    fs,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
};

use crate::exit::Failure;

/// Entries of both kinds, `NAME=value`, in the order in which their names first came.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Environment {
    pub(crate) plain: Vec<Vec<u8>>,
    pub(crate) secret: Vec<Vec<u8>>,
}

/// Reads flags and files. `ours` looks a variable of this process up.
pub(crate) fn collect(
    files: &[PathBuf],
    plain: &[OsString],
    secret: &[OsString],
    ours: impl Fn(&OsStr) -> Option<OsString>,
) -> Result<Environment, Failure> {
    let mut shown = Table::default();
    for path in files {
        let text = fs::read(path)
            .map_err(|error| Failure::new(format!("read {}: {error}", path.display())))?;
        file(path, &text, &mut shown, &ours)?;
    }
    for entry in plain {
        shown.add("--env", entry.as_bytes(), &ours)?;
    }
    let mut hidden = Table::default();
    for entry in secret {
        hidden.add("--secret-env", entry.as_bytes(), &ours)?;
    }
    if let Some(name) = hidden
        .index
        .keys()
        .find(|name| shown.index.contains_key(*name))
    {
        let name = String::from_utf8_lossy(name);
        return Err(Failure::usage(format!(
            "{name} is given as a variable and as a secret"
        )));
    }
    Ok(Environment {
        plain: shown.entries,
        secret: hidden.entries,
    })
}

fn file(
    path: &Path,
    text: &[u8],
    table: &mut Table,
    ours: &impl Fn(&OsStr) -> Option<OsString>,
) -> Result<(), Failure> {
    for (index, line) in text.split(|byte| *byte == b'\n').enumerate() {
        let line = line.strip_suffix(b"\r").unwrap_or(line).trim_ascii_start();
        if !line.is_empty() && !line.starts_with(b"#") {
            table.add(&format!("{}:{}", path.display(), index + 1), line, ours)?;
        }
    }
    Ok(())
}

#[derive(Default)]
struct Table {
    entries: Vec<Vec<u8>>,
    index: HashMap<Vec<u8>, usize>,
}

impl Table {
    fn add(
        &mut self,
        at: &str,
        entry: &[u8],
        ours: &impl Fn(&OsStr) -> Option<OsString>,
    ) -> Result<(), Failure> {
        let end = entry.iter().position(|byte| *byte == b'=');
        let name = &entry[..end.unwrap_or(entry.len())];
        if !is_name(name) {
            // Never the value: it may be a secret.
            let name = String::from_utf8_lossy(name).into_owned();
            return Err(
                Failure::usage(format!("{at}: {name:?} is not the name of a variable"))
                    .hint("a name has letters, digits and _ and does not start with a digit"),
            );
        }
        let whole = match end {
            Some(_) => entry.to_vec(),
            None => match ours(OsStr::from_bytes(name)) {
                Some(value) => [name, b"=", value.as_bytes()].concat(),
                None => return Ok(()),
            },
        };
        if whole.contains(&0) {
            let name = String::from_utf8_lossy(name);
            return Err(Failure::usage(format!(
                "{at}: the value of {name} contains a NUL byte"
            )));
        }
        match self.index.get(name) {
            Some(&index) => self.entries[index] = whole,
            None => {
                self.index.insert(name.to_vec(), self.entries.len());
                self.entries.push(whole);
            }
        }
        Ok(())
    }
}

fn is_name(name: &[u8]) -> bool {
    let letter = |byte: &u8| byte.is_ascii_alphabetic() || *byte == b'_';
    name.first().is_some_and(letter)
        && name
            .iter()
            .all(|byte| letter(byte) || byte.is_ascii_digit())
}

#[cfg(test)]
mod tests;
