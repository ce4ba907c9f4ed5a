//! What the guide holds for good practice.

use super::block::Verdict::{Cannot, Fixtures, Literal};
use super::block::{Block, Section};
use super::reader::Guide;

pub(super) const SECTION: Section = Section {
    blocks: &[
        &STAGING,
        &CLEANUP,
        &GROWTH,
        &NAMING,
        &DIRECTORIES,
        &CLEANUP_SCRIPT,
        &SECRETS,
    ],
    test,
};

fn test(guide: &Guide) {
    guide.volumes(&[
        "source-data",
        "results",
        "logs",
        "project-data",
        "ml-data",
        "temp-data",
        "data",
    ]);
    guide.job("echo source > /volumes/source-data/x", "source-data", "");
    guide.file(
        "process_data.py",
        "#!/bin/sh\ncat ${1#--input=}/x > ${2#--output=}/y\n",
    );
    guide.run(&STAGING).assert_ok();
    guide.job("cat /volumes/results/y", "results", "source\n");
    guide.job("ls /volumes/temp-work", "temp-work", "");
    // Memory for those that come.
    guide.shell("rnx volume remove temp-work").assert_ok();
    guide.scheduled(&CLEANUP, &["logs"]);
    guide.run(&GROWTH).assert_ok();
    assert!(
        guide
            .list()
            .iter()
            .all(|volume| volume["name"] != "test-vol")
    );
    guide.run(&NAMING).assert_ok();
    guide.run(&DIRECTORIES).assert_ok();
    guide.job(
        "ls /volumes/project-data",
        "project-data",
        "archives\ninput\nlogs\noutput\ntemp\n",
    );
    guide.job(
        "ls /volumes/ml-data",
        "ml-data",
        "checkpoints\ndatasets\nmetrics\nmodels\n",
    );
    guide.scheduled(&CLEANUP_SCRIPT, &["temp-data", "logs", "data"]);
    let secret = guide.run(&SECRETS);
    assert_eq!(secret.text_of_jobs(), "sensitive data\n");
}

const STAGING: Block = Block {
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

const CLEANUP: Block = Block {
    verdict: Fixtures("volume logs"),
    text: r#"# Regular cleanup using job scheduling
rnx job run --schedule="168h" --volume=logs bash -c '
find /volumes/logs -name "*.tmp" -mtime +7 -delete
find /volumes/logs -name "*.log" -mtime +30 -delete
'"#,
    changes: &[],
};

const GROWTH: Block = Block {
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

const NAMING: Block = Block {
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

const DIRECTORIES: Block = Block {
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

const CLEANUP_SCRIPT: Block = Block {
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

const SECRETS: Block = Block {
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
