//! What the guide says of volumes in jobs.

use super::block::Verdict::{Cannot, Fixtures};
use super::block::{Block, Section};
use super::reader::Guide;

pub(super) const SECTION: Section = Section {
    blocks: &[&MOUNTS, &READ_AND_WRITE, &FILES, &ALL_MOUNTED],
    test,
};

fn test(guide: &Guide) {
    guide.volumes(&[
        "mydata",
        "input-data",
        "output-data",
        "cache",
        "config",
        "results",
        "backup",
        "dataset",
        "data1",
        "data2",
    ]);
    guide.file(
        "process.py",
        "import os\nprint(sorted(os.listdir('/volumes')))\n",
    );
    let mounted = guide.run(&MOUNTS);
    assert!(
        mounted
            .text()
            .ends_with("['cache', 'input-data', 'output-data']\n"),
        "{mounted:?}"
    );
    guide.job("echo '{}' > /volumes/config/settings.json", "config", "");
    let written = guide.run(&READ_AND_WRITE);
    assert!(
        written.text().starts_with("{}\nProcessing results\n"),
        "{written:?}"
    );
    guide.file("data.tar.gz", "archive");
    guide.job("touch /volumes/dataset/a /volumes/dataset/b", "dataset", "");
    let copied = guide.run(&FILES);
    assert_eq!(copied.text(), "Found 2 files\n", "{copied:?}");
    guide.job("cat /volumes/backup/data.tar.gz", "backup", "archive");
    let all = guide.run(&ALL_MOUNTED);
    assert!(
        all.text().contains("data1") && all.text().contains("data2"),
        "{all:?}"
    );
}

const MOUNTS: Block = Block {
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

const READ_AND_WRITE: Block = Block {
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

const FILES: Block = Block {
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

const ALL_MOUNTED: Block = Block {
    verdict: Fixtures("volumes data1 and data2"),
    text: r#"# Volume 'mydata' → /volumes/mydata
# Volume 'cache' → /volumes/cache
# Volume 'ml-models' → /volumes/ml-models
# List all mounted volumes
rnx job run --volume=data1 --volume=data2 ls -la /volumes/"#,
    changes: &[],
};
