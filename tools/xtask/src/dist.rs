//! What is installed: the daemon, and `rnx` as a static program with its functions in the order in which they run.

use std::{
    collections::HashSet,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};
use object::{Object, ObjectSymbol, SymbolKind};

use super::{cargo, cargo_command, host, root, run};

/// The profile of what is installed and measured.
pub(crate) const PROFILE: &str = "--profile=dist";
/// Names of the functions of `rnx` in the order of their first calls.
pub(crate) const ORDER: &str = "rnx/link-order.txt";
/// A program at a fixed address that has all it needs in itself.
const STATIC: &str = "-C target-feature=+crt-static -C relocation-model=static";
/// With fewer of the names, in percent, the order is another program's.
const KNOWN_PERCENT: usize = 90;

/// A function of a program: where it begins and its name as the linker knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Function {
    pub(crate) address: u64,
    pub(crate) name: String,
}

/// Builds `target/dist/joblet` and `target/dist/rnx`, and gives the directory.
pub(crate) fn build() -> Result<PathBuf> {
    cargo(&["build", PROFILE, "--locked", "--bin=joblet"])?;
    let host = host()?;
    eprintln!("xtask: rnx, static, for {host}");
    // Only with a target named do the flags leave build scripts and macros alone.
    let mut client = cargo_command()?;
    client
        .args(["build", PROFILE, "--locked", "--package=rnx", "--target"])
        .arg(&host)
        .env("RUSTFLAGS", STATIC);
    run(&mut client)?;
    let target = root()?.join("target");
    let (made, dir) = (target.join(&host).join("dist/rnx"), target.join("dist"));
    let failed = || format!("read {}", made.display());
    let bytes = fs::read(&made).with_context(failed)?;
    let program = object::File::parse(&*bytes).with_context(failed)?;
    let asks_for_a_loader = program.section_by_name(".interp").is_some();
    ensure!(!asks_for_a_loader, "{} is not static", made.display());
    say_how_old_the_order_is(&functions_of(&program))?;
    // Not over it: what is there may have another name in cargo's own directory.
    let place = dir.join("rnx");
    if place.exists() {
        fs::remove_file(&place).with_context(|| format!("remove {}", place.display()))?;
    }
    fs::copy(&made, &place).with_context(|| format!("copy {}", made.display()))?;
    Ok(dir)
}

/// Another compiler or other dependencies give functions other names, and those go where the linker likes.
fn say_how_old_the_order_is(there: &[Function]) -> Result<()> {
    let path = root()?.join(ORDER);
    let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    let ordered: Vec<&str> = names(&text).collect();
    let there: HashSet<&str> = there.iter().map(|one| one.name.as_str()).collect();
    let known = ordered.iter().filter(|name| there.contains(*name)).count();
    eprintln!(
        "xtask: {known} of {} names in {ORDER} are functions of rnx",
        ordered.len()
    );
    if known * 100 < ordered.len() * KNOWN_PERCENT {
        eprintln!(
            "xtask: that is too few, and rnx starts slower than it could: `cargo xtask order` writes it anew"
        );
    }
    Ok(())
}

/// The names in an order file.
pub(crate) fn names(text: &str) -> impl Iterator<Item = &str> {
    let lines = text.lines().map(str::trim);
    lines.filter(|line| !line.is_empty() && !line.starts_with('#'))
}

/// The functions of a program, by ascending address.
pub(crate) fn functions(program: &Path) -> Result<Vec<Function>> {
    let failed = || format!("read {}", program.display());
    let bytes = fs::read(program).with_context(failed)?;
    let file = object::File::parse(&*bytes).with_context(failed)?;
    Ok(functions_of(&file))
}

fn functions_of(program: &object::File<'_>) -> Vec<Function> {
    let texts = program.symbols().filter(|symbol| {
        symbol.is_definition() && symbol.kind() == SymbolKind::Text && symbol.address() != 0
    });
    let mut functions: Vec<Function> = texts
        .filter_map(|symbol| {
            Some(Function {
                address: symbol.address(),
                name: symbol.name().ok()?.to_owned(),
            })
        })
        .collect();
    functions.sort_by(|a, b| (a.address, &a.name).cmp(&(b.address, &b.name)));
    functions
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_order_is_its_lines_but_for_comments_and_blank_ones() {
        let text = "# two names\n\n  first  \nsecond\n# and no more\n";
        assert_eq!(names(text).collect::<Vec<_>>(), ["first", "second"]);
    }

    #[test]
    fn functions_of_a_program_are_read_with_their_addresses() {
        let own = std::env::current_exe().unwrap();
        let functions = functions(&own).unwrap();
        assert!(functions.is_sorted_by_key(|function| function.address));
        assert!(functions.iter().any(|function| function.name == "main"));
    }
}
