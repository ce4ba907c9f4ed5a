//! Joblet daemon.
fn main() {}
