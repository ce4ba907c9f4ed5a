//! Licences of all dependencies against the list in `deny.toml`, without a network.
//!
//! This is the part of cargo-deny that can be had for nothing: building that tool takes longer than
//! building the product. It reads one list of `deny.toml` and the SPDX expressions cargo reports.

use std::{collections::BTreeSet, fs, path::Path, process::Command};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::host;

/// Fails, naming each package, when a dependency has a licence that `deny.toml` does not allow or comes from
/// elsewhere than the workspace and the registry.
pub(crate) fn check(root: &Path) -> Result<()> {
    let path = root.join("deny.toml");
    let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    let allowed = allow_list(&text)
        .with_context(|| format!("no [licenses] allow list in {}", path.display()))?;
    let output = Command::new("cargo")
        .args([
            "metadata",
            "--format-version",
            "1",
            "--locked",
            "--filter-platform",
            &host()?,
        ])
        .current_dir(root)
        .output()
        .context("start cargo metadata")?;
    ensure!(
        output.status.success(),
        "cargo metadata: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    let metadata: Value =
        serde_json::from_slice(&output.stdout).context("read the answer of cargo metadata")?;
    let packages = metadata["packages"]
        .as_array()
        .context("cargo metadata lists no packages")?;
    let refused: Vec<String> = packages
        .iter()
        .filter_map(|package| refusal(package, &allowed))
        .collect();
    ensure!(
        refused.is_empty(),
        "not allowed by deny.toml:\n  {}",
        refused.join("\n  ")
    );
    eprintln!(
        "xtask: {} packages, all under allowed licences",
        packages.len()
    );
    Ok(())
}

/// Why a package is not allowed, if it is not.
fn refusal(package: &Value, allowed: &BTreeSet<String>) -> Option<String> {
    let text = |key: &str| package[key].as_str().unwrap_or_default().to_owned();
    let (name, version, licence) = (text("name"), text("version"), text("license"));
    let source = package["source"].as_str();
    // Everything comes from the registry that cargo is set up with; nothing from a repository.
    if source.is_some_and(|source| !source.starts_with("registry+")) {
        return Some(format!("{name} {version} comes from {}", text("source")));
    }
    if Expression::parse(&licence).is_some_and(|expression| expression.holds(allowed)) {
        return None;
    }
    Some(format!("{name} {version} has licence {licence:?}"))
}

/// The strings of `allow = [ … ]` in the section `[licenses]`.
fn allow_list(text: &str) -> Option<BTreeSet<String>> {
    let without_comments: Vec<&str> = text
        .lines()
        .map(|line| line.split('#').next().unwrap_or_default())
        .collect();
    let text = without_comments.join("\n");
    let section = text.split("[licenses]").nth(1)?;
    let section = section.split("\n[").next()?;
    let list = section
        .split("allow")
        .nth(1)?
        .split('[')
        .nth(1)?
        .split(']')
        .next()?;
    Some(
        list.split('"')
            .skip(1)
            .step_by(2)
            .map(str::to_owned)
            .collect(),
    )
}

/// An SPDX expression, as far as the registry uses them.
#[derive(Debug, PartialEq, Eq)]
enum Expression {
    Licence(String),
    All(Vec<Expression>),
    Any(Vec<Expression>),
}

impl Expression {
    /// `A OR B`, `A/B` (old), `A AND (B OR C)`, `A WITH exception`.
    fn parse(text: &str) -> Option<Self> {
        let spaced = text
            .replace('/', " OR ")
            .replace('(', " ( ")
            .replace(')', " ) ");
        let words: Vec<&str> = spaced.split_whitespace().collect();
        let mut rest = &words[..];
        let expression = Self::any(&mut rest)?;
        rest.is_empty().then_some(expression)
    }

    fn any(rest: &mut &[&str]) -> Option<Self> {
        let mut parts = vec![Self::all(rest)?];
        while let ["OR", after @ ..] = *rest {
            *rest = after;
            parts.push(Self::all(rest)?);
        }
        Some(Self::Any(parts))
    }

    fn all(rest: &mut &[&str]) -> Option<Self> {
        let mut parts = vec![Self::one(rest)?];
        while let ["AND", after @ ..] = *rest {
            *rest = after;
            parts.push(Self::one(rest)?);
        }
        Some(Self::All(parts))
    }

    fn one(rest: &mut &[&str]) -> Option<Self> {
        match *rest {
            ["(", after @ ..] => {
                *rest = after;
                let inner = Self::any(rest)?;
                let [")", after @ ..] = *rest else {
                    return None;
                };
                *rest = after;
                Some(inner)
            }
            ["OR" | "AND" | "WITH" | ")", ..] | [] => None,
            [licence, "WITH", exception, after @ ..] => {
                *rest = after;
                Some(Self::Licence(format!("{licence} WITH {exception}")))
            }
            [licence, after @ ..] => {
                *rest = after;
                Some(Self::Licence((*licence).to_owned()))
            }
        }
    }

    fn holds(&self, allowed: &BTreeSet<String>) -> bool {
        match self {
            Self::Licence(name) => allowed.contains(name),
            Self::All(parts) => parts.iter().all(|part| part.holds(allowed)),
            Self::Any(parts) => parts.iter().any(|part| part.holds(allowed)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expected: Option<bool>) {
        let allowed = [
            "MIT",
            "Apache-2.0",
            "Unicode-3.0",
            "Apache-2.0 WITH LLVM-exception",
        ];
        let allowed = allowed.map(str::to_owned).into();
        assert_eq!(
            Expression::parse(text).map(|e| e.holds(&allowed)),
            expected,
            "{text}"
        );
    }

    #[test]
    fn expressions_hold_as_their_words_say() {
        check("MIT", Some(true));
        check("GPL-3.0", Some(false));
        check("GPL-3.0 OR MIT", Some(true));
        check("GPL-3.0/MIT", Some(true));
        check("GPL-3.0 AND MIT", Some(false));
        check("(MIT OR GPL-3.0) AND Unicode-3.0", Some(true));
        check("(MIT OR Apache-2.0) AND GPL-3.0", Some(false));
        check("GPL-2.0 OR (MIT AND Unicode-3.0)", Some(true));
        check("Apache-2.0 WITH LLVM-exception", Some(true));
        check("MIT WITH other-exception", Some(false));
    }

    #[test]
    fn what_is_no_expression_is_not_allowed() {
        for text in [
            "",
            "OR",
            "MIT OR",
            "(MIT",
            "MIT)",
            "MIT Apache-2.0",
            "WITH x",
        ] {
            check(text, None);
        }
    }

    #[test]
    fn the_allow_list_is_that_of_the_licences() {
        let text = "[bans]\nallow = [\"x\"]\n[licenses] # which\nallow = [\n  \"MIT\", # \"no\"\n  \"ISC\",\n]\n[sources]\n";
        assert_eq!(
            allow_list(text),
            Some(["ISC", "MIT"].map(str::to_owned).into())
        );
        assert_eq!(allow_list("[bans]\n"), None);
    }
}
