"""From encoded bytes to 8-bit pixels; the work is done by :mod:`mc_core.images.decoding`."""

from mc_core.images.decoding import IMAGE_EXTENSIONS, decode, to_channels

__all__ = ["IMAGE_EXTENSIONS", "decode", "to_channels"]
