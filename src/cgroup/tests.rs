//! Real cgroups, in trees of instances that only these tests have.

use std::{
    fs::File,
    io::Write,
    os::fd::{AsFd, OwnedFd},
    process::{Child, Command, Stdio},
    time::Duration,
};

use nix::fcntl::OFlag;

use super::*;

/// A tree that is removed with everything in it, whatever happens.
struct Grove(Option<Tree>);

impl Grove {
    fn new() -> Self {
        let instance = JobId::random().to_string().replace('-', "");
        Self(Some(Tree::open(&instance).unwrap()))
    }

    fn tree(&self) -> &Tree {
        self.0.as_ref().unwrap()
    }

    fn instance(&self) -> String {
        let name = self.tree().path().file_name().unwrap().to_str().unwrap();
        name.strip_prefix(PREFIX).unwrap().to_owned()
    }
}

impl Drop for Grove {
    fn drop(&mut self) {
        let instance = self.instance();
        if let Some(tree) = self.0.take() {
            let _ = tree.kill_all();
            let _ = tree.wait_empty(Duration::from_secs(20));
            let _ = tree.remove_all();
        }
        let _ = Tree::remove_remains(&instance);
    }
}

#[expect(clippy::disallowed_methods, reason = "a process to put into a cgroup")]
fn sleeper() -> Child {
    Command::new("sleep")
        .arg("600")
        .stdin(Stdio::null())
        .spawn()
        .unwrap()
}

fn join(procs: OwnedFd, child: &Child) {
    File::from(procs)
        .write_all(child.id().to_string().as_bytes())
        .unwrap();
}

fn procs(tree: &Tree, job: JobId) -> OwnedFd {
    Dir::open(tree.path().to_owned())
        .unwrap()
        .open_at(&format!("{job}/cgroup.procs"), OFlag::O_WRONLY)
        .unwrap()
}

#[test]
fn a_leaf_is_made_filled_killed_emptied_and_removed() {
    let grove = Grove::new();
    let (tree, job) = (grove.tree(), JobId::random());
    drop(tree.create(job, &Limits::default(), None).unwrap());
    assert!(
        matches!(tree.create(job, &Limits::default(), None), Err(CgroupError::Exists(same)) if same == job)
    );
    assert_eq!(tree.leaves().unwrap(), [job]);
    assert!(!tree.populated(job).unwrap());

    let mut child = sleeper();
    join(procs(tree, job), &child);
    assert!(tree.populated(job).unwrap());
    assert!(matches!(tree.remove(job), Err(CgroupError::Busy { .. })));
    tree.kill(job).unwrap();
    let status = child.wait().unwrap();
    assert_eq!(
        std::os::unix::process::ExitStatusExt::signal(&status),
        Some(libc::SIGKILL)
    );
    assert!(tree.wait_empty(Duration::from_secs(20)).unwrap());
    assert!(!tree.populated(job).unwrap());
    tree.remove(job).unwrap();
    assert_eq!(tree.leaves().unwrap(), []);
}

#[test]
fn a_leaf_holds_only_one_process_while_no_other_is_in_it() {
    let grove = Grove::new();
    let tree = grove.tree();
    let job = JobId::random();
    assert!(
        !tree.holds_only(job, std::process::id()),
        "there is no leaf"
    );
    tree.create(job, &Limits::default(), None).unwrap();
    let mut children = [sleeper(), sleeper()];
    let [first, second] = children.each_ref().map(Child::id);
    assert!(tree.holds_only(job, first), "nobody is in it");
    join(procs(tree, job), &children[0]);
    assert!(tree.holds_only(job, first) && !tree.holds_only(job, second));
    join(procs(tree, job), &children[1]);
    assert!(!tree.holds_only(job, first) && !tree.holds_only(job, second));
    tree.kill(job).unwrap();
    for child in &mut children {
        child.wait().unwrap();
    }
    assert!(tree.holds_only(job, first));
}

#[test]
fn what_is_asked_of_a_job_without_a_leaf_is_missing() {
    let grove = Grove::new();
    let (tree, job) = (grove.tree(), JobId::random());
    for result in [
        tree.kill(job),
        tree.remove(job),
        tree.populated(job).map(|_| ()),
    ] {
        assert!(
            matches!(result, Err(CgroupError::Missing(same)) if same == job),
            "{result:?}"
        );
    }
}

#[test]
fn a_tree_is_found_again_with_all_that_is_in_it_and_killed_as_a_whole() {
    let grove = Grove::new();
    let (tree, job) = (grove.tree(), JobId::random());
    drop(tree.create(job, &Limits::default(), None).unwrap());
    let mut children = [sleeper(), sleeper()];
    join(procs(tree, job), &children[0]);
    join(tree.helpers_procs().unwrap(), &children[1]);

    let found = Tree::all(&grove.instance()).unwrap();
    assert_eq!(
        found.iter().map(Tree::path).collect::<Vec<_>>(),
        [tree.path()]
    );
    assert!(!found[0].wait_empty(Duration::from_millis(1)).unwrap());
    found[0].kill_all().unwrap();
    children
        .iter_mut()
        .for_each(|child| _ = child.wait().unwrap());
    assert!(found[0].wait_empty(Duration::from_secs(20)).unwrap());
    for tree in found {
        tree.remove_all().unwrap();
    }
    assert!(Tree::all(&grove.instance()).unwrap().is_empty());
}

#[test]
fn another_instance_is_not_touched() {
    let (ours, theirs) = (Grove::new(), Grove::new());
    let job = JobId::random();
    drop(theirs.tree().create(job, &Limits::default(), None).unwrap());
    let mut child = sleeper();
    join(procs(theirs.tree(), job), &child);
    ours.tree().kill_all().unwrap();
    for tree in Tree::all(&ours.instance()).unwrap() {
        tree.remove_all().unwrap();
    }
    assert!(theirs.tree().populated(job).unwrap());
    assert!(child.try_wait().unwrap().is_none());
    theirs.tree().kill(job).unwrap();
    child.wait().unwrap();
}

#[test]
fn an_instance_that_would_be_a_path_is_refused() {
    for instance in ["", "..", "a/b", "a b", "a-b"] {
        assert!(
            matches!(Tree::open(instance), Err(CgroupError::Instance(_))),
            "{instance:?}"
        );
    }
    assert!(!Tree::contains_us("nobodyhasthis").unwrap());
}

/// The value of a file of `leaf` in the hierarchy of version 1 for memory; `None` when it is not there.
fn memory_file(tree: &Tree, leaf: &str, file: &str) -> Option<String> {
    let name = tree.path().file_name().unwrap();
    let (_, place) = Place::legacy()
        .unwrap()
        .into_iter()
        .find(|(controller, _)| *controller == Controller::Memory)?;
    std::fs::read_to_string(place.own.join(name).join(leaf).join(file)).ok()
}

#[test]
fn a_seat_has_a_cgroup_for_memory_only_where_that_is_counted() {
    let grove = Grove::new();
    let tree = grove.tree();
    let legacy = Place::legacy().unwrap();
    if !legacy.iter().any(|(found, _)| *found == Controller::Memory) {
        println!("skip: a memory controller of version 1");
        return;
    }
    let oom = nix::sys::eventfd::EventFd::new().unwrap();
    let free = Limits::default();
    let bounded = Limits {
        memory_bytes: Some(64 << 20),
        ..Limits::default()
    };
    let make = |memory| tree.make_seat(memory, oom.as_fd()).unwrap();
    let late = |seat| tree.count_memory(seat, oom.as_fd()).unwrap();
    for (seat, limits, expected) in [
        (make(SeatMemory::Counted), &free, SeatMemory::Counted),
        (make(SeatMemory::Counted), &bounded, SeatMemory::Counted),
        (make(SeatMemory::Uncounted), &free, SeatMemory::Uncounted),
        (
            late(make(SeatMemory::Uncounted)),
            &bounded,
            SeatMemory::Counted,
        ),
    ] {
        assert_eq!(seat.memory(), expected);
        let job = JobId::random();
        let leaf = tree.create(job, limits, Some(seat)).unwrap();
        tree.bound(job, leaf.seat.as_deref(), limits, &[]).unwrap();
        let usage = tree.usage(job).unwrap();
        let is_counted = expected == SeatMemory::Counted;
        assert_eq!(usage.memory_bytes.is_some(), is_counted);
        assert_eq!(usage.memory_peak_bytes.is_some(), is_counted);
        assert_eq!(usage.oom_kills.is_some(), is_counted);
        assert_eq!(usage.pids, Some(0));
        let limit = memory_file(tree, &job.to_string(), "memory.limit_in_bytes");
        assert_eq!(limit.is_some(), is_counted);
        if limits.memory_bytes.is_some() {
            assert_eq!(limit.unwrap().trim(), "67108864");
        }
        tree.remove(job).unwrap();
        assert_eq!(memory_file(tree, &job.to_string(), "tasks"), None);
    }
}

#[test]
fn a_leaf_whose_removal_was_begun_by_a_daemon_that_died_is_removed_from_version_1_as_well() {
    let grove = Grove::new();
    let tree = grove.tree();
    let legacy = Place::legacy().unwrap();
    if !legacy.iter().any(|(found, _)| *found == Controller::Memory) {
        println!("skip: a memory controller of version 1");
        return;
    }
    let oom = nix::sys::eventfd::EventFd::new().unwrap();
    let seat = tree.make_seat(SeatMemory::Counted, oom.as_fd()).unwrap();
    let (job, limits) = (JobId::random(), Limits::default());
    let leaf = tree.create(job, &limits, Some(seat)).unwrap();
    tree.bound(job, leaf.seat.as_deref(), &limits, &[]).unwrap();
    let name = job.to_string();
    assert!(memory_file(tree, &name, "tasks").is_some());
    std::fs::remove_dir(tree.path().join(&name)).unwrap();
    assert!(matches!(tree.remove(job), Err(CgroupError::Missing(_))));
    assert_eq!(memory_file(tree, &name, "tasks"), None);
}
