//! How changes are made: statements that are prepared once, and which of them a change runs.
//!
//! Every change looks before it writes, and refuses before its first write. So a refused change leaves nothing in
//! the transaction that it shares with others, and none needs a savepoint.

use rusqlite::{Connection, ErrorCode, OptionalExtension, Statement, params};

use super::{
    Change, Done, Key, Remembered, SealKey, SmallOutput, StoreError, key,
    row::{Progress, created_ns, encode_progress, encode_spec, to_integer},
    volumes::VolumeStatements,
};
use crate::{
    job::{JobId, JobView},
    limits,
};

const INSERT: &str = "INSERT INTO jobs (id, owner, name, state, created_ns, ended_ns, work, stdout_bytes, \
     stderr_bytes, dropped_bytes, secrets, caveats, transitions, outcome, spec, ending, schedule_id, \
     next_run_ns, last_run_ns) \
     VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17, \
     ?18, ?19)";
const UPDATE: &str = "UPDATE jobs SET state = ?2, work = ?3, stdout_bytes = ?4, stderr_bytes = ?5, \
     dropped_bytes = ?6, caveats = ?7, transitions = ?8, ending = ?9, \
     next_run_ns = ?10, last_run_ns = ?11 WHERE id = ?1 AND ended_ns IS NULL";
const END: &str = "UPDATE jobs SET state = ?2, work = ?3, stdout_bytes = ?4, stderr_bytes = ?5, \
     dropped_bytes = ?6, caveats = ?7, transitions = ?8, outcome = ?9, ended_ns = ?10, secrets = NULL, ending = NULL, \
     next_run_ns = NULL \
     WHERE id = ?1 AND ended_ns IS NULL";
/// The ended job that begins the `?1`th from the newest, if there are so many: it and what ended before it go.
pub(super) const LAST_BY_COUNT: &str = "SELECT ended_ns, id FROM jobs WHERE ended_ns IS NOT NULL \
     ORDER BY ended_ns DESC, id DESC LIMIT 1 OFFSET ?1";
/// Sizes of outputs of ended jobs, newest first.
pub(super) const SIZES: &str = "SELECT ended_ns, id, stdout_bytes + stderr_bytes FROM jobs WHERE ended_ns IS NOT NULL \
     ORDER BY ended_ns DESC, id DESC";
pub(super) const OLDEST: &str = "SELECT id FROM jobs WHERE ended_ns IS NOT NULL AND (ended_ns, id) <= (?1, ?2) \
     ORDER BY ended_ns, id LIMIT ?3";
/// Whether the output of job `?1` is in the store.
pub(super) const HAS_OUTPUT: &str = "SELECT EXISTS (SELECT 1 FROM outputs WHERE job_id = ?1)";

/// What a stored output adds to the log beside its bytes: a page each of the table and of its index.
const OUTPUT_PAGES_BYTES: usize = 2 * 4_096;

/// Greater than every id.
const LAST_ID: [u8; 16] = [0xff; 16];

/// The statements of the one connection that writes.
pub(super) struct Statements<'c> {
    connection: &'c Connection,
    key: SealKey,
    begin: Statement<'c>,
    commit: Statement<'c>,
    rollback: Statement<'c>,
    insert: Statement<'c>,
    update: Statement<'c>,
    end: Statement<'c>,
    ended_ns: Statement<'c>,
    insert_output: Statement<'c>,
    has_output: Statement<'c>,
    find_key: Statement<'c>,
    insert_key: Statement<'c>,
    delete_job: Statement<'c>,
    delete_output: Statement<'c>,
    delete_keys: Statement<'c>,
    forget_keys: Statement<'c>,
    volumes: VolumeStatements<'c>,
}

/// What is known of a job.
enum Known {
    No,
    Live,
    Ended,
}

impl<'c> Statements<'c> {
    pub(super) fn prepare(connection: &'c Connection, key: SealKey) -> rusqlite::Result<Self> {
        let prepare = |sql: &str| connection.prepare(sql);
        Ok(Self {
            connection,
            key,
            begin: prepare("BEGIN IMMEDIATE")?,
            commit: prepare("COMMIT")?,
            rollback: prepare("ROLLBACK")?,
            insert: prepare(INSERT)?,
            update: prepare(UPDATE)?,
            end: prepare(END)?,
            ended_ns: prepare("SELECT ended_ns FROM jobs WHERE id = ?1")?,
            insert_output: prepare(
                "INSERT OR REPLACE INTO outputs (job_id, stdout, stderr, log_index) \
                 VALUES (?1, ?2, ?3, ?4)",
            )?,
            has_output: prepare(HAS_OUTPUT)?,
            find_key: prepare(key::FIND)?,
            insert_key: prepare(
                "INSERT OR REPLACE INTO idempotency_keys (owner, key, job_id, fingerprint, expires_ns) \
                 VALUES (?1, ?2, ?3, ?4, ?5)",
            )?,
            delete_job: prepare("DELETE FROM jobs WHERE id = ?1")?,
            delete_output: prepare("DELETE FROM outputs WHERE job_id = ?1")?,
            delete_keys: prepare("DELETE FROM idempotency_keys WHERE job_id = ?1")?,
            forget_keys: prepare(
                "DELETE FROM idempotency_keys WHERE (owner, key) IN (SELECT owner, key \
                 FROM idempotency_keys WHERE expires_ns <= ?1 ORDER BY expires_ns LIMIT ?2)",
            )?,
            volumes: VolumeStatements::prepare(connection)?,
        })
    }

    pub(super) fn begin(&mut self) -> Result<(), StoreError> {
        self.begin
            .execute([])
            .map(drop)
            .map_err(StoreError::from_sqlite("begin to write"))
    }

    pub(super) fn commit(&mut self) -> Result<(), StoreError> {
        self.commit
            .execute([])
            .map(drop)
            .map_err(StoreError::from_sqlite("write"))
    }

    /// Undoes the transaction, if there still is one: SQLite undoes it by itself in some cases.
    pub(super) fn rollback(&mut self) {
        if !self.connection.is_autocommit()
            && let Err(error) = self.rollback.execute([])
        {
            tracing::error!(%error, "a transaction of the store cannot be undone");
        }
    }

    /// Makes one change in the transaction that is open; also says how many bytes that are, roughly.
    ///
    /// # Errors
    /// Those after which the batch goes on have changed nothing.
    pub(super) fn apply(&mut self, change: &Change) -> Result<(Done, usize), StoreError> {
        match change {
            Change::Accept { job, key } => self.accept(job, key.as_ref()),
            Change::Update { job } => self.update(job),
            Change::End { job, output } => self.end(job, output.as_ref()),
            Change::Delete { ids } => self.delete(ids),
            Change::Prune {
                keep_jobs,
                ended_before_ns,
                keep_bytes,
            } => self.prune(*keep_jobs, *ended_before_ns, *keep_bytes),
            Change::ForgetKeys { now_ns } => {
                let count = self
                    .forget_keys
                    .execute(params![now_ns, to_integer(limits::STORE_FORGET_KEYS)])
                    .map_err(StoreError::from_sqlite("delete from"))?;
                Ok((Done::Forgotten { count }, 0))
            }
            Change::PutVolume { volume } => self.volumes.put(volume),
            Change::SetVolume { name, state } => self.volumes.set(name, *state),
            Change::DeleteVolume { name } => self.volumes.delete(name),
        }
    }

    fn accept(&mut self, job: &JobView, key: Option<&Key>) -> Result<(Done, usize), StoreError> {
        if let Some(key) = key
            && let Some(id) = self.remembered(key, created_ns(job))?
        {
            return Ok((Done::Duplicate { id }, 0));
        }
        let bytes = self.insert(job)?;
        if let Some(key) = key {
            self.insert_key
                .execute(params![
                    key.owner,
                    key.key,
                    job.id.to_bytes(),
                    key.fingerprint,
                    key.expires_ns
                ])
                .map_err(StoreError::from_sqlite("write"))?;
        }
        Ok((Done::Accepted, bytes))
    }

    /// The job that came with this key before.
    fn remembered(&mut self, key: &Key, now_ns: i64) -> Result<Option<JobId>, StoreError> {
        match key::find(&mut self.find_key, key, now_ns)? {
            Remembered::Nothing => Ok(None),
            Remembered::Job(id) => Ok(Some(id)),
            Remembered::Other(id) => Err(StoreError::KeyConflict {
                key: key.key.clone(),
                id,
            }),
        }
    }

    fn insert(&mut self, job: &JobView) -> Result<usize, StoreError> {
        let spec = encode_spec(&job.spec);
        let progress = encode_progress(job);
        let secrets = match progress.ended_ns {
            None => self.key.seal(job.id, &job.spec.env)?,
            Some(_) => None,
        };
        let bytes = spec.len() + progress.bytes() + secrets.as_ref().map_or(0, String::len);
        let [stdout_bytes, stderr_bytes, dropped_bytes] = progress.log_bytes;
        self.insert
            .execute(params![
                job.id.to_bytes(),
                job.owner,
                job.spec.name,
                progress.state,
                created_ns(job),
                progress.ended_ns,
                progress.work,
                stdout_bytes,
                stderr_bytes,
                dropped_bytes,
                secrets,
                progress.caveats,
                progress.transitions,
                progress.outcome,
                spec,
                progress.ending,
                job.schedule_id.map(JobId::to_bytes),
                progress.next_run_ns,
                progress.last_run_ns
            ])
            .map_err(|error| match error.sqlite_error_code() {
                // All other rules hold for every job.
                Some(ErrorCode::ConstraintViolation) => StoreError::Exists { id: job.id },
                Some(_) | None => StoreError::from_sqlite("write")(error),
            })?;
        Ok(bytes)
    }

    fn update(&mut self, job: &JobView) -> Result<(Done, usize), StoreError> {
        let id = job.id;
        let progress = encode_progress(job);
        let [stdout_bytes, stderr_bytes, dropped_bytes] = progress.log_bytes;
        let changed = self
            .update
            .execute(params![
                id.to_bytes(),
                progress.state,
                progress.work,
                stdout_bytes,
                stderr_bytes,
                dropped_bytes,
                progress.caveats,
                progress.transitions,
                progress.ending,
                progress.next_run_ns,
                progress.last_run_ns
            ])
            .map_err(StoreError::from_sqlite("write"))?;
        if changed == 1 {
            return Ok((Done::Updated, progress.bytes()));
        }
        match self.known(id)? {
            Known::No => Err(StoreError::Unknown { id }),
            Known::Live | Known::Ended => Err(StoreError::HasEnded { id }),
        }
    }

    fn end(
        &mut self,
        job: &JobView,
        output: Option<&SmallOutput>,
    ) -> Result<(Done, usize), StoreError> {
        let id = job.id;
        if job.outcome.is_none() {
            return Err(StoreError::NoOutcome { id });
        }
        if let Some(output) = output
            && !SmallOutput::fits(output.bytes(), output.index.len())
        {
            return Err(StoreError::OutputTooLarge {
                id,
                bytes: output.bytes(),
                index_bytes: output.index.len(),
            });
        }
        let bytes = match self.known(id)? {
            // This one's output is not taken, and may be all that there is.
            Known::Ended => {
                let has_output = self.has_output(id)?;
                return Ok((Done::Ended { has_output }, 0));
            }
            Known::No => self.insert(job)?,
            Known::Live => self.overwrite_with_end(job)?,
        };
        let mut output_bytes = 0;
        if let Some(output) = output {
            output_bytes = output.bytes() + output.index.len() + OUTPUT_PAGES_BYTES;
            self.insert_output
                .execute(params![
                    id.to_bytes(),
                    output.stdout,
                    output.stderr,
                    output.index
                ])
                .map_err(StoreError::from_sqlite("write"))?;
        }
        let has_output = output.is_some();
        Ok((Done::Ended { has_output }, bytes + output_bytes))
    }

    fn has_output(&mut self, id: JobId) -> Result<bool, StoreError> {
        self.has_output
            .query_row([id.to_bytes()], |row| row.get(0))
            .map_err(StoreError::from_sqlite("read"))
    }

    fn overwrite_with_end(&mut self, job: &JobView) -> Result<usize, StoreError> {
        let progress = encode_progress(job);
        let [stdout_bytes, stderr_bytes, dropped_bytes] = progress.log_bytes;
        self.end
            .execute(params![
                job.id.to_bytes(),
                progress.state,
                progress.work,
                stdout_bytes,
                stderr_bytes,
                dropped_bytes,
                progress.caveats,
                progress.transitions,
                progress.outcome,
                progress.ended_ns
            ])
            .map_err(StoreError::from_sqlite("write"))?;
        Ok(progress.bytes())
    }

    fn known(&mut self, id: JobId) -> Result<Known, StoreError> {
        let ended_ns = self
            .ended_ns
            .query_row([id.to_bytes()], |row| row.get::<_, Option<i64>>(0))
            .optional()
            .map_err(StoreError::from_sqlite("read"))?;
        Ok(match ended_ns {
            None => Known::No,
            Some(None) => Known::Live,
            Some(Some(_)) => Known::Ended,
        })
    }

    fn delete(&mut self, ids: &[JobId]) -> Result<(Done, usize), StoreError> {
        let most = limits::STORE_DELETE_JOBS;
        if ids.len() > most {
            return Err(StoreError::TooMany {
                count: ids.len(),
                most,
            });
        }
        let mut count = 0;
        for id in ids {
            let id = id.to_bytes();
            let mut delete = || {
                count += self.delete_job.execute([id])?;
                self.delete_output.execute([id])?;
                self.delete_keys.execute([id])
            };
            delete().map_err(StoreError::from_sqlite("delete from"))?;
        }
        Ok((Done::Deleted { count }, 0))
    }

    fn prune(
        &mut self,
        keep_jobs: usize,
        ended_before_ns: Option<i64>,
        keep_bytes: Option<u64>,
    ) -> Result<(Done, usize), StoreError> {
        let ids = self
            .surplus(keep_jobs, ended_before_ns, keep_bytes)
            .map_err(StoreError::from_sqlite("read"))?;
        self.delete(&ids)?;
        Ok((Done::Pruned { ids }, 0))
    }

    /// The jobs that ended first, up to the last one that some rule does not keep.
    ///
    /// These statements are prepared each time: compared with what they read that is nothing.
    fn surplus(
        &self,
        keep_jobs: usize,
        ended_before_ns: Option<i64>,
        keep_bytes: Option<u64>,
    ) -> rusqlite::Result<Vec<JobId>> {
        let by_count: Option<(i64, [u8; 16])> = self
            .connection
            .query_row(LAST_BY_COUNT, [to_integer(keep_jobs)], |row| {
                Ok((row.get(0)?, row.get(1)?))
            })
            .optional()?;
        let by_age = ended_before_ns.map(|before| (before.saturating_sub(1), LAST_ID));
        let by_bytes = match keep_bytes {
            Some(keep) => self.last_by_bytes(keep)?,
            None => None,
        };
        let Some((ended_ns, id)) = by_count.max(by_age).max(by_bytes) else {
            return Ok(Vec::new());
        };
        let most = to_integer(limits::STORE_DELETE_JOBS);
        self.connection
            .prepare(OLDEST)?
            .query_map(params![ended_ns, id, most], |row| {
                Ok(JobId::from_bytes(row.get(0)?))
            })?
            .collect()
    }

    /// The newest ended job at which the output of it and of all that ended later is more than `keep` bytes.
    fn last_by_bytes(&self, keep: u64) -> rusqlite::Result<Option<(i64, [u8; 16])>> {
        let keep = to_integer(keep);
        let mut sizes = self.connection.prepare(SIZES)?;
        let mut rows = sizes.query([])?;
        let mut sum: i64 = 0;
        while let Some(row) = rows.next()? {
            sum = sum.saturating_add(row.get(2)?);
            if sum > keep {
                return Ok(Some((row.get(0)?, row.get(1)?)));
            }
        }
        Ok(None)
    }
}

impl Progress {
    fn bytes(&self) -> usize {
        self.caveats.len() + self.transitions.len() + self.outcome.as_ref().map_or(0, String::len)
    }
}
