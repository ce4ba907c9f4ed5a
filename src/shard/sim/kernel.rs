//! What the kernel keeps of jobs: their cgroup leaves and their processes. It outlives daemon and helpers, and ends
//! with the host.
//!
//! ```text
//! Unread ─► Cloning ─► Waits ─► Starting ─► Runs ─► Dead
//!    └───────────┴────────┴─────────┴────────────────▲
//! ```
//! A job may be tried more than once: each recipe that is sent is an incarnation with a control socket of its own,
//! in which a go may lie before init is there to read it.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    agenda::{MS, Step, US},
    crew::KeeperId,
    faults::Planted,
    world::World,
};
use crate::{
    job::JobId,
    shard::effect::{ExecFailure, Exit, ExitStatus, StartFailure},
};

/// One try to make a job, counted over the whole run.
pub(super) type Incarnation = u64;

/// The leaf of a job.
#[derive(Debug, Default)]
pub(super) struct Leaf {
    pub(super) members: BTreeSet<Incarnation>,
    /// Its processes have used the CPU.
    pub(super) has_run: bool,
    pub(super) oom_kills: u64,
}

/// How far one try is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    /// The recipe lies in the spawner's socket.
    Unread,
    /// The plan is walked.
    Cloning,
    /// init waits for its go.
    Waits,
    /// init starts the command.
    Starting,
    /// The command runs.
    Runs,
    /// No process is left.
    Dead,
}

/// The processes of one try and init's control socket.
#[derive(Debug)]
pub(super) struct Try {
    pub(super) job: JobId,
    /// The keeper that holds it, once it was born.
    pub(super) keeper: Option<KeeperId>,
    pub(super) stage: Stage,
    /// Gos that init has not read.
    pub(super) gos: u32,
    /// Signals that came before the command was there.
    early: Vec<i32>,
    /// What init has written.
    pub(super) started: Option<Result<u64, ExecFailure>>,
    pub(super) exited: Option<Exit>,
    pub(super) is_log_full: bool,
}

/// Leaves and processes.
#[derive(Debug, Default)]
pub(super) struct Kernel {
    pub(super) leaves: BTreeMap<JobId, Leaf>,
    pub(super) tries: BTreeMap<Incarnation, Try>,
    /// Whether there is a cgroup tree of the instance: a daemon makes it, a host that starts does not.
    pub(super) has_tree: bool,
}

impl Kernel {
    /// A recipe is sent.
    pub(super) fn conceive(&mut self, job: JobId) -> Incarnation {
        let number = self.tries.len() as Incarnation + 1;
        let fresh = Try {
            job,
            keeper: None,
            stage: Stage::Unread,
            gos: 0,
            early: Vec::new(),
            started: None,
            exited: None,
            is_log_full: false,
        };
        self.tries.insert(number, fresh);
        number
    }

    pub(super) fn is_populated(&self, job: JobId) -> bool {
        self.leaves.get(&job).is_some_and(|leaf| {
            leaf.members
                .iter()
                .any(|member| self.tries[member].stage != Stage::Dead)
        })
    }

    /// Removes a leaf; false while it is busy.
    pub(super) fn remove_leaf(&mut self, job: JobId) -> bool {
        let is_empty = !self.is_populated(job);
        if is_empty {
            self.leaves.remove(&job);
        }
        is_empty
    }
}

impl World {
    fn stage(&self, number: Incarnation) -> Stage {
        self.kernel.tries[&number].stage
    }

    fn member(&mut self, number: Incarnation) -> &mut Try {
        self.kernel
            .tries
            .get_mut(&number)
            .expect("tries are never forgotten")
    }

    /// A go is written to a control socket.
    pub(super) fn give_go(&mut self, number: Incarnation) {
        self.member(number).gos += 1;
        self.look_for_go(number);
    }

    /// init reads one go and ignores others.
    pub(super) fn look_for_go(&mut self, number: Incarnation) {
        let runs_again = self.planted == Planted::DoubleGo && self.stage(number) == Stage::Runs;
        let member = self.member(number);
        if member.gos == 0 || !(member.stage == Stage::Waits || runs_again) {
            return;
        }
        member.gos = 0;
        member.stage = Stage::Starting;
        let delay = self.dice.between(50 * US, 2 * MS);
        self.agenda.after(delay, Step::Exec(number));
    }

    pub(super) fn on_init_up(&mut self, number: Incarnation) {
        if self.stage(number) == Stage::Cloning {
            self.member(number).stage = Stage::Waits;
            self.look_for_go(number);
        }
    }

    pub(super) fn on_exec(&mut self, number: Incarnation) {
        if self.stage(number) != Stage::Starting {
            return;
        }
        let job = self.kernel.tries[&number].job;
        let command = self.command_of(job);
        let now = self.agenda.now();
        if let Some(failure) = command.failure {
            self.member(number).started = Some(Err(failure));
            self.keeper_reads_soon(number);
            return self.die_soon(number);
        }
        self.ledger.ran(job);
        let mono_ns = self.mono_ns(now);
        let member = self.member(number);
        member.stage = Stage::Runs;
        member.started = Some(Ok(mono_ns));
        let early = std::mem::take(&mut member.early);
        self.keeper_reads_soon(number);
        self.agenda
            .after(command.lives, Step::Ends(number, command.ends));
        if let Some(at) = command.out_of_memory {
            self.agenda.after(at, Step::OutOfMemory(number));
        }
        if let Some(at) = command.fills_log {
            self.agenda.after(at, Step::LogFull(number));
        }
        for signal in early {
            self.signal_command(number, signal);
        }
    }

    /// A signal comes to init.
    pub(super) fn signal_init(&mut self, number: Incarnation, signal: i32) {
        match self.stage(number) {
            Stage::Unread | Stage::Cloning | Stage::Waits | Stage::Starting => {
                self.member(number).early.push(signal);
            }
            Stage::Runs => self.signal_command(number, signal),
            Stage::Dead => {}
        }
    }

    fn signal_command(&mut self, number: Incarnation, signal: i32) {
        let job = self.kernel.tries[&number].job;
        let Some(answer) = self.command_of(job).on_signal else {
            return;
        };
        let ends = match answer {
            ExitStatus::Code(code) => ExitStatus::Code(code),
            ExitStatus::Signal(_) => ExitStatus::Signal(signal),
        };
        let delay = self.dice.between(50 * US, 40 * MS);
        self.agenda.after(delay, Step::Ends(number, ends));
    }

    /// init reaps the command, writes that down and ends.
    pub(super) fn on_command_end(&mut self, number: Incarnation, status: ExitStatus) {
        if self.stage(number) != Stage::Runs {
            return;
        }
        let member = self.member(number);
        let cpu_user_us = 1;
        member.exited.get_or_insert(Exit {
            status,
            cpu_user_us,
            cpu_system_us: 0,
        });
        self.keeper_reads_soon(number);
        self.die_soon(number);
    }

    fn die_soon(&mut self, number: Incarnation) {
        let delay = self.dice.between(5 * US, MS);
        self.agenda.after(delay, Step::Dies(number));
    }

    pub(super) fn on_death(&mut self, number: Incarnation) {
        if self.stage(number) == Stage::Dead {
            return;
        }
        self.member(number).stage = Stage::Dead;
        self.keeper_reads_soon(number);
    }

    fn keeper_reads_soon(&mut self, number: Incarnation) {
        let delay = self.delay(5 * US, 3 * MS);
        self.agenda.after(delay, Step::KeeperReads(number));
    }

    /// `cgroup.kill`: everything in the leaf is as good as dead.
    pub(super) fn kill_leaf(&mut self, job: JobId) {
        let members: Vec<Incarnation> = self
            .kernel
            .leaves
            .get(&job)
            .into_iter()
            .flat_map(|leaf| leaf.members.iter().copied())
            .collect();
        for member in members {
            if self.stage(member) != Stage::Dead {
                self.die_soon(member);
            }
        }
    }

    /// Kills what is in the leaf and waits for it.
    pub(super) fn kill_leaf_now(&mut self, job: JobId) {
        let members = self
            .kernel
            .leaves
            .get(&job)
            .map(|leaf| leaf.members.clone());
        for member in members.into_iter().flatten() {
            self.on_death(member);
        }
    }

    /// Both other ends of its control socket are closed: an init that waits for its go ends.
    pub(super) fn abandon_init(&mut self, number: Incarnation) {
        match self.stage(number) {
            Stage::Cloning | Stage::Waits => self.die_soon(number),
            Stage::Unread | Stage::Starting | Stage::Runs | Stage::Dead => {}
        }
    }

    pub(super) fn on_out_of_memory(&mut self, number: Incarnation) {
        if self.stage(number) != Stage::Runs {
            return;
        }
        let job = self.kernel.tries[&number].job;
        if let Some(leaf) = self.kernel.leaves.get_mut(&job) {
            leaf.oom_kills += 1;
        }
        // Version 2 kills the whole job and tells nobody; version 1 kills one process and tells who listens.
        if self.dice.per_mille(500) {
            self.kill_leaf(job);
        } else {
            let delay = self.dice.between(5 * US, 5 * MS);
            self.agenda
                .after(delay, Step::Ends(number, ExitStatus::Signal(libc::SIGKILL)));
            self.tell_out_of_memory(job);
        }
    }

    pub(super) fn on_log_full(&mut self, number: Incarnation) {
        if self.stage(number) == Stage::Runs {
            self.member(number).is_log_full = true;
            let job = self.kernel.tries[&number].job;
            self.tell_log_full(job);
        }
    }
}

/// A step that fails.
pub(super) fn failure(step: &str) -> StartFailure {
    StartFailure {
        step: step.to_owned(),
        errno: libc::EIO,
    }
}
