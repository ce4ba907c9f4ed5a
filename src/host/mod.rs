//! The host as a whole: clean-up of what belongs to nobody.

mod recover;

pub use recover::{RecoverError, Report, recover};
