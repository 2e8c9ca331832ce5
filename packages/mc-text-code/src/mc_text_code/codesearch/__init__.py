"""Search in source code: an index that keeps itself up to date, words and vectors as one list, a daemon and a server for agents.

Public names load on first use; importing this package, and searching by words, loads no torch.
"""

from typing import TYPE_CHECKING

from mc_core.lazy import attach

if TYPE_CHECKING:
    from mc_text_code.codesearch.answer import Answer, Hit
    from mc_text_code.codesearch.config import IndexConfig, RankingConfig
    from mc_text_code.codesearch.embedding import CodeEncoder, Embedding
    from mc_text_code.codesearch.query import CodeIndex, Status
    from mc_text_code.codesearch.refresh import Refresh

__all__ = [
    "Answer",
    "CodeEncoder",
    "CodeIndex",
    "Embedding",
    "Hit",
    "IndexConfig",
    "RankingConfig",
    "Refresh",
    "Status",
]

__getattr__, __dir__ = attach(
    __name__,
    {
        "answer": ["Answer", "Hit"],
        "config": ["IndexConfig", "RankingConfig"],
        "embedding": ["CodeEncoder", "Embedding"],
        "query": ["CodeIndex", "Status"],
        "refresh": ["Refresh"],
    },
)
