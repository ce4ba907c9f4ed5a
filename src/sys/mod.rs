//! Kernel calls that no dependency wraps safely: the only room with `unsafe` in it.
//!
//! One kernel call, one small file, one safe function with owned or borrowed descriptors and typed flags.
#![allow(
    unsafe_code,
    reason = "this room exists to hold it; every block says why it is sound"
)]

pub mod affinity;
pub mod capability;
pub mod child;
pub mod clone;
pub mod descriptors;
pub mod detached;
pub mod durable;
pub mod inheritance;
pub mod keeper_calls;
pub mod keyring;
pub mod loopdev;
pub mod memfd;
pub mod mount;
pub mod mountinfo;
pub mod netlo;
pub mod pidfd;
pub mod pipe;
pub mod preadv;
pub mod process;
pub mod raw;
pub mod scm;
pub mod seqpacket;
pub mod trim;
pub mod uring;
pub mod userns;
