//! Uploads: written below `/work` by a child that is already the user, in the job's cgroup and root.
//!
//! Paths come from a client. Each is resolved by the kernel below `/work` without following any symbolic link,
//! also one that the upload itself has made, so what lands outside cannot be written by construction.

use crate::{
    Job,
    calls::{self, Done, EINVAL, Errno},
    command,
    raw::{call, common, number},
    record::{ANSWER_BYTES, ENTRY_BYTES, PATH_BYTES_MAX, entry, fd},
};

const EIO: Errno = 5;
const EEXIST: Errno = 17;
const EPIPE: Errno = 32;
const ENAMETOOLONG: Errno = 36;
const AT_FDCWD: usize = -100_isize as usize;
const O_WRONLY: u64 = 0o1;
const O_CREAT: u64 = 0o100;
const O_TRUNC: u64 = 0o1000;
const O_CLOEXEC: u64 = 0o2_000_000;
/// These two differ between the architectures.
#[cfg(target_arch = "x86_64")]
const O_DIRECTORY: u64 = 0o200_000;
#[cfg(target_arch = "aarch64")]
const O_DIRECTORY: u64 = 0o40_000;
const O_PATH: u64 = 0o10_000_000;
const RESOLVE_NO_XDEV: u64 = 0x01;
const RESOLVE_NO_MAGICLINKS: u64 = 0x02;
const RESOLVE_NO_SYMLINKS: u64 = 0x04;
const RESOLVE_BENEATH: u64 = 0x08;
const BUFFER_BYTES: usize = 128 << 10;
/// Permission bits that an upload may set: not setuid, setgid, sticky.
const MODE_MASK: u32 = 0o777;

/// A path as the kernel takes it.
struct Path([u8; PATH_BYTES_MAX]);

#[repr(C)]
struct OpenHow {
    flags: u64,
    mode: u64,
    resolve: u64,
}

struct Header {
    kind: u8,
    mode: u32,
    path_len: usize,
    target_len: usize,
    bytes: u64,
}

/// Runs the uploader to its end.
///
/// # Errors
/// What the uploader answered, or EIO when it was killed.
pub(crate) fn run(job: &Job) -> Done {
    match calls::fork()? {
        0 => calls::exit(serve(job)),
        pid => match calls::wait_for(pid) {
            Some(ended) if ended.status == 0 => Ok(()),
            // Exited by itself: its code is an errno, all of which are below 256.
            Some(ended) if ended.status & 0x7f == 0 => Err((ended.status >> 8) & 0xff),
            _ => Err(EIO),
        },
    }
}

/// The child: becomes the user, writes, answers. Returns its exit code.
fn serve(job: &Job) -> i32 {
    let mut index = 0_u32;
    let done = become_uploader(job).and_then(|work| receive_all(work, &mut index));
    let errno = done.err().unwrap_or(0);
    let mut answer = [0_u8; ANSWER_BYTES];
    let from = errno.to_le_bytes().into_iter().chain(index.to_le_bytes());
    for (to, byte) in answer.iter_mut().zip(from) {
        *to = byte;
    }
    calls::send(fd::UPLOAD, &answer);
    errno
}

/// Gives everything up and opens `/work`.
fn become_uploader(job: &Job) -> Result<i32, Errno> {
    calls::close(fd::CONTROL);
    command::become_user(job.uid, job.gid, &mut |_| ())?;
    calls::set_umask(0); // Modes are the client's.
    let work = c"/work".as_ptr() as usize;
    let flags = (O_PATH | O_DIRECTORY | O_CLOEXEC) as usize;
    // SAFETY: a C string and numbers.
    unsafe { call(number::OPENAT, [AT_FDCWD, work, flags, 0, 0, 0]) }.map(|fd| fd as i32)
}

fn receive_all(work: i32, index: &mut u32) -> Done {
    let (mut path, mut target) = (Path([0; PATH_BYTES_MAX]), Path([0; PATH_BYTES_MAX]));
    let mut buffer = [0_u8; BUFFER_BYTES];
    loop {
        let header = receive_header()?;
        if header.kind == entry::END {
            return Ok(());
        }
        receive_path(&mut path, header.path_len)?;
        receive_path(&mut target, header.target_len)?;
        match header.kind {
            entry::DIR => make_dir(work, &mut path, header.path_len, header.mode & MODE_MASK)?,
            entry::FILE => write_file(
                work,
                &path,
                header.mode & MODE_MASK,
                header.bytes,
                &mut buffer,
            )?,
            entry::SYMLINK => make_symlink(work, &mut path, header.path_len, &target)?,
            _ => return Err(EINVAL),
        }
        *index = index.wrapping_add(1);
    }
}

fn receive_header() -> Result<Header, Errno> {
    let mut raw = [0_u8; ENTRY_BYTES];
    receive_exact(&mut raw)?;
    let word = |at: usize| {
        raw.get(at..)
            .and_then(|rest| rest.first_chunk().copied())
            .map_or(0, u32::from_le_bytes)
    };
    let bytes = raw.last_chunk().copied().map_or(0, u64::from_le_bytes);
    let [kind, ..] = raw;
    Ok(Header {
        kind,
        mode: word(4),
        path_len: word(8) as usize,
        target_len: word(12) as usize,
        bytes,
    })
}

/// Receives `len` bytes and ends them with a NUL.
fn receive_path(path: &mut Path, len: usize) -> Done {
    let bytes = path.0.get_mut(..len).ok_or(ENAMETOOLONG)?;
    receive_exact(bytes)?;
    if bytes.contains(&0) {
        return Err(EINVAL);
    }
    *path.0.get_mut(len).ok_or(ENAMETOOLONG)? = 0;
    Ok(())
}

fn receive_exact(mut buffer: &mut [u8]) -> Done {
    while !buffer.is_empty() {
        match calls::read(fd::UPLOAD, buffer)? {
            0 => return Err(EPIPE), // The daemon has given up.
            count => buffer = buffer.get_mut(count..).ok_or(EIO)?,
        }
    }
    Ok(())
}

/// Opens below `dir` and nowhere else.
fn open_beneath(dir: i32, path: *const u8, flags: u64, mode: u32) -> Result<i32, Errno> {
    let how = OpenHow {
        flags: flags | O_CLOEXEC,
        mode: u64::from(mode),
        resolve: RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS | RESOLVE_NO_XDEV,
    };
    let (at, size) = (&raw const how as usize, size_of::<OpenHow>());
    // SAFETY: `path` is a C string of the caller's, `how` lives until the call returns.
    unsafe {
        call(
            common::OPENAT2,
            [dir as usize, path as usize, at, size, 0, 0],
        )
    }
    .map(|fd| fd as i32)
}

/// Opens the directory that holds the last component, and points at that component.
fn open_parent(work: i32, path: &mut Path, len: usize) -> Result<(i32, *const u8), Errno> {
    let used = path.0.get_mut(..len).ok_or(ENAMETOOLONG)?;
    let slash = used.iter().rposition(|byte| *byte == b'/');
    let Some(at) = slash else {
        return open_beneath(work, c".".as_ptr().cast(), O_PATH | O_DIRECTORY, 0)
            .map(|dir| (dir, path.0.as_ptr()));
    };
    *used.get_mut(at).ok_or(EINVAL)? = 0;
    // "/x" has an empty parent, which is no path: an absolute one is refused like that.
    let opened = open_beneath(work, used.as_ptr(), O_PATH | O_DIRECTORY, 0);
    *used.get_mut(at).ok_or(EINVAL)? = b'/';
    let last = used
        .get(at + 1..)
        .filter(|name| !name.is_empty())
        .ok_or(EINVAL)?;
    opened.map(|dir| (dir, last.as_ptr()))
}

fn make_dir(work: i32, path: &mut Path, len: usize, mode: u32) -> Done {
    let (parent, name) = open_parent(work, path, len)?;
    // The user must be able to fill it; a second entry for it sets the mode as it is.
    let first_mode = (mode | 0o700) as usize;
    // SAFETY: a descriptor and a C string of ours.
    let made = unsafe {
        call(
            number::MKDIRAT,
            [parent as usize, name as usize, first_mode, 0, 0, 0],
        )
    };
    calls::close(parent);
    match made {
        Ok(_) => Ok(()),
        Err(EEXIST) => {
            // O_PATH would not do for fchmod.
            let dir = open_beneath(work, path.0.as_ptr(), O_DIRECTORY, 0)?;
            // SAFETY: a descriptor and a number.
            let changed =
                unsafe { call(number::FCHMOD, [dir as usize, mode as usize, 0, 0, 0, 0]) };
            calls::close(dir);
            changed.map(drop)
        }
        Err(errno) => Err(errno),
    }
}

fn make_symlink(work: i32, path: &mut Path, len: usize, target: &Path) -> Done {
    let (parent, name) = open_parent(work, path, len)?;
    // SAFETY: two C strings and a descriptor of ours.
    let made = unsafe {
        call(
            number::SYMLINKAT,
            [
                target.0.as_ptr() as usize,
                parent as usize,
                name as usize,
                0,
                0,
                0,
            ],
        )
    };
    calls::close(parent);
    made.map(drop)
}

fn write_file(work: i32, path: &Path, mode: u32, bytes: u64, buffer: &mut [u8]) -> Done {
    let file = open_beneath(work, path.0.as_ptr(), O_WRONLY | O_CREAT | O_TRUNC, mode)?;
    let done = copy(file, bytes, buffer);
    calls::close(file);
    done
}

fn copy(file: i32, mut left: u64, buffer: &mut [u8]) -> Done {
    while left > 0 {
        let want = usize::try_from(left)
            .unwrap_or(BUFFER_BYTES)
            .min(BUFFER_BYTES);
        let part = buffer.get_mut(..want).ok_or(EIO)?;
        let count = match calls::read(fd::UPLOAD, part)? {
            0 => return Err(EPIPE),
            count => count,
        };
        let mut rest = part.get(..count).ok_or(EIO)?;
        while !rest.is_empty() {
            let written = calls::write(file, rest)?;
            rest = rest.get(written..).ok_or(EIO)?;
        }
        left -= count as u64;
    }
    Ok(())
}
