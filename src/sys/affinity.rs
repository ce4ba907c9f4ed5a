//! Which processors a process may run on.

use std::io;

use nix::errno::Errno;

/// Words of the largest mask we read: 8,192 processors, the kernel's own bound.
const WORDS: usize = 128;

/// A set of processors, as the kernel takes it: bit n of word n / 64 is processor n.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct CpuMask {
    words: Vec<u64>,
}

impl CpuMask {
    /// The processors the calling thread may run on. Read it before anything is pinned.
    ///
    /// # Errors
    /// `EINVAL` on a machine with more than 8,192 processors.
    ///
    /// # Source
    /// sched_setaffinity(2), "C library/kernel differences": the raw call returns the bytes it has written.
    pub fn of_this_thread() -> io::Result<Self> {
        let mut words = [0_u64; WORDS];
        // SAFETY: the buffer is ours and as large as said; 0 is the calling thread.
        let bytes = Errno::result(unsafe {
            libc::syscall(
                libc::SYS_sched_getaffinity,
                0,
                size_of_val(&words),
                words.as_mut_ptr(),
            )
        })?;
        let bytes = usize::try_from(bytes).unwrap_or(0);
        let used = words.iter().take(bytes / 8).copied();
        Ok(Self {
            words: used.collect(),
        }
        .trimmed())
    }

    /// A mask of these processors.
    pub fn from_cpus(cpus: impl IntoIterator<Item = usize>) -> Self {
        let mut words = Vec::new();
        for cpu in cpus {
            let word = cpu / 64;
            if words.len() <= word {
                words.resize(word + 1, 0);
            }
            words[word] |= 1 << (cpu % 64);
        }
        Self { words }
    }

    /// Its processors, ascending.
    pub fn cpus(&self) -> impl Iterator<Item = usize> + '_ {
        let bits = |(index, word): (usize, &u64)| {
            let word = *word;
            (0..64)
                .filter(move |bit| word & (1 << bit) != 0)
                .map(move |bit| index * 64 + bit)
        };
        self.words.iter().enumerate().flat_map(bits)
    }

    /// The mask as words; never longer than the highest processor needs.
    #[must_use]
    pub fn words(&self) -> &[u64] {
        &self.words
    }

    fn trimmed(mut self) -> Self {
        while self.words.last() == Some(&0) {
            self.words.pop();
        }
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mask_is_what_it_was_made_of() {
        let mask = CpuMask::from_cpus([0, 3, 64, 200]);
        assert_eq!(mask.cpus().collect::<Vec<_>>(), [0, 3, 64, 200]);
        assert_eq!(mask.words().len(), 4);
        assert!(CpuMask::of_this_thread().unwrap().cpus().count() > 0);
    }
}
