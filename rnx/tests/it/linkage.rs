//! What the program is linked with: whatever must be loaded is loaded before each job.

use std::process::Command;

/// # Source
/// ld.so(8), `LD_TRACE_LOADED_OBJECTS`.
#[cfg(target_env = "gnu")]
#[test]
#[expect(
    clippy::disallowed_methods,
    reason = "the program itself is what is tested"
)]
fn a_start_loads_the_c_library_and_no_other() {
    let listed = Command::new(env!("CARGO_BIN_EXE_rnx"))
        .env("LD_TRACE_LOADED_OBJECTS", "1")
        .output()
        .unwrap();
    let text = String::from_utf8(listed.stdout).unwrap();
    let loaded: Vec<_> = text
        .lines()
        .filter_map(|line| line.split_whitespace().next())
        .filter(|name| !name.contains("vdso") && !name.contains("/ld-linux"))
        .collect();
    assert_eq!(loaded, ["libc.so.6"], "{text}");
}
