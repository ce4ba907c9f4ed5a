//! `rnx --local shutdown`.

use super::Session;
use crate::{exit::Failure, local::Local};

pub(crate) fn shutdown(session: &Session) -> Result<u8, Failure> {
    if !session.global.local {
        return Err(Failure::usage("shutdown is for the private server only")
            .hint("`rnx --local shutdown`"));
    }
    Local::new().shutdown()
}
