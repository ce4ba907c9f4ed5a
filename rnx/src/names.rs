//! Looking up names of hosts in a program that is linked statically.
//!
//! The C library would load the modules that `/etc/nsswitch.conf` names into a program that was linked against another
//! version of it, or find none. The hosts file and DNS it has in itself, and with those alone a copy of `rnx` works on
//! any distribution, and on none. Linked with libraries, it asks whatever the host is set up to ask.

/// Has names looked up in the hosts file and in DNS, when this is a static program.
///
/// # Source
/// The GNU C Library Reference Manual, "NSS Configuration File"; `nss.h`.
pub(crate) fn use_what_is_built_in() {
    #[cfg(all(target_os = "linux", target_env = "gnu", target_feature = "crt-static"))]
    built_in::choose();
}

#[cfg(all(target_os = "linux", target_env = "gnu", target_feature = "crt-static"))]
#[expect(unsafe_code, reason = "there is no other way to tell the C library")]
mod built_in {
    use std::ffi::{c_char, c_int};

    unsafe extern "C" {
        fn __nss_configure_lookup(database: *const c_char, sources: *const c_char) -> c_int;
    }

    pub(super) fn choose() {
        // SAFETY: two C strings, and it keeps neither. It fails for want of memory only; then the file is asked.
        let _ = unsafe { __nss_configure_lookup(c"hosts".as_ptr(), c"files dns".as_ptr()) };
    }
}
