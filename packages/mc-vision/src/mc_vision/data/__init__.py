"""Images from folders, tables, shards, torchvision and Hugging Face, as one type: :class:`ImageSource`.

Public names load on first use; importing this package loads neither torch nor Pillow.
"""

from typing import TYPE_CHECKING

from mc_core.lazy import attach

if TYPE_CHECKING:
    from mc_core.data import BadSampleError
    from mc_vision.data.decoding import IMAGE_EXTENSIONS, decode, to_channels
    from mc_vision.data.folder import PathSource, open_folder
    from mc_vision.data.hf import HubSource, open_hub, open_saved
    from mc_vision.data.opening import UNDERSTOOD, open_source
    from mc_vision.data.shards import ShardSource, open_shards
    from mc_vision.data.source import (
        ArraySource,
        EncodedSource,
        ImageSource,
        ReadOptions,
        SubsetSource,
        align_labels,
        inspect_source,
        split_source,
        subset,
        take,
    )
    from mc_vision.data.table import ParquetSource, open_csv, open_list, open_parquet
    from mc_vision.data.torchvision_sets import TorchvisionSource, open_torchvision

__all__ = [
    "IMAGE_EXTENSIONS",
    "UNDERSTOOD",
    "ArraySource",
    "BadSampleError",
    "EncodedSource",
    "HubSource",
    "ImageSource",
    "ParquetSource",
    "PathSource",
    "ReadOptions",
    "ShardSource",
    "SubsetSource",
    "TorchvisionSource",
    "align_labels",
    "decode",
    "inspect_source",
    "open_csv",
    "open_folder",
    "open_hub",
    "open_list",
    "open_parquet",
    "open_saved",
    "open_shards",
    "open_source",
    "open_torchvision",
    "split_source",
    "subset",
    "take",
    "to_channels",
]

__getattr__, __dir__ = attach(
    __name__,
    {
        "decoding": ["IMAGE_EXTENSIONS", "decode", "to_channels"],
        "folder": ["PathSource", "open_folder"],
        "hf": ["HubSource", "open_hub", "open_saved"],
        "opening": ["UNDERSTOOD", "open_source"],
        "shards": ["ShardSource", "open_shards"],
        "source": [
            "ArraySource",
            "BadSampleError",
            "EncodedSource",
            "ImageSource",
            "ReadOptions",
            "SubsetSource",
            "align_labels",
            "inspect_source",
            "split_source",
            "subset",
            "take",
        ],
        "table": ["ParquetSource", "open_csv", "open_list", "open_parquet"],
        "torchvision_sets": ["TorchvisionSource", "open_torchvision"],
    },
)
