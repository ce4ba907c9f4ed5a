//! Repetitions: each time of a schedule is submitted as a job of its own, once whatever happens.

use std::rc::Rc;

use super::{
    driver::Shard,
    submission::{Asked, Submission},
};
use crate::{
    job::{JobId, Refusal, Spec},
    limits, rt, store,
};

/// Owner of the keys of repetitions: no name of a peer has such a character in it.
const KEY_OWNER: &str = "\u{1}schedule";

impl Shard {
    /// Submits the repetition that was due at `due_ns`. Its key is that time, so that a daemon that died between
    /// this and the note of it does not make it twice.
    pub(super) fn repeat(self: &Rc<Self>, schedule: JobId, due_ns: i64) {
        let Some(view) = self.live_view(schedule) else {
            return;
        };
        let shard = Rc::clone(self);
        let asked = Asked {
            owner: view.owner,
            spec: Spec {
                schedule: None,
                ..Spec::clone(&view.spec)
            },
            key: Some(store::Key {
                owner: KEY_OWNER.to_owned(),
                key: format!("{schedule} {due_ns}"),
                fingerprint: [0; 32],
                expires_ns: due_ns.saturating_add(key_life_ns()),
            }),
            schedule_id: Some(schedule),
            arrived: rt::now(),
        };
        rt::spawn(async move {
            if let Err(refusal) = shard.make_repetition(asked).await {
                tracing::error!(job_id = %schedule, %refusal, "a repetition of a schedule is left out");
            }
        });
    }

    async fn make_repetition(self: &Rc<Self>, asked: Asked) -> Result<(), Refusal> {
        let submission = Submission::make(self, asked).await?;
        submission.accept().await.map(drop)
    }
}

/// Longer than any schedule may wait for its next time after a daemon was down.
fn key_life_ns() -> i64 {
    i64::try_from((2 * limits::SCHEDULE_MAX).as_nanos()).unwrap_or(i64::MAX)
}
