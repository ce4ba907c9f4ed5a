//! What the processes of one job have used, as their leaf counts it.

use std::{
    fs::File,
    io::{self, Read},
};

use nix::fcntl::OFlag;

use super::{CgroupError, Tree, missing};
use crate::job::{JobId, Stall, Usage};

impl Tree {
    /// What a job has used so far.
    ///
    /// # Errors
    /// [`CgroupError::Missing`], [`CgroupError::Read`].
    ///
    /// # Source
    /// Linux `Documentation/admin-guide/cgroup-v2.rst`, "cpu.stat": the times are there with and without a
    /// controller.
    pub fn usage(&self, job: JobId) -> Result<Usage, CgroupError> {
        let name = format!("{job}/cpu.stat");
        let text = self.read(&name).map_err(|source| {
            let path = self.path.join(&name);
            missing(job, CgroupError::Read { path, source })
        })?;
        let value = |key: &str| {
            text.lines()
                .find_map(|line| line.strip_prefix(key)?.trim().parse().ok())
        };
        Ok(Usage {
            cpu_user_us: value("user_usec").unwrap_or(0),
            cpu_system_us: value("system_usec").unwrap_or(0),
            ..Usage::default()
        })
    }

    /// How much of the time a job waited: for CPU, memory, I/O. `None` where the kernel does not tell.
    ///
    /// # Source
    /// Linux `Documentation/accounting/psi.rst`.
    #[must_use]
    pub fn pressure(&self, job: JobId) -> Option<[Stall; 3]> {
        let read = |what| stall(&self.read(&format!("{job}/{what}.pressure")).ok()?);
        Some([read("cpu")?, read("memory")?, read("io")?])
    }

    fn read(&self, name: &str) -> io::Result<String> {
        let mut text = String::new();
        File::from(self.open_at(name, OFlag::O_RDONLY)?).read_to_string(&mut text)?;
        Ok(text)
    }
}

/// Reads `some avg10=1.23 avg60=… avg300=… total=456`.
fn stall(text: &str) -> Option<Stall> {
    let some = text.lines().find_map(|line| line.strip_prefix("some "))?;
    let field = |key: &str| {
        some.split(' ')
            .find_map(|field| field.strip_prefix(key)?.strip_prefix('='))
    };
    let (whole, hundredths) = field("avg10")?.split_once('.')?;
    Some(Stall {
        avg10_centi: whole.parse::<u32>().ok()? * 100 + hundredths.parse::<u32>().ok()?,
        total_us: field("total")?.parse().ok()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stalls_of_some_processes_are_read() {
        let text = "some avg10=12.05 avg60=1.00 avg300=0.00 total=4567\n\
                    full avg10=1.00 avg60=0.00 avg300=0.00 total=9\n";
        let expected = Stall {
            avg10_centi: 1_205,
            total_us: 4_567,
        };
        assert_eq!(stall(text), Some(expected));
        assert_eq!(stall(""), None);
        assert_eq!(stall("some avg10=x total=1"), None);
    }
}
