//! Findings about the host, in frames.

use proto_rkyv::Reply;

use super::cut;
use crate::job::{Finding, Verdict};

/// Longest text of a finding that is sent, and how many findings travel in one frame: together below the limit
/// of a control frame.
const TEXT_BYTES_MAX: usize = 1 << 10;
const FINDINGS_PER_FRAME: usize = 8;
const _: () =
    assert!(5 * TEXT_BYTES_MAX * FINDINGS_PER_FRAME < proto_rkyv::CONTROL_BYTES_MAX as usize);

/// All findings, in as many replies as it takes.
pub(in crate::front) fn findings(findings: Vec<Finding>) -> Vec<Reply> {
    let findings: Vec<_> = findings.into_iter().map(finding).collect();
    findings
        .chunks(FINDINGS_PER_FRAME)
        .map(|some| Reply::Findings(some.to_vec()))
        .collect()
}

fn finding(finding: Finding) -> proto_rkyv::Finding {
    let short = |mut text: String| {
        cut(&mut text, TEXT_BYTES_MAX);
        text
    };
    proto_rkyv::Finding {
        promise: short(finding.promise),
        verdict: match finding.verdict {
            Verdict::Enforced => proto_rkyv::Verdict::Enforced,
            Verdict::Partly => proto_rkyv::Verdict::Partly,
            Verdict::NotEnforced => proto_rkyv::Verdict::NotEnforced,
        },
        mechanism: short(finding.mechanism),
        detail: short(finding.detail),
        remedy: finding.remedy.map(short),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn findings_of_any_length_fit_frames_and_keep_their_order() {
        let one = |number: usize| Finding {
            promise: number.to_string(),
            verdict: Verdict::Partly,
            mechanism: "m".repeat(100_000),
            detail: "ü".repeat(100_000),
            remedy: Some("r".repeat(100_000)),
        };
        let replies = findings((0..20).map(one).collect());
        let mut found = Vec::new();
        for reply in &replies {
            assert!(proto_rkyv::encode(reply).is_ok());
            let Reply::Findings(some) = reply else {
                panic!("{reply:?}")
            };
            found.extend(some.iter().map(|finding| finding.promise.clone()));
        }
        assert_eq!(
            found,
            (0..20).map(|number| number.to_string()).collect::<Vec<_>>()
        );
        assert_eq!(findings(Vec::new()), []);
    }
}
