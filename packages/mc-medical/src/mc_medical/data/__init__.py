"""Images, reports and studies, and the pairs drawn from them.

Public names load on first use; importing this package loads neither torch nor pydicom.
"""

from typing import TYPE_CHECKING

from mc_core.lazy import attach

if TYPE_CHECKING:
    from mc_medical.data.cohort import Studies
    from mc_medical.data.columns import ColumnOptions
    from mc_medical.data.image_config import ImageOptions, SplitOptions
    from mc_medical.data.image_ref import ImageRef
    from mc_medical.data.inspection import Inspection, Step, contact_sheet, inspect_image, inspection_figure
    from mc_medical.data.pairs import PairData
    from mc_medical.data.pixels import PixelStore
    from mc_medical.data.radiograph import Radiograph, read_radiograph, square
    from mc_medical.data.reports import ReportOptions, clean, report_text, sections, sentences, text_key
    from mc_medical.data.splits import check_splits, cross_split_duplicates, split_by_patient
    from mc_medical.data.studies import open_studies

__all__ = [
    "ColumnOptions",
    "ImageOptions",
    "ImageRef",
    "Inspection",
    "PairData",
    "PixelStore",
    "Radiograph",
    "ReportOptions",
    "SplitOptions",
    "Step",
    "Studies",
    "check_splits",
    "clean",
    "contact_sheet",
    "cross_split_duplicates",
    "inspect_image",
    "inspection_figure",
    "open_studies",
    "read_radiograph",
    "report_text",
    "sections",
    "sentences",
    "split_by_patient",
    "square",
    "text_key",
]

__getattr__, __dir__ = attach(
    __name__,
    {
        "columns": ["ColumnOptions"],
        "image_ref": ["ImageRef"],
        "studies": ["open_studies"],
        "image_config": ["ImageOptions", "SplitOptions"],
        "inspection": ["Inspection", "Step", "contact_sheet", "inspect_image", "inspection_figure"],
        "pairs": ["PairData"],
        "pixels": ["PixelStore"],
        "radiograph": ["Radiograph", "read_radiograph", "square"],
        "reports": ["ReportOptions", "clean", "report_text", "sections", "sentences", "text_key"],
        "splits": ["check_splits", "cross_split_duplicates", "split_by_patient"],
        "cohort": ["Studies"],
    },
)
