//! The blocks of the guide in its order, each with what came of it.

use Verdict::{Cannot, Fixtures, Literal};

/// A block of commands.
#[derive(Debug)]
pub(super) struct Block {
    pub(super) verdict: Verdict,
    /// As it is printed.
    pub(super) text: &'static str,
    /// What is run instead of what of it.
    pub(super) changes: &'static [(&'static str, &'static str)],
}

impl Block {
    /// What is run.
    pub(super) fn tried(&self) -> String {
        let mut tried = self.text.to_owned();
        for (printed, instead) in self.changes {
            assert!(tried.contains(printed), "{printed:?} is not in\n{tried}");
            tried = tried.replacen(printed, instead, 1);
        }
        tried
    }
}

/// How a block of the guide is tried.
#[derive(Debug)]
#[expect(dead_code, reason = "the words are for whoever reads the table")]
pub(super) enum Verdict {
    /// As it is printed.
    Literal,
    /// As it is printed, with these volumes and files there, and what `<…>` stands for.
    Fixtures(&'static str),
    /// It cannot do what it says as it is printed, and why; what is run instead.
    Cannot(&'static str),
}

/// All of them.
pub(super) const BLOCKS: [&Block; 36] = [
    &ISOLATION,
    &SHARING,
    &SAFE_PATTERNS,
    &UNSAFE_PATTERNS,
    &TYPES,
    &SIZES,
    &NAMES,
    &MOUNTS,
    &READ_AND_WRITE,
    &FILES,
    &ALL_MOUNTED,
    &LIST,
    &USAGE,
    &REMOVE,
    &CHECKPOINTS,
    &PIPE_BETWEEN_JOBS,
    &BACKUP,
    &RESTORE,
    &DISK_SPEED,
    &MEMORY_SPEED,
    &STAGING,
    &CLEANUP,
    &GROWTH,
    &NAMING,
    &DIRECTORIES,
    &CLEANUP_SCRIPT,
    &SECRETS,
    &NOT_FOUND,
    &OUT_OF_SPACE,
    &PERMISSIONS,
    &MEMORY_FULL,
    &REMOVAL_BLOCKED,
    &DEBUG,
    &POSTGRES,
    &BUILD_CACHE,
    &PIPELINE,
];

pub(super) const ISOLATION: Block = Block {
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

pub(super) const SHARING: Block = Block {
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

pub(super) const SAFE_PATTERNS: Block = Block {
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

pub(super) const UNSAFE_PATTERNS: Block = Block {
    verdict: Fixtures("in a job with the volume shared, which has counter.txt"),
    text: r#"# DANGEROUS: Multiple jobs writing to same file simultaneously
# Job A and Job B both running:
echo "data" > /volumes/shared/output.txt # Race condition!
# DANGEROUS: Read-modify-write without locking
count=$(cat /volumes/shared/counter.txt)
echo $((count + 1)) > /volumes/shared/counter.txt # Lost updates!"#,
    changes: &[],
};

pub(super) const TYPES: Block = Block {
    verdict: Literal,
    text: r#"# Create 1GB filesystem volume
rnx volume create mydata --size=1GB --type=filesystem
# Create 512MB memory volume
rnx volume create cache --size=512MB --type=memory
# Default type is filesystem
rnx volume create storage --size=5GB"#,
    changes: &[],
};

pub(super) const SIZES: Block = Block {
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

pub(super) const NAMES: Block = Block {
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

pub(super) const MOUNTS: Block = Block {
    verdict: Cannot("process.py is in no job: it is uploaded"),
    text: r#"# Mount single volume
rnx job run --volume=mydata ls -la /volumes/mydata
# Mount multiple volumes
rnx job run \
--volume=input-data \
--volume=output-data \
--volume=cache \
python3 process.py"#,
    changes: &[(
        "python3 process.py",
        r"--upload=process.py \
python3 process.py",
    )],
};

pub(super) const READ_AND_WRITE: Block = Block {
    verdict: Fixtures("volumes config, with settings.json, and results"),
    text: r#"# Volume is mounted read-write by default
rnx job run --volume=config cat /volumes/config/settings.json
# Write to volume
rnx job run --volume=results bash -c '
echo "Processing results" > /volumes/results/output.txt
date >> /volumes/results/output.txt
'
# Read from volume in separate job
rnx job run --volume=results cat /volumes/results/output.txt"#,
    changes: &[],
};

pub(super) const FILES: Block = Block {
    verdict: Fixtures("volumes backup and dataset, with two files; data.tar.gz"),
    text: r#"# Copy files to volume
rnx job run --volume=backup --upload=data.tar.gz \
cp data.tar.gz /volumes/backup/
# Process files in volume
rnx job run --volume=dataset python3 -c "
import os
files = os.listdir('/volumes/dataset')
print(f'Found {len(files)} files')
""#,
    changes: &[],
};

pub(super) const ALL_MOUNTED: Block = Block {
    verdict: Fixtures("volumes data1 and data2"),
    text: r#"# Volume 'mydata' → /volumes/mydata
# Volume 'cache' → /volumes/cache
# Volume 'ml-models' → /volumes/ml-models
# List all mounted volumes
rnx job run --volume=data1 --volume=data2 ls -la /volumes/"#,
    changes: &[],
};

pub(super) const LIST: Block = Block {
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

pub(super) const USAGE: Block = Block {
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

pub(super) const REMOVE: Block = Block {
    verdict: Fixtures("volume mydata"),
    text: r#"# Remove single volume
rnx volume remove mydata
# Note: Volume must not be in use by any active jobs
# If removal fails due to active jobs, stop the jobs first"#,
    changes: &[],
};

pub(super) const CHECKPOINTS: Block = Block {
    verdict: Fixtures("train.py"),
    text: r#"# 1. Create volume for persistent storage
rnx volume create ml-checkpoints --size=50GB
# 2. Save model checkpoints during training
rnx job run \
--volume=ml-checkpoints \
--upload=train.py \
--max-cpu=800 \
--max-memory=16384 \
python3 train.py --checkpoint-dir=/volumes/ml-checkpoints
# 3. Resume training from checkpoint in separate job
rnx job run \
--volume=ml-checkpoints \
--upload=train.py \
python3 train.py --resume=/volumes/ml-checkpoints/latest.pth
# 4. Export final model (download logs to get file)
JOB_ID=$(rnx job run \
--volume=ml-checkpoints \
--json \
bash -c 'cat /volumes/ml-checkpoints/best_model.pth' | jq -r .id)
# Wait for job completion then download
sleep 5
rnx job log $JOB_ID > model.pth"#,
    changes: &[],
};

pub(super) const PIPE_BETWEEN_JOBS: Block = Block {
    verdict: Cannot("the print has lost the indentation that Python needs: it is put back"),
    text: r#"# Job 1: Generate data
rnx job run --volume=shared-data python3 -c "
import json
data = {'status': 'processed', 'count': 1000}
with open('/volumes/shared-data/status.json', 'w') as f:
json.dump(data, f)
"
# Job 2: Read shared data (runs after Job 1 completes)
rnx job run --volume=shared-data python3 -c "
import json
with open('/volumes/shared-data/status.json', 'r') as f:
data = json.load(f)
print(f'Status: {data[\"status\"]}, Count: {data[\"count\"]}')
""#,
    changes: &[
        ("json.dump(data, f)", "    json.dump(data, f)"),
        ("data = json.load(f)", "    data = json.load(f)"),
    ],
};

pub(super) const BACKUP: Block = Block {
    verdict: Cannot("the archive goes to /work and the log is empty: it goes to standard output"),
    text: r#"# Create backup job
BACKUP_JOB=$(rnx job run --json \
--volume=important-data \
tar -czf /work/backup.tar.gz -C /volumes/important-data . \
| jq -r .id)
# Wait for completion
sleep 5
# Download backup by getting job logs
rnx job log $BACKUP_JOB > important-data-backup.tar.gz"#,
    changes: &[(
        r"tar -czf /work/backup.tar.gz -C /volumes/important-data . \",
        r"tar -czf - -C /volumes/important-data . \",
    )],
};

pub(super) const RESTORE: Block = Block {
    verdict: Fixtures("important-data-backup.tar.gz"),
    text: r#"# Restore to new volume
rnx volume create restored-data --size=10GB
rnx job run \
--volume=restored-data \
--upload=important-data-backup.tar.gz \
tar -xzf important-data-backup.tar.gz -C /volumes/restored-data"#,
    changes: &[],
};

pub(super) const DISK_SPEED: Block = Block {
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

pub(super) const MEMORY_SPEED: Block = Block {
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

pub(super) const STAGING: Block = Block {
    verdict: Cannot("process_data.py is in no job: it is uploaded and called where it lies"),
    text: r#"# Use memory volumes for temporary data
rnx volume create temp-work --size=2GB --type=memory
# Process large dataset with staging pattern
rnx job run \
--volume=source-data \
--volume=temp-work \
--volume=results \
bash -c '
# Copy input to fast memory volume
cp /volumes/source-data/* /volumes/temp-work/
# Process in memory
process_data.py --input=/volumes/temp-work --output=/volumes/results
# Clean up temporary files
rm /volumes/temp-work/*
'"#,
    changes: &[
        (
            "bash -c '",
            r"--upload=process_data.py \
bash -c '",
        ),
        (
            "process_data.py --input=/volumes/temp-work --output=/volumes/results",
            "./process_data.py --input=/volumes/temp-work --output=/volumes/results",
        ),
    ],
};

pub(super) const CLEANUP: Block = Block {
    verdict: Fixtures("volume logs"),
    text: r#"# Regular cleanup using job scheduling
rnx job run --schedule="168h" --volume=logs bash -c '
find /volumes/logs -name "*.tmp" -mtime +7 -delete
find /volumes/logs -name "*.log" -mtime +30 -delete
'"#,
    changes: &[],
};

pub(super) const GROWTH: Block = Block {
    verdict: Cannot(
        "no shell in the job expands /volumes/test-vol/*, and it is empty: /. is copied",
    ),
    text: r#"# Start with reasonable sizes and monitor usage
rnx volume create test-vol --size=1GB
# Monitor usage regularly
rnx job run --volume=test-vol df -h /volumes/test-vol
# Create larger volume if needed (no resize capability)
rnx volume create test-vol-large --size=10GB
# Migrate data manually
rnx job run \
--volume=test-vol \
--volume=test-vol-large \
cp -r /volumes/test-vol/* /volumes/test-vol-large/
# Remove old volume after migration
rnx volume remove test-vol"#,
    changes: &[(
        "cp -r /volumes/test-vol/* /volumes/test-vol-large/",
        "cp -r /volumes/test-vol/. /volumes/test-vol-large/",
    )],
};

pub(super) const NAMING: Block = Block {
    verdict: Literal,
    text: r#"# Use descriptive names with versioning
rnx volume create user-data-v1 --size=5GB
rnx volume create ml-models-2024 --size=50GB
rnx volume create cache-layer-prod --size=2GB --type=memory
# Environment-specific naming
rnx volume create dev-database --size=10GB
rnx volume create staging-uploads --size=20GB
rnx volume create prod-backups --size=100GB"#,
    changes: &[],
};

pub(super) const DIRECTORIES: Block = Block {
    verdict: Fixtures("volumes project-data and ml-data"),
    text: r#"# Create directory structure in jobs
rnx job run --volume=project-data bash -c '
mkdir -p /volumes/project-data/{input,output,temp,logs}
mkdir -p /volumes/project-data/archives/$(date +%Y/%m)
'
# Use subdirectories for organization
rnx job run --volume=ml-data bash -c '
mkdir -p /volumes/ml-data/{datasets,models,checkpoints,metrics}
'"#,
    changes: &[],
};

pub(super) const CLEANUP_SCRIPT: Block = Block {
    verdict: Fixtures("volumes temp-data, logs and data"),
    text: r#"# Create cleanup script
cat > cleanup.sh << 'EOF'
#!/bin/bash
# Remove old temporary files
find /volumes/temp-data -name "*.tmp" -mtime +7 -delete
# Compress old logs
find /volumes/logs -name "*.log" -mtime +30 -exec gzip {} \;
# Remove empty directories
find /volumes/data -type d -empty -delete
EOF
# Schedule regular cleanup (requires job scheduling)
rnx job run \
--schedule="168h" \
--volume=temp-data \
--volume=logs \
--volume=data \
--upload=cleanup.sh \
bash cleanup.sh"#,
    changes: &[],
};

pub(super) const SECRETS: Block = Block {
    verdict: Literal,
    text: r#"# Handle sensitive data with encryption in jobs
rnx volume create secrets --size=100MB
# Store encrypted data
rnx job run --volume=secrets --env=ENCRYPTION_KEY=xxx bash -c '
echo "sensitive data" | openssl enc -aes-256-cbc -k "$ENCRYPTION_KEY" \
> /volumes/secrets/data.enc
'
# Retrieve and decrypt
rnx job run --volume=secrets --env=ENCRYPTION_KEY=xxx bash -c '
openssl enc -aes-256-cbc -d -k "$ENCRYPTION_KEY" \
< /volumes/secrets/data.enc
'"#,
    changes: &[],
};

pub(super) const NOT_FOUND: Block = Block {
    verdict: Literal,
    text: r#"# Error: "volume mydata not found"
# Check volume exists
rnx volume list
# Recreate if needed
rnx volume create mydata --size=1GB"#,
    changes: &[],
};

pub(super) const OUT_OF_SPACE: Block = Block {
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

pub(super) const PERMISSIONS: Block = Block {
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

pub(super) const MEMORY_FULL: Block = Block {
    verdict: Fixtures("memory volume mem-vol"),
    text: r#"# Memory volumes limited by available RAM and specified size
# Check system memory and volume size
rnx job run --volume=mem-vol df -h /volumes/mem-vol
# Use smaller memory volume or switch to filesystem volume
rnx volume create cache-small --size=256MB --type=memory"#,
    changes: &[],
};

pub(super) const REMOVAL_BLOCKED: Block = Block {
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

pub(super) const DEBUG: Block = Block {
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

pub(super) const POSTGRES: Block = Block {
    verdict: Cannot(
        "networks and runtimes are not there yet: the volume and the variables are, without them",
    ),
    text: r#"# Create volume for PostgreSQL
rnx volume create postgres-data --size=50GB
# Run PostgreSQL with persistent storage
rnx job run \
--volume=postgres-data \
--env=POSTGRES_PASSWORD=secret \
--env=PGDATA=/volumes/postgres-data \
--network=db-network \
--runtime=postgres:latest \
postgres"#,
    changes: &[(
        r"--network=db-network \
--runtime=postgres:latest \
postgres",
        "bash -c 'test -w $PGDATA && test $POSTGRES_PASSWORD = secret'",
    )],
};

pub(super) const BUILD_CACHE: Block = Block {
    verdict: Cannot("runtimes are not there yet: the directory is made without one"),
    text: r#"# Create build cache volume (memory for speed)
rnx volume create build-cache --size=2GB --type=memory
# Use for faster builds
rnx job run \
--volume=build-cache \
--upload=./src \
--env=MAVEN_CACHE_DIR=/volumes/build-cache/maven \
--runtime=java:17 \
bash -c "
mkdir -p /volumes/build-cache/maven
mvn -Dmaven.repo.local=/volumes/build-cache/maven install
mvn -Dmaven.repo.local=/volumes/build-cache/maven package
""#,
    changes: &[
        (
            r"# Create build cache volume (memory for speed)
",
            "",
        ),
        ("# Use for faster builds", "mkdir -p src"),
        (
            r"--runtime=java:17 \
",
            "",
        ),
        (
            r"mvn -Dmaven.repo.local=/volumes/build-cache/maven install
mvn -Dmaven.repo.local=/volumes/build-cache/maven package
",
            "",
        ),
    ],
};

pub(super) const PIPELINE: Block = Block {
    verdict: Fixtures("ingest_data.sh, process_data.py and analyze_results.py"),
    text: r#"# Create volumes for pipeline stages
rnx volume create raw-data --size=100GB
rnx volume create processed-data --size=50GB
rnx volume create final-results --size=10GB
# Stage 1: Ingest data
rnx job run --volume=raw-data --upload=ingest_data.sh bash ingest_data.sh
# Stage 2: Process (runs after stage 1)
rnx job run \
--volume=raw-data \
--volume=processed-data \
--upload=process_data.py \
python3 process_data.py
# Stage 3: Analysis (runs after stage 2)
rnx job run \
--volume=processed-data \
--volume=final-results \
--upload=analyze_results.py \
python3 analyze_results.py"#,
    changes: &[],
};
