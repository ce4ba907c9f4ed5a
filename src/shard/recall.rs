//! A submit that is refused, though it was taken before: its key is good for as long as it is remembered.
//!
//! The store decides about the key of every new job. A repeated submit may not get so far, as what the first one
//! needed is gone or there is no room any more; it is told of its job all the same.

use std::rc::Rc;

use super::{driver::Shard, records::key_conflict};
use crate::{
    job::{Accepted, JobId, Refusal},
    store::{Key, Remembered},
};

impl Shard {
    /// The job that `key` stands for, else the refusal of the job `made` that was to be.
    pub(super) async fn recall(
        self: &Rc<Self>,
        key: Key,
        made: JobId,
        refusal: Refusal,
    ) -> Result<Accepted, Refusal> {
        let (asked, now_ns) = (key.clone(), self.moment().wall_ns);
        let remembered = self
            .archive
            .read(move |store| store.remembered(&asked, now_ns))
            .await?;
        decide(remembered, &key.key, made, refusal)
    }
}

/// What to tell instead of `refusal`, if anything.
fn decide(
    remembered: Remembered,
    key: &str,
    made: JobId,
    refusal: Refusal,
) -> Result<Accepted, Refusal> {
    match remembered {
        // The store has taken it, and what came then is what is refused.
        Remembered::Job(id) if id == made => Err(refusal),
        Remembered::Job(id) => Ok(Accepted { id, existing: true }),
        Remembered::Other(id) => Err(key_conflict(key, id)),
        Remembered::Nothing => Err(refusal),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::RefusalCode;

    #[test]
    fn a_refused_submit_is_told_of_the_job_that_its_key_stands_for() {
        let [first, made] = [1, 2].map(|byte| JobId::from_bytes([byte; 16]));
        let refusal = || Refusal::new(RefusalCode::NotFound, "volume data not found");
        let check = |remembered, expected| {
            assert_eq!(decide(remembered, "k", made, refusal()), expected);
        };
        check(Remembered::Nothing, Err(refusal()));
        check(
            Remembered::Job(first),
            Ok(Accepted {
                id: first,
                existing: true,
            }),
        );
        check(Remembered::Other(first), Err(key_conflict("k", first)));
        // Its own row is no earlier job.
        check(Remembered::Job(made), Err(refusal()));
    }
}
