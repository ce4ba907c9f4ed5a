//! Both sides of every bound, and the words of every refusal.

use super::*;

fn check(text: &str, expected: Result<impl FnOnce(&mut Config), &str>) {
    match (Config::parse(text), expected) {
        (Ok(found), Ok(change)) => {
            let mut expected = Config::default();
            change(&mut expected);
            assert_eq!(found, expected, "{text}");
        }
        (Err(error), Err(expected)) => assert_eq!(error.to_string(), expected, "{text}"),
        (Ok(found), Err(expected)) => panic!("{text}: accepted as {found:?}, expected {expected}"),
        (Err(error), Ok(_)) => panic!("{text}: {error}"),
    }
}

fn accepts(text: &str, change: impl FnOnce(&mut Config)) {
    check(text, Ok(change));
}

fn refuses(text: &str, message: &str) {
    check(text, Err::<fn(&mut Config), _>(message));
}

#[test]
fn an_empty_file_means_the_defaults() {
    for text in [
        "",
        "# nothing\n",
        "{}",
        "version: 1",
        "server:\nlimits:\njobs:\nids:\n",
        "limits: {log_bytes: }",
    ] {
        accepts(text, |_| {});
    }
}

#[test]
fn unknown_keys_are_refused_with_their_full_name() {
    refuses(
        "sever: {}",
        "unknown key sever; known here: version, server, limits, jobs, best_effort, ids, store",
    );
    refuses(
        "jobs: {graze: 1s}",
        "unknown key jobs.graze; known here: grace, default_cpu, default_memory, default_iobps, \
         default_pids, max_cpu, max_memory, max_iobps, max_pids, reserved_cores, max_running, \
         memory_budget, cpu_budget, queue_max",
    );
    refuses(
        "server: {listen: \"0.0.0.0:1\", port: 5}",
        "unknown key server.port; known here: listen, shards",
    );
    refuses(
        "ids: {first: 65536, x: {y: 1}}",
        "unknown key ids.x; known here: first, count",
    );
}

#[test]
fn wrong_shapes_are_refused() {
    refuses(
        "[1, 2]",
        "the whole file is [1,2]; allowed is a mapping of keys to values",
    );
    refuses(
        "limits: 5",
        "limits is 5; allowed is a mapping of keys to values",
    );
    refuses(
        "version: 2",
        "version is 2; allowed is a whole number from 1 to 1",
    );
    refuses(
        "version: \"1\"",
        "version is \"1\"; allowed is a whole number from 1 to 1",
    );
    assert!(matches!(
        Config::parse("a: [1"),
        Err(ConfigError::Syntax { .. })
    ));
    assert!(matches!(
        Config::parse("jobs: {grace: 1s, grace: 2s}"),
        Err(ConfigError::Syntax { .. })
    ));
}

#[test]
fn the_address_needs_a_port() {
    accepts("server: {listen: \"127.0.0.1:1\"}", |c| {
        c.server.listen = "127.0.0.1:1".parse().unwrap()
    });
    accepts("server: {listen: \"[::]:65535\"}", |c| {
        c.server.listen = "[::]:65535".parse().unwrap()
    });
    for bad in [
        "127.0.0.1",
        "127.0.0.1:0",
        "127.0.0.1:65536",
        "localhost:50051",
        ":50051",
    ] {
        refuses(
            &format!("server: {{listen: \"{bad}\"}}"),
            &format!("server.listen is {bad:?}; allowed is {LISTEN_ALLOWED}"),
        );
    }
}

#[test]
fn both_sides_of_every_number() {
    let shards = |count| move |c: &mut Config| c.server.shards = NonZeroUsize::new(count);
    accepts("server: {shards: 0}", shards(0));
    accepts("server: {shards: 128}", shards(128));
    refuses(
        "server: {shards: 129}",
        "server.shards is 129; allowed is a whole number from 0 to 128",
    );
    refuses(
        "server: {shards: -1}",
        "server.shards is -1; allowed is a whole number from 0 to 128",
    );
    refuses(
        "server: {shards: 1.5}",
        "server.shards is 1.5; allowed is a whole number from 0 to 128",
    );

    accepts("limits: {history_jobs: 1}", |c| c.limits.history_jobs = 1);
    accepts("limits: {history_jobs: 1000000}", |c| {
        c.limits.history_jobs = 1_000_000
    });
    let history = "allowed is a whole number from 1 to 1000000";
    refuses(
        "limits: {history_jobs: 0}",
        &format!("limits.history_jobs is 0; {history}"),
    );
    refuses(
        "limits: {history_jobs: 1000001}",
        &format!("limits.history_jobs is 1000001; {history}"),
    );
}

#[test]
fn both_sides_of_every_size() {
    accepts("limits: {log_bytes: 4096}", |c| c.limits.log_bytes = 4096);
    accepts("limits: {log_bytes: 16TB}", |c| {
        c.limits.log_bytes = 16 << 40
    });
    let log = "allowed is a size from 4KB to 16TB";
    refuses(
        "limits: {log_bytes: 4095}",
        &format!("limits.log_bytes is 4095; {log}"),
    );
    refuses(
        "limits: {log_bytes: 17592186044417}",
        &format!("limits.log_bytes is 17592186044417; {log}"),
    );
    refuses(
        "limits: {log_bytes: lots}",
        &format!("limits.log_bytes is \"lots\"; {log}"),
    );

    accepts("limits: {disk_reserve: 0}", |c| c.limits.disk_reserve = 0);
    accepts("limits: {disk_reserve: 1024TB}", |c| {
        c.limits.disk_reserve = 1 << 50
    });
    refuses(
        "limits: {disk_reserve: 1025TB}",
        "limits.disk_reserve is \"1025TB\"; allowed is a size from 0 to 1024TB",
    );

    let memory = "allowed is a size from 64KB to 1TB";
    accepts("limits: {work_memory_bytes: 64KB}", |c| {
        c.limits.work_memory_bytes = 64 << 10
    });
    accepts("limits: {work_memory_bytes: 1TB, work_bytes: 1TB}", |c| {
        c.limits.work_memory_bytes = 1 << 40;
        c.limits.work_bytes = 1 << 40;
    });
    accepts("limits: {tmp_bytes: 64KB, shm_bytes: 1TB}", |c| {
        c.limits.tmp_bytes = 64 << 10;
        c.limits.shm_bytes = 1 << 40;
    });
    accepts("limits: {tmp_bytes: 1TB, shm_bytes: 64KB}", |c| {
        c.limits.tmp_bytes = 1 << 40;
        c.limits.shm_bytes = 64 << 10;
    });
    for key in ["work_memory_bytes", "tmp_bytes", "shm_bytes"] {
        refuses(
            &format!("limits: {{{key}: 65535}}"),
            &format!("limits.{key} is 65535; {memory}"),
        );
        refuses(
            &format!("limits: {{{key}: 1099511627777}}"),
            &format!("limits.{key} is 1099511627777; {memory}"),
        );
    }

    accepts("limits: {work_bytes: 64 MB}", |c| {
        c.limits.work_bytes = 64 << 20
    });
    accepts("limits: {work_bytes: 1MB, work_memory_bytes: 1MB}", |c| {
        c.limits.work_bytes = 1 << 20;
        c.limits.work_memory_bytes = 1 << 20;
    });
    accepts("limits: {work_bytes: 1TB}", |c| {
        c.limits.work_bytes = 1 << 40
    });
    let work = "allowed is a size from 1MB to 1TB";
    refuses(
        "limits: {work_bytes: 1048575}",
        &format!("limits.work_bytes is 1048575; {work}"),
    );
    refuses(
        "limits: {work_bytes: 1025GB}",
        &format!("limits.work_bytes is \"1025GB\"; {work}"),
    );
    accepts("limits: {work_keep_jobs: 0}", |c| {
        c.limits.work_keep_jobs = 0
    });
    accepts("limits: {work_keep_jobs: 1024}", |c| {
        c.limits.work_keep_jobs = 1_024
    });
    refuses(
        "limits: {work_keep_jobs: 1025}",
        "limits.work_keep_jobs is 1025; allowed is a whole number from 0 to 1024",
    );
    refuses(
        "limits: {work_bytes: 63MB}",
        "limits.work_bytes is 63MB; allowed is at least limits.work_memory_bytes, 64MB",
    );
}

#[test]
fn both_sides_of_every_duration_and_word() {
    accepts("limits: {work_keep: 0}", |c| {
        c.limits.work_keep = Duration::ZERO
    });
    accepts("limits: {work_keep: 30d}", |c| {
        c.limits.work_keep = Duration::from_secs(30 * 86_400)
    });
    let keep = "allowed is a duration with its unit from 0 to 30d";
    refuses(
        "limits: {work_keep: 31d}",
        &format!("limits.work_keep is \"31d\"; {keep}"),
    );
    refuses(
        "limits: {work_keep: 600}",
        &format!("limits.work_keep is 600; {keep}"),
    );

    accepts("jobs: {grace: 0s}", |c| c.jobs.grace = Duration::ZERO);
    accepts("jobs: {grace: 1h}", |c| {
        c.jobs.grace = Duration::from_secs(3600)
    });
    refuses(
        "jobs: {grace: 3601s}",
        "jobs.grace is \"3601s\"; allowed is a duration with its unit from 0 to 1h",
    );

    accepts("limits: {log_policy: stop}", |c| {
        c.limits.log_policy = LogPolicy::Stop
    });
    accepts("limits: {log_policy: drop}", |_| {});
    refuses(
        "limits: {log_policy: Drop}",
        "limits.log_policy is \"Drop\"; allowed is drop or stop",
    );
}

#[test]
fn limits_of_jobs_are_in_range_or_none() {
    accepts(
        "jobs: {default_cpu: 1, default_memory: 6MB, default_iobps: 4KB, default_pids: 2}",
        |c| {
            c.jobs.default = JobLimits {
                cpu_percent: Some(1),
                memory_bytes: Some(6 << 20),
                io_bytes_per_second: Some(4_096),
                pids: Some(2),
            };
        },
    );
    accepts(
        "jobs: {max_cpu: 10000, max_memory: 1024TB, max_iobps: 1024TB, max_pids: 4194304}",
        |c| {
            c.jobs.max = JobLimits {
                cpu_percent: Some(10_000),
                memory_bytes: Some(1 << 50),
                io_bytes_per_second: Some(1 << 50),
                pids: Some(4_194_304),
            };
        },
    );
    accepts(
        "jobs: {default_pids: 0, max_cpu: 0, max_memory: 0, max_iobps: 0}",
        |c| c.jobs.default.pids = None,
    );
    for (key, bad, allowed) in [
        ("cpu", "10001", "a whole number from 1 to 10000"),
        ("cpu", "-1", "a whole number from 1 to 10000"),
        ("memory", "6291455", "a size from 6MB to 1024TB"),
        ("memory", "1125899906842625", "a size from 6MB to 1024TB"),
        ("iobps", "4095", "a size from 4KB to 1024TB"),
        ("pids", "1", "a whole number from 2 to 4194304"),
        ("pids", "4194305", "a whole number from 2 to 4194304"),
    ] {
        for which in ["default", "max"] {
            refuses(
                &format!("jobs: {{{which}_{key}: {bad}}}"),
                &format!("jobs.{which}_{key} is {bad}; allowed is 0 for none, or {allowed}"),
            );
        }
    }
}

#[test]
fn what_jobs_may_have_at_once_is_in_range_or_without_bound() {
    accepts(
        "jobs: {max_running: 1, memory_budget: 6MB, cpu_budget: 1, queue_max: 1}",
        |c| {
            c.jobs.max_running = NonZeroUsize::new(1);
            c.jobs.memory_budget = Some(6 << 20);
            c.jobs.cpu_budget = Some(1);
            c.jobs.queue_max = 1;
        },
    );
    accepts(
        "jobs: {max_running: 1000000, memory_budget: 1024TB, cpu_budget: 1000000, queue_max: 1000000}",
        |c| {
            c.jobs.max_running = NonZeroUsize::new(1_000_000);
            c.jobs.memory_budget = Some(1 << 50);
            c.jobs.cpu_budget = Some(1_000_000);
            c.jobs.queue_max = 1_000_000;
        },
    );
    accepts(
        "jobs: {max_running: 0, memory_budget: 0, cpu_budget: 0, queue_max: 10000}",
        |_| {},
    );
    let count = "a whole number from 1 to 1000000";
    let memory = "0 for none, or a size from 6MB to 1024TB";
    for (key, bad, allowed) in [
        ("max_running", "1000001", format!("0 for none, or {count}")),
        ("max_running", "-1", format!("0 for none, or {count}")),
        ("cpu_budget", "1000001", format!("0 for none, or {count}")),
        ("cpu_budget", "1.5", format!("0 for none, or {count}")),
        ("memory_budget", "6291455", memory.to_owned()),
        ("memory_budget", "1125899906842625", memory.to_owned()),
        ("queue_max", "0", count.to_owned()),
        ("queue_max", "1000001", count.to_owned()),
    ] {
        refuses(
            &format!("jobs: {{{key}: {bad}}}"),
            &format!("jobs.{key} is {bad}; allowed is {allowed}"),
        );
    }
}

#[test]
fn history_is_bounded_by_age_and_bytes_or_not_at_all() {
    accepts("limits: {history_age: 0, history_bytes: 0}", |_| {});
    accepts("limits: {history_age: 0s}", |_| {});
    accepts("limits: {history_age: 1ms, history_bytes: 1MB}", |c| {
        c.limits.history_age = Some(Duration::from_millis(1));
        c.limits.history_bytes = Some(1 << 20);
    });
    accepts("limits: {history_age: 3660d, history_bytes: 1024TB}", |c| {
        c.limits.history_age = Some(Duration::from_secs(3_660 * 86_400));
        c.limits.history_bytes = Some(1 << 50);
    });
    let age = "allowed is a duration with its unit from 0 to 3660d";
    refuses(
        "limits: {history_age: 3661d}",
        &format!("limits.history_age is \"3661d\"; {age}"),
    );
    refuses(
        "limits: {history_age: 30}",
        &format!("limits.history_age is 30; {age}"),
    );
    let bytes = "allowed is 0 for none, or a size from 1MB to 1024TB";
    for bad in ["1048575", "1125899906842625", "-1"] {
        refuses(
            &format!("limits: {{history_bytes: {bad}}}"),
            &format!("limits.history_bytes is {bad}; {bytes}"),
        );
    }
}

#[test]
fn cores_for_the_daemon_are_counted_or_follow_from_the_machine() {
    accepts("jobs: {reserved_cores: auto}", |_| {});
    accepts("jobs: {reserved_cores: 0}", |c| {
        c.jobs.reserved_cores = Some(0)
    });
    accepts("jobs: {reserved_cores: 1024}", |c| {
        c.jobs.reserved_cores = Some(1_024)
    });
    for bad in ["1025", "-1", "\"all\"", "1.5"] {
        refuses(
            &format!("jobs: {{reserved_cores: {bad}}}"),
            &format!(
                "jobs.reserved_cores is {bad}; allowed is auto, or a whole number from 0 to 1024"
            ),
        );
    }
    let count = |reserved_cores, cores| {
        let jobs = Jobs {
            reserved_cores,
            ..Jobs::default()
        };
        jobs.reserved_core_count(cores)
    };
    let auto = [1, 2, 3, 4, 64].map(|cores| count(None, cores));
    assert_eq!(auto, [0, 0, 0, 1, 1]);
    let two = [1, 2, 3, 64].map(|cores| count(Some(2), cores));
    assert_eq!(two, [0, 1, 2, 2], "one core is left to jobs");
    assert_eq!(count(Some(0), 64), 0);
}

#[test]
fn best_effort_is_said_in_so_many_words() {
    accepts("best_effort: true", |c| c.best_effort = true);
    accepts("best_effort: false", |_| {});
    refuses(
        "best_effort: maybe",
        "best_effort is \"maybe\"; allowed is true or false",
    );
}

#[test]
fn durability_is_one_of_two_words() {
    accepts("store: {durability: process}", |_| {});
    accepts("store: {durability: power}", |c| {
        c.store.durability = Durability::Power;
    });
    refuses(
        "store: {durability: disk}",
        "store.durability is \"disk\"; allowed is process or power",
    );
    refuses(
        "store: {sync: power}",
        "unknown key store.sync; known here: durability",
    );
}

#[test]
fn id_ranges_stay_below_the_ids_that_mean_none() {
    accepts("ids: {first: 65536, count: 65534}", |c| {
        c.ids = Ids {
            first: 65_536,
            count: 65_534,
        }
    });
    accepts("ids: {count: 256}", |c| c.ids.count = 256);
    accepts("ids: {first: 3221225472}", |c| {
        c.ids = Ids {
            first: 3_221_225_472,
            count: 16_383,
        }
    });
    let first = "allowed is a whole number from 65536 to 4294836224";
    refuses(
        "ids: {first: 65535}",
        &format!("ids.first is 65535; {first}"),
    );
    refuses(
        "ids: {first: 4294836225}",
        &format!("ids.first is 4294836225; {first}"),
    );
    refuses(
        "ids: {first: 65537}",
        "ids.first is 65537; allowed is a multiple of 65536",
    );
    refuses(
        "ids: {count: 255}",
        "ids.count is 255; allowed is a whole number from 256 to 65534",
    );
    refuses(
        "ids: {count: 65535}",
        "ids.count is 65535; allowed is a whole number from 256 to 65534",
    );
    refuses(
        "ids: {count: 32768}",
        "ids.count is 32768; allowed is at most 32767: that many ranges follow ids.first",
    );
}

#[test]
fn the_environment_wins_over_the_file_and_is_named_when_wrong() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("joblet.yml");
    let load = |listen: &str| {
        Config::load(
            &path,
            &Overrides {
                listen: Some(listen.into()),
            },
        )
    };
    assert!(matches!(load("127.0.0.1:7"), Err(ConfigError::Read { .. })));

    let file = fs::File::create(&path).unwrap();
    io::Write::write_all(&mut &file, b"server: {listen: \"0.0.0.0:9\", shards: 2}\n").unwrap();
    let found = load("127.0.0.1:7").unwrap();
    assert_eq!(
        found.server,
        Server {
            listen: "127.0.0.1:7".parse().unwrap(),
            shards: NonZeroUsize::new(2)
        }
    );
    let error = load("here").unwrap_err();
    assert_eq!(
        error.to_string(),
        format!("JOBLET_LISTEN is here; allowed is {LISTEN_ALLOWED}")
    );
}

#[test]
fn clients_of_the_same_machine_reach_an_unspecified_address_over_loopback() {
    let check = |listen: &str, expected: &str| {
        let server = Server {
            listen: listen.parse().unwrap(),
            shards: None,
        };
        assert_eq!(server.local_address().to_string(), expected);
    };
    check("0.0.0.0:50051", "127.0.0.1:50051");
    check("[::]:9", "[::1]:9");
    check("10.1.2.3:9", "10.1.2.3:9");
}

#[test]
fn shards_follow_the_cores_unless_told() {
    let count = |shards, cores| {
        let server = Server {
            shards: NonZeroUsize::new(shards),
            ..Server::default()
        };
        server.shard_count(NonZeroUsize::new(cores).unwrap()).get()
    };
    assert_eq!(count(0, 2), 2);
    assert_eq!(count(0, 500), 128);
    assert_eq!(count(3, 2), 3);
}
