//! What this host keeps of the promises, one by one.

/// One promise of the product and what stands behind it here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// Short name of the promise, stable: `max-memory`, `no-new-privileges`.
    pub promise: String,
    /// Whether it holds.
    pub verdict: Verdict,
    /// What enforces it on this host: `cgroup v1 memory`, `user namespace`.
    pub mechanism: String,
    /// What was measured, or why it does not hold.
    pub detail: String,
    /// What to do about it, when it does not hold.
    pub remedy: Option<String>,
}

/// Whether a promise holds on this host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It was tried and holds.
    Enforced,
    /// It holds in the cases that `detail` names.
    Partly,
    /// It does not hold.
    NotEnforced,
}
