"""Sentences that are on every machine: those of the docstrings of Python's own standard library.

Source files are parsed, never imported. Which sentences there are depends on the version of Python; their order does not
depend on the machine.
"""

from __future__ import annotations

import ast
import re
import sysconfig
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path

from mc_core.errors import DataError
from mc_text_code.data.sentences import Sentences

_LEFT_OUT = {
    "__pycache__",
    "_bundled",
    "dist-packages",
    "idle_test",
    "idlelib",
    "lib2to3",
    "site-packages",
    "test",
    "tests",
    "turtledemo",
}
_PARAGRAPH = re.compile(r"\n\s*\n")
_SENTENCE = re.compile(r"(?<=[.!?])\s+(?=[A-Z(\"'])")
_WORD = re.compile(r"[A-Za-z]{2,}")
_LONGEST = 400  # characters; what is longer is a table or a list


def standard_library_sentences() -> Sentences:
    """The sentences of the standard library's docstrings, each once, with their top-level module as group.

    Paragraphs that are indented, hold an example or read as a list are left out, as are sentences of fewer than three words.

    Raises:
        DataError: this Python came without the sources of its library.

    >>> sentences = standard_library_sentences()
    >>> len(sentences) > 5000, "argparse" in sentences.groups
    (True, True)
    """
    root = Path(sysconfig.get_paths()["stdlib"])
    texts: dict[str, str] = {}
    for path in _sources(root):
        group = path.relative_to(root).parts[0].removesuffix(".py")
        for docstring in _docstrings(path):
            for sentence in sentences_of(docstring):
                texts.setdefault(sentence, group)
    if not texts:
        raise DataError(f"{root} holds no Python sources to take sentences from: give a file of sentences")
    return Sentences(list(texts), list(texts.values()), "the docstrings of Python's standard library")


def _sources(root: Path) -> Iterator[Path]:
    for path in sorted(root.iterdir()):
        if path.is_dir() and path.name not in _LEFT_OUT and not path.name.startswith("config-"):
            yield from _sources(path)
        elif path.suffix == ".py":
            yield path


def _docstrings(path: Path) -> Iterator[str]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the sources' own escapes
        try:
            tree = ast.parse(path.read_bytes())
        except (SyntaxError, ValueError, OSError):
            return
    yield from _in(tree.body, tree)


def _in(body: Iterable[ast.stmt], owner: ast.AST | None = None) -> Iterator[str]:
    if isinstance(owner, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
        text = ast.get_docstring(owner)
        if text:
            yield text
    for node in body:
        if isinstance(node, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            yield from _in(node.body, node)
        elif isinstance(node, (ast.If, ast.Try)):
            yield from _in([*node.body, *node.orelse])


def sentences_of(docstring: str) -> Iterator[str]:
    """The sentences of a docstring that read as prose.

    >>> list(sentences_of("Return the answer. It may\\nbe wrong.\\n\\n    >>> answer()\\n    42"))
    ['Return the answer.', 'It may be wrong.']
    """
    for paragraph in _PARAGRAPH.split(docstring):
        lines = paragraph.splitlines()
        if ">>>" in paragraph or any(line.startswith((" ", "\t", "-", "*", "|", "=", "+")) for line in lines):
            continue
        for sentence in _SENTENCE.split(" ".join(paragraph.split())):
            if len(sentence.split()) >= 3 and len(_WORD.findall(sentence)) >= 2 and len(sentence) <= _LONGEST:
                yield sentence
