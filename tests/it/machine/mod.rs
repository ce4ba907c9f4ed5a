//! Tests for a machine of their own: they set its clock, lose its power, run below its init system. `cargo xtask vm`
//! makes such a machine; `cargo xtask test` does not know them.

/// The clock is set while jobs wait for it.
mod clock;
/// The power is cut while jobs are accepted.
mod power;
/// The unit of `packaging/` below systemd.
mod systemd;

/// The word on the kernel's command line that `tools/vm` alone writes there.
const OWN_MACHINE: &str = "joblet.machine=thrown-away";

/// Makes sure that this machine is thrown away afterwards.
///
/// # Panics
/// On every other machine: nothing was touched then.
#[track_caller]
fn own_machine() {
    let line = std::fs::read_to_string("/proc/cmdline").unwrap();
    assert!(
        line.split_whitespace().any(|word| word == OWN_MACHINE),
        "this test plays with the machine it runs on; cargo xtask vm makes one for it"
    );
}
