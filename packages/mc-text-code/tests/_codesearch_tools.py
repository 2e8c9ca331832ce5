"""What the tests of code search share: a small project in several languages, and an encoder that hashes words."""

from __future__ import annotations

import subprocess
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mc_text_code.source.words import split_words

FILES = {
    "shop/cart.py": '''"""A shopping cart."""

import json


class Cart:
    """Items that somebody wants to buy."""

    def __init__(self):
        self.items = []

    def total_price(self, currency="EUR"):
        """Sum of the prices of all items, taxes included."""
        return sum(item.price * (1 + item.tax) for item in self.items)

    def remove_item(self, name):
        self.items = [item for item in self.items if item.name != name]


def load_cart(path):
    """Read a cart from a JSON file."""
    with open(path) as file:
        return json.load(file)
''',
    "shop/parsing.py": '''def parse_price(text):
    """Turn text such as '3,50 EUR' into a number."""
    number = text.split()[0].replace(",", ".")
    return float(number)


def trivial(): return None
''',
    "server/main.go": """package main

// HandleRequest answers one request of a client.
func HandleRequest(w Writer, r *Request) error {
	body := r.ReadAll()
	return w.Write(body)
}
""",
    "web/app.js": """/** Draws the chart of all sales. */
export function drawChart(sales, canvas) {
  const context = canvas.getContext('2d');
  sales.forEach((sale) => context.fillRect(sale.x, sale.y, 1, 1));
}
""",
    "tests/test_cart.py": '''from shop.cart import Cart


def test_total_price_of_items():
    """Sum of the prices of all items, taxes included."""
    assert Cart().total_price() == 0
''',
    "docs/guide.md": "# Guide\n\nHow the sum of the prices of all items is computed, taxes included.\n",
    "native/sort.rs": "/// Sorts numbers in place.\nfn bubble_sort(numbers: &mut [i64]) {\n    numbers.sort();\n}\n",
}


def write_project(root: Path, files: dict[str, str] | None = None, *, git: bool = False) -> Path:
    """The files in a folder, by default those of the shop; with ``git``, in a repository."""
    for path, text in (FILES if files is None else files).items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text, encoding="utf-8")
    if git:
        subprocess.run(["git", "init", "-q", str(root)], check=True)
    return root


def many_files(count: int, functions: int = 6) -> dict[str, str]:
    """Python modules of which no two functions are the same."""
    verbs, nouns = (
        ["read", "write", "sort", "merge", "draw", "close", "send"],
        ["file", "table", "image", "socket", "tree"],
    )
    return {
        f"pkg{number % 7}/module_{number}.py": "\n\n".join(
            f"def {verbs[(number + i) % 7]}_{nouns[(number * 3 + i) % 5]}_{number}_{i}(value):\n"
            f'    """{verbs[(number + i) % 7].title()} the {nouns[(number * 3 + i) % 5]} number {number}."""\n'
            f"    result = value * {number} + {i}\n    return result\n"
            for i in range(functions)
        )
        for number in range(count)
    }


class HashingEncoder:
    """Words, hashed into D numbers with signs: deterministic, and texts with the same words are near each other."""

    def __init__(self, dim: int = 64, salt: str = "", identity: str | None = None) -> None:
        self.dim, self.salt = dim, salt
        self.identity = identity or f"hashing-{dim}-{salt}"
        self.seen: list[str] = []

    def _encode(self, texts: Sequence[str]) -> np.ndarray:
        self.seen += texts
        vectors = np.zeros((len(texts), self.dim), np.float32)
        for row, text in zip(vectors, texts, strict=True):
            for word in split_words(text):
                number = zlib.crc32((self.salt + word).encode())
                row[number % self.dim] += 1 if number & 0x10000 else -1
        return vectors

    def encode_queries(self, texts: Sequence[str]) -> np.ndarray:
        return self._encode(texts)

    def encode_code(self, texts: Sequence[str]) -> np.ndarray:
        return self._encode(texts)
