//! Files that are refused, and that refusing changes not one byte of them.

use std::os::unix::fs::PermissionsExt;

use super::{
    super::{Change, Reader, Store, tests::*},
    *,
};

/// A database with jobs, closed.
fn filled(jobs: i64) -> Scratch {
    let scratch = Scratch::new();
    let (writer, store) = scratch.open();
    for at_ns in 0..jobs {
        ask(&writer, end_of(&end(live_job(at_ns), at_ns))).unwrap();
    }
    drop(writer);
    store.close();
    scratch
}

#[expect(clippy::disallowed_methods, reason = "a test damages a file")]
fn write(path: &Path, bytes: &[u8]) {
    fs::write(path, bytes).unwrap();
}

/// Opens a database that must be refused, looks that nothing was changed, and gives the refusal.
fn refused(path: &Path) -> OpenError {
    let before = raw(path);
    let error = match Store::open(options(path)) {
        Err(error) => error,
        Ok(_) => panic!("{} was opened", path.display()),
    };
    assert!(raw(path) == before, "{error}, but something was written");
    error
}

#[test]
fn a_new_database_is_private_and_the_next_daemon_finds_what_was_there() {
    let scratch = filled(3);
    let (writer, store) = scratch.open();
    for beside in ["", "-wal", "-shm"] {
        let path = format!("{}{beside}", scratch.path().display());
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o600, "{path}");
    }
    assert_eq!(scratch.reader().count().unwrap(), 3);
    let other = Connection::open(scratch.path()).unwrap();
    let ask = |sql: &str| {
        other
            .query_row(sql, [], |row| row.get::<_, String>(0))
            .unwrap()
    };
    assert_eq!(
        ask("SELECT value FROM meta WHERE key = 'format 1'"),
        format!("joblet {}", env!("CARGO_PKG_VERSION"))
    );
    assert_eq!(ask("PRAGMA journal_mode"), "wal");
    assert_eq!(ask("SELECT state FROM jobs LIMIT 1"), "completed");
    assert_eq!(
        ask("SELECT CAST(auto_vacuum AS TEXT) FROM pragma_auto_vacuum"),
        "2"
    );
    drop(writer);
    store.close();
}

#[test]
fn strange_and_newer_files_are_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store.db");
    write(&path, &b"this is a letter to somebody. ".repeat(200));
    let error = refused(&path);
    assert!(matches!(error, OpenError::Foreign { .. }), "{error}");
    assert_eq!(
        error.to_string(),
        format!(
            "{} is no database of joblet: its first bytes are not those of SQLite; it was not touched, move it \
             away to start without history",
            path.display()
        )
    );

    fs::remove_file(&path).unwrap();
    let other = Connection::open(&path).unwrap();
    other.execute_batch("CREATE TABLE letters (text)").unwrap();
    drop(other);
    assert!(matches!(refused(&path), OpenError::Foreign { why, .. } if why.contains("another")));

    let scratch = filled(1);
    let other = Connection::open(scratch.path()).unwrap();
    other.execute_batch("PRAGMA user_version = 3").unwrap();
    drop(other);
    let error = refused(&scratch.path());
    assert_eq!(
        error.to_string(),
        format!(
            "{} has format 3, this joblet knows formats up to 2; it was not touched, start the newer joblet again",
            scratch.path().display()
        )
    );
    assert!(Reader::open(&scratch.path(), &key()).is_err());
}

#[test]
fn damage_is_found_wherever_a_page_is_overwritten_or_the_file_is_cut() {
    let scratch = filled(60);
    let path = scratch.path();
    let whole = fs::read(&path).unwrap();
    let pages = whole.len() / 4_096;
    assert!(pages > 20, "{pages} pages");
    for page in 0..pages {
        let mut damaged = whole.clone();
        let begin = page * 4_096 + if page == 0 { 100 } else { 0 };
        damaged[begin..begin + 16].fill(0xff);
        write(&path, &damaged);
        let error = refused(&path);
        assert!(
            matches!(error, OpenError::Damaged { .. }),
            "page {page}: {error}"
        );
    }
    for keep in [1, 2, pages / 2, pages - 1] {
        write(&path, &whole[..keep * 4_096]);
        let error = refused(&path);
        assert!(
            matches!(error, OpenError::Damaged { .. }),
            "{keep}: {error}"
        );
    }
    write(&path, &whole);
    let (writer, store) = scratch.open();
    drop(writer);
    store.close();
}

#[test]
fn in_a_large_database_damage_is_found_where_lists_and_recovery_look() {
    let scratch = filled(60);
    let path = scratch.path();
    let whole = fs::read(&path).unwrap();
    let other = Connection::open(&path).unwrap();
    let names = [
        "meta",
        "idempotency_keys",
        "volumes",
        "sqlite_autoindex_jobs_1",
        "jobs_newest",
        "jobs_live",
        "jobs_ended",
    ];
    let roots = names.map(|name| {
        let sql = "SELECT rootpage FROM sqlite_schema WHERE name = ?1";
        let root = other.query_row(sql, [name], |row| row.get::<_, u32>(0));
        (name, usize::try_from(root.unwrap()).unwrap())
    });
    drop(other);
    let look = || {
        let connection = connect(&path, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
        check(&connection, &path, newest(), 0)
    };
    look().unwrap();
    for (name, page) in roots {
        let mut damaged = whole.clone();
        damaged[(page - 1) * 4_096..][..8].fill(0xff);
        write(&path, &damaged);
        let found = look();
        assert!(
            matches!(found, Err(OpenError::Damaged { .. })),
            "{name}: {found:?}"
        );
    }
    // An index that has lost what others have.
    write(&path, &whole);
    let other = Connection::open(&path).unwrap();
    let sql = "SELECT sql FROM sqlite_schema WHERE name = 'jobs_ended'";
    let made: String = other.query_row(sql, [], |row| row.get(0)).unwrap();
    let narrowed = format!("{made} AND ended_ns > 9").replace('\'', "''");
    other
        .execute_batch(&format!(
            "DROP INDEX jobs_ended; {narrowed}; PRAGMA writable_schema = ON; \
             UPDATE sqlite_schema SET sql = '{made}' WHERE name = 'jobs_ended'"
        ))
        .unwrap();
    drop(other);
    let found = look();
    let text = "its indexes do not agree: 60 and 60 jobs, 0 live and 50 ended";
    assert!(
        matches!(&found, Err(OpenError::Damaged { damage, .. }) if damage == text),
        "{found:?}"
    );
}

#[test]
fn durability_is_what_sqlite_is_told() {
    let scratch = Scratch::new();
    for (durability, expected) in [(Durability::Process, 1), (Durability::Power, 2)] {
        let (connection, _file) = open(&scratch.path(), durability).unwrap();
        let found: i64 = connection
            .query_row("PRAGMA synchronous", [], |row| row.get(0))
            .unwrap();
        assert_eq!(found, expected, "{durability:?}");
    }
}

#[test]
fn damage_is_found_and_the_log_left_alone_after_a_crash() {
    let scratch = filled(60);
    let (writer, store) = scratch.open();
    for at_ns in 0..5 {
        ask(&writer, accept(&live_job(at_ns))).unwrap();
    }
    // What a crash would leave.
    let left = Scratch::new();
    let (from, to) = (scratch.path(), left.path());
    fs::copy(&from, &to).unwrap();
    fs::copy(wal_of(&from), wal_of(&to)).unwrap();
    drop(writer);
    store.close();
    let whole = fs::read(&to).unwrap();
    assert!(fs::metadata(wal_of(&to)).unwrap().len() > 0);

    write(&to, &whole[..whole.len() / 2]);
    let error = refused(&to);
    let text = error.to_string();
    assert!(
        matches!(error, OpenError::Damaged { .. }) && text.contains(".recover"),
        "{text}"
    );
    // Only the log is left: SQLite alone would delete it.
    write(&to, b"");
    assert!(matches!(refused(&to), OpenError::Damaged { .. }));
    fs::remove_file(&to).unwrap();
    let log = fs::read(wal_of(&to)).unwrap();
    let error = Store::open(options(&to)).unwrap_err();
    assert!(matches!(error, OpenError::Damaged { .. }), "{error}");
    assert_eq!(fs::read(wal_of(&to)).unwrap(), log);
    assert!(!to.exists());

    write(&to, &whole);
    let (_writer, _store) = left.open();
    assert_eq!(left.reader().live().unwrap().jobs.len(), 5);
}

#[test]
fn a_place_that_cannot_be_used_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("none/store.db");
    let error = Store::open(options(&path)).unwrap_err();
    assert_eq!(error.to_string(), format!("open {}", path.display()));
    let link = dir.path().join("link.db");
    std::os::unix::fs::symlink(dir.path().join("elsewhere"), &link).unwrap();
    assert!(Store::open(options(&link)).is_err());
    assert!(!dir.path().join("elsewhere").exists());
}

/// Makes the files of a closed store those of one that a joblet of format 1 left: what came later is gone.
fn set_back_to_format_1(path: &Path) {
    let other = Connection::open(path).unwrap();
    other
        .execute_batch(
            "DROP TABLE volumes; DELETE FROM meta WHERE key <> 'format 1'; PRAGMA user_version = 1; \
             PRAGMA wal_checkpoint(TRUNCATE)",
        )
        .unwrap();
    let made = |connection: &Connection| -> Vec<String> {
        let sql = "SELECT sql FROM sqlite_schema WHERE sql IS NOT NULL ORDER BY name";
        let mut made = connection.prepare(sql).unwrap();
        let made = made.query_map([], |row| row.get(0)).unwrap();
        made.collect::<Result<_, _>>().unwrap()
    };
    let first = Connection::open_in_memory().unwrap();
    migrate(&first, 0, 1).unwrap();
    assert_eq!(made(&other), made(&first));
}

#[test]
fn a_store_of_format_1_is_brought_to_this_one_with_all_that_is_in_it() {
    let scratch = filled(40);
    set_back_to_format_1(&scratch.path());
    assert!(Reader::open(&scratch.path(), &key()).is_err());
    let (writer, store) = scratch.open();
    let reader = scratch.reader();
    assert_eq!(reader.count().unwrap(), 40);
    assert!(reader.volumes().unwrap().volumes.is_empty());
    let volume = stored_volume("data");
    let put = Change::PutVolume {
        volume: Box::new(volume.clone()),
    };
    ask(&writer, put).unwrap();
    assert_eq!(reader.volumes().unwrap().volumes, [volume]);
    drop(writer);
    store.close();
    // Once is enough.
    let (_writer, _store) = scratch.open();
    let formats: i64 = Connection::open(scratch.path())
        .unwrap()
        .query_row("SELECT count(*) FROM meta", [], |row| row.get(0))
        .unwrap();
    assert_eq!(formats, newest());
}

#[test]
fn a_damaged_store_of_format_1_is_refused_and_stays_format_1() {
    let scratch = filled(60);
    let path = scratch.path();
    set_back_to_format_1(&path);
    let look = |whole_bytes| {
        let connection = connect(&path, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
        check(&connection, &path, 1, whole_bytes)
    };
    // A large one, too, has nothing that it cannot have.
    look(0).unwrap();
    let whole = fs::read(&path).unwrap();
    let other = Connection::open(&path).unwrap();
    let sql = "SELECT rootpage FROM sqlite_schema WHERE name = 'jobs_newest'";
    let page: u32 = other.query_row(sql, [], |row| row.get(0)).unwrap();
    drop(other);
    let begin = (usize::try_from(page).unwrap() - 1) * 4_096;
    let mut damaged = whole;
    damaged[begin..begin + 16].fill(0xff);
    write(&path, &damaged);
    assert!(matches!(refused(&path), OpenError::Damaged { .. }));
    assert!(look(0).is_err());
}
