//! Everything that is tested through the finished programs, and the plan of the house.
#![expect(
    clippy::unwrap_used,
    reason = "the whole program is a test; clippy sees only functions marked so"
)]

/// `joblet init`, `cert issue`, `down`, and what they refuse.
mod setup;
/// Which room may name which, and what no file may say.
mod tidy;
