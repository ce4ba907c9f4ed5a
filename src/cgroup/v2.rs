//! Version 2: limits are files of the leaf itself.

use super::{
    Backend, CgroupError, Controller, Device, Enforcement,
    dir::{Dir, value_of},
};
use crate::job::{Limits, Usage};

/// Period of the CPU limit, microseconds: the kernel's default.
pub(super) const CPU_PERIOD_US: u64 = 100_000;
/// CPU time of one percent in a period, microseconds.
const CPU_PERCENT_US: u64 = CPU_PERIOD_US / 100;
/// Major number of loop devices: what they carry is counted once more on the disk below.
pub(super) const LOOP_MAJOR: u32 = 7;

/// The controllers of cgroup2 that leaves have.
#[derive(Debug, Default)]
pub(super) struct V2 {
    controllers: Vec<Controller>,
}

impl V2 {
    /// What a leaf of `tree` has, told by one that exists.
    pub(super) fn of(tree: &Dir, leaf: &str) -> Self {
        let file = |controller| match controller {
            Controller::Cpu => "cpu.max",
            Controller::Memory => "memory.max",
            Controller::Io => "io.max",
            Controller::Pids => "pids.max",
            Controller::Cpuset => "cpuset.cpus",
        };
        let has = |controller: &Controller| tree.has(&format!("{leaf}/{}", file(*controller)));
        Self {
            controllers: Controller::ALL.into_iter().filter(has).collect(),
        }
    }
}

/// `cpu.max` and its likes count in microseconds of a period.
pub(super) fn quota_us(percent: u32) -> u64 {
    u64::from(percent) * CPU_PERCENT_US
}

/// Cores as the kernel reads them: `0,2,3`.
pub(super) fn core_list(cores: &[u32]) -> String {
    let numbers: Vec<String> = cores.iter().map(u32::to_string).collect();
    numbers.join(",")
}

impl Backend for V2 {
    fn enforcement(&self, controller: Controller) -> Option<Enforcement> {
        self.controllers
            .contains(&controller)
            .then(|| Enforcement::Full {
                mechanism: format!("cgroup v2 {}", controller.v2_name()),
            })
    }

    fn limit(
        &self,
        tree: &Dir,
        leaf: &str,
        limits: &Limits,
        devices: &[Device],
    ) -> Result<(), CgroupError> {
        let write = |file: &str, text: &str| tree.write(&format!("{leaf}/{file}"), text);
        for controller in &self.controllers {
            match controller {
                Controller::Cpu => {
                    if let Some(percent) = limits.cpu_percent {
                        let quota = quota_us(percent);
                        write("cpu.max", &format!("{quota} {CPU_PERIOD_US}"))?;
                    }
                }
                Controller::Memory => {
                    // One process that goes takes the job along: half a job is nobody's.
                    write("memory.oom.group", "1")?;
                    if let Some(bytes) = limits.memory_bytes {
                        write("memory.max", &bytes.to_string())?;
                        if tree.has(&format!("{leaf}/memory.swap.max")) {
                            write("memory.swap.max", "0")?;
                        }
                    }
                }
                Controller::Io => {
                    let rate = limits.io_bytes_per_second;
                    for (Device { major, minor }, rate) in
                        devices.iter().filter_map(|device| Some((device, rate?)))
                    {
                        write(
                            "io.max",
                            &format!("{major}:{minor} rbps={rate} wbps={rate}"),
                        )?;
                    }
                }
                Controller::Pids => {
                    if let Some(most) = limits.pids {
                        write("pids.max", &most.to_string())?;
                    }
                }
                Controller::Cpuset => {
                    if let Some(cores) = &limits.cores {
                        write("cpuset.cpus", &core_list(cores))?;
                    }
                }
            }
        }
        Ok(())
    }

    fn account(&self, tree: &Dir, leaf: &str, usage: &mut Usage) {
        let number = |file: &str| tree.number(&format!("{leaf}/{file}"));
        let read = |file: &str| tree.read(&format!("{leaf}/{file}")).ok();
        for controller in &self.controllers {
            match controller {
                Controller::Cpu => {
                    usage.throttled_us =
                        read("cpu.stat").and_then(|text| value_of(&text, "throttled_usec"));
                }
                Controller::Memory => {
                    usage.memory_peak_bytes = number("memory.peak");
                    usage.oom_kills =
                        read("memory.events").and_then(|text| value_of(&text, "oom_kill"));
                }
                Controller::Io => {
                    if let Some(text) = read("io.stat") {
                        let (read, written) = io_totals(&text);
                        usage.io_read_bytes = Some(read);
                        usage.io_write_bytes = Some(written);
                    }
                }
                Controller::Pids => {
                    usage.pids_peak = number("pids.peak");
                    usage.pids_refused =
                        read("pids.events").and_then(|text| value_of(&text, "max"));
                }
                Controller::Cpuset => {}
            }
        }
    }

    fn account_now(&self, tree: &Dir, leaf: &str, usage: &mut Usage) {
        let number = |file: &str| tree.number(&format!("{leaf}/{file}"));
        for controller in &self.controllers {
            match controller {
                Controller::Memory => usage.memory_bytes = number("memory.current"),
                Controller::Pids => usage.pids = number("pids.current"),
                Controller::Cpu | Controller::Io | Controller::Cpuset => {}
            }
        }
    }
}

/// Bytes read and written, from lines `8:0 rbytes=1 wbytes=2 …`.
fn io_totals(text: &str) -> (u64, u64) {
    let mut totals = (0, 0);
    for line in text.lines() {
        let mut words = line.split(' ');
        let major = words.next().and_then(|device| device.split(':').next());
        if major.and_then(|major| major.parse().ok()) == Some(LOOP_MAJOR) {
            continue;
        }
        for (key, value) in words.filter_map(|word| word.split_once('=')) {
            let value: u64 = value.parse().unwrap_or(0);
            match key {
                "rbytes" => totals.0 += value,
                "wbytes" => totals.1 += value,
                _ => {}
            }
        }
    }
    totals
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_of_loop_devices_are_not_counted_twice() {
        let text = "254:0 rbytes=10 wbytes=20 rios=1 wios=1\n7:3 rbytes=5 wbytes=5\n8:0\n\
                    8:16 rbytes=1 wbytes=2 dbytes=9\n";
        assert_eq!(io_totals(text), (11, 22));
    }

    #[test]
    fn numbers_are_written_as_the_kernel_reads_them() {
        assert_eq!(quota_us(50), 50_000);
        assert_eq!(quota_us(10_000), 10_000_000);
        assert_eq!(core_list(&[0, 2, 3]), "0,2,3");
    }
}
