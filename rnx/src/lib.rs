//! rnx.
