//! That mkfs.ext4 makes of every size what was computed. What the kernel then shows is in the tests of volumes.

use std::{fs::File, os::unix::fs::FileExt};

use proptest::prelude::*;
use tempfile::TempDir;

use super::*;
use crate::{
    limits::{VOLUME_BYTES_MAX, VOLUME_BYTES_MIN, VOLUME_BYTES_RANGE},
    volume::mkfs,
};

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// Makes the file system of `bytes` and compares what its super block says.
fn check(directory: &TempDir, bytes: u64) {
    let geometry = Geometry::of(bytes);
    let image = directory.path().join(bytes.to_string());
    let file = File::options()
        .read(true)
        .write(true)
        .create_new(true)
        .open(&image)
        .unwrap();
    file.set_len(geometry.image_bytes).unwrap();
    let blocks = geometry.image_bytes / geometry.block_bytes;
    let made = mkfs::make(&image, &geometry.arguments(1000), Some(blocks));
    assert!(made.is_ok(), "{bytes}: {geometry:?}: {made:?}");
    let word = |at: u64| {
        let mut word = [0; 4];
        file.read_exact_at(&mut word, 1024 + at).unwrap();
        u64::from(u32::from_le_bytes(word))
    };
    let (inodes, made_blocks, log_block) = (word(0), word(4), word(0x18));
    let said = (geometry.inodes, blocks, geometry.block_bytes);
    assert_eq!((inodes, made_blocks, 1024 << log_block), said, "{bytes}");
    let has_journal = word(0x5C) & 4 != 0;
    assert_eq!(has_journal, geometry.journal_bytes > 0, "{bytes}");
    std::fs::remove_file(image).unwrap();
}

#[test]
fn mkfs_makes_what_was_computed_on_both_sides_of_each_bound() {
    let directory = TempDir::new().unwrap();
    let group = 8 * BLOCK * BLOCK;
    for bound in [
        VOLUME_BYTES_MIN + 1,
        TINY_BYTES,
        8 * SMALL_BLOCK * SMALL_BLOCK,
        JOURNAL_FROM_BYTES,
        SMALL_BYTES,
        group,
        2 * group,
        GIB,
        INODE_EACH_BLOCK_BYTES,
    ] {
        for bytes in [bound - 1, bound, bound + 1, bound + BLOCK] {
            check(&directory, bytes);
        }
    }
}

#[test]
fn mkfs_makes_what_was_computed_of_sizes_between() {
    let directory = TempDir::new().unwrap();
    // Steps of a fifth, so that groups are full, nearly empty and all between.
    let mut bytes = VOLUME_BYTES_MIN;
    while bytes < 40 * GIB {
        check(&directory, bytes);
        bytes = bytes * 6 / 5 + 77;
    }
}

#[test]
fn the_journal_and_the_blocks_follow_the_size() {
    for (bytes, block, journal) in [
        (16 * KIB, 1024, 0),
        (50 * KIB, 1024, 0),
        (8 * MIB - 1, 1024, 0),
        (8 * MIB, 1024, MIB),
        (32 * MIB - 1, 1024, MIB),
        (32 * MIB, 4096, 4 * MIB),
        (GIB, 4096, 16 * MIB),
        (64 * GIB, 4096, 32 * MIB),
        (VOLUME_BYTES_MAX, 4096, 32 * MIB),
    ] {
        let geometry = Geometry::of(bytes);
        let found = (geometry.block_bytes, geometry.journal_bytes);
        assert_eq!(found, (block, journal), "{bytes}");
        let without = Geometry::without_journal(bytes);
        assert_eq!(without.journal_bytes, 0);
        assert!(!without.arguments(0).concat().contains("has_journal"));
    }
}

proptest! {
    #[test]
    fn an_image_is_little_larger_than_the_volume_and_files_run_out_after_bytes(
        bytes in prop_oneof![VOLUME_BYTES_RANGE, VOLUME_BYTES_MIN..=GIB, VOLUME_BYTES_MIN..=MIB],
    ) {
        let geometry = Geometry::of(bytes);
        prop_assert!(geometry.image_bytes >= bytes);
        prop_assert!(geometry.image_bytes.is_multiple_of(geometry.block_bytes));
        // Inode tables, a quarter where blocks are small; and what a tiny one is filled up with.
        prop_assert!(geometry.image_bytes <= bytes + bytes / 2 + 256 * KIB, "{:?}", geometry);
        prop_assert!(u32::try_from(geometry.inodes).is_ok());
        if bytes <= INODE_EACH_BLOCK_BYTES {
            prop_assert!((geometry.inodes + 1) * geometry.block_bytes >= bytes);
        } else {
            prop_assert!(geometry.inodes >= bytes / BYTES_PER_INODE);
        }
        prop_assert_eq!(Geometry::of(bytes), geometry);
    }
}
