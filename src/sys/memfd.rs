//! Files in memory whose contents can never change again.

use std::{
    ffi::CStr,
    fs::{File, Permissions},
    io::{self, Write},
    os::{fd::OwnedFd, unix::fs::PermissionsExt},
};

use nix::{
    errno::Errno,
    fcntl::{FcntlArg, SealFlag, fcntl},
    sys::memfd::{MFdFlags, memfd_create},
};

/// A close-on-exec memory file with these contents, sealed against every change of them.
///
/// # Errors
/// `ENOMEM` or `EMFILE`.
///
/// # Source
/// memfd_create(2), "File sealing".
pub fn sealed(name: &CStr, contents: &[u8]) -> io::Result<OwnedFd> {
    let mut file = File::from(memfd_create(
        name,
        MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING,
    )?);
    file.write_all(contents)?;
    seal(&file)?;
    Ok(file.into())
}

/// The same, to be executed but never read: a process that runs it is not dumpable, so its own user can neither
/// trace it nor look into it.
///
/// # Errors
/// As [`sealed`]; `EACCES` where `vm.memfd_noexec` forbids executable memory files.
///
/// # Source
/// execve(2): a program without read permission; proc(5), "/proc/sys/fs/suid_dumpable".
pub fn sealed_executable(name: &CStr, contents: &[u8]) -> io::Result<OwnedFd> {
    let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
    // MFD_EXEC is Linux 6.3 and refused before; without it the file is executable anyway, unless the sysctl says no.
    let executable = MFdFlags::from_bits_retain(flags.bits() | libc::MFD_EXEC);
    let made = match memfd_create(name, executable) {
        Err(Errno::EINVAL) => memfd_create(name, flags),
        made => made,
    }?;
    let mut file = File::from(made);
    file.write_all(contents)?;
    file.set_permissions(Permissions::from_mode(0o111))?;
    seal(&file)?;
    Ok(file.into())
}

fn seal(file: &File) -> io::Result<()> {
    let seals = SealFlag::F_SEAL_SEAL
        | SealFlag::F_SEAL_SHRINK
        | SealFlag::F_SEAL_GROW
        | SealFlag::F_SEAL_WRITE;
    fcntl(file, FcntlArg::F_ADD_SEALS(seals))?;
    Ok(())
}
