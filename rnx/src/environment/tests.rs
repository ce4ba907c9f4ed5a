//! Variables from flags and files, and which wins.

use std::io::Write;

use super::*;

fn os(words: &[&str]) -> Vec<OsString> {
    words.iter().map(OsString::from).collect()
}

fn strings(entries: &[Vec<u8>]) -> Vec<String> {
    entries
        .iter()
        .map(|entry| String::from_utf8(entry.clone()).unwrap())
        .collect()
}

fn ours(name: &OsStr) -> Option<OsString> {
    (name == "FROM_US").then(|| "ours=1".into())
}

fn file_with(text: &[u8]) -> tempfile::NamedTempFile {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(text).unwrap();
    file
}

#[test]
fn files_come_first_and_the_later_of_one_name_counts() {
    let file = file_with(b"# comment\n\nA=file\r\n  B= spaced \nFROM_US\nUNSET\nQ=\"kept\"");
    let found = collect(
        &[file.path().into()],
        &os(&["A=flag", "JOB_NAME=x", "EMPTY="]),
        &[],
        ours,
    )
    .unwrap();
    assert_eq!(
        strings(&found.plain),
        [
            "A=flag",
            "B= spaced ",
            "FROM_US=ours=1",
            "Q=\"kept\"",
            "JOB_NAME=x",
            "EMPTY="
        ]
    );
    assert_eq!(found.secret, Vec::<Vec<u8>>::new());
}

#[test]
fn values_are_any_bytes_and_secrets_are_kept_apart() {
    let odd = OsStr::from_bytes(b"V=\xff\n=x").to_owned();
    let found = collect(&[], &[odd], &os(&["TOKEN=a=b", "FROM_US"]), ours).unwrap();
    assert_eq!(found.plain, [b"V=\xff\n=x".to_vec()]);
    assert_eq!(strings(&found.secret), ["TOKEN=a=b", "FROM_US=ours=1"]);
}

#[test]
fn names_that_are_none_are_refused_without_showing_a_value() {
    for entry in ["=v", "1A=v", "A-B=v", "A B=v", "ä=v", ""] {
        let failure = collect(&[], &[], &os(&[entry]), ours).unwrap_err();
        assert_eq!(failure.code, 2, "{entry}");
        assert!(!failure.message.unwrap().contains("=v"), "{entry}");
    }
    let failure = collect(&[], &os(&["A=1"]), &os(&["A=2"]), ours).unwrap_err();
    assert_eq!(
        (failure.code, failure.message.as_deref()),
        (2, Some("A is given as a variable and as a secret"))
    );
}

#[test]
fn a_bad_line_of_a_file_is_named_by_its_number() {
    let file = file_with(b"A=1\n\nnot a name=2\n");
    let failure = collect(&[file.path().into()], &[], &[], ours).unwrap_err();
    assert!(failure.message.unwrap().contains(":3: "));
    let file = file_with(b"A=1\0\n");
    assert!(
        collect(&[file.path().into()], &[], &[], ours)
            .unwrap_err()
            .message
            .unwrap()
            .contains("NUL")
    );
    let missing = collect(&["/nonexistent/env".into()], &[], &[], ours).unwrap_err();
    assert!(
        missing
            .message
            .unwrap()
            .starts_with("read /nonexistent/env: ")
    );
}
