//! What the guide says of listing, watching and removing volumes.

use super::block::Verdict::{Cannot, Fixtures};
use super::block::{Block, Section};
use super::reader::Guide;

pub(super) const SECTION: Section = Section {
    blocks: &[&LIST, &USAGE, &REMOVE],
    test,
};

fn test(guide: &Guide) {
    guide.shell("rnx volume create mydata --size=1GB && rnx volume create cache --size=512MB --type=memory").assert_ok();
    guide.volumes(&["logs"]);
    let listed = guide.run(&LIST);
    let text = listed.text();
    let mut lines = text.lines();
    let words = |line: &str| {
        line.split_whitespace()
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    assert_eq!(
        words(lines.next().unwrap()),
        ["NAME", "SIZE", "TYPE", "CREATED"]
    );
    let rows: Vec<_> = lines.by_ref().take(3).map(words).collect();
    for (name, size, kind) in [
        ("cache", "512MB", "memory"),
        ("mydata", "1GB", "filesystem"),
    ] {
        let row = rows.iter().find(|row| row[0] == name).unwrap();
        assert_eq!(row[1..3], [size, kind]);
        // 2025-08-03 10:00:00
        assert_eq!(
            (row.len(), row[3].len(), row[4].len()),
            (5, 10, 8),
            "{row:?}"
        );
    }
    let json: serde_json::Value = serde_json::from_str(lines.next().unwrap()).unwrap();
    assert_eq!(json["volumes"].as_array().unwrap().len(), 3);
    guide.job(
        "mkdir /volumes/mydata/d; truncate -s 200M /volumes/logs/large.log",
        "mydata,logs",
        "",
    );
    let usage = guide.run(&USAGE);
    let text = usage.text();
    assert!(
        text.contains("/volumes/mydata") && text.contains("large.log"),
        "{usage:?}"
    );
    guide.run(&REMOVE).assert_ok();
    assert!(guide.list().iter().all(|volume| volume["name"] != "mydata"));
}

const LIST: Block = Block {
    verdict: Fixtures("volumes mydata, cache and logs"),
    text: r#"# List all volumes
rnx volume list
# Output format:
# NAME SIZE TYPE CREATED
# mydata 1GB filesystem 2025-08-03 10:00:00
# cache 512MB memory 2025-08-03 10:05:00
# JSON output
rnx volume list --json"#,
    changes: &[],
};

const USAGE: Block = Block {
    verdict: Cannot("no shell in the job expands /volumes/mydata/*: one does"),
    text: r#"# Check space usage in filesystem volume
rnx job run --volume=mydata df -h /volumes/mydata
# Detailed usage
rnx job run --volume=mydata du -sh /volumes/mydata/*
# Find large files
rnx job run --volume=logs \
find /volumes/logs -type f -size +100M -exec ls -lh {} \;"#,
    changes: &[(
        "rnx job run --volume=mydata du -sh /volumes/mydata/*",
        "rnx job run --volume=mydata bash -c 'du -sh /volumes/mydata/*'",
    )],
};

const REMOVE: Block = Block {
    verdict: Fixtures("volume mydata"),
    text: r#"# Remove single volume
rnx volume remove mydata
# Note: Volume must not be in use by any active jobs
# If removal fails due to active jobs, stop the jobs first"#,
    changes: &[],
};
