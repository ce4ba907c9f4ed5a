//! The house plan, checked: which room may name which, and what no file may say.
//!
//! A rule that is broken names the file and the line. To change the plan, change the table and say why in
//! the commit.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

/// Room → rooms it may name. An edge that is absent is the architecture. `lib.rs`, `main.rs` and `cli` are not
/// in it: they are the house and its door, and may name every room.
const PLAN: &[(&str, &[&str])] = &[
    ("front", &["doctor", "shard", "rt", "job", "limits"]),
    // Asks a shard as a front does; what stands behind a limit only the cgroups know.
    ("doctor", &["shard", "cgroup", "rt", "job", "limits"]),
    (
        "shard",
        &[
            "sandbox", "cgroup", "volume", "log", "store", "host", "config", "rt", "sys", "job",
            "limits",
        ],
    ),
    // Recovery asks every room that makes kernel objects what is left of them.
    (
        "host",
        &["sandbox", "cgroup", "volume", "sys", "job", "limits"],
    ),
    // What a job is made of. Only `log` waits; the others block, in helpers and on the blocking pool.
    ("log", &["rt", "sys", "job", "limits"]),
    ("sandbox", &["sys", "job", "limits"]),
    ("cgroup", &["sys", "job", "limits"]),
    ("volume", &["sys", "job", "limits"]),
    ("store", &["sys", "job", "limits"]),
    ("pki", &["sys", "job", "limits"]),
    // Sizes in a configuration are shown as a job's are.
    ("config", &["job", "limits"]),
    ("rt", &["sys", "limits"]),
    ("job", &["limits"]),
    ("sys", &[]),
    ("limits", &[]),
];

/// The source of PID 1: a program of its own, whose `crate` is not ours.
const PID1: &str = "src/sandbox/init/pid1/";

/// What is in no file of ours. Each is in two pieces here, or this file would break its own rule.
const BANNED: &[(&str, &str)] = &[
    (concat!("TO", "DO"), "finish it, or open an issue"),
    (concat!("FIX", "ME"), "mend it"),
    (concat!("XX", "X"), "say what is wrong"),
    (concat!("HA", "CK"), "say why it is right"),
    (concat!("unimplemented", "!"), "refuse with a typed error"),
    (concat!("todo", "!"), "refuse with a typed error"),
    (concat!("dbg", "!"), "use tracing"),
    (
        concat!("#[ig", "nore"),
        "a test that does not run is no test",
    ),
    (concat!("should_", "panic"), "assert on the error"),
];

/// Words that only some rooms may write: the word, where it may stand (paths from the repository's root), and
/// why nowhere else.
const RESERVED: &[(&str, &[&str], &str)] = &[
    ("monoio", &["src/rt/"], "the runtime is behind rt"),
    (
        "unsafe",
        &[
            "src/sys/",
            "src/sandbox/init",
            "rnx/src/pow.rs",
            "rnx/src/names.rs",
            "rnx/src/start.rs",
            "tests/",
            "tools/",
        ],
        "kernel calls are behind sys",
    ),
    (
        "proto_rkyv",
        &[
            "src/front/",
            "proto-rkyv/",
            "rnx/",
            "tests/",
            "benches/",
            "tools/",
        ],
        "wire types stop in front",
    ),
    (
        "anyhow",
        &["src/main.rs", "src/cli/", "tools/", "rnx/"],
        "errors are typed inside the house",
    ),
];

/// A file of ours: its path from the repository's root and its text.
struct Source {
    path: String,
    text: String,
}

/// A use of a word in code, and the line it stands on, from 1.
type Use<'a> = (usize, &'a str);

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Every file with Rust in it, sorted.
fn sources() -> Vec<Source> {
    let mut paths = Vec::new();
    for dir in ["src", "rnx", "proto-rkyv", "tests", "benches", "tools"] {
        rust_files(&root().join(dir), &mut paths);
    }
    paths.extend(Some(root().join("build.rs")).filter(|path| path.exists()));
    paths.sort();
    let read = |path: PathBuf| Source {
        text: fs::read_to_string(&path).unwrap(),
        path: path
            .strip_prefix(root())
            .unwrap()
            .to_str()
            .unwrap()
            .to_owned(),
    };
    paths.into_iter().map(read).collect()
}

fn rust_files(dir: &Path, out: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            if path.file_name().unwrap() != "target" {
                rust_files(&path, out);
            }
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            out.push(path);
        }
    }
}

/// Replaces comments and the insides of text by blanks, so that only code is left, line by line.
fn code_of(text: &str) -> String {
    let mut code = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let length = if rest.starts_with("//") {
            rest.find('\n').unwrap_or(rest.len())
        } else if rest.starts_with("/*") {
            rest.find("*/").map_or(rest.len(), |end| end + 2)
        } else if let Some(length) = text_length(rest) {
            length
        } else {
            code.push(first);
            rest = &rest[first.len_utf8()..];
            // An identifier that ends in r or b begins no raw text.
            let more = if is_word(first) {
                rest.find(|c| !is_word(c)).unwrap_or(rest.len())
            } else {
                0
            };
            code.push_str(&rest[..more]);
            rest = &rest[more..];
            continue;
        };
        let (blank, tail) = rest.split_at(length);
        code.extend(blank.chars().map(|c| if c == '\n' { '\n' } else { ' ' }));
        rest = tail;
    }
    code
}

/// The length of the text or character that `rest` begins with, if it begins with one.
fn text_length(rest: &str) -> Option<usize> {
    let opened = rest.trim_start_matches(['b', 'c']);
    let prefix = rest.len() - opened.len();
    if let Some(raw) = opened.strip_prefix('r') {
        let hashes = raw.len() - raw.trim_start_matches('#').len();
        let close = format!("\"{}", "#".repeat(hashes));
        let inside = raw[hashes..].strip_prefix('"')?;
        return Some(rest.len() - inside.len() + inside.find(&close)? + close.len());
    }
    let quote = opened.chars().next().filter(|c| matches!(c, '"' | '\''))?;
    let mut chars = opened.char_indices().skip(1);
    while let Some((at, c)) = chars.next() {
        if c == '\\' {
            chars.next();
        } else if c == quote {
            return Some(prefix + at + 1);
        } else if quote == '\'' && at > 1 && !opened[1..].starts_with('\\') {
            return None; // A lifetime: a character has one character inside.
        }
    }
    None
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// The words of `code` with their lines.
fn words(code: &str) -> impl Iterator<Item = Use<'_>> {
    code.lines().enumerate().flat_map(|(index, line)| {
        line.split(|c| !is_word(c))
            .filter(|word| !word.is_empty())
            .map(move |word| (index + 1, word))
    })
}

/// What `code` names directly below `crate::`, also in a group of uses.
fn rooms_named(code: &str) -> Vec<Use<'_>> {
    let mut found = Vec::new();
    for (at, name) in code.match_indices("crate::") {
        if code[..at].ends_with(is_word) {
            continue;
        }
        let start = at + name.len();
        let mut depth = 0_usize;
        let mut is_head = true;
        let mut chars = code[start..].char_indices().peekable();
        while let Some((offset, c)) = chars.next() {
            match c {
                '{' => {
                    depth += 1;
                    is_head = depth == 1;
                }
                '}' => {
                    depth = depth.saturating_sub(1);
                    is_head = false;
                }
                ',' => is_head = depth == 1,
                c if is_word(c) => {
                    let from = start + offset;
                    let length = code[from..]
                        .find(|c| !is_word(c))
                        .unwrap_or(code.len() - from);
                    while chars
                        .next_if(|(next, _)| start + next < from + length)
                        .is_some()
                    {}
                    if is_head {
                        let line = code[..from].matches('\n').count() + 1;
                        found.push((line, &code[from..from + length]));
                    }
                    is_head = false;
                }
                _ => {}
            }
            if depth == 0 && !is_head {
                break;
            }
        }
    }
    found
}

/// The room that a file belongs to, if it belongs to one.
fn room_of(path: &str) -> Option<&str> {
    let below = path
        .strip_prefix("src/")
        .filter(|_| !path.starts_with(PID1))?;
    let room = below
        .split_once('/')
        .map_or_else(|| below.trim_end_matches(".rs"), |(room, _)| room);
    (!["main", "lib", "cli"].contains(&room)).then_some(room)
}

fn report(rule: &str, broken: &[String]) {
    assert!(broken.is_empty(), "{rule}:\n{}", broken.join("\n"));
}

#[test]
fn rooms_name_only_the_rooms_below_them() {
    let mut broken = Vec::new();
    for source in sources() {
        let Some(room) = room_of(&source.path) else {
            continue;
        };
        let Some((_, allowed)) = PLAN.iter().find(|(name, _)| *name == room) else {
            broken.push(format!("{}:1: {room} is no room of the plan", source.path));
            continue;
        };
        for (line, named) in rooms_named(&code_of(&source.text)) {
            if named != room && !allowed.contains(&named) {
                broken.push(format!("{}:{line}: {room} names {named}", source.path));
            }
        }
    }
    report("rooms out of plan", &broken);
}

#[test]
fn the_plan_has_every_room_and_no_other() {
    let sources = sources();
    let built: BTreeSet<_> = sources
        .iter()
        .filter_map(|source| room_of(&source.path))
        .collect();
    let planned: BTreeSet<_> = PLAN.iter().map(|(room, _)| *room).collect();
    assert_eq!(built, planned);
    let house = fs::read_to_string(root().join("src/lib.rs")).unwrap();
    let declared: BTreeSet<_> = house
        .lines()
        .filter_map(|line| line.strip_prefix("pub mod ")?.strip_suffix(';'))
        .collect();
    assert_eq!(declared, planned, "src/lib.rs");
}

#[test]
fn the_plan_has_no_circle_and_no_unknown_room() {
    // Rooms are taken away when all they name is gone; what cannot be taken away is part of a circle.
    let mut left: Vec<_> = PLAN.to_vec();
    loop {
        let names: Vec<_> = left.iter().map(|(room, _)| *room).collect();
        let before = left.len();
        left.retain(|(_, below)| below.iter().any(|room| names.contains(room)));
        if left.len() == before {
            break;
        }
    }
    assert!(left.is_empty(), "circle among {left:?}");
    for (room, below) in PLAN {
        for named in *below {
            assert!(
                PLAN.iter().any(|(other, _)| other == named),
                "{room} may name {named}, which is no room"
            );
        }
    }
}

#[test]
fn every_file_begins_with_what_it_owns() {
    let broken: Vec<_> = sources()
        .iter()
        .filter(|source| !source.text.starts_with("//! "))
        .map(|source| format!("{}:1: does not begin with //!", source.path))
        .collect();
    report("files that do not say what they own", &broken);
}

#[test]
fn reserved_words_stay_in_their_rooms() {
    let mut broken = Vec::new();
    for source in sources() {
        let code = code_of(&source.text);
        for (word, places, why) in RESERVED {
            if places.iter().any(|place| source.path.starts_with(place)) {
                continue;
            }
            for (line, _) in words(&code).filter(|(_, found)| found == word) {
                broken.push(format!("{}:{line}: {word}: {why}", source.path));
            }
        }
    }
    report("words out of their rooms", &broken);
}

#[test]
fn banned_words_are_nowhere() {
    let mut broken = Vec::new();
    for source in sources() {
        for (index, line) in source.text.lines().enumerate() {
            for (word, instead) in BANNED.iter().filter(|(word, _)| contains_word(line, word)) {
                broken.push(format!("{}:{}: {word}: {instead}", source.path, index + 1));
            }
        }
    }
    report("banned words", &broken);
}

/// Whether `line` has `word`, not as a part of a longer one.
fn contains_word(line: &str, word: &str) -> bool {
    line.match_indices(word).any(|(at, _)| {
        let is_free = |c: Option<char>| c.is_none_or(|c| !is_word(c));
        let begins = !word.starts_with(is_word) || is_free(line[..at].chars().next_back());
        let ends = !word.ends_with(is_word) || is_free(line[at + word.len()..].chars().next());
        begins && ends
    })
}

#[test]
fn clients_do_not_depend_on_the_daemon() {
    let broken: Vec<_> = ["rnx/Cargo.toml", "proto-rkyv/Cargo.toml"]
        .iter()
        .filter(|path| {
            let text = fs::read_to_string(root().join(path)).unwrap();
            text.lines()
                .any(|line| line.split(['=', '.', ' ']).next() == Some("joblet"))
        })
        .map(|path| format!("{path}:1: depends on joblet"))
        .collect();
    report("clients know the wire only", &broken);
}

#[test]
fn the_checker_sees_code_and_not_what_is_said_about_it() {
    let check = |text: &str, expected: &[Use<'_>]| {
        assert_eq!(rooms_named(&code_of(text)), expected, "{text}")
    };
    check("use crate::job::JobId;", &[(1, "job")]);
    check(
        "\nuse crate::{\n    job::{self, State},\n    limits, sys::scm,\n};\ncrate::log::x()",
        &[(3, "job"), (4, "limits"), (4, "sys"), (6, "log")],
    );
    check(
        "// crate::front\n/* crate::a\n */ \"crate::b\" r#\"crate::c \" crate::d\"# 'x' crate::e",
        &[(3, "e")],
    );
    check(
        "fn f<'a>(x: &'a str) { crate::rt::spawn('\\'', b'\"', \"\\\" crate::no\"); super::x }",
        &[(1, "rt")],
    );
    check("mycrate::job; pub(crate) fn f() {}", &[]);
    let found: Vec<_> = words("unsafe_code\nunsafe {").collect();
    assert_eq!(found, [(1, "unsafe_code"), (2, "unsafe")]);
    assert!(contains_word("// HAVE a word", "HAVE") && !contains_word("BEHAVE", "HAVE"));
}
