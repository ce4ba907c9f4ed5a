//! Reads `benches/PROMISES.md` and judges measured numbers by it. Shared by the benches and `tools/compare`.

/// One number we claim.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Promise {
    /// Its name, the first cell of its row.
    pub(crate) key: String,
    bound: Bound,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Bound {
    Most(f64),
    Least(f64),
}

impl Promise {
    /// All rows of the table whose first cell is a `` `key` `` and whose second is `≤ x` or `≥ x`.
    pub(crate) fn read(text: &str) -> Vec<Self> {
        text.lines().filter_map(Self::row).collect()
    }

    fn row(line: &str) -> Option<Self> {
        let mut cells = line.trim().strip_prefix('|')?.split('|').map(str::trim);
        let key = cells
            .next()?
            .strip_prefix('`')?
            .strip_suffix('`')?
            .to_owned();
        let bound = cells.next()?;
        let number = |text: &str| text.trim().parse().ok();
        let bound = if let Some(rest) = bound.strip_prefix('≤') {
            Bound::Most(number(rest)?)
        } else {
            Bound::Least(number(bound.strip_prefix('≥')?)?)
        };
        Some(Self { key, bound })
    }

    /// Whether `measured` keeps it.
    pub(crate) fn holds(&self, measured: f64) -> bool {
        match self.bound {
            Bound::Most(most) => measured <= most,
            Bound::Least(least) => measured >= least,
        }
    }
}

impl std::fmt::Display for Promise {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.bound {
            Bound::Most(most) => write!(f, "{} ≤ {most}", self.key),
            Bound::Least(least) => write!(f, "{} ≥ {least}", self.key),
        }
    }
}

/// A line for each promise that one of `measured` is about, and whether all of them hold.
pub(crate) fn judge(promises: &[Promise], measured: &[(&str, f64)]) -> (Vec<String>, bool) {
    let mut lines = Vec::new();
    let mut all_hold = true;
    for (key, value) in measured {
        let Some(promise) = promises.iter().find(|promise| promise.key == *key) else {
            continue;
        };
        let holds = promise.holds(*value);
        all_hold &= holds;
        lines.push(format!(
            "{} {promise}: {value:.3}",
            if holds { "holds " } else { "BROKEN" }
        ));
    }
    (lines, all_hold)
}
