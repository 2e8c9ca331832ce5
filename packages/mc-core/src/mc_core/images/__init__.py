"""Pictures: decoding, random crops, changes of colour and place. Needs Pillow for files, and torch for batches.

Public names load on first use; importing this package loads neither.
"""

from typing import TYPE_CHECKING

from mc_core.lazy import attach

if TYPE_CHECKING:
    from mc_core.images.decoding import IMAGE_EXTENSIONS, decode, read_file, stored_header, to_channels

__all__ = ["IMAGE_EXTENSIONS", "decode", "read_file", "stored_header", "to_channels"]

__getattr__, __dir__ = attach(
    __name__,
    {"decoding": ["IMAGE_EXTENSIONS", "decode", "read_file", "stored_header", "to_channels"]},
)
