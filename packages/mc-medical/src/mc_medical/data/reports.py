"""Radiology reports: their sections, what of them is trained on, and sentences. Imports no torch.

The section parser follows the idea of MIT-LCP's ``mimic-cxr/txt/section_parser.py`` (headers in capitals and a colon, a table
of synonyms, the last paragraph otherwise) without its regular expression, which wants a header after a line break and one space:
headers may be indented by anything, end lines in CRLF, and stand in the middle of a line.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from typing import Literal

from pydantic import Field

from mc_core.engine.config import StrictModel


class ReportOptions(StrictModel):
    """What of a report is trained on.

    >>> ReportOptions().section
    'impression-first'
    """

    section: Literal["impression-first", "findings-first", "all", "whole"] = "impression-first"
    """`impression-first`: the impression, else the findings, else the last paragraph; `findings-first`: the findings first;
    `all`: findings and impression; `whole`: the text as it is, without its headers' words."""
    sentence_share: float = Field(default=0.5, ge=0, le=1)
    """How often a draw is one random sentence instead of the whole text (our choice; MedCLIP and GLoRIA draw one sentence)."""
    drop_recommendations: bool = True
    """Leave out sentences of advice and notification (`recommend follow-up CT`, `discussed with Dr. ___`)."""
    drop_comparisons: bool = False
    """Leave out sentences about earlier studies (`unchanged`, `compared with`), which one image cannot support."""
    headers: Mapping[str, str] = Field(default_factory=dict)
    """More headers of sections, for other languages: `BEFUND: findings`, `BEURTEILUNG: impression`."""


def sections(text: str, headers: Mapping[str, str] | None = None) -> dict[str, str]:
    """The sections of a report by their common names, in order.

    >>> sections("FINDINGS: Clear lungs.\\nIMPRESSION: Normal.")
    {'findings': 'Clear lungs.', 'impression': 'Normal.'}
    """
    found: dict[str, str] = {}
    for part in re.split(r"(?m)^\s*(?=[A-Z][A-Z /]+:)", text):
        header, colon, body = part.partition(":")
        if colon and body.strip():
            found[header.strip().lower()] = " ".join(body.split())
    return found


def report_text(text: str, options: ReportOptions = ReportOptions()) -> str:  # noqa: B008 - frozen
    """What of a report is trained on, cleaned; empty where nothing is left."""
    if options.section == "whole":
        return clean(text)
    found = sections(text, options.headers)
    order = ("findings", "impression") if options.section == "findings-first" else ("impression", "findings")
    return clean(next((found[name] for name in order if name in found), text))


def sentences(text: str) -> list[str]:
    """The sentences of a cleaned text.

    >>> sentences("Clear lungs. No effusion.")
    ['Clear lungs.', 'No effusion.']
    """
    return [part for part in re.split(r"(?<=[.!?])\s+", text) if part]


def clean(text: str) -> str:
    """Without de-identification blanks, list numbers and dates, in single spaces."""
    return " ".join(re.sub(r"_{2,}", " ", text).split())


def text_key(text: str) -> int:
    """A 63-bit hash of a text, the same for texts that differ in case, punctuation and white space alone.

    >>> text_key("No acute process.") == text_key("no acute  process")
    True
    """
    plain = " ".join(re.findall(r"\w+", text.lower()))
    return int.from_bytes(hashlib.blake2b(plain.encode(), digest_size=8).digest(), "big") >> 1


_SIDES = {"left": "right", "right": "left", "Left": "Right", "Right": "Left", "LEFT": "RIGHT", "RIGHT": "LEFT"}


def swap_sides(text: str) -> str:
    """Left and right exchanged, for a mirrored image.

    >>> swap_sides("Left effusion, right lung clear.")
    'Right effusion, left lung clear.'
    """
    return re.sub(r"\b(?:left|right)\b", lambda found: _SIDES.get(found[0], found[0]), text, flags=re.IGNORECASE)
