//! Who may run, where the daemon bounds what runs at once: the pure state of admission.
//!
//! One queue for the jobs of all shards. It holds reservations and an order; it starts nothing, reads no clock
//! and knows no mailbox: whoever owns it asks, and passes on what was granted.
//!
//! ```text
//! ask ──────────────────► granted ──► give_back
//!  │   └─► waits ─► granted in time ─►┘   │
//!  └─► refused   └────────────────────────┘ canceled
//! restore_running, restore_waiting ─► grant
//! ```
//! **What is reserved** are limits, not use: a job reserves its limit on memory and on CPU for as long as it
//! runs, and nothing of a resource on which it has no limit.
//!
//! **The order**: the highest priority first; within a priority the owner with the fewest running jobs, whatever
//! their priority, so that nobody who submits a thousand jobs keeps the others waiting; then the oldest; then the
//! lower id.
//!
//! **It is strict**: while the first job does not fit, nobody behind it runs, however small. Letting small jobs
//! pass would use the host better, and a large job would never run on a busy one: each small job that passes takes
//! what the large one waits for. For the same reason lower priorities do not pass higher ones. An owner's large job
//! can still be overtaken by owners who run less; with nothing running it is overtaken by older jobs only.
//!
//! After every call but `restore_*` the first job that waits does not fit.

mod line;

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet, HashMap},
    num::NonZeroUsize,
    sync::Arc,
};

use line::{Line, Place};

use crate::job::{JobId, Refusal, RefusalCode, units::format_size};

/// What jobs may have at once, all together, and how many may wait for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Budget {
    /// `jobs.max_running`: jobs that run.
    pub running_max: Option<NonZeroUsize>,
    /// `jobs.memory_budget`: the sum of their memory limits, bytes.
    pub memory_bytes: Option<u64>,
    /// `jobs.cpu_budget`: the sum of their CPU limits, percent of one core.
    pub cpu_percent: Option<u64>,
    /// `jobs.queue_max`: jobs that wait; further ones are refused.
    pub queue_max: usize,
}

/// What one job asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Demand {
    /// Its id, unique.
    pub id: JobId,
    /// Common name of the one who submitted it.
    pub owner: String,
    /// The greatest is first.
    pub priority: i32,
    /// Wall clock of its submit, nanoseconds since the epoch; of a job that has waited for its time, of that time.
    pub arrived_ns: i64,
    /// Its memory limit, bytes; 0 when it has none, and then it reserves no memory.
    pub memory_bytes: u64,
    /// Its CPU limit, percent of one core; 0 when it has none, and then it reserves no CPU.
    pub cpu_percent: u64,
}

/// What came of asking.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// It may run.
    Granted,
    /// It waits, now for this; [`Queue::why`] tells it anew, for it changes with every job that comes or ends.
    Waits(String),
}

/// Jobs that run or wait, and what is reserved for them.
#[derive(Debug)]
pub struct Queue {
    budget: Budget,
    used: Used,
    jobs: HashMap<JobId, Entry>,
    owners: HashMap<Arc<str>, Owner>,
    /// The owners that wait at each priority, the next one first. No level is empty.
    levels: BTreeMap<Reverse<i32>, Level>,
    waiting: usize,
}

/// What running jobs have reserved. Limits may be large and restored jobs are beyond every budget: a sum of
/// 64 bits could overflow.
#[derive(Debug, Clone, Copy, Default)]
struct Used {
    jobs: usize,
    memory_bytes: u128,
    cpu_percent: u128,
}

#[derive(Debug)]
struct Entry {
    owner: Arc<str>,
    level: Reverse<i32>,
    place: Place,
    memory_bytes: u64,
    cpu_percent: u64,
    is_running: bool,
}

/// One owner with jobs. No line is empty.
#[derive(Debug, Default)]
struct Owner {
    running: usize,
    lines: BTreeMap<Reverse<i32>, Line>,
}

/// One priority.
#[derive(Debug, Default)]
struct Level {
    /// For each owner with a line here: how many jobs it runs, and its oldest one here.
    turns: BTreeSet<(usize, Place)>,
    waiting: usize,
}

impl Budget {
    /// Whether nothing is bounded: nobody needs to ask.
    #[must_use]
    pub fn is_open(&self) -> bool {
        let Self {
            running_max,
            memory_bytes,
            cpu_percent,
            queue_max: _,
        } = self;
        running_max.is_none() && memory_bytes.is_none() && cpu_percent.is_none()
    }

    /// Refuses what does not fit when nothing else runs.
    fn check(&self, demand: &Demand) -> Result<(), Refusal> {
        let refuse = |message| Refusal::new(RefusalCode::TooLarge, message);
        if let Some(budget) = self.memory_bytes.filter(|most| demand.memory_bytes > *most) {
            return Err(refuse(format!(
                "the job's memory limit of {} is more than all jobs together may have, {} (jobs.memory_budget)",
                format_size(demand.memory_bytes),
                format_size(budget),
            ))
            .hint("ask for less with --max-memory"));
        }
        if let Some(budget) = self.cpu_percent.filter(|most| demand.cpu_percent > *most) {
            return Err(refuse(format!(
                "the job's CPU limit of {} percent is more than all jobs together may have, {budget} percent \
                 (jobs.cpu_budget)",
                demand.cpu_percent,
            ))
            .hint("ask for less with --max-cpu"));
        }
        Ok(())
    }

    /// What `entry` lacks beside what is used, in words; `None` when it fits.
    fn lack(&self, used: &Used, entry: &Entry) -> Option<String> {
        if let Some(most) = self.running_max.filter(|most| used.jobs >= most.get()) {
            return Some(format!(
                "{} of {most} jobs run (jobs.max_running)",
                used.jobs
            ));
        }
        // A job that reserves nothing fits even where restored jobs have more than the budget.
        let is_over = |used: u128, asked: u64, most: u64| {
            asked > 0 && used + u128::from(asked) > u128::from(most)
        };
        if let Some(most) = self
            .memory_bytes
            .filter(|most| is_over(used.memory_bytes, entry.memory_bytes, *most))
        {
            return Some(format!(
                "{} of {} memory are reserved, {} are needed (jobs.memory_budget)",
                format_size(u64::try_from(used.memory_bytes).unwrap_or(u64::MAX)),
                format_size(most),
                format_size(entry.memory_bytes),
            ));
        }
        let most = self
            .cpu_percent
            .filter(|most| is_over(used.cpu_percent, entry.cpu_percent, *most))?;
        Some(format!(
            "{} of {most} percent CPU are reserved, {} are needed (jobs.cpu_budget)",
            used.cpu_percent, entry.cpu_percent,
        ))
    }
}

impl Queue {
    /// A queue in which nothing runs or waits.
    #[must_use]
    pub fn new(budget: Budget) -> Self {
        Self {
            budget,
            used: Used::default(),
            jobs: HashMap::new(),
            owners: HashMap::new(),
            levels: BTreeMap::new(),
            waiting: 0,
        }
    }

    /// Jobs that run.
    #[must_use]
    pub fn running(&self) -> usize {
        self.used.jobs
    }

    /// Jobs that wait.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.waiting
    }

    /// A job wants to run. Asking again for a job that is known changes nothing and answers as it stands.
    ///
    /// `out` gets other jobs that are granted now, in order: nearly always none, but the owner of a job that is
    /// granted runs one more, and the one who has its turn now may need less.
    ///
    /// # Errors
    /// `TooLarge` when it would not fit if nothing else ran, with the budget and what was asked for; `Busy` when it
    /// would have to wait and `jobs.queue_max` jobs do.
    pub fn ask(&mut self, demand: Demand, out: &mut Vec<JobId>) -> Result<Answer, Refusal> {
        let id = demand.id;
        if !self.jobs.contains_key(&id) {
            self.budget.check(&demand)?;
            self.enqueue(demand);
            let from = out.len();
            self.grant(out);
            if let Some(own) = out.iter().skip(from).position(|granted| *granted == id) {
                out.remove(from + own);
            } else if self.waiting > self.budget.queue_max {
                self.dequeue(id);
                self.jobs.remove(&id);
                self.grant(out);
                return Err(Refusal::new(
                    RefusalCode::Busy,
                    format!(
                        "the queue is full: {} jobs wait to run (jobs.queue_max)",
                        self.waiting
                    ),
                )
                .hint("try again when some of them have run"));
            }
        }
        Ok(self.why(id).map_or(Answer::Granted, Answer::Waits))
    }

    /// A job is over, or was canceled while it waited. Giving back twice changes nothing, nor does a job that was
    /// never there.
    ///
    /// `out` gets the jobs that are granted now, in order.
    pub fn give_back(&mut self, id: JobId, out: &mut Vec<JobId>) {
        if self.jobs.get(&id).is_some_and(|entry| !entry.is_running) {
            self.dequeue(id);
        }
        if let Some(entry) = self.jobs.remove(&id)
            && entry.is_running
        {
            self.used.jobs -= 1;
            self.used.memory_bytes -= u128::from(entry.memory_bytes);
            self.used.cpu_percent -= u128::from(entry.cpu_percent);
            self.count_running(&entry.owner, |running| running - 1);
        }
        self.grant(out);
    }

    /// Counts a job that runs already, adopted from a former daemon, whatever the budget says.
    ///
    /// Grants nothing: restore all, running and waiting, in any order, then call [`Queue::grant`]. A job that
    /// waits runs from now on; one that runs stays as it is.
    pub fn restore_running(&mut self, demand: Demand) {
        let id = demand.id;
        if !self.jobs.contains_key(&id) {
            self.enqueue(demand);
        }
        self.start(id);
    }

    /// Lets a job wait that was accepted by a former daemon: it is not refused for the length of the queue, which
    /// may have been longer then.
    ///
    /// Grants nothing, as [`Queue::restore_running`]; a job that is known stays as it is.
    ///
    /// # Errors
    /// `TooLarge` when the budget has become so small that the job can never run.
    pub fn restore_waiting(&mut self, demand: Demand) -> Result<(), Refusal> {
        if !self.jobs.contains_key(&demand.id) {
            self.budget.check(&demand)?;
            self.enqueue(demand);
        }
        Ok(())
    }

    /// Grants the first job as long as it fits; `out` gets those granted, in order. Needed after `restore_*` only.
    pub fn grant(&mut self, out: &mut Vec<JobId>) {
        while let Some(id) = self.first()
            && self.lack(id).is_none()
        {
            self.start(id);
            out.push(id);
        }
    }

    /// What a job waits for now, one line; `None` when it runs or is not known.
    ///
    /// The first one waits for capacity, the others for their turn as well. A position counts how many would be
    /// granted until then if there were room and nobody came. Costs a look at each owner that waits at that priority:
    /// microseconds with a hundred of them.
    #[must_use]
    pub fn why(&self, id: JobId) -> Option<String> {
        let first = self.first()?;
        let position = self.position(id)?;
        // Restored jobs wait for `grant` alone.
        let lack = self
            .lack(first)
            .unwrap_or_else(|| "the daemon is starting".to_owned());
        if position == 1 {
            return Some(lack);
        }
        Some(format!(
            "its turn: position {position} of {}; the first waits: {lack}",
            self.waiting
        ))
    }

    /// Its position among those that wait, from 1.
    fn position(&self, id: JobId) -> Option<usize> {
        let entry = self.jobs.get(&id).filter(|entry| !entry.is_running)?;
        let owner = self.owners.get(&entry.owner)?;
        let line = owner.lines.get(&entry.level)?;
        let above = self.levels.range(..entry.level);
        let mut before = above.map(|(_, level)| level.waiting).sum::<usize>();
        // An owner takes its k-th turn here when all others run as many as it would then, or have no job left.
        let turn = owner.count_at(entry.level) + line.count_before(entry.place);
        for (_, place) in &self.levels.get(&entry.level)?.turns {
            let other = self.owners.get(&self.jobs.get(&place.id)?.owner)?;
            let other_line = other.lines.get(&entry.level)?;
            let count = other.count_at(entry.level);
            let earlier = turn.saturating_sub(count).min(other_line.len());
            before += earlier;
            // At the same count the older of the two is first.
            let is_tie = count + earlier == turn;
            if is_tie && other_line.get(earlier).is_some_and(|tie| tie < entry.place) {
                before += 1;
            }
        }
        Some(before + 1)
    }

    /// The job whose turn it is.
    fn first(&self) -> Option<JobId> {
        let (_, level) = self.levels.first_key_value()?;
        level.turns.first().map(|(_, place)| place.id)
    }

    fn lack(&self, id: JobId) -> Option<String> {
        let entry = self.jobs.get(&id)?;
        self.budget.lack(&self.used, entry)
    }

    /// A new job stands in line.
    fn enqueue(&mut self, demand: Demand) {
        let known = self.owners.get_key_value(demand.owner.as_str());
        let owner = known.map_or_else(|| demand.owner.into(), |(name, _)| Arc::clone(name));
        let entry = Entry {
            owner,
            level: Reverse(demand.priority),
            place: Place {
                arrived_ns: demand.arrived_ns,
                id: demand.id,
            },
            memory_bytes: demand.memory_bytes,
            cpu_percent: demand.cpu_percent,
            is_running: false,
        };
        self.change_line(&entry.owner, entry.level, |line| line.insert(entry.place));
        self.waiting += 1;
        self.jobs.insert(demand.id, entry);
    }

    /// A job that waits leaves its line.
    fn dequeue(&mut self, id: JobId) {
        let Some(entry) = self.jobs.get(&id) else {
            return;
        };
        let (owner, level, place) = (Arc::clone(&entry.owner), entry.level, entry.place);
        self.change_line(&owner, level, |line| line.remove(place));
        self.waiting -= 1;
    }

    /// A job that waits runs from now on.
    fn start(&mut self, id: JobId) {
        let Some(entry) = self.jobs.get_mut(&id).filter(|entry| !entry.is_running) else {
            return;
        };
        entry.is_running = true;
        self.used.jobs += 1;
        self.used.memory_bytes += u128::from(entry.memory_bytes);
        self.used.cpu_percent += u128::from(entry.cpu_percent);
        let owner = Arc::clone(&entry.owner);
        self.dequeue(id);
        self.count_running(&owner, |running| running + 1);
    }

    /// Changes one line, and the owner's turn at that level with it.
    fn change_line(&mut self, name: &Arc<str>, at: Reverse<i32>, change: impl FnOnce(&mut Line)) {
        let owner = self.owners.entry(Arc::clone(name)).or_default();
        let line = owner.lines.entry(at).or_default();
        let level = self.levels.entry(at).or_default();
        if let Some(first) = line.first() {
            level.turns.remove(&(owner.running, first));
        }
        level.waiting -= line.len();
        change(line);
        level.waiting += line.len();
        if let Some(first) = line.first() {
            level.turns.insert((owner.running, first));
        }
        if line.is_empty() {
            owner.lines.remove(&at);
        }
        if level.turns.is_empty() {
            self.levels.remove(&at);
        }
        self.forget_idle(name);
    }

    /// Changes how many jobs an owner runs, and its turn at each level with it.
    fn count_running(&mut self, name: &Arc<str>, change: impl FnOnce(usize) -> usize) {
        let owner = self.owners.entry(Arc::clone(name)).or_default();
        let before = owner.running;
        owner.running = change(before);
        for (at, line) in &owner.lines {
            if let (Some(first), Some(level)) = (line.first(), self.levels.get_mut(at)) {
                level.turns.remove(&(before, first));
                level.turns.insert((owner.running, first));
            }
        }
        self.forget_idle(name);
    }

    fn forget_idle(&mut self, name: &Arc<str>) {
        let is_idle = |owner: &Owner| owner.running == 0 && owner.lines.is_empty();
        if self.owners.get(name).is_some_and(is_idle) {
            self.owners.remove(name);
        }
    }
}

impl Owner {
    /// How many jobs it will run when its first turn at `level` comes: those of higher priority are first.
    fn count_at(&self, level: Reverse<i32>) -> usize {
        let above = self.lines.range(..level);
        self.running + above.map(|(_, line)| line.len()).sum::<usize>()
    }
}

#[cfg(test)]
mod tests;
