//! The thread of one shard, from its first task to the end of the daemon.

use std::{
    io,
    net::UdpSocket,
    os::fd::OwnedFd,
    pin::pin,
    rc::Rc,
    sync::{Arc, atomic::Ordering},
};

use super::{Ending, FrontStart, Host, Purpose, StartError};
use crate::{
    job::ShardIndex,
    limits,
    log::Recorder,
    rt::{
        self, Either, Ready,
        mail::{Bell, Rx, Sleeper, Tx},
    },
    sandbox::{crew::Crew, identity::IdRanges},
    shard::{
        Handle,
        core::CoreLimits,
        desk::Desk,
        driver::{Shard, ShardParts},
        effect::Event,
        history::Archive,
        inherit::Share,
        queue::Queue,
        records::Records,
        remote::{Call, Local, Remote},
        seats::Seats,
        volumes::Shelf,
    },
    store::{Reader, Writer},
};

/// One shard's ends of the mailbox.
pub(super) struct Mailbox {
    pub(super) bell: Arc<Bell>,
    pub(super) out: Vec<Option<Tx<Call>>>,
    pub(super) inbound: Vec<Rx<Call>>,
}

/// Everything that goes to a shard's thread.
pub(super) struct ThreadParts {
    pub(super) index: ShardIndex,
    pub(super) host: Arc<Host>,
    pub(super) core: CoreLimits,
    pub(super) queue: Queue,
    pub(super) shelf: Shelf,
    pub(super) cpu: usize,
    pub(super) mailbox: Mailbox,
    pub(super) ids: IdRanges,
    pub(super) crew: Crew,
    pub(super) writer: Writer,
    pub(super) reader: Reader,
    pub(super) share: Share,
    pub(super) socket: UdpSocket,
    pub(super) front: FrontStart,
    /// The first shard hears the signals.
    pub(super) signals: Option<OwnedFd>,
    pub(super) purpose: Purpose,
    pub(super) on_ready: fn(),
}

impl ThreadParts {
    /// Runs the shard. `None` when another shard says how the daemon ended.
    pub(super) fn run(self) -> Result<Option<Ending>, StartError> {
        let shard = self.index;
        let options = rt::Options {
            cpu: Some(self.cpu),
            ..rt::Options::default()
        };
        rt::run(options, || self.live()).map_err(|source| StartError::Shard { shard, source })?
    }

    async fn live(self) -> Result<Option<Ending>, StartError> {
        let io = |what| move |source| StartError::Kernel { what, source };
        let sleeper = Sleeper::new(&self.mailbox.bell).map_err(io("a mailbox"))?;
        let (records, inbox) = Records::new(self.writer).map_err(io("a mailbox"))?;
        let recorder = Recorder::new(&self.host.base_dir, Arc::clone(&self.host.disk));
        let recorder = recorder.map_err(|source| StartError::Disk {
            path: self.host.jobs_dir.clone(),
            source,
        })?;
        let shard = Shard::new(ShardParts {
            index: self.index,
            host: Arc::clone(&self.host),
            limits: self.core,
            queue: self.queue,
            shelf: self.shelf,
            remote: Remote::new(self.mailbox.out),
            desk: Desk::new(self.ids),
            recorder,
            records,
            archive: Archive::new(self.reader),
            seats: Seats::new(self.host.shards).map_err(io("a counter"))?,
        });
        rt::spawn(Rc::clone(&shard).serve_records(inbox));
        // Before any mail: other shards pass on what they hear of these jobs.
        shard.inherit(self.share).map_err(io("a keeper's socket"))?;
        rt::spawn(Rc::clone(&shard).serve_mailbox(self.mailbox.inbound, sleeper));
        rt::spawn(Rc::clone(&shard).serve_timers());
        rt::spawn(Rc::clone(&shard).serve_alarms());
        rt::spawn(Rc::clone(&shard).serve_kept());
        rt::spawn(Rc::clone(&shard).serve_emptied());
        rt::spawn(Rc::clone(&shard).serve_seats());
        rt::spawn(Rc::clone(&shard).serve_memory());
        shard
            .employ(self.crew)
            .await
            .map_err(io("a crew's sockets"))?;
        if self.purpose == Purpose::Drain {
            // Before anybody can ask: a shard that has not heard yet would admit a job.
            shard.feed(Event::Close);
        }
        let front = rt::spawn((self.front)(Handle::new(Rc::clone(&shard)), self.socket));
        shard.front.keep(front);
        if self.host.ready.fetch_add(1, Ordering::AcqRel) + 1 == self.host.shards {
            (self.on_ready)();
        }
        let Some(signals) = self.signals else {
            return std::future::pending().await;
        };
        rt::spawn(Rc::clone(&shard).serve_pruning());
        rt::spawn(Rc::clone(&shard).remove_left());
        rt::spawn(Rc::clone(&shard).guard_space());
        rt::spawn(Rc::clone(&shard).serve_trims());
        let signals = Signals::new(signals).map_err(io("the signal descriptor"))?;
        let ending = until_the_end(&shard, &signals, self.purpose).await;
        let ending = ending.map_err(io("the signal descriptor"))?;
        match ending {
            Ending::Left => {
                tracing::info!("a signal came: jobs go on, the next daemon takes them over");
                shard.leave_all().await;
            }
            Ending::Drained => shard.on_each(|shard| Box::pin(shard.end())).await,
            Ending::Down => {
                tracing::info!("every job is stopped");
                shard.end_all().await;
            }
        }
        Ok(Some(ending))
    }
}

/// Serves until the daemon is to end; how.
async fn until_the_end(
    shard: &Rc<Shard>,
    signals: &Signals,
    purpose: Purpose,
) -> io::Result<Ending> {
    match purpose {
        Purpose::Serve => {
            if let Asked::End(ending) = signals.next().await? {
                return Ok(ending);
            }
            tracing::info!("nothing more is admitted; the daemon ends with the last job");
        }
        Purpose::Drain => {}
        Purpose::Down => return Ok(Ending::Down),
    }
    let mut dry = pin!(shard.run_all_dry());
    loop {
        match rt::or(signals.next(), &mut dry).await {
            Either::Left(asked) => {
                if let Asked::End(ending) = asked? {
                    return Ok(ending);
                }
            }
            Either::Right(()) => return Ok(Ending::Drained),
        }
    }
}

/// What a signal asks for.
enum Asked {
    /// To end now.
    End(Ending),
    /// To admit nothing more and to end with the last job.
    Drain,
}

/// The signals that end the daemon.
struct Signals {
    fd: OwnedFd,
    ready: Ready,
}

impl Signals {
    fn new(fd: OwnedFd) -> io::Result<Self> {
        let ready = Ready::new(fd.try_clone()?)?;
        Ok(Self { fd, ready })
    }

    /// Waits for the next one; what it asks for.
    async fn next(&self) -> io::Result<Asked> {
        self.ready.readable().await?;
        // struct signalfd_siginfo of signalfd(2): the signal is its first word.
        let mut info = [0; size_of::<libc::signalfd_siginfo>()];
        nix::unistd::read(&self.fd, &mut info)?;
        let [a, b, c, d, ..] = info;
        Ok(match u32::from_ne_bytes([a, b, c, d]).cast_signed() {
            libc::SIGUSR1 => Asked::End(Ending::Down),
            libc::SIGUSR2 => Asked::Drain,
            _ => Asked::End(Ending::Left),
        })
    }
}

impl Shard {
    /// Ends every job of every shard, then every front, then every helper. Each waits for all before it: a front
    /// may be telling a client of a job that another shard owns.
    async fn end_all(self: &Rc<Self>) {
        self.on_each(|shard| Box::pin(shard.shut_down())).await;
        self.on_each(|shard| Box::pin(shard.end())).await;
    }

    /// Admits nothing more, and returns when no shard has a job.
    async fn run_all_dry(self: &Rc<Self>) {
        self.on_each(|shard| Box::pin(shard.run_dry())).await;
    }

    /// Lets go of everything and leaves it to the next daemon.
    async fn leave_all(self: &Rc<Self>) {
        self.on_each(|shard| Box::pin(shard.leave())).await;
    }

    async fn leave(self: Rc<Self>) {
        self.feed(Event::Close);
        self.front.close().await;
        // What ended just now is told by its keeper again if the store does not take it any more.
        let settled = rt::timeout(limits::LEAVE_WAIT, self.records.settled());
        if settled.await.is_err() {
            tracing::warn!(shard = self.index, "the store does not answer");
        }
    }

    async fn on_each(self: &Rc<Self>, act: fn(Rc<Self>) -> Local<()>) {
        let each: Vec<_> = (0..self.shards)
            .map(|index| {
                let this = Rc::clone(self);
                rt::spawn(async move { this.on(index, act).await })
            })
            .collect();
        for shard in each {
            if let Ok(Err(refusal)) = shard.await {
                tracing::error!(%refusal, "a shard did not go down in order");
            }
        }
    }

    /// Everything after the last job.
    async fn end(self: Rc<Self>) {
        self.front.close().await;
        self.discard_kept().await;
        self.desk.shut_down().await;
        self.seats.close().await;
    }
}
