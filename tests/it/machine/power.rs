//! The machine's power is cut while two daemons are under load, and what is left is compared with what was said.
//!
//! `tools/vm/src/power.rs` cuts it and boots the machine again on the same scratch disk. Lines that are said to it
//! are the book, and the next boot reads them. With `store.durability: power` nothing acknowledged is lost and
//! nothing runs twice. With `process` the database opens, and what it knows is true.

/// What was said before the power was cut.
mod book;
/// Jobs that are asked for until it is.
mod load;

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;

use proto_rkyv::{Job, Reason, State};
use serde_json::{Value, json};

use crate::harness::{
    Client, Daemon, Identity, LONG, Waiting, Wire, Written, ask, block_on, joblet_binary,
    wait_until,
};
use book::{Book, Side};
use load::{Kind, Order, Witness};

#[test]
fn what_was_acknowledged_is_known_after_a_loss_of_power_and_nothing_runs_twice() {
    super::own_machine();
    let book = Book::read(&joblet_binary().with_file_name("book"));
    let witness = Witness::set_up(book.boots);
    let daemons = Side::ALL.map(|side| (side, serve(side)));
    let mut wrong = Vec::new();
    for (side, daemon) in &daemons {
        compare(*side, daemon, &book, &witness, &mut wrong);
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    say("compared");
    if !book.is_last {
        keep("boot");
        block_on(load::until_the_power_is_cut(&daemons, book.boots));
    }
    // Dropping the daemons proves that nothing of any of them is left.
}

/// The daemon of a side, with what it had before.
fn serve(side: Side) -> Daemon {
    let base = Path::new("/tmp").join(format!("power-{side}"));
    let daemon = Daemon::set_up(base, |config| {
        let mut value: Value = serde_saphyr::from_str(&config).unwrap();
        value["store"] = json!({ "durability": side.to_string() });
        // Every JSON document is a YAML document.
        value.to_string()
    });
    daemon.serve();
    daemon
}

/// A line for the one who cuts the power, past the capture of tests: it is out when this returns.
fn say(word: &str) {
    let line = format!("joblet-vm: {word}\n");
    let mut out = std::io::stdout().lock();
    out.write_all(line.as_bytes()).unwrap();
    out.flush().unwrap();
}

/// A line for the book.
fn keep(line: &str) {
    say(&format!("keep {line}"));
}

async fn connect(daemon: &Daemon) -> Wire {
    let client = Client::of(&Identity::read(&daemon.config));
    client.connect(daemon.address).await.unwrap()
}

/// Every job there is a record of, by its number, when all have ended that ever will.
fn ended(daemon: &Daemon) -> BTreeMap<Order, Job> {
    wait_until(LONG, "jobs that are begun again end", || {
        let jobs = block_on(async { ask::list(&connect(daemon).await).await });
        let jobs = jobs.expect("nobody kills it").into_iter();
        let jobs: BTreeMap<Order, Job> = jobs.map(|job| (Order::of(&job), job)).collect();
        let mut open = jobs
            .iter()
            .filter(|(order, job)| job.outcome.is_none() && order.kind() != Kind::Far);
        match open.next() {
            Some(open) => Waiting::Seen(format!("{open:?}")),
            None => Waiting::Done(jobs.clone()),
        }
    })
}

/// Compares what a daemon knows with what was said before the power was cut.
fn compare(side: Side, daemon: &Daemon, book: &Book, witness: &Witness, wrong: &mut Vec<String>) {
    let found = ended(daemon);
    let page = book.page(side);
    let mut unknown = 0;
    for (order, id) in &page.acknowledged {
        match found.get(order) {
            Some(job) if ask::name_of(job.id) == *id => {}
            Some(job) => wrong.push(format!("{order:?} was acknowledged as {id}: {job:?}")),
            None if side == Side::Power => wrong.push(format!("{order:?} {id} is not known")),
            None => unknown += 1,
        }
    }
    let (mut lost, mut short) = (0, 0);
    for (order, job) in &found {
        let runs_now = witness.runs(side, *order);
        let runs = runs_now + usize::from(page.ran.contains(order));
        if runs > 1 && side == Side::Power {
            wrong.push(format!("{order:?} ran {runs} times: {job:?}"));
        }
        if let Some(code) = page.told.get(order)
            && side == Side::Power
            && exit_code(job) != Some(*code)
        {
            wrong.push(format!("a waiter was told {code}: {job:?}"));
        }
        let is_lost = is_lost(job);
        lost += usize::from(is_lost);
        let written =
            block_on(async { ask::log(&connect(daemon).await, job.id, false, |_| {}).await });
        let mut written = written.0;
        if side == Side::Process && !is_lost && runs_now == 0 {
            // It had ended, and its output was left to the file system: that may have a length without the bytes.
            while written.stdout.last() == Some(&0) {
                written.stdout.pop();
            }
        }
        let is_whole = written == order.written();
        short += usize::from(!is_lost && order.kind() != Kind::Far && !is_whole);
        if let Err(what) = check(side, *order, job, runs_now > 0, &written) {
            wrong.push(format!("{what}: {order:?} {job:?} {written:?}"));
        }
    }
    eprintln!(
        "{side}: {} acknowledged before, {unknown} of them not known; {} known, {lost} of them lost with their host, \
         {short} of the others with less output than they had",
        page.acknowledged.len(),
        found.len(),
    );
}

/// Whether a job is what it can be after a loss of power. The output of one that had ended before is all there when
/// it is to survive that, and may end early else.
fn check(
    side: Side,
    order: Order,
    job: &Job,
    is_of_this_boot: bool,
    written: &Written,
) -> Result<(), &'static str> {
    if order.kind() == Kind::Far {
        let is_waiting = job.state == State::Scheduled && job.outcome.is_none();
        return is_waiting.then_some(()).ok_or("it does not wait");
    }
    let has_exited = exit_code(job) == Some(order.code()) && order.ends();
    if !has_exited && (is_of_this_boot || !is_lost(job)) {
        return Err("neither its own end nor that of its host");
    }
    let all = order.written();
    if has_exited && (is_of_this_boot || side == Side::Power) && *written != all {
        return Err("other output than its command's");
    }
    if !all.stdout.starts_with(&written.stdout) || !written.stderr.is_empty() {
        return Err("output that is not its command's");
    }
    Ok(())
}

/// The exit code of a job that has ended by itself.
fn exit_code(job: &Job) -> Option<i32> {
    let outcome = job.outcome.as_ref()?;
    let code = outcome
        .exit_code
        .filter(|_| outcome.reason == Reason::Exited)?;
    let state = match code {
        0 => State::Completed,
        _ => State::Failed,
    };
    (job.state == state).then_some(code)
}

fn is_lost(job: &Job) -> bool {
    let reason = job.outcome.as_ref().map(|outcome| &outcome.reason);
    reason == Some(&Reason::HostLost) && job.state == State::Failed
}
