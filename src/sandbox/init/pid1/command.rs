//! Starting the command: a child that shares our memory, becomes the user, gives everything up and executes.
//!
//! We are suspended until it has executed or failed, so its report is two numbers on our stack.

use core::{
    ffi::{c_char, c_void},
    mem::MaybeUninit,
    slice,
};

use crate::{
    Job,
    calls::{self, Done, Errno},
    memory::strlen,
    raw::{CloneArguments, clone_into},
    record::{PATH_BYTES_MAX, step},
};

const CLONE_VM: u64 = 0x100;
const CLONE_VFORK: u64 = 0x4000;
/// Enough for the path buffer and the calls; PID 1 needs no guard because nothing recurses.
const STACK_BYTES: usize = 16 << 10;
const ENOENT: Errno = 2;
const EINTR: Errno = 4;
const EACCES: Errno = 13;
const ENODEV: Errno = 19;
const ENOTDIR: Errno = 20;
const ENAMETOOLONG: Errno = 36;
const ESTALE: Errno = 116;
const ETIMEDOUT: Errno = 110;

/// What `execvp` searches when the environment has no PATH.
const PATH_DEFAULT: &[u8] = b"/bin:/usr/bin";

#[repr(C, align(16))]
struct Stack(MaybeUninit<[u8; STACK_BYTES]>);

struct Child<'a> {
    job: &'a Job,
    step: u8,
    errno: Errno,
}

/// Starts the command and returns its pid once it has passed execve.
///
/// # Errors
/// The step that failed and why; the child has been reaped.
pub(crate) fn start(job: &Job) -> Result<i32, (u8, Errno)> {
    let mut stack = Stack(MaybeUninit::uninit());
    let mut child = Child {
        job,
        step: step::CLONE,
        errno: 0,
    };
    let at = &raw mut child;
    let arguments = CloneArguments {
        flags: CLONE_VM | CLONE_VFORK,
        exit_signal: u64::from(calls::SIGCHLD),
        stack: &raw mut stack as u64,
        stack_size: STACK_BYTES as u64,
        ..CloneArguments::default()
    };
    // SAFETY: the stack is ours and lives until the call returns, which with CLONE_VFORK is after the child
    // has stopped using it; `become_command` expects a `Child`.
    let pid = unsafe { clone_into(&arguments, become_command, at.cast()) };
    // SAFETY: the child has executed or ended, so nobody else writes; volatile because it wrote meanwhile.
    let (step, errno) = unsafe {
        (
            (&raw const (*at).step).read_volatile(),
            (&raw const (*at).errno).read_volatile(),
        )
    };
    match pid {
        Err(errno) => Err((step::CLONE, errno)),
        Ok(pid) if errno == 0 && step == step::EXECUTE => Ok(pid as i32),
        Ok(pid) => {
            calls::wait_for(pid as i32);
            // Killed from outside before it could say why.
            Err((step, if errno == 0 { EINTR } else { errno }))
        }
    }
}

unsafe extern "C" fn become_command(argument: *mut c_void) -> ! {
    let child = argument.cast::<Child<'_>>();
    // SAFETY: `start` passes a `Child` and is suspended.
    let child = unsafe { &mut *child };
    let errno = prepare(child).err().unwrap_or_else(|| {
        child.step = step::EXECUTE;
        // SAFETY: the job's arguments and environment are the kernel's own blocks.
        unsafe { search_and_execute(child.job) }
    });
    // SAFETY: ours, see above; volatile because the reader is another process.
    unsafe { (&raw mut child.errno).write_volatile(errno) };
    calls::exit(127)
}

/// Everything that execve would inherit, in the order in which the right to do it goes away.
fn prepare(child: &mut Child<'_>) -> Done {
    let (uid, gid, workdir) = (child.job.uid, child.job.gid, child.job.workdir);
    let mut at = |step| child.step = step;
    at(step::SESSION);
    calls::set_session()?;
    become_user(uid, gid, &mut at)?;
    at(step::KEYRING); // As the user, so that its keys count for the user.
    calls::join_new_keyring()?;
    at(step::WORKDIR); // As the user: what it may not enter, it does not start in.
    // SAFETY: an argument of ours, from the kernel's block.
    unsafe { calls::change_dir(workdir) }?;
    at(step::DESCRIPTORS);
    calls::close_range(3, u32::MAX)?;
    at(step::SIGNALS); // Dispositions are the default: we have set none. From here on signals arrive.
    calls::set_signal_mask(0);
    Ok(())
}

/// Becomes a user without any capability in any set, for good. `set_step` is told before each call.
pub(crate) fn become_user(uid: u32, gid: u32, set_step: &mut dyn FnMut(u8)) -> Done {
    set_step(step::GROUPS);
    calls::clear_groups()?;
    set_step(step::GID);
    calls::set_gid(gid)?;
    set_step(step::BOUNDING); // Or uid 0 would get all of it back at execve.
    calls::clear_bounding()?;
    set_step(step::UID);
    calls::set_uid(uid)?;
    set_step(step::CAPABILITIES); // Leaving uid 65534 takes none away, entering 0 gives none: do it by hand.
    calls::clear_capabilities()?;
    set_step(step::NO_NEW_PRIVILEGES);
    calls::set_no_new_privileges()
}

/// As execvp(3), without its fallback to a shell. Returns the errno that says most.
unsafe fn search_and_execute(job: &Job) -> Errno {
    // SAFETY: at least one argument, a C string.
    let (first, name) = unsafe { (*job.argv, bytes_of(*job.argv)) };
    if name.is_empty() {
        return ENOENT;
    }
    if name.contains(&b'/') {
        // SAFETY: the kernel's blocks.
        return unsafe { calls::execute(first, job.argv, job.envp) };
    }
    // SAFETY: the kernel's block.
    let search = unsafe { find_path(job.envp) }.unwrap_or(PATH_DEFAULT);
    let mut buffer = [0_u8; PATH_BYTES_MAX];
    let mut answer = ENOENT;
    for dir in search.split(|byte| *byte == b':') {
        // An empty element is the working directory.
        let slash: &[u8] = if dir.is_empty() { b"" } else { b"/" };
        let path = dir.iter().chain(slash).chain(name).chain(&[0]);
        if dir.len() + slash.len() + name.len() >= buffer.len() {
            answer = if answer == ENOENT {
                ENAMETOOLONG
            } else {
                answer
            };
            continue;
        }
        for (to, from) in buffer.iter_mut().zip(path) {
            *to = *from;
        }
        // SAFETY: `buffer` holds a NUL within its bounds; the kernel's blocks.
        match unsafe { calls::execute(buffer.as_ptr().cast(), job.argv, job.envp) } {
            ENOENT | ENOTDIR | ESTALE | ENODEV | ETIMEDOUT => {}
            EACCES => answer = EACCES, // There is one; a later directory may have a better one.
            errno => return errno,
        }
    }
    answer
}

/// The value of PATH.
unsafe fn find_path<'a>(envp: *const *const c_char) -> Option<&'a [u8]> {
    let mut at = envp;
    loop {
        // SAFETY: NULL-terminated, and we stop there.
        let variable = unsafe { *at };
        if variable.is_null() {
            return None;
        }
        // SAFETY: a C string from the kernel's block, which lives as long as we do.
        if let Some(value) = unsafe { bytes_of(variable) }.strip_prefix(b"PATH=") {
            return Some(value);
        }
        // SAFETY: not at the NULL yet.
        at = unsafe { at.add(1) };
    }
}

/// A C string without its NUL.
unsafe fn bytes_of<'a>(text: *const c_char) -> &'a [u8] {
    let text = text.cast::<u8>();
    // SAFETY: a C string, see the callers.
    let len = unsafe { strlen(text) };
    // SAFETY: just measured.
    unsafe { slice::from_raw_parts(text, len) }
}
