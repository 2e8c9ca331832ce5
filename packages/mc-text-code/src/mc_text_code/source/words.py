"""Words of code and of queries, for lexical search: identifiers taken apart, in lower case."""

from __future__ import annotations

import re

_ASCII = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[0-9]+")
_ANY = re.compile(r"[A-Z]+(?![^\W\d_A-Z])|[A-Z]?[^\W\d_A-Z]+|\d+")  # letters beyond ASCII count as small ones


def split_words(text: str) -> list[str]:
    """Words, with ``camelCase``, ``snake_case`` and digits split, in lower case.

    >>> split_words("def parseHTTPResponse(self, max_size2=10):")
    ['def', 'parse', 'http', 'response', 'self', 'max', 'size', '2', '10']
    >>> split_words("read a UTF-8 file's größe")
    ['read', 'a', 'utf', '8', 'file', 's', 'größe']
    """
    return [part.lower() for part in (_ASCII if text.isascii() else _ANY).findall(text)]
