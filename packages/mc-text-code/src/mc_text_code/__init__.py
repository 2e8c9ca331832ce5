"""Momentum contrast for text and code: sentence embeddings from raw text, as a citizen of sentence-transformers.

Public names load on first use; importing this package loads no torch.
"""

from typing import TYPE_CHECKING

from mc_core.lazy import attach

if TYPE_CHECKING:
    from mc_text_code.augment_config import AugmentConfig
    from mc_text_code.claims import component_claims
    from mc_text_code.code_recipe import CodeRecipe, resolve_code_recipe
    from mc_text_code.code_training import train_code
    from mc_text_code.data.code_data import CodeData
    from mc_text_code.data.code_files import open_pairs, write_pairs
    from mc_text_code.data.code_mining import MinedPairs, mine, mine_standard_library
    from mc_text_code.data.code_pairs import CodePair, split_pairs
    from mc_text_code.data.code_rules import MiningOptions
    from mc_text_code.data.code_search_sets import CodeSearchSet, open_search_set
    from mc_text_code.data.pairs import SentenceData
    from mc_text_code.data.sentence_files import open_sentences
    from mc_text_code.data.sentences import Sentences
    from mc_text_code.data.stdlib import standard_library_sentences
    from mc_text_code.data.sts import StsTask, open_sts
    from mc_text_code.dedup import Duplicates, find_duplicates
    from mc_text_code.encoders import SentenceEncoder
    from mc_text_code.encoders_config import EncoderConfig
    from mc_text_code.evaluation import evaluate_length_bias, evaluate_sentences, evaluate_sts
    from mc_text_code.methods import METHODS
    from mc_text_code.recipe import Recipe, resolve_recipe
    from mc_text_code.saving import load_encoder, save_sentence_transformer
    from mc_text_code.search import Hits, SentenceIndex, search_lexical
    from mc_text_code.source import TOKEN_CLASSES, Leaves, Unit, leaves, source_files, units_of
    from mc_text_code.tokenizers import load_tokenizer, train_tokenizer
    from mc_text_code.trainer import ESimCSECallback, ESimCSECollator, ESimCSELoss
    from mc_text_code.training import pretrain_sentences

__version__ = "0.1.0"

__all__ = [
    "METHODS",
    "TOKEN_CLASSES",
    "AugmentConfig",
    "CodeData",
    "CodePair",
    "CodeRecipe",
    "CodeSearchSet",
    "Duplicates",
    "ESimCSECallback",
    "ESimCSECollator",
    "ESimCSELoss",
    "EncoderConfig",
    "Hits",
    "Leaves",
    "MinedPairs",
    "MiningOptions",
    "Recipe",
    "SentenceData",
    "SentenceEncoder",
    "SentenceIndex",
    "Sentences",
    "StsTask",
    "Unit",
    "__version__",
    "component_claims",
    "evaluate_length_bias",
    "evaluate_sentences",
    "evaluate_sts",
    "find_duplicates",
    "leaves",
    "load_encoder",
    "load_tokenizer",
    "mine",
    "mine_standard_library",
    "open_pairs",
    "open_search_set",
    "open_sentences",
    "open_sts",
    "pretrain_sentences",
    "resolve_code_recipe",
    "resolve_recipe",
    "save_sentence_transformer",
    "search_lexical",
    "source_files",
    "split_pairs",
    "standard_library_sentences",
    "train_code",
    "train_tokenizer",
    "units_of",
    "write_pairs",
]

__getattr__, __dir__ = attach(
    __name__,
    {
        "augment_config": ["AugmentConfig"],
        "claims": ["component_claims"],
        "code_recipe": ["CodeRecipe", "resolve_code_recipe"],
        "code_training": ["train_code"],
        "data.code_data": ["CodeData"],
        "data.code_files": ["open_pairs", "write_pairs"],
        "data.code_mining": ["MinedPairs", "mine", "mine_standard_library"],
        "data.code_pairs": ["CodePair", "split_pairs"],
        "data.code_rules": ["MiningOptions"],
        "data.code_search_sets": ["CodeSearchSet", "open_search_set"],
        "data.pairs": ["SentenceData"],
        "data.sentence_files": ["open_sentences"],
        "data.sentences": ["Sentences"],
        "data.stdlib": ["standard_library_sentences"],
        "data.sts": ["StsTask", "open_sts"],
        "dedup": ["Duplicates", "find_duplicates"],
        "encoders": ["SentenceEncoder"],
        "encoders_config": ["EncoderConfig"],
        "evaluation": ["evaluate_length_bias", "evaluate_sentences", "evaluate_sts"],
        "methods": ["METHODS"],
        "recipe": ["Recipe", "resolve_recipe"],
        "saving": ["load_encoder", "save_sentence_transformer"],
        "search": ["Hits", "SentenceIndex", "search_lexical"],
        "source": ["TOKEN_CLASSES", "Leaves", "Unit", "leaves", "source_files", "units_of"],
        "tokenizers": ["load_tokenizer", "train_tokenizer"],
        "trainer": ["ESimCSECallback", "ESimCSECollator", "ESimCSELoss"],
        "training": ["pretrain_sentences"],
    },
)
