//! Questions to the store, answered from a connection that cannot write.
//!
//! A reader sees what was committed when its question began; it never waits for the writer and the writer never for
//! it. Its calls block on the disk: they belong on the blocking pool.

use std::path::Path;

use rusqlite::{Connection, OptionalExtension, Params, ToSql, params};

use super::{
    Key, OpenError, Remembered, SealKey, SmallOutput, StoreError, StoredVolumes,
    apply::HAS_OUTPUT,
    key,
    row::{COLUMNS, decode, place_of, state_text, to_integer},
    schema, volumes,
};
use crate::{
    job::{JobId, JobView, State},
    limits,
};

/// A connection that reads. It may go from thread to thread, and answers one question at a time.
#[derive(Debug)]
pub struct Reader {
    connection: Connection,
    key: SealKey,
}

/// Which jobs a list is of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListQuery {
    /// Only those in this state.
    pub state: Option<State>,
    /// Only those of this owner.
    pub owner: Option<String>,
    /// At most so many, and never more than [`limits::LIST_JOBS_MAX`].
    pub limit: usize,
    /// Only those behind it: where the last list ended.
    pub before: Option<Cursor>,
}

/// A place in the list of all jobs, newest first. It stays where it is whatever comes and goes around it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cursor {
    /// When the job at that place was accepted, nanoseconds since the epoch.
    pub created_ns: i64,
    /// That job.
    pub id: JobId,
}

/// Jobs that have not ended.
#[derive(Debug, Default)]
pub struct Live {
    /// Those that can go on, with the values of their secrets, oldest first.
    pub jobs: Vec<JobView>,
    /// Those that cannot, and why: a row that cannot be read, or secrets that were sealed with another key. They are
    /// still there until the caller ends or deletes them.
    pub broken: Vec<(JobId, StoreError)>,
}

impl Reader {
    /// Opens the database at `path`, which [`super::Store::open`] has opened before; `key` opens what is sealed.
    ///
    /// # Errors
    /// [`OpenError`], among others when it has another format than this version's.
    pub fn open(path: &Path, key: &SealKey) -> Result<Self, OpenError> {
        Ok(Self {
            connection: schema::open_to_read(path)?,
            key: key.clone(),
        })
    }

    /// All jobs that have not ended, oldest first: what a daemon begins with.
    ///
    /// # Errors
    /// [`StoreError`] when the database cannot be read.
    pub fn live(&self) -> Result<Live, StoreError> {
        let mut live = Live::default();
        let sql =
            format!("SELECT {COLUMNS} FROM jobs WHERE ended_ns IS NULL ORDER BY created_ns, id");
        self.each(&sql, [], |at, read| {
            match read.and_then(|(view, sealed)| self.with_secrets(view, sealed)) {
                Ok(view) => live.jobs.push(view),
                Err(error) => live.broken.push((at.id, error)),
            }
        })?;
        Ok(live)
    }

    /// One job; values of its secrets are `***`.
    ///
    /// # Errors
    /// [`StoreError`] when it cannot be read.
    pub fn get(&self, id: JobId) -> Result<Option<JobView>, StoreError> {
        let mut found = Ok(None);
        let sql = format!("SELECT {COLUMNS} FROM jobs WHERE id = ?1");
        self.each(&sql, [id.to_bytes()], |_, read| {
            found = read.map(|(view, _)| Some(view));
        })?;
        found
    }

    /// What `key` stands for at `now_ns`, nanoseconds since the epoch.
    ///
    /// # Errors
    /// [`StoreError`] when the database cannot be read.
    pub fn remembered(&self, key: &Key, now_ns: i64) -> Result<Remembered, StoreError> {
        let mut statement = self
            .connection
            .prepare(key::FIND)
            .map_err(StoreError::from_sqlite("read"))?;
        key::find(&mut statement, key, now_ns)
    }

    /// The ids that begin with `prefix` ([`JobId::check_prefix`]), in their order: at most `max`, and never more than
    /// [`limits::FIND_JOBS_MAX`].
    ///
    /// # Errors
    /// [`StoreError`] when the database cannot be read.
    pub fn find(&self, prefix: &str, max: usize) -> Result<Vec<JobId>, StoreError> {
        let Some((first, last)) = range_of(prefix) else {
            return Ok(Vec::new());
        };
        let most = max.min(limits::FIND_JOBS_MAX);
        let read = || {
            self.connection
                .prepare("SELECT id FROM jobs WHERE id BETWEEN ?1 AND ?2 ORDER BY id LIMIT ?3")?
                .query_map(params![first, last, to_integer(most)], |row| {
                    Ok(JobId::from_bytes(row.get(0)?))
                })?
                .collect::<Result<Vec<_>, _>>()
        };
        let mut found = read().map_err(StoreError::from_sqlite("read"))?;
        // Dashes in the wrong place: then none of them.
        found.retain(|id| id.starts_with(prefix));
        Ok(found)
    }

    /// Jobs, newest first, without values of secrets, and where to go on: `None` when there are no more. A job whose
    /// row cannot be read is left out, which is logged: one damaged row does not hide all others.
    ///
    /// # Errors
    /// [`StoreError`] when the database cannot be read.
    pub fn list(&self, query: &ListQuery) -> Result<(Vec<JobView>, Option<Cursor>), StoreError> {
        let limit = query.limit.min(limits::LIST_JOBS_MAX);
        let place = query.before.map(|at| (at.created_ns, at.id.to_bytes()));
        let state = query.state.map(state_text);
        // One more than asked for says whether there are more.
        let more = to_integer(limit + 1);
        let mut values: Vec<&dyn ToSql> = vec![&more];
        if let Some(state) = &state {
            values.push(state);
        }
        if let Some(owner) = &query.owner {
            values.push(owner);
        }
        if let Some((created_ns, id)) = &place {
            values.push(created_ns);
            values.push(id);
        }
        let mut jobs = Vec::new();
        let mut seen = 0;
        let mut last = None;
        self.each(&list_sql(query), &*values, |at, read| {
            seen += 1;
            if seen > limit {
                return;
            }
            last = Some(at);
            match read {
                Ok((view, _)) => jobs.push(view),
                Err(error) => {
                    tracing::warn!(job_id = %at.id, %error, "a job is left out of a list");
                }
            }
        })?;
        Ok((jobs, last.filter(|_| seen > limit)))
    }

    /// The output of an ended job, if it is here and not in files.
    ///
    /// # Errors
    /// [`StoreError`] when the database cannot be read.
    pub fn output(&self, id: JobId) -> Result<Option<SmallOutput>, StoreError> {
        self.connection
            .query_row(
                "SELECT stdout, stderr, log_index FROM outputs WHERE job_id = ?1",
                [id.to_bytes()],
                |row| {
                    Ok(SmallOutput {
                        stdout: row.get(0)?,
                        stderr: row.get(1)?,
                        index: row.get(2)?,
                    })
                },
            )
            .optional()
            .map_err(StoreError::from_sqlite("read"))
    }

    /// Those of `ids` whose output is here.
    ///
    /// # Errors
    /// [`StoreError`] when the database cannot be read.
    pub fn with_output(&self, ids: &[JobId]) -> Result<Vec<JobId>, StoreError> {
        let read = || {
            let mut has_output = self.connection.prepare(HAS_OUTPUT)?;
            let mut found = Vec::new();
            for id in ids {
                if has_output.query_row([id.to_bytes()], |row| row.get(0))? {
                    found.push(*id);
                }
            }
            Ok(found)
        };
        read().map_err(StoreError::from_sqlite("read"))
    }

    /// All volumes, by name.
    ///
    /// # Errors
    /// [`StoreError`] when the database cannot be read.
    pub fn volumes(&self) -> Result<StoredVolumes, StoreError> {
        volumes::read(&self.connection)
    }

    /// How many jobs there are, ended ones included.
    ///
    /// # Errors
    /// [`StoreError`] when the database cannot be read.
    pub fn count(&self) -> Result<u64, StoreError> {
        let count: i64 = self
            .connection
            .query_row("SELECT count(*) FROM jobs", [], |row| row.get(0))
            .map_err(StoreError::from_sqlite("read"))?;
        Ok(u64::try_from(count).unwrap_or(0))
    }

    /// Gives each row of a question about jobs, and its place in the list of all, to `take`.
    fn each(
        &self,
        sql: &str,
        values: impl Params,
        mut take: impl FnMut(Cursor, Result<(JobView, Option<String>), StoreError>),
    ) -> Result<(), StoreError> {
        let read = StoreError::from_sqlite;
        let mut statement = self.connection.prepare(sql).map_err(read("read"))?;
        let mut rows = statement.query(values).map_err(read("read"))?;
        while let Some(row) = rows.next().map_err(read("read"))? {
            take(place_of(row)?, decode(row));
        }
        Ok(())
    }

    fn with_secrets(
        &self,
        mut view: JobView,
        sealed: Option<String>,
    ) -> Result<JobView, StoreError> {
        if view.spec.env.iter().any(|entry| entry.is_secret) {
            let spec = std::sync::Arc::make_mut(&mut view.spec);
            self.key.unseal(view.id, &mut spec.env, sealed.as_deref())?;
        }
        Ok(view)
    }
}

/// The question behind a list: `?1` is how many, then what narrows it in the order of [`ListQuery`].
fn list_sql(query: &ListQuery) -> String {
    let mut rules = Vec::new();
    let mut next = 2;
    let mut rule = |text: &str, values: usize| {
        let names: Vec<_> = (next..next + values).map(|n| format!("?{n}")).collect();
        next += values;
        rules.push(text.replace('?', &names.join(", ")));
    };
    if query.state.is_some() {
        rule("state = ?", 1);
    }
    if query.owner.is_some() {
        rule("owner = ?", 1);
    }
    if query.before.is_some() {
        rule("(created_ns, id) < (?)", 2);
    }
    let filter = if rules.is_empty() {
        String::new()
    } else {
        format!("WHERE {} ", rules.join(" AND "))
    };
    format!("SELECT {COLUMNS} FROM jobs {filter}ORDER BY created_ns DESC, id DESC LIMIT ?1")
}

/// The first and the last id that begin with the digits of `prefix`; `None` when there can be none.
fn range_of(prefix: &str) -> Option<([u8; 16], [u8; 16])> {
    let digits: Vec<u8> = prefix
        .chars()
        .filter(|c| *c != '-')
        .map(|c| c.to_digit(16).and_then(|digit| u8::try_from(digit).ok()))
        .collect::<Option<_>>()?;
    if digits.len() > 32 {
        return None;
    }
    let id = |fill: u8| {
        let mut id = [0; 16];
        for (index, byte) in id.iter_mut().enumerate() {
            let digit = |at: usize| digits.get(at).copied().unwrap_or(fill);
            *byte = digit(2 * index) << 4 | digit(2 * index + 1);
        }
        id
    };
    Some((id(0x0), id(0xf)))
}

#[cfg(test)]
mod tests;
