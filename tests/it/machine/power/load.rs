//! Jobs that are asked for until the power is cut, and a witness that their commands ran.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::thread;

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use proto_rkyv::{
    After, Job, Kind as Frame, Reply, Request, Schedule, Submit, Upload, encode, join,
};
use tokio::task::JoinSet;

use super::book::Side;
use super::{connect, keep};
use crate::harness::{Daemon, LONG, Wire, Written, ask, data, patient};

/// Where every command has a file to open; jobs see it with the host's `/usr`.
const WITNESSED: &str = "/usr/share/joblet-witness";
/// Jobs of a boot and a side, at most.
const JOBS_MAX: u64 = 400;
/// Requests of a side at a time.
const WORKERS: u64 = 3;

/// A job by its number: boot and place in it, which say what it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Order(pub(super) u64);

/// What a job does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Ends at once, and somebody waits for it.
    Short,
    /// Prints lines for some seconds.
    Lines,
    /// Sleeps for longer than the machine lives.
    Sleeping,
    /// Is scheduled for a few seconds later and prints a file that came with it.
    Soon,
    /// Is scheduled for the next day.
    Far,
}

impl Order {
    const fn new(boot: u64, place: u64) -> Self {
        Self(boot * JOBS_MAX + place)
    }

    /// The order that a job was made from.
    ///
    /// # Panics
    /// If nobody has asked for it.
    pub(super) fn of(job: &Job) -> Self {
        let number = job.name.as_deref().and_then(|name| name.strip_prefix('n'));
        Self(
            number
                .and_then(|number| number.parse().ok())
                .expect("a job of ours"),
        )
    }

    pub(super) const fn kind(self) -> Kind {
        match self.0 % 8 {
            0..4 => Kind::Short,
            4 => Kind::Lines,
            5 => Kind::Sleeping,
            6 => Kind::Soon,
            _ => Kind::Far,
        }
    }

    /// Its exit code, if it ends.
    pub(super) fn code(self) -> i32 {
        match self.kind() {
            Kind::Short | Kind::Lines => i32::try_from(self.0 / 8 % 3).expect("0 to 2"),
            Kind::Sleeping | Kind::Soon | Kind::Far => 0,
        }
    }

    /// Whether it can end by itself.
    pub(super) fn ends(self) -> bool {
        !matches!(self.kind(), Kind::Sleeping | Kind::Far)
    }

    /// All its output.
    pub(super) fn written(self) -> Written {
        let mut text = format!("begun {}\n", self.0);
        match self.kind() {
            Kind::Lines => text.extend((1..=100).map(|n| format!("line {n}\n"))),
            Kind::Soon => text += &self.uploaded(),
            Kind::Short | Kind::Sleeping => {}
            Kind::Far => text.clear(),
        }
        Written {
            stdout: text.into_bytes(),
            stderr: Vec::new(),
        }
    }

    fn uploaded(self) -> String {
        format!("what was uploaded with {}\n", self.0).repeat(50)
    }

    fn frames(self, side: Side) -> Vec<u8> {
        let begun = format!(
            "echo begun {}; : <{WITNESSED}/{}",
            self.0,
            file_name(side, self)
        );
        let script = match self.kind() {
            Kind::Short => format!("{begun}; exit {}", self.code()),
            Kind::Lines => format!(
                "{begun}; i=0; while [ $i -lt 100 ]; do i=$((i+1)); echo line $i; \
                 [ $((i % 10)) -ne 0 ] || sleep 0.2; done; exit {}",
                self.code()
            ),
            Kind::Sleeping => format!("{begun}; exec sleep 600"),
            Kind::Soon | Kind::Far => format!("{begun}; cat given"),
        };
        let ms = match self.kind() {
            Kind::Soon => Some(1_000 + self.0 % 4 * 1_000),
            Kind::Far => Some(86_400_000),
            Kind::Short | Kind::Lines | Kind::Sleeping => None,
        };
        let upload = ms.map(|_| self.uploaded());
        let submit = Submit {
            name: Some(format!("n{}", self.0)),
            schedule: ms.map(|ms| Schedule::After { ms }),
            uploads: upload.as_ref().map(|text| text.len() as u64),
            after: if self.kind() == Kind::Short {
                After::Wait
            } else {
                After::Detach
            },
            ..Submit::default()
        };
        let mut frames = encode(&Request::Submit(Box::new(submit))).unwrap().to_vec();
        frames.extend(data(Frame::Argv, &join(&["sh", "-c", &script])));
        if let Some(text) = upload {
            let file = Upload::File {
                path: b"given".to_vec(),
                mode: 0o644,
                bytes: text.len() as u64,
            };
            frames.extend_from_slice(&encode(&file).unwrap());
            frames.extend(data(Frame::File, text.as_bytes()));
            frames.extend_from_slice(&encode(&Upload::End).unwrap());
        }
        frames
    }
}

/// Asks both daemons for jobs, and says what they answer, for as long as there is power.
///
/// # Panics
/// When nobody cuts it.
pub(super) async fn until_the_power_is_cut(daemons: &[(Side, Daemon)], boot: u64) {
    let mut tasks = JoinSet::new();
    for (side, daemon) in daemons {
        let wire = connect(daemon).await;
        for worker in 0..WORKERS {
            tasks.spawn(work(*side, wire.clone(), boot, worker));
        }
    }
    let asked = async { while tasks.join_next().await.transpose().unwrap().is_some() {} };
    asked.await;
    tokio::time::sleep(patient(LONG)).await;
    panic!("nobody has cut the power");
}

async fn work(side: Side, wire: Wire, boot: u64, worker: u64) {
    for place in (0..JOBS_MAX).filter(|place| place / 8 % WORKERS == worker) {
        let order = Order::new(boot, place);
        if order.kind() == Kind::Far {
            // As the kernel does by itself now and then: else a side that never flushes keeps nothing of a short life.
            nix::unistd::sync();
        }
        let mut stream = wire
            .ask_frames(&order.frames(side))
            .await
            .expect("the daemon lives");
        loop {
            match stream.reply().await {
                Some(Reply::Accepted { id, .. }) => {
                    keep(&format!(
                        "{side} acknowledged {} {}",
                        order.0,
                        ask::name_of(id)
                    ));
                }
                Some(Reply::Ended(job)) => {
                    let code = super::exit_code(&job).expect("it ends by itself");
                    keep(&format!("{side} told {} {code}.", order.0));
                }
                Some(other) => panic!("{order:?} was answered {other:?}"),
                None => break,
            }
        }
    }
}

/// Which commands ran in this boot: a file for each, and inotify on them.
#[derive(Debug)]
pub(super) struct Witness {
    opened: Arc<Mutex<BTreeMap<String, usize>>>,
}

impl Witness {
    /// Makes the files of this boot and of all before it, whose jobs may run now, and watches them.
    pub(super) fn set_up(boots: u64) -> Self {
        fs::create_dir_all(WITNESSED).unwrap();
        for side in Side::ALL {
            for number in 0..(boots + 1) * JOBS_MAX {
                fs::File::create(Path::new(WITNESSED).join(file_name(side, Order(number))))
                    .unwrap();
            }
        }
        let inotify = Inotify::init(InitFlags::IN_CLOEXEC).unwrap();
        // With closings in between, two openings one after the other are not told as one.
        let flags = AddWatchFlags::IN_OPEN | AddWatchFlags::IN_CLOSE_NOWRITE;
        inotify.add_watch(WITNESSED, flags).unwrap();
        let opened = Arc::default();
        let shared = Arc::clone(&opened);
        thread::spawn(move || watch(&inotify, &shared));
        Self { opened }
    }

    /// How often a command ran.
    pub(super) fn runs(&self, side: Side, order: Order) -> usize {
        let opened = self.opened.lock().unwrap();
        opened.get(&file_name(side, order)).copied().unwrap_or(0)
    }
}

fn watch(inotify: &Inotify, opened: &Mutex<BTreeMap<String, usize>>) {
    loop {
        for event in inotify.read_events().unwrap() {
            assert!(
                !event.mask.contains(AddWatchFlags::IN_Q_OVERFLOW),
                "a witness who sleeps"
            );
            let Some(name) = event
                .name
                .filter(|_| event.mask.contains(AddWatchFlags::IN_OPEN))
            else {
                continue;
            };
            let name = name.into_string().unwrap();
            let (side, number) = name.split_once('-').unwrap();
            keep(&format!("{side} ran {number} ."));
            *opened.lock().unwrap().entry(name).or_default() += 1;
        }
    }
}

fn file_name(side: Side, order: Order) -> String {
    format!("{side}-{}", order.0)
}
