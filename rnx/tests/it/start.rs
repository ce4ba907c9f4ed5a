//! How the program starts: what is loaded before each job, and what it does before anything else.

use std::{
    os::unix::process::ExitStatusExt,
    process::{Command, Output},
};

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

#[expect(
    clippy::disallowed_methods,
    reason = "the program itself is what is tested"
)]
fn shell(script: &str) -> Output {
    Command::new("sh")
        .args(["-c", script, env!("CARGO_BIN_EXE_rnx")])
        .output()
        .unwrap()
}

#[test]
fn what_it_opens_never_becomes_an_output_that_its_caller_has_closed() {
    for script in [
        "\"$0\" --version >&-",
        "\"$0\" --version >&- <&-",
        "\"$0\" --version >&- 2>&- <&-",
    ] {
        let output = shell(script);
        assert_eq!(output.status.code(), Some(0), "{script}: {output:?}");
    }
}

#[test]
#[expect(
    clippy::disallowed_methods,
    reason = "the program itself is what is tested"
)]
fn a_reader_that_has_gone_away_is_no_signal() {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let mut help = Command::new(env!("CARGO_BIN_EXE_rnx"));
    let status = help.arg("--help").stdout(writer).status().unwrap();
    assert_eq!(status.signal(), None, "{status}");
}
