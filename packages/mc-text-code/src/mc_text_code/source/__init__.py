"""Source code: which files, in which language, parsed into tokens with classes and into functions, methods and classes.

Public names load on first use; importing this package loads neither torch nor tree-sitter.
"""

from typing import TYPE_CHECKING

from mc_core.lazy import attach

if TYPE_CHECKING:
    from mc_text_code.source.files import Skipped, SourceFile, SourceListing, source_files
    from mc_text_code.source.languages import LANGUAGES, Language, language_of
    from mc_text_code.source.parsing import Leaves, leaves, parse
    from mc_text_code.source.reading import SourceText, read_source
    from mc_text_code.source.standard_library import standard_library_files
    from mc_text_code.source.token_classes import TOKEN_CLASSES, TYPE_TOKENS
    from mc_text_code.source.units import Unit, units_of
    from mc_text_code.source.words import split_words

__all__ = [
    "LANGUAGES",
    "TOKEN_CLASSES",
    "TYPE_TOKENS",
    "Language",
    "Leaves",
    "Skipped",
    "SourceFile",
    "SourceListing",
    "SourceText",
    "Unit",
    "language_of",
    "leaves",
    "parse",
    "read_source",
    "source_files",
    "split_words",
    "standard_library_files",
    "units_of",
]

__getattr__, __dir__ = attach(
    __name__,
    {
        "files": ["Skipped", "SourceFile", "SourceListing", "source_files"],
        "languages": ["LANGUAGES", "Language", "language_of"],
        "parsing": ["Leaves", "leaves", "parse"],
        "reading": ["SourceText", "read_source"],
        "standard_library": ["standard_library_files"],
        "token_classes": ["TOKEN_CLASSES", "TYPE_TOKENS"],
        "units": ["Unit", "units_of"],
        "words": ["split_words"],
    },
)
