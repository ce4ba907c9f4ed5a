//! The controllers that bound a job, and what stands behind each on this host.

use crate::job::LimitKind;

/// What the kernel calls the part of it that bounds one resource.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Controller {
    /// CPU time.
    Cpu,
    /// Memory.
    Memory,
    /// Block devices.
    Io,
    /// Processes and threads.
    Pids,
    /// Which cores.
    Cpuset,
}

impl Controller {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Cpu, Self::Memory, Self::Io, Self::Pids, Self::Cpuset];

    /// Its name in version 2.
    #[must_use]
    pub const fn v2_name(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::Memory => "memory",
            Self::Io => "io",
            Self::Pids => "pids",
            Self::Cpuset => "cpuset",
        }
    }

    /// Its name in version 1.
    #[must_use]
    pub const fn v1_name(self) -> &'static str {
        match self {
            Self::Io => "blkio",
            Self::Cpu | Self::Memory | Self::Pids | Self::Cpuset => self.v2_name(),
        }
    }
}

impl From<LimitKind> for Controller {
    fn from(kind: LimitKind) -> Self {
        match kind {
            LimitKind::Cpu => Self::Cpu,
            LimitKind::Memory => Self::Memory,
            LimitKind::Io => Self::Io,
            LimitKind::Pids => Self::Pids,
            LimitKind::Cores => Self::Cpuset,
        }
    }
}

/// What stands behind a limit on this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Enforcement {
    /// It holds.
    Full {
        /// By what: `cgroup v2 memory`.
        mechanism: String,
    },
    /// It holds in most cases.
    Partly {
        /// By what.
        mechanism: String,
        /// In which it does not.
        note: String,
    },
    /// It does not hold.
    Missing {
        /// Why.
        reason: String,
    },
}
