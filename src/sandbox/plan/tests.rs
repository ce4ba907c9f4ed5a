//! What plans are, what is refused, and that nothing but a plan is read as one.

use proptest::prelude::*;

use super::*;

const ALL: &[Rlimit] = &[
    Rlimit {
        resource: 7,
        soft: 1024,
        hard: 4096,
    },
    Rlimit {
        resource: 4,
        soft: 0,
        hard: u64::MAX,
    },
];

fn text(text: &str) -> Vec<u8> {
    text.as_bytes().to_vec()
}

/// Builds a plan after `change` has been made to an ordinary request.
fn plan(change: impl FnOnce(&mut PlanSpec<'_>)) -> Result<Plan, PlanError> {
    let (argv, env) = ([text("sh"), text("-c"), text("")], [text("PATH=/usr/bin")]);
    let cpus = CpuMask::from_cpus([0, 1]);
    let mut spec = PlanSpec {
        user: User {
            uid: 1000,
            gid: 1000,
        },
        ids_base: 0x8000_0000,
        workdir: b"/work",
        work: Work::Tmpfs { bytes: 1 << 20 },
        tmp_bytes: 1 << 20,
        shm_bytes: 1 << 20,
        argv: &argv,
        env: &env,
        cpus: &cpus,
        rlimits: ALL,
        has_uploads: false,
        joins: 0,
        volumes: &[],
    };
    change(&mut spec);
    Plan::new(&spec)
}

#[test]
fn the_order_is_mounts_then_inheritance_then_the_user_namespace_and_init() {
    let plan = plan(|spec| {
        spec.has_uploads = true;
        spec.joins = 3;
    })
    .unwrap();
    let decoded = DecodedPlan::read(plan.bytes()).unwrap();
    let tags: Vec<u16> = decoded.steps.iter().map(Step::tag).collect();
    let expected = [
        5, 10, 20, 22, 24, 26, 28, 40, 50, 50, 52, 60, 62, 64, 66, 68, 80, 82, 84, 86, 88, 90, 100,
    ];
    assert_eq!(tags, expected);
    assert_eq!(decoded.wants_joins(), 3);
    assert!(tags.iter().all(|tag| Step::name(*tag) != "unknown step"));
    assert_eq!(Step::name(7), "unknown step");
    assert_eq!(decoded.arguments[1].to_bytes(), b"1000 1000 1");
    assert_eq!(decoded.arguments[2].to_bytes(), b"/work");
    assert_eq!(decoded.arguments.len(), 6);
    assert!(decoded.wants_upload() && !decoded.wants_tree());
    assert!(decoded.steps.contains(&Step::Rlimit(ALL[1])));
    assert!(decoded.steps.contains(&Step::Uid(65_534)));
    let work = decoded.steps.iter().find_map(|step| {
        if let Step::MountWork { options } = step {
            Some(options.to_str().unwrap())
        } else {
            None
        }
    });
    assert_eq!(
        work,
        Some("size=1048576,nr_inodes=1024,mode=0755,uid=2147484648,gid=2147484648")
    );
}

#[test]
fn what_cannot_be_is_refused_by_name() {
    // Leaked, because a request borrows for as long as the ordinary one it is made from.
    let long: &'static [Vec<u8>] = vec![text("a"), vec![b'x'; limits::ARGUMENT_BYTES_MAX]].leak();
    let nul: &'static [Vec<u8>] = vec![text("a\0b")].leak();
    let many: &'static [Vec<u8>] = vec![vec![b'x'; 120_000]; 40].leak();
    let bytes = limits::ARGUMENT_BYTES_MAX;
    assert_eq!(plan(|spec| spec.argv = &[]), Err(PlanError::NoCommand));
    assert_eq!(
        plan(|spec| spec.argv = nul),
        Err(PlanError::Nul(Text::Argument(0)))
    );
    assert_eq!(
        plan(|spec| spec.env = nul),
        Err(PlanError::Nul(Text::Variable(0)))
    );
    assert_eq!(
        plan(|spec| spec.workdir = b"/a\0"),
        Err(PlanError::Nul(Text::Workdir))
    );
    assert_eq!(
        plan(|spec| spec.argv = long),
        Err(PlanError::TooLong {
            text: Text::Argument(1),
            bytes
        })
    );
    assert!(matches!(
        plan(|spec| spec.env = many),
        Err(PlanError::TooLarge { .. })
    ));
    assert_eq!(
        plan(|spec| spec.workdir = b"work"),
        Err(PlanError::WorkdirRelative)
    );
    assert_eq!(
        plan(|spec| spec.user.gid = 65_536),
        Err(PlanError::Id { id: 65_536 })
    );
    assert_eq!(
        plan(|spec| spec.ids_base = u32::MAX),
        Err(PlanError::IdsBase { base: u32::MAX })
    );
    assert_eq!(
        plan(|spec| spec.work = Work::Tmpfs { bytes: 0 }),
        Err(PlanError::NoSize { target: "/work" })
    );
    assert_eq!(
        plan(|spec| spec.tmp_bytes = 0),
        Err(PlanError::NoSize { target: "/tmp" })
    );
    let none = CpuMask::default();
    let argv = [text("true")];
    let spec = PlanSpec {
        user: User { uid: 0, gid: 0 },
        ids_base: 0x8000_0000,
        workdir: b"/",
        work: Work::Tree,
        tmp_bytes: 1,
        shm_bytes: 1,
        argv: &argv,
        env: &[],
        cpus: &none,
        rlimits: &[],
        has_uploads: false,
        joins: 0,
        volumes: &[],
    };
    assert_eq!(Plan::new(&spec), Err(PlanError::NoProcessor));
    let one = CpuMask::from_cpus([0]);
    assert_eq!(
        Plan::new(&PlanSpec {
            rlimits: &[ALL[0]; 17],
            cpus: &one,
            ..spec
        }),
        Err(PlanError::Rlimits { count: 17 })
    );
}

#[test]
fn the_longest_argument_and_the_last_user_fit() {
    let argv = [vec![b'x'; limits::ARGUMENT_BYTES_MAX - 1]];
    let argv = argv.as_slice();
    let cpus = CpuMask::from_cpus([8191]);
    let spec = PlanSpec {
        user: User {
            uid: 65_535,
            gid: 65_535,
        },
        ids_base: u32::MAX - limits::IDS_PER_JOB,
        workdir: b"/",
        work: Work::Tree,
        tmp_bytes: 1,
        shm_bytes: 1,
        argv,
        env: &[],
        cpus: &cpus,
        rlimits: &[ALL[0]; 16],
        has_uploads: false,
        joins: 0,
        volumes: &[],
    };
    let plan = Plan::new(&spec).unwrap();
    let decoded = DecodedPlan::read(plan.bytes()).unwrap();
    assert!(decoded.wants_tree());
    assert_eq!(decoded.arguments[3].to_bytes(), argv[0]);
}

#[test]
fn steps_out_of_order_twice_or_missing_are_no_plan() {
    let plan = plan(|_| ()).unwrap();
    let steps = DecodedPlan::read(plan.bytes()).unwrap().steps;
    let arguments = || [b"a".as_slice(), b"1 1 0", b"/", b"true"].into_iter();
    let read = |steps: &[Step<'_>]| {
        let bytes = encode(steps, arguments(), std::iter::empty());
        DecodedPlan::read(&bytes).map(drop)
    };
    assert_eq!(read(&steps), Ok(()));
    for index in 0..steps.len() {
        let mut without = steps.clone();
        let removed = without.remove(index);
        let mut twice = steps.clone();
        twice.insert(index, removed);
        if matches!(removed, Step::Rlimit(_)) {
            assert_eq!((read(&without), read(&twice)), (Ok(()), Ok(())));
            continue;
        }
        assert_eq!(read(&without), Err(DecodeError::Missing(removed.tag())));
        assert_eq!(read(&twice), Err(DecodeError::Order(removed.tag())));
        if index > 0 {
            let mut swapped = steps.clone();
            swapped.swap(index - 1, index);
            assert!(
                matches!(read(&swapped), Err(DecodeError::Order(_))),
                "{removed:?}"
            );
        }
    }
    let mut both = steps.clone();
    both.insert(6, Step::AttachWork);
    assert_eq!(read(&both), Err(DecodeError::Order(30)));
}

const VOLUMES: [Step<'_>; 4] = [
    Step::MountVolumes {
        options: c"size=4096,nr_inodes=3,mode=0755",
    },
    Step::AttachVolume {
        target: c"/volumes/data",
    },
    Step::AttachVolume {
        target: c"/volumes/cache",
    },
    Step::SealVolumes,
];

#[test]
fn volumes_are_attached_in_their_order_between_work_and_the_network() {
    let plan = plan(|spec| spec.volumes = &["data", "cache"]).unwrap();
    let decoded = DecodedPlan::read(plan.bytes()).unwrap();
    assert_eq!(decoded.wants_volumes(), 2);
    let at = decoded.steps.iter().position(|step| *step == VOLUMES[0]);
    let at = at.unwrap();
    assert_eq!(decoded.steps[at..at + 4], VOLUMES);
    assert_eq!(
        (decoded.steps[at - 1].tag(), decoded.steps[at + 4].tag()),
        (28, 40)
    );
    let tags = VOLUMES.map(|step| step.tag());
    assert!(tags.iter().all(|tag| Step::name(*tag) != "unknown step"));
    // Without volumes nothing of it is in a plan.
    let without = self::plan(|_| ()).unwrap();
    let without = DecodedPlan::read(without.bytes()).unwrap();
    assert_eq!(without.wants_volumes(), 0);
    assert!(without.steps.iter().all(|step| !tags.contains(&step.tag())));
}

#[test]
fn volumes_out_of_order_or_without_all_their_steps_are_no_plan() {
    let whole = plan(|spec| spec.volumes = &["data", "cache"]).unwrap();
    let steps = DecodedPlan::read(whole.bytes()).unwrap().steps;
    let arguments = || [b"a".as_slice(), b"1 1 0", b"/", b"true"].into_iter();
    let read = |steps: &[Step<'_>]| {
        DecodedPlan::read(&encode(steps, arguments(), std::iter::empty())).map(drop)
    };
    assert_eq!(read(&steps), Ok(()));
    let without = |left_out: &[Step<'_>]| {
        let mut kept = steps.clone();
        kept.retain(|step| !left_out.contains(step));
        read(&kept)
    };
    assert_eq!(without(&VOLUMES[..1]), Err(DecodeError::Missing(32)));
    assert_eq!(without(&VOLUMES[1..3]), Err(DecodeError::Missing(34)));
    assert_eq!(without(&VOLUMES[3..]), Err(DecodeError::Missing(36)));
    assert_eq!(without(&VOLUMES[1..2]), Ok(()));
    assert_eq!(without(&VOLUMES), Ok(()));
    let at = steps.iter().position(|step| *step == VOLUMES[3]).unwrap();
    let mut swapped = steps.clone();
    swapped.swap(at - 1, at);
    assert_eq!(read(&swapped), Err(DecodeError::Order(34)));
    let mut twice = steps.clone();
    twice.insert(at, VOLUMES[3]);
    assert_eq!(read(&twice), Err(DecodeError::Order(36)));
    let mut same = steps.clone();
    same[at - 1] = same[at - 2];
    assert_eq!(read(&same), Err(DecodeError::Order(34)), "attached twice");
    for target in [
        c"",
        c"/volumes",
        c"/volumes/",
        c"/volumes/..",
        c"/volumes/.hidden",
        c"/volumes/a/b",
        c"/work",
        c"volumes/a",
    ] {
        let mut elsewhere = steps.clone();
        elsewhere[at - 1] = Step::AttachVolume { target };
        let wrong = DecodeError::Step(StepError::Contents(34));
        assert_eq!(read(&elsewhere), Err(wrong), "{target:?}");
    }
}

#[test]
fn volumes_that_no_start_could_carry_or_no_path_be_are_refused() {
    let many: &'static [&'static str] = vec!["v"; limits::JOB_VOLUMES_MAX + 1].leak();
    let count = many.len();
    assert_eq!(
        plan(|spec| spec.volumes = many),
        Err(PlanError::Volumes { count })
    );
    for name in ["", "..", "a/b", "a\0", "1"] {
        let names: &'static [&'static str] = vec![name].leak();
        let refused = plan(|spec| spec.volumes = names);
        let name = name.to_owned();
        assert_eq!(refused, Err(PlanError::VolumeName { name }));
    }
}

#[test]
fn every_truncation_of_a_plan_is_refused() {
    let plan = plan(|_| ()).unwrap();
    for len in 0..plan.bytes().len() {
        assert!(DecodedPlan::read(&plan.bytes()[..len]).is_err(), "{len}");
    }
    let mut longer = plan.bytes().to_vec();
    longer.push(0);
    assert_eq!(DecodedPlan::read(&longer), Err(DecodeError::Length));
}

fn word() -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(1_u8..=255, 0..40)
}

proptest! {
    #[test]
    fn a_plan_is_read_as_it_was_made(
        argv in prop::collection::vec(word(), 1..20),
        env in prop::collection::vec(word(), 0..20),
        uid in 0_u32..65_536,
        cpu in 0_usize..1000,
        has_uploads: bool,
        joins in 0_u16..6,
        tree: bool,
    ) {
        let cpus = CpuMask::from_cpus([cpu]);
        let work = if tree { Work::Tree } else { Work::Tmpfs { bytes: 4096 } };
        let spec = PlanSpec {
            user: User { uid, gid: uid },
            ids_base: 0x8000_0000,
            workdir: b"/work",
            work,
            tmp_bytes: 1,
            shm_bytes: 1,
            argv: &argv,
            env: &env,
            cpus: &cpus,
            rlimits: &[],
            has_uploads,
            joins,
            volumes: &[],
        };
        let plan = Plan::new(&spec).unwrap();
        let decoded = DecodedPlan::read(plan.bytes()).unwrap();
        let same = |texts: &[&CStr], bytes: &[Vec<u8>]| texts.iter().map(|text| text.to_bytes()).eq(bytes);
        prop_assert!(same(&decoded.arguments[3..], &argv));
        prop_assert!(same(&decoded.variables, &env));
        prop_assert_eq!(decoded.wants_tree(), tree);
        prop_assert_eq!(decoded.wants_upload(), has_uploads);
        prop_assert_eq!(decoded.wants_joins(), usize::from(joins));
    }

    #[test]
    fn mangled_plans_never_panic_and_keep_their_order(at in 0_usize..600, with: u8, len in 0_usize..600) {
        let mut bytes = plan(|_| ()).unwrap().bytes().to_vec();
        let at = at % bytes.len();
        bytes[at] = with;
        bytes.truncate(bytes.len() - len % 3);
        if let Ok(decoded) = DecodedPlan::read(&bytes) {
            prop_assert_eq!(decoded.steps.last(), Some(&Step::Execute));
        }
    }
}
