//! How the program is linked.
//!
//! `rnx` lives for a few milliseconds, most of which others spend on its behalf. At a fixed address none of its ten
//! thousand pointers into itself have to be written, and the pages they are in copied, before `main`; stack, heap and
//! libraries are still somewhere else each time. The daemon, which lives long and is what is attacked, is built as
//! everything is.
//!
//! The library that unwinds is in it rather than beside it, as `-static-libgcc` has it for C, and so is `pow` of the
//! library of mathematics: what is not there need not be looked for, mapped and bound.

use std::env;

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    let target = |what: &str| env::var(format!("CARGO_CFG_TARGET_{what}")).unwrap_or_default();
    if target("OS") == "linux" && target("ENV") == "gnu" {
        for arg in [
            "-no-pie",
            "-Wl,--push-state,--whole-archive",
            "-lgcc_eh",
            "-Wl,--pop-state",
        ] {
            println!("cargo:rustc-link-arg-bin=rnx={arg}");
        }
    }
}
