//! What the guide says of types, sizes and names.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::block::Verdict::Literal;
use super::block::{Block, Section};
use super::lines::RNX_LINES;
use super::reader::Guide;

pub(super) const SECTION: Section = Section {
    blocks: &[&TYPES, &SIZES, &NAMES],
    test,
};

fn test(guide: &Guide) {
    guide.run(&TYPES).assert_ok();
    guide.run(&SIZES).assert_ok();
    let names = guide.run(&NAMES);
    // The last one is no name, and what went before was made.
    names.assert_code(2);
    assert_eq!(
        names.stderr.matches("error: volume name").count(),
        3,
        "{names:?}"
    );
    assert_eq!(guide.list().len(), 3 + 5 + 3);
}

#[test]
fn every_size_of_the_guide_is_there_at_once_and_is_what_df_shows() {
    let Some(guide) = Guide::open() else { return };
    let of_kind = |kind: &str| {
        let volumes = RNX_LINES.iter().filter_map(|line| created(line));
        let sizes = volumes.filter(|(_, of)| *of == kind).map(|(size, _)| size);
        sizes.collect::<BTreeSet<&str>>()
    };
    let (disk, memory) = (of_kind("filesystem"), of_kind("memory"));
    // A terabyte and fifty kilobytes are among them.
    assert!(disk.contains("1TB") && disk.contains("50KB"), "{disk:?}");
    // Those of memory also on disk: all at once are more memory than a small host has.
    for size in disk.union(&memory) {
        let name = format!("disk-{size}");
        guide
            .shell(&format!("rnx volume create {name} --size={size}"))
            .assert_ok();
    }
    for volume in guide.list() {
        guide.holds_its_size_and_nothing(&volume);
    }
    let large = allocated(&guide.daemon.base.join("volumes/disk-1TB"));
    assert!(large <= 64 << 20, "an empty terabyte takes {large} bytes");
    for size in memory {
        let create = format!("rnx volume create memory --size={size} --type=memory");
        guide.shell(&create).assert_ok();
        let inspect = guide.daemon.rnx(["volume", "inspect", "memory", "--json"]);
        guide.holds_its_size_and_nothing(&inspect.json());
        guide.shell("rnx volume remove memory").assert_ok();
    }
}

/// Size and type of the volume that a line creates.
fn created(line: &'static str) -> Option<(&'static str, &'static str)> {
    let words = line.strip_prefix("rnx volume create ")?.split(' ');
    let value = |flag: &str| words.clone().find_map(|word| word.strip_prefix(flag));
    let size = value("--size=").expect("the guide never leaves it out");
    Some((size, value("--type=").unwrap_or("filesystem")))
}

impl Guide {
    /// A fresh volume: `df` shows its size, and `ls` nothing.
    fn holds_its_size_and_nothing(&self, volume: &serde_json::Value) {
        let name = volume["name"].as_str().unwrap();
        let bytes = volume["size_bytes"].as_u64().unwrap();
        let script =
            format!("df -B1 --output=size /volumes/{name} | tail -1; ls -A /volumes/{name}");
        let shown = self.job_text(&script, name);
        let total: u64 = shown.trim().parse().unwrap();
        assert!(
            total.abs_diff(bytes) <= bytes / 10,
            "df of {name} shows {total} of {bytes}"
        );
    }
}

/// Bytes that the files in a directory take of the host.
fn allocated(dir: &Path) -> u64 {
    let entries = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap());
    entries
        .filter_map(|entry| entry.metadata().ok())
        .filter(|meta| meta.is_file())
        .map(|meta| meta.blocks() * 512)
        .sum()
}

const TYPES: Block = Block {
    verdict: Literal,
    text: r#"# Create 1GB filesystem volume
rnx volume create mydata --size=1GB --type=filesystem
# Create 512MB memory volume
rnx volume create cache --size=512MB --type=memory
# Default type is filesystem
rnx volume create storage --size=5GB"#,
    changes: &[],
};

const SIZES: Block = Block {
    verdict: Literal,
    text: r#"# Supported size units
rnx volume create small --size=100MB # Megabytes
rnx volume create medium --size=5GB # Gigabytes
rnx volume create large --size=1TB # Terabytes
rnx volume create tiny --size=50KB # Kilobytes
# Precise sizes in bytes
rnx volume create exact --size=1073741824 # Bytes (1GB)"#,
    changes: &[],
};

const NAMES: Block = Block {
    verdict: Literal,
    text: r#"# Valid names
rnx volume create user-data --size=1GB
rnx volume create app_cache_v2 --size=500MB
rnx volume create Dataset2024 --size=10GB
# Invalid names (will fail)
rnx volume create 123data --size=1GB # Starts with number
rnx volume create my.data --size=1GB # Contains period
rnx volume create "my data" --size=1GB # Contains space"#,
    changes: &[],
};
