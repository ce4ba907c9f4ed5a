//! The database file: how it is made, brought to the newest format, and refused when it cannot be trusted.
//!
//! `PRAGMA user_version` is the format, the number of [`MIGRATIONS`] that were made. A file that is damaged, of
//! somebody else or of a newer joblet is refused by name, and not one byte of it is written: what can be saved is
//! for a person to decide. Therefore the log is never written back when a connection closes, only when the store
//! says so.
//!
//! ```text
//! jobs              a row a job; what lives has no ended_ns
//! outputs           small outputs of ended jobs, else in files
//! idempotency_keys  which submit came with which key
//! meta              which joblet made which format
//! volumes           a row a volume, from before it is made until nothing is left of it
//! ```

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use rusqlite::{Connection, OpenFlags, config::DbConfig};

use super::{Durability, OpenError, row::to_integer};
use crate::{limits, sys::durable};

/// `PRAGMA application_id`: "Jobl".
const APPLICATION_ID: i64 = 0x4A6F_626C;

/// What makes format N + 1 of format N. They are never changed once released; a new format is a new entry.
const MIGRATIONS: &[&str] = &[
    "
    CREATE TABLE meta (
        key TEXT PRIMARY KEY NOT NULL,
        value TEXT NOT NULL
    );
    CREATE TABLE jobs (
        id BLOB PRIMARY KEY NOT NULL CHECK (length(id) = 16),
        owner TEXT NOT NULL,
        name TEXT,
        state TEXT NOT NULL,
        created_ns INTEGER NOT NULL, -- since 1970
        ended_ns INTEGER,
        schedule_id BLOB, -- of the schedule that made it
        next_run_ns INTEGER,
        last_run_ns INTEGER,
        work TEXT NOT NULL,
        stdout_bytes INTEGER NOT NULL,
        stderr_bytes INTEGER NOT NULL,
        dropped_bytes INTEGER NOT NULL,
        secrets TEXT, -- sealed, while it has not ended
        caveats TEXT NOT NULL,
        transitions TEXT NOT NULL,
        ending TEXT,
        outcome TEXT,
        spec TEXT NOT NULL
    );
    CREATE INDEX jobs_newest ON jobs (created_ns, id);
    CREATE INDEX jobs_of_owner ON jobs (owner, created_ns, id);
    CREATE INDEX jobs_in_state ON jobs (state, created_ns, id);
    CREATE INDEX jobs_live ON jobs (created_ns, id) WHERE ended_ns IS NULL;
    CREATE INDEX jobs_ended ON jobs (ended_ns, id, stdout_bytes, stderr_bytes) WHERE ended_ns IS NOT NULL;
    CREATE TABLE outputs (
        job_id BLOB PRIMARY KEY NOT NULL CHECK (length(job_id) = 16),
        stdout BLOB NOT NULL,
        stderr BLOB NOT NULL,
        log_index BLOB NOT NULL
    );
    CREATE TABLE idempotency_keys (
        owner TEXT NOT NULL,
        key TEXT NOT NULL,
        job_id BLOB NOT NULL,
        fingerprint BLOB NOT NULL CHECK (length(fingerprint) = 32),
        expires_ns INTEGER NOT NULL,
        PRIMARY KEY (owner, key)
    ) WITHOUT ROWID;
    CREATE INDEX idempotency_keys_of_job ON idempotency_keys (job_id);
    CREATE INDEX idempotency_keys_expiry ON idempotency_keys (expires_ns);
",
    "
    CREATE TABLE volumes (
        name TEXT PRIMARY KEY NOT NULL,
        size TEXT NOT NULL, -- as it was written
        bytes INTEGER NOT NULL,
        type TEXT NOT NULL,
        created_ns INTEGER NOT NULL, -- since 1970
        state TEXT NOT NULL
    ) WITHOUT ROWID;
",
];

/// The format with which `volumes` came.
const VOLUMES_FORMAT: i64 = 2;

/// Questions that walk an index each, 40 bytes a job, whatever the size of the database: lists and recovery are made
/// from them. The first two count all jobs, the others those that live and those that have ended.
const WALKS: [&str; 4] = [
    "SELECT count(id) FROM jobs INDEXED BY sqlite_autoindex_jobs_1",
    // A bare count(*) would walk another index.
    "SELECT count(created_ns) FROM jobs INDEXED BY jobs_newest",
    "SELECT count(created_ns) FROM jobs INDEXED BY jobs_live WHERE ended_ns IS NULL",
    "SELECT count(ended_ns) FROM jobs INDEXED BY jobs_ended WHERE ended_ns IS NOT NULL",
];

/// Opens the database at `path` for writing, makes it (0600) if there is none, and brings it to the newest format. The
/// file itself comes with it, to be synced; see [`super::checkpoint::Log::start`] on when it may be closed.
///
/// # Errors
/// [`OpenError`]; the files are then as they were.
pub(super) fn open(path: &Path, durability: Durability) -> Result<(Connection, File), OpenError> {
    let refuse = |verb| OpenError::from_sqlite(verb, path);
    let file = make_private(path)?;
    let connection = connect(path, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
    match found_format(&connection, path)? {
        None => {
            connection
                .execute_batch("PRAGMA auto_vacuum = INCREMENTAL; PRAGMA journal_mode = WAL;")
                .map_err(refuse("make"))?;
            migrate(&connection, 0, newest()).map_err(refuse("make"))?;
        }
        Some(format) => {
            check(&connection, path, format, limits::STORE_CHECK_BYTES)?;
            // Somebody's tool may have changed it.
            connection
                .execute_batch("PRAGMA journal_mode = WAL;")
                .map_err(refuse("prepare"))?;
            migrate(&connection, format, newest()).map_err(refuse("bring to the newest format"))?;
        }
    }
    let synchronous = match durability {
        Durability::Process => "NORMAL",
        Durability::Power => "FULL",
    };
    connection
        .execute_batch(&format!(
            "PRAGMA synchronous = {synchronous}; PRAGMA wal_autocheckpoint = 0; \
             PRAGMA journal_size_limit = {};",
            limits::STORE_WAL_KEPT_BYTES
        ))
        .map_err(refuse("prepare"))?;
    Ok((connection, file))
}

/// A second connection that may write, for the log only: it does what is asked or nothing, and waits for nobody.
pub(super) fn open_second(path: &Path) -> Result<Connection, OpenError> {
    let connection = connect(path, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
    connection
        .execute_batch("PRAGMA busy_timeout = 0; PRAGMA wal_autocheckpoint = 0;")
        .map_err(OpenError::from_sqlite("prepare", path))?;
    Ok(connection)
}

/// A connection that cannot write, to a database that [`open`] has opened before.
pub(super) fn open_to_read(path: &Path) -> Result<Connection, OpenError> {
    let connection = connect(path, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
    connection
        .execute_batch(&format!(
            "PRAGMA query_only = ON; PRAGMA cache_size = -{};",
            limits::STORE_READ_CACHE_BYTES >> 10
        ))
        .map_err(OpenError::from_sqlite("prepare", path))?;
    match found_format(&connection, path)? {
        Some(format) if format == newest() => Ok(connection),
        Some(_) | None => Err(OpenError::Foreign {
            path: path.to_owned(),
            why: "it has not been opened by its daemon yet",
        }),
    }
}

/// The file of the log.
pub(super) fn wal_of(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push("-wal");
    name.into()
}

fn newest() -> i64 {
    i64::try_from(MIGRATIONS.len()).expect("there are a few")
}

/// Makes an empty file if there is none; SQLite gives the files beside it the same mode.
fn make_private(path: &Path) -> Result<File, OpenError> {
    let bytes = match fs::metadata(path) {
        Ok(facts) => facts.len(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => 0,
        Err(source) => return Err(OpenError::io("look at", path)(source)),
    };
    let wal = wal_of(path);
    if bytes == 0 && fs::metadata(&wal).is_ok_and(|facts| facts.len() > 0) {
        // We never leave that behind, and SQLite would delete the log.
        return Err(OpenError::Damaged {
            path: path.to_owned(),
            damage: format!("it is empty or gone, and {} is not", wal.display()),
        });
    }
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .custom_flags(libc::O_NOFOLLOW)
        .open(path)
        .map_err(OpenError::io("open", path))?;
    if bytes == 0
        && let Some(dir) = path.parent()
    {
        // SQLite does that for files that it makes itself.
        durable::sync_dir(dir).map_err(OpenError::io("sync the directory of", path))?;
    }
    Ok(file)
}

fn connect(path: &Path, access: OpenFlags) -> Result<Connection, OpenError> {
    let refuse = |verb| OpenError::from_sqlite(verb, path);
    let connection = Connection::open_with_flags(path, access | OpenFlags::SQLITE_OPEN_NO_MUTEX)
        .map_err(refuse("open"))?;
    connection
        .set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)
        .map_err(refuse("open"))?;
    connection
        .busy_timeout(limits::STORE_LOCK_WAIT)
        .map_err(refuse("open"))?;
    Ok(connection)
}

/// The format of the database, `None` when it is new; refuses one that is not ours to open.
fn found_format(connection: &Connection, path: &Path) -> Result<Option<i64>, OpenError> {
    let number = |sql| {
        connection
            .query_row(sql, [], |row| row.get::<_, i64>(0))
            .map_err(OpenError::from_sqlite("read", path))
    };
    let foreign = |why| {
        Err(OpenError::Foreign {
            path: path.to_owned(),
            why,
        })
    };
    let application = number("PRAGMA application_id")?;
    let format = number("PRAGMA user_version")?;
    let objects = number("SELECT count(*) FROM sqlite_schema")?;
    match (application, format) {
        (0, 0) if objects == 0 => Ok(None),
        (APPLICATION_ID, format) if format > newest() => Err(OpenError::Newer {
            path: path.to_owned(),
            found: format,
            known: newest(),
        }),
        (APPLICATION_ID, format) if format > 0 => Ok(Some(format)),
        (APPLICATION_ID, _) => foreign("it has no format"),
        (_, _) => foreign("another program has made it"),
    }
}

/// Makes the formats behind `from` up to `to`, all or none.
fn migrate(connection: &Connection, from: i64, to: i64) -> rusqlite::Result<()> {
    if from == to {
        return Ok(());
    }
    let transaction = connection.unchecked_transaction()?;
    for (format, migration) in (1_i64..).zip(MIGRATIONS) {
        if format > from && format <= to {
            transaction.execute_batch(migration)?;
            transaction.execute(
                "INSERT INTO meta (key, value) VALUES (?1, ?2)",
                (
                    format!("format {format}"),
                    concat!("joblet ", env!("CARGO_PKG_VERSION")),
                ),
            )?;
        }
    }
    transaction.pragma_update(None, "application_id", APPLICATION_ID)?;
    transaction.pragma_update(None, "user_version", to)?;
    transaction.commit()
}

/// Looks for damage: everywhere in a database of up to `whole_bytes`; in a larger one at the small tables and the indexes that
/// recovery and lists are made from, because reading a million jobs would take longer than a start may.
fn check(
    connection: &Connection,
    path: &Path,
    format: i64,
    whole_bytes: u64,
) -> Result<(), OpenError> {
    let refuse = |verb| OpenError::from_sqlite(verb, path);
    let number = |sql: &str| {
        connection
            .query_row(sql, [], |row| row.get::<_, i64>(0))
            .map_err(refuse("check"))
    };
    let bytes = number("PRAGMA page_count")?.saturating_mul(number("PRAGMA page_size")?);
    let has_volumes = format >= VOLUMES_FORMAT;
    let checks: &[&str] = if bytes <= to_integer(whole_bytes) {
        &["PRAGMA quick_check(1)"]
    } else {
        &[
            "PRAGMA quick_check('sqlite_schema')",
            "PRAGMA quick_check('meta')",
            "PRAGMA quick_check('idempotency_keys')",
            "PRAGMA quick_check('volumes')",
        ][..if has_volumes { 4 } else { 3 }]
    };
    for sql in checks {
        let verdict: String = connection
            .query_row(sql, [], |row| row.get(0))
            .map_err(refuse("check"))?;
        if verdict != "ok" {
            return Err(OpenError::Damaged {
                path: path.to_owned(),
                damage: verdict,
            });
        }
    }
    let [all, newest, live, ended] = WALKS.map(number);
    let (all, newest, live, ended) = (all?, newest?, live?, ended?);
    if all != newest || all != live + ended {
        return Err(OpenError::Damaged {
            path: path.to_owned(),
            damage: format!(
                "its indexes do not agree: {all} and {newest} jobs, {live} live and {ended} ended"
            ),
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests;
