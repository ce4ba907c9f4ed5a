//! Volumes in the store: a row each, from before one is made until nothing is left of it.
//!
//! ```text
//! (none) ─► creating ─► ready ─► removing ─► (none)
//!              └───────────────────▲
//! ```
//! Whatever a daemon was doing when it died, the row says what is to be finished or undone.

use std::collections::HashSet;

use rusqlite::{Connection, ErrorCode, Row, Statement, params};

use super::{Done, StoreError, row::to_integer};
use crate::job::{VolumeKind, VolumeName, VolumeSize, VolumeSpec};

/// How far a volume is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VolumeState {
    /// It is being made. Nobody was told of it, and nothing is in it.
    Creating,
    /// It is there.
    Ready,
    /// Whoever asked for its removal was right to: no job has it, and what is left of it goes.
    Removing,
}

/// A volume as it is written down.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredVolume {
    /// What was asked.
    pub spec: VolumeSpec,
    /// When, nanoseconds since the epoch.
    pub created_ns: i64,
    /// How far it is.
    pub state: VolumeState,
}

/// All volumes.
#[derive(Debug, Default)]
pub struct StoredVolumes {
    /// By name.
    pub volumes: Vec<StoredVolume>,
    /// Rows that cannot be read, and why. What they name may exist.
    pub broken: Vec<StoreError>,
}

impl StoredVolumes {
    /// What they are called.
    #[must_use]
    pub fn names(&self) -> HashSet<VolumeName> {
        let name = |volume: &StoredVolume| volume.spec.name.clone();
        self.volumes.iter().map(name).collect()
    }
}

impl VolumeState {
    const ALL: [Self; 3] = [Self::Creating, Self::Ready, Self::Removing];

    const fn word(self) -> &'static str {
        match self {
            Self::Creating => "creating",
            Self::Ready => "ready",
            Self::Removing => "removing",
        }
    }
}

/// What is prepared to write them.
pub(super) struct VolumeStatements<'c> {
    insert: Statement<'c>,
    update: Statement<'c>,
    delete: Statement<'c>,
}

impl<'c> VolumeStatements<'c> {
    pub(super) fn prepare(connection: &'c Connection) -> rusqlite::Result<Self> {
        Ok(Self {
            insert: connection.prepare(
                "INSERT INTO volumes (name, size, bytes, type, created_ns, state) \
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
            )?,
            update: connection.prepare("UPDATE volumes SET state = ?2 WHERE name = ?1")?,
            delete: connection.prepare("DELETE FROM volumes WHERE name = ?1")?,
        })
    }

    pub(super) fn put(&mut self, volume: &StoredVolume) -> Result<(Done, usize), StoreError> {
        let StoredVolume {
            spec,
            created_ns,
            state,
        } = volume;
        self.insert
            .execute(params![
                spec.name.as_str(),
                spec.size.text(),
                to_integer(spec.size.bytes()),
                spec.kind.word(),
                created_ns,
                state.word()
            ])
            .map_err(|error| match error.sqlite_error_code() {
                // All other rules hold for every volume.
                Some(ErrorCode::ConstraintViolation) => StoreError::VolumeExists {
                    name: spec.name.clone(),
                },
                Some(_) | None => StoreError::from_sqlite("write")(error),
            })?;
        Ok((Done::VolumeNoted, 0))
    }

    pub(super) fn set(
        &mut self,
        name: &VolumeName,
        state: VolumeState,
    ) -> Result<(Done, usize), StoreError> {
        let changed = self
            .update
            .execute(params![name.as_str(), state.word()])
            .map_err(StoreError::from_sqlite("write"))?;
        match changed {
            0 => Err(StoreError::VolumeUnknown { name: name.clone() }),
            _ => Ok((Done::VolumeNoted, 0)),
        }
    }

    pub(super) fn delete(&mut self, name: &VolumeName) -> Result<(Done, usize), StoreError> {
        self.delete
            .execute(params![name.as_str()])
            .map_err(StoreError::from_sqlite("delete from"))?;
        Ok((Done::VolumeNoted, 0))
    }
}

/// Reads all of them; one row that cannot be read hides no other.
pub(super) fn read(connection: &Connection) -> Result<StoredVolumes, StoreError> {
    let read = || -> rusqlite::Result<StoredVolumes> {
        let mut all = StoredVolumes::default();
        let mut select = connection.prepare(
            "SELECT CAST(name AS TEXT), size, bytes, type, created_ns, state FROM volumes ORDER BY name",
        )?;
        let mut rows = select.query([])?;
        while let Some(row) = rows.next()? {
            match decode(row) {
                Ok(volume) => all.volumes.push(volume),
                Err(error) => all.broken.push(error),
            }
        }
        Ok(all)
    };
    read().map_err(StoreError::from_sqlite("read"))
}

/// A volume as it was asked for, or which column says what no such volume can have.
fn decode(row: &Row<'_>) -> Result<StoredVolume, StoreError> {
    let shown: String = row.get(0).unwrap_or_default();
    let refuse = |column| StoreError::VolumeRow {
        name: shown.clone(),
        column,
    };
    let text = |index, column| row.get::<_, String>(index).map_err(|_| refuse(column));
    let name = VolumeName::parse(&shown).map_err(|_| refuse("name"))?;
    let size = VolumeSize::parse(&text(1, "size")?).map_err(|_| refuse("size"))?;
    let bytes: i64 = row.get(2).map_err(|_| refuse("bytes"))?;
    if bytes != to_integer(size.bytes()) {
        return Err(refuse("bytes"));
    }
    let (kind, state) = (text(3, "type")?, text(5, "state")?);
    Ok(StoredVolume {
        spec: VolumeSpec {
            name,
            size,
            kind: [VolumeKind::Filesystem, VolumeKind::Memory]
                .into_iter()
                .find(|known| known.word() == kind)
                .ok_or_else(|| refuse("type"))?,
        },
        created_ns: row.get(4).map_err(|_| refuse("created_ns"))?,
        state: VolumeState::ALL
            .into_iter()
            .find(|known| known.word() == state)
            .ok_or_else(|| refuse("state"))?,
    })
}

#[cfg(test)]
mod tests {
    use super::{
        super::{
            Change,
            tests::{Scratch, ask, stored_volume},
        },
        *,
    };

    fn put(volume: &StoredVolume) -> Change {
        Change::PutVolume {
            volume: Box::new(volume.clone()),
        }
    }

    #[test]
    fn a_volume_is_read_as_it_was_written_in_each_of_its_states() {
        let scratch = Scratch::new();
        let (writer, _store) = scratch.open();
        let reader = scratch.reader();
        let mut later = stored_volume("b");
        later.spec.kind = VolumeKind::Memory;
        let first = stored_volume("A");
        for volume in [&later, &first] {
            assert_eq!(ask(&writer, put(volume)).unwrap(), Done::VolumeNoted);
        }
        for state in VolumeState::ALL {
            let name = later.spec.name.clone();
            ask(&writer, Change::SetVolume { name, state }).unwrap();
            later.state = state;
            assert_eq!(
                reader.volumes().unwrap().volumes,
                [first.clone(), later.clone()]
            );
        }
        let name = later.spec.name.clone();
        // Twice is as good as once.
        for _ in 0..2 {
            let name = name.clone();
            ask(&writer, Change::DeleteVolume { name }).unwrap();
            assert_eq!(reader.volumes().unwrap().names().len(), 1);
        }
        let state = VolumeState::Ready;
        let unknown = ask(&writer, Change::SetVolume { name, state }).unwrap_err();
        assert!(matches!(unknown, StoreError::VolumeUnknown { .. }));
    }

    #[test]
    fn a_name_that_is_taken_is_refused_and_its_batch_goes_on() {
        let scratch = Scratch::new();
        let (writer, _store) = scratch.open();
        let volume = stored_volume("data");
        ask(&writer, put(&volume)).unwrap();
        let mut other = volume.clone();
        other.created_ns += 1;
        let refused = ask(&writer, put(&other)).unwrap_err();
        assert!(matches!(&refused, StoreError::VolumeExists { name } if *name == volume.spec.name));
        assert!(!refused.fails_the_batch());
        assert_eq!(scratch.reader().volumes().unwrap().volumes, [volume]);
    }

    #[test]
    fn a_row_that_no_volume_can_have_hides_no_other_and_names_its_column() {
        let scratch = Scratch::new();
        let (writer, _store) = scratch.open();
        let whole = stored_volume("whole");
        for volume in [&whole, &stored_volume("other")] {
            ask(&writer, put(volume)).unwrap();
        }
        let damage = [
            ("name", "'../etc'"),
            ("name", "x'ff'"),
            ("size", "'-1GB'"),
            ("size", "7"),
            ("bytes", "7"),
            ("bytes", "'many'"),
            ("type", "'cloud'"),
            ("created_ns", "'never'"),
            ("state", "'lost'"),
        ];
        for (column, value) in damage {
            let connection = Connection::open(scratch.path()).unwrap();
            let sql = format!("UPDATE volumes SET {column} = {value} WHERE name = 'other'");
            let transaction = connection.unchecked_transaction().unwrap();
            transaction.execute_batch(&sql).unwrap();
            let found = read(&transaction).unwrap();
            assert_eq!(found.volumes, std::slice::from_ref(&whole), "{sql}");
            assert!(
                matches!(&found.broken[..], [StoreError::VolumeRow { column: found, .. }] if *found == column),
                "{sql}: {:?}",
                found.broken
            );
        }
    }
}
