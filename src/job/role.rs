//! Roles and the peer that holds one.

use std::{fmt, str::FromStr};

use thiserror::Error;

/// What a certificate allows, each role including the ones before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// May look.
    Reader,
    /// May run jobs and stop own ones.
    Developer,
    /// May manage volumes, networks and runtimes.
    Maintainer,
    /// May do everything, to others' jobs too.
    Admin,
}

/// An organisational unit that is no role.
#[derive(Debug, Error, Clone, PartialEq, Eq)]
#[error("{0:?} is no role; roles are reader (or viewer), developer, maintainer, admin")]
pub struct RoleError(pub String);

impl FromStr for Role {
    type Err = RoleError;

    fn from_str(text: &str) -> Result<Self, RoleError> {
        match text.to_ascii_lowercase().as_str() {
            "reader" | "viewer" => Ok(Self::Reader),
            "developer" => Ok(Self::Developer),
            "maintainer" => Ok(Self::Maintainer),
            "admin" => Ok(Self::Admin),
            _ => Err(RoleError(text.to_owned())),
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Reader => "reader",
            Self::Developer => "developer",
            Self::Maintainer => "maintainer",
            Self::Admin => "admin",
        })
    }
}

/// The authenticated other side of a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// Common name of its certificate; the owner of the jobs it submits.
    pub name: String,
    /// Role from the organisational unit of its certificate.
    pub role: Role,
}
