//! Killed at the n-th system call.
