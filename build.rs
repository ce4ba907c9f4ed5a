//! Compiles PID 1 for the target, without libc, and leaves it where `sandbox::init` embeds it.

use std::{env, path::PathBuf, process::Command};

const SOURCE: &str = "src/sandbox/init/pid1/main.rs";
/// Everything that goes into it.
const WATCHED: &[&str] = &[
    "build.rs",
    "src/sandbox/init/pid1",
    "src/sandbox/init/record.rs",
    "src/sys/raw.rs",
];
/// Each with the reason why it is there.
const FLAGS: &[&str] = &[
    "--edition=2024",
    "--crate-name=joblet_init",
    "--crate-type=bin",
    "-Cpanic=abort", // no unwinder in it
    "-Copt-level=s", // small: every job pays for its pages
    "-Clto=fat",     // so that only what is used of `core` remains
    "-Ccodegen-units=1",
    "-Cstrip=symbols",
    "-Cforce-unwind-tables=no",
    "-Crelocation-model=static", // no relocations: nobody would apply them
    "-Ctarget-feature=+crt-static",
    "-Clink-arg=-nostartfiles",
    "-Clink-arg=-nostdlib",
    "-Clink-arg=-static",
    "-Clink-arg=-Wl,--gc-sections",
    "-Clink-arg=-Wl,--build-id=none",
    "-Clink-arg=-Wl,-z,noseparate-code", // one mapping for headers, constants and code
    "-Clink-arg=-Wl,-z,norelro",
    "-Clink-arg=-Wl,-z,noexecstack",
];

#[expect(
    clippy::disallowed_methods,
    reason = "a build script starts the compiler"
)]
fn main() {
    for path in WATCHED {
        println!("cargo::rerun-if-changed={path}");
    }
    let variable = |name: &str| env::var_os(name).unwrap_or_else(|| panic!("cargo sets {name}"));
    let image = PathBuf::from(variable("OUT_DIR")).join("joblet-init");
    let mut rustc = Command::new(variable("RUSTC"));
    rustc
        .args(FLAGS)
        .arg("--target")
        .arg(variable("TARGET"))
        .arg("-o")
        .arg(&image)
        .arg(SOURCE);
    if let Some(linker) = env::var_os("RUSTC_LINKER") {
        rustc.arg(format!("-Clinker={}", linker.display()));
    }
    let status = rustc
        .status()
        .unwrap_or_else(|error| panic!("start {rustc:?}: {error}"));
    assert!(status.success(), "PID 1 does not compile: {rustc:?}");
}
