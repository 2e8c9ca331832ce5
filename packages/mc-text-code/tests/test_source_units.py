"""Units: the right functions under the right names, with their documentation, whole or split, and nothing lost."""

from __future__ import annotations

import random
import runpy
import time
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from mc_core.errors import ConfigError
from mc_text_code.source.documentation import comment_text, docstring_of
from mc_text_code.source.parsing import parse
from mc_text_code.source.splitting import TokenCounts
from mc_text_code.source.units import Unit, code_alone, units_of

samples = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("_write_sources.py"))))


def named(name: str, **options) -> dict[str, Unit]:
    units = units_of(samples.SOURCES[name].encode(), name, **options)
    found = {unit.qualified_name: unit for unit in units if unit.kind != "window"}
    assert len(found) == sum(unit.kind != "window" for unit in units)
    return found


def assert_complete(source: bytes, units: list[Unit]):
    """Every letter and digit is in a unit, positions and lines agree, and units are in order."""
    inside = np.zeros(len(source), dtype=bool)
    for unit in units:
        assert 0 <= unit.start_byte < unit.end_byte <= len(source)
        inside[unit.start_byte : unit.end_byte] = True
        assert unit.start_line == source[: unit.start_byte].count(b"\n") + 1
        assert unit.end_line == source[: unit.end_byte].rstrip(b"\r\n").count(b"\n") + 1
        assert unit.start_line <= unit.line <= unit.end_line
        assert unit.code.strip()
    data = np.frombuffer(source, dtype=np.uint8)
    letters = np.array([chr(n).isalnum() and n < 128 for n in range(256)])[data]
    assert inside[letters].all(), source[int(np.flatnonzero(letters & ~inside)[0]) :][:60]
    order = [(unit.start_byte, -unit.end_byte) for unit in units if unit.parts == 1]
    assert order == sorted(order)


@pytest.mark.parametrize("name", samples.SOURCES)
@pytest.mark.parametrize("max_tokens", [None, 256, 16])
def test_nothing_is_lost(name, max_tokens):
    source = samples.SOURCES[name].encode()
    units = units_of(source, name, max_tokens=max_tokens)
    assert_complete(source, units)
    assert not any(unit.has_error for unit in units)
    assert {unit.language for unit in units} == {samples.LANGUAGES[name]}


def test_python():
    found = named("store.py")
    assert list(found) == ["fetch", "fetch.again", "Store", "Store.__init__", "Store.size", "Store.Inner", "Store.Inner.deep",
                           "only_here"]  # fmt: skip
    fetch = found["fetch"]
    assert (fetch.kind, fetch.name, fetch.line, fetch.start_line, fetch.end_line) == ("function", "fetch", 9, 8, 21)
    assert fetch.signature == "async def fetch(url: str, *, tries: int = 3) -> str"
    assert fetch.docstring == "Fetches a página from ``url``.\n\nLonger text — with a dash."
    assert fetch.code.startswith(
        '@decorated("naïve")\nasync def fetch(url: str, *, tries: int = 3) -> str:\n    # not doc'
    )
    assert "página" not in fetch.code
    assert fetch.code.endswith("return text + again(tries)  # tail")
    assert found["fetch.again"].docstring == "Tries again, left times."
    assert found["fetch.again"].code == "def again(left):\n    return again(left - 1) if left else None"
    assert found["Store.size"].kind == "method"
    assert found["Store.size"].code == "@property\ndef size(self):\n    return len(self)"
    assert found["Store"].signature == "class Store(dict)"
    assert found["Store"].code == (
        "class Store(dict):\n\n    limit: int = 10\n\n    def __init__(self):\n\n    @property\n    def size(self):\n\n"
        "    class Inner:"
    )


def test_java():
    found = named("Adder.java")
    assert list(found) == ["Adder", "Adder.add", "Adder.Adder", "Adder.Inner", "Adder.Inner.run", "Adder.bare", "Shape",
                           "Shape.area"]  # fmt: skip
    assert found["Adder"].docstring == "Sums things — naïvely."
    assert (
        found["Adder"].signature == '@SuppressWarnings("unchecked") public class Adder<T extends Number> extends Base'
    )
    add = found["Adder.add"]
    assert (add.docstring, add.kind) == ("Adds a número.\n\n@param value what to add\n@return the sum", "method")
    assert (add.line, add.start_line) == (16, 10)
    assert add.signature == "@Override public int add(int value)"
    assert found["Adder.Inner"].docstring == "line comments\nof two lines"
    assert found["Adder.bare"].docstring == ""  # the comment before it belongs to the line it ends
    assert found["Shape.area"].docstring == "Size in m²."
    assert found["Shape.area"].code == "double area();"


def test_go():
    found = named("ledger.go")
    assert list(found) == ["Ledger.Total", "Map", "Ledger", "Shape", "Alias"]
    total = found["Ledger.Total"]
    assert (total.name, total.kind, total.docstring) == (
        "Total",
        "method",
        "Total is the sum — naïve.\nIt never fails.",
    )
    assert total.signature == "func (r *Ledger[K]) Total(n int) (int, error)"
    assert found["Map"].docstring == ""
    assert (found["Ledger"].docstring, found["Ledger"].signature) == (
        "Ledger keeps entries.",
        "type Ledger[K comparable] struct",
    )
    assert found["Shape"].docstring == "Shape has an area."


def test_javascript():
    found = named("walker.js")
    assert list(found) == ["double", "greet", "Walker", "Walker.walk", "Walker.#secret", "Walker.onDone", "Walker.size",
                           "tools.open", "tools.close", "module.exports.helper", "inner"]  # fmt: skip
    assert (found["double"].docstring, found["double"].signature) == (
        "Doubles a número.",
        "export const double = async (x)",
    )
    assert found["double"].code == "export const double = async (x) => { return 2 * x };"
    assert found["greet"].docstring == "Greets people,\none at a time."
    assert found["Walker.walk"].docstring == "Walks on."
    assert found["Walker.onDone"].kind == "method"
    assert (found["tools.open"].docstring, found["tools.open"].name) == ("Opens it.", "open")
    assert found["module.exports.helper"].name == "helper"
    assert found["inner"].docstring == "Hidden inside."


def test_php():
    found = named("page.php")
    assert list(found) == ["hello", "Page", "Page::render", "Page::__toString", "late"]
    assert found["hello"].docstring == "Says hello — naïve."
    assert found["Page::render"].docstring == "Renders the página.\n@return string"
    assert found["Page::render"].signature == "#[Pure] public static function render(?int $x): string"
    assert found["Page"].signature == "class Page extends Base implements Shown"
    html = [unit for unit in units_of(samples.PHP.encode(), "page.php") if unit.kind == "window"]
    assert "grüße" in html[0].code


def test_ruby():
    found = named("tally.rb")
    assert list(found) == [
        "Tally",
        "Tally::Counter",
        "Tally::Counter#add",
        "Tally::Counter.make",
        "Tally::Counter#==",
        "free",
    ]
    assert found["Tally"].docstring == "Things to count — naïve."  # not the pragma above it
    assert found["Tally::Counter#add"].docstring == "Adds a wórd.\nTwice if asked."
    assert found["Tally::Counter.make"].code == "private def self.make(x) = new(x)"
    assert found["Tally::Counter#=="].signature == "def ==(other)"
    assert found["free"].docstring == "Top level."
    assert found["Tally::Counter"].code == (
        "class Counter < Base\n  LIMIT = 3r\n\n  def add(word, times: 1)\n\n  private def self.make(x)\n\n  def ==(other)\nend"
    )


def test_definitions_that_share_a_line_or_a_statement():
    units = units_of(b"function a() { return 1 } function b() { return 2 }\nlet c = () => 1, d = () => 2;\n", "a.js")
    assert [(unit.name, unit.code) for unit in units if unit.kind == "function"] == [
        ("a", "function a() { return 1 }"),
        ("b", "function b() { return 2 }"),
        ("c", "let c = () => 1"),
        ("d", "d = () => 2;"),
    ]
    (named_twice,) = units_of(b"const outer = function inner() { return 1; };\n", "a.js")
    assert (named_twice.name, named_twice.qualified_name) == ("inner", "inner")
    (callback,) = units_of(b'app.get("/x", function show(req) {\n  return req;\n}); // shown\n', "a.js")
    assert callback.code == 'app.get("/x", function show(req) {\n  return req;\n}); // shown'


def test_a_run_of_line_comments_ends_at_a_block_comment():
    (_, unit) = units_of(b"/* Licence. */\n// Adds.\n// Twice.\nfunction add() { return 2; }\n", "a.js")
    assert unit.docstring == "Adds.\nTwice."
    (unit,) = units_of(b"// not this\n/** Adds. */\nfunction add() { return 2; }\n", "a.js")[1:]
    assert unit.docstring == "Adds."
    (unit,) = units_of(b"// Far away.\n\nfunction add() { return 2; }\n", "a.js")[1:]
    assert unit.docstring == ""


def test_comments_can_be_left_out():
    fetch = named("store.py", comments=False)["fetch"]
    assert "#" not in fetch.code
    assert fetch.code.endswith("    return text + again(tries)")
    assert "inside" not in named("tally.rb", comments=False)["Tally::Counter#=="].code
    assert "'#'" in units_of(b"def f():\n    return '#'  # no\n", "a.py", comments=False)[0].code


def test_an_error_in_the_middle_is_marked_where_it_is():
    source = b"def f(x):\n    return x\n\ndef broken(:\n    return ) (\n\ndef g(y):\n    return y\n"
    units = units_of(source, "a.py")
    assert_complete(source, units)
    state = {unit.name: unit.has_error for unit in units if unit.kind == "function"}
    assert state["f"] is False
    assert state["g"] is False


def test_what_is_embedded_and_where_it_comes_from():
    size = named("store.py")["Store.size"]
    assert size.text == "store.py Store.size\nHow many there are.\n@property\ndef size(self):\n    return len(self)"


LONG = "def long(a):\n    '''Does much.'''\n" + "".join(
    f"    if a > {n}:\n        total = {n}\n        print(total, a)\n" for n in range(40)
)


def test_a_long_function_is_split_at_statements_with_its_signature_repeated():
    source = LONG.encode()
    parts = units_of(source, "a.py", max_tokens=64)
    counts = TokenCounts(source)
    assert [part.part for part in parts] == list(range(len(parts)))
    assert {part.parts for part in parts} == {len(parts)}
    assert len(parts) > 5
    assert parts[0].start_byte == 0
    assert parts[-1].end_byte == len(source.rstrip())
    for before, after in pairwise(parts):
        assert before.end_byte == after.start_byte
        assert after.code.startswith("def long(a)\n...\n    if a > ")  # at the outermost statements
        assert source[after.start_byte :].startswith(b"    if a")
    assert all(counts.between(part.start_byte, part.end_byte) <= 64 + 9 for part in parts)  # 9 of the docstring
    assert parts[0].docstring == "Does much."
    assert {part.docstring for part in parts[1:]} == {""}
    assert all("Does much" not in part.code for part in parts)
    code = "".join(part.code.removeprefix("def long(a)\n...\n") for part in parts)
    assert code.count("print(total, a)") == 40


def test_a_long_statement_is_split_at_its_lines():
    source = ("x = [\n" + "".join(f"    call({n}, 'text'),\n" for n in range(100)) + "]\n").encode()
    body = b"def table():\n    " + source.replace(b"\n", b"\n    ").rstrip() + b"\n    return x\n"
    parts = units_of(body, "a.py", max_tokens=64)
    assert len(parts) > 10
    counts = TokenCounts(body)
    assert max(counts.between(part.start_byte, part.end_byte) for part in parts) <= 64 + 10
    assert all(body[part.start_byte - 1 : part.start_byte] in (b"", b"\n") for part in parts)


def test_cuts_are_not_inside_a_shorter_statement():
    statement = "    x = call(\n        1,\n    ); y = 2; z = 3\n"
    parts = units_of(("def f():\n" + statement * 40 + "    return x\n").encode(), "a.py", max_tokens=48)
    assert len(parts) > 10
    assert all(part.code.removeprefix("def f()\n...\n").startswith("    x = call(") for part in parts[1:])


def test_a_line_without_end_is_cut_between_tokens():
    source = b"def f():\n    return '" + b"word " * 5_000 + "größe ".encode() * 200 + b"'\n"
    parts = units_of(source, "a.py", max_tokens=100)
    assert len(parts) > 40
    assert "�" not in "".join(part.code for part in parts)
    window = units_of(b"word " * 5_000, "a.txt", max_tokens=100)
    assert len(window) == 25


def test_inside_a_long_function_the_inner_ones_are_shortened():
    inner = "    def inner(x):\n" + "        print(x, 'inner work')\n" * 60
    source = f"def outer(a):\n    first = a\n{inner}    return inner(a)\n".encode()
    units = units_of(source, "a.py", max_tokens=100)
    outer = [unit for unit in units if unit.name == "outer"]
    assert len(outer) == 1  # what is left is short
    assert outer[0].code == "def outer(a):\n    first = a\n    def inner(x):\n    return inner(a)"
    assert len([unit for unit in units if unit.name == "inner"]) > 1
    whole = units_of(source, "a.py", max_tokens=None)
    assert "inner work" in whole[0].code


@pytest.mark.parametrize("seed", range(6))
def test_parts_are_a_partition_of_the_function(seed):
    rng = random.Random(seed)
    lines = ["def f(a):"]
    depth = 1
    for _ in range(200):
        if rng.random() < 0.3 and depth < 5:
            lines.append("    " * depth + f"if a > {rng.randrange(9)}:")
            depth += 1
        else:
            lines.append("    " * depth + "x = " + " + ".join(["a"] * rng.randrange(1, 12)))
            depth = rng.randrange(1, depth + 1)
    source = ("\n".join([*lines, "    return x"]) + "\n").encode()
    assert not parse(source, "python").root_node.has_error
    for limit in (16, 40, 100):
        parts = units_of(source, "a.py", max_tokens=limit)
        assert b"".join(source[part.start_byte : part.end_byte] for part in parts) == source.rstrip()
        assert max(TokenCounts(source).between(part.start_byte, part.end_byte) for part in parts) <= limit + 24
        assert_complete(source, parts)


def test_windows_of_files_without_a_grammar():
    source = "\n".join(f"line {n} größe" for n in range(100)).encode()
    units = units_of(source, "notes/read.rs")
    assert [(unit.start_line, unit.end_line) for unit in units] == [(1, 30), (31, 60), (61, 90), (91, 100)]
    assert {(unit.kind, unit.language, unit.name) for unit in units} == {("window", "rust", "read")}
    assert units[0].text.startswith("notes/read.rs\nline 0")
    assert_complete(source, units)
    assert units_of(b"\n \n", "a.txt") == []
    assert units_of(source, "a.txt", window_lines=0) == units_of(b"x = 1", "a.py", window_lines=0) == []
    assert [u.start_line for u in units_of(b"\n\n\na\n\n\n\nb\n", "a.txt", window_lines=2)] == [4, 8]


def test_windows_end_lines_of_all_kinds():
    for source in (b"a\r\nb\r\n", b"a\nb", b"a\nb\n\n"):
        (unit,) = units_of(source, "a.txt")
        assert (unit.start_line, unit.end_line, unit.code.split()) == (1, 2, ["a", "b"])


def test_windows_of_brackets_alone_are_left_out():
    units = units_of(b"(function () {\n  function f() { return 1; }\n})();\n", "a.js")
    assert [unit.kind for unit in units] == ["window", "function"]


def test_very_deep_sources():
    nested = b"def f():\n    return " + b"[" * 10_000 + b"]" * 10_000 + b"\n"
    begin = time.perf_counter()
    units = units_of(nested, "a.py")
    assert time.perf_counter() - begin < 30  # and not quadratic
    assert units[0].name == "f"
    assert_complete(nested, units)
    functions = b"".join(b" " * n + b"def f%d():\n" % n for n in range(90)) + b" " * 90 + b"pass\n"
    found = units_of(functions, "a.py", max_tokens=None)
    assert found[-1].qualified_name.count(".") == 89


def test_max_tokens_has_a_floor():
    with pytest.raises(ConfigError, match="max_tokens=3: a part needs 16 tokens or more"):
        units_of(b"x", "a.py", max_tokens=3)


def test_counts_of_tokens():
    import re

    rng = random.Random(0)
    text = "".join(rng.choices("ab_1 é(){}.\n\t'", k=2_000)).encode()
    counts = TokenCounts(text)
    for _ in range(50):
        a, b = sorted((rng.randrange(len(text)), rng.randrange(len(text))))
        begins = [m.start() for m in re.finditer(rb"[0-9A-Za-z_\x80-\xff]+|[^\s]", text)]
        assert counts.between(a, b) == sum(a <= begin < b for begin in begins)
    assert TokenCounts(b"").between(0, 0) == 0


@pytest.mark.parametrize(
    ("literal", "text"),
    [
        ('"""One.\n\n        Two.\n        """', "One.\n\nTwo."),
        (r"'it\'s'", "it's"),
        (r"r'\d'", r"\d"),
        ("u'é'", "é"),
        ("'a' 'b'", "ab"),
        ("b'no'", None),
        ("f'no'", None),
        ("x", None),
        (r'"""odd \d escape"""', r"odd \d escape"),
        ('"""', ""),
    ],
)
def test_docstrings(literal, text):
    assert docstring_of(literal) == text


@pytest.mark.parametrize(
    ("comments", "text"),
    [
        (["# One.", "#", "#   indented"], "One.\n\n  indented"),
        (["//go:build linux", "// F works."], "F works."),
        (["/// Doc.", "//! more"], "Doc.\nmore"),
        (["#----------", "# Title", "#----------"], "Title"),
        (["/* short */"], "short"),
        (["/**\n * @deprecated\n */"], "@deprecated"),
        (["/**\n * **bold** text\n * - item\n **/"], "**bold** text\n- item"),
        (["// eslint-disable-next-line no-x"], ""),
        (["# rubocop:disable Metrics"], ""),
        (["/***/"], ""),
        (["# größe"], "größe"),
    ],
)
def test_comments(comments, text):
    assert comment_text(comments) == text


def test_code_without_its_documentation():
    given = 'def f(self):\n        """One."""\n\n        return 1'
    assert code_alone(given, "python") == "def f(self):\n\n        return 1"
    assert code_alone("x = 1", "python") == "x = 1"
    assert code_alone("/** d */ int f() {}", "java") == "/** d */ int f() {}"
    assert code_alone("def f(:", "python") == "def f(:"
