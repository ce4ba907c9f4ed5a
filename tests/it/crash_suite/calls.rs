//! One job is asked for, and the daemon, its keeper or its spawner is killed before its n-th system call from then
//! on, for n from 1 until the job has started, and on until it has ended and nothing is left of it.
//!
//! Whatever was acknowledged ends as its command determines, whoever was killed in between; for a killed helper the
//! job may also be said not to have started, or to be lost. A job that was not acknowledged may have no record, and
//! then it must not have run: a witness on the host counts every run.

use std::collections::BTreeMap;
use std::fs;

use proto_rkyv::{After, Id, Job, Kind, Reason, Reply, Request, State, Submit, encode, join};

use super::{ask, order::shown, small_output_has_left_its_files, turn};
use crate::harness::{
    Client, Daemon, Dice, Heard, Host, Identity, KilledAt, LONG, Process, SHORT, Tracer, Waiting,
    Wire, Witness, Written, block_on, data, now, patient, wait_until,
};

/// The file that every job of this test opens once.
const WITNESSED: &str = "/usr/bin/factor";
/// The exit code of every job of this test.
const CODE: i32 = 7;
/// Looks at how many calls a start takes.
const MEASURED: usize = 3;

/// Who is killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Victim {
    Daemon,
    Keeper,
    Spawner,
}

impl Victim {
    /// Of how many calls one is tried, unless all are asked for. A daemon makes many.
    const fn stride(self) -> u64 {
        match self {
            Self::Daemon => 3,
            Self::Keeper | Self::Spawner => 1,
        }
    }
}

#[test]
fn a_daemon_killed_at_any_call_of_a_start_keeps_its_word() {
    killed_at_each_call(Victim::Daemon);
}

#[test]
fn a_keeper_killed_at_any_call_of_a_start_takes_no_more_than_its_jobs() {
    killed_at_each_call(Victim::Keeper);
}

#[test]
fn a_spawner_killed_at_any_call_of_a_start_takes_no_more_than_the_job_it_makes() {
    killed_at_each_call(Victim::Spawner);
}

fn killed_at_each_call(victim: Victim) {
    if !Host::Any.is_here() {
        return;
    }
    let _turn = turn();
    let mut trial = Trial {
        // One shard: the way of a job is the same each time, and there is one crew.
        daemon: Daemon::start_with(|text| text.replace("# shards: 0", "shards: 1")),
        witness: Witness::over(WITNESSED),
        victim,
        number: 0,
        ends: BTreeMap::new(),
    };
    let begin = now();
    // The first start of all makes what later ones find.
    trial.kill_at(u64::MAX);
    let looks: Vec<Killed> = (0..MEASURED).map(|_| trial.kill_at(u64::MAX)).collect();
    let started = looks.iter().map(|look| look.started).max().unwrap();
    let calls = looks.iter().map(|look| look.calls).max().unwrap();
    let is_all = std::env::var_os("JOBLET_TEST_EVERY_CALL").is_some_and(|v| v == "1");
    let stride = if is_all { 1 } else { victim.stride() };
    let first = 1 + Dice::of_the_day("kills at calls").below(stride);
    let mut places = BTreeMap::<(String, u64), u64>::new();
    let mut later = 0;
    for call in (first..=calls).step_by(usize::try_from(stride).unwrap()) {
        match trial.kill_at(call).killed {
            Some(at) => *places.entry((at.thread, at.call)).or_default() += 1,
            None => later += 1,
        }
    }
    trial.nothing_is_left();
    eprintln!(
        "{victim:?}: N = {started} system calls from a submit until its job runs, {calls} until nothing is left of \
         it; killed before {} of them and {later} times after all, in {:?}: {:?}",
        places.values().sum::<u64>(),
        begin.elapsed(),
        trial.ends
    );
    eprintln!("{victim:?}: killed in (thread, call): {places:?}");
    // Dropping the daemon proves that nothing is left.
}

struct Trial {
    daemon: Daemon,
    witness: Witness,
    victim: Victim,
    /// Jobs asked for.
    number: u64,
    /// What came of them, for people.
    ends: BTreeMap<String, u64>,
}

/// One kill.
struct Killed {
    /// Calls of the victim from the submit until the job's first output was heard of; 0 when it never was.
    started: u64,
    /// The same until nothing was left of the job, or the victim was killed.
    calls: u64,
    /// At which call it was killed; nothing when it made fewer.
    killed: Option<KilledAt>,
}

/// What the client heard of its job.
#[derive(Debug, Default)]
struct Told {
    id: Option<Id>,
    refused: Option<Reply>,
    ended: Option<Box<Job>>,
}

impl Trial {
    /// Kills the victim before call `last`, or when the job has started, and compares what came of the job.
    fn kill_at(&mut self, last: u64) -> Killed {
        self.number += 1;
        self.daemon.remember();
        let victim = self.process();
        let before = self.witness.opened();
        let (told, killed) = block_on(self.submit_and_kill(victim, last));
        if self.victim == Victim::Daemon {
            self.daemon.was_killed();
            self.daemon.serve();
        }
        let what = format!(
            "{:?} killed at call {last} ({:?}), after {} calls, job {}",
            self.victim, killed.killed, killed.calls, self.number
        );
        let come = block_on(self.outcome(&told));
        let ran = self.witness.opened() - before;
        let end = self
            .judge(&told, come, ran)
            .unwrap_or_else(|wrong| panic!("{what}: {wrong}; told {told:?}"));
        *self.ends.entry(end).or_default() += 1;
        self.no_leaf_is_left(&what);
        killed
    }

    /// The victim that has to do with the next job.
    fn process(&self) -> Process {
        if self.victim == Victim::Daemon {
            return self.daemon.process();
        }
        // A new crew comes when the old one is missed: a job that works has one.
        wait_until(LONG, "there is one crew and it works", || {
            let run = self.daemon.job(["true"]);
            let crews = self.daemon.crews();
            match (&crews[..], run.code) {
                ([(keeper, Some(spawner))], 0) => Waiting::Done(match self.victim {
                    Victim::Keeper => *keeper,
                    Victim::Daemon | Victim::Spawner => *spawner,
                }),
                _ => Waiting::Seen(format!("{crews:?} {run:?}")),
            }
        })
    }

    async fn submit_and_kill(&self, victim: Process, last: u64) -> (Told, Killed) {
        let wire = self.connect().await;
        let mut tracer = Tracer::seize(victim);
        let over = tracer.over();
        tracer.arm(last);
        let mut told = Told::default();
        let mut started = 0;
        // A daemon that is dead tells nothing, not even that the connection is over.
        let is_daemon = self.victim == Victim::Daemon;
        tokio::select! {
            () = self.follow(&wire, &mut told, || {
                if started == 0 {
                    started = tracer.count();
                }
            }) => {}
            () = over, if is_daemon => {}
        }
        if !is_daemon || !tracer.is_over() {
            wait_until(SHORT, "nothing is left of the job", || {
                let leaves = self.daemon.all_leaves();
                Waiting::when(tracer.is_over() || leaves.is_empty(), || {
                    format!("{leaves:?}")
                })
            });
        }
        let calls = tracer.count();
        let killed = tracer.finish();
        wire.connection.close(0_u32.into(), b"");
        let killed = Killed {
            started,
            calls,
            killed,
        };
        (told, killed)
    }

    /// Asks for the job and hears what is said of it, until it has ended or the stream is over. `begun` is told of
    /// its output.
    async fn follow(&self, wire: &Wire, told: &mut Told, mut begun: impl FnMut()) {
        let submit = Submit {
            name: Some(self.name()),
            after: After::Follow,
            ..Submit::default()
        };
        let mut frames = encode(&Request::Submit(Box::new(submit))).unwrap().to_vec();
        let script = format!(
            "echo begun {}; {}; exit {CODE}",
            self.number,
            Witness::script(WITNESSED)
        );
        frames.extend(data(Kind::Argv, &join(&["sh", "-c", &script])));
        let Some(mut stream) = wire.ask_frames(&frames).await else {
            return;
        };
        loop {
            match stream.heard().await {
                Some(Heard::Reply(Reply::Accepted { id, .. })) => told.id = Some(id),
                Some(Heard::Reply(Reply::Ended(job))) => {
                    told.ended = Some(job);
                    return;
                }
                Some(Heard::Reply(other)) => {
                    told.refused = Some(other);
                    return;
                }
                Some(Heard::Data(..)) => begun(),
                None => return,
            }
        }
    }

    /// The job's end and output, if there is a record of it.
    async fn outcome(&self, told: &Told) -> Option<(Job, Written)> {
        let wire = self.connect().await;
        let id = match told.id {
            Some(id) => Some(id),
            None => {
                let jobs = ask::list(&wire).await.expect("nobody has killed it");
                let mut named = jobs
                    .iter()
                    .filter(|job| job.name == Some(self.name()))
                    .map(|job| job.id);
                let first = named.next();
                assert_eq!(named.next(), None, "two jobs of one submit: {jobs:?}");
                first
            }
        }?;
        let waited = tokio::time::timeout(patient(SHORT), ask::wait(&wire, id)).await;
        let job = match waited {
            Ok(answer) => answer.expect("nobody has killed it"),
            Err(_) => panic!("job {} does not end", ask::name_of(id)),
        };
        let job = job.unwrap_or_else(|other| panic!("{} is lost: {other:?}", ask::name_of(id)));
        let (written, answer) = ask::log(&wire, id, false, |_| {}).await;
        assert!(
            matches!(answer, Some(Reply::LogEnd { dropped: 0 })),
            "the log of {job:?} was answered {answer:?}"
        );
        wire.connection.close(0_u32.into(), b"");
        Some((job, written))
    }

    /// What came of the job in a word, or what is wrong with it. `ran` is how often the witness saw it.
    fn judge(&self, told: &Told, come: Option<(Job, Written)>, ran: u64) -> Result<String, String> {
        let Some((job, written)) = come else {
            return match (told.id, &told.ended, ran) {
                (None, None, 0) => Ok("no record, not run".to_owned()),
                other => Err(format!("no record and {other:?}")),
            };
        };
        // Whoever waits is told before the store has it; what a successor finds out again has its own times.
        if told
            .ended
            .as_ref()
            .is_some_and(|told| end_of(told) != end_of(&job))
        {
            return Err(format!("another end than was told: {job:?}"));
        }
        let outcome = job.outcome.as_ref().ok_or("no outcome")?;
        let all = Written {
            stdout: format!("begun {}\n", self.number).into_bytes(),
            stderr: Vec::new(),
        };
        let promise = match told.id {
            Some(_) => "acknowledged",
            None => "not acknowledged",
        };
        let is_helper = self.victim != Victim::Daemon;
        let is_right = match &outcome.reason {
            Reason::Exited => outcome.exit_code == Some(CODE) && written == all && ran == 1,
            // Its sandbox was never finished.
            Reason::StartFailed { .. } => is_helper && written == Written::default() && ran == 0,
            // What it has written until then is kept.
            Reason::HostLost => is_helper && all.stdout.starts_with(&written.stdout) && ran <= 1,
            // It never had to be acknowledged, and was given up with the client that asked for it.
            Reason::Canceled => told.id.is_none() && written == Written::default() && ran == 0,
            Reason::Signaled
            | Reason::OutOfMemory
            | Reason::Timeout
            | Reason::Stopped { .. }
            | Reason::LogLimit
            | Reason::CommandNotFound
            | Reason::CommandNotExecutable { .. }
            | Reason::DaemonDown => false,
        };
        if is_right {
            Ok(format!("{promise}, {:?}", outcome.reason))
        } else {
            Err(format!(
                "another end than its command's, run {ran} times: {job:?}; {}",
                shown(&written)
            ))
        }
    }

    #[track_caller]
    fn no_leaf_is_left(&self, what: &str) {
        wait_until(SHORT, &format!("no cgroup is left: {what}"), || {
            let leaves = self.daemon.all_leaves();
            Waiting::when(leaves.is_empty(), || format!("{leaves:?}"))
        });
    }

    /// Every directory of a job has a record.
    #[track_caller]
    fn nothing_is_left(&self) {
        let jobs = block_on(async {
            let wire = self.connect().await;
            ask::list(&wire).await.expect("nobody has killed it")
        });
        let known: Vec<String> = jobs.iter().map(|job| ask::name_of(job.id)).collect();
        let dirs = fs::read_dir(self.daemon.base.join("jobs")).unwrap();
        for entry in dirs.flatten() {
            let name = entry.file_name().into_string().unwrap();
            assert!(known.contains(&name), "{name} has no record");
        }
        small_output_has_left_its_files(&self.daemon);
    }

    fn name(&self) -> String {
        format!("call-{}", self.number)
    }

    async fn connect(&self) -> Wire {
        Client::of(&Identity::read(&self.daemon.config))
            .connect(self.daemon.address)
            .await
            .unwrap()
    }
}

/// What a job's end comes to.
fn end_of(job: &Job) -> (State, Option<Reason>, Option<i32>, Option<i32>) {
    let outcome = job.outcome.as_ref();
    (
        job.state,
        outcome.map(|outcome| outcome.reason.clone()),
        outcome.and_then(|outcome| outcome.exit_code),
        outcome.and_then(|outcome| outcome.signal),
    )
}
