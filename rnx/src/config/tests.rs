//! Client files as people write them, good and bad.

use std::os::unix::fs::{PermissionsExt, chown, symlink};

use super::*;

fn node(default: bool) -> Node {
    let pem = |what: &str| format!("-----BEGIN {what}-----\nAAAA\n-----END {what}-----\n");
    Node {
        address: "host:50051".into(),
        node_id: None,
        is_default: default,
        cert: pem("CERTIFICATE"),
        key: pem("PRIVATE KEY"),
        ca: pem("CERTIFICATE"),
    }
}

fn config(nodes: &[(&str, bool)]) -> Config {
    let nodes = nodes
        .iter()
        .map(|(name, default)| ((*name).to_owned(), node(*default)))
        .collect();
    Config::new("/nowhere/rnx-config.yml".into(), nodes)
}

fn write(path: &Path, mode: u32) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    let mut config = config(&[("here", false)]);
    config.path = path.into();
    config.save().unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

#[test]
fn the_format_of_the_original_is_read() {
    let text = "version: \"3.0\"\n\nnodes:\n  default:\n    address: \"192.168.1.2:50051\"\n    nodeId: \"abc\"\n    isDefault: true\n    \
        cert: |\n      -----BEGIN CERTIFICATE-----\n      AAAA\n      -----END CERTIFICATE-----\n    \
        key: |\n      -----BEGIN PRIVATE KEY-----\n      AAAA\n      -----END PRIVATE KEY-----\n    \
        ca: |\n      -----BEGIN CERTIFICATE-----\n      AAAA\n      -----END CERTIFICATE-----\n";
    let found = Config::parse(Path::new("f"), text).unwrap();
    let expected = Node {
        address: "192.168.1.2:50051".into(),
        node_id: Some("abc".into()),
        ..node(true)
    };
    assert_eq!(found.node(None).unwrap(), &expected);
}

#[test]
fn malformed_files_are_refused_by_what_is_wrong() {
    let check = |text: &str, says: &str| {
        let error = Config::parse(Path::new("f"), text).unwrap_err();
        let said = format!(
            "{error}: {}",
            error.source().map(ToString::to_string).unwrap_or_default()
        );
        assert!(said.contains(says), "{text:?}: {said}");
    };
    use std::error::Error;
    let body = "address: a\n    cert: c\n    key: k\n    ca: a";
    check(
        &format!("version: \"2.0\"\nnodes:\n  n:\n    {body}\n"),
        "2.0",
    );
    check("version: \"3.0\"\nnodes: {}\n", "no node");
    check("nodes: {}\n", "version");
    check("version: \"3.0\"\nnodes:\n  n:\n    address: a\n", "cert");
    check(
        &format!("version: \"3.0\"\nnodes:\n  n:\n    isdefault: true\n    {body}\n"),
        "isdefault",
    );
    check("\u{0}", "malformed");
    check("[1, 2", "malformed");
}

#[test]
fn the_first_file_of_the_order_is_taken() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let places = Places {
        variable: None,
        working: Some(at("working")),
        home: Some(at("home")),
        system: vec![at("etc"), at("opt")],
    };
    let order = [
        at("working/rnx-config.yml"),
        at("working/config/rnx-config.yml"),
        at("home/.rnx/rnx-config.yml"),
        at("etc/rnx-config.yml"),
        at("opt/rnx-config.yml"),
    ];
    assert_eq!(
        places
            .candidates()
            .iter()
            .map(|(path, _)| path.clone())
            .collect::<Vec<_>>(),
        order
    );
    match Config::search(&places) {
        Err(ConfigError::NotFound { searched }) => assert_eq!(searched, order),
        other => panic!("{other:?}"),
    }
    for path in order.iter().rev() {
        write(path, 0o600);
        let found = Config::search(&places).unwrap();
        assert_eq!((&found.path, &found.warnings[..]), (path, &[][..]));
    }
    let variable = Places {
        variable: Some(at("elsewhere.yml")),
        ..places
    };
    assert!(
        matches!(Config::search(&variable), Err(ConfigError::File { .. })),
        "the variable is the only place"
    );
    write(&at("elsewhere.yml"), 0o600);
    assert_eq!(Config::search(&variable).unwrap().path, at("elsewhere.yml"));
}

#[test]
fn a_file_that_others_may_read_is_warned_about() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("c.yml");
    for (mode, warned) in [
        (0o600, false),
        (0o400, false),
        (0o640, true),
        (0o604, true),
        (0o666, true),
    ] {
        write(&path, mode);
        let warnings = Config::load(Some(&path)).unwrap().warnings;
        assert_eq!(warnings.is_empty(), !warned, "{mode:o}");
    }
}

#[test]
fn a_file_of_somebody_else_in_the_working_directory_is_refused() {
    if !nix::unistd::geteuid().is_root() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let places = Places {
        working: Some(dir.path().into()),
        ..Places::default()
    };
    let path = dir.path().join("rnx-config.yml");
    write(&path, 0o600);
    assert!(Config::search(&places).is_ok());
    chown(&path, Some(12_345), None).unwrap();
    assert!(matches!(
        Config::search(&places),
        Err(ConfigError::NotOwned { owner: 12_345, .. })
    ));
    // Named by its path it is taken: that is a decision.
    assert!(Config::load(Some(&path)).is_ok());
    // A link of somebody else to a file of ours chooses for us just the same.
    let ours = dir.path().join("ours.yml");
    write(&ours, 0o600);
    fs::remove_file(&path).unwrap();
    symlink(&ours, &path).unwrap();
    assert!(Config::search(&places).is_ok());
    std::os::unix::fs::lchown(&path, Some(12_345), None).unwrap();
    assert!(matches!(
        Config::search(&places),
        Err(ConfigError::NotOwned { owner: 12_345, .. })
    ));
}

#[test]
fn the_node_is_the_marked_one_then_default_then_the_only_one() {
    let check = |nodes: &[(&str, bool)], expected: Result<&str, &str>| {
        let found = config(nodes);
        let found = found.default_name().map_err(|error| error.to_string());
        match expected {
            Ok(name) => assert_eq!(found.as_deref(), Ok(name)),
            Err(says) => assert!(found.as_ref().unwrap_err().contains(says), "{found:?}"),
        }
    };
    check(&[("a", false), ("b", true), ("default", false)], Ok("b"));
    check(&[("a", false), ("default", false)], Ok("default"));
    check(&[("a", false)], Ok("a"));
    check(&[("a", false), ("b", false)], Err("a, b"));
    check(&[("a", true), ("b", true), ("default", false)], Err("a, b"));
    let two = config(&[("a", true), ("b", false)]);
    assert!(two.node(Some("b")).is_ok());
    assert!(
        matches!(two.node(Some("c")), Err(ConfigError::UnknownNode { known, .. }) if known == ["a", "b"])
    );
}

#[test]
fn a_saved_file_is_private_and_reads_back() {
    let dir = tempfile::tempdir().unwrap();
    let mut saved = config(&[("a", true), ("b", false)]);
    saved.path = dir.path().join("c.yml");
    saved.save().unwrap();
    assert_eq!(fs::metadata(&saved.path).unwrap().mode() & 0o7777, 0o600);
    let read = Config::load(Some(&saved.path)).unwrap();
    assert_eq!(read.nodes(), saved.nodes());
    assert!(
        !format!("{read:?}").contains("PRIVATE"),
        "no key in a debug form"
    );
}
