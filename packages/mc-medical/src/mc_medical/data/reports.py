"""Radiology reports: their sections, what of them is trained on, and sentences. Imports no torch.

The section parser follows the idea of MIT-LCP's ``mimic-cxr/txt/section_parser.py`` (headers and a colon, a table of synonyms,
the last paragraph otherwise) without its regular expression, which wants a line break and one space before a header: headers
may be indented by anything, end lines in CRLF, and, in capitals, stand in the middle of a line.
"""

from __future__ import annotations

import functools
import hashlib
import re
import unicodedata
from collections.abc import Iterator, Mapping
from typing import Literal

from pydantic import Field, field_validator

from mc_core.engine.config import StrictModel
from mc_medical.data.report_words import (
    ABBREVIATIONS,
    ADVICE,
    BLANKS,
    COMPARISON,
    DATES,
    LIST_NUMBER,
    NOT_CONTENT,
    SYNONYMS,
)

_CAPITALS = re.compile(r"(?m)(?:^[ \t]*|(?<=[.;:])[ \t]+)([A-Z][A-Z0-9 /&,()'-]{1,60}?)[ \t]*:")
_LINE = re.compile(r"(?m)^[ \t]*([^\W\d_][^:\n]{0,60}?)[ \t]*:")
_ALONE = re.compile(r"(?m)^[ \t]*([A-Z][A-Z /&-]{2,40})[ \t]*$")
_SIDE_WORDS = ("left", "right"), ("lll", "rll"), ("lul", "rul"), ("leftward", "rightward"), ("lt", "rt")
_SIDES = {a: b for pair in _SIDE_WORDS for a, b in (pair, pair[::-1])}
_SIDE = re.compile(r"\b(?:" + "|".join(_SIDES) + r")\b", re.IGNORECASE)


class ReportOptions(StrictModel):
    """What of a report is trained on.

    >>> ReportOptions().section
    'impression-first'
    """

    section: Literal["impression-first", "findings-first", "all", "whole"] = "impression-first"
    """`impression-first`: the impression, else the findings, else the last paragraph; `findings-first`: the findings first;
    `all`: findings and impression; `whole`: everything but the headers. A text without any header is taken whole."""
    sentence_share: float = Field(default=0.5, ge=0, le=1)
    """How often a draw is one random sentence instead of the whole text (our choice; MedCLIP and GLoRIA draw one sentence)."""
    drop_recommendations: bool = True
    """Leave out sentences of advice and notification (`recommend follow-up CT`, `discussed with Dr. ___`)."""
    drop_comparisons: bool = False
    """Leave out sentences about earlier studies (`unchanged`, `compared with`), which one image cannot support."""
    headers: tuple[str, ...] = ()
    """More headers of sections, for other languages, each as in `BEFUND=findings`."""

    @field_validator("headers", mode="before")
    @classmethod
    def _as_words(cls, value: object) -> object:
        if isinstance(value, Mapping):
            return tuple(f"{header}={section}" for header, section in value.items())
        return (value,) if isinstance(value, str) else value

    @field_validator("headers")
    @classmethod
    def _pairs(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for one in value:
            header, equals, section = (part.strip() for part in one.partition("="))
            if not (header and equals and section):
                raise ValueError(f"{one!r} names no section; write it as in BEFUND=findings")
        return value

    @property
    def sections_of(self) -> Mapping[str, str]:
        """Header in lower case → section."""
        return _header_table(self.headers)


@functools.lru_cache(maxsize=8)
def _header_table(headers: tuple[str, ...]) -> dict[str, str]:
    return {_header(header): section.strip().lower() for header, _, section in (one.partition("=") for one in headers)}


def sections(text: str, headers: Mapping[str, str] | None = None) -> dict[str, str]:
    """The sections of a report by their common names, in order; what is before the first header is ``preamble``.

    Known headers may be written in any case; unknown ones count when in capitals with a colon, and keep their name in lower
    case. A section that occurs twice is joined.

    Args:
        text: of the report.
        headers: more of them, name → section.

    >>> sections("FINDINGS: Clear lungs.\\r\\n\\r\\n   Conclusion: Normal.")
    {'findings': 'Clear lungs.', 'impression': 'Normal.'}
    """
    found: dict[str, str] = {}
    for name, body in _parts(text, {_header(header): section for header, section in (headers or {}).items()}):
        body = " ".join(body.split())
        if body:
            found[name] = f"{found[name]} {body}" if name in found else body
    return found


def report_text(text: str, options: ReportOptions = ReportOptions()) -> str:  # noqa: B008 - frozen
    """What of a report is trained on, cleaned; empty where nothing is left.

    >>> report_text("INDICATION: Cough.\\n\\nFINDINGS: Clear.\\n\\nIMPRESSION: 1. No pneumonia. 2. Recommend CT.")
    'No pneumonia.'
    """
    found = sections(text, options.sections_of)
    if options.section == "whole":
        return _filtered(" ".join(found.values()), options)
    if set(found) <= {"preamble"}:
        return _filtered(text, options)
    if options.section == "all":
        both = _filtered(" ".join(found[name] for name in ("findings", "impression") if name in found), options)
        if both:
            return both
    order = ("findings", "impression") if options.section == "findings-first" else ("impression", "findings")
    for name in (*order, "wet read"):
        shown = _filtered(found.get(name, ""), options)
        if shown:
            return shown
    return _filtered(_last_paragraph(text, options.sections_of), options)


def sentences(text: str) -> list[str]:
    """The sentences of a cleaned text. Abbreviations and numbers end none; what has no word of three letters is left out.

    >>> sentences("Seen by Dr. Smith. Nodule of 2.5 cm vs. scar? No effusion.")
    ['Seen by Dr. Smith.', 'Nodule of 2.5 cm vs. scar?', 'No effusion.']
    """
    found, start = [], 0
    for gap in re.finditer(r"(?<=[.!?])\s+", text):
        word = text[start : gap.start()].rsplit(None, 1)[-1].lower()
        if word in ABBREVIATIONS or re.fullmatch(r"[a-z]\.", word):
            continue
        found.append(text[start : gap.start()])
        start = gap.end()
    found.append(text[start:])
    return [part for part in found if re.search(r"[^\W\d_]{3}", part)]


def clean(text: str) -> str:
    """Without de-identification blanks, list numbers, dates and times, in single spaces.

    >>> clean("1. Compared to ___ [**2101-3-4**], no change at 10:30 AM.\\n 2.  XXXX seen on 3/14/2019.")
    'Compared to, no change at. seen on.'
    """
    text = unicodedata.normalize("NFC", text)
    text = BLANKS.sub(" ", text)
    if re.search(r"\d", text):
        text = LIST_NUMBER.sub(" ", DATES.sub(" ", text))
    text = re.sub(r"\(\s*\)|\[\s*\]", " ", text)
    text = " ".join(text.split())
    text = re.sub(r"\s+([.,;:!?])", r"\1", text)
    text = re.sub(r"([.,;:!?])(?:\s*\1)+", r"\1", text)
    return re.sub(r"^[\s.,;:!?-]+", "", text).strip()


def text_key(text: str) -> int:
    """A 63-bit hash of a text, the same for texts that differ in case, punctuation and white space alone.

    >>> (
    ...     text_key("No acute process.") == text_key("no acute  process"),
    ...     text_key("Effusion.") == text_key("No effusion."),
    ... )
    (True, False)
    """
    plain = " ".join(re.findall(r"\w+", unicodedata.normalize("NFKC", text).casefold()))
    return int.from_bytes(hashlib.blake2b(plain.encode(), digest_size=8).digest(), "big") >> 1


def swap_sides(text: str) -> str:
    """Left and right exchanged, for a mirrored image; RLL and LLL, RUL and LUL too.

    >>> swap_sides("Left-sided effusion, RLL clear; RIGHT apex.")
    'Right-sided effusion, LLL clear; LEFT apex.'
    """

    def other(found: re.Match[str]) -> str:
        word = _SIDES[found[0].lower()]
        return word.upper() if found[0].isupper() else word.capitalize() if found[0][0].isupper() else word

    return _SIDE.sub(other, text)


def _parts(text: str, headers: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """(section, body) in order."""
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    marks: dict[int, tuple[int, str]] = {}
    for pattern in (_LINE, _CAPITALS, _ALONE):
        for found in pattern.finditer(text):
            plain = _header(found[1])
            if pattern is _CAPITALS or plain in SYNONYMS or plain in headers:
                marks.setdefault(found.start(1), (found.end(), _section(plain, headers)))
    name, start = "preamble", 0
    for place in sorted(marks):
        if place < start:
            continue  # within a longer header
        yield name, text[start:place]
        start, name = marks[place]
    yield name, text[start:]


def _section(plain: str, headers: Mapping[str, str]) -> str:
    if plain in headers:
        return headers[plain]
    if plain in SYNONYMS:
        return SYNONYMS[plain]
    # "CHEST, PA AND LATERAL VIEWS:" begins what is seen on them
    return "findings" if re.search(r"\b(?:views?|chest|radiographs?|portable)\b", plain) else plain


def _header(text: str) -> str:
    return " ".join(text.lower().split())


def _last_paragraph(text: str, headers: Mapping[str, str]) -> str:
    """The last paragraph that is not the body of a header such as INDICATION."""
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    for paragraph in reversed(re.split(r"\n[ \t]*\n", text)):
        parts = [(name, body) for name, body in _parts(paragraph, headers) if body.strip()]
        kept = " ".join(body for name, body in parts if name not in NOT_CONTENT)
        if kept.strip() and _header(kept) not in NOT_CONTENT:
            return kept
    return ""


def _filtered(text: str, options: ReportOptions) -> str:
    text = clean(text)
    if options.drop_recommendations or options.drop_comparisons:
        kept = [
            one
            for one in sentences(text)
            if not (options.drop_recommendations and ADVICE.search(one))
            and not (options.drop_comparisons and COMPARISON.search(one))
        ]
        text = " ".join(kept)
    return text if re.search(r"[^\W\d_]{3}", text) else ""
