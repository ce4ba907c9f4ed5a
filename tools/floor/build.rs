//! Builds the static program that is both PID 1 and the command of a measured job.
#![expect(
    clippy::disallowed_methods,
    reason = "a build script runs before any shard"
)]

use std::{env, path::PathBuf, process::Command};

fn main() {
    println!("cargo::rerun-if-changed=init/init.rs");
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR")).join("init");
    let flags = [
        "--edition=2024",
        "--crate-name=floor_init",
        "--crate-type=bin",
        "-Cpanic=abort",
        "-Copt-level=s",
        "-Crelocation-model=static",
        "-Cstrip=symbols",
        "-Clink-arg=-nostartfiles",
        "-Clink-arg=-nostdlib",
        "-Clink-arg=-static",
        "-Clink-arg=-Wl,--build-id=none",
    ];
    let status = Command::new(env::var_os("RUSTC").expect("cargo sets RUSTC"))
        .args(flags)
        .arg("--target")
        .arg(env::var_os("TARGET").expect("cargo sets TARGET"))
        .arg("-o")
        .arg(&out)
        .arg("init/init.rs")
        .status()
        .expect("rustc starts");
    assert!(status.success(), "building init/init.rs: {status}");
}
