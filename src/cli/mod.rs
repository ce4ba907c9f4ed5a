//! Verbs of the command line, one file each, and the only place that prints.
//!
//! What a verb gives goes to stdout; what it says goes to stderr.

mod cert;
mod doctor;
mod down;
mod init;
mod serve;
mod wiring;

use std::{
    ffi::OsString,
    io::{self, Write},
    net::SocketAddr,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use clap::{Args, Parser, Subcommand};
use joblet::{config::Overrides, job::Role, limits};

/// Runs Linux jobs that nobody has to trust.
#[derive(Debug, Parser)]
#[command(name = "joblet", version, about)]
pub(crate) struct Cli {
    /// Directory that the daemon owns.
    #[arg(
        long,
        global = true,
        env = "JOBLET_BASE",
        value_name = "DIR",
        default_value = "/opt/joblet"
    )]
    base: PathBuf,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Make the base directory, certificates, configuration and the administrator's client file; keep what
    /// exists.
    Init(InitFlags),
    /// Serve in the foreground.
    Serve {
        /// Admit nothing and exit when the last job has ended.
        #[arg(long)]
        drain: bool,
    },
    /// Stop every job and the daemon, and leave nothing but files.
    Down,
    /// Certificates of clients.
    #[command(subcommand)]
    Cert(CertVerb),
    /// Ask the daemon what this machine enforces.
    Doctor {
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Print the version.
    Version,
    /// Hold the jobs of one shard; started by the daemon itself, with a socket on standard input.
    #[command(hide = true)]
    Keeper,
}

/// Flags of `init`.
#[derive(Debug, Args)]
struct InitFlags {
    /// Where the daemon will listen; port 0 picks a free one [default: 0.0.0.0:50051].
    #[arg(long, env = "JOBLET_LISTEN", value_name = "ADDR:PORT")]
    listen: Option<SocketAddr>,
    /// The administrator's client file [default: ~/.rnx/rnx-config.yml].
    #[arg(long, value_name = "FILE")]
    client_config: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
enum CertVerb {
    /// Issue a certificate and give a whole client file with it.
    Issue(IssueFlags),
}

/// Flags of `cert issue`.
#[derive(Debug, Args)]
struct IssueFlags {
    /// What the client may do: reader (or viewer), developer, maintainer, admin.
    #[arg(long)]
    role: Role,
    /// Name of the client, the owner of its jobs: 1 to 64 printable ASCII characters.
    #[arg(long)]
    name: String,
    /// Write the client file here, mode 0600, instead of printing it. An existing file is not replaced.
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Days that the certificate holds.
    #[arg(long, value_name = "D", default_value_t = limits::CERTIFICATE_DAYS_DEFAULT,
          value_parser = clap::value_parser!(u32).range(1..=i64::from(limits::AUTHORITY_DAYS)))]
    days: u32,
    /// Where the client reaches the daemon [default: where it listens].
    #[arg(long, value_name = "HOST:PORT")]
    address: Option<String>,
    /// Name of the daemon in the client file.
    #[arg(long, default_value = "default")]
    node: String,
}

/// Does what was asked.
pub(crate) fn run(cli: Cli) -> Result<()> {
    match cli.verb {
        Verb::Init(flags) => init::run(&cli.base, &flags),
        Verb::Serve { drain } => serve::run(&cli.base, drain),
        Verb::Down => down::run(&cli.base),
        Verb::Cert(CertVerb::Issue(flags)) => cert::issue(&cli.base, &flags),
        Verb::Doctor { json } => doctor::run(&cli.base, json),
        Verb::Version => give(concat!("joblet ", env!("CARGO_PKG_VERSION"), "\n").as_bytes()),
        Verb::Keeper => wiring::keeper(),
    }
}

/// Says one line to a person. That nobody listens is no error.
pub(crate) fn say(line: &str) {
    let _ = writeln!(io::stderr(), "{line}");
}

/// Gives data to whoever reads our stdout. A reader that has gone has all it wanted.
fn give(data: &[u8]) -> Result<()> {
    let mut out = io::stdout().lock();
    match out.write_all(data).and_then(|()| out.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(error).context("write to stdout")
        }
        _ => Ok(()),
    }
}

/// What of the environment wins over the configuration file.
fn overrides() -> Overrides {
    Overrides {
        listen: std::env::var_os("JOBLET_LISTEN"),
    }
}

/// The rest of a command that was started with another base directory than the usual one.
fn base_flag(base: &Path) -> OsString {
    let mut flag = OsString::new();
    if base != Path::new("/opt/joblet") {
        flag.push(" --base ");
        flag.push(base);
    }
    flag
}
