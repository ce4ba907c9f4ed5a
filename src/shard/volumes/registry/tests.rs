//! The rules of the registry one by one, and any sequence of calls against a model that only counts.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;
use crate::job::VolumeSize;

fn name(text: &str) -> VolumeName {
    VolumeName::parse(text).unwrap()
}

fn spec(text: &str) -> VolumeSpec {
    VolumeSpec {
        name: name(text),
        size: VolumeSize::parse("1GB").unwrap(),
        kind: VolumeKind::Filesystem,
    }
}

fn of(names: &[&str]) -> Vec<Attachment> {
    let attachment = |text: &&str| Attachment {
        volume: name(text),
        is_read_only: false,
    };
    names.iter().map(attachment).collect()
}

fn with(names: &[&str]) -> Registry {
    let mut registry = Registry::default();
    for text in names {
        registry.begin_create(spec(text), 1).unwrap();
        registry.settle(&name(text), Became::Ready);
    }
    registry
}

fn id(number: u8) -> JobId {
    JobId::from_bytes([number; 16])
}

fn jobs(registry: &Registry, text: &str) -> Vec<JobId> {
    registry.get(&name(text)).unwrap().jobs
}

#[test]
fn all_of_a_jobs_volumes_are_held_or_none() {
    let mut registry = with(&["a", "b"]);
    let refusal = registry.hold(id(1), &of(&["a", "c"])).unwrap_err();
    assert_eq!(refusal.code, RefusalCode::NotFound);
    assert_eq!(refusal.message, "volume c not found");
    assert!(refusal.hint.is_some());
    assert_eq!(jobs(&registry, "a"), []);
    registry.hold(id(2), &of(&["a", "b"])).unwrap();
    registry.hold(id(1), &of(&["a"])).unwrap();
    assert_eq!(jobs(&registry, "a"), [id(2), id(1)]);
    let held = [(spec("a"), false), (spec("b"), false)];
    assert_eq!(registry.held_by(id(2)), held);
    registry.release(id(2));
    registry.release(id(2));
    assert_eq!(jobs(&registry, "a"), [id(1)]);
    assert_eq!(registry.held_by(id(2)), []);
}

#[test]
fn what_a_job_has_is_not_removed_and_whose_it_is_is_said() {
    let mut registry = with(&["data"]);
    registry.hold(id(1), &of(&["data"])).unwrap();
    registry.hold(id(2), &of(&["data"])).unwrap();
    let Err(Kept::InUse(holders)) = registry.begin_remove(&name("data")) else {
        panic!("it is in use");
    };
    let refusal = in_use(&holders);
    assert_eq!(refusal.code, RefusalCode::Conflict);
    assert_eq!(
        refusal.message,
        format!("Volume is in use by active jobs: {}, {}", id(1), id(2))
    );
    let many: Vec<_> = (0..20).map(id).collect();
    assert!(in_use(&many).message.ends_with(", and 4 more"));
    assert!(!in_use(&many[..16]).message.contains("more"));
    registry.release(id(1));
    registry.release(id(2));
    assert_eq!(registry.begin_remove(&name("data")), Ok(spec("data")));
}

#[test]
fn a_volume_that_is_being_removed_is_nobodys_until_it_is_whole_again_or_gone() {
    let mut registry = with(&["data"]);
    registry.begin_remove(&name("data")).unwrap();
    assert!(registry.hold(id(1), &of(&["data"])).is_err());
    assert!(matches!(
        registry.begin_remove(&name("data")),
        Err(Kept::Refused(refusal)) if refusal.code == RefusalCode::Conflict
    ));
    assert!(registry.begin_create(spec("data"), 2).is_err());
    registry.settle(&name("data"), Became::Untouched);
    registry.hold(id(1), &of(&["data"])).unwrap();
    registry.release(id(1));
    registry.begin_remove(&name("data")).unwrap();
    registry.settle(&name("data"), Became::Gone);
    assert!(registry.get(&name("data")).is_err());
    registry.begin_create(spec("data"), 3).unwrap();
    registry.settle(&name("data"), Became::Ready);
    assert_eq!(registry.get(&name("data")).unwrap().created_ns, 3);
}

#[test]
fn a_volume_that_is_being_made_is_not_there_yet_and_its_name_is_taken() {
    let mut registry = Registry::default();
    registry.begin_create(spec("data"), 1).unwrap();
    assert_eq!(registry.iter().count(), 0);
    assert!(registry.get(&name("data")).is_err());
    let refusal = registry.hold(id(1), &of(&["data"])).unwrap_err();
    assert_eq!(refusal.message, "volume data not found");
    let refusal = registry.begin_create(spec("data"), 2).unwrap_err();
    assert_eq!(
        (refusal.code, refusal.message.as_str()),
        (RefusalCode::Conflict, "volume data already exists")
    );
    registry.settle(&name("data"), Became::Gone);
    registry.begin_create(spec("data"), 3).unwrap();
}

#[test]
fn what_could_not_be_made_or_removed_can_only_be_removed() {
    for begin in [false, true] {
        let mut registry = Registry::default();
        registry.begin_create(spec("data"), 1).unwrap();
        if begin {
            registry.settle(&name("data"), Became::Ready);
            registry.begin_remove(&name("data")).unwrap();
        }
        registry.settle(&name("data"), Became::Stuck("no".into()));
        assert_eq!(
            registry.get(&name("data")).unwrap().damage.as_deref(),
            Some("no")
        );
        assert!(registry.hold(id(1), &of(&["data"])).is_err());
        assert!(registry.begin_create(spec("data"), 2).is_err());
        // What is wrong with it is no news from its file system.
        registry.note_damage(&name("data"), None);
        assert!(registry.get(&name("data")).unwrap().damage.is_some());
        registry.begin_remove(&name("data")).unwrap();
        registry.settle(&name("data"), Became::Untouched);
        assert!(registry.hold(id(1), &of(&["data"])).is_err());
        registry.begin_remove(&name("data")).unwrap();
        registry.settle(&name("data"), Became::Gone);
        assert!(registry.get(&name("data")).is_err());
    }
}

#[test]
fn jobs_of_a_former_daemon_hold_what_is_left_of_what_they_name() {
    let mut registry = Registry::default();
    registry.restore(spec("a"), 5, Left::Whole);
    registry.restore(spec("b"), 6, Left::Damaged("bad".into()));
    registry.restore_holder(id(1), &of(&["a", "gone"]));
    registry.restore_holder(id(1), &of(&["a", "gone"]));
    registry.restore_holder(id(2), &of(&["gone"]));
    assert_eq!(jobs(&registry, "a"), [id(1)]);
    assert_eq!(registry.held_by(id(1)), [(spec("a"), false)]);
    assert!(matches!(
        registry.begin_remove(&name("a")),
        Err(Kept::InUse(_))
    ));
    assert_eq!(
        registry.get(&name("b")).unwrap().damage.as_deref(),
        Some("bad")
    );
    // It may be whole by the time that a job has it.
    registry.hold(id(3), &of(&["b"])).unwrap();
    assert_eq!(registry.held_by(id(3)), [(spec("b"), true)]);
    registry.note_damage(&name("b"), None);
    assert_eq!(registry.get(&name("b")).unwrap().damage, None);
}

#[test]
fn only_who_may_write_to_a_disk_image_is_its_writer() {
    let mut registry = with(&["data", "idle"]);
    let memory = VolumeSpec {
        kind: VolumeKind::Memory,
        ..spec("cache")
    };
    registry.restore(memory, 1, Left::Whole);
    registry.hold(id(1), &of(&["data", "cache"])).unwrap();
    let mut reads = of(&["data"]);
    reads[0].is_read_only = true;
    registry.hold(id(2), &reads).unwrap();
    assert_eq!(registry.written(), [(spec("data"), vec![id(1)])]);
    assert_eq!(registry.release(id(2)), []);
    assert_eq!(registry.release(id(1)), [name("data"), name("cache")]);
    assert_eq!(registry.release(id(1)), []);
}

#[test]
fn there_is_a_most_and_who_goes_makes_room() {
    let mut registry = Registry::default();
    for number in 0..limits::VOLUMES_MAX {
        registry
            .begin_create(spec(&format!("v{number}")), 1)
            .unwrap();
    }
    let refusal = registry.begin_create(spec("more"), 1).unwrap_err();
    assert_eq!(refusal.code, RefusalCode::Busy);
    registry.settle(&name("v7"), Became::Gone);
    registry.begin_create(spec("more"), 1).unwrap();
}

/// A call, on one of a few volumes and jobs so that they meet.
#[derive(Debug, Clone)]
enum Call {
    BeginCreate(usize),
    BeginRemove(usize),
    Settle(usize, Became),
    Hold(u8, BTreeSet<usize>),
    Release(u8),
}

const NAMES: [&str; 3] = ["a", "b", "c"];

fn call() -> impl Strategy<Value = Call> {
    let volume = 0..NAMES.len();
    let became = prop_oneof![
        Just(Became::Ready),
        Just(Became::Gone),
        Just(Became::Stuck(String::new())),
        Just(Became::Untouched),
    ];
    prop_oneof![
        volume.clone().prop_map(Call::BeginCreate),
        volume.clone().prop_map(Call::BeginRemove),
        (volume.clone(), became).prop_map(|(volume, became)| Call::Settle(volume, became)),
        (0..6_u8, proptest::collection::btree_set(volume, 1..3))
            .prop_map(|(job, volumes)| Call::Hold(job, volumes)),
        (0..6_u8).prop_map(Call::Release),
    ]
}

/// What the model knows of one volume: that it is there and free to be held, or that somebody is at work on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Is {
    Made,
    Whole,
    Removed { was_whole: bool },
    Stuck,
}

proptest! {
    #[test]
    fn a_volume_is_in_one_state_held_or_removed_and_everything_adds_up(
        calls in proptest::collection::vec(call(), 1..200)
    ) {
        let mut registry = Registry::default();
        let mut model: BTreeMap<usize, Is> = BTreeMap::new();
        let mut held: BTreeMap<u8, BTreeSet<usize>> = BTreeMap::new();
        for call in calls {
            match call {
                Call::BeginCreate(volume) => {
                    let made = registry.begin_create(spec(NAMES[volume]), 1);
                    prop_assert_eq!(made.is_ok(), !model.contains_key(&volume));
                    model.entry(volume).or_insert(Is::Made);
                }
                Call::BeginRemove(volume) => {
                    let is_held = held.values().any(|volumes| volumes.contains(&volume));
                    let removed = registry.begin_remove(&name(NAMES[volume]));
                    let is = model.get(&volume).copied();
                    let may = matches!(is, Some(Is::Whole | Is::Stuck)) && !is_held;
                    prop_assert_eq!(removed.is_ok(), may);
                    prop_assert_eq!(matches!(removed, Err(Kept::InUse(_))), is_held);
                    if may {
                        model.insert(volume, Is::Removed { was_whole: is == Some(Is::Whole) });
                    }
                }
                Call::Settle(volume, became) => {
                    registry.settle(&name(NAMES[volume]), became.clone());
                    let before = match model.get(&volume) {
                        None | Some(Is::Whole | Is::Stuck) => continue,
                        Some(Is::Made | Is::Removed { was_whole: false }) => Is::Stuck,
                        Some(Is::Removed { was_whole: true }) => Is::Whole,
                    };
                    match became {
                        Became::Ready => model.insert(volume, Is::Whole),
                        Became::Gone => model.remove(&volume),
                        Became::Stuck(_) => model.insert(volume, Is::Stuck),
                        Became::Untouched => model.insert(volume, before),
                    };
                }
                Call::Hold(job, volumes) => {
                    let names: Vec<_> = volumes.iter().map(|volume| NAMES[*volume]).collect();
                    let holds = registry.hold(id(job), &of(&names));
                    let may = volumes.iter().all(|volume| model.get(volume) == Some(&Is::Whole));
                    prop_assert_eq!(holds.is_ok(), may);
                    if may {
                        held.entry(job).or_insert(volumes);
                    }
                }
                Call::Release(job) => {
                    registry.release(id(job));
                    held.remove(&job);
                }
            }
            for (volume, text) in NAMES.iter().enumerate() {
                let known = registry.get(&name(text)).ok();
                let is = model.get(&volume).copied();
                prop_assert_eq!(known.is_some(), is.is_some_and(|is| is != Is::Made));
                let holders: BTreeSet<_> = held.iter()
                    .filter(|(_, volumes)| volumes.contains(&volume))
                    .map(|(job, _)| id(*job))
                    .collect();
                let jobs = known.map(|known| known.jobs).unwrap_or_default();
                prop_assert_eq!(jobs.len(), holders.len());
                prop_assert_eq!(jobs.into_iter().collect::<BTreeSet<_>>(), holders);
            }
            prop_assert_eq!(registry.iter().count(), model.values().filter(|is| **is != Is::Made).count());
        }
    }
}
