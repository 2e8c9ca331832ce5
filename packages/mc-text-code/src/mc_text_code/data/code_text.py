"""A function as the text that an encoder reads, with the class of each character. Imports no torch: other processes work here.

Legend: S bytes of a source, C characters of a text.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from mc_text_code.data.code_pairs import CodePair
from mc_text_code.source.languages import LANGUAGES, installed
from mc_text_code.source.parsing import leaves
from mc_text_code.source.token_classes import CLASS_IDS

CodeForm = Literal["tokens", "source"]
OWN_NAME = 0x80
"""Bit of a character's class where the function's own name stands."""
_OTHER = CLASS_IDS["other"]


@dataclass(frozen=True)
class ClassedText:
    """A text, and the class of each of its characters.

    Attributes:
        text: C characters.
        classes: (C,) uint8: class ids as in :data:`~mc_text_code.source.token_classes.TOKEN_CLASSES` from 1, 0 for white space;
            the highest bit is set where the function's own name stands.
    """

    text: str
    classes: np.ndarray


def classed_text(pair: CodePair, form: CodeForm = "source") -> ClassedText:
    """What an encoder reads of a function, its characters classed by the syntax tree.

    Args:
        pair: its code, language and name.
        form: ``"tokens"``: the tokens with a space between them, as in the published data; ``"source"``: the text as it is.

    Returns:
        Without a grammar for the language every character that is no white space is ``other``.

    >>> found = classed_text(CodePair("", "x = 'é'", "python"))
    >>> found.classes.tolist()  # identifier, operator, string
    [2, 0, 7, 0, 4, 4, 4]
    >>> classed_text(CodePair("", "x='é'", "python"), "tokens").text
    "x = ' é '"
    """
    if not installed_grammar(pair.language):
        text = " ".join(pair.code.split()) if form == "tokens" else pair.code
        ink = np.fromiter((not character.isspace() for character in text), dtype=bool, count=len(text))
        return ClassedText(text, np.where(ink, _OTHER, 0).astype(np.uint8))
    source = pair.code.encode("utf-8", "replace")
    found = leaves(source, pair.language)
    values = found.class_ids.copy()
    if pair.name:
        named = np.flatnonzero(found.ends - found.starts == len(pair.name.encode()))
        own = [
            place for place in named.tolist() if source[found.starts[place] : found.ends[place]] == pair.name.encode()
        ]
        values[own] |= OWN_NAME
    if form == "tokens":
        text, starts = found.joined(source)
        ends = np.append(starts[1:] - 1, len(text)) if len(starts) else starts
    else:
        text = source.decode()
        places = _characters(source)
        starts, ends = places[found.starts], places[found.ends]
    edges = np.zeros(len(text) + 1, dtype=np.int64)  # leaves do not overlap: their classes are the sum of their steps
    np.add.at(edges, starts, values)
    np.subtract.at(edges, ends, values.astype(np.int64))
    return ClassedText(text, np.cumsum(edges[:-1]).astype(np.uint8))


def _characters(source: bytes) -> np.ndarray:
    """(S + 1,) which character each byte begins or lies in."""
    begins = (np.frombuffer(source, dtype=np.uint8) & 0xC0) != 0x80
    return np.concatenate([[0], np.cumsum(begins)])


def installed_grammar(language: str) -> bool:
    """Whether source code of this language can be parsed here."""
    return language in LANGUAGES and installed(language)


class Classing:
    """:func:`classed_text` with its form, in a shape that goes to other processes."""

    def __init__(self, form: CodeForm) -> None:
        self.form: CodeForm = form

    def __call__(self, pair: CodePair) -> ClassedText:
        return classed_text(pair, self.form)
