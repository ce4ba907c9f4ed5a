//! The instance: eight hex digits that mark every kernel object of one daemon.
//!
//! They are chosen once for a base directory and never change, so a daemon that starts again finds what is
//! its own and touches nothing else.

use std::{fmt, str::FromStr};

use uuid::Uuid;

/// The mark of one base directory.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Instance(u32);

impl Instance {
    /// A new random one.
    #[must_use]
    pub fn random() -> Self {
        let [a, b, c, d, ..] = Uuid::new_v4().into_bytes();
        Self(u32::from_be_bytes([a, b, c, d]))
    }

    /// Name of the cgroup that holds the cgroups of its jobs.
    #[must_use]
    pub fn cgroup_name(self) -> String {
        format!("joblet-{self}")
    }
}

/// Reads the eight lower-case digits, with or without the newline of a file.
impl FromStr for Instance {
    type Err = NotAnInstance;

    fn from_str(text: &str) -> Result<Self, NotAnInstance> {
        let digits = text.strip_suffix('\n').unwrap_or(text);
        if digits.len() != 8
            || !digits
                .bytes()
                .all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
        {
            return Err(NotAnInstance);
        }
        u32::from_str_radix(digits, 16)
            .map(Self)
            .map_err(|_| NotAnInstance)
    }
}

/// Text that is not eight lower-case hex digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NotAnInstance;

impl fmt::Display for Instance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08x}", self.0)
    }
}

impl fmt::Debug for Instance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn eight_digits_read_back_and_nothing_else_is_an_instance() {
        let one = Instance::random();
        assert_eq!(one.to_string().parse(), Ok(one));
        assert_eq!(
            "0000002a\n".parse::<Instance>().unwrap().cgroup_name(),
            "joblet-0000002a"
        );
        for bad in [
            "",
            "2a",
            "0000002A",
            "0000002g",
            "+000002a",
            "0000002a1",
            "0000002a\n\n",
            " 000002a",
        ] {
            assert_eq!(bad.parse::<Instance>(), Err(NotAnInstance), "{bad:?}");
        }
    }
}
