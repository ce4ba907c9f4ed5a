//! From a spec to a recipe in the spawner's hands: everything a job needs is made here and sent.
//!
//! What exists so far is always in the job's [`Body`], so a failure at any point gives it all back through
//! the one way that every end takes.

use std::{
    io,
    os::fd::{AsFd, AsRawFd, OwnedFd},
    rc::Rc,
    sync::Arc,
};

use nix::{
    fcntl::OFlag,
    sys::{
        socket::{AddressFamily, MsgFlags, SockFlag, SockType, send, socketpair},
        stat::{Mode, fchmod, fstat},
    },
    unistd::{Gid, fchown, pipe2},
};

use super::{
    body::Body,
    desk::{Link, chain},
    driver::Shard,
    effect::{Event, NewJob, Start, StartFailure},
};
use crate::{
    cgroup::{CgroupError, Device, Leaf},
    job::{JobId, Refusal, RefusalCode, Spec, WorkKind},
    log::{Capture, Pipes, Policy, Recovered},
    rt::{self, Either},
    sandbox::{
        identity::IdRange,
        plan::{Plan, PlanSpec, Work},
        pool::Namespaces,
        start::StartFds,
        wire::{GO, KeeperCommand},
    },
    sys::affinity::CpuMask,
    volume::{HostOwner, WorkImage, WorkOptions},
};

/// Why a recipe did not go to a spawner.
enum Unmade {
    /// A resource could not be made.
    Failed(StartFailure),
    /// The spawner is gone and has read nothing of it.
    Unsent,
}

impl From<StartFailure> for Unmade {
    fn from(failure: StartFailure) -> Self {
        Self::Failed(failure)
    }
}

/// Detached mounts that go with a recipe.
struct Mounts {
    /// For `/work`, when it is not in memory.
    work: Option<OwnedFd>,
    /// In the order of the spec.
    volumes: Vec<OwnedFd>,
}

/// Both ends of the pipe of one of a job's streams.
struct Pipe {
    read: OwnedFd,
    write: OwnedFd,
}

impl Shard {
    /// Makes an upload socket for a job that is about to be submitted, if its uploads go straight into its sandbox;
    /// gives our end.
    pub(super) fn open_upload(&self, new: &NewJob) -> Result<Option<OwnedFd>, Refusal> {
        let is_direct = new.start == Start::Now && new.schedule_id.is_none();
        if new.spec.uploads.is_none() || !is_direct {
            return Ok(None);
        }
        let (ours, inits) = upload_socket()
            .map_err(|errno| Refusal::new(RefusalCode::Busy, format!("upload socket: {errno}")))?;
        let mut body = Body::new();
        body.upload = Some(inits);
        self.bodies.borrow_mut().insert(new.id, body);
        Ok(Some(ours))
    }

    /// Undoes [`Shard::open_upload`] when the submit was refused.
    pub(super) fn forget_upload(&self, id: JobId) {
        self.bodies.borrow_mut().remove(&id);
    }

    /// Begins to make a job's sandbox; what comes of it is an event.
    pub(super) fn prepare(self: &Rc<Self>, id: JobId) {
        let (shard, maker) = (Rc::clone(self), Rc::clone(self));
        let made = rt::spawn(async move { maker.make(id).await });
        rt::spawn(async move {
            // A bug in there ends this job and nothing else.
            let made = made.await.unwrap_or_else(|panicked| {
                let step = format!("make the sandbox: {panicked}");
                Err(StartFailure { step, errno: 0 }.into())
            });
            shard.feed(match made {
                Ok(()) => Event::Sent(id),
                Err(Unmade::Failed(failure)) => Event::PrepareFailed(id, failure),
                Err(Unmade::Unsent) => Event::Unsent(id),
            });
        });
    }

    async fn make(self: &Rc<Self>, id: JobId) -> Result<(), Unmade> {
        let (spec, work) = self.recipe(id).ok_or_else(vanished)?;
        self.undo_former(id).await;
        let (link, namespaces) = self.crew_and_namespaces().await?;
        self.with_body(id, |body| {
            body.ids = Some(namespaces.ids);
            body.link = Some(Rc::clone(&link));
        })?;
        self.feed_from_spool(id, &spec).await?;
        let owner = HostOwner {
            uid: namespaces.ids.base() + spec.user.uid,
            gid: namespaces.ids.base() + spec.user.gid,
        };
        let mounts = Mounts {
            work: self.make_work(id, &spec, work, namespaces.ids).await?,
            volumes: self.attach_volumes(id, &spec, owner).await?,
        };
        let leaf = self.make_leaf(id, &spec).await?;
        self.send(id, &spec, &link, &leaf, &namespaces, mounts)
            .await
    }

    /// Has the uploads of a job that waited come from its spool. init reads them before it hears the go.
    async fn feed_from_spool(self: &Rc<Self>, id: JobId, spec: &Spec) -> Result<(), StartFailure> {
        let is_fed = self.with_body(id, |body| body.upload.is_some())?;
        if spec.uploads.is_none() || is_fed {
            return Ok(());
        }
        let from = self
            .live_view(id)
            .and_then(|view| view.schedule_id)
            .unwrap_or(id);
        let unread = |refusal: Refusal| StartFailure {
            step: refusal.message,
            errno: 0,
        };
        let spooled = self.spool.open(from).await.map_err(unread)?;
        let (ours, inits) =
            upload_socket().map_err(|errno| failure("make the upload socket", errno))?;
        self.with_body(id, |body| body.upload = Some(inits))?;
        rt::spawn(async move {
            // init ends when its socket does, with the step that failed.
            if let Err(refusal) = spooled.feed(ours).await {
                tracing::warn!(job_id = %id, %refusal, "uploads of a job that waited did not get there");
            }
        });
        Ok(())
    }

    /// Removes the uploads that a job left for later, if it did.
    pub(super) fn remove_spool(self: &Rc<Self>, id: JobId) {
        let spool = self.spool.clone();
        rt::spawn(async move {
            if let Err(error) = spool.remove(id).await {
                tracing::warn!(job_id = %id, %error, "a spool is left to the next start");
            }
        });
    }

    /// Everything after the last wait but one: no other task sees the job half made.
    async fn send(
        self: &Rc<Self>,
        id: JobId,
        spec: &Spec,
        link: &Rc<Link>,
        leaf: &Leaf,
        namespaces: &Namespaces,
        Mounts { work, volumes }: Mounts,
    ) -> Result<(), Unmade> {
        let plan = self.plan(id, spec, namespaces.ids, (work.is_some(), leaf.joins.len()))?;
        let gid = namespaces.ids.base() + spec.user.gid;
        let stdout = pipe(gid).map_err(|errno| failure("make the stdout pipe", errno))?;
        let stderr = pipe(gid).map_err(|errno| failure("make the stderr pipe", errno))?;
        let (control, control_init) = socketpair(
            AddressFamily::Unix,
            SockType::SeqPacket,
            None,
            SockFlag::SOCK_CLOEXEC,
        )
        .map_err(|errno| failure("make the control socket", errno))?;
        let upload = self.with_body(id, |body| body.upload.as_ref().map(OwnedFd::try_clone))?;
        let upload = upload
            .transpose()
            .map_err(|error| failure_io("share the upload socket", &error))?;
        let fds = StartFds {
            plan: plan.as_fd(),
            stdout_write: stdout.write.as_fd(),
            stderr_write: stderr.write.as_fd(),
            control_init: control_init.as_fd(),
            cgroup: leaf.dir.as_fd(),
            user_ns: namespaces.user.as_fd(),
            net_ns: namespaces.net.as_fd(),
            stdout_read: stdout.read.as_fd(),
            stderr_read: stderr.read.as_fd(),
            control_keeper: control.as_fd(),
            work_tree: work.as_ref().map(AsFd::as_fd),
            upload: upload.as_ref().map(AsFd::as_fd),
            joins: &leaf.joins,
            volumes: &volumes,
        };
        match link.send_start(id, &fds).await {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {
                self.retire(link, "its spawner takes no recipe");
                return Err(Unmade::Unsent);
            }
            Err(error) => return Err(failure_io("send the plan to the spawner", &error).into()),
        }
        self.bound(id, spec, work.as_ref())?;
        let progress = self.with_body(id, |body| {
            body.control = Some(control);
            Rc::clone(&body.progress)
        })?;
        let pipes = Pipes {
            stdout: stdout.read,
            stderr: stderr.read,
        };
        let capture = self.recorder.capture(
            id,
            pipes,
            self.host.log_limits,
            &Recovered::default(),
            progress,
        );
        let capture = Rc::new(capture.map_err(|error| StartFailure {
            step: chain(&error),
            errno: 0,
        })?);
        self.with_body(id, |body| body.capture = Some(Rc::clone(&capture)))?;
        self.watch_log_limit(id, &capture);
        Ok(())
    }

    /// Keeps the capture of a job that a former daemon had started.
    pub(super) fn go_on_capturing(self: &Rc<Self>, id: JobId, capture: Rc<Capture>) {
        if let Some(body) = self.bodies.borrow_mut().get_mut(&id) {
            body.capture = Some(Rc::clone(&capture));
        }
        self.watch_log_limit(id, &capture);
    }

    /// Puts the limits of a job in force that its former daemon may have died before doing: it has not been let go,
    /// as far as anybody knows.
    pub(super) fn bound_again(self: &Rc<Self>, id: JobId, spec: &Spec) {
        let work = self
            .bodies
            .borrow()
            .get(&id)
            .and_then(|body| body.image.as_ref()?.tree.try_clone().ok());
        if let Err(failure) = self.bound(id, spec, work.as_ref()) {
            tracing::error!(job_id = %id, step = failure.step, "limits of a job cannot be set, it is ended");
            self.kill(id);
        }
    }

    fn watch_log_limit(self: &Rc<Self>, id: JobId, capture: &Rc<Capture>) {
        if self.host.log_limits.policy == Policy::Drop {
            return;
        }
        let (shard, capture) = (Rc::clone(self), Rc::clone(capture));
        rt::spawn(async move {
            let progress = capture.progress();
            let has_ended = async {
                while !progress.snapshot().is_ended {
                    progress.changed(progress.version()).await;
                }
            };
            if let Either::Left(()) = rt::or(capture.limit_hit(), has_ended).await {
                shard.feed(Event::LogLimit(id));
            }
        });
    }

    fn plan(
        &self,
        id: JobId,
        spec: &Spec,
        ids: IdRange,
        (has_disk, joins): (bool, usize),
    ) -> Result<OwnedFd, StartFailure> {
        let chosen = spec.limits.cores.as_ref().map(|cores| {
            let cores = cores.iter().filter_map(|core| usize::try_from(*core).ok());
            CpuMask::from_cpus(cores)
        });
        let names = spec.volumes.iter().map(|one| one.volume.as_str());
        let names: Vec<&str> = names.collect();
        let plan = Plan::new(&PlanSpec {
            user: spec.user,
            ids_base: ids.base(),
            workdir: &spec.workdir,
            work: if has_disk {
                Work::Tree
            } else {
                Work::Tmpfs {
                    bytes: spec.work_bytes,
                }
            },
            tmp_bytes: self.host.tmp_bytes,
            shm_bytes: self.host.shm_bytes,
            argv: &spec.argv,
            env: &environment(id, spec),
            cpus: chosen.as_ref().unwrap_or(&self.host.cpus),
            rlimits: &self.host.rlimits,
            has_uploads: spec.uploads.is_some(),
            joins: u16::try_from(joins).unwrap_or(u16::MAX),
            volumes: &names,
        })
        .map_err(|error| StartFailure {
            step: format!("plan: {error}"),
            errno: 0,
        })?;
        plan.seal()
            .map_err(|error| failure_io("seal the plan", &error))
    }

    /// The job's cgroups; their descriptors are open only until the job is born in them.
    async fn make_leaf(self: &Rc<Self>, id: JobId, spec: &Spec) -> Result<Leaf, StartFailure> {
        let (leaf, memory) = self
            .make_cgroups(id, &spec.limits)
            .await
            .map_err(|error| cgroup_failure(&error))?;
        self.with_body(id, |body| {
            body.has_leaf = true;
            body.has_memory_limit = spec.limits.memory_bytes.is_some();
            body.seat.clone_from(&leaf.seat);
            body.memory = memory;
        })?;
        Ok(leaf)
    }

    /// Puts the job's limits in force. Its sandbox is being made meanwhile; its command waits for the go, which
    /// comes after this.
    fn bound(&self, id: JobId, spec: &Spec, work: Option<&OwnedFd>) -> Result<(), StartFailure> {
        let seat = self.with_body(id, |body| body.seat.take())?;
        let mut devices = Vec::new();
        if spec.limits.io_bytes_per_second.is_some() {
            devices.extend_from_slice(&self.host.devices);
            if let Some(image) = work.and_then(|tree| fstat(tree).ok()) {
                devices.extend(Device::of(image.st_dev));
            }
        }
        self.host
            .cgroups
            .bound(id, seat.as_deref(), &spec.limits, &devices)
            .map_err(|error| cgroup_failure(&error))
    }

    /// The disk image for `/work`, when it is not in memory.
    async fn make_work(
        self: &Rc<Self>,
        id: JobId,
        spec: &Arc<Spec>,
        work: WorkKind,
        ids: IdRange,
    ) -> Result<Option<OwnedFd>, StartFailure> {
        if work == WorkKind::Memory {
            return Ok(None);
        }
        let host = Arc::clone(&self.host);
        let (bytes, uid, gid) = (
            spec.work_bytes,
            ids.base() + spec.user.uid,
            ids.base() + spec.user.gid,
        );
        let create = move || {
            WorkImage::create(&WorkOptions {
                base_dir: &host.base_dir,
                job: id,
                bytes,
                uid,
                gid,
            })
        };
        let image = rt::blocking("make a disk image", create)
            .await
            .map_err(|error| {
                tracing::warn!(job_id = %id, %error, "no disk image for /work");
                StartFailure {
                    step: format!("make /work: {error}"),
                    errno: 0,
                }
            })?;
        let image = image.map_err(|error| {
            tracing::warn!(job_id = %id, %error, "no disk image for /work");
            StartFailure {
                step: format!("make /work: {}", chain(&error)),
                errno: 0,
            }
        })?;
        let tree = image
            .tree
            .try_clone()
            .map_err(|error| failure_io("make /work", &error))?;
        self.with_body(id, |body| body.image = Some(image))?;
        Ok(Some(tree))
    }

    /// What a former try left, when its spawner died with the recipe unread.
    async fn undo_former(self: &Rc<Self>, id: JobId) {
        let former = self.bodies.borrow_mut().get_mut(&id).map(|body| {
            body.control = None;
            (
                body.capture.take(),
                (std::mem::take(&mut body.has_leaf), body.seat.take()),
                body.memory.take(),
                body.ids.take(),
                body.image.take(),
            )
        });
        if let Some((capture, (had_leaf, seat), memory, ids, image)) = former {
            if let Some(capture) = capture {
                let _ = capture.drain().await;
            }
            if had_leaf {
                self.remove_leaf(id, seat, memory).await;
            }
            if let Some(ids) = ids {
                self.desk.free_ids(ids);
            }
            if let Some(image) = image {
                self.discard(image).await;
            }
        }
    }

    fn with_body<R>(
        &self,
        id: JobId,
        change: impl FnOnce(&mut Body) -> R,
    ) -> Result<R, StartFailure> {
        self.bodies
            .borrow_mut()
            .get_mut(&id)
            .map(change)
            .ok_or_else(vanished)
    }

    /// Lets init start the command.
    pub(super) fn go(&self, id: JobId) {
        let control = self
            .bodies
            .borrow_mut()
            .get_mut(&id)
            .and_then(|body| body.control.take());
        if let Some(control) = control
            && let Err(errno) = send(
                control.as_raw_fd(),
                GO,
                MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT,
            )
        {
            // init is gone already; its end comes from the keeper.
            tracing::debug!(job_id = %id, %errno, "go was not taken");
        }
    }

    /// Asks init to send the command a signal.
    pub(super) fn signal(&self, id: JobId, signo: i32) {
        self.thaw(id);
        if let Some(link) = self
            .bodies
            .borrow()
            .get(&id)
            .and_then(|body| body.link.clone())
        {
            link.command(KeeperCommand::Signal { id, signo });
        }
    }

    /// Kills every process of a job.
    pub(super) fn kill(&self, id: JobId) {
        let has_leaf = |body: &Body| body.has_leaf;
        if self.bodies.borrow().get(&id).is_some_and(has_leaf) {
            self.kill_leaf(id);
        }
    }

    /// Kills every process in a job's cgroup.
    pub(super) fn kill_leaf(&self, id: JobId) {
        match self.host.cgroups.kill(id) {
            Ok(()) | Err(CgroupError::Missing(_)) => {}
            Err(error) => tracing::error!(job_id = %id, %error, "a job could not be killed"),
        }
    }
}

/// The job's environment: ours first, then the user's, later ones winning.
fn environment(id: JobId, spec: &Spec) -> Vec<Vec<u8>> {
    let user = if spec.user.uid == 0 { "root" } else { "job" };
    let mut entries: Vec<(&str, Vec<u8>)> = vec![
        (
            "PATH",
            b"/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".to_vec(),
        ),
        ("HOME", b"/work".to_vec()),
        ("USER", user.as_bytes().to_vec()),
        ("PWD", spec.workdir.clone()),
        ("LANG", b"C.UTF-8".to_vec()),
        ("JOB_ID", id.to_string().into_bytes()),
    ];
    for entry in &spec.env {
        match entries.iter_mut().find(|(name, _)| *name == entry.name) {
            Some((_, value)) => value.clone_from(&entry.value),
            None => entries.push((&entry.name, entry.value.clone())),
        }
    }
    entries
        .into_iter()
        .map(|(name, value)| [name.as_bytes(), b"=", &value].concat())
        .collect()
}

/// A pipe that the job may reopen for writing and nobody of the job for reading.
fn pipe(gid: u32) -> nix::Result<Pipe> {
    let (read, write) = pipe2(OFlag::O_CLOEXEC)?;
    fchown(&write, None, Some(Gid::from_raw(gid)))?;
    fchmod(&write, Mode::S_IRUSR | Mode::S_IWUSR | Mode::S_IWGRP)?;
    Ok(Pipe { read, write })
}

/// Our end and init's.
fn upload_socket() -> nix::Result<(OwnedFd, OwnedFd)> {
    socketpair(
        AddressFamily::Unix,
        SockType::Stream,
        None,
        SockFlag::SOCK_CLOEXEC,
    )
}

fn vanished() -> StartFailure {
    StartFailure {
        step: "job ended while it was made".to_owned(),
        errno: 0,
    }
}

fn failure(step: &str, errno: nix::Error) -> StartFailure {
    StartFailure {
        step: step.to_owned(),
        errno: errno as i32,
    }
}

fn failure_io(step: &str, error: &io::Error) -> StartFailure {
    StartFailure {
        step: step.to_owned(),
        errno: error.raw_os_error().unwrap_or(0),
    }
}

fn cgroup_failure(error: &CgroupError) -> StartFailure {
    StartFailure {
        step: format!("make the cgroup: {}", chain(error)),
        errno: 0,
    }
}
