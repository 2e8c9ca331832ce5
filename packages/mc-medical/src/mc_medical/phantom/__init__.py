"""Phantom chest radiographs: procedural anatomy, findings at known places, and templated reports. No patient was involved.

Public names load on first use; importing this package loads no torch.
"""

from typing import TYPE_CHECKING

from mc_core.lazy import attach

if TYPE_CHECKING:
    from mc_medical.phantom.findings import Finding
    from mc_medical.phantom.generator import PhantomFiles, PhantomImage, phantom_patient, write_phantoms
    from mc_medical.phantom.reports import Report, write_report

__all__ = [
    "Finding",
    "PhantomFiles",
    "PhantomImage",
    "Report",
    "phantom_patient",
    "write_phantoms",
    "write_report",
]

__getattr__, __dir__ = attach(
    __name__,
    {
        "findings": ["Finding"],
        "generator": ["PhantomFiles", "PhantomImage", "phantom_patient", "write_phantoms"],
        "reports": ["Report", "write_report"],
    },
)
