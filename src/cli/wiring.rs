//! Where the command line meets the daemon: one function a door.

use std::{
    collections::HashSet,
    net::{Ipv4Addr, SocketAddr, UdpSocket},
    os::{
        fd::{AsFd, OwnedFd},
        unix::net::UnixDatagram,
    },
    sync::Arc,
};

use anyhow::{Context, Result};
use joblet::{
    cgroup::Spared,
    config::Config,
    front::{Datagram, Front, FrontConfig, steering},
    host::{self, Base},
    pki::PkiFiles,
    sandbox::crew,
    shard::{
        Handle,
        topology::{self, Ending, Purpose},
    },
    volume::Volumes,
};
use nix::{
    sched::{CpuSet, sched_getaffinity},
    sys::{
        signal::{SigSet, Signal},
        signalfd::{SfdFlags, SignalFd},
    },
    unistd::Pid,
};

use super::say;

/// Serves, or does what else a daemon comes up for, until it is to end. The caller holds the lock of `base` and has
/// checked the machine.
pub(super) fn run_daemon(
    base: &Base,
    config: &Config,
    keys: PkiFiles,
    purpose: Purpose,
) -> Result<()> {
    let cpus = allowed_cpus()?;
    let cores = std::num::NonZeroUsize::new(cpus.len()).context("no core may be used")?;
    let shards = config.server.shard_count(cores).get();
    let listen = match purpose {
        Purpose::Serve | Purpose::Drain => config.server.listen,
        // Nobody is to find it.
        Purpose::Down => SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
    };
    let sockets = steering::bind(listen, shards)?;
    let front = Arc::new(front_config(keys)?);
    let signals = end_signals()?;
    let seal_key = base.seal_key()?;
    let ending = topology::run(
        topology::Setup {
            base,
            config,
            sockets,
            cpus,
            seal_key,
            purpose,
            signals,
            on_ready: match purpose {
                Purpose::Serve | Purpose::Drain => ready,
                Purpose::Down => || {},
            },
        },
        Arc::new(move |handle, socket| Box::pin(serve_front(handle, socket, Arc::clone(&front)))),
    )?;
    match ending {
        Ending::Left => say("joblet: jobs go on; the next joblet serve takes them over"),
        Ending::Drained | Ending::Down => {
            clear(base)?;
            say("joblet: every job has ended, nothing is left but files");
        }
    }
    Ok(())
}

/// The front of one shard, from its first packet to its last.
async fn serve_front(handle: Handle, socket: UdpSocket, config: Arc<FrontConfig>) {
    let (shard, shards) = (handle.shard_index(), handle.shard_count());
    let peers = handle.clone();
    let forward = std::rc::Rc::new(move |to, datagram: Datagram| peers.send_message(to, datagram));
    let front = match Front::open(socket, shard, shards, &config, handle.clone(), forward) {
        Ok(front) => front,
        Err(error) => return tracing::error!(shard, error = %anyhow::Error::new(error), "no front"),
    };
    let control = front.control();
    let inbox = control.clone();
    handle.on_message(move |datagram: Datagram| inbox.deliver(datagram));
    let closing = handle.clone();
    drop(joblet::rt::spawn(async move {
        closing.closing().await;
        control.refuse_connections();
        control.close();
    }));
    if let Err(error) = front.serve().await {
        tracing::error!(shard, error = %anyhow::Error::new(error), "the front ended");
    }
}

fn front_config(keys: PkiFiles) -> Result<FrontConfig> {
    let (reset, token) = keys.endpoint_key.0.split_at(32);
    Ok(FrontConfig {
        authority: keys.authority,
        server_chain: keys.server_chain,
        server_key: keys.server_key,
        reset_key: reset.try_into()?,
        token_key: token.try_into()?,
    })
}

/// Says that every shard accepts: a line for people, a message for systemd.
fn ready() {
    say("joblet: ready");
    // A service manager that cannot be told finds out by its own time-out.
    if let Some(path) = std::env::var_os("NOTIFY_SOCKET")
        && let Ok(socket) = UnixDatagram::unbound()
    {
        let _ = socket.send_to(b"READY=1\n", path);
    }
}

/// Cores this process may use, in ascending order.
fn allowed_cpus() -> Result<Vec<usize>> {
    let set = sched_getaffinity(Pid::from_raw(0)).context("read the cores that may be used")?;
    Ok((0..CpuSet::count())
        .filter(|cpu| set.is_set(*cpu).unwrap_or(false))
        .collect())
}

/// Blocks the signals that end the daemon, for every thread made later, and gives a descriptor that is
/// readable when one has come.
fn end_signals() -> Result<OwnedFd> {
    let mut set = SigSet::empty();
    for signal in [
        Signal::SIGTERM,
        Signal::SIGINT,
        Signal::SIGHUP,
        Signal::SIGUSR1, // every job is to end: `joblet down`
        Signal::SIGUSR2, // nothing more is admitted, as with `joblet serve --drain`
    ] {
        set.add(signal);
    }
    set.thread_block().context("block signals")?;
    let signals = SignalFd::with_flags(&set, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
        .context("make a signal descriptor")?;
    Ok(signals.as_fd().try_clone_to_owned()?)
}

/// Runs as the helper processes of a shard until its daemon lets them go.
pub(super) fn keeper() -> Result<()> {
    let setup = crew::setup_from_stdin().context("only joblet serve starts keepers")?;
    crew::helper_main(setup)
}

/// Ends and removes every kernel object that carries the instance of `base`: processes, cgroups, mounts, loop
/// devices. The caller holds the lock, so no daemon is making new ones.
pub(super) fn clear(base: &Base) -> Result<()> {
    let nothing = (Spared::default(), HashSet::new());
    let instance = base.instance().to_string();
    let report = host::recover(base.root(), &instance, &nothing.0, &nothing.1)
        .context("remove what an earlier daemon left")?;
    let volumes = Volumes::open(base.root()).context("open the directory of volumes")?;
    let mounts = volumes
        .unmount_all()
        .context("unmount volumes; what is in them is left")?;
    tracing::debug!(?report, mounts, "cleared");
    Ok(())
}
