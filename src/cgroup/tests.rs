//! Real cgroups, in trees of instances that only these tests have.

use std::{
    fs::File,
    io::Write,
    os::fd::OwnedFd,
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
