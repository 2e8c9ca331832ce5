"""Recordings from the files of watches, wristbands, hospitals and databases, and the segment store they are ingested into.

Public names load on first use; importing this package loads neither torch nor scipy.
"""

from typing import TYPE_CHECKING

from mc_core.lazy import attach

if TYPE_CHECKING:
    from mc_wearables.data.config import IngestOptions, ReadOptions
    from mc_wearables.data.ingestion import IngestReport, ingest
    from mc_wearables.data.opening import UNDERSTOOD, Source, list_sources, open_recordings
    from mc_wearables.data.privacy import Salt
    from mc_wearables.data.quality import Quality, assess
    from mc_wearables.data.recording import Recording
    from mc_wearables.data.segmenter import REASONS, Cut, cut_segments, segment_recordings
    from mc_wearables.data.segments import Segments, standardise
    from mc_wearables.data.store import SegmentStore

__all__ = [
    "REASONS",
    "UNDERSTOOD",
    "Cut",
    "IngestOptions",
    "IngestReport",
    "Quality",
    "ReadOptions",
    "Recording",
    "Salt",
    "SegmentStore",
    "Segments",
    "Source",
    "assess",
    "cut_segments",
    "ingest",
    "list_sources",
    "open_recordings",
    "segment_recordings",
    "standardise",
]

__getattr__, __dir__ = attach(
    __name__,
    {
        "config": ["IngestOptions", "ReadOptions"],
        "ingestion": ["IngestReport", "ingest"],
        "opening": ["UNDERSTOOD", "Source", "list_sources", "open_recordings"],
        "privacy": ["Salt"],
        "quality": ["Quality", "assess"],
        "recording": ["Recording"],
        "segmenter": ["REASONS", "Cut", "cut_segments", "segment_recordings"],
        "segments": ["Segments", "standardise"],
        "store": ["SegmentStore"],
    },
)
