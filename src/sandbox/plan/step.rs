//! One entry of a plan: what the child does next, and how it travels.
//!
//! Tags are stable (they are stored in outcomes) and ascend in the order of execution, with gaps for what comes
//! later: a plan whose tags descend is no plan.

use std::ffi::CStr;

use thiserror::Error;

use crate::sandbox::init::record::step as init;

/// What the path of a volume in a job begins with.
pub(super) const VOLUMES: &str = "/volumes/";

/// A resource limit, both values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rlimit {
    /// `RLIMIT_*`.
    pub resource: u32,
    /// Soft value; `u64::MAX` is none.
    pub soft: u64,
    /// Hard value.
    pub hard: u64,
}

/// One step of the child between its birth and the execve of init.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step<'a> {
    /// The cgroups of version 1 that came with the start, this many.
    JoinCgroups(u16),
    /// The cgroup it was born in becomes the root of what it sees.
    CgroupNamespace,
    /// Its own `/proc`.
    MountProc,
    /// A tmpfs on `/tmp`.
    MountTmp {
        /// Options of tmpfs(5).
        options: &'a CStr,
    },
    /// A tmpfs on `/dev/shm`.
    MountShm {
        /// Options of tmpfs(5).
        options: &'a CStr,
    },
    /// Its own pseudo terminals.
    MountPts {
        /// Options of devpts.
        options: &'a CStr,
    },
    /// A tmpfs on `/work`.
    MountWork {
        /// Options of tmpfs(5).
        options: &'a CStr,
    },
    /// The mount that came with the start, on `/work`.
    AttachWork,
    /// A tmpfs on `/volumes`, for the directories that volumes are attached to.
    MountVolumes {
        /// Options of tmpfs(5).
        options: &'a CStr,
    },
    /// The next of the volumes that came with the start, on a directory that is made for it.
    AttachVolume {
        /// `/volumes/NAME`.
        target: &'a CStr,
    },
    /// Nothing can be made in `/volumes` itself any more.
    SealVolumes,
    /// The network namespace that came with the start.
    EnterNet,
    /// One resource limit.
    Rlimit(Rlimit),
    /// The processors it may use, in native words.
    Affinity {
        /// The mask.
        mask: &'a [u8],
    },
    /// `/dev/null` of its own: an open file shared between jobs would be a channel between them.
    Stdin,
    /// The pipe that came with the start.
    Stdout,
    /// The pipe that came with the start.
    Stderr,
    /// The socket that came with the start.
    Control,
    /// The socket that came with the start.
    Upload,
    /// The user namespace that came with the start: real root ends here.
    EnterUser,
    /// No supplementary groups.
    Groups,
    /// Group of init.
    Gid(u32),
    /// User of init.
    Uid(u32),
    /// What init keeps, a set of capabilities.
    Capabilities(u64),
    /// No descriptor but the five passes execve.
    Descriptors,
    /// init.
    Execute,
}

/// Why bytes are no step.
#[derive(Debug, Error, Clone, Copy, PartialEq, Eq)]
pub enum StepError {
    /// Fewer bytes than the step says.
    #[error("a step is cut short")]
    Short,
    /// No such step.
    #[error("there is no step {0}")]
    Tag(u16),
    /// Contents that this step cannot have.
    #[error("step {0} has malformed contents")]
    Contents(u16),
}

/// Tags that no [`Step`] has but a failure may carry.
pub mod tag {
    /// The plan itself is unreadable.
    pub const PLAN: u16 = 1;
    /// clone3.
    pub const CLONE: u16 = 2;
}

impl<'a> Step<'a> {
    /// Its stable number.
    #[must_use]
    pub const fn tag(&self) -> u16 {
        match self {
            Self::JoinCgroups(_) => 5,
            Self::CgroupNamespace => 10,
            Self::MountProc => 20,
            Self::MountTmp { .. } => 22,
            Self::MountShm { .. } => 24,
            Self::MountPts { .. } => 26,
            Self::MountWork { .. } => 28,
            Self::AttachWork => 30,
            Self::MountVolumes { .. } => 32,
            Self::AttachVolume { .. } => 34,
            Self::SealVolumes => 36,
            Self::EnterNet => 40,
            Self::Rlimit(_) => 50,
            Self::Affinity { .. } => 52,
            Self::Stdin => 60,
            Self::Stdout => 62,
            Self::Stderr => 64,
            Self::Control => 66,
            Self::Upload => 68,
            Self::EnterUser => 80,
            Self::Groups => 82,
            Self::Gid(_) => 84,
            Self::Uid(_) => 86,
            Self::Capabilities(_) => 88,
            Self::Descriptors => 90,
            Self::Execute => 100,
        }
    }

    /// What a step is called, for people. Covers every tag that a failure may carry: the spawner's, the child's
    /// and init's.
    #[must_use]
    pub fn name(tag: u16) -> &'static str {
        match tag {
            tag::PLAN => "read the plan",
            tag::CLONE => "clone",
            5 => "join the cgroups",
            10 => "enter a cgroup namespace",
            20 => "mount /proc",
            22 => "mount /tmp",
            24 => "mount /dev/shm",
            26 => "mount /dev/pts",
            28 => "mount /work",
            30 => "attach /work",
            32 => "mount /volumes",
            34 => "attach a volume",
            36 => "seal /volumes",
            40 => "enter the network namespace",
            50 => "set a resource limit",
            52 => "set the processors",
            60 => "open standard input",
            62 => "set standard output",
            64 => "set standard error",
            66 => "set the control socket",
            68 => "set the upload socket",
            80 => "enter the user namespace",
            82 => "drop the groups of init",
            84 => "set the group of init",
            86 => "set the user of init",
            88 => "drop the capabilities of init",
            90 => "close descriptors",
            100 => "execute init",
            _ => u8::try_from(tag).map_or("unknown step", init_name),
        }
    }

    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        let put = |out: &mut Vec<u8>, contents: &[u8]| {
            let len =
                u16::try_from(contents.len()).expect("options and masks are shorter than 64 KiB");
            out.extend(self.tag().to_le_bytes());
            out.extend(len.to_le_bytes());
            out.extend(contents);
        };
        match *self {
            Self::MountTmp { options }
            | Self::MountShm { options }
            | Self::MountPts { options }
            | Self::MountWork { options }
            | Self::MountVolumes { options }
            | Self::AttachVolume { target: options } => put(out, options.to_bytes_with_nul()),
            Self::Rlimit(Rlimit {
                resource,
                soft,
                hard,
            }) => {
                let mut contents = [0; 20];
                contents[..4].copy_from_slice(&resource.to_le_bytes());
                contents[4..12].copy_from_slice(&soft.to_le_bytes());
                contents[12..].copy_from_slice(&hard.to_le_bytes());
                put(out, &contents);
            }
            Self::Affinity { mask } => put(out, mask),
            Self::JoinCgroups(count) => put(out, &count.to_le_bytes()),
            Self::Gid(id) | Self::Uid(id) => put(out, &id.to_le_bytes()),
            Self::Capabilities(set) => put(out, &set.to_le_bytes()),
            Self::CgroupNamespace
            | Self::MountProc
            | Self::AttachWork
            | Self::SealVolumes
            | Self::EnterNet
            | Self::Stdin
            | Self::Stdout
            | Self::Stderr
            | Self::Control
            | Self::Upload
            | Self::EnterUser
            | Self::Groups
            | Self::Descriptors
            | Self::Execute => put(out, &[]),
        }
    }

    /// Reads one step and returns it with what follows it.
    pub(super) fn decode(bytes: &'a [u8]) -> Result<(Self, &'a [u8]), StepError> {
        let (tag, rest) = bytes.split_first_chunk().ok_or(StepError::Short)?;
        let (len, rest) = rest.split_first_chunk().ok_or(StepError::Short)?;
        let (tag, len) = (
            u16::from_le_bytes(*tag),
            usize::from(u16::from_le_bytes(*len)),
        );
        let (contents, rest) = rest.split_at_checked(len).ok_or(StepError::Short)?;
        Ok((Self::from_contents(tag, contents)?, rest))
    }

    fn from_contents(tag: u16, contents: &'a [u8]) -> Result<Self, StepError> {
        let wrong = StepError::Contents(tag);
        let options = || CStr::from_bytes_with_nul(contents).map_err(|_| wrong);
        let id = || {
            contents
                .try_into()
                .map(u32::from_le_bytes)
                .map_err(|_| wrong)
        };
        let step = match tag {
            5 => Self::JoinCgroups(
                contents
                    .try_into()
                    .map(u16::from_le_bytes)
                    .map_err(|_| wrong)?,
            ),
            10 => Self::CgroupNamespace,
            20 => Self::MountProc,
            22 => Self::MountTmp {
                options: options()?,
            },
            24 => Self::MountShm {
                options: options()?,
            },
            26 => Self::MountPts {
                options: options()?,
            },
            28 => Self::MountWork {
                options: options()?,
            },
            30 => Self::AttachWork,
            32 => Self::MountVolumes {
                options: options()?,
            },
            34 => Self::AttachVolume {
                target: options().ok().filter(|path| is_volume(path)).ok_or(wrong)?,
            },
            36 => Self::SealVolumes,
            40 => Self::EnterNet,
            50 => Self::Rlimit(read_rlimit(contents).ok_or(wrong)?),
            52 if !contents.is_empty() && contents.len().is_multiple_of(8) => {
                Self::Affinity { mask: contents }
            }
            60 => Self::Stdin,
            62 => Self::Stdout,
            64 => Self::Stderr,
            66 => Self::Control,
            68 => Self::Upload,
            80 => Self::EnterUser,
            82 => Self::Groups,
            84 => Self::Gid(id()?),
            86 => Self::Uid(id()?),
            88 => Self::Capabilities(
                contents
                    .try_into()
                    .map(u64::from_le_bytes)
                    .map_err(|_| wrong)?,
            ),
            90 => Self::Descriptors,
            100 => Self::Execute,
            52 => return Err(wrong),
            _ => return Err(StepError::Tag(tag)),
        };
        let takes_none = !matches!(tag, 5 | 22..=28 | 32 | 34 | 50 | 52 | 84..=88);
        if takes_none && !contents.is_empty() {
            Err(wrong)
        } else {
            Ok(step)
        }
    }
}

/// Whether that is the path of one thing in `/volumes`.
fn is_volume(path: &CStr) -> bool {
    let name = path.to_bytes().strip_prefix(VOLUMES.as_bytes());
    name.is_some_and(|name| !name.is_empty() && !name.starts_with(b".") && !name.contains(&b'/'))
}

fn read_rlimit(contents: &[u8]) -> Option<Rlimit> {
    let (resource, rest) = contents.split_first_chunk()?;
    let (soft, rest) = rest.split_first_chunk()?;
    let hard = rest.try_into().ok()?;
    Some(Rlimit {
        resource: u32::from_le_bytes(*resource),
        soft: u64::from_le_bytes(*soft),
        hard: u64::from_le_bytes(hard),
    })
}

/// What init does, in words.
const fn init_name(step: u8) -> &'static str {
    match step {
        init::UPLOAD => "receive the uploads",
        init::CLONE => "clone the command",
        init::SESSION => "make a session",
        init::GROUPS => "drop the groups",
        init::GID => "set the group",
        init::UID => "set the user",
        init::BOUNDING => "empty the bounding set",
        init::CAPABILITIES => "drop the capabilities",
        init::NO_NEW_PRIVILEGES => "set no_new_privs",
        init::KEYRING => "make a session keyring",
        init::WORKDIR => "enter the working directory",
        init::DESCRIPTORS => "close the descriptors of init",
        init::SIGNALS => "reset signals",
        init::EXECUTE => "execute the command",
        _ => "unknown step",
    }
}
