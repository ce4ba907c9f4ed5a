//! The client file: which servers there are and how they and the caller prove who they are.
//!
//! One YAML file, searched in a fixed order, holds every node with its certificates as embedded PEM. The
//! private key in it decides what is checked: a file that others may read gets a [`Warning`], and one that
//! lies in the working directory but belongs to somebody else is refused, because whoever wrote it would
//! choose the server that gets our jobs and secrets.

use std::{
    collections::BTreeMap,
    env, fmt, fs,
    io::{self, Read, Write},
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// The version of the format that is read and written.
const VERSION: &str = "3.0";
const FILE_NAME: &str = "rnx-config.yml";
/// A client file is a few KiB; more than this is not one.
const FILE_BYTES_MAX: u64 = 4 << 20;

/// Where a client file is looked for.
#[derive(Debug, Clone, Default)]
pub struct Places {
    /// `$RNX_CONFIG`.
    pub variable: Option<PathBuf>,
    /// The working directory.
    pub working: Option<PathBuf>,
    /// The caller's home directory.
    pub home: Option<PathBuf>,
    /// Directories of the machine, in order.
    pub system: Vec<PathBuf>,
}

impl Places {
    /// What the environment of this process says.
    #[must_use]
    pub fn from_environment() -> Self {
        let path = |name| {
            env::var_os(name)
                .filter(|v| !v.is_empty())
                .map(PathBuf::from)
        };
        Self {
            variable: path("RNX_CONFIG"),
            working: Some(PathBuf::from(".")),
            home: path("HOME"),
            system: vec!["/etc/joblet".into(), "/opt/joblet/config".into()],
        }
    }

    /// Every file that is looked at, in order, and whether it lies in the working directory.
    /// With the variable set it is the only one.
    pub fn candidates(&self) -> Vec<(PathBuf, bool)> {
        if let Some(path) = &self.variable {
            return vec![(path.clone(), false)];
        }
        let working = self.working.iter();
        let working =
            working.flat_map(|dir| [dir.join(FILE_NAME), dir.join("config").join(FILE_NAME)]);
        let home = self.home.iter().map(|dir| dir.join(".rnx").join(FILE_NAME));
        let system = self.system.iter().map(|dir| dir.join(FILE_NAME));
        working
            .map(|path| (path, true))
            .chain(home.chain(system).map(|path| (path, false)))
            .collect()
    }
}

/// A client file, checked.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where it was read from.
    pub path: PathBuf,
    /// What a person should be told about it.
    pub warnings: Vec<Warning>,
    nodes: BTreeMap<String, Node>,
}

/// One server and the credentials for it. Its `Debug` form shows no key.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Node {
    /// `host:port`.
    pub address: String,
    /// Name that the server gave itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node_id: Option<String>,
    /// Used when no node is named.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub is_default: bool,
    /// Our certificate, PEM.
    pub cert: String,
    /// Our private key, PEM.
    pub key: String,
    /// The authority that must have signed the server's certificate, PEM.
    pub ca: String,
}

impl fmt::Debug for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            address,
            node_id,
            is_default,
            ..
        } = self;
        let mut shown = f.debug_struct("Node");
        shown
            .field("address", address)
            .field("node_id", node_id)
            .field("is_default", is_default);
        shown.finish_non_exhaustive()
    }
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawConfig {
    version: String,
    nodes: BTreeMap<String, Node>,
}

/// Something about a client file that is allowed but unwise.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Warning {
    /// Others may read the private key.
    Readable {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self::Readable { path, mode } = self;
        write!(
            f,
            "{} holds a private key and has mode {mode:04o}, should be 0600",
            path.display()
        )
    }
}

/// Why there is no usable client file or node.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// None of the places has one.
    #[error("no client file found, looked for {}", list(.searched))]
    NotFound {
        /// Where it was looked for.
        searched: Vec<PathBuf>,
    },
    /// It cannot be read or written.
    #[error("{action} client file {}", .path.display())]
    File {
        /// `read` or `write`.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// It is in the working directory and somebody else's.
    #[error("client file {} is in the working directory and does not belong to you (owner {owner})", .path.display())]
    NotOwned {
        /// The file.
        path: PathBuf,
        /// User id of its owner.
        owner: u32,
    },
    /// It is not YAML of the expected form.
    #[error("client file {} is malformed", .path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// Where and why.
        #[source]
        source: Box<serde_saphyr::Error>,
    },
    /// It is of another version.
    #[error("client file {} has version {found:?}, expected {VERSION:?}", .path.display())]
    Version {
        /// The file.
        path: PathBuf,
        /// What it says.
        found: String,
    },
    /// It cannot be put in YAML.
    #[error("write client file {} as YAML", .path.display())]
    Unwritable {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: Box<serde_saphyr::SerializeError>,
    },
    /// It names no node at all.
    #[error("client file {} names no node", .path.display())]
    NoNodes {
        /// The file.
        path: PathBuf,
    },
    /// The node asked for is not in it.
    #[error("node {name} not found, there are: {}", .known.join(", "))]
    UnknownNode {
        /// What was asked for.
        name: String,
        /// What there is.
        known: Vec<String>,
    },
    /// More than one node says that it is the default one.
    #[error("several nodes say isDefault: {}", .names.join(", "))]
    SeveralDefaults {
        /// Those.
        names: Vec<String>,
    },
    /// There are several nodes and none is the default one.
    #[error("no node is the default one, there are: {}", .known.join(", "))]
    NoDefault {
        /// What there is.
        known: Vec<String>,
    },
}

fn list(paths: &[PathBuf]) -> String {
    paths
        .iter()
        .map(|path| path.display().to_string())
        .collect::<Vec<_>>()
        .join(", ")
}

impl Config {
    /// Reads the client file: `explicit` when given, otherwise the first one that exists of
    /// [`Places::from_environment`].
    ///
    /// # Errors
    /// [`ConfigError`] about the file; nodes are looked at by [`Config::node`].
    pub fn load(explicit: Option<&Path>) -> Result<Self, ConfigError> {
        match explicit {
            Some(path) => Self::read(path, false),
            None => Self::search(&Places::from_environment()),
        }
    }

    /// Reads the first file of `places` that exists. A file that exists and cannot be used is an error, not
    /// a reason to look further: the caller would talk to another server than the one meant.
    ///
    /// # Errors
    /// [`ConfigError`] about the file.
    pub fn search(places: &Places) -> Result<Self, ConfigError> {
        let candidates = places.candidates();
        for (path, in_working) in &candidates {
            match Self::read(path, *in_working) {
                Err(ConfigError::File { source, .. })
                    if matches!(
                        source.kind(),
                        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
                    ) && places.variable.is_none() => {}
                found => return found,
            }
        }
        Err(ConfigError::NotFound {
            searched: candidates.into_iter().map(|(path, _)| path).collect(),
        })
    }

    fn read(path: &Path, in_working: bool) -> Result<Self, ConfigError> {
        let failed = |source| ConfigError::File {
            action: "read",
            path: path.into(),
            source,
        };
        // The link first: who owns the link chooses the file.
        let link = fs::symlink_metadata(path).map_err(failed)?;
        let file = fs::File::open(path).map_err(failed)?;
        let meta = file.metadata().map_err(failed)?;
        if in_working {
            let me = nix::unistd::geteuid().as_raw();
            if let Some(owner) = [link.uid(), meta.uid()]
                .into_iter()
                .find(|owner| *owner != me)
            {
                return Err(ConfigError::NotOwned {
                    path: path.into(),
                    owner,
                });
            }
        }
        let bytes = meta.len().min(FILE_BYTES_MAX);
        let mut text = String::with_capacity(usize::try_from(bytes).unwrap_or_default() + 1);
        file.take(FILE_BYTES_MAX)
            .read_to_string(&mut text)
            .map_err(failed)?;
        let mut config = Self::parse(path, &text)?;
        let mode = meta.mode() & 0o7777;
        if mode & 0o077 != 0 {
            config.warnings.push(Warning::Readable {
                path: path.into(),
                mode,
            });
        }
        Ok(config)
    }

    /// Reads `text` as the client file that lies at `path`.
    ///
    /// # Errors
    /// [`ConfigError`] when it is malformed, of another version or without a node.
    pub fn parse(path: &Path, text: &str) -> Result<Self, ConfigError> {
        let raw: RawConfig =
            serde_saphyr::from_str(text).map_err(|source| ConfigError::Malformed {
                path: path.into(),
                source: Box::new(source),
            })?;
        if raw.version != VERSION {
            return Err(ConfigError::Version {
                path: path.into(),
                found: raw.version,
            });
        }
        if raw.nodes.is_empty() {
            return Err(ConfigError::NoNodes { path: path.into() });
        }
        Ok(Self {
            path: path.into(),
            warnings: Vec::new(),
            nodes: raw.nodes,
        })
    }

    /// A client file that does not exist yet.
    #[must_use]
    pub fn new(path: PathBuf, nodes: BTreeMap<String, Node>) -> Self {
        Self {
            path,
            warnings: Vec::new(),
            nodes,
        }
    }

    /// Writes it to [`Config::path`] with mode 0600, replacing what is there in one step.
    ///
    /// # Errors
    /// [`ConfigError::File`] and [`ConfigError::Unwritable`].
    pub fn save(&self) -> Result<(), ConfigError> {
        let raw = RawConfig {
            version: VERSION.into(),
            nodes: self.nodes.clone(),
        };
        let text = serde_saphyr::to_string(&raw).map_err(|source| ConfigError::Unwritable {
            path: self.path.clone(),
            source: Box::new(source),
        })?;
        let failed = |source| ConfigError::File {
            action: "write",
            path: self.path.clone(),
            source,
        };
        let mut beside = self.path.clone().into_os_string();
        beside.push(".new");
        let mut options = fs::OpenOptions::new();
        options.write(true).create(true).truncate(true).mode(0o600);
        let mut file = options.open(&beside).map_err(failed)?;
        file.write_all(text.as_bytes()).map_err(failed)?;
        fs::rename(&beside, &self.path).map_err(failed)
    }

    /// Every node, by name.
    #[must_use]
    pub fn nodes(&self) -> &BTreeMap<String, Node> {
        &self.nodes
    }

    /// Name of the node that is used when none is named: the one that says so, else `default`, else the
    /// only one.
    ///
    /// # Errors
    /// [`ConfigError::SeveralDefaults`], [`ConfigError::NoDefault`].
    pub fn default_name(&self) -> Result<&str, ConfigError> {
        let names = |nodes: Vec<&String>| nodes.into_iter().cloned().collect::<Vec<_>>();
        let marked: Vec<_> = self
            .nodes
            .iter()
            .filter(|(_, node)| node.is_default)
            .map(|(name, _)| name)
            .collect();
        match marked[..] {
            [only] => return Ok(only),
            [] => {}
            [..] => {
                return Err(ConfigError::SeveralDefaults {
                    names: names(marked),
                });
            }
        }
        let all: Vec<_> = self.nodes.keys().collect();
        match all[..] {
            [only] => Ok(only),
            [..] if self.nodes.contains_key("default") => Ok("default"),
            [..] => Err(ConfigError::NoDefault { known: names(all) }),
        }
    }

    /// The node called `name`, or the default one.
    ///
    /// # Errors
    /// [`ConfigError::UnknownNode`] and those of [`Config::default_name`].
    pub fn node(&self, name: Option<&str>) -> Result<&Node, ConfigError> {
        let name = match name {
            Some(name) => name,
            None => self.default_name()?,
        };
        let unknown = || ConfigError::UnknownNode {
            name: name.into(),
            known: self.nodes.keys().cloned().collect(),
        };
        self.nodes.get(name).ok_or_else(unknown)
    }
}

#[cfg(test)]
mod tests;
