"""Pictures with captions from tables, folders, tars, published annotation files and Hugging Face, as one type: :class:`Pairs`.

Public names load on first use; importing this package loads neither torch nor Pillow.
"""

from typing import TYPE_CHECKING

from mc_core.lazy import attach

if TYPE_CHECKING:
    from mc_vision_language.data.captions import clean_caption, names_sides, text_key
    from mc_vision_language.data.images import (
        ArrayImages,
        FileImages,
        ImageSet,
        read_image,
        squashed,
    )
    from mc_vision_language.data.opening import UNDERSTOOD, open_pairs
    from mc_vision_language.data.options import CaptionOptions, ColumnOptions, ReadOptions, SplitOptions
    from mc_vision_language.data.pair_data import PairData
    from mc_vision_language.data.pairs import SPLITS, Pairs, divide, scene_pairs, shuffled_captions
    from mc_vision_language.data.stored_images import HubImages, ParquetImages, TarImages
    from mc_vision_language.data.views import ImageViews

_NAMES = {
    "captions": ["clean_caption", "names_sides", "text_key"],
    "images": ["ArrayImages", "FileImages", "ImageSet", "read_image", "squashed"],
    "options": ["CaptionOptions", "ColumnOptions", "ReadOptions", "SplitOptions"],
    "opening": ["UNDERSTOOD", "open_pairs"],
    "pair_data": ["PairData"],
    "pairs": ["SPLITS", "Pairs", "divide", "scene_pairs", "shuffled_captions"],
    "stored_images": ["HubImages", "ParquetImages", "TarImages"],
    "views": ["ImageViews"],
}

__all__ = [
    "SPLITS",
    "UNDERSTOOD",
    "ArrayImages",
    "CaptionOptions",
    "ColumnOptions",
    "FileImages",
    "HubImages",
    "ImageSet",
    "ImageViews",
    "PairData",
    "Pairs",
    "ParquetImages",
    "ReadOptions",
    "SplitOptions",
    "TarImages",
    "clean_caption",
    "divide",
    "names_sides",
    "open_pairs",
    "read_image",
    "scene_pairs",
    "shuffled_captions",
    "squashed",
    "text_key",
]

__getattr__, __dir__ = attach(__name__, _NAMES)
