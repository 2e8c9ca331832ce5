"""Momentum contrast for text and code: sentence embeddings from raw text, as a citizen of sentence-transformers.

Public names load on first use; importing this package loads no torch.
"""

__version__ = "0.1.0"

__all__ = ["__version__"]
