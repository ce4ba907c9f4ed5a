//! What was asked for, what was promised, and what has come of it.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};

use proto_rkyv::{Id, Job, State};

use super::ask::name_of;
use super::order::{Order, Sort, is_end};
use crate::harness::Dice;

/// Jobs that are asked for and have not ended, at any moment.
const POOL: usize = 300;

/// The memory of the client: it outlives every daemon.
#[derive(Debug)]
pub(super) struct Book {
    dice: Dice,
    /// Everything that was ever asked for, by its name.
    asked: HashMap<String, Order>,
    /// Promised, or found to have a record, and not seen to have ended.
    open: BTreeMap<Id, Order>,
    /// Whose end was compared with what it must be, and the state of it.
    ended: BTreeMap<Id, (String, State)>,
    /// Open jobs in the order in which to look at them next.
    turn: VecDeque<Id>,
    /// Those whose stop was acknowledged: they are not asked again.
    stopping: BTreeSet<Id>,
    /// Submits that are being made.
    pending: usize,
    /// No more jobs are asked for.
    is_closing: bool,
    /// What is wrong.
    pub(super) wrong: Vec<String>,
    /// What happened so far.
    pub(super) counts: Counts,
}

/// Numbers for people.
#[derive(Debug, Default)]
pub(super) struct Counts {
    /// Submits that were acknowledged.
    pub(super) acknowledged: u64,
    /// Stops that were.
    pub(super) stopped: u64,
    /// Submits whose answer was lost, and which had a record.
    pub(super) found: u64,
    /// Jobs whose whole output was compared.
    pub(super) compared: u64,
    /// Bytes of it.
    pub(super) bytes: u64,
    /// Bytes that followers of running jobs were sent.
    pub(super) followed: u64,
}

/// What to do next.
#[derive(Debug)]
pub(super) enum Next {
    /// Ask for a job.
    Submit(Order),
    /// Look at one.
    Look(Id, Order),
    /// Nothing is left.
    Nothing,
}

impl Book {
    pub(super) fn new(dice: Dice) -> Self {
        Self {
            dice,
            asked: HashMap::new(),
            open: BTreeMap::new(),
            ended: BTreeMap::new(),
            turn: VecDeque::new(),
            stopping: BTreeSet::new(),
            pending: 0,
            is_closing: false,
            wrong: Vec::new(),
            counts: Counts::default(),
        }
    }

    /// A number below `end`.
    pub(super) fn below(&mut self, end: u64) -> u64 {
        self.dice.below(end)
    }

    /// From now on nothing new is asked for.
    pub(super) const fn close(&mut self) {
        self.is_closing = true;
    }

    pub(super) fn next(&mut self) -> Next {
        let has_room = !self.is_closing && self.open.len() + self.pending < POOL;
        // Looks go between, so that jobs that have ended make room.
        if has_room && (self.turn.is_empty() || self.dice.below(3) > 0) {
            let order = Order::random(self.asked.len() as u64, &mut self.dice);
            self.asked.insert(order.name(), order);
            self.pending += 1;
            return Next::Submit(order);
        }
        while let Some(id) = self.turn.pop_front() {
            if let Some(order) = self.open.get(&id) {
                return Next::Look(id, *order);
            }
        }
        Next::Nothing
    }

    /// A job that can be followed: it prints for a while.
    pub(super) fn follow(&mut self) -> Option<(Id, Order)> {
        let mut printing = self.open.iter();
        let count = self.open.len().max(1) as u64;
        let skipped = usize::try_from(self.dice.below(count)).unwrap();
        let is_lines = |(_, order): &(&Id, &Order)| order.kind == Sort::Lines;
        let later = printing.by_ref().skip(skipped).find(is_lines);
        let found = later.or_else(|| self.open.iter().find(is_lines));
        found.map(|(id, order)| (*id, *order))
    }

    /// A submit was acknowledged.
    pub(super) fn acknowledged(&mut self, id: Id, order: Order) {
        self.pending -= 1;
        self.counts.acknowledged += 1;
        self.add(id, order);
    }

    /// The daemon died before it answered some submits.
    pub(super) const fn forget_pending(&mut self) {
        self.pending = 0;
    }

    /// A job has not ended yet.
    pub(super) fn look_again(&mut self, id: Id) {
        self.turn.push_back(id);
    }

    /// Whether a job was not promised to be stopped yet.
    pub(super) fn may_stop(&self, id: Id) -> bool {
        !self.stopping.contains(&id)
    }

    /// A stop was acknowledged.
    pub(super) fn stopped(&mut self, id: Id) {
        self.stopping.insert(id);
        self.counts.stopped += 1;
    }

    /// A job has ended, and its end was compared.
    pub(super) fn ended(&mut self, job: &Job, bytes: usize) {
        if let Some(order) = self.open.remove(&job.id) {
            self.counts.compared += 1;
            self.counts.bytes += bytes as u64;
            self.ended.insert(job.id, (order.name(), job.state));
        }
    }

    /// Something is not as it was promised.
    pub(super) fn wrong(&mut self, what: String) {
        self.wrong.push(what);
    }

    /// Compares all records with what is known: nothing acknowledged is missing, nothing is there twice, and what
    /// has ended stays as it ended. Records of submits whose answer was lost are open jobs from now on.
    pub(super) fn compare(&mut self, records: &[Job]) {
        let mut names = BTreeSet::new();
        let ids: BTreeSet<Id> = records.iter().map(|job| job.id).collect();
        for id in self.open.keys().chain(self.ended.keys()) {
            if !ids.contains(id) {
                let order = self.open.get(id);
                let lost = format!("acknowledged job {} is lost: {order:?}", name_of(*id));
                self.wrong.push(lost);
            }
        }
        for job in records {
            let name = job.name.clone().unwrap_or_default();
            let Some(order) = self.asked.get(&name).copied() else {
                self.wrong(format!("nobody asked for {job:?}"));
                continue;
            };
            if !names.insert(name) {
                self.wrong(format!("a second job of one submit: {job:?}"));
            }
            match self.ended.get(&job.id) {
                Some((_, state)) if *state == job.state => {}
                Some((_, state)) => {
                    let what = format!("its end was {state:?} before: {job:?}");
                    self.wrong(what);
                }
                None if self.open.contains_key(&job.id) => {}
                None => {
                    self.counts.found += 1;
                    self.add(job.id, order);
                }
            }
        }
    }

    /// How many jobs must have run, once all have ended.
    pub(super) fn ran(&self) -> u64 {
        let has_run = |(name, _): &&(String, State)| {
            self.asked
                .get(name)
                .is_some_and(|order| order.kind != Sort::Unknown)
        };
        self.ended.values().filter(has_run).count() as u64
    }

    /// How many have not ended.
    pub(super) fn open(&self) -> usize {
        self.open.len()
    }

    /// How many have ended.
    pub(super) fn all_ended(&self) -> bool {
        self.open.is_empty() && self.ended.values().all(|(_, state)| is_end(*state))
    }

    fn add(&mut self, id: Id, order: Order) {
        if self.open.insert(id, order).is_none() {
            self.turn.push_back(id);
        } else {
            self.wrong(format!("an id twice: {} {order:?}", name_of(id)));
        }
    }
}
