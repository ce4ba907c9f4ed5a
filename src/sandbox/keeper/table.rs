//! The jobs a keeper holds, and what of them it has not yet told. No system calls.
//!
//! What is to be told of a job is read off its state, so the queue holds jobs, not messages: at most one
//! entry a job, nothing is ever lost, and a daemon that does not read costs no memory. For the same reason a
//! daemon that takes over can be told everything once more, in the order of births.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use crate::{
    job::JobId,
    sandbox::{
        birth::StepFailure,
        inventory::{HeldState, Passed},
        wire::{ExitedRecord, InitRecord, KeeperEvent, StartedRecord},
    },
};

/// Position of a job in the order of births; never used twice.
pub(super) type Seat = u64;

/// How a job came here.
#[derive(Debug, Clone, Copy)]
pub(super) enum Origin {
    /// Its init lives.
    Born,
    /// A step failed.
    Failed(StepFailure),
}

/// What is held of one job. Fields are `None` from the moment they are of no more use.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) id: JobId,
    pub(super) pid: u32,
    pub(super) origin: Origin,
    /// Until it is reaped.
    pub(super) pidfd: Option<OwnedFd>,
    /// Until it is released.
    pub(super) control: Option<OwnedFd>,
    /// Until it is released: with these the pipes keep what the daemon has not yet read.
    pub(super) output: Option<[OwnedFd; 2]>,
    /// Whether `control` is still watched.
    pub(super) listening: bool,
    pub(super) started: Option<StartedRecord>,
    pub(super) exited: Option<ExitedRecord>,
    pub(super) gone: bool,
    pub(super) released: bool,
    told: Told,
    queued: bool,
}

/// What has been told already.
#[derive(Debug, Clone, Copy, Default)]
struct Told {
    origin: bool,
    started: bool,
    exited: bool,
    gone: bool,
}

impl Job {
    pub(super) fn new(id: JobId, pid: u32, origin: Origin) -> Self {
        Self {
            id,
            pid,
            origin,
            pidfd: None,
            control: None,
            output: None,
            listening: false,
            started: None,
            exited: None,
            gone: false,
            released: false,
            told: Told::default(),
            queued: false,
        }
    }

    /// Keeps a record of init; the first of each kind counts.
    pub(super) fn note(&mut self, record: InitRecord) {
        match record {
            InitRecord::Started(record) => _ = self.started.get_or_insert(record),
            InitRecord::Exited(record) => _ = self.exited.get_or_insert(record),
        }
    }

    /// What a list says of it.
    pub(super) fn state(&self) -> HeldState {
        HeldState {
            started: self.started.is_some(),
            exited: self.exited.is_some(),
            gone: self.gone,
            failed: matches!(self.origin, Origin::Failed(_)),
            released: self.released,
        }
    }

    /// What a daemon needs of it, in the order of travel.
    pub(super) fn descriptors(&self) -> (Passed, Vec<BorrowedFd<'_>>) {
        let passed = Passed {
            output: self.output.is_some(),
            control: self.control.is_some(),
            is_incomplete: false,
        };
        let fds = self.output.iter().flatten().chain(&self.control);
        (passed, fds.map(AsFd::as_fd).collect())
    }

    /// The next event that has not been told.
    fn next(&self) -> Option<KeeperEvent> {
        let (id, told) = (self.id, self.told);
        if !told.origin {
            return Some(match self.origin {
                Origin::Born => KeeperEvent::Born { id, pid: self.pid },
                Origin::Failed(StepFailure { step, errno }) => {
                    KeeperEvent::StepFailed { id, step, errno }
                }
            });
        }
        let started = self.started.filter(|_| !told.started);
        let exited = self.exited.filter(|_| !told.exited);
        started
            .map(|record| KeeperEvent::Started { id, record })
            .or(exited.map(|record| KeeperEvent::Exited { id, record }))
            .or((self.gone && !told.gone).then_some(KeeperEvent::Gone { id }))
    }

    fn tick(&mut self, event: &KeeperEvent) {
        match event {
            KeeperEvent::Born { .. } | KeeperEvent::StepFailed { .. } => self.told.origin = true,
            KeeperEvent::Started { .. } => self.told.started = true,
            KeeperEvent::Exited { .. } => self.told.exited = true,
            KeeperEvent::Gone { .. } => self.told.gone = true,
            KeeperEvent::Ready | KeeperEvent::SpawnerGone => {}
        }
    }
}

/// All jobs of a keeper, by seat and by id.
#[derive(Debug, Default)]
pub(super) struct Table {
    jobs: BTreeMap<Seat, Job>,
    seats: HashMap<JobId, Seat>,
    queue: VecDeque<Seat>,
    last: Seat,
}

impl Table {
    /// Takes a job in. `Err` gives it back when one of this id is here already.
    pub(super) fn insert(&mut self, job: Job) -> Result<Seat, Box<Job>> {
        if self.seats.contains_key(&job.id) {
            return Err(Box::new(job));
        }
        self.last += 1;
        self.seats.insert(job.id, self.last);
        self.jobs.insert(self.last, job);
        Ok(self.last)
    }

    pub(super) fn get_mut(&mut self, seat: Seat) -> Option<&mut Job> {
        self.jobs.get_mut(&seat)
    }

    pub(super) fn seat(&self, id: JobId) -> Option<Seat> {
        self.seats.get(&id).copied()
    }

    pub(super) fn remove(&mut self, seat: Seat) -> Option<Job> {
        let job = self.jobs.remove(&seat)?;
        self.seats.remove(&job.id);
        Some(job)
    }

    /// The first job in the order of births whose seat is not before `seat`.
    pub(super) fn first_from(&self, seat: Seat) -> Option<(Seat, &Job)> {
        let (seat, job) = self.jobs.range(seat..).next()?;
        Some((*seat, job))
    }

    /// Forgets what has been told: a daemon that does not know it has taken over.
    pub(super) fn rewind(&mut self) {
        self.queue.clear();
        let seats: Vec<Seat> = self.jobs.keys().copied().collect();
        for job in self.jobs.values_mut() {
            (job.told, job.queued) = (Told::default(), false);
        }
        seats.into_iter().for_each(|seat| self.announce(seat));
    }

    pub(super) fn is_empty(&self) -> bool {
        self.jobs.is_empty()
    }

    /// Puts a job in the queue of those with something to tell.
    pub(super) fn announce(&mut self, seat: Seat) {
        if let Some(job) = self.jobs.get_mut(&seat)
            && !job.queued
            && !job.released
            && job.next().is_some()
        {
            job.queued = true;
            self.queue.push_back(seat);
        }
    }

    /// Hands every untold event to `send`, in order, until it answers `false`; the rest stays.
    /// Returns whether all is told.
    pub(super) fn tell(&mut self, mut send: impl FnMut(&KeeperEvent) -> bool) -> bool {
        while let Some(seat) = self.queue.front() {
            if let Some(job) = self.jobs.get_mut(seat) {
                while let Some(event) = job.next().filter(|_| !job.released) {
                    if !send(&event) {
                        return false;
                    }
                    job.tick(&event);
                }
                job.queued = false;
            }
            self.queue.pop_front();
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const STARTED: StartedRecord = StartedRecord {
        step: 0,
        errno: 0,
        mono_ns: 1,
    };
    const EXITED: ExitedRecord = ExitedRecord {
        wait_status: 0,
        utime_us: 1,
        stime_us: 2,
        maxrss_kb: 3,
    };

    fn id(number: u8) -> JobId {
        JobId::from_bytes([number; 16])
    }

    fn drain(table: &mut Table, most: usize) -> Vec<KeeperEvent> {
        let mut told = Vec::new();
        table.tell(|event| {
            let room = told.len() < most;
            if room {
                told.push(*event);
            }
            room
        });
        told
    }

    #[test]
    fn events_of_a_job_come_in_order_once_and_a_refused_one_comes_again() {
        let mut table = Table::default();
        let seat = table.insert(Job::new(id(1), 7, Origin::Born)).unwrap();
        let job = table.get_mut(seat).unwrap();
        job.note(InitRecord::Exited(EXITED));
        job.note(InitRecord::Started(STARTED));
        job.gone = true;
        table.announce(seat);
        table.announce(seat);
        assert_eq!(
            drain(&mut table, 1),
            [KeeperEvent::Born { id: id(1), pid: 7 }]
        );
        assert_eq!(
            drain(&mut table, 1),
            [KeeperEvent::Started {
                id: id(1),
                record: STARTED
            }]
        );
        assert_eq!(
            drain(&mut table, 9),
            [
                KeeperEvent::Exited {
                    id: id(1),
                    record: EXITED
                },
                KeeperEvent::Gone { id: id(1) }
            ]
        );
        table.announce(seat);
        assert_eq!(drain(&mut table, 9), []);
    }

    #[test]
    fn after_a_rewind_everything_is_told_again_in_the_order_of_births_but_for_what_is_released() {
        let mut table = Table::default();
        let seats = [3, 1, 2].map(|number| {
            let job = Job::new(id(number), number.into(), Origin::Born);
            table.insert(job).unwrap()
        });
        seats.into_iter().for_each(|seat| table.announce(seat));
        assert_eq!(drain(&mut table, 2).len(), 2);
        let job = table.get_mut(seats[0]).unwrap();
        job.note(InitRecord::Started(STARTED));
        table.announce(seats[0]);
        table.get_mut(seats[1]).unwrap().released = true;
        let born = |number: u8| KeeperEvent::Born {
            id: id(number),
            pid: number.into(),
        };
        let started = KeeperEvent::Started {
            id: id(3),
            record: STARTED,
        };
        for _ in 0..2 {
            table.rewind();
            assert_eq!(drain(&mut table, 9), [born(3), started, born(2)]);
        }
        assert_eq!(drain(&mut table, 9), []);
        let order = [0, 1, 2, 3, 4].map(|from| table.first_from(from).map(|(seat, _)| seat));
        assert_eq!(order, [Some(1), Some(1), Some(2), Some(3), None]);
    }

    #[test]
    fn a_second_job_of_the_same_id_is_given_back() {
        let mut table = Table::default();
        table.insert(Job::new(id(1), 7, Origin::Born)).unwrap();
        assert_eq!(
            table
                .insert(Job::new(id(1), 8, Origin::Born))
                .unwrap_err()
                .pid,
            8
        );
    }

    proptest! {
        /// Whatever happens in whatever order and however slowly the daemon reads: per job each event at
        /// most once, the origin first and `Gone` last, and in the end all of them.
        #[test]
        fn nothing_is_lost_doubled_or_told_out_of_order(
            steps in prop::collection::vec((0..4_u8, 0..5_u8, 0..4_usize), 0..200),
        ) {
            let mut table = Table::default();
            let mut told: HashMap<JobId, Vec<KeeperEvent>> = HashMap::new();
            let mut note = |events: Vec<KeeperEvent>| {
                for event in events {
                    let id = match event {
                        KeeperEvent::Born { id, .. } | KeeperEvent::StepFailed { id, .. }
                        | KeeperEvent::Started { id, .. } | KeeperEvent::Exited { id, .. }
                        | KeeperEvent::Gone { id } => id,
                        KeeperEvent::Ready | KeeperEvent::SpawnerGone => unreachable!(),
                    };
                    told.entry(id).or_default().push(event);
                }
            };
            for (number, what, room) in steps {
                let seat = match table.seat(id(number)) {
                    Some(seat) => seat,
                    None => table.insert(Job::new(id(number), 1, Origin::Born)).unwrap(),
                };
                let job = table.get_mut(seat).unwrap();
                match what {
                    0 if !job.gone => job.note(InitRecord::Started(STARTED)),
                    1 if !job.gone => job.note(InitRecord::Exited(EXITED)),
                    2 => job.gone = true,
                    _ => {}
                }
                table.announce(seat);
                note(drain(&mut table, room));
            }
            note(drain(&mut table, usize::MAX));
            for (id, events) in &told {
                let job = table.get_mut(table.seat(*id).unwrap()).unwrap();
                let first_is_birth = matches!(events[0], KeeperEvent::Born { .. });
                prop_assert!(first_is_birth);
                let count = 1 + usize::from(job.started.is_some()) + usize::from(job.exited.is_some())
                    + usize::from(job.gone);
                prop_assert_eq!(events.len(), count);
                for (at, event) in events.iter().enumerate() {
                    prop_assert!(!events[..at].contains(event));
                    let last = matches!(event, KeeperEvent::Gone { .. });
                    prop_assert!(!last || at == events.len() - 1);
                }
            }
        }
    }
}
