//! Everything that is tested through the finished programs, and the plan of the house.

/// `joblet init`, `cert issue`, `down`, and what they refuse.
mod setup;
/// Which room may name which, and what no file may say.
mod tidy;
