"""What is a sentence encoder worth? STS, length bias, geometry and retrieval, beside baselines.

Everything takes a function from sentences to vectors, ``encode(texts) -> (N, D)``, whoever made it.

Public names load on first use; importing this package loads no torch.
"""

from typing import TYPE_CHECKING

from mc_core.lazy import attach

if TYPE_CHECKING:
    from mc_text_code.evaluation.baselines import MeanWordVectors, bm25_scores, tfidf_encoder
    from mc_text_code.evaluation.code_lexical import evaluate_code_lexical, lexical_scores, lexical_table
    from mc_text_code.evaluation.code_search import CodeSearchReport, CodeSpread, evaluate_code_search
    from mc_text_code.evaluation.length_bias import Leak, LengthBias, evaluate_length_bias, length_leak
    from mc_text_code.evaluation.mteb import evaluate_mteb
    from mc_text_code.evaluation.ranks import Ranks
    from mc_text_code.evaluation.retrieval import (
        Queries,
        Retrieval,
        evaluate_retrieval,
        half_queries,
        repeated_queries,
        retrieval_by_scores,
        rewrite_queries,
    )
    from mc_text_code.evaluation.spread import sentence_spread
    from mc_text_code.evaluation.sts import StsEvaluator, StsResult, StsScore, difference_in_sts, evaluate_sts
    from mc_text_code.evaluation.summary import SentenceReport, evaluate_sentences
    from mc_text_code.evaluation.vectors import CachedEncoder, Encode

__all__ = [
    "CachedEncoder",
    "CodeSearchReport",
    "CodeSpread",
    "Encode",
    "Leak",
    "LengthBias",
    "MeanWordVectors",
    "Queries",
    "Ranks",
    "Retrieval",
    "SentenceReport",
    "StsEvaluator",
    "StsResult",
    "StsScore",
    "bm25_scores",
    "difference_in_sts",
    "evaluate_code_lexical",
    "evaluate_code_search",
    "evaluate_length_bias",
    "evaluate_mteb",
    "evaluate_retrieval",
    "evaluate_sentences",
    "evaluate_sts",
    "half_queries",
    "length_leak",
    "lexical_scores",
    "lexical_table",
    "repeated_queries",
    "retrieval_by_scores",
    "rewrite_queries",
    "sentence_spread",
    "tfidf_encoder",
]

__getattr__, __dir__ = attach(
    __name__,
    {
        "baselines": ["MeanWordVectors", "bm25_scores", "tfidf_encoder"],
        "code_lexical": ["evaluate_code_lexical", "lexical_scores", "lexical_table"],
        "code_search": ["CodeSearchReport", "CodeSpread", "evaluate_code_search"],
        "length_bias": ["Leak", "LengthBias", "evaluate_length_bias", "length_leak"],
        "mteb": ["evaluate_mteb"],
        "ranks": ["Ranks"],
        "retrieval": [
            "Queries",
            "Retrieval",
            "half_queries",
            "repeated_queries",
            "evaluate_retrieval",
            "retrieval_by_scores",
            "rewrite_queries",
        ],
        "spread": ["sentence_spread"],
        "sts": ["StsEvaluator", "StsResult", "StsScore", "difference_in_sts", "evaluate_sts"],
        "summary": ["SentenceReport", "evaluate_sentences"],
        "vectors": ["CachedEncoder", "Encode"],
    },
)
