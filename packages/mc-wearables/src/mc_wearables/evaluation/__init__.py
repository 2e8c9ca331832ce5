"""What do frozen embeddings of segments know? Linear probes, re-identification and geometry, on held-out participants.

Every number comes with the participants and segments behind it, and with an interval over participants: segments of one person
are no independent evidence. A participant in both training and test data is an error.

Public names load on first use; importing this package loads no torch.
"""

from typing import TYPE_CHECKING

from mc_core.lazy import attach

if TYPE_CHECKING:
    from mc_wearables.evaluation.identity import (
        IdentityResult,
        dispersion_ratio,
        identity_report,
        reidentification,
        smooth_effective_rank,
    )
    from mc_wearables.evaluation.intervals import (
        METRICS,
        Difference,
        bootstrap_metrics,
        holm,
        metric,
        paired_difference,
    )
    from mc_wearables.evaluation.probes import ProbeResult, compare, probe
    from mc_wearables.evaluation.splits import Features, check_disjoint, participant_split

__all__ = [
    "METRICS",
    "Difference",
    "Features",
    "IdentityResult",
    "ProbeResult",
    "bootstrap_metrics",
    "check_disjoint",
    "compare",
    "dispersion_ratio",
    "holm",
    "identity_report",
    "metric",
    "paired_difference",
    "participant_split",
    "probe",
    "reidentification",
    "smooth_effective_rank",
]

__getattr__, __dir__ = attach(
    __name__,
    {
        "identity": [
            "IdentityResult",
            "dispersion_ratio",
            "identity_report",
            "reidentification",
            "smooth_effective_rank",
        ],
        "intervals": ["METRICS", "Difference", "bootstrap_metrics", "holm", "metric", "paired_difference"],
        "probes": ["ProbeResult", "compare", "probe"],
        "splits": ["Features", "check_disjoint", "participant_split"],
    },
)
