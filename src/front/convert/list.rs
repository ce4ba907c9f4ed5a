//! Lists and deletions.

use proto_rkyv::{List, Reply};

use super::state;
use crate::{
    job::{Cursor, Deleted, JobId, ListQuery},
    limits,
};

/// Which jobs are asked for, in a number that is sent at once.
pub(in crate::front) fn list_query(list: &List) -> ListQuery {
    let asked = list.limit.map_or(usize::MAX, |limit| {
        usize::try_from(limit).unwrap_or(usize::MAX)
    });
    ListQuery {
        state: list.state.map(state),
        schedules: list.schedules,
        limit: asked.min(limits::LIST_JOBS_MAX),
        before: list.before.map(|before| Cursor {
            created_ns: before.created_ns,
            id: JobId::from_bytes(before.id),
        }),
    }
}

/// Says where the list goes on.
pub(in crate::front) fn more(cursor: Cursor) -> Reply {
    Reply::More(proto_rkyv::Cursor {
        created_ns: cursor.created_ns,
        id: cursor.id.to_bytes(),
    })
}

/// Says what became of a deletion.
pub(in crate::front) const fn deleted(deleted: Deleted) -> Reply {
    Reply::Deleted {
        deleted: deleted.deleted,
        skipped: deleted.skipped,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::State;

    #[test]
    fn a_list_is_bounded_and_goes_on_where_it_was_told() {
        let none = list_query(&List::default());
        assert_eq!(
            (none.state, none.schedules, none.limit, none.before),
            (None, false, limits::LIST_JOBS_MAX, None)
        );
        let cursor = Cursor {
            created_ns: -5,
            id: JobId::from_bytes([7; 16]),
        };
        let Reply::More(before) = more(cursor) else {
            panic!("another reply")
        };
        let asked = list_query(&List {
            state: Some(proto_rkyv::State::Queued),
            limit: Some(3),
            before: Some(before),
            schedules: true,
        });
        assert_eq!(
            (asked.state, asked.schedules, asked.limit, asked.before),
            (Some(State::Queued), true, 3, Some(cursor))
        );
        let greedy = List {
            limit: Some(u32::MAX),
            ..List::default()
        };
        assert_eq!(list_query(&greedy).limit, limits::LIST_JOBS_MAX);
    }
}
