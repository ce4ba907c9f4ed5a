//! How the program is linked.
//!
//! `rnx` lives for a few milliseconds, most of which others spend on its behalf. At a fixed address none of its ten
//! thousand pointers into itself have to be written, and the pages they are in copied, before `main`; stack, heap and
//! libraries are still somewhere else each time. The daemon, which lives long and is what is attacked, is built as
//! everything is.
//!
//! Linked with libraries, it has the one that unwinds in it rather than beside it, as `-static-libgcc` has it for C,
//! and so it has `pow` of the library of mathematics: what is not there need not be looked for, mapped and bound.
//!
//! Linked statically, as `cargo xtask dist` does, there is nothing to load at all, and its functions lie in the order
//! in which a job calls them: the kernel maps code by 64 KiB around each page that is touched, and a third as many of
//! those are touched. `link-order.txt` has their names as the compiler makes them, so it is of one compiler and one
//! set of dependencies; a name that is not there is passed over. `cargo xtask order` writes it anew.

use std::env;

const ORDER: &str = "link-order.txt";

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed={ORDER}");
    let target = |what: &str| env::var(format!("CARGO_CFG_TARGET_{what}")).unwrap_or_default();
    if target("OS") != "linux" || target("ENV") != "gnu" {
        return;
    }
    let argument = |argument: &str| println!("cargo:rustc-link-arg-bin=rnx={argument}");
    argument("-no-pie");
    let is_static = target("FEATURE").split(',').any(|one| one == "crt-static");
    if !is_static {
        for one in [
            "-Wl,--push-state,--whole-archive",
            "-lgcc_eh",
            "-Wl,--pop-state",
        ] {
            argument(one);
        }
    } else if target("ARCH") == "x86_64" {
        // Where the compiler brings a linker that knows these.
        let here = env::var("CARGO_MANIFEST_DIR").unwrap_or_default();
        argument(&format!("-Wl,--symbol-ordering-file={here}/{ORDER}"));
        argument("-Wl,--no-warn-symbol-ordering");
    }
}
