//! A submit: the request, its argument list and environment, its uploads, and what the stream carries then.

use proto_rkyv::{After, Piece, Reply, Submit};

use super::{Broken, Session, budget::Reservation, race};
use crate::{
    front::{
        authorise::{Operation, OwnerRelation, authorise},
        convert::{self, Bulk, UploadStep, Uploads},
    },
    job::{Accepted, Refusal, Schedule},
    limits, rt,
    shard::Submission,
};

impl Session {
    pub(super) async fn submit(&mut self, submit: Submit) -> Result<(), Broken> {
        authorise(self.peer.role, Operation::Run, OwnerRelation::Own)?;
        let (after, announced) = (submit.after, submit.uploads);
        let mut held = self.budget.reserve();
        let (bulk, first_upload) = self.bulk(announced.is_some(), &mut held).await?;
        let key = convert::idempotency_key(&submit, &bulk)?;
        let now_ns = i64::try_from(rt::wall_ns()).unwrap_or(i64::MAX);
        let spec = convert::spec(submit, &bulk, self.handle.settings(), now_ns)?;
        drop((bulk, held));
        check_after(after, spec.schedule.as_ref())?;
        let mut submission = self
            .handle
            .submit(&self.peer, spec, key, self.arrived)
            .await?;
        if let (Some(announced), Some(first)) = (announced, first_upload) {
            self.uploads(&mut submission, announced, first).await?;
        }
        let Accepted { id, existing } = submission.accept().await?;
        let accepted = Reply::Accepted {
            id: id.to_bytes(),
            existing,
        };
        self.outgoing.reply(&accepted).await?;
        match after {
            After::Detach => Ok(()),
            After::Wait => self.ended(id).await,
            After::Follow => {
                self.follow_live(id).await?;
                self.ended(id).await
            }
        }
    }

    /// Argument list and environment: everything up to the end of the stream, or up to the first entry of an
    /// upload, which is returned beside them.
    async fn bulk(
        &mut self,
        has_uploads: bool,
        held: &mut Reservation,
    ) -> Result<(Bulk, Option<Piece>), Broken> {
        let mut bulk = Bulk::default();
        let mut kind = None;
        loop {
            match self.piece().await? {
                Some(Piece::Begin(header)) => {
                    bulk.push(header.kind, &[])?;
                    kind = Some(header.kind);
                }
                Some(Piece::Data { bytes, .. }) => {
                    let kind = kind.expect("a frame's data follows its header");
                    held.grow(bytes.len())?;
                    bulk.push(kind, &bytes)?;
                }
                Some(control @ Piece::Control(_)) if has_uploads => {
                    return Ok((bulk, Some(control)));
                }
                Some(Piece::Control(_)) => {
                    return Err(Broken::Malformed(convert::invalid(
                        "an upload that was not announced",
                    )));
                }
                None if has_uploads => return Err(truncated_upload()),
                None => return Ok((bulk, None)),
            }
        }
    }

    /// Hands the uploads on as they come. Waits for the job's side, so that a slow disk slows the client down
    /// and nothing is held here but one piece.
    async fn uploads(
        &mut self,
        submission: &mut Submission,
        announced: u64,
        first: Piece,
    ) -> Result<(), Broken> {
        let mut uploads = Uploads::new(announced);
        let mut piece = first;
        loop {
            match uploads.step(piece)? {
                UploadStep::Header => {}
                UploadStep::End => return Ok(()),
                UploadStep::Entry(entry) => {
                    if let Some(sink) = submission.upload() {
                        self.outgoing.unless_gone(sink.entry(&entry)).await??;
                    }
                }
                UploadStep::Extra(_) => {
                    return Err(convert::invalid("an upload has no such entry").into());
                }
                UploadStep::Data(bytes) => {
                    if let Some(sink) = submission.upload() {
                        self.outgoing.unless_gone(sink.data(bytes)).await??;
                    }
                }
            }
            piece = self.upload_piece().await?;
        }
    }

    /// The next piece of an upload, which has an end of its own.
    pub(super) async fn upload_piece(&mut self) -> Result<Piece, Broken> {
        self.piece().await?.ok_or_else(truncated_upload)
    }

    /// The next piece of what the client owes; it may not keep us waiting for ever.
    async fn piece(&mut self) -> Result<Option<Piece>, Broken> {
        race::within(limits::STREAM_STALL_MAX, self.incoming.next())
            .await
            .ok_or(Broken::Stalled)?
    }
}

/// Who waits for a job waits for its end, and a schedule has none.
fn check_after(after: After, schedule: Option<&Schedule>) -> Result<(), Refusal> {
    match after {
        After::Wait | After::Follow if schedule.is_some_and(Schedule::repeats) => {
            Err(convert::invalid("a job that repeats cannot be waited for")
                .hint("submit it detached: `rnx job run -d`"))
        }
        After::Detach | After::Wait | After::Follow => Ok(()),
    }
}

fn truncated_upload() -> Broken {
    Broken::Malformed(convert::invalid("the upload ended early"))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn only_what_ends_can_be_waited_for() {
        let once = Schedule::Once { at_ns: 0 };
        let every = Schedule::Every {
            every: Duration::from_secs(1),
            from_ns: 0,
        };
        for after in [After::Wait, After::Follow] {
            assert_eq!(check_after(after, None), Ok(()));
            assert_eq!(check_after(after, Some(&once)), Ok(()));
            let refusal = check_after(after, Some(&every)).unwrap_err();
            assert_eq!(refusal.message, "a job that repeats cannot be waited for");
            assert_eq!(
                refusal.hint.as_deref(),
                Some("submit it detached: `rnx job run -d`")
            );
        }
        assert_eq!(check_after(After::Detach, Some(&every)), Ok(()));
    }
}
