//! What file system a volume of some size is: pure, so that `df` shows the size that was asked for.
//!
//! ```text
//! bytes asked ──of──► block · inodes · journal · image ──arguments──► mkfs.ext4
//!
//! image = bytes asked + what the kernel holds back + super blocks, descriptors, bitmaps, inode tables, journal
//! ```
//! A file system takes its own part out of the disk it is given: 1 % of a large one, a third of a small one. So the
//! image is larger than the volume by that part, which costs the host nothing until it is written.
//!
//! mkfs.ext4 refuses a disk with fewer than 50 blocks of data, unless its only group is exactly full. A tiny volume
//! is therefore a group of the least size, most of which is a table of inodes that is never written.

/// Size of an inode, bytes.
const INODE_BYTES: u64 = 256;
/// Size of a group's descriptor, bytes.
const DESCRIPTOR_BYTES: u64 = 64;
/// Block of volumes up to [`SMALL_BYTES`]: smaller ones waste less.
const SMALL_BLOCK: u64 = 1_024;
const BLOCK: u64 = 4_096;
/// Volumes below it have small blocks.
const SMALL_BYTES: u64 = 32 << 20;
/// Volumes up to it are one group of the least size.
const TINY_BYTES: u64 = 128 << 10;
/// Blocks of the smallest group that mkfs.ext4 makes.
const TINY_GROUP: u64 = 256;
/// Data blocks without which mkfs.ext4 leaves the last group out.
const LAST_GROUP_DATA: u64 = 50;
/// The kernel keeps this part of all blocks for itself, and at most so many.
const HELD_BACK_PART: u64 = 50;
const HELD_BACK_MAX: u64 = 4_096;
/// Volumes below it have no journal: it would be an eighth of them, and checking them takes a millisecond.
const JOURNAL_FROM_BYTES: u64 = 8 << 20;
/// Up to so many bytes a volume has an inode for each block, so that bytes always run out first.
const INODE_EACH_BLOCK_BYTES: u64 = 64 << 30;
/// Beyond, one for so many bytes.
const BYTES_PER_INODE: u64 = 16 << 10;
/// Fewest inodes; eleven are the file system's own.
const INODES_MIN: u64 = 64;

/// The file system of a volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Geometry {
    /// Bytes of a block.
    pub(super) block_bytes: u64,
    /// Bytes of the whole image.
    pub(super) image_bytes: u64,
    /// Inodes, those of the file system itself included.
    pub(super) inodes: u64,
    /// Bytes of the journal; 0 for none.
    pub(super) journal_bytes: u64,
    /// Blocks of a group when it is not what the size of a block makes it.
    group_blocks: Option<u64>,
}

impl Geometry {
    /// The file system in which `bytes` bytes can be stored.
    pub(super) fn of(bytes: u64) -> Self {
        Self::with_journal(bytes, journal_bytes(bytes))
    }

    /// The same without a journal: what lies in memory does not outlive the machine.
    pub(super) fn without_journal(bytes: u64) -> Self {
        Self::with_journal(bytes, 0)
    }

    fn with_journal(bytes: u64, journal_bytes: u64) -> Self {
        if bytes <= TINY_BYTES {
            Self::tiny(bytes)
        } else {
            Self::ordinary(bytes, journal_bytes)
        }
    }

    fn tiny(bytes: u64) -> Self {
        // Super block, descriptors, two bitmaps.
        const OWN: u64 = 4;
        // Tables of inodes grow by two blocks, so the data is an even number of them: the one nearest to what makes
        // all blocks and the free ones, which are one fewer for the root directory, equally wrong.
        let data = (bytes + SMALL_BLOCK / 2 + SMALL_BLOCK) / (2 * SMALL_BLOCK) * 2;
        let table = TINY_GROUP - OWN - data;
        Self {
            block_bytes: SMALL_BLOCK,
            image_bytes: (1 + TINY_GROUP) * SMALL_BLOCK,
            inodes: table * SMALL_BLOCK / INODE_BYTES,
            journal_bytes: 0,
            group_blocks: Some(TINY_GROUP),
        }
    }

    fn ordinary(bytes: u64, journal_bytes: u64) -> Self {
        let block_bytes = if bytes < SMALL_BYTES {
            SMALL_BLOCK
        } else {
            BLOCK
        };
        let inodes = if bytes <= INODE_EACH_BLOCK_BYTES {
            bytes / block_bytes
        } else {
            (INODE_EACH_BLOCK_BYTES / block_bytes).max(bytes / BYTES_PER_INODE)
        };
        let layout = Layout {
            block_bytes,
            // And the root directory.
            data: bytes.div_ceil(block_bytes) + journal_bytes / block_bytes + 1,
            inodes: inodes.max(INODES_MIN),
        };
        let (blocks, inodes) = layout.blocks_and_inodes();
        Self {
            block_bytes,
            image_bytes: blocks * block_bytes,
            inodes,
            journal_bytes,
            group_blocks: None,
        }
    }

    /// What to tell mkfs.ext4, but for the image. Every choice is said, so that nothing of it depends on the
    /// host's `mke2fs.conf`; the root directory belongs to `owner` and `owner`'s group.
    pub(super) fn arguments(&self, owner: u32) -> Vec<String> {
        let mut features = String::from(
            "none,ext_attr,dir_index,filetype,sparse_super,large_file,huge_file,dir_nlink,extra_isize,metadata_csum",
        );
        // Of a file system with extents the kernel holds a part back, which is a third of a tiny one.
        if self.group_blocks.is_none() {
            features.push_str(",extent,64bit,flex_bg");
        }
        if self.journal_bytes > 0 {
            features.push_str(",has_journal");
        }
        let mut arguments = vec![
            "-m".to_owned(),
            "0".to_owned(),
            "-e".to_owned(),
            "remount-ro".to_owned(),
            "-b".to_owned(),
            self.block_bytes.to_string(),
            "-I".to_owned(),
            INODE_BYTES.to_string(),
            "-N".to_owned(),
            self.inodes.to_string(),
            "-O".to_owned(),
            features,
            "-E".to_owned(),
            // The image is a hole: nothing in it has to be made zero.
            format!("root_owner={owner}:{owner},nodiscard,lazy_itable_init=1,lazy_journal_init=1"),
        ];
        if let Some(blocks) = self.group_blocks {
            arguments.extend(["-g".to_owned(), blocks.to_string()]);
        } else {
            arguments.extend(["-G".to_owned(), "16".to_owned()]);
        }
        if self.journal_bytes > 0 {
            arguments.extend([
                "-J".to_owned(),
                format!("size={}", self.journal_bytes >> 20),
            ]);
        }
        arguments
    }
}

/// The smallest that mkfs.ext4 makes for the small, and enough that a large one is not held up by it.
const fn journal_bytes(bytes: u64) -> u64 {
    if bytes < JOURNAL_FROM_BYTES {
        0
    } else if bytes < SMALL_BYTES {
        1 << 20
    } else if bytes < 1 << 30 {
        4 << 20
    } else if bytes < 64 << 30 {
        16 << 20
    } else {
        32 << 20
    }
}

/// Groups of blocks and what each of them needs for itself.
struct Layout {
    block_bytes: u64,
    /// Blocks that are to be there for data, root directory and journal.
    data: u64,
    /// At least so many.
    inodes: u64,
}

impl Layout {
    fn blocks_and_inodes(&self) -> (u64, u64) {
        let mut groups = 1;
        loop {
            let per_group = self.inodes_per_group(groups);
            let own: u64 = self.own_blocks(per_group, groups);
            // The kernel holds back a part of all blocks, which are more by that part.
            let without = self.first() + own + self.data;
            let held_back = without.div_ceil(HELD_BACK_PART - 1).min(HELD_BACK_MAX);
            let least = self.least_of(per_group, groups);
            let blocks = (without + held_back).max(least);
            if blocks - self.first() <= groups * self.group() {
                return (blocks, per_group * groups);
            }
            // At least one more; by far most are counted at once.
            groups = (groups + 1).max((blocks - self.first()) / self.group());
        }
    }

    /// The first block of the first group: in front of it is room for a boot loader, if a block is no larger.
    const fn first(&self) -> u64 {
        if self.block_bytes == SMALL_BLOCK {
            1
        } else {
            0
        }
    }

    /// Blocks of a group: a bitmap of one block says which are used.
    const fn group(&self) -> u64 {
        8 * self.block_bytes
    }

    /// Inodes of each of `groups` groups: whole blocks and whole bytes of the bitmap.
    fn inodes_per_group(&self, groups: u64) -> u64 {
        let in_block = self.block_bytes / INODE_BYTES;
        self.inodes
            .div_ceil(groups)
            .next_multiple_of(in_block.max(8))
            .min(self.group())
    }

    fn own_blocks(&self, per_group: u64, groups: u64) -> u64 {
        let each = self.table_and_bitmaps(per_group) * groups;
        let copies = (0..groups).filter(|group| has_super_block(*group)).count() as u64;
        each + copies * (1 + self.descriptors(groups))
    }

    fn table_and_bitmaps(&self, per_group: u64) -> u64 {
        2 + per_group * INODE_BYTES / self.block_bytes
    }

    const fn descriptors(&self, groups: u64) -> u64 {
        (groups * DESCRIPTOR_BYTES).div_ceil(self.block_bytes)
    }

    /// Blocks below which mkfs.ext4 would leave the last of the groups out.
    fn least_of(&self, per_group: u64, groups: u64) -> u64 {
        let copy = if has_super_block(groups - 1) {
            1 + self.descriptors(groups)
        } else {
            0
        };
        let last = self.table_and_bitmaps(per_group) + copy + LAST_GROUP_DATA;
        self.first() + (groups - 1) * self.group() + last
    }
}

/// Whether a group has a copy of the super block: the first two, and powers of 3, 5 and 7.
fn has_super_block(group: u64) -> bool {
    let is_power = |base: u64| {
        let mut power = base;
        while power < group {
            power *= base;
        }
        power == group
    };
    group <= 1 || [3, 5, 7].into_iter().any(is_power)
}

#[cfg(test)]
mod tests;
