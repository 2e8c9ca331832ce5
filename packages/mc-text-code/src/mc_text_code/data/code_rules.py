"""What makes a function and its documentation a pair to learn from: one named rule for each reason to leave it out.

Sources: CodeSearchNet (Husain et al. 2019, arXiv:1909.09436, section 2, and its ``function_parser``), the further cleaning of
GraphCodeBERT (Guo et al. 2021), and rules of our own, marked so. Rules that look at more than one pair, the cap on equal
documentation and near-duplicates, are in :mod:`mc_text_code.data.code_mining`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

from pydantic import Field

from mc_core.engine.config import StrictModel
from mc_text_code.data.near_duplicates import THRESHOLD
from mc_text_code.source.languages import LANGUAGES
from mc_text_code.source.units import Unit
from mc_text_code.source.words import split_words


def _set(text: str) -> frozenset[str]:
    return frozenset(text.split())


_TOKEN = re.compile(r"\w+|[^\w\s]")
_PARAGRAPH = re.compile(r"\n[ \t]*\n")
_URL_OR_TAG = re.compile(r"https?:|<img\b|</?(?:p|a|br|div|table|ul|li|pre|code|span|html)\b[^>]*>", re.IGNORECASE)
_WORD = re.compile(r"[^\W\d_]+")
_VENDORED = frozenset(("vendor", "vendored", "node_modules", "third_party", "thirdparty", "bower_components"))
_FOREIGN = _set(
    """der die das und ist nicht ein eine einen wird werden mit für auf von dem den des zur zum aus oder wenn
    le les des une est dans pour avec sur qui que par pas sont cette ce ou et du au aux
    el los las una es en con por para del que como este esta su sus y o se al
    il lo gli della delle dei che di con per non sono una questo nel
    o os as um uma não com para por dos das em que ao
    de het een en van niet voor met op zijn wordt dat"""
)
_ENGLISH = _set(
    """the a an of to in is are be and or for with from by on at as if this that it its not no return returns get gets set
    sets given when which all any into used use value values whether object list file name new will can has have was"""
)
_STUB = re.compile(r"(?:pass|raise|\.\.\.)(?![\w.])|\.\.\.$")


class MiningOptions(StrictModel):
    """Which pairs of documentation and function are taken from source code."""

    fewest_words: int = Field(default=3, ge=1)
    """Tokens that the documentation's first paragraph must have (CodeSearchNet, GraphCodeBERT)."""
    most_words: int = Field(default=256, ge=1)
    """Tokens that it may have (GraphCodeBERT)."""
    fewest_lines: int = Field(default=3, ge=1)
    """Lines that the function must have, without documentation, comments and blank lines (CodeSearchNet)."""
    comments: bool = False
    """Keep the comments inside functions; GraphCodeBERT takes them out."""
    same_docstring: int = Field(default=20, ge=1)
    """Pairs that may share one documentation (ours)."""
    near_duplicates: float = Field(default=THRESHOLD, gt=0.5, le=1)
    """Overlap of five-token shingles from which a function counts as a copy of an earlier one; the first is kept."""
    require_licence: bool = False
    """Leave out repositories without a licence (CodeSearchNet). Off: your own code may well have none."""
    skip: frozenset[str] = frozenset()
    """Names of rules that are not applied."""


@dataclass(frozen=True)
class Candidate:
    """A function that may become a pair."""

    unit: Unit
    licence: str
    options: MiningOptions

    @cached_property
    def query(self) -> str:
        """The first paragraph of the documentation on one line."""
        return " ".join(first_paragraph(self.unit.docstring).split())

    @cached_property
    def query_tokens(self) -> int:
        """Its words and marks."""
        return len(_TOKEN.findall(self.query))


@dataclass(frozen=True)
class MiningRule:
    """A reason to leave a function out.

    Attributes:
        says: what is left out, for people.
        applies: to whom.
        source: whose rule it is.
    """

    says: str
    applies: Callable[[Candidate], bool]
    source: str = "CodeSearchNet"


def first_paragraph(docstring: str) -> str:
    """Up to the first blank line, else up to the first ``@``, as CodeSearchNet cuts documentation.

    >>> first_paragraph("Opens it.\\n\\nThen a@b."), first_paragraph("Opens it.\\n@param x what")
    ('Opens it.', 'Opens it.\\n')
    """
    parts = _PARAGRAPH.split(docstring, maxsplit=1)
    return parts[0] if len(parts) > 1 else docstring.partition("@")[0]


def is_test_path(path: str) -> bool:
    """Whether "test" is anywhere in a path."""
    return "test" in path.lower()


def is_vendored_path(path: str) -> bool:
    """Whether a folder on the way holds other people's code.

    >>> is_vendored_path("pip/_vendor/rich/text.py"), is_vendored_path("src/vendors.py")
    (True, False)
    """
    return any(part.strip("_").lower() in _VENDORED for part in path.split("/")[:-1])


def is_standard_method(unit: Unit) -> bool:
    """A constructor, or a method that every class has, such as ``__str__``, ``toString`` or ``initialize``.

    >>> from mc_text_code.source.units import units_of
    >>> [is_standard_method(unit) for unit in units_of(b"class A { A() {} int hashCode() {} int size() {} }", "A.java")]
    [False, True, True, False]
    """
    if unit.kind not in ("function", "method"):
        return False
    language = LANGUAGES[unit.language]
    if unit.name in language.standard_methods:
        return True
    if language.standard_pattern and re.fullmatch(language.standard_pattern, unit.name):
        return True
    names = re.split(r"[^\w$]+", unit.qualified_name)
    return unit.kind == "method" and len(names) > 1 and names[-2] == unit.name  # named like its class


def is_stub(unit: Unit) -> bool:
    """A Python body that starts with ``pass``, ``raise`` or ``...``.

    >>> from mc_text_code.source.units import units_of
    >>> code = (
    ...     b"def f(a,\\n      b: int = 1) -> int:\\n    # to be done\\n    raise NotImplementedError\\n    return 1\\n"
    ... )
    >>> is_stub(units_of(code, "a.py")[0])
    True
    """
    if unit.language != "python":
        return False
    lines = [line for line in unit.code.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    begin = next((n for n, line in enumerate(lines) if re.match(r"\s*(?:async\s+)?def\b", line)), 0)
    for number in range(begin, len(lines)):
        head = lines[number].partition("  #")[0].rstrip()
        if head.endswith(":") and _is_closed(lines[begin : number + 1]):
            return number + 1 < len(lines) and _STUB.match(lines[number + 1].strip()) is not None
    return False


def _is_closed(lines: list[str]) -> bool:
    text = "\n".join(lines)
    return sum(map(text.count, "([{")) <= sum(map(text.count, ")]}"))


def is_english(text: str) -> bool:
    """Whether a text may be English: in Latin letters, and with no more common words of other languages than of English.

    >>> (
    ...     is_english("Return the größte value"),
    ...     is_english("Gibt den Wert aus der Liste zurück"),
    ...     is_english("返回值 the list"),
    ... )
    (True, False, False)
    >>> is_english("Compute checksum")
    True
    """
    letters = [character for character in text if character.isalpha()]
    if not letters:
        return False
    if sum(character.isascii() for character in letters) < 0.8 * len(letters):
        return False
    words = [word.lower() for word in _WORD.findall(text)]
    foreign = sum(word in _FOREIGN and word not in _ENGLISH for word in words)
    return foreign < 2 or foreign <= sum(word in _ENGLISH for word in words)


def repeats_name(query: str, name: str) -> bool:
    """Whether a documentation says the name of the function and nothing else.

    >>> repeats_name("Get user-name.", "get_userName"), repeats_name("Get the user name", "get_user_name")
    (True, False)
    """
    return split_words(query) == split_words(name)


RULES: dict[str, MiningRule] = {
    "undocumented": MiningRule("functions without documentation", lambda one: not one.unit.docstring.strip()),
    "parse error": MiningRule("functions that do not parse", lambda one: one.unit.has_error, "GraphCodeBERT"),
    "unlicensed": MiningRule(
        "repositories without a licence", lambda one: one.options.require_licence and not one.licence
    ),
    "short documentation": MiningRule(
        "documentation of fewer tokens than fewest_words", lambda one: one.query_tokens < one.options.fewest_words
    ),
    "long documentation": MiningRule(
        "documentation of more tokens than most_words",
        lambda one: one.query_tokens > one.options.most_words,
        "GraphCodeBERT",
    ),
    "url or tag": MiningRule(
        "documentation with a web address or an HTML tag",
        lambda one: _URL_OR_TAG.search(one.query) is not None,
        "GraphCodeBERT",
    ),
    "not English": MiningRule(
        "documentation in another language", lambda one: not is_english(one.query), "GraphCodeBERT"
    ),
    "repeats name": MiningRule(
        "documentation that only says the function's name",
        lambda one: repeats_name(one.query, one.unit.name),
        "ours",
    ),
    "short function": MiningRule(
        "functions of fewer lines than fewest_lines",
        lambda one: sum(bool(line.strip()) for line in one.unit.code.splitlines()) < one.options.fewest_lines,
    ),
    "test function": MiningRule('functions with "test" in their name', lambda one: "test" in one.unit.name.lower()),
    "standard method": MiningRule(
        "constructors and methods that every class has", lambda one: is_standard_method(one.unit)
    ),
    "stub": MiningRule("Python bodies that start with pass or raise", lambda one: is_stub(one.unit)),
}
"""The rules in the order they are asked; a function counts for the first that applies."""
