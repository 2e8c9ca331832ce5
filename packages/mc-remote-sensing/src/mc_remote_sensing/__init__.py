"""Momentum contrast for remote sensing: segmentation from imagery and elevation. Public names load on first use."""

__version__ = "0.1.0"

__all__ = ["__version__"]
