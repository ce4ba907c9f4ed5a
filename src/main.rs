//! The `joblet` command: sets up, serves, ends, issues certificates.
//!
//! Flags become a verb, a verb becomes one of three exit codes: 0 done, 1 refused or failed, 2 misused.

mod cli;

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    match cli::run(cli::Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            cli::say(&format!("error: {error:#}"));
            ExitCode::FAILURE
        }
    }
}
