//! Who may do what: one table for every request on every transport.

use crate::job::{Refusal, RefusalCode, Role};

/// What a request does, as far as permission goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Operation {
    /// See which jobs there are.
    List,
    /// See everything about one job.
    Status,
    /// Read a job's output.
    Log,
    /// See what the server is.
    Node,
    /// See what a job uses.
    Metrics,
    /// Try out what the server's machine enforces, in jobs that are thrown away.
    Doctor,
    /// Start a job.
    Run,
    /// Stop a job.
    Stop,
    /// Cancel a job that has not begun, or a schedule.
    Cancel,
    /// Wait for a job's end.
    Wait,
    /// Delete an ended job.
    Delete,
    /// Read files below a job's `/work`.
    Copy,
    /// See which volumes there are.
    VolumeList,
    /// Create and remove volumes.
    Volumes,
    /// Read and write files of volumes.
    VolumeFiles,
    /// Create and remove networks.
    Networks,
    /// Install and remove runtimes.
    Runtimes,
    /// Issue and revoke certificates.
    Certificates,
    /// Change the server's configuration.
    Configuration,
}

/// How the object of a request relates to the peer that asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum OwnerRelation {
    /// It is the peer's own, or there is no owner to ask about.
    Own,
    /// It is somebody else's.
    Foreign,
}

impl OwnerRelation {
    /// The relation of `peer` to something that `owner` owns.
    #[must_use]
    pub fn of(peer: &str, owner: &str) -> Self {
        if peer == owner {
            Self::Own
        } else {
            Self::Foreign
        }
    }
}

impl Operation {
    /// The least role, for own objects and for others'.
    const fn needs(self) -> (Role, Role) {
        match self {
            Self::List
            | Self::Status
            | Self::Log
            | Self::Node
            | Self::Metrics
            | Self::VolumeList => (Role::Reader, Role::Reader),
            Self::Doctor => (Role::Developer, Role::Developer),
            Self::Run | Self::Stop | Self::Cancel | Self::Wait | Self::Delete | Self::Copy => {
                (Role::Developer, Role::Admin)
            }
            Self::Volumes | Self::VolumeFiles | Self::Networks | Self::Runtimes => {
                (Role::Maintainer, Role::Maintainer)
            }
            Self::Certificates | Self::Configuration => (Role::Admin, Role::Admin),
        }
    }

    const fn words(self) -> &'static str {
        match self {
            Self::List => "list jobs",
            Self::Status => "see the status of jobs",
            Self::Log => "read the output of jobs",
            Self::Node => "see the server's status",
            Self::Metrics => "see what jobs use",
            Self::Doctor => "try out what the server enforces",
            Self::Run => "run jobs",
            Self::Stop => "stop jobs",
            Self::Cancel => "cancel jobs",
            Self::Wait => "wait for jobs",
            Self::Delete => "delete jobs",
            Self::Copy => "copy files out of jobs",
            Self::VolumeList => "list volumes",
            Self::Volumes => "create or remove volumes",
            Self::VolumeFiles => "copy files into or out of volumes",
            Self::Networks => "manage networks",
            Self::Runtimes => "manage runtimes",
            Self::Certificates => "manage certificates",
            Self::Configuration => "change the configuration",
        }
    }
}

/// Whether `role` may do `operation` to something that is its own or not.
///
/// # Errors
/// A [`Refusal`] with [`RefusalCode::NotPermitted`] that says which role could.
pub fn authorise(role: Role, operation: Operation, relation: OwnerRelation) -> Result<(), Refusal> {
    let (own, foreign) = operation.needs();
    let needed = match relation {
        OwnerRelation::Own => own,
        OwnerRelation::Foreign => foreign,
    };
    if role >= needed {
        return Ok(());
    }
    // Only where the owner makes the difference is the owner worth a word.
    let whose = if role >= own { " of others" } else { "" };
    let message = format!(
        "operation not permitted: role {role} may not {}{whose}",
        operation.words()
    );
    Err(Refusal::new(RefusalCode::NotPermitted, message)
        .hint(format!("use a certificate with role {needed}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROLES: [Role; 4] = [Role::Reader, Role::Developer, Role::Maintainer, Role::Admin];

    /// One letter a role that may, in the order of `ROLES`: own objects, then others'.
    const TABLE: [(Operation, &str, &str); 19] = [
        (Operation::List, "rdma", "rdma"),
        (Operation::Status, "rdma", "rdma"),
        (Operation::Log, "rdma", "rdma"),
        (Operation::Node, "rdma", "rdma"),
        (Operation::Metrics, "rdma", "rdma"),
        (Operation::Doctor, "-dma", "-dma"),
        (Operation::Run, "-dma", "---a"),
        (Operation::Stop, "-dma", "---a"),
        (Operation::Cancel, "-dma", "---a"),
        (Operation::Wait, "-dma", "---a"),
        (Operation::Delete, "-dma", "---a"),
        (Operation::Copy, "-dma", "---a"),
        (Operation::VolumeList, "rdma", "rdma"),
        (Operation::Volumes, "--ma", "--ma"),
        (Operation::VolumeFiles, "--ma", "--ma"),
        (Operation::Networks, "--ma", "--ma"),
        (Operation::Runtimes, "--ma", "--ma"),
        (Operation::Certificates, "---a", "---a"),
        (Operation::Configuration, "---a", "---a"),
    ];

    #[test]
    fn every_role_operation_and_relation_is_decided_as_written() {
        for (operation, own, foreign) in TABLE {
            for (relation, letters) in
                [(OwnerRelation::Own, own), (OwnerRelation::Foreign, foreign)]
            {
                for (role, letter) in ROLES.into_iter().zip(letters.chars()) {
                    let decision = authorise(role, operation, relation);
                    assert_eq!(
                        decision.is_ok(),
                        letter != '-',
                        "{role} {operation:?} {relation:?}"
                    );
                    if let Err(refusal) = decision {
                        assert_eq!(refusal.code, RefusalCode::NotPermitted);
                    }
                }
            }
        }
    }

    #[test]
    fn a_refusal_says_what_and_which_role_could() {
        let refusal = authorise(Role::Reader, Operation::Run, OwnerRelation::Own).unwrap_err();
        assert_eq!(
            refusal.message,
            "operation not permitted: role reader may not run jobs"
        );
        assert_eq!(
            refusal.hint.as_deref(),
            Some("use a certificate with role developer")
        );
        let refusal =
            authorise(Role::Developer, Operation::Stop, OwnerRelation::Foreign).unwrap_err();
        assert_eq!(
            refusal.message,
            "operation not permitted: role developer may not stop jobs of others"
        );
        assert_eq!(
            refusal.hint.as_deref(),
            Some("use a certificate with role admin")
        );
        assert_eq!(OwnerRelation::of("alice", "alice"), OwnerRelation::Own);
        assert_eq!(OwnerRelation::of("alice", "Alice"), OwnerRelation::Foreign);
    }
}
