"""Captions as the paper writes them: lower case, without punctuation, at most 30 words."""

from __future__ import annotations

import re
from hashlib import blake2b

from mc_vision_language.data.options import CaptionOptions

_DELETED = re.compile(r"[,.'!?\"()*#:;~]")
_TO_BLANK = re.compile(r"[-/]")
_SIDES = re.compile(r"\b(left|right)\b", re.IGNORECASE)


def clean_caption(text: str, options: CaptionOptions = CaptionOptions()) -> str:  # noqa: B008 - frozen
    """One caption, cleaned as in ALBEF's ``pre_caption`` (Li et al. 2021): lower case, ``, . ' ! ? " ( ) * # : ; ~`` deleted, ``-``
    and ``/`` to blanks, ``<person>`` to person, blanks squeezed, cut to ``max_words``.

    Args:
        text: as written.
        options: with ``clean=False`` blanks are squeezed and words are cut, nothing else.

    Returns:
        The caption; empty if nothing is left.

    >>> clean_caption("Two dogs -- a <person>'s dogs! -- on/off the grass.")
    'two dogs a persons dogs on off the grass'
    """
    if options.clean:
        text = _TO_BLANK.sub(" ", _DELETED.sub("", text.lower())).replace("<person>", "person")
    return " ".join(text.split()[: options.max_words])


def text_key(text: str) -> int:
    """A number in [0, 2⁶³) that is the same for the same words, on any machine.

    >>> text_key("a red house") == text_key("a red house"), text_key("a red house") == text_key("a red boat")
    (True, False)
    """
    return int.from_bytes(blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big") >> 1


def names_sides(text: str) -> bool:
    """Whether a caption says left or right, which a mirrored picture contradicts.

    >>> names_sides("a cup left of a plate"), names_sides("a bright cup")
    (True, False)
    """
    return _SIDES.search(text) is not None
