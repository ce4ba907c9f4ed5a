//! Stories of the order, and random sequences held against a model that is slow and plain.

use proptest::prelude::*;

use super::*;

const OPEN: Budget = Budget {
    running_max: None,
    memory_bytes: None,
    cpu_percent: None,
    queue_max: 100,
};
const MIB: u64 = 1 << 20;

fn id(n: u8) -> JobId {
    JobId::from_bytes([n; 16])
}

fn slots(count: usize) -> Budget {
    Budget {
        running_max: NonZeroUsize::new(count),
        ..OPEN
    }
}

fn memory(mib: u64) -> Budget {
    Budget {
        memory_bytes: Some(mib * MIB),
        ..OPEN
    }
}

/// Job `n`, which arrived at `n`.
fn demand(n: u8, owner: &str) -> Demand {
    Demand {
        id: id(n),
        owner: owner.to_owned(),
        priority: 0,
        arrived_ns: n.into(),
        memory_bytes: 0,
        cpu_percent: 0,
    }
}

fn large(n: u8, owner: &str, mib: u64) -> Demand {
    Demand {
        memory_bytes: mib * MIB,
        ..demand(n, owner)
    }
}

fn urgent(n: u8, owner: &str, priority: i32) -> Demand {
    Demand {
        priority,
        ..demand(n, owner)
    }
}

/// A queue, and what it granted that was not its own answer.
struct Story {
    queue: Queue,
}

impl Story {
    fn new(budget: Budget) -> Self {
        Self {
            queue: Queue::new(budget),
        }
    }

    fn granted(&mut self, demand: Demand) {
        let mut out = Vec::new();
        assert_eq!(self.queue.ask(demand, &mut out), Ok(Answer::Granted));
        assert_eq!(out, []);
    }

    fn waits(&mut self, demand: Demand, what_for: &str) {
        let (mut out, job) = (Vec::new(), demand.id);
        let answer = self.queue.ask(demand, &mut out);
        assert_eq!(answer, Ok(Answer::Waits(what_for.to_owned())));
        assert_eq!(out, []);
        assert_eq!(self.queue.why(job).as_deref(), Some(what_for));
    }

    fn refused(&mut self, demand: Demand, code: RefusalCode, message: &str) {
        let before = (self.queue.running(), self.queue.waiting());
        let (mut out, job) = (Vec::new(), demand.id);
        let refusal = self.queue.ask(demand, &mut out).unwrap_err();
        assert_eq!((refusal.code, refusal.message.as_str()), (code, message));
        assert_eq!(out, []);
        assert_eq!(self.queue.why(job), None);
        assert_eq!((self.queue.running(), self.queue.waiting()), before);
    }

    fn gives_back(&mut self, n: u8, expected: &[u8]) {
        let mut out = Vec::new();
        self.queue.give_back(id(n), &mut out);
        let expected: Vec<_> = expected.iter().copied().map(id).collect();
        assert_eq!(out, expected);
    }
}

#[test]
fn a_budget_is_open_when_nothing_is_bounded() {
    assert!(OPEN.is_open());
    let cpu = Budget {
        cpu_percent: Some(1),
        ..OPEN
    };
    for bounded in [slots(1), memory(1), cpu] {
        assert!(!bounded.is_open());
    }
}

#[test]
fn jobs_beyond_max_running_wait_in_the_order_of_arrival() {
    let mut story = Story::new(slots(2));
    story.granted(demand(1, "alice"));
    story.granted(demand(2, "alice"));
    story.waits(demand(4, "alice"), "2 of 2 jobs run (jobs.max_running)");
    story.waits(demand(3, "alice"), "2 of 2 jobs run (jobs.max_running)");
    let turn = "its turn: position 2 of 2; the first waits: 2 of 2 jobs run (jobs.max_running)";
    assert_eq!(story.queue.why(id(4)).as_deref(), Some(turn));
    assert_eq!(story.queue.why(id(1)), None);
    story.gives_back(1, &[3]);
    story.gives_back(2, &[4]);
    assert_eq!((story.queue.running(), story.queue.waiting()), (2, 0));
}

#[test]
fn the_highest_priority_is_first_whoever_submitted_it() {
    let mut story = Story::new(slots(1));
    story.granted(demand(1, "alice"));
    let full = "1 of 1 jobs run (jobs.max_running)";
    story.waits(urgent(2, "bob", 0), full);
    story.waits(urgent(3, "alice", 100), full);
    story.waits(
        urgent(4, "carol", -100),
        &format!("its turn: position 3 of 3; the first waits: {full}"),
    );
    for (over, next) in [(1, 3), (3, 2), (2, 4)] {
        story.gives_back(over, &[next]);
    }
}

#[test]
fn the_owner_with_the_fewest_running_jobs_has_the_next_turn() {
    let mut story = Story::new(slots(2));
    let mut out = Vec::new();
    for n in 1..=5 {
        story.queue.ask(demand(n, "alice"), &mut out).unwrap();
    }
    for n in 6..=7 {
        story.queue.ask(demand(n, "bob"), &mut out).unwrap();
    }
    assert_eq!(out, []);
    let position = |story: &Story, n| story.queue.position(id(n)).unwrap();
    let expected = [(6, 1), (7, 2), (3, 3), (4, 4), (5, 5)];
    for (n, place) in expected {
        assert_eq!(position(&story, n), place, "job {n}");
    }
    story.gives_back(1, &[6]);
    story.gives_back(2, &[3]);
    story.gives_back(3, &[4]);
    story.gives_back(6, &[7]);
}

#[test]
fn a_large_job_is_not_passed_by_small_ones() {
    let mut story = Story::new(memory(100));
    story.granted(large(1, "alice", 60));
    story.waits(
        large(2, "alice", 50),
        "60MB of 100MB memory are reserved, 50MB are needed (jobs.memory_budget)",
    );
    story.waits(
        large(3, "alice", 10),
        "its turn: position 2 of 2; the first waits: 60MB of 100MB memory are reserved, 50MB are needed \
         (jobs.memory_budget)",
    );
    story.gives_back(1, &[2, 3]);
}

#[test]
fn who_cancels_the_first_job_lets_the_next_ones_run() {
    let mut story = Story::new(memory(100));
    story.granted(large(1, "alice", 60));
    let mut out = Vec::new();
    for (n, mib) in [(2, 50), (3, 20), (4, 20), (5, 20)] {
        let answer = story.queue.ask(large(n, "alice", mib), &mut out);
        assert!(matches!(answer, Ok(Answer::Waits(_))));
    }
    assert_eq!(out, []);
    story.gives_back(2, &[3, 4]);
    story.gives_back(2, &[]);
    story.gives_back(99, &[]);
    assert_eq!((story.queue.running(), story.queue.waiting()), (3, 1));
}

#[test]
fn cpu_is_reserved_as_memory_is() {
    let cpu = |n, cpu_percent| Demand {
        cpu_percent,
        ..demand(n, "alice")
    };
    let mut story = Story::new(Budget {
        cpu_percent: Some(200),
        ..OPEN
    });
    story.granted(cpu(1, 150));
    story.granted(cpu(2, 0));
    story.granted(cpu(3, 50));
    story.waits(
        cpu(4, 1),
        "200 of 200 percent CPU are reserved, 1 are needed (jobs.cpu_budget)",
    );
    story.refused(
        cpu(5, 201),
        RefusalCode::TooLarge,
        "the job's CPU limit of 201 percent is more than all jobs together may have, 200 percent (jobs.cpu_budget)",
    );
    story.gives_back(3, &[4]);
}

#[test]
fn a_job_without_a_limit_reserves_nothing_of_it() {
    let mut story = Story::new(memory(1));
    for n in 1..=50 {
        story.granted(demand(n, "alice"));
    }
    story.granted(large(51, "alice", 1));
    story.granted(demand(52, "alice"));
}

#[test]
fn a_job_that_can_never_fit_is_refused_by_the_budget() {
    let mut story = Story::new(memory(100));
    story.granted(large(1, "alice", 100));
    story.refused(
        large(2, "alice", 101),
        RefusalCode::TooLarge,
        "the job's memory limit of 101MB is more than all jobs together may have, 100MB (jobs.memory_budget)",
    );
    let refusal = story
        .queue
        .restore_waiting(large(3, "alice", 101))
        .unwrap_err();
    assert_eq!(refusal.code, RefusalCode::TooLarge);
    assert_eq!((story.queue.running(), story.queue.waiting()), (1, 0));
}

#[test]
fn a_full_queue_refuses_and_names_its_key() {
    let mut story = Story::new(Budget {
        queue_max: 2,
        ..memory(100)
    });
    story.granted(large(1, "alice", 60));
    let mut out = Vec::new();
    for n in 2..=3 {
        story.queue.ask(large(n, "alice", 50), &mut out).unwrap();
    }
    let full = "the queue is full: 2 jobs wait to run (jobs.queue_max)";
    story.refused(large(4, "alice", 50), RefusalCode::Busy, full);
    // Its turn would be the next one, but it does not fit either.
    story.refused(large(5, "bob", 50), RefusalCode::Busy, full);
    // A job that need not wait is not refused for the length of the queue.
    story.granted(large(6, "bob", 40));
    story.gives_back(1, &[2]);
    assert_eq!(out, []);
}

#[test]
fn asking_twice_changes_nothing() {
    let mut story = Story::new(slots(1));
    let full = "1 of 1 jobs run (jobs.max_running)";
    for _ in 0..2 {
        story.granted(demand(1, "alice"));
    }
    for _ in 0..2 {
        story.waits(demand(2, "alice"), full);
    }
    assert_eq!((story.queue.running(), story.queue.waiting()), (1, 1));
}

#[test]
fn who_is_granted_can_give_the_turn_to_one_that_needs_less() {
    let mut story = Story::new(memory(100));
    story.granted(large(1, "alice", 60));
    story.granted(large(2, "bob", 10));
    let mut out = Vec::new();
    story.queue.ask(large(3, "bob", 50), &mut out).unwrap();
    story.queue.ask(large(4, "alice", 10), &mut out).unwrap();
    assert_eq!((out.as_slice(), story.queue.waiting()), ([].as_slice(), 2));
    // Bob runs one more than Alice now, so her small job is first, and it fits.
    let answer = story.queue.ask(
        Demand {
            priority: 1,
            ..demand(5, "bob")
        },
        &mut out,
    );
    assert_eq!((answer, out), (Ok(Answer::Granted), vec![id(4)]));
}

#[test]
fn adopted_jobs_count_beyond_the_budget_and_nothing_runs_until_they_are_over() {
    let mut story = Story::new(Budget {
        queue_max: 1,
        ..slots(2)
    });
    for n in [1, 2, 3, 3] {
        story.queue.restore_running(demand(n, "alice"));
    }
    for n in [6, 5, 4, 4] {
        story.queue.restore_waiting(demand(n, "bob")).unwrap();
    }
    let mut out = Vec::new();
    story.queue.grant(&mut out);
    assert_eq!(out, []);
    assert_eq!((story.queue.running(), story.queue.waiting()), (3, 3));
    assert_eq!(
        story.queue.why(id(4)).as_deref(),
        Some("3 of 2 jobs run (jobs.max_running)")
    );
    story.gives_back(1, &[]);
    story.gives_back(2, &[4]);
}

#[test]
fn what_was_restored_is_granted_in_the_order_of_the_queue_and_not_of_the_restoring() {
    let mut story = Story::new(slots(2));
    for n in [7, 3, 5] {
        story.queue.restore_waiting(demand(n, "alice")).unwrap();
    }
    assert_eq!(
        story.queue.why(id(3)).as_deref(),
        Some("the daemon is starting")
    );
    // The keeper tells that this one runs, whatever was thought before.
    story.queue.restore_running(demand(7, "alice"));
    let mut out = Vec::new();
    story.queue.grant(&mut out);
    assert_eq!(out, [id(3)]);
}

#[test]
fn nothing_is_left_of_jobs_that_are_over() {
    let mut story = Story::new(slots(3));
    let mut out = Vec::new();
    for n in 0..200 {
        let owner = format!("owner {}", n % 7);
        story
            .queue
            .ask(urgent(n, &owner, (n % 5).into()), &mut out)
            .ok();
    }
    for n in 0..200 {
        story.queue.give_back(id(n), &mut out);
    }
    let Queue {
        budget: _,
        used,
        jobs,
        owners,
        levels,
        waiting,
    } = story.queue;
    assert_eq!(
        (used.jobs, used.memory_bytes, used.cpu_percent, waiting),
        (0, 0, 0, 0)
    );
    assert!(jobs.is_empty() && owners.is_empty() && levels.is_empty());
}

/// One call to a queue.
#[derive(Debug, Clone)]
enum Step {
    Ask(Demand),
    GiveBack(JobId),
    RestoreRunning(Demand),
    RestoreWaiting(Demand),
}

fn demands() -> impl Strategy<Value = Demand> {
    (0..40_u8, 0..4_usize, -1..=1, 0..4_i64, 0..6_u64, 0..6_u64).prop_map(
        |(n, owner, priority, arrived_ns, memory_bytes, cpu_percent)| Demand {
            id: id(n),
            owner: ["alice", "bob", "carol", "dave"][owner].to_owned(),
            priority,
            arrived_ns,
            memory_bytes,
            cpu_percent,
        },
    )
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        6 => demands().prop_map(Step::Ask),
        5 => (0..40_u8).prop_map(|n| Step::GiveBack(id(n))),
        1 => demands().prop_map(Step::RestoreRunning),
        1 => demands().prop_map(Step::RestoreWaiting),
    ];
    proptest::collection::vec(step, 0..120)
}

fn budgets() -> impl Strategy<Value = Budget> {
    let bound = || proptest::option::of(0..12_u64);
    (0..6_usize, bound(), bound(), 1..12_usize).prop_map(
        |(running_max, memory_bytes, cpu_percent, queue_max)| Budget {
            running_max: NonZeroUsize::new(running_max),
            memory_bytes,
            cpu_percent,
            queue_max,
        },
    )
}

/// The same rules without any structure: each question looks at every job.
#[derive(Clone)]
struct Model {
    budget: Budget,
    running: Vec<Demand>,
    waiting: Vec<Demand>,
}

impl Model {
    fn knows(&self, id: JobId) -> bool {
        let mut all = self.running.iter().chain(&self.waiting);
        all.any(|job| job.id == id)
    }

    fn sums(&self) -> (usize, u64, u64) {
        let memory = self.running.iter().map(|job| job.memory_bytes).sum();
        let cpu = self.running.iter().map(|job| job.cpu_percent).sum();
        (self.running.len(), memory, cpu)
    }

    fn fits(&self, job: &Demand) -> bool {
        let (jobs, memory, cpu) = self.sums();
        let is_within = |used: u64, asked: u64, most: Option<u64>| {
            asked == 0 || most.is_none_or(|most| used + asked <= most)
        };
        self.budget.running_max.is_none_or(|most| jobs < most.get())
            && is_within(memory, job.memory_bytes, self.budget.memory_bytes)
            && is_within(cpu, job.cpu_percent, self.budget.cpu_percent)
    }

    fn can_ever_fit(&self, job: &Demand) -> bool {
        self.budget
            .memory_bytes
            .is_none_or(|most| job.memory_bytes <= most)
            && self
                .budget
                .cpu_percent
                .is_none_or(|most| job.cpu_percent <= most)
    }

    fn first(&self) -> Option<usize> {
        let running_of = |owner: &str| self.running.iter().filter(|job| job.owner == owner).count();
        (0..self.waiting.len()).min_by_key(|index| {
            let job = &self.waiting[*index];
            let priority = Reverse(job.priority);
            (priority, running_of(&job.owner), job.arrived_ns, job.id)
        })
    }

    fn grant(&mut self) -> Vec<JobId> {
        let mut granted = Vec::new();
        while let Some(index) = self.first()
            && self.fits(&self.waiting[index])
        {
            let job = self.waiting.remove(index);
            granted.push(job.id);
            self.running.push(job);
        }
        granted
    }

    /// The answer to one step without its words: granted or not or refused, and the others that are granted.
    fn take(&mut self, step: &Step) -> (Result<bool, RefusalCode>, Vec<JobId>) {
        match step {
            Step::Ask(job) if self.knows(job.id) => {
                let runs = self.running.iter().any(|other| other.id == job.id);
                (Ok(runs), Vec::new())
            }
            Step::Ask(job) if !self.can_ever_fit(job) => (Err(RefusalCode::TooLarge), Vec::new()),
            Step::Ask(job) => {
                self.waiting.push(job.clone());
                let mut granted = self.grant();
                if granted.contains(&job.id) {
                    granted.retain(|id| *id != job.id);
                    (Ok(true), granted)
                } else if self.waiting.len() > self.budget.queue_max {
                    self.waiting.retain(|other| other.id != job.id);
                    granted.extend(self.grant());
                    (Err(RefusalCode::Busy), granted)
                } else {
                    (Ok(false), granted)
                }
            }
            Step::GiveBack(id) => {
                self.running.retain(|job| job.id != *id);
                self.waiting.retain(|job| job.id != *id);
                (Ok(true), self.grant())
            }
            Step::RestoreRunning(job) => {
                match self.waiting.iter().position(|other| other.id == job.id) {
                    Some(index) => self.running.push(self.waiting.remove(index)),
                    None if self.knows(job.id) => {}
                    None => self.running.push(job.clone()),
                }
                (Ok(true), self.grant())
            }
            Step::RestoreWaiting(job) if self.knows(job.id) => (Ok(true), self.grant()),
            Step::RestoreWaiting(job) if !self.can_ever_fit(job) => {
                (Err(RefusalCode::TooLarge), self.grant())
            }
            Step::RestoreWaiting(job) => {
                self.waiting.push(job.clone());
                (Ok(true), self.grant())
            }
        }
    }

    /// The order in which those that wait would be granted if there were room for all.
    fn order(&self) -> Vec<JobId> {
        let mut roomy = Self {
            budget: OPEN,
            ..self.clone()
        };
        roomy.grant()
    }
}

/// The same of the queue.
fn take(queue: &mut Queue, step: &Step) -> (Result<bool, RefusalCode>, Vec<JobId>) {
    let mut out = Vec::new();
    let answer = match step.clone() {
        Step::Ask(job) => match queue.ask(job, &mut out) {
            Ok(Answer::Granted) => Ok(true),
            Ok(Answer::Waits(_)) => Ok(false),
            Err(refusal) => Err(refusal.code),
        },
        Step::GiveBack(id) => {
            queue.give_back(id, &mut out);
            Ok(true)
        }
        Step::RestoreRunning(job) => {
            queue.restore_running(job);
            queue.grant(&mut out);
            Ok(true)
        }
        Step::RestoreWaiting(job) => {
            let answer = queue.restore_waiting(job);
            queue.grant(&mut out);
            answer.map(|()| true).map_err(|refusal| refusal.code)
        }
    };
    (answer, out)
}

proptest! {
    /// Which also says that the same steps have the same answers: the model has no hash map.
    #[test]
    fn any_sequence_is_answered_as_the_model_answers_it(budget in budgets(), steps in steps()) {
        let mut model = Model { budget, running: vec![], waiting: vec![] };
        let mut queue = Queue::new(budget);
        for step in &steps {
            prop_assert_eq!(take(&mut queue, step), model.take(step), "{:?}", step);
            prop_assert_eq!(queue.running(), model.running.len());
            prop_assert_eq!(queue.waiting(), model.waiting.len());
            for job in &model.running {
                prop_assert_eq!(queue.why(job.id), None);
            }
            for (index, id) in model.order().into_iter().enumerate() {
                prop_assert_eq!(queue.position(id), Some(index + 1));
                let why = queue.why(id).unwrap();
                prop_assert_eq!(why.starts_with("its turn"), index > 0, "{}", why);
            }
        }
    }

    #[test]
    fn sums_stay_in_the_budget_and_the_first_that_waits_does_not_fit(
        budget in budgets(),
        steps in steps(),
    ) {
        let mut queue = Queue::new(budget);
        let mut model = Model { budget, running: vec![], waiting: vec![] };
        for step in &steps {
            // Only restored jobs may be beyond it.
            if matches!(step, Step::RestoreRunning(_)) {
                continue;
            }
            let known_waiting: Vec<_> = model.waiting.iter().map(|job| job.id).collect();
            let (answer, granted) = take(&mut queue, step);
            prop_assert_eq!((answer, granted.clone()), model.take(step));
            for id in granted {
                let is_own = matches!(step, Step::RestoreWaiting(job) if job.id == id);
                prop_assert!(known_waiting.contains(&id) || is_own, "{:?} did not wait", id);
            }
            let used = queue.used;
            let within = |used: u128, most: Option<u64>| most.is_none_or(|most| used <= most.into());
            prop_assert!(budget.running_max.is_none_or(|most| used.jobs <= most.get()));
            prop_assert!(within(used.memory_bytes, budget.memory_bytes));
            prop_assert!(within(used.cpu_percent, budget.cpu_percent));
            let first = queue.first().and_then(|id| queue.jobs.get(&id));
            prop_assert!(first.is_none_or(|entry| budget.lack(&used, entry).is_some()));
        }
    }

    /// Two owners submit at once, one many more than the other, and jobs end in any order.
    #[test]
    fn two_owners_who_submit_at_once_run_as_many_jobs_while_both_wait(
        count in 1..9_u8,
        alice in 10..60_u8,
        bob in 10..60_u8,
        ends: Vec<proptest::sample::Index>,
    ) {
        let mut queue = Queue::new(Budget { queue_max: 1_000, ..slots(count.into()) });
        let mut out = Vec::new();
        let blockers = 200..200 + count;
        for n in blockers.clone() {
            queue.restore_running(demand(n, "root"));
        }
        for n in 0..alice {
            queue.ask(demand(n, "alice"), &mut out).unwrap();
        }
        for n in 100..100 + bob {
            queue.ask(demand(n, "bob"), &mut out).unwrap();
        }
        prop_assert_eq!(&out, &[]);
        for n in blockers {
            queue.give_back(id(n), &mut out);
        }
        let mut running = out;
        let is_alice = |id: &JobId| id.to_bytes()[0] < 100;
        for end in ends {
            let of_alice = running.iter().filter(|id| is_alice(id)).count();
            let of_bob = running.len() - of_alice;
            let waits = |name: &str| queue.owners.get(name).is_some_and(|owner| !owner.lines.is_empty());
            if !waits("alice") || !waits("bob") {
                break;
            }
            prop_assert!(of_alice.abs_diff(of_bob) <= 1, "{of_alice} and {of_bob}");
            let over = running.remove(end.index(running.len()));
            queue.give_back(over, &mut running);
        }
    }
}
