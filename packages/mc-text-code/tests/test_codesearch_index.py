"""An index over its life: made, changed, moved, asked, and always what an index made anew would be."""

from __future__ import annotations

import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from mc_core.errors import ConfigError, DataError
from mc_text_code.codesearch import CodeIndex, IndexConfig, RankingConfig
from mc_text_code.codesearch.places import index_folder
from mc_text_code.source.files import SourceListing, source_files

tools = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("_codesearch_tools.py"))))


@pytest.fixture
def project(tmp_path):
    return tools.write_project(tmp_path / "project")


@pytest.fixture(autouse=True)
def _aged(monkeypatch):
    """Files count as settled at once; what files written a moment ago need has a test of its own."""
    monkeypatch.setattr("mc_text_code.codesearch.refresh._RACY_NS", 0)


def symbols(answer) -> list[str]:
    return [hit.symbol for hit in answer]


def content(index: CodeIndex) -> tuple:
    """All that queries depend on, without numbers that depend on history."""
    snapshot = index._store.snapshot()
    words = dict(index._store.rows_of("SELECT id, term FROM terms"))
    postings = sorted(
        (int(chunk), words[int(term)], int(count))
        for chunk, term, count in zip(
            snapshot.postings.chunks, snapshot.postings.terms, snapshot.postings.counts, strict=True
        )
    )
    chunks = [
        index._store.chunks_at([(number, snapshot.ids[file], place)])[0]
        for number in range(len(snapshot))
        for file, place in [snapshot.place_of(number)]
    ]
    return snapshot.paths, snapshot.postings.lengths.tolist(), postings, chunks


def assert_like_new(index: CodeIndex, tmp_path: Path):
    with CodeIndex.open(index.root, folder=tmp_path / "new-index") as new:
        new.refresh()
        assert content(index) == content(new)
        for query in ("sum of the prices of all items", "remove_item", "draw a chart"):
            found, expected = index.search(query, refresh=False), new.search(query, refresh=False)
            assert [hit.location for hit in found] == [hit.location for hit in expected]
            assert [hit.score for hit in found] == [hit.score for hit in expected]
    shutil.rmtree(tmp_path / "new-index")


def test_a_search_builds_the_index_and_shows_the_function(project):
    with CodeIndex.open(project) as index:
        answer = index.search("sum of prices, taxes included", 3)
        assert answer.mode == "lexical"
        assert answer.coverage is None
        first = answer[0]
        assert (first.path, first.symbol, first.kind, first.language) == (
            "shop/cart.py",
            "Cart.total_price",
            "method",
            "python",
        )
        lines = (project / "shop/cart.py").read_text().split("\n")
        assert lines[first.line - 1].strip().startswith("def total_price")
        assert first.text == "\n".join(lines[first.start_line - 1 : first.end_line])
        assert first.vimgrep() == f'shop/cart.py:{first.line}:5:def total_price(self, currency="EUR")'
        assert first.lexical_rank is not None
        assert first.lexical_score is not None
        assert first.dense_rank is None
        assert (project / ".mc-code" / ".gitignore").read_text().endswith("*\n")
        assert type(answer).from_dict(answer.as_dict()) == answer


def test_other_languages_and_windows(project):
    with CodeIndex.open(project) as index:
        assert symbols(index.search("answers one request of a client", 1)) == ["HandleRequest"]
        assert symbols(index.search("drawChart", 1)) == ["drawChart"]
        rust = index.search("bubble sort numbers", 1)
        assert (rust[0].kind, rust[0].language) == ("window", "rust")
        assert any("without a grammar" in note and "rust 1" in note for note in rust.notes)
        assert not any("markdown" in note for note in rust.notes)


def test_tests_and_prose_come_after_the_code(project):
    with CodeIndex.open(project) as index:
        found = [hit.path for hit in index.search("sum of the prices of all items, taxes included")]
    assert found.index("shop/cart.py") < found.index("tests/test_cart.py")
    assert found.index("shop/cart.py") < found.index("docs/guide.md")
    plain = RankingConfig(test_factor=1.0, prose_factor=1.0, several_factor=1.0)
    with CodeIndex.open(project, ranking=plain) as index:
        answer = index.search("sum of the prices of all items, taxes included")
    assert all("test" not in hit.signals and "prose" not in hit.signals for hit in answer)


def test_only_what_is_short_and_undocumented_is_trivial(project):
    with CodeIndex.open(project) as index:
        index.refresh()
        found = index._store.rows_of("SELECT qualified_name FROM chunks WHERE trivial ORDER BY 1")
        assert [name for (name,) in found] == ["Cart.__init__", "Cart.remove_item", "trivial"]


def test_filters(project):
    with CodeIndex.open(project) as index:
        assert {hit.language for hit in index.search("sales items", languages=["JavaScript", "go"])} == {"javascript"}
        for pattern in ("shop/", "shop", "/shop/cart.py", "./shop", "cart.py", "**/cart.*"):
            assert {hit.path for hit in index.search("items", paths=[pattern])} == {"shop/cart.py"}, pattern
        assert index.search("items", paths=["nowhere/"]).hits == []
        both = index.search("items prices", paths=["docs/", "shop/"])
        assert {hit.path for hit in both} == {"docs/guide.md", "shop/cart.py"}
        assert both.chunks < index.search("items").chunks
        # within one file there is no limit to its hits
        assert len(index.search("item items cart", paths=["shop/cart.py"])) > 2
        assert sum(hit.path == "shop/cart.py" for hit in index.search("item items cart")) == 2


def test_an_edit_changes_its_file_and_nothing_else(project, tmp_path):
    with CodeIndex.open(project) as index:
        index.refresh()
        before = dict(index._store.rows_of("SELECT path, id FROM files"))
        path = project / "shop/parsing.py"
        path.write_text(path.read_text().replace("parse_price", "understand_amount"))
        report = index.refresh()
        assert (report.added, report.changed, report.removed) == (0, 1, 0)
        after = dict(index._store.rows_of("SELECT path, id FROM files"))
        assert {path for path in before if before[path] != after[path]} == {"shop/parsing.py"}
        assert symbols(index.search("understand_amount", 1)) == ["understand_amount"]
        assert "parse_price" not in symbols(index.search("parse_price"))
        assert_like_new(index, tmp_path)


def test_any_history_ends_in_the_index_of_the_present(project, tmp_path):
    with CodeIndex.open(project) as index:
        index.refresh()
        (project / "shop/new_file.py").write_text("def added_later():\n    return 'zebra'\n")
        (project / "docs/guide.md").unlink()
        (project / "shop/parsing.py").rename(project / "shop/amounts.py")
        (project / "web/app.js").write_text("function other() { return 2; }\n")
        report = index.refresh()
        assert (report.added, report.changed, report.removed) == (2, 1, 2)
        assert_like_new(index, tmp_path)
        (project / "web/app.js").write_text(tools.FILES["web/app.js"])
        (project / "shop/amounts.py").rename(project / "shop/parsing.py")
        index.refresh()
        assert_like_new(index, tmp_path)


def test_nothing_is_read_again_that_did_not_change(project, monkeypatch):
    with CodeIndex.open(project) as index:
        index.refresh()
        read = []
        inner = CodeIndex.refresh.__globals__["refresh"].__globals__["chunk_file"]
        monkeypatch.setattr(
            "mc_text_code.codesearch.refresh.chunk_file",
            lambda item, config: read.append(item[0].path) or inner(item, config),
        )
        index.refresh()
        assert read == []
        os.utime(project / "shop/cart.py", ns=(1, 1))
        report = index.refresh()
        assert read == ["shop/cart.py"]
        assert (report.added, report.changed) == (0, 0)
        index.refresh()
        assert read == ["shop/cart.py"]


def test_a_change_within_the_clock_of_the_file_system_is_seen(project, monkeypatch):
    monkeypatch.setattr("mc_text_code.codesearch.refresh._RACY_NS", 10**12)
    path = project / "shop/parsing.py"
    with CodeIndex.open(project) as index:
        index.refresh()
        stat = path.stat()
        path.write_text(path.read_text().replace("parse_price", "parse_valux"))
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
        assert index.refresh().changed == 1
        assert symbols(index.search("parse_valux", 1)) == ["parse_valux"]


def test_numbers_of_files_are_never_used_again(project):
    with CodeIndex.open(project) as index:
        index.refresh()
        last = max(number for (number,) in index._store.rows_of("SELECT id FROM files"))
        (path,) = index._store.rows_of("SELECT path FROM files WHERE id = ?", (last,))[0]
        (project / path).unlink()
        index.refresh()
        (project / "new.py").write_text("def brand_new(): return 1\n")
        index.refresh()
        assert index._store.rows_of("SELECT id FROM files WHERE path = 'new.py'")[0][0] > last


def test_in_a_git_repository_ignored_files_and_the_index_itself_stay_out(tmp_path):
    root = tools.write_project(tmp_path / "repo", {**tools.FILES, "build/out.py": "def built(): pass\n"}, git=True)
    (root / ".gitignore").write_text("build/\n")
    with CodeIndex.open(root) as index:
        index.refresh()
        assert "build/out.py" not in index.indexed_paths()
        assert not any(".mc-code" in path for path in index.indexed_paths())
        status = subprocess.run(["git", "status", "--short"], cwd=root, capture_output=True, text=True, check=True)
        assert ".mc-code" not in status.stdout
        assert index.refresh().added == 0


def test_files_that_cannot_be_searched_are_left_out_with_a_reason(tmp_path):
    root = tools.write_project(tmp_path / "odd", {"good.py": "def fine():\n    return 1\n"})
    (root / "binary.py").write_bytes(bytes(range(256)) * 10)
    (root / "minified.js").write_text("var a=1;" * 5000)
    (root / "enormous.py").write_text("x = 1\n" * 400_000)
    (root / "latin.py").write_bytes("def grüße():\n    return 'ä'\n".encode("latin-1"))
    (root / "loop").symlink_to(root, target_is_directory=True)
    (root / "dangling.py").symlink_to(root / "nowhere.py")
    (root / "empty.py").write_text("")
    (root / "surrogate.py").write_text('def f():\n    "\\ud800 half"\n    return 1\n')
    (root / "locked.py").write_text("def locked(): pass\n")
    (root / "locked.py").chmod(0)
    with CodeIndex.open(root) as index:
        report = index.refresh()
        paths = index.indexed_paths()
        answer = index.search("grüße")
    expected = {"binary": 1, "minified": 1, "too large": 1, "symbolic link": 2, "empty": 1}
    if os.geteuid():
        expected["unreadable"] = 1
    assert dict(report.skipped) == expected
    assert set(paths) - {"locked.py"} == {"good.py", "latin.py", "surrogate.py"}
    assert answer[0].path == "latin.py"
    assert "ä" in answer[0].text
    assert any("cp1252" in note for note in answer.notes)


def test_a_language_whose_grammar_is_not_installed_is_searched_in_windows(project, monkeypatch):
    from mc_core.errors import MissingDependencyError

    def missing(*_, **__):
        raise MissingDependencyError("tree_sitter_go is needed")

    with monkeypatch.context() as patch:
        patch.setattr("mc_text_code.source.units.parse", missing)
        patch.setattr("mc_text_code.codesearch.database.installed_grammars", list)
        with CodeIndex.open(project) as index:
            answer = index.search("answers one request of a client", 1)
            assert answer[0].kind == "window"
            assert answer[0].language == "go"
            assert any("grammar is not installed" in note for note in answer.notes)
    with CodeIndex.open(project) as index:  # once the grammars are there, the index is made anew
        report = index.refresh()
        assert "grammars" in report.rebuilt
        assert index.search("answers one request of a client", 1)[0].symbol == "HandleRequest"


def test_an_index_made_with_other_settings_is_made_anew(tmp_path):
    root = tools.write_project(tmp_path / "p", {"a.md": "\n".join(f"line {i} of it" for i in range(60))})
    with CodeIndex.open(root) as index:
        assert len(index.search("line of it", 10).hits) == 2
    with CodeIndex.open(root, config=IndexConfig(window_lines=10)) as index:
        report = index.refresh()
        assert "other settings" in report.rebuilt
        assert index.status().chunks == 6
        assert index.refresh().rebuilt == ""


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"text": ""}, "no letters or digits"),
        ({"text": " ?!… "}, "no letters or digits"),
        ({"text": "a" * 20_000}, "20,000 characters"),
        ({"text": "a", "k": 0}, "0 hits"),
        ({"text": "a", "k": 10**9}, "hits"),
        ({"text": "a", "mode": "both"}, "hybrid, dense, lexical"),
        ({"text": "a", "languages": ["pyton"]}, "closest: python"),
        ({"text": "a", "mode": "dense"}, "no encoder"),
    ],
)
def test_questions_that_cannot_be_answered(project, arguments, words):
    with CodeIndex.open(project) as index, pytest.raises((ConfigError, DataError), match=words) as error:
        index.search(**arguments)
    assert "\n" not in str(error.value)


def test_folders_that_cannot_be_opened(tmp_path, project):
    with pytest.raises(DataError, match="no folder"):
        CodeIndex.open(tmp_path / "nowhere")
    with pytest.raises(DataError, match="is a file; name its folder"):
        CodeIndex.open(project / "shop/cart.py")
    with pytest.raises(ConfigError, match="hold.*no index"):
        CodeIndex.open(project, folder=project / "shop")
    assert (project / "shop/cart.py").exists()
    with pytest.raises(ConfigError, match="is a file"):
        CodeIndex.open(project, folder=project / "shop/cart.py")
    if os.geteuid():
        (tmp_path / "fixed").mkdir(mode=0o500)
        with pytest.raises(ConfigError, match="could not be written"):
            CodeIndex.open(project, folder=tmp_path / "fixed/index")


def test_an_empty_folder_says_so(tmp_path):
    (tmp_path / "empty").mkdir()
    with CodeIndex.open(tmp_path / "empty") as index:
        answer = index.search("anything")
        assert answer.hits == []
        assert any("no source files" in note for note in answer.notes)
        assert index.status().chunks == 0


def test_a_folder_that_goes_away(project):
    index = CodeIndex.open(project)
    index.refresh()
    shutil.rmtree(project)
    with pytest.raises(DataError, match="no such folder"):
        index.search("anything")


def test_where_the_index_is_kept(tmp_path, monkeypatch):
    import sysconfig

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "root").mkdir()
    assert index_folder(tmp_path / "root") == tmp_path / "root/.mc-code"
    library = Path(sysconfig.get_paths()["stdlib"]).resolve()
    assert index_folder(library).is_relative_to(tmp_path / "cache")
    monkeypatch.setattr("os.access", lambda *_: False)
    assert index_folder(tmp_path / "root").is_relative_to(tmp_path / "cache")
    (tmp_path / "root/.mc-code").mkdir()
    assert index_folder(tmp_path / "root") == tmp_path / "root/.mc-code"


def test_files_may_be_listed_by_somebody_else(project):
    def lister() -> SourceListing:
        listing = source_files(project)
        return SourceListing(listing.root, [file for file in listing.files if file.path.endswith(".go")])

    with CodeIndex.open(project, lister=lister) as index:
        index.refresh()
        assert index.indexed_paths() == ["server/main.go"]


def test_a_file_that_changes_after_the_refresh_is_shown_as_it_was_indexed(project):
    with CodeIndex.open(project) as index:
        index.refresh()
        (project / "shop/parsing.py").write_text("# all gone\n")
        answer = index.search("parse_price", 1, refresh=False)
        assert "number = text.split()[0]" in answer[0].text
        assert any("shop/parsing.py has changed" in note for note in answer.notes)
        (project / "shop/parsing.py").unlink()
        assert "number = text.split()[0]" in index.search("parse_price", 1, refresh=False)[0].text


def test_the_unit_around_a_line(project):
    body = "\n".join(f"    value_{i} = compute(value_{i}, {i})" for i in range(200))
    (project / "long.py").write_text(f"def long_one():\n{body}\n\n\ndef after():\n    return 1\n")
    with CodeIndex.open(project) as index:
        line = tools.FILES["shop/cart.py"].split("\n").index("        self.items = []") + 1
        assert index.unit_at("shop/cart.py", line).symbol == "Cart.__init__"
        assert index.unit_at("shop/cart.py", 7).symbol == "Cart"
        whole = index.unit_at("long.py", 150)
        assert (whole.symbol, whole.start_line, whole.end_line) == ("long_one", 1, 201)
        assert whole.text.count("compute") == 200
        assert index.unit_at("long.py", 203).symbol == "after"
        assert index.unit_at("nowhere.py", 1) is None
        with pytest.raises(DataError, match="nothing at line 9,999"):
            index.unit_at("long.py", 9999)


def test_a_long_function_is_one_hit(project):
    body = "\n".join(f"    zebra_{i} = compute_zebra(zebra_{i}, {i})" for i in range(200))
    (project / "long.py").write_text(f"def long_one():\n{body}\n")
    with CodeIndex.open(project) as index:
        found = [hit for hit in index.search("compute zebra") if hit.path == "long.py"]
        assert len(found) == 1
        assert index._store.rows_of("SELECT count(*) FROM chunks WHERE qualified_name = 'long_one'")[0][0] > 2


def test_many_files_with_processes_are_the_same_index(tmp_path):
    root = tools.write_project(tmp_path / "many", tools.many_files(120))
    with CodeIndex.open(root, processes=2) as index:
        progress = []
        report = index.refresh(progress=lambda done, of: progress.append((done, of)))
        assert report.added == 120
        assert progress[-1] == (120, 120)
        assert_like_new(index, tmp_path)


def test_status(project):
    with CodeIndex.open(project) as index:
        assert index.status().complete is False
        index.refresh()
        status = index.status()
        assert status.files == len(tools.FILES)
        assert status.languages["python"] == 3
        assert status.complete
        assert status.refreshed is not None
        assert (status.model, status.coverage) == (None, 0.0)
        assert status.bytes > 0


def test_searching_by_words_loads_no_torch(project):
    script = (
        "import sys\nfrom mc_text_code.codesearch import CodeIndex\n"
        f"with CodeIndex.open({str(project)!r}) as index: assert len(index.search('cart'))\n"
        "heavy = {'torch', 'transformers', 'scipy', 'sklearn', 'mcp', 'bm25s', 'sentence_transformers'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_what_a_snapshot_says_of_places(project):
    with CodeIndex.open(project) as index:
        index.refresh()
        snapshot = index._store.snapshot()
        assert snapshot.paths == sorted(snapshot.paths)
        places = [snapshot.place_of(number) for number in range(len(snapshot))]
        expected = [(file, place) for file, count in enumerate(snapshot.chunk_counts) for place in range(count)]
        assert places == expected
        assert (snapshot.rows == -1).all()
        assert np.bincount(snapshot.postings.chunks, minlength=len(snapshot)).min() > 0
