//! Which volumes there are and which jobs have them: the pure state behind every answer about a volume.
//!
//! The first shard keeps it and every shard asks, so what is decided here is decided once for all of them. It makes
//! nothing, reads no clock and waits for nobody.
//!
//! ```text
//! begin_create ─► Creating ─► Ready ◄─► Removing ─► (gone)
//!                   │ └───────────────────┼──────────▲
//!                   └─────────► Stuck ◄───┘
//! ```
//! A job *holds* its volumes from before it exists until nothing of it is left. Only what is `Ready` can be held,
//! and only what nobody holds can be removed: whichever of the two comes first wins, and the other one is refused.
//! `Stuck` is what could be neither made nor removed: only another try to remove it can follow.

use std::collections::{BTreeMap, HashMap};

use crate::{
    job::{Attachment, JobId, Refusal, RefusalCode, VolumeKind, VolumeName, VolumeSpec},
    limits,
};

/// Volumes, and what holds them.
#[derive(Debug, Default)]
pub(crate) struct Registry {
    volumes: BTreeMap<VolumeName, Entry>,
    holders: HashMap<JobId, Holder>,
    /// Number of the next job that comes.
    next: u64,
}

/// One volume.
#[derive(Debug)]
struct Entry {
    spec: VolumeSpec,
    created_ns: i64,
    state: State,
    /// What is wrong with it.
    damage: Option<String>,
    /// Jobs that have it, in the order in which they came.
    jobs: BTreeMap<u64, JobId>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Creating,
    Ready,
    Removing { was_ready: bool },
    Stuck,
}

/// What became of a volume that was to be made or removed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Became {
    /// It is made.
    Ready,
    /// Nothing is left of it.
    Gone,
    /// Something is left of it, and why.
    Stuck(String),
    /// Nothing was done to it: it is what it was before.
    Untouched,
}

/// One job that has volumes.
#[derive(Debug)]
struct Holder {
    number: u64,
    /// Those that were there when it came.
    volumes: Vec<Attachment>,
}

/// A volume as the registry knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Known {
    /// What was asked.
    pub(crate) spec: VolumeSpec,
    /// When it was made, nanoseconds since the epoch.
    pub(crate) created_ns: i64,
    /// What is wrong with it, in one line.
    pub(crate) damage: Option<String>,
    /// Jobs that have it, in the order in which they came.
    pub(crate) jobs: Vec<JobId>,
}

/// What a former daemon left of a volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Left {
    /// All of it.
    Whole,
    /// It cannot be used as it is, and why.
    Damaged(String),
    /// It was being made or removed, and what is left does not go away, and why.
    Stuck(String),
}

/// Why a volume is not removed now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Kept {
    /// Jobs have it, in the order in which they came.
    InUse(Vec<JobId>),
    /// It cannot be removed at all.
    Refused(Refusal),
}

impl Registry {
    /// Counts a volume that a former daemon made.
    pub(crate) fn restore(&mut self, spec: VolumeSpec, created_ns: i64, left: Left) {
        let (state, damage) = match left {
            Left::Whole => (State::Ready, None),
            Left::Damaged(why) => (State::Ready, Some(why)),
            Left::Stuck(why) => (State::Stuck, Some(why)),
        };
        self.insert(spec, created_ns, state, damage);
    }

    fn insert(&mut self, spec: VolumeSpec, created_ns: i64, state: State, damage: Option<String>) {
        let name = spec.name.clone();
        let entry = Entry {
            spec,
            created_ns,
            state,
            damage,
            jobs: BTreeMap::new(),
        };
        self.volumes.insert(name, entry);
    }

    /// Counts a job of a former daemon. What it names and is not there it does not hold: it will hear so when it is
    /// made, and one that runs has it attached.
    pub(crate) fn restore_holder(&mut self, job: JobId, volumes: &[Attachment]) {
        let known = |attachment: &&Attachment| self.volumes.contains_key(&attachment.volume);
        let volumes: Vec<_> = volumes.iter().filter(known).cloned().collect();
        self.note_holder(job, volumes);
    }

    /// A job is to have these volumes: all of them, or none.
    ///
    /// # Errors
    /// `NotFound` with the first that is not there.
    pub(crate) fn hold(&mut self, job: JobId, volumes: &[Attachment]) -> Result<(), Refusal> {
        for Attachment { volume, .. } in volumes {
            match self.volumes.get(volume).map(|entry| entry.state) {
                Some(State::Ready) => {}
                Some(State::Creating) => {
                    return Err(
                        not_found(volume).hint("it is just being made; try again when it is")
                    );
                }
                Some(State::Removing { .. } | State::Stuck) | None => return Err(unknown(volume)),
            }
        }
        self.note_holder(job, volumes.to_vec());
        Ok(())
    }

    fn note_holder(&mut self, job: JobId, volumes: Vec<Attachment>) {
        if volumes.is_empty() || self.holders.contains_key(&job) {
            return;
        }
        let number = self.next;
        self.next += 1;
        for Attachment { volume, .. } in &volumes {
            if let Some(entry) = self.volumes.get_mut(volume) {
                entry.jobs.insert(number, job);
            }
        }
        self.holders.insert(job, Holder { number, volumes });
    }

    /// Nothing of a job is left, or it never came to be. Releasing twice changes nothing. What it could write to.
    pub(crate) fn release(&mut self, job: JobId) -> Vec<VolumeName> {
        let Some(holder) = self.holders.remove(&job) else {
            return Vec::new();
        };
        for Attachment { volume, .. } in &holder.volumes {
            if let Some(entry) = self.volumes.get_mut(volume) {
                entry.jobs.remove(&holder.number);
            }
        }
        let written = holder.volumes.into_iter().filter(|one| !one.is_read_only);
        written.map(|one| one.volume).collect()
    }

    /// A volume is to be made; [`Registry::settle`] says what came of it.
    ///
    /// # Errors
    /// `Conflict` when the name is taken, `Busy` when there are as many as there may be.
    pub(crate) fn begin_create(
        &mut self,
        spec: VolumeSpec,
        created_ns: i64,
    ) -> Result<(), Refusal> {
        let name = &spec.name;
        if let Some(entry) = self.volumes.get(name) {
            let message = format!("volume {name} already exists");
            let refusal = Refusal::new(RefusalCode::Conflict, message);
            return Err(match entry.state {
                State::Ready => refusal,
                State::Creating => refusal.hint("it is just being made"),
                State::Removing { .. } => {
                    refusal.hint("it is just being removed; try again when it is gone")
                }
                State::Stuck => refusal.hint(format!(
                    "`rnx volume remove {name}` removes what is left of it"
                )),
            });
        }
        if self.volumes.len() >= limits::VOLUMES_MAX {
            let message = format!("there are {} volumes and no more fit", self.volumes.len());
            return Err(Refusal::new(RefusalCode::Busy, message)
                .hint("`rnx volume remove` removes those that nobody needs"));
        }
        self.insert(spec, created_ns, State::Creating, None);
        Ok(())
    }

    /// A volume is to be removed; [`Registry::settle`] says what came of it. Nobody can have it meanwhile.
    ///
    /// # Errors
    /// [`Kept::InUse`] when a job has it; `NotFound`; `Conflict` while it is being made or removed.
    pub(crate) fn begin_remove(&mut self, name: &VolumeName) -> Result<VolumeSpec, Kept> {
        let Some(entry) = self.volumes.get_mut(name) else {
            return Err(Kept::Refused(unknown(name)));
        };
        let busy = |doing: &str| {
            let message = format!("volume {name} is just being {doing}");
            Err(Kept::Refused(Refusal::new(RefusalCode::Conflict, message)))
        };
        match entry.state {
            State::Creating => busy("made"),
            State::Removing { .. } => busy("removed"),
            State::Ready | State::Stuck if entry.jobs.is_empty() => {
                let was_ready = entry.state == State::Ready;
                entry.state = State::Removing { was_ready };
                Ok(entry.spec.clone())
            }
            State::Ready | State::Stuck => Err(Kept::InUse(entry.jobs.values().copied().collect())),
        }
    }

    /// What became of a volume that was begun to be made or removed. Of any other nothing changes.
    pub(crate) fn settle(&mut self, name: &VolumeName, became: Became) {
        let Some(entry) = self.volumes.get_mut(name) else {
            return;
        };
        let before = match entry.state {
            State::Ready | State::Stuck => return,
            // What was never whole is not left to anybody.
            State::Creating | State::Removing { was_ready: false } => State::Stuck,
            State::Removing { was_ready: true } => State::Ready,
        };
        match became {
            Became::Ready => entry.state = State::Ready,
            Became::Untouched => entry.state = before,
            Became::Stuck(why) => {
                entry.state = State::Stuck;
                entry.damage = Some(why);
            }
            Became::Gone => {
                self.volumes.remove(name);
            }
        }
    }

    /// What is wrong with a volume, or that nothing is any more.
    pub(crate) fn note_damage(&mut self, name: &VolumeName, damage: Option<String>) {
        if let Some(entry) = self.volumes.get_mut(name)
            && entry.state == State::Ready
        {
            entry.damage = damage;
        }
    }

    /// What the volumes are that a job holds, in the order in which it named them, and whether each is known to be
    /// damaged.
    #[must_use]
    pub(crate) fn held_by(&self, job: JobId) -> Vec<(VolumeSpec, bool)> {
        let volumes = self.holders.get(&job).map(|holder| &holder.volumes);
        let spec = |attachment: &Attachment| {
            let entry = self.volumes.get(&attachment.volume)?;
            Some((entry.spec.clone(), entry.damage.is_some()))
        };
        volumes.into_iter().flatten().filter_map(spec).collect()
    }

    /// Every volume that there is, by name: those that are being made are not there yet.
    pub(crate) fn iter(&self) -> impl Iterator<Item = Known> + '_ {
        self.volumes.values().filter_map(Entry::known)
    }

    /// One of them.
    ///
    /// # Errors
    /// `NotFound`.
    pub(crate) fn get(&self, name: &VolumeName) -> Result<Known, Refusal> {
        let entry = self.volumes.get(name);
        entry.and_then(Entry::known).ok_or_else(|| unknown(name))
    }

    /// Disk images that jobs have, with those that may write to each.
    #[must_use]
    pub(crate) fn written(&self) -> Vec<(VolumeSpec, Vec<JobId>)> {
        let may_write = |job: &JobId, name: &VolumeName| {
            self.holders.get(job).is_some_and(|holder| {
                let mut volumes = holder.volumes.iter();
                volumes.any(|one| one.volume == *name && !one.is_read_only)
            })
        };
        self.volumes
            .values()
            .filter(|entry| entry.spec.kind == VolumeKind::Filesystem && !entry.jobs.is_empty())
            .map(|entry| {
                let jobs = entry.jobs.values().copied();
                let writers = jobs.filter(|job| may_write(job, &entry.spec.name));
                (entry.spec.clone(), writers.collect())
            })
            .collect()
    }
}

impl Entry {
    fn known(&self) -> Option<Known> {
        (self.state != State::Creating).then(|| Known {
            spec: self.spec.clone(),
            created_ns: self.created_ns,
            damage: self.damage.clone(),
            jobs: self.jobs.values().copied().collect(),
        })
    }
}

/// What is said of a volume that jobs have.
pub(super) fn in_use(jobs: &[JobId]) -> Refusal {
    /// More say no more.
    const SHOWN: usize = 16;
    let mut shown: Vec<_> = jobs.iter().take(SHOWN).map(ToString::to_string).collect();
    if let Some(more) = jobs.len().checked_sub(SHOWN).filter(|more| *more > 0) {
        shown.push(format!("and {more} more"));
    }
    let message = format!("Volume is in use by active jobs: {}", shown.join(", "));
    Refusal::new(RefusalCode::Conflict, message)
        .hint("`rnx job stop` ends them; `rnx job cancel` takes back what has not begun")
}

fn not_found(name: &VolumeName) -> Refusal {
    Refusal::new(RefusalCode::NotFound, format!("volume {name} not found"))
}

fn unknown(name: &VolumeName) -> Refusal {
    not_found(name).hint(format!(
        "`rnx volume list` shows the volumes there are, `rnx volume create {name} --size=1GB` makes it"
    ))
}

#[cfg(test)]
mod tests;
