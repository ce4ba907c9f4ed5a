//! Loop devices: a file as a block device.

use std::{
    fs::File,
    io,
    os::fd::{AsRawFd, BorrowedFd, OwnedFd},
    path::PathBuf,
};

/// LOOP_CONFIGURE of linux/loop.h (5.8).
const LOOP_CONFIGURE: libc::Ioctl = 0x4C0A;
const LOOP_CLR_FD: libc::Ioctl = 0x4C01;
const LOOP_CTL_GET_FREE: libc::Ioctl = 0x4C82;
/// The device is detached when its last user closes it.
const LO_FLAGS_AUTOCLEAR: u32 = 4;
/// Bypass the page cache of the backing file, where its file system can; otherwise the kernel ignores it.
const LO_FLAGS_DIRECT_IO: u32 = 16;

/// struct loop_info64.
#[repr(C)]
struct LoopInfo {
    device: u64,
    inode: u64,
    rdevice: u64,
    offset: u64,
    size_limit: u64,
    number: u32,
    encrypt_type: u32,
    encrypt_key_size: u32,
    flags: u32,
    file_name: [u8; 64],
    crypt_name: [u8; 64],
    encrypt_key: [u8; 32],
    init: [u64; 2],
}

/// struct loop_config.
#[repr(C)]
struct LoopConfig {
    fd: u32,
    block_size: u32,
    info: LoopInfo,
    reserved: [u64; 8],
}

const _: () = assert!(size_of::<LoopInfo>() == 232 && size_of::<LoopConfig>() == 304);

/// How often another process may take the free device we were told of before we give up.
const ATTEMPTS_MAX: usize = 64;

/// A loop device in use. It is detached when this and every mount of it is gone.
#[derive(Debug)]
pub struct LoopDevice {
    /// The open device.
    pub device: OwnedFd,
    /// Its node, `/dev/loopN`.
    pub path: PathBuf,
}

/// Makes `backing` a block device with blocks of `block_bytes`, auto-cleared and with direct I/O.
///
/// # Errors
/// What opening `/dev/loop-control`, its node or LOOP_CONFIGURE says; `EBUSY` when others always came
/// first.
///
/// # Source
/// loop(4).
pub fn attach(backing: BorrowedFd<'_>, block_bytes: u32) -> io::Result<LoopDevice> {
    let control = File::options().read(true).write(true).open("/dev/loop-control")?;
    for _ in 0..ATTEMPTS_MAX {
        // SAFETY: LOOP_CTL_GET_FREE takes no argument.
        let number = unsafe { libc::ioctl(control.as_raw_fd(), LOOP_CTL_GET_FREE) };
        if number < 0 {
            return Err(io::Error::last_os_error());
        }
        let path = PathBuf::from(format!("/dev/loop{number}"));
        let device = OwnedFd::from(File::options().read(true).write(true).open(&path)?);
        match configure(&device, backing, block_bytes) {
            Ok(()) => return Ok(LoopDevice { device, path }),
            // Somebody else took it between the two calls.
            Err(taken) if taken.raw_os_error() == Some(libc::EBUSY) => {}
            Err(other) => return Err(other),
        }
    }
    Err(io::Error::from_raw_os_error(libc::EBUSY))
}

fn configure(device: &OwnedFd, backing: BorrowedFd<'_>, block_bytes: u32) -> io::Result<()> {
    // SAFETY: all-zero bytes are a valid loop_config: integers only.
    let mut config: LoopConfig = unsafe { std::mem::zeroed() };
    config.fd = backing.as_raw_fd().unsigned_abs();
    config.block_size = block_bytes;
    config.info.flags = LO_FLAGS_AUTOCLEAR | LO_FLAGS_DIRECT_IO;
    // SAFETY: both descriptors are open and the configuration lives through the call.
    match unsafe { libc::ioctl(device.as_raw_fd(), LOOP_CONFIGURE, &raw const config) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Detaches the device, at once or, while somebody uses it, when the last user is gone. One that is
/// detached already is no error.
///
/// # Errors
/// What LOOP_CLR_FD says.
///
/// # Source
/// loop(4).
pub fn detach(device: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: LOOP_CLR_FD takes no argument.
    match unsafe { libc::ioctl(device.as_raw_fd(), LOOP_CLR_FD, 0) } {
        0 => Ok(()),
        _ => match io::Error::last_os_error() {
            free if free.raw_os_error() == Some(libc::ENXIO) => Ok(()),
            other => Err(other),
        },
    }
}
