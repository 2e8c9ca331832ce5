"""Momentum contrast for wearable biosignals: participant-contrast encoders of PPG and ECG, from raw files to probes.

Public names load on first use; importing this package loads no torch.
"""

from typing import TYPE_CHECKING

from mc_core.lazy import attach

if TYPE_CHECKING:
    from mc_wearables.cohort import Cohort, simulate_cohort
    from mc_wearables.data.config import IngestOptions
    from mc_wearables.data.ingestion import IngestReport, ingest
    from mc_wearables.data.pairs import PairData
    from mc_wearables.data.segments import Segments
    from mc_wearables.data.store import SegmentStore
    from mc_wearables.deployment import DeviceReport, export_for_device
    from mc_wearables.embedding import embed, embed_segments, untrained_like
    from mc_wearables.encoders import SignalEncoder, load_encoder
    from mc_wearables.encoders_config import EncoderConfig
    from mc_wearables.evaluation import Features, participant_split, probe, reidentification
    from mc_wearables.features import classical_features, heart_rate
    from mc_wearables.methods import METHODS
    from mc_wearables.recipe import Recipe, resolve_recipe

__version__ = "0.1.0"

__all__ = [
    "METHODS",
    "Cohort",
    "DeviceReport",
    "EncoderConfig",
    "Features",
    "IngestOptions",
    "IngestReport",
    "PairData",
    "Recipe",
    "SegmentStore",
    "Segments",
    "SignalEncoder",
    "__version__",
    "classical_features",
    "embed",
    "embed_segments",
    "export_for_device",
    "heart_rate",
    "ingest",
    "load_encoder",
    "participant_split",
    "probe",
    "reidentification",
    "resolve_recipe",
    "simulate_cohort",
    "untrained_like",
]

__getattr__, __dir__ = attach(
    __name__,
    {
        "cohort": ["Cohort", "simulate_cohort"],
        "data.config": ["IngestOptions"],
        "data.ingestion": ["IngestReport", "ingest"],
        "data.pairs": ["PairData"],
        "data.segments": ["Segments"],
        "data.store": ["SegmentStore"],
        "deployment": ["DeviceReport", "export_for_device"],
        "embedding": ["embed", "embed_segments", "untrained_like"],
        "encoders": ["SignalEncoder", "load_encoder"],
        "encoders_config": ["EncoderConfig"],
        "evaluation": ["Features", "participant_split", "probe", "reidentification"],
        "features": ["classical_features", "heart_rate"],
        "methods": ["METHODS"],
        "recipe": ["Recipe", "resolve_recipe"],
    },
)
