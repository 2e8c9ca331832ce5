"""What a function says about itself: docstrings and comments, freed of their marks."""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
import warnings

_PREFIX = re.compile(r"([A-Za-z]*)('''|\"\"\"|'|\")")
_DIRECTIVE = re.compile(
    r"""^[\s/*#!-]*(?:
        go:\w+|\+build\s|nolint\b|@?(?:eslint|jshint|jslint|tslint|prettier|istanbul|jscs|ts)-[\w-]+|jshint\s\w+:|eslint\s\w+:|
        @flow\b|\$Flow|rubocop:|frozen_string_literal:|(?:en)?coding[:=]|warn_indent:|noinspection\b|phpcs:|phpstan-|psalm-|
        pylint:|noqa\b|type:\s*ignore|mypy:|fmt:|yapf:|isort:|pragma:|vim?:|-\*-|CHECKSTYLE[:.]|NOSONAR|nosemgrep|
        sourceMappingURL|!/\S
    )""",
    re.VERBOSE,
)
_LETTER = re.compile(r"[^\W\d_]")


def docstring_of(literal: str) -> str | None:
    """The text of a Python docstring from its literal; None where it is none (bytes, an f-string).

    >>> docstring_of('''"Read\\\\tit.\\\\n\\\\n    Later." '''), docstring_of("r'a\\\\d'"), docstring_of("b'x'")
    ('Read    it.\\n\\nLater.', 'a\\\\d', None)
    """
    literal = literal.strip()
    match = _PREFIX.match(literal)
    if match is None:
        return None
    prefix, quote = match.groups()
    if not set(prefix.lower()) <= {"r", "u"}:
        return None
    if "\\" not in literal and literal.count(quote) == 2 and literal.endswith(quote):
        return inspect.cleandoc(literal[match.end() : -len(quote)])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about escapes that the author of that code should know about
        try:
            value = ast.literal_eval(literal)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            value = literal[match.end() :].removesuffix(quote)
    if not isinstance(value, str):
        return None
    return inspect.cleandoc(value).encode("utf-8", "replace").decode()  # an escape may spell half a surrogate pair


def comment_text(comments: list[str]) -> str:
    """The text of the comments above a function, without marks, pragmas and lines of ornament.

    Args:
        comments: one block comment, or the lines of a run of line comments, as they stand.

    >>> comment_text(["/**", " * Adds two.", " *", " * @param a one", " */"]) == comment_text(
    ...     ["/** Adds two.\\n *\\n * @param a one */"]
    ... )
    True
    >>> comment_text(["// ------", "// Opens it.", "//go:noinline"]), comment_text(["=begin\\nReads.\\n=end"])
    ('Opens it.', 'Reads.')
    """
    lines: list[str] = []
    for comment in comments:
        text = comment.strip()
        block = text.startswith(("/*", "<!--")) or (text.startswith("*") and len(comments) > 1)
        if text.startswith("=begin"):
            lines += text.removeprefix("=begin").removesuffix("=end").splitlines()
            continue
        if _DIRECTIVE.match(text):
            continue
        for line in text.splitlines():
            bare = line.strip()
            if block:
                bare = re.sub(r"^(?:/\*+!?|\*+(?!/)(?=\s|$|[^\s*])|<!--)", "", bare)
                bare = re.sub(r"\**\*/$|-->$", "", bare)
            else:
                bare = re.sub(r"^(?:/{2,}!?|#+!?)", "", bare)
            bare = bare[1:] if bare.startswith(" ") else bare
            lines.append(bare if _LETTER.search(bare) else "")
    text = "\n".join(line.rstrip() for line in lines)
    return re.sub(r"\n{3,}", "\n\n", textwrap.dedent(text)).strip()
