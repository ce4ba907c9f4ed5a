//! What the guide says of isolation, and of jobs that share a volume.

use super::block::Verdict::{Cannot, Fixtures, Literal};
use super::block::{Block, Section};
use super::reader::Guide;

pub(super) const SECTION: Section = Section {
    blocks: &[&ISOLATION, &SHARING, &SAFE_PATTERNS, &UNSAFE_PATTERNS],
    test,
};

fn test(guide: &Guide) {
    let isolated = guide.run(&ISOLATION);
    assert_eq!(isolated.text_of_jobs(), "data-for-job-a\ndata-for-job-b\n");
    let shared = guide.run(&SHARING);
    assert_eq!(
        shared.text_of_jobs(),
        "written by job A\nwritten by job A\nmodified by job B\n"
    );
    guide.volumes(&["pipeline-data", "logs", "shared"]);
    guide.file(
        "producer.py",
        "#!/usr/bin/python3\nopen('/volumes/pipeline-data/x', 'w').write('made')\n",
    );
    guide.file(
        "consumer.py",
        "#!/usr/bin/python3\nprint(open('/volumes/pipeline-data/x').read())\n",
    );
    let patterns = guide.run(&SAFE_PATTERNS);
    assert_eq!(patterns.text(), "made\n", "{patterns:?}");
    guide.job(
        "cat /volumes/shared-data/worker-1/result.txt",
        "shared-data",
        "output\n",
    );
    guide.job(
        "cat /volumes/shared-data/shared-file.txt",
        "shared-data",
        "update\n",
    );
    guide.job(
        "grep -c 'Job started' /volumes/logs/activity.log",
        "logs",
        "1\n",
    );
    let unsafe_ones = format!(
        "echo 1 > /volumes/shared/counter.txt\n{}",
        guide.tried(&UNSAFE_PATTERNS)
    );
    guide.job(&unsafe_ones, "shared", "");
    guide.job("cat /volumes/shared/counter.txt", "shared", "2\n");
}

const ISOLATION: Block = Block {
    verdict: Literal,
    text: r#"# Create two separate volumes
rnx volume create data-for-job-a --size=1GB
rnx volume create data-for-job-b --size=1GB
# Job A can only see volume-a
rnx job run --volume=data-for-job-a ls /volumes/
# Output: data-for-job-a
# Job B can only see volume-b
rnx job run --volume=data-for-job-b ls /volumes/
# Output: data-for-job-b
# Job A cannot access Job B's volume - it simply doesn't exist in Job A's filesystem"#,
    changes: &[],
};

const SHARING: Block = Block {
    verdict: Literal,
    text: r#"# Create a shared volume
rnx volume create shared-data --size=1GB
# Job A writes a file
rnx job run --volume=shared-data bash -c '
echo "written by job A" > /volumes/shared-data/message.txt
'
# Job B can immediately read the file
rnx job run --volume=shared-data cat /volumes/shared-data/message.txt
# Output: written by job A
# Job B modifies the file
rnx job run --volume=shared-data bash -c '
echo "modified by job B" >> /volumes/shared-data/message.txt
'
# Job A sees the modification
rnx job run --volume=shared-data cat /volumes/shared-data/message.txt
# Output:
# written by job A
# modified by job B"#,
    changes: &[],
};

const SAFE_PATTERNS: Block = Block {
    verdict: Cannot(
        "producer.py and consumer.py are in no job: they are uploaded and called where they lie",
    ),
    text: r#"# Pattern 1: Sequential jobs (no conflict)
# Job A runs first, Job B runs after A completes
rnx job run --volume=pipeline-data producer.py
# Wait for completion...
rnx job run --volume=pipeline-data consumer.py
# Pattern 2: Separate directories per job
rnx job run --volume=shared-data --env=JOB_NAME=worker-1 bash -c '
mkdir -p /volumes/shared-data/$JOB_NAME
# Write only to own directory
echo "output" > /volumes/shared-data/$JOB_NAME/result.txt
'
# Pattern 3: Append-only logs (generally safe)
rnx job run --volume=logs bash -c '
echo "$(date) - Job started" >> /volumes/logs/activity.log
'
# Pattern 4: File-based locking (when needed)
rnx job run --volume=shared-data bash -c '
(
flock -x 200 # Acquire exclusive lock
# Critical section - safe to modify shared file
echo "update" >> /volumes/shared-data/shared-file.txt
) 200>/volumes/shared-data/.lock
'"#,
    changes: &[
        (
            "rnx job run --volume=pipeline-data producer.py",
            "rnx job run --volume=pipeline-data --upload=producer.py ./producer.py",
        ),
        (
            "rnx job run --volume=pipeline-data consumer.py",
            "rnx job run --volume=pipeline-data --upload=consumer.py ./consumer.py",
        ),
    ],
};

const UNSAFE_PATTERNS: Block = Block {
    verdict: Fixtures("in a job with the volume shared, which has counter.txt"),
    text: r#"# DANGEROUS: Multiple jobs writing to same file simultaneously
# Job A and Job B both running:
echo "data" > /volumes/shared/output.txt # Race condition!
# DANGEROUS: Read-modify-write without locking
count=$(cat /volumes/shared/counter.txt)
echo $((count + 1)) > /volumes/shared/counter.txt # Lost updates!"#,
    changes: &[],
};
