//! Lists that hold still while jobs come, prefixes as people type them, and that no question scans all jobs.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    thread,
};

use super::{
    super::{Change, tests::*},
    *,
};

fn all() -> ListQuery {
    ListQuery {
        state: None,
        owner: None,
        limit: 7,
        before: None,
    }
}

fn ids(jobs: &[JobView]) -> Vec<JobId> {
    jobs.iter().map(|job| job.id).collect()
}

/// All pages of a list, one after the other.
fn pages(reader: &Reader, mut query: ListQuery) -> Vec<JobId> {
    let mut found = Vec::new();
    loop {
        let (jobs, next) = reader.list(&query).unwrap();
        assert!(jobs.len() <= query.limit);
        found.extend(ids(&jobs));
        match next {
            Some(next) => query.before = Some(next),
            None => return found,
        }
    }
}

#[test]
fn lists_are_newest_first_narrowed_and_continued_where_they_ended() {
    let scratch = Scratch::new();
    let (writer, _store) = scratch.open();
    // Three jobs at each moment: the id decides then.
    let mut jobs: Vec<_> = (0..30).map(|index| live_job(index / 3)).collect();
    for (index, job) in jobs.iter_mut().enumerate() {
        if index % 2 == 0 {
            job.owner = "bob".into();
        }
        ask(&writer, accept(job)).unwrap();
    }
    for job in jobs.iter_mut().skip(3).step_by(4) {
        *job = end(job.clone(), 99);
        ask(&writer, end_of(job)).unwrap();
    }
    let reader = scratch.reader();
    jobs.sort_by_key(|job| std::cmp::Reverse((super::super::row::created_ns(job), job.id)));
    let expected = |keep: &dyn Fn(&JobView) -> bool| -> Vec<JobId> {
        jobs.iter()
            .filter(|job| keep(job))
            .map(|job| job.id)
            .collect()
    };
    let check = |state: Option<State>, owner: Option<&str>| {
        for limit in [1, 2, 7, 29, 30, 31] {
            let query = ListQuery {
                state,
                owner: owner.map(str::to_owned),
                limit,
                before: None,
            };
            let keep = |job: &JobView| {
                state.is_none_or(|state| job.state == state)
                    && owner.is_none_or(|owner| job.owner == owner)
            };
            assert_eq!(pages(&reader, query.clone()), expected(&keep), "{query:?}");
        }
    };
    for owner in [None, Some("ann"), Some("bob"), Some("eve")] {
        for state in [
            None,
            Some(State::Running),
            Some(State::Completed),
            Some(State::Failed),
        ] {
            check(state, owner);
        }
    }
    let (one, _) = reader.list(&all()).unwrap();
    assert_eq!(one, jobs[..7]);
    let nothing = ListQuery { limit: 0, ..all() };
    assert_eq!(reader.list(&nothing).unwrap(), (Vec::new(), None));
    let mut live: Vec<_> = jobs
        .iter()
        .filter(|job| job.outcome.is_none())
        .cloned()
        .collect();
    live.reverse();
    assert_eq!(reader.live().unwrap().jobs, live, "oldest first");
    assert_eq!(reader.count().unwrap(), 30);
}

#[test]
fn pages_neither_repeat_nor_miss_a_job_while_others_come_and_go() {
    let scratch = Scratch::new();
    let (writer, _store) = scratch.open();
    let old: Vec<_> = (0..200).map(live_job).collect();
    for job in &old {
        ask(&writer, accept(job)).unwrap();
    }
    let reader = scratch.reader();
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            // New ones stand in front of the first page, whenever it was asked for.
            for at_ns in 1_000.. {
                let job = live_job(at_ns);
                ask(&writer, accept(&job)).unwrap();
                let ids = vec![job.id];
                if at_ns % 2 == 0 {
                    ask(&writer, Change::Delete { ids }).unwrap();
                }
                if stop.load(Ordering::Relaxed) {
                    break;
                }
            }
        });
        let expected: Vec<_> = old.iter().rev().map(|job| job.id).collect();
        for _ in 0..50 {
            let found = pages(&reader, all());
            let of_old: Vec<_> = found
                .into_iter()
                .filter(|id| expected.contains(id))
                .collect();
            assert_eq!(of_old, expected);
        }
        stop.store(true, Ordering::Relaxed);
    });
}

#[test]
fn prefixes_find_ids_with_and_without_dashes_and_never_too_many() {
    let scratch = Scratch::new();
    let (writer, _store) = scratch.open();
    let text = [
        "01234567-89ab-4def-8123-456789abcdef",
        "01234567-89ab-4def-8123-456789abcdff",
        "01234568-0000-4000-8000-000000000000",
        "ffffffff-ffff-4fff-bfff-ffffffffffff",
    ];
    let ids = text.map(|id| JobId::parse(id).unwrap());
    for id in ids {
        let mut job = live_job(1);
        job.id = id;
        ask(&writer, accept(&job)).unwrap();
    }
    let reader = scratch.reader();
    let check = |prefix: &str, expected: &[JobId]| {
        assert_eq!(reader.find(prefix, 10).unwrap(), expected, "{prefix}");
    };
    check("0123", &ids[..3]);
    check("01234567", &ids[..2]);
    check("01234567-", &ids[..2]);
    check("01234567-89ab-4def-8123-456789abcde", &ids[..1]);
    check("0123456789ab4def8123456789abcdff", &ids[1..2]);
    check(text[3], &ids[3..]);
    check("ffff", &ids[3..]);
    check("0123-4567", &[]);
    check("0124", &[]);
    check("01234567-89ab-4def-8123-456789abcdef0", &[]);
    check("nothex", &[]);
    assert_eq!(reader.find("0123", 2).unwrap(), ids[..2]);
    assert_eq!(reader.find("", usize::MAX).unwrap(), ids);
}

#[test]
fn a_row_that_cannot_be_read_is_named_and_hides_no_other() {
    let scratch = Scratch::new();
    let (writer, _store) = scratch.open();
    let jobs: Vec<_> = (0..3).map(live_job).collect();
    for job in &jobs {
        ask(&writer, accept(job)).unwrap();
    }
    let broken = jobs[1].id;
    let other = Connection::open(scratch.path()).unwrap();
    for (column, value) in [
        ("spec", "{}"),
        ("state", "asleep"),
        ("transitions", "no JSON"),
        ("stdout_bytes", "-1"),
    ] {
        let sql = |value: &str| format!("UPDATE jobs SET {column} = {value} WHERE id = ?1");
        other
            .execute_batch("CREATE TEMP TABLE old AS SELECT * FROM jobs")
            .unwrap();
        other
            .execute(&sql(&format!("'{value}'")), [broken.to_bytes()])
            .unwrap();
        let reader = scratch.reader();
        let error = reader.get(broken).unwrap_err();
        assert_eq!(
            error.to_string(),
            format!("{column} of job {broken} cannot be read")
        );
        let live = reader.live().unwrap();
        assert_eq!(ids(&live.jobs), [jobs[0].id, jobs[2].id]);
        assert_eq!(live.broken[0].0, broken);
        let (listed, _) = reader.list(&all()).unwrap();
        assert_eq!(ids(&listed), [jobs[2].id, jobs[0].id]);
        let old = format!("(SELECT {column} FROM old WHERE old.id = jobs.id)");
        other.execute(&sql(&old), [broken.to_bytes()]).unwrap();
        other.execute_batch("DROP TABLE old").unwrap();
        assert_eq!(reader.get(broken).unwrap(), Some(jobs[1].clone()));
    }
}

#[test]
fn every_question_is_answered_from_an_index() {
    let scratch = Scratch::new();
    let (writer, _store) = scratch.open();
    ask(&writer, accept(&live_job(1))).unwrap();
    let reader = scratch.reader();
    let plan = |sql: &str| {
        let mut statement = reader
            .connection
            .prepare(&format!("EXPLAIN QUERY PLAN {sql}"))
            .unwrap();
        let count = statement.parameter_count();
        let rows = statement
            .query_map(rusqlite::params_from_iter(vec![1; count]), |row| {
                row.get::<_, String>(3)
            })
            .unwrap();
        rows.collect::<Result<Vec<_>, _>>().unwrap().join("; ")
    };
    let check = |sql: &str, expected: &str| {
        let found = plan(sql);
        assert!(
            found.contains(expected) && !found.contains("TEMP B-TREE"),
            "{sql}\n{found}\n{expected}"
        );
    };
    let at = Cursor {
        created_ns: 1,
        id: JobId::random(),
    };
    let list = |state, owner: Option<&str>, before| {
        list_sql(&ListQuery {
            state,
            owner: owner.map(str::to_owned),
            limit: 100,
            before,
        })
    };
    let running = Some(State::Running);
    check(&list(None, None, None), "SCAN jobs USING INDEX jobs_newest");
    check(
        &list(None, None, Some(at)),
        "SEARCH jobs USING INDEX jobs_newest ((created_ns,id)<(?,?))",
    );
    check(
        &list(running, None, Some(at)),
        "SEARCH jobs USING INDEX jobs_in_state (state=? AND (created_ns,id)<(?,?))",
    );
    check(
        &list(None, Some("ann"), Some(at)),
        "SEARCH jobs USING INDEX jobs_of_owner (owner=? AND (created_ns,id)<(?,?))",
    );
    check(&list(running, Some("ann"), None), "SEARCH jobs USING INDEX");
    check(
        &format!("SELECT {COLUMNS} FROM jobs WHERE id = ?1"),
        "SEARCH jobs USING INDEX sqlite_autoindex_jobs_1 (id=?)",
    );
    check(
        "SELECT id FROM jobs WHERE id BETWEEN ?1 AND ?2 ORDER BY id LIMIT ?3",
        "SEARCH jobs USING COVERING INDEX sqlite_autoindex_jobs_1 (id>? AND id<?)",
    );
    check(
        "SELECT id FROM jobs WHERE ended_ns IS NULL ORDER BY created_ns, id",
        "INDEX jobs_live",
    );
    check(
        super::super::apply::OLDEST,
        "SEARCH jobs USING COVERING INDEX jobs_ended",
    );
    check(
        super::super::apply::SIZES,
        "USING COVERING INDEX jobs_ended",
    );
    check(
        super::super::apply::LAST_BY_COUNT,
        "USING COVERING INDEX jobs_ended",
    );
}
