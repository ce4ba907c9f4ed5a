//! What the guide says to do when something goes wrong.

use super::block::Verdict::{Cannot, Fixtures, Literal};
use super::block::{Block, Section};
use super::reader::Guide;

pub(super) const SECTION: Section = Section {
    blocks: &[
        &NOT_FOUND,
        &OUT_OF_SPACE,
        &PERMISSIONS,
        &MEMORY_FULL,
        &REMOVAL_BLOCKED,
        &DEBUG,
    ],
    test,
};

fn test(guide: &Guide) {
    let missing = guide.daemon.rnx(["job", "run", "--volume=mydata", "true"]);
    missing.assert_refused(125, "volume mydata not found");
    guide.run(&NOT_FOUND).assert_ok();
    guide
        .shell("rnx volume create full-vol --size=1MB")
        .assert_ok();
    let full = guide.daemon.rnx([
        "job",
        "run",
        "--volume=full-vol",
        "dd",
        "if=/dev/zero",
        "of=/volumes/full-vol/x",
        "bs=1M",
        "count=2",
    ]);
    assert!(full.stderr.contains("No space left on device"), "{full:?}");
    guide.run(&OUT_OF_SPACE).assert_ok();
    guide.volumes(&["data", "debug-vol"]);
    guide
        .shell("rnx volume create mem-vol --size=64MB --type=memory")
        .assert_ok();
    guide.run(&PERMISSIONS).assert_ok();
    guide.run(&MEMORY_FULL).assert_ok();
    let id = guide
        .daemon
        .submit(&["--volume=mydata"], &["sleep", "1000"]);
    let with_id = format!("JOB_ID={id}\n{}", guide.tried(&REMOVAL_BLOCKED));
    let blocked = guide.daemon.rnx(["volume", "remove", "mydata"]);
    blocked.assert_refused(5, "Volume is in use by active jobs");
    assert!(blocked.stderr.contains(&id), "which: {blocked:?}");
    guide.shell(&with_id).assert_ok();
    assert!(guide.list().iter().all(|volume| volume["name"] != "mydata"));
    let debug = guide.run(&DEBUG);
    let text = debug.text();
    for word in [
        " on /volumes/debug-vol type ext4 ",
        "Write test successful",
        "Type: ext2/ext3",
        "No volume metadata found",
    ] {
        assert!(text.contains(word), "{word}: {debug:?}");
    }
}

const NOT_FOUND: Block = Block {
    verdict: Literal,
    text: r#"# Error: "volume mydata not found"
# Check volume exists
rnx volume list
# Recreate if needed
rnx volume create mydata --size=1GB"#,
    changes: &[],
};

const OUT_OF_SPACE: Block = Block {
    verdict: Cannot("no shell in the job expands /volumes/full-vol/*: one does"),
    text: r#"# Error: "No space left on device"
# Check volume usage
rnx job run --volume=full-vol df -h /volumes/full-vol
# Create larger volume (no resize capability)
rnx volume create full-vol-v2 --size=20GB
# Migrate data
rnx job run --volume=full-vol --volume=full-vol-v2 \
cp -r /volumes/full-vol/* /volumes/full-vol-v2/
# Remove old volume
rnx volume remove full-vol"#,
    changes: &[(
        "cp -r /volumes/full-vol/* /volumes/full-vol-v2/",
        "bash -c 'cp -r /volumes/full-vol/* /volumes/full-vol-v2/'",
    )],
};

const PERMISSIONS: Block = Block {
    verdict: Fixtures("volume data"),
    text: r#"# Error: "Permission denied"
# Volumes are owned by job user
# Fix permissions within job
rnx job run --volume=data bash -c '
# Check current permissions
ls -la /volumes/data
# Fix if needed (be careful with chmod 777)
chmod -R 755 /volumes/data
'"#,
    changes: &[],
};

const MEMORY_FULL: Block = Block {
    verdict: Fixtures("memory volume mem-vol"),
    text: r#"# Memory volumes limited by available RAM and specified size
# Check system memory and volume size
rnx job run --volume=mem-vol df -h /volumes/mem-vol
# Use smaller memory volume or switch to filesystem volume
rnx volume create cache-small --size=256MB --type=memory"#,
    changes: &[],
};

const REMOVAL_BLOCKED: Block = Block {
    verdict: Fixtures("<job-id> is that of the job that runs"),
    text: r#"# Error: Volume is in use by active jobs
# List running jobs
rnx job list
# Stop jobs using the volume
rnx job stop <job-id>
# Then remove volume
rnx volume remove mydata"#,
    changes: &[("<job-id>", "$JOB_ID")],
};

const DEBUG: Block = Block {
    verdict: Fixtures("volumes debug-vol and mem-vol, of memory"),
    text: r#"# Check volume mount status
rnx job run --volume=debug-vol mount | grep volumes
# Verify volume permissions and ownership
rnx job run --volume=debug-vol ls -la /volumes/
# Test write access
rnx job run --volume=debug-vol bash -c '
touch /volumes/debug-vol/test.txt
echo "Write test successful"
rm /volumes/debug-vol/test.txt
'
# Check filesystem type (for filesystem volumes)
rnx job run --volume=debug-vol stat -f /volumes/debug-vol
# For memory volumes, verify tmpfs mount
rnx job run --volume=mem-vol mount | grep tmpfs
# Check volume metadata (stored in volume directory)
rnx job run --volume=debug-vol bash -c '
if [ -f /volumes/debug-vol/.joblet_volume_meta.json ]; then
cat /volumes/debug-vol/.joblet_volume_meta.json
else
echo "No volume metadata found"
fi
'
# Verify volume size limits
rnx job run --volume=debug-vol df -h /volumes/debug-vol"#,
    changes: &[],
};
