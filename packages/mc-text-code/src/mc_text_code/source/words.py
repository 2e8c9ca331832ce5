"""Words of code and of queries, for lexical search: identifiers taken apart, in lower case."""

from __future__ import annotations

import re

_PART = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[0-9]+|[^\W\d_A-Za-z]+")


def split_words(text: str) -> list[str]:
    """Words, with ``camelCase``, ``snake_case`` and digits split, in lower case.

    >>> split_words("def parseHTTPResponse(self, max_size2=10):")
    ['def', 'parse', 'http', 'response', 'self', 'max', 'size', '2', '10']
    >>> split_words("read a UTF-8 file's größe")
    ['read', 'a', 'utf', '8', 'file', 's', 'gr', 'öß', 'e']
    """
    return [part.lower() for part in _PART.findall(text)]
