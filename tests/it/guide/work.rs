//! What the guide says of work that goes on in another job, and of backups.

use std::fs;

use super::block::Verdict::{Cannot, Fixtures};
use super::block::{Block, Section};
use super::reader::Guide;

pub(super) const SECTION: Section = Section {
    blocks: &[&CHECKPOINTS, &PIPE_BETWEEN_JOBS, &BACKUP, &RESTORE],
    test,
};

fn test(guide: &Guide) {
    guide.file(
        "train.py",
        "import os, sys\nroot = '/volumes/ml-checkpoints/'\nresumed = sys.argv[1].startswith('--resume=')\n\
         print('resumed' if resumed and os.path.exists(root + 'latest.pth') else 'began')\n\
         open(root + 'latest.pth', 'w').write('checkpoint')\nopen(root + 'best_model.pth', 'wb').write(b'\\x00model\\xff')\n",
    );
    let trained = guide.run(&CHECKPOINTS);
    assert_eq!(trained.text_of_jobs(), "began\nresumed\n");
    assert_eq!(fs::read(guide.path("model.pth")).unwrap(), b"\x00model\xff");
    guide.volumes(&["shared-data"]);
    let shared = guide.run(&PIPE_BETWEEN_JOBS);
    assert_eq!(
        shared.text(),
        "Status: processed, Count: 1000\n",
        "{shared:?}"
    );
    guide.volumes(&["important-data"]);
    guide.job(
        "echo precious > /volumes/important-data/file",
        "important-data",
        "",
    );
    guide.run(&BACKUP).assert_ok();
    assert!(
        fs::metadata(guide.path("important-data-backup.tar.gz"))
            .unwrap()
            .len()
            > 0
    );
    guide.run(&RESTORE).assert_ok();
    guide.job(
        "cat /volumes/restored-data/file",
        "restored-data",
        "precious\n",
    );
    // And the way to prefer.
    guide.shell("rnx volume export important-data > a.tar && rnx volume create again --size=1GB && rnx volume import again < a.tar").assert_ok();
    guide.job("cat /volumes/again/file", "again", "precious\n");
}

const CHECKPOINTS: Block = Block {
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

const PIPE_BETWEEN_JOBS: Block = Block {
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

const BACKUP: Block = Block {
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

const RESTORE: Block = Block {
    verdict: Fixtures("important-data-backup.tar.gz"),
    text: r#"# Restore to new volume
rnx volume create restored-data --size=10GB
rnx job run \
--volume=restored-data \
--upload=important-data-backup.tar.gz \
tar -xzf important-data-backup.tar.gz -C /volumes/restored-data"#,
    changes: &[],
};
