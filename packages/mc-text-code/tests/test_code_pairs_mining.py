"""Mining pairs: every rule on what it is about and on what it is not, counts that add up, origins and licences."""

from __future__ import annotations

import runpy
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest

from mc_core.errors import ConfigError, DataError
from mc_text_code.data.code_mining import NEAR_DUPLICATE, SAME_DOCSTRING, mine, mine_standard_library
from mc_text_code.data.code_rules import (
    RULES,
    Candidate,
    MiningOptions,
    first_paragraph,
    is_english,
    is_test_path,
    is_vendored_path,
)
from mc_text_code.data.licences import licence_of_distribution, licence_of_folder, licence_of_text
from mc_text_code.source.units import units_of

samples = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("_write_sources.py"))))

GOOD = 'def area_of(radius):\n    """Compute the area of a disc."""\n    square = radius * radius\n    return 3.14 * square\n'


def first_rule(source: str, path: str = "a.py", licence: str = "", **options) -> str | None:
    """The first rule that leaves the first function out."""
    given = MiningOptions(**options)
    units = units_of(source.encode(), path, max_tokens=None, window_lines=0, comments=given.comments)
    unit = next(unit for unit in units if unit.kind in ("function", "method"))
    candidate = Candidate(unit, licence, given)
    return next((name for name, rule in RULES.items() if rule.applies(candidate)), None)


def python(doc: str, name: str = "area_of", body: str = "    square = 2\n    return square\n") -> str:
    return f'def {name}(x):\n    """{doc}"""\n{body}'


@pytest.mark.parametrize(
    ("source", "rule"),
    [
        (GOOD, None),
        ("def f(x):\n    y = x\n    return y\n", "undocumented"),
        ("# Only a comment above.\ndef f(x):\n    y = x\n    return y\n", "undocumented"),
        ('def f(x):\n    """  """\n    y = x\n    return y\n', "undocumented"),
        ("def f(x):\n    '''Compute the area.'''\n    y = (\n    return y\n", "parse error"),
        (python("Two words"), "short documentation"),
        (python("Two words."), None),  # the full stop is a token, as in CodeSearchNet
        (python("First.\n\n    And much more."), "short documentation"),
        (python("word " * 257), "long documentation"),
        (python("word " * 256), None),
        (python("See https://example.org for the rest"), "url or tag"),
        (python("Shows <img src=x> in the page"), "url or tag"),
        (python("Compares x < y and y > z for all"), None),
        (python("Berechnet die Fläche und gibt den Wert zurück"), "not English"),
        (python("计算 圆 的 面积 值"), "not English"),
        (python("Area Of disc", "area_of_disc"), "repeats name"),
        (python("The area of disc", "area_of_disc"), None),
        (
            'def f(x):\n    """Compute the area of a disc."""\n    # much to\n    # be said\n\n    return x\n',
            "short function",
        ),
        (python("Compute the area of a disc", "latest_area"), "test function"),  # to the letter of CodeSearchNet
        (python("Compute the area of a disc", "__call__"), "standard method"),
        (python("Compute the area of a disc", body="    raise NotImplementedError\n    return 1\n"), "stub"),
        (python("Compute the area of a disc", body="    pass\n    return 1\n"), "stub"),
        (python("Compute the area of a disc", body="    ...\n    return 1\n"), "stub"),
        (python("Compute the area of a disc", body="    passed = 1\n    return passed\n"), None),
        (python("Compute the area of a disc", body="    raised = 1\n    return raised\n"), None),
    ],
)
def test_rules(source, rule):
    assert first_rule(source) == rule


@pytest.mark.parametrize(
    ("path", "source", "rule"),
    [
        ("A.java", "class A {\n/** Makes a new one of these. */\nA() {\n int x = 1;\n}\n}", "standard method"),
        ("A.java", "class A {\n/** Gives the hash of it. */\nint hashCode() {\n return 1;\n}\n}", "standard method"),
        ("A.java", "class A {\n/** Gives the size of it. */\nint size() {\n return 1;\n}\n}", None),
        ("a.rb", "# Makes a new one of these.\ndef initialize\n  @a = 1\nend\n", "standard method"),
        ("a.rb", "# Are these two the same?\ndef ==(other)\n  @a == other\nend\n", "standard method"),
        ("a.rb", "# Counts all of the words.\ndef count\n  @a\nend\n", None),
        (
            "a.php",
            "<?php\n/** Makes a new one of these. */\nfunction __construct() {\n return 1;\n}\n",
            "standard method",
        ),
        ("a.js", "class A {\n/** Makes a new one. */\nconstructor() {\n this.a = 1;\n}\n}", "standard method"),
        ("a.go", "// Gives the size of it.\nfunc Size() int {\n\treturn 1\n}\n", None),
        ("a.go", "package a\n\nvar x = 1 // Gives the size of it.\nfunc Size() int {\n\treturn 1\n}\n", "undocumented"),
        ("a.js", "/** Doubles any number\n * @param x what */\nconst f = (x) => {\n  return 2 * x;\n};\n", None),
    ],
)
def test_rules_in_other_languages(path, source, rule):
    assert first_rule(source, path) == rule


def test_options_move_the_rules():
    assert first_rule(GOOD, fewest_words=8) == "short documentation"
    assert first_rule(GOOD, most_words=3) == "long documentation"
    assert first_rule(GOOD, fewest_lines=4) == "short function"
    assert first_rule(GOOD, require_licence=True) == "unlicensed"
    assert first_rule(GOOD, require_licence=True, licence="MIT") is None


@pytest.mark.parametrize(
    ("docstring", "paragraph"),
    [
        ("One.\n\nTwo.", "One."),
        ("One.\n   \nTwo @x.", "One."),
        ("One\nmore.\n@param x", "One\nmore.\n"),
        ("One.", "One."),
        ("@return it", ""),
        ("A b@c.\n\nMore", "A b@c."),  # with a blank line, the sign does not cut
    ],
)
def test_first_paragraphs(docstring, paragraph):
    assert first_paragraph(docstring) == paragraph


@pytest.mark.parametrize(
    ("text", "english"),
    [
        ("Compute checksum", True),
        ("Return the value of a key or None", True),
        ("Convert naïve façade", True),
        ("Retorna el valor de la lista para el usuario", False),
        ("Renvoie la liste des valeurs pour une clé", False),
        ("Возвращает значение", False),
        ("123 456", False),
        ("Die roll of a game", True),
    ],
)
def test_english(text, english):
    assert is_english(text) == english


def test_paths():
    assert is_test_path("src/latest/x.py")  # to the letter
    assert not is_test_path("src/app.py")
    assert is_vendored_path("a/Vendor/b.go")
    assert is_vendored_path("node_modules/a.js")
    assert not is_vendored_path("src/vendor.py")


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def different(number: int, doc: str = "") -> str:
    """A function that has little in common with those of other numbers."""
    lines = "\n".join(f"    v{number}_{n} = call_{number * 7 + n}(x, {number + n})" for n in range(6))
    doc = doc or f"Does the work that number {number} wants."
    return f'def work_{number}(x):\n    """{doc}"""\n{lines}\n    return v{number}_0\n'


def test_a_tree_is_mined_and_every_function_accounted_for(tmp_path):
    write(
        tmp_path / "project",
        {
            "LICENSE": "MIT License\n\nPermission is hereby granted, free of charge, to any person obtaining a copy\n",
            "pkg/core/a.py": different(1) + "\n" + different(2) + "\ndef bare():\n    x = 1\n    return x\n",
            "pkg/b.py": different(3) + "\n" + different(1).replace("work_1", "work_one"),  # nearly the first
            "pkg/tests/c.py": different(4),
            "vendor/d.py": different(5),
            "pkg/e.go": "package e\n\n// Add adds two of them up.\nfunc Add(a, b int) int {\n\tc := a + b\n\treturn c\n}\n",
            "pkg/gen.py": "# Code generated by x. DO NOT EDIT.\n" + different(6),
            "README.md": "# Read me\n",
            "pkg/image.png": "x",
        },
    )
    mined = mine(tmp_path / "project")
    report = mined.report
    assert [(pair.path, pair.line, pair.name, pair.language) for pair in mined.pairs] == [
        ("pkg/b.py", 1, "work_3", "python"),
        ("pkg/b.py", 11, "work_one", "python"),
        ("pkg/core/a.py", 11, "work_2", "python"),
        ("pkg/e.go", 4, "Add", "go"),
    ]
    assert report.functions == 6
    assert {name: count for name, count in report.dropped.items() if count} == {"undocumented": 1, NEAR_DUPLICATE: 1}
    assert report.functions - sum(report.dropped.values()) == report.pairs == len(mined) == 4
    assert report.rows() == [("functions", 6), ("undocumented", -1), (NEAR_DUPLICATE, -1), ("pairs", 4)]
    assert report.files == {
        "read": 3, "test path": 1, "vendored path": 1, "generated": 1, "no grammar": 2, "binary": 1,
    }  # fmt: skip
    assert report.languages == {"python": 3, "go": 1}
    first = mined.pairs[0]
    assert first.query == "Does the work that number 3 wants."
    assert first.code.startswith("def work_3(x):\n    v3_0 = call_21(x, 3)")
    assert (first.repository, first.package, first.licence) == ("project", "pkg", "MIT")
    assert mined.pairs[2].package == "pkg/core"
    assert set(report.to_dict()) >= {"files", "functions", "dropped", "pairs", "languages", "seconds"}
    assert mine(tmp_path / "project", languages=["go"]).report.languages == {"go": 1}
    assert mine(tmp_path / "project", processes=2).pairs == mined.pairs


def test_rules_can_be_left_out_and_comments_kept(tmp_path):
    text = different(1).replace("    return", "    # said inside\n    return") + different(2, "Two")
    write(tmp_path, {"a.py": text})
    assert [pair.name for pair in mine(tmp_path).pairs] == ["work_1"]
    assert "said inside" not in mine(tmp_path).pairs[0].code
    options = MiningOptions(skip=frozenset({"short documentation"}), comments=True)
    pairs = mine(tmp_path, options).pairs
    assert [pair.name for pair in pairs] == ["work_1", "work_2"]
    assert "# said inside" in pairs[0].code
    with pytest.raises(ConfigError, match="skip: no rule 'shrt documentation'.*closest: short documentation"):
        mine(tmp_path, MiningOptions(skip=frozenset({"shrt documentation"})))
    with pytest.raises(ConfigError, match="skip: no rule 'undocumented'"):
        mine(tmp_path, MiningOptions(skip=frozenset({"undocumented"})))
    with pytest.raises(ConfigError, match="languages: 'cobol' cannot be parsed; those that can: python"):
        mine(tmp_path, languages=["cobol"])
    with pytest.raises(DataError, match="nowhere: no such folder"):
        mine(tmp_path / "nowhere")


def test_equal_documentation_is_capped(tmp_path):
    write(
        tmp_path, {f"m{n:02}.py": different(n, "Does what  it\n    always does." if n % 2 else "") for n in range(12)}
    )
    mined = mine(tmp_path, MiningOptions(same_docstring=2))
    assert mined.report.dropped[SAME_DOCSTRING] == 4
    assert len(mined) == 8
    assert mine(tmp_path, MiningOptions(same_docstring=2, skip=frozenset({SAME_DOCSTRING}))).report.pairs == 12


def test_documentation_of_all_six_languages(tmp_path):
    samples.write(tmp_path)
    mined = mine(tmp_path, MiningOptions(fewest_words=2, fewest_lines=1))
    assert {pair.qualified_name: pair.query for pair in mined.pairs} == {
        "fetch": "Fetches a página from ``url``.",
        "fetch.again": "Tries again, left times.",
        "Store.size": "How many there are.",
        "Adder.add": "Adds a número.",
        "Shape.area": "Size in m².",
        "Ledger.Total": "Total is the sum — naïve. It never fails.",
        "double": "Doubles a número.",
        "greet": "Greets people, one at a time.",
        "Walker.walk": "Walks on.",
        "tools.open": "Opens it.",
        "inner": "Hidden inside.",
        "hello": "Says hello — naïve.",
        "Page::render": "Renders the página.",
        "Tally::Counter#add": "Adds a wórd. Twice if asked.",
        "free": "Top level.",
    }


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
def test_a_folder_of_repositories(tmp_path):
    for number, name in enumerate(("one", "two")):
        folder = write(
            tmp_path / name, {"src/a.py": different(number), "COPYING": "GNU GENERAL PUBLIC LICENSE\n Version 3"}
        )
        subprocess.run(["git", "init"], cwd=folder, check=True, capture_output=True)
    write(tmp_path, {"loose.py": different(7)})
    pairs = mine(tmp_path).pairs
    assert [(pair.repository, pair.package, pair.licence) for pair in pairs] == [
        (tmp_path.name, "loose.py", ""),
        ("one", "src", "GPL-3.0"),
        ("two", "src", "GPL-3.0"),
    ]


@pytest.mark.parametrize("at", ["site-packages", "lib/python3.11/site-packages"])
def test_installed_packages_are_repositories(tmp_path, at):
    site = tmp_path / at
    write(
        site,
        {
            "alpha/a.py": different(1),
            "alpha/deep/b.py": different(2),
            "beta.py": different(3),
            "alpha-1.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: alpha\nVersion: 1.0\n"
            "License: Apache License, Version 2.0\n",
            "alpha-1.0.dist-info/top_level.txt": "alpha\n",
            "beta-1.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: beta\nVersion: 1.0\n"
            "Classifier: License :: OSI Approved :: MIT License\n",
            "beta-1.0.dist-info/RECORD": "beta.py,,\nbeta-1.0.dist-info/METADATA,,\n",
        },
    )
    root = site if at == "site-packages" else tmp_path
    assert [(pair.repository, pair.package, pair.licence) for pair in mine(root).pairs] == [
        ("alpha", "alpha", "Apache-2.0"),
        ("alpha", "alpha", "Apache-2.0"),
        ("beta", "beta", "MIT"),
    ]


def test_the_standard_library_gives_thousands_of_pairs():
    mined = mine_standard_library(MiningOptions(skip=frozenset({NEAR_DUPLICATE})))
    assert len(mined) > 2_500
    assert len({pair.package for pair in mined.pairs}) > 100
    assert {pair.licence for pair in mined.pairs} == {"PSF-2.0"}
    queries = {(pair.path, pair.qualified_name): pair.query for pair in mined.pairs}
    assert queries["textwrap.py", "dedent"] == "Remove any common leading whitespace from every line in `text`."
    assert not any("test" in pair.path.lower() for pair in mined.pairs)
    assert mined.report.functions - sum(mined.report.dropped.values()) == len(mined)


def test_licences(tmp_path):
    assert licence_of_text("GNU LESSER GENERAL PUBLIC LICENSE\n Version 3") == "LGPL-3.0"
    text = "Redistribution and use in source and binary forms … Neither the name of"
    assert licence_of_text(text) == "BSD-3-Clause"
    assert licence_of_text("Redistribution and use in source and binary forms, with") == "BSD-2-Clause"
    assert licence_of_folder(tmp_path) == ""
    assert licence_of_folder(tmp_path / "nowhere") == ""
    (tmp_path / "LICENCE.txt").write_text("Ask me.")
    assert licence_of_folder(tmp_path) == "see LICENCE.txt"
    (tmp_path / "UNLICENSE").write_text("This is free and unencumbered software released into the public domain.")
    assert licence_of_folder(tmp_path) == "Unlicense"


@pytest.mark.parametrize(
    ("metadata", "licence"),
    [
        ("License-Expression: MIT AND Zlib", "MIT AND Zlib"),
        ("License: MIT License", "MIT"),
        ("License: UNKNOWN\nClassifier: License :: OSI Approved :: BSD License", "BSD License"),
        (
            "License: BSD 3-Clause\n        Redistribution and use in source and binary forms, Neither the name",
            "BSD-3-Clause",
        ),
        ("Author: nobody", ""),
    ],
)
def test_licences_of_installed_packages(tmp_path, metadata, licence):
    from importlib.metadata import Distribution

    folder = tmp_path / "x-1.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text(f"Metadata-Version: 2.4\nName: x\nVersion: 1\n{metadata}\n")
    assert licence_of_distribution(Distribution.at(folder)) == licence
