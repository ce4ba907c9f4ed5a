//! The plan of one job's sandbox: decided here, purely; walked by the spawner's child, blindly.
//!
//! ```text
//! PlanSpec ──Plan::new──► Plan (bytes) ──seal──► memfd ──spawner──► DecodedPlan ──► child: step after step
//!
//! header 24: magic u32 · version u16 · steps u16 · arguments u32 · variables u32 · steps_bytes u32 · strings_bytes u32
//! steps:     tag u16 · len u16 · contents          strings: each ends with NUL; init's arguments, then the environment
//! ```
//! [`Plan::new`] is the order of the whole sandbox and reads from top to bottom: mounts as real root first, then
//! what is inherited, the user namespace last.

use std::{
    ffi::{CStr, CString},
    io,
    os::fd::OwnedFd,
};

use thiserror::Error;

use super::init;
use crate::{
    job::{User, VolumeName},
    limits,
    sys::{affinity::CpuMask, capability::Capabilities, memfd},
};

mod step;

use step::VOLUMES;
pub use step::{Rlimit, Step, StepError, tag};

const MAGIC: u32 = u32::from_le_bytes(*b"jbpl");
const VERSION: u16 = 1;
const HEADER_BYTES: usize = 24;
/// Our own arguments before the command's: name, numbers, working directory.
const INIT_ARGUMENTS: usize = 3;
/// What init needs: to become the command's user, to signal it, to empty its bounding set. Nothing else.
const INIT_CAPABILITIES: Capabilities = Capabilities::SETUID
    .and(Capabilities::SETGID)
    .and(Capabilities::SETPCAP)
    .and(Capabilities::KILL);
/// Bytes of a tmpfs for which one inode is allowed: the kernel's memory for it counts against the job.
const BYTES_PER_INODE: u64 = 1024;
/// Fewest inodes of a tmpfs.
const INODES_MIN: u64 = 1024;

/// What `/work` is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Work {
    /// A tmpfs of this size, charged to the job.
    Tmpfs {
        /// Bytes, not 0.
        bytes: u64,
    },
    /// A mount that comes with the start.
    Tree,
}

/// Everything a sandbox depends on.
#[derive(Debug, Clone)]
pub struct PlanSpec<'a> {
    /// User and group of the command inside the job.
    pub user: User,
    /// Host id of the job's id 0.
    pub ids_base: u32,
    /// Where the command starts, absolute.
    pub workdir: &'a [u8],
    /// What `/work` is.
    pub work: Work,
    /// Size of `/tmp`, bytes, not 0.
    pub tmp_bytes: u64,
    /// Size of `/dev/shm`, bytes, not 0.
    pub shm_bytes: u64,
    /// The command and its arguments.
    pub argv: &'a [Vec<u8>],
    /// Its whole environment, `NAME=value`.
    pub env: &'a [Vec<u8>],
    /// Processors it may use.
    pub cpus: &'a CpuMask,
    /// Resource limits.
    pub rlimits: &'a [Rlimit],
    /// Whether an upload socket comes with the start.
    pub has_uploads: bool,
    /// How many cgroups of version 1 come with the start.
    pub joins: u16,
    /// Names of the volumes below `/volumes`, in the order in which their mounts come with the start.
    pub volumes: &'a [&'a str],
}

/// Why there is no plan for a request.
#[derive(Debug, Error, Clone, PartialEq, Eq)]
pub enum PlanError {
    /// No command.
    #[error("the command is empty")]
    NoCommand,
    /// A byte that the kernel takes for an end.
    #[error("{} contains a NUL byte", .0)]
    Nul(Text),
    /// Longer than the kernel takes.
    #[error("{text} has {bytes} bytes; at most {} are possible", limits::ARGUMENT_BYTES_MAX - 1)]
    TooLong {
        /// Which.
        text: Text,
        /// Its length.
        bytes: usize,
    },
    /// More in total than we take.
    #[error(
        "arguments and environment have {bytes} bytes; at most {} are possible",
        limits::SUBMIT_BYTES_MAX
    )]
    TooLarge {
        /// Their sum, a NUL each included.
        bytes: usize,
    },
    /// A working directory that depends on where one is.
    #[error("the working directory is not absolute")]
    WorkdirRelative,
    /// An id that the job's namespace does not map.
    #[error("id {id} is not below {}", limits::IDS_PER_JOB)]
    Id {
        /// Which.
        id: u32,
    },
    /// A range of host ids that passes the end.
    #[error("host ids from {base} on do not fit")]
    IdsBase {
        /// Where it begins.
        base: u32,
    },
    /// A size of 0, which tmpfs takes for no limit.
    #[error("the size of {target} is 0")]
    NoSize {
        /// Where it would be mounted.
        target: &'static str,
    },
    /// No processor to run on.
    #[error("the set of processors is empty")]
    NoProcessor,
    /// More volumes than come with one start.
    #[error("{count} volumes; at most {} are possible", limits::JOB_VOLUMES_MAX)]
    Volumes {
        /// How many.
        count: usize,
    },
    /// A name that no volume has.
    #[error("{name:?} is no name of a volume")]
    VolumeName {
        /// Which.
        name: String,
    },
    /// Numbers beyond all reason.
    #[error("{count} resource limits; there are 16 kinds")]
    Rlimits {
        /// How many.
        count: usize,
    },
}

/// A text of a request, for error messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum Text {
    /// An argument; 0 is the command.
    #[error("argument {0}")]
    Argument(usize),
    /// A variable of the environment.
    #[error("environment variable {0}")]
    Variable(usize),
    /// The working directory.
    #[error("the working directory")]
    Workdir,
}

/// Why bytes are no plan. Only a daemon of another version, or a bug, sends such.
#[derive(Debug, Error, Clone, Copy, PartialEq, Eq)]
pub enum DecodeError {
    /// Lengths that do not add up.
    #[error("the plan's lengths do not fit its size")]
    Length,
    /// Another program's bytes or another version's.
    #[error("no plan of version {VERSION}")]
    Version,
    /// One of its steps.
    #[error(transparent)]
    Step(#[from] StepError),
    /// Steps in another order than they must be done.
    #[error("step {0} is out of order")]
    Order(u16),
    /// A step that every job needs is not there.
    #[error("step {0} is missing")]
    Missing(u16),
    /// Strings that do not end or are not as many as said.
    #[error("the plan's strings do not fit their number")]
    Strings,
}

/// A complete plan, as it travels.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    bytes: Vec<u8>,
}

impl Plan {
    /// Decides every step of the sandbox of one job.
    ///
    /// # Errors
    /// [`PlanError`]: what of the request cannot be.
    pub fn new(spec: &PlanSpec<'_>) -> Result<Self, PlanError> {
        check(spec)?;
        let base = spec.ids_base;
        let (owner, group) = (base + spec.user.uid, base + spec.user.gid);
        let init = init::user_beside(spec.user.uid);
        let tmp = tmpfs_options(spec.tmp_bytes, "mode=1777");
        let shm = tmpfs_options(spec.shm_bytes, "mode=1777");
        // No gid=: until 6.14 the kernel reads that as a signed number, and host ids begin at 2^31. A terminal
        // then belongs to the group of whoever opens it, which nobody outside of the job is in either.
        let pts = c"newinstance,ptmxmode=0666,mode=0620";
        let work = match spec.work {
            Work::Tmpfs { bytes } => Some(tmpfs_options(
                bytes,
                &format!("mode=0755,uid={owner},gid={group}"),
            )),
            Work::Tree => None,
        };
        let mask: Vec<u8> = spec
            .cpus
            .words()
            .iter()
            .flat_map(|word| word.to_ne_bytes())
            .collect();

        // A directory each; they take no space, but without a size a tmpfs has half of the memory.
        let directory = c_string(format!(
            "size=4096,nr_inodes={},mode=0755",
            spec.volumes.len() + 1
        ));
        let targets: Vec<CString> = spec
            .volumes
            .iter()
            .map(|name| volume_target(name))
            .collect();

        let mut steps = Vec::with_capacity(32 + targets.len());
        steps.extend((spec.joins > 0).then_some(Step::JoinCgroups(spec.joins)));
        steps.extend([
            Step::CgroupNamespace, // after the cgroups are joined, or the job would see their paths
            Step::MountProc,
            Step::MountTmp { options: &tmp },
            Step::MountShm { options: &shm },
            Step::MountPts { options: pts },
            work.as_deref()
                .map_or(Step::AttachWork, |options| Step::MountWork { options }),
        ]);
        if !targets.is_empty() {
            steps.push(Step::MountVolumes {
                options: &directory,
            });
            steps.extend(targets.iter().map(|target| Step::AttachVolume { target }));
            steps.push(Step::SealVolumes);
        }
        steps.push(Step::EnterNet);
        steps.extend(spec.rlimits.iter().copied().map(Step::Rlimit));
        steps.extend([
            Step::Affinity { mask: &mask },
            Step::Stdin,
            Step::Stdout,
            Step::Stderr,
            Step::Control,
        ]);
        steps.extend(spec.has_uploads.then_some(Step::Upload));
        steps.extend([
            Step::EnterUser, // the last moment of real root
            Step::Groups,
            Step::Gid(init),
            Step::Uid(init),
            Step::Capabilities(INIT_CAPABILITIES.bits()),
            Step::Descriptors, // last: nothing opens one after it
            Step::Execute,
        ]);

        let numbers = format!(
            "{} {} {}",
            spec.user.uid,
            spec.user.gid,
            u8::from(spec.has_uploads)
        );
        let ours: [&[u8]; INIT_ARGUMENTS] = [b"joblet-init", numbers.as_bytes(), spec.workdir];
        let arguments = ours.into_iter().chain(spec.argv.iter().map(Vec::as_slice));
        Ok(Self {
            bytes: encode(&steps, arguments, spec.env.iter().map(Vec::as_slice)),
        })
    }

    /// The plan as a sealed memory file, close-on-exec.
    ///
    /// # Errors
    /// As [`memfd::sealed`].
    pub fn seal(&self) -> io::Result<OwnedFd> {
        memfd::sealed(c"joblet-plan", &self.bytes)
    }

    /// The plan as it travels.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}

fn check(spec: &PlanSpec<'_>) -> Result<(), PlanError> {
    if spec.argv.is_empty() {
        return Err(PlanError::NoCommand);
    }
    let workdir = (Text::Workdir, spec.workdir);
    let arguments = spec
        .argv
        .iter()
        .enumerate()
        .map(|(index, text)| (Text::Argument(index), text.as_slice()));
    let variables = spec
        .env
        .iter()
        .enumerate()
        .map(|(index, text)| (Text::Variable(index), text.as_slice()));
    let mut bytes = 0;
    for (text, value) in [workdir].into_iter().chain(arguments).chain(variables) {
        if value.len() >= limits::ARGUMENT_BYTES_MAX {
            return Err(PlanError::TooLong {
                text,
                bytes: value.len(),
            });
        }
        if value.contains(&0) {
            return Err(PlanError::Nul(text));
        }
        bytes += value.len() + 1;
    }
    if bytes > limits::SUBMIT_BYTES_MAX {
        return Err(PlanError::TooLarge { bytes });
    }
    if !spec.workdir.starts_with(b"/") {
        return Err(PlanError::WorkdirRelative);
    }
    if let Some(id) = [spec.user.uid, spec.user.gid]
        .into_iter()
        .find(|id| *id >= limits::IDS_PER_JOB)
    {
        return Err(PlanError::Id { id });
    }
    // The last host id is no id: it means "unchanged" to setresuid(2).
    if spec.ids_base.checked_add(limits::IDS_PER_JOB).is_none() {
        return Err(PlanError::IdsBase {
            base: spec.ids_base,
        });
    }
    let work_bytes = match spec.work {
        Work::Tmpfs { bytes } => bytes,
        Work::Tree => 1,
    };
    let sizes = [
        ("/tmp", spec.tmp_bytes),
        ("/dev/shm", spec.shm_bytes),
        ("/work", work_bytes),
    ];
    if let Some((target, _)) = sizes.into_iter().find(|(_, bytes)| *bytes == 0) {
        return Err(PlanError::NoSize { target });
    }
    if spec.cpus.cpus().next().is_none() {
        return Err(PlanError::NoProcessor);
    }
    if spec.volumes.len() > limits::JOB_VOLUMES_MAX {
        return Err(PlanError::Volumes {
            count: spec.volumes.len(),
        });
    }
    if let Some(name) = spec
        .volumes
        .iter()
        .find(|name| VolumeName::parse(name).is_err())
    {
        return Err(PlanError::VolumeName {
            name: (*name).to_owned(),
        });
    }
    if spec.rlimits.len() > 16 {
        return Err(PlanError::Rlimits {
            count: spec.rlimits.len(),
        });
    }
    Ok(())
}

fn tmpfs_options(bytes: u64, rest: &str) -> CString {
    c_string(format!(
        "size={bytes},nr_inodes={},{rest}",
        (bytes / BYTES_PER_INODE).max(INODES_MIN)
    ))
}

/// Where the volume of a checked name is attached.
fn volume_target(name: &str) -> CString {
    c_string(format!("{VOLUMES}{name}"))
}

fn c_string(text: String) -> CString {
    CString::new(text).expect("what is put together here has no NUL")
}

fn encode<'a>(
    steps: &[Step<'_>],
    arguments: impl Iterator<Item = &'a [u8]>,
    variables: impl Iterator<Item = &'a [u8]>,
) -> Vec<u8> {
    let (mut steps_bytes, mut strings) = (Vec::with_capacity(512), Vec::with_capacity(2048));
    for step in steps {
        step.encode(&mut steps_bytes);
    }
    let mut append = |texts: &mut dyn Iterator<Item = &'a [u8]>| {
        let mut count = 0_u32;
        for text in texts {
            strings.extend_from_slice(text);
            strings.push(0);
            count += 1;
        }
        count
    };
    let (mut arguments, mut variables) = (arguments, variables);
    let (argument_count, variable_count) = (append(&mut arguments), append(&mut variables));
    let small = |len: usize| u32::try_from(len).expect("checked against SUBMIT_BYTES_MAX");
    let mut bytes = Vec::with_capacity(HEADER_BYTES + steps_bytes.len() + strings.len());
    bytes.extend(MAGIC.to_le_bytes());
    bytes.extend(VERSION.to_le_bytes());
    bytes.extend(
        u16::try_from(steps.len())
            .expect("at most 16 limits, 64 volumes and 24 others")
            .to_le_bytes(),
    );
    bytes.extend(argument_count.to_le_bytes());
    bytes.extend(variable_count.to_le_bytes());
    bytes.extend(small(steps_bytes.len()).to_le_bytes());
    bytes.extend(small(strings.len()).to_le_bytes());
    bytes.extend(steps_bytes);
    bytes.extend(strings);
    bytes
}

/// A plan that has been read and found in order; it borrows from its bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DecodedPlan<'a> {
    /// What to do, in this order; the last is [`Step::Execute`], and that is its only one.
    pub steps: Vec<Step<'a>>,
    /// Arguments of init.
    pub arguments: Vec<&'a CStr>,
    /// Environment of the command.
    pub variables: Vec<&'a CStr>,
}

impl<'a> DecodedPlan<'a> {
    /// Reads a plan and checks everything that can be checked: lengths, strings, that every step which isolates
    /// is there, once, in its place.
    ///
    /// # Errors
    /// [`DecodeError`].
    pub fn read(bytes: &'a [u8]) -> Result<Self, DecodeError> {
        let (header, rest) = bytes
            .split_first_chunk::<HEADER_BYTES>()
            .ok_or(DecodeError::Length)?;
        let word = |index: usize| {
            let raw = [
                header[index],
                header[index + 1],
                header[index + 2],
                header[index + 3],
            ];
            u32::from_le_bytes(raw)
        };
        let size = |index: usize| usize::try_from(word(index)).map_err(|_| DecodeError::Length);
        let (version, count) = (word(4) & 0xffff, size(4)? >> 16);
        if word(0) != MAGIC || version != u32::from(VERSION) {
            return Err(DecodeError::Version);
        }
        let (argument_count, variable_count) = (size(8)?, size(12)?);
        let (mut step_bytes, strings) = rest
            .split_at_checked(size(16)?)
            .ok_or(DecodeError::Length)?;
        if strings.len() != size(20)? {
            return Err(DecodeError::Length);
        }
        let mut steps = Vec::with_capacity(count.min(64));
        while !step_bytes.is_empty() {
            let (step, rest) = Step::decode(step_bytes)?;
            steps.push(step);
            step_bytes = rest;
        }
        if steps.len() != count {
            return Err(DecodeError::Length);
        }
        check_order(&steps)?;
        let mut strings = Strings(strings);
        let arguments = strings.take(argument_count)?;
        let variables = strings.take(variable_count)?;
        if !strings.0.is_empty() || arguments.len() <= INIT_ARGUMENTS {
            return Err(DecodeError::Strings);
        }
        Ok(Self {
            steps,
            arguments,
            variables,
        })
    }

    /// Whether a mount for `/work` has to come with the start.
    #[must_use]
    pub fn wants_tree(&self) -> bool {
        self.steps.contains(&Step::AttachWork)
    }

    /// How many cgroups of version 1 have to come with the start.
    #[must_use]
    pub fn wants_joins(&self) -> usize {
        match self.steps.first() {
            Some(Step::JoinCgroups(count)) => usize::from(*count),
            _ => 0,
        }
    }

    /// How many mounts of volumes have to come with the start.
    #[must_use]
    pub fn wants_volumes(&self) -> usize {
        let is_volume = |step: &&Step<'_>| matches!(step, Step::AttachVolume { .. });
        self.steps.iter().filter(is_volume).count()
    }

    /// Whether an upload socket has to come with the start.
    #[must_use]
    pub fn wants_upload(&self) -> bool {
        self.steps.contains(&Step::Upload)
    }
}

/// Tags of the steps that give a job its volumes.
const VOLUME_STEPS: [u16; 3] = [32, 34, 36];

/// Tags that every plan has, in order. Beside them: cgroups to join, `/work` one way or the other, volumes, limits, the
/// upload socket.
const MANDATORY: [u16; 18] = [
    10, 20, 22, 24, 26, 40, 52, 60, 62, 64, 66, 80, 82, 84, 86, 88, 90, 100,
];

fn check_order(steps: &[Step<'_>]) -> Result<(), DecodeError> {
    for pair in steps.windows(2) {
        let repeats = match pair {
            [Step::Rlimit(_), Step::Rlimit(_)] => true,
            [
                Step::AttachVolume { target: one },
                Step::AttachVolume { target: next },
            ] => one != next,
            _ => false,
        };
        if pair[1].tag() < pair[0].tag() || (pair[1].tag() == pair[0].tag() && !repeats) {
            return Err(DecodeError::Order(pair[1].tag()));
        }
    }
    let has = |tag: u16| steps.iter().any(|step| step.tag() == tag);
    if let Some(tag) = MANDATORY.into_iter().find(|tag| !has(*tag)) {
        return Err(DecodeError::Missing(tag));
    }
    // All of them or none: what a job's volumes lie in is sealed, and is there for volumes alone.
    if VOLUME_STEPS.into_iter().any(has)
        && let Some(tag) = VOLUME_STEPS.into_iter().find(|tag| !has(*tag))
    {
        return Err(DecodeError::Missing(tag));
    }
    match (has(28), has(30)) {
        (true, true) => Err(DecodeError::Order(30)),
        (false, false) => Err(DecodeError::Missing(28)),
        _ => Ok(()),
    }
}

/// Strings that each end with NUL.
struct Strings<'a>(&'a [u8]);

impl<'a> Strings<'a> {
    fn take(&mut self, count: usize) -> Result<Vec<&'a CStr>, DecodeError> {
        if count > self.0.len() {
            return Err(DecodeError::Strings);
        }
        let mut texts = Vec::with_capacity(count);
        for _ in 0..count {
            let text = CStr::from_bytes_until_nul(self.0).map_err(|_| DecodeError::Strings)?;
            self.0 = &self.0[text.count_bytes() + 1..];
            texts.push(text);
        }
        Ok(texts)
    }
}

#[cfg(test)]
mod tests;
