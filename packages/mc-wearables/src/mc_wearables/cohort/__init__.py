"""Simulated cohorts of wearers: a closed-form generator of PPG and ECG whose participants are known inside out.

Numbers measured on these cohorts say how a method behaves, never how well anything works in health.

Public names load on first use; importing this package loads no torch.
"""

from typing import TYPE_CHECKING

from mc_core.lazy import attach

if TYPE_CHECKING:
    from mc_wearables.cohort.generator import DEVICES, Cohort, Device, Oracle, simulate_cohort
    from mc_wearables.cohort.traits import TARGETS

__all__ = ["DEVICES", "TARGETS", "Cohort", "Device", "Oracle", "simulate_cohort"]

__getattr__, __dir__ = attach(
    __name__,
    {"generator": ["DEVICES", "Cohort", "Device", "Oracle", "simulate_cohort"], "traits": ["TARGETS"]},
)
