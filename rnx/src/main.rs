//! `rnx`: jobs on a joblet server, from a command line.
//!
//! Flags → what is asked → answer → exit code. Each command has a file of its own below `verb`; only `out`
//! prints; `exit` knows every code. One thread runs everything but the writer of job output and the reader
//! of uploads: start-up is part of every job's latency.
#![cfg_attr(all(target_os = "linux", target_env = "gnu", not(test)), no_main)]

mod amount;
mod environment;
mod exit;
mod flags;
mod json;
mod local;
mod names;
mod out;
mod pow;
mod schedule;
mod signal;
#[cfg(all(target_os = "linux", target_env = "gnu", not(test)))]
mod start;
mod text;
mod verb;

use std::env;

use crate::{
    exit::{Failure, code},
    flags::{Flags, JobVerb, Rest, ScheduleVerb, Verb, VolumeVerb},
    out::Out,
    verb::Session,
};

#[cfg(not(all(target_os = "linux", target_env = "gnu", not(test))))]
fn main() -> std::process::ExitCode {
    command().into()
}

/// One call of the program; its exit code.
fn command() -> u8 {
    let words: Vec<_> = env::args_os().collect();
    let flags = match Flags::read(&words) {
        Ok(flags) => flags,
        Err(error) => {
            let usage = if error.use_stderr() {
                code::USAGE
            } else {
                code::DONE
            };
            let shown = Out::new(false).clap(&error);
            return shown.map_or_else(|failure| failure.code, |()| usage);
        }
    };
    let out = Out::new(flags.global.json);
    run(flags, out).unwrap_or_else(|failure| {
        out.failure(&failure);
        failure.code
    })
}

fn run(flags: Flags, out: Out) -> Result<u8, Failure> {
    let session = Session::new(flags.global, out);
    let verb = match flags.verb {
        _ if session.global.version => Verb::Version,
        Some(verb) => verb,
        None => return Err(Failure::usage("no command given").hint("`rnx --help` lists them")),
    };
    match verb {
        Verb::Job(verb) => job(verb, &session),
        Verb::Nodes => verb::nodes::nodes(&session),
        Verb::Version => block_on(verb::version::version(&session)),
        Verb::Completions { shell } => verb::completions::completions(shell, out),
        Verb::ConfigHelp => verb::config_help::config_help(out),
        Verb::Shutdown => verb::shutdown::shutdown(&session),
        Verb::Detach { program } => Err(local::become_server(&program)),
        Verb::Schedule(ScheduleVerb::List(flags)) => {
            block_on(verb::schedule::list(&flags, &session))
        }
        Verb::Schedule(ScheduleVerb::Remove(jobs)) => {
            block_on(verb::cancel::cancel(&jobs, &session))
        }
        Verb::Volume(verb) => volume(verb, &session),
        Verb::Network(rest) => Err(later("network", &rest)),
        Verb::Runtime(rest) => Err(later("runtime", &rest)),
        Verb::Node(rest) => Err(later("node", &rest)),
        Verb::Monitor(rest) => Err(later("monitor", &rest)),
        Verb::Doctor => block_on(verb::doctor::doctor(&session)),
    }
}

fn job(verb: JobVerb, session: &Session) -> Result<u8, Failure> {
    match verb {
        JobVerb::Run(flags) => block_on(verb::run::run(&flags, session)),
        JobVerb::List(flags) => block_on(verb::list::list(&flags, session)),
        JobVerb::Status(job) => block_on(verb::status::status(&job, session)),
        JobVerb::Log(flags) => block_on(verb::log::log(&flags, session)),
        JobVerb::Stop(flags) => block_on(verb::stop::stop(&flags, session)),
        JobVerb::Wait(jobs) => block_on(verb::wait::wait(&jobs, session)),
        JobVerb::Cp(flags) => block_on(verb::cp::cp(&flags, session)),
        JobVerb::Cancel(jobs) => block_on(verb::cancel::cancel(&jobs, session)),
        JobVerb::Metrics(flags) => block_on(verb::metrics::metrics(&flags, session)),
        JobVerb::Delete(jobs) => block_on(verb::delete::delete(&jobs, session)),
        JobVerb::DeleteAll => block_on(verb::delete::delete_all(session)),
    }
}

fn volume(verb: VolumeVerb, session: &Session) -> Result<u8, Failure> {
    match verb {
        VolumeVerb::Create(flags) => block_on(verb::volume::create(&flags, session)),
        VolumeVerb::List(flags) => block_on(verb::volume::list(&flags, session)),
        VolumeVerb::Remove(names) => block_on(verb::volume::remove(&names, session)),
        VolumeVerb::Inspect(name) => block_on(verb::volume::inspect(&name, session)),
        VolumeVerb::Cp(flags) => block_on(verb::volume::files::cp(&flags, session)),
        VolumeVerb::Export(name) => block_on(verb::volume::files::export(&name, session)),
        VolumeVerb::Import(name) => block_on(verb::volume::files::import(&name, session)),
    }
}

/// The refusal of a command that this version does not have.
fn later(command: &str, rest: &Rest) -> Failure {
    let sub = rest
        .rest
        .first()
        .and_then(|word| word.to_str())
        .filter(|word| !command.contains(' ') && !word.starts_with('-'));
    let name = sub.map_or_else(|| command.to_owned(), |sub| format!("{command} {sub}"));
    Failure::usage(format!(
        "`rnx {name}` is not supported by this version of rnx yet"
    ))
}

fn block_on(verb: impl Future<Output = Result<u8, Failure>>) -> Result<u8, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let runtime = runtime.map_err(|error| Failure::new(format!("start: {error}")))?;
    let done = runtime.block_on(verb);
    // The process ends next, and takes everything with it at once: neither does a reader of uploads that hangs on its
    // disk keep us, nor is each mapping taken back by itself.
    std::mem::forget(runtime);
    done
}
