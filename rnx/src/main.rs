//! rnx binary.
fn main() {}
