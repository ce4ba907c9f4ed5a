//! What the guide says of the speed of both types.

use super::block::Verdict::{Cannot, Fixtures};
use super::block::{Block, Section};
use super::reader::Guide;

pub(super) const SECTION: Section = Section {
    blocks: &[&DISK_SPEED, &MEMORY_SPEED],
    test,
};

fn test(guide: &Guide) {
    guide.shell("rnx volume create perf-test --size=2GB && rnx volume create mem-cache --size=1GB --type=memory").assert_ok();
    let disk = guide.run(&DISK_SPEED);
    let text = disk.text();
    assert!(
        text.contains(" on /volumes/perf-test type ext4 "),
        "{disk:?}"
    );
    assert_eq!(
        disk.stderr.matches("1000+0 records out").count(),
        2,
        "{disk:?}"
    );
    let memory = guide.run(&MEMORY_SPEED).text();
    assert!(
        memory.contains("Write: ") && memory.contains("Read: "),
        "{memory}"
    );
}

const DISK_SPEED: Block = Block {
    verdict: Fixtures("volume perf-test"),
    text: r#"# Test write performance
rnx job run --volume=perf-test dd \
if=/dev/zero \
of=/volumes/perf-test/test.dat \
bs=1M count=1000 \
conv=fdatasync
# Test read performance
rnx job run --volume=perf-test dd \
if=/volumes/perf-test/test.dat \
of=/dev/null \
bs=1M
# Check volume mount and filesystem type
rnx job run --volume=perf-test bash -c '
mount | grep /volumes/perf-test
df -T /volumes/perf-test
'"#,
    changes: &[],
};

const MEMORY_SPEED: Block = Block {
    verdict: Cannot("the print has lost the indentation that Python needs: it is put back"),
    text: r#"# Memory volumes are much faster for I/O operations
rnx job run --volume=mem-cache --max-memory=2048 python3 -c "
import time
import os
# Write test
start = time.time()
with open('/volumes/mem-cache/test.dat', 'wb') as f:
f.write(os.urandom(500 * 1024 * 1024)) # 500MB
write_time = time.time() - start
# Read test
start = time.time()
with open('/volumes/mem-cache/test.dat', 'rb') as f:
data = f.read()
read_time = time.time() - start
print(f'Write: {500/write_time:.2f} MB/s')
print(f'Read: {500/read_time:.2f} MB/s')
""#,
    changes: &[
        (
            "f.write(os.urandom(500 * 1024 * 1024)) # 500MB",
            "    f.write(os.urandom(500 * 1024 * 1024)) # 500MB",
        ),
        ("data = f.read()", "    data = f.read()"),
    ],
};
