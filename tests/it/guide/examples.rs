//! The guide's complete examples.

use super::block::Verdict::{Cannot, Fixtures};
use super::block::{Block, Section};
use super::reader::Guide;

pub(super) const SECTION: Section = Section {
    blocks: &[&POSTGRES, &BUILD_CACHE, &PIPELINE],
    test,
};

fn test(guide: &Guide) {
    guide.run(&POSTGRES).assert_ok();
    guide.run(&BUILD_CACHE).assert_ok();
    for (block, flag) in [(&POSTGRES, "--network"), (&BUILD_CACHE, "--runtime")] {
        let refused = guide.shell(block.text);
        let words = format!("error: {flag} is not supported");
        assert!(refused.stderr.contains(&words), "{refused:?}");
    }
    for (name, line) in [
        ("ingest_data.sh", "echo raw > /volumes/raw-data/x"),
        (
            "process_data.py",
            "open('/volumes/processed-data/x', 'w').write(open('/volumes/raw-data/x').read() + 'processed\\n')",
        ),
        (
            "analyze_results.py",
            "open('/volumes/final-results/x', 'w').write(open('/volumes/processed-data/x').read() + 'analyzed\\n')",
        ),
    ] {
        guide.file(name, line);
    }
    guide.run(&PIPELINE).assert_ok();
    guide.job(
        "cat /volumes/final-results/x",
        "final-results",
        "raw\nprocessed\nanalyzed\n",
    );
}

const POSTGRES: Block = Block {
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

const BUILD_CACHE: Block = Block {
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

const PIPELINE: Block = Block {
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
