"""Vectors of an index: exact to their precision, embedded once, never those of two models, compact, and checked."""

from __future__ import annotations

import os
import runpy
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from mc_core.errors import RunError
from mc_text_code.codesearch import CodeIndex, IndexConfig, RankingConfig
from mc_text_code.codesearch.chunking import code_text, documentation_text
from mc_text_code.codesearch.database import DamagedIndexError
from mc_text_code.codesearch.vectors import Matrix, Model, Vectors, packed

tools = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("_codesearch_tools.py"))))


@pytest.fixture
def project(tmp_path):
    return tools.write_project(tmp_path / "project")


def ready(project, encoder, **options) -> CodeIndex:
    index = CodeIndex.open(project, encoder=encoder, **options)
    index.refresh()
    index.embed()
    return index


@pytest.mark.parametrize(("kind", "error"), [("float16", 4e-4), ("int8", 6e-3)])
@pytest.mark.parametrize("rows", [1, 511, 512, 1300])
def test_cosines_are_those_of_the_vectors(tmp_path, kind, error, rows):
    rng = np.random.default_rng(rows)
    vectors = rng.standard_normal((rows, 96)) * rng.uniform(1e-3, 1e3, (rows, 1))
    vectors[rows // 2] = 0
    model = Model("m", 96, kind, "a.bin")
    (tmp_path / "a.bin").write_bytes(packed(vectors, model))
    query = rng.standard_normal(96).astype(np.float32)
    query /= np.linalg.norm(query)
    found = Matrix(tmp_path / "a.bin", model, rows).cosines(query)
    lengths = np.linalg.norm(vectors, axis=1)
    expected = vectors @ query / np.where(lengths > 0, lengths, 1)
    np.testing.assert_allclose(found, expected, atol=error)
    assert found[rows // 2] == 0


def test_the_shift_of_bits_is_the_conversion_of_float16(tmp_path):
    halves = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    halves = halves[np.isfinite(halves) & (np.abs(halves) <= 1)]
    model = Model("m", 1, "float16", "a.bin")
    (tmp_path / "a.bin").write_bytes(halves.astype("<f2").tobytes())
    found = Matrix(tmp_path / "a.bin", model, len(halves)).cosines(np.ones(1, np.float32))
    np.testing.assert_array_equal(found, halves.astype(np.float32))


@pytest.mark.parametrize("kind", ["float16", "int8"])
def test_the_dense_arm_is_the_nearer_of_code_and_documentation(project, kind):
    encoder = tools.HashingEncoder(512)
    with ready(project, encoder, config=IndexConfig(vectors=kind)) as index:
        query = "turn text into a number"
        answer = index.search(query, 5, mode="dense")
        assert (answer.mode, answer.coverage) == ("dense", 1.0)
        assert answer[0].symbol == "parse_price"
        stored = index._store.rows_of("SELECT kind, qualified_name, docstring, code, part FROM chunks")

        def unit(text):
            vector = encoder.encode_queries([text])[0]
            return vector / max(np.linalg.norm(vector), 1e-9)

        q = unit(query)
        expected = {}
        for chunk_kind, name, docstring, code, part in stored:
            scores = [unit(code_text(chunk_kind, name, code, IndexConfig())) @ q]
            if chunk_kind != "window" and part == 0:
                scores.append(unit(documentation_text(name, docstring)) @ q)
            expected[name, chunk_kind] = scores
        for hit in answer:
            assert hit.dense_score == pytest.approx(max(expected[hit.symbol, hit.kind]), abs=6e-3)
            assert hit.lexical_rank is None
    with CodeIndex.open(
        project, encoder=encoder, config=IndexConfig(vectors=kind), ranking=RankingConfig(documentation=False)
    ) as index:
        for hit in index.search(query, 5, mode="dense"):
            assert hit.dense_score == pytest.approx(expected[hit.symbol, hit.kind][0], abs=6e-3)


def test_windows_have_one_vector_and_may_all_have(project):
    with ready(project, tools.HashingEncoder()) as index:
        rows = index._store.snapshot().rows
        kinds = [
            kind
            for (kind,) in index._store.rows_of(
                "SELECT kind FROM chunks JOIN files f ON f.id = chunks.id / (1 << 20) ORDER BY path, chunks.id"
            )
        ]
        assert [(row >= 0).tolist() for row in rows] == [[True, kind != "window"] for kind in kinds]
    with ready(project, tools.HashingEncoder(), config=IndexConfig(documentation=False)) as index:
        assert (index._store.snapshot().rows[:, 1] == -1).all()
        assert index.status().coverage == 1.0


def test_hybrid_is_lexical_until_something_is_embedded_and_always_says_how_much_is(project):
    encoder = tools.HashingEncoder()
    with CodeIndex.open(project, encoder=encoder) as index:
        answer = index.search("sum of the prices")
        assert (answer.mode, answer.coverage) == ("lexical", 0.0)
        assert "dense coverage 0%" in answer.coverage_line
        assert index.search("sum of the prices", mode="dense").hits == []
        calls = iter([False, False, True])
        done = index.embed(batch_size=2, stop=lambda: next(calls, True))
        assert 0 < done.complete < done.chunks
        answer = index.search("sum of the prices")
        assert answer.mode == "hybrid"
        assert answer.coverage is not None
        assert 0 < answer.coverage < 1
        index.embed()
        assert index.search("sum of the prices").coverage_line == ""
        assert index.search("sum of the prices", mode="lexical").coverage is None


def test_a_time_limit_ends_after_the_batch(project):
    with CodeIndex.open(project, encoder=tools.HashingEncoder()) as index:
        index.refresh()
        assert index.embed(seconds=0.0).encoded == 0
        assert index.embed(seconds=100.0).coverage == 1.0


def test_the_newest_file_is_embedded_first(project, monkeypatch):
    monkeypatch.setattr("mc_text_code.codesearch.refresh._RACY_NS", 0)
    os.utime(project / "server/main.go", ns=(2 * 10**18, 2 * 10**18))
    encoder = tools.HashingEncoder()
    with CodeIndex.open(project, encoder=encoder) as index:
        index.refresh()
        index.embed(batch_size=3)
    assert "HandleRequest" in encoder.seen[0] or "package main" in encoder.seen[0]


def test_moves_reverts_and_copies_cost_no_embedding(project):
    encoder = tools.HashingEncoder()
    with ready(project, encoder) as index:
        before = len(encoder.seen)
        assert before == len(set(encoder.seen))
        (project / "shop/parsing.py").rename(project / "moved.py")
        (project / "copy.py").write_text((project / "shop/cart.py").read_text())
        os.utime(project / "server/main.go")
        index.refresh()
        assert index.embed().encoded == 0
        old = (project / "web/app.js").read_text()
        (project / "web/app.js").write_text("function fresh() { return 1; }\n")
        index.refresh()
        assert index.embed().encoded > 0
        seen = len(encoder.seen)
        (project / "web/app.js").write_text(old)
        index.refresh()
        done = index.embed()
        assert (done.encoded, done.coverage, len(encoder.seen)) == (0, 1.0, seen)
        (project / "shop/cart.py").unlink()
        index.refresh()
        (project / "shop/cart.py").write_text(tools.FILES["shop/cart.py"])
        index.refresh()
        assert index.embed().encoded == 0


def test_one_edit_embeds_what_changed(project):
    encoder = tools.HashingEncoder()
    with ready(project, encoder) as index:
        seen = len(encoder.seen)
        path = project / "shop/cart.py"
        path.write_text(path.read_text().replace("return json.load(file)", "return json.loads(file.read())"))
        index.refresh()
        done = index.embed()
        assert done.encoded == 1
        assert "json.loads(file.read())" in encoder.seen[seen]


def test_a_query_that_gives_nonsense_is_refused(project):
    encoder = tools.HashingEncoder()
    with ready(project, encoder) as index:
        encoder.encode_queries = lambda texts: np.full((len(texts), 64), np.nan)
        with pytest.raises(RunError, match="not finite"):
            index.search("a query")


def test_after_an_edit_what_stayed_the_same_has_its_vectors_at_once(project):
    encoder = tools.HashingEncoder()
    with ready(project, encoder) as index:
        seen = len(encoder.seen)
        path = project / "shop/cart.py"
        path.write_text(path.read_text().replace("return json.load(file)", "return json.loads(file.read())"))
        (project / "server/main.go").rename(project / "server/moved.go")
        index.refresh()
        answer = index.search("sum of the prices of all items", 20, mode="dense")
        assert answer.coverage is not None
        assert 0.8 < answer.coverage < 1
        found = {hit.symbol for hit in answer}
        assert {"Cart.total_price", "HandleRequest"} <= found
        assert "load_cart" not in found
        assert len(encoder.seen) == seen + 1  # the query
        status = index.status()
        index.embed()
        assert status.coverage < index.status().coverage == 1.0


@pytest.mark.parametrize("second", [tools.HashingEncoder(96), tools.HashingEncoder(64, "another")])
def test_another_model_never_meets_the_vectors_of_the_first(project, second):
    first = tools.HashingEncoder(64)
    with ready(project, first):
        pass
    with CodeIndex.open(project, encoder=second) as index:
        answer = index.search("sum of the prices")
        assert (answer.mode, answer.coverage) == ("lexical", 0.0)
        assert any("another model's" in note for note in answer.notes)
        status = index.status()
        assert (status.model, status.dim) == (first.identity, 64)
        index.embed()
        status = index.status()
        assert (status.model, status.dim, status.coverage) == (second.identity, second.dim, 1.0)
        assert len(list(index.folder.glob("vectors-*.bin"))) == 1
        assert index.search("sum of the prices").mode == "hybrid"
    with CodeIndex.open(project, encoder=first) as index:
        assert index.search("sum of the prices").mode == "lexical"


def test_a_model_that_changes_its_dimension_under_one_name_is_refused_and_then_embedded_anew(project):
    with ready(project, tools.HashingEncoder(64, identity="same")):
        pass
    (project / "new.py").write_text("def something_new():\n    return 'new'\n")
    with CodeIndex.open(project, encoder=tools.HashingEncoder(32, identity="same")) as index:
        index.refresh()
        with pytest.raises(RunError, match="vectors of 32 numbers, the index held 64"):
            index.embed()
        assert index.status().coverage == 0
        assert index.embed().coverage == 1.0
        assert index.status().dim == 32


def test_a_query_of_another_dimension_is_answered_by_words(project):
    with ready(project, tools.HashingEncoder(64, identity="same")):
        pass
    with CodeIndex.open(project, encoder=tools.HashingEncoder(32, identity="same")) as index:
        answer = index.search("sum of the prices")
        assert answer.mode == "lexical"
        assert any("32" in note and "64" in note for note in answer.notes)


def test_settings_of_storage_make_the_vectors_anew(project):
    encoder = tools.HashingEncoder()
    with ready(project, encoder):
        pass
    with CodeIndex.open(project, encoder=encoder, config=IndexConfig(vectors="int8")) as index:
        assert index.refresh().rebuilt == ""
        assert index.embed().encoded > 0
        assert index.search("prices").mode == "hybrid"


def test_other_chunk_settings_keep_the_vectors_of_what_stays_the_same(project):
    encoder = tools.HashingEncoder()
    with ready(project, encoder):
        seen = len(encoder.seen)
    with CodeIndex.open(project, encoder=encoder, config=IndexConfig(window_lines=10)) as index:
        assert "other settings" in index.refresh().rebuilt
        assert index.embed().coverage == 1.0
        assert len(encoder.seen) - seen < seen / 4


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (lambda texts: np.zeros((len(texts), 0)), "must give"),
        (lambda texts: np.zeros((len(texts) + 1, 4)), "must give"),
        (lambda texts: np.full((len(texts), 4), np.nan), "not finite"),
        (lambda texts: np.zeros(len(texts)), "must give"),
    ],
)
def test_an_encoder_that_gives_nonsense(project, bad, words):
    encoder = SimpleNamespace(identity="bad", encode_code=bad, encode_queries=bad)
    with CodeIndex.open(project, encoder=encoder) as index:
        index.refresh()
        with pytest.raises(RunError, match=words):
            index.embed()
        assert index.status().coverage == 0
        assert index.search("prices", mode="lexical").hits


def test_unused_vectors_are_taken_out_at_a_quarter_and_come_back_without_embedding(tmp_path, monkeypatch):
    monkeypatch.setattr("mc_text_code.codesearch.vectors.FEWEST_UNUSED", 1)
    root = tools.write_project(tmp_path / "many", tools.many_files(20))
    encoder = tools.HashingEncoder()
    with ready(root, encoder) as index:
        store, vectors = index._store, Vectors(index._store)
        rows = len(vectors.unused()[0])
        before = index.search("read the file", 20, mode="dense")
        for number in range(3):
            (root / f"pkg{number % 7}/module_{number}.py").unlink()
        index.refresh()
        assert vectors.compact(fewest=1) == 0  # 3 of 20 are less than a quarter
        for number in range(3, 8):
            (root / f"pkg{number % 7}/module_{number}.py").unlink()
        index.refresh()
        unused = vectors.unused()[1]
        assert unused >= rows / 4
        old = vectors.model()
        assert vectors.compact(fewest=1) == unused
        new = vectors.model()
        assert new.file != old.file
        assert not (index.folder / old.file).exists()
        used, none = vectors.unused()
        assert (used.tolist(), none) == ([True] * (rows - unused), 0)
        assert (index.folder / new.file).stat().st_size == (rows - unused) * new.row.itemsize
        assert store.rows_of("SELECT count(*) FROM retired")[0][0] == unused
        after = index.search("read the file", 20, mode="dense")
        kept = [hit for hit in before if (root / hit.path).exists()]
        scores = {hit.location: hit.dense_score for hit in after}
        assert all(scores[hit.location] == hit.dense_score for hit in kept if hit.location in scores)
        tools.write_project(root, tools.many_files(20))
        index.refresh()
        seen = len(encoder.seen)
        assert index.embed().coverage == 1.0
        assert len(encoder.seen) == seen
        again = index.search("read the file", 20, mode="dense")
        assert [(hit.location, hit.dense_score) for hit in again] == [(hit.location, hit.dense_score) for hit in before]


def test_retired_vectors_do_not_grow_without_end(tmp_path, monkeypatch):
    root = tools.write_project(tmp_path / "many", tools.many_files(12))
    encoder = tools.HashingEncoder()
    with ready(root, encoder) as index:
        for round_ in range(4):
            for path in root.glob("pkg*/*.py"):
                path.write_text(path.read_text().replace("result", f"result{round_}"))
            index.refresh()
            index.embed()
            Vectors(index._store).compact(fewest=1)
        used, _ = Vectors(index._store).unused()
        assert index._store.rows_of("SELECT count(*) FROM retired")[0][0] <= used.sum()


def damaged(path: Path, how: str) -> None:
    data = bytearray(path.read_bytes())
    if how == "short":
        path.write_bytes(data[: len(data) // 2])
    elif how == "gone":
        path.unlink()
    elif how == "zeros":
        data[len(data) // 2 : len(data) // 2 + 64] = bytes(64)
        path.write_bytes(data)
    else:
        data[len(data) // 3] ^= 0x40
        path.write_bytes(data)


@pytest.mark.parametrize("how", ["short", "gone", "zeros", "bit"])
def test_damaged_vectors_are_noticed_and_made_anew(project, how):
    encoder = tools.HashingEncoder()
    with ready(project, encoder) as index:
        expected = index.search("turn text into a number", mode="dense")
        damaged(next(index.folder.glob("vectors-*.bin")), how)
    with CodeIndex.open(project, encoder=encoder) as index:
        answer = index.search("turn text into a number")
        assert (answer.mode, answer.coverage) == ("lexical", 0.0)
        assert index.embed().coverage == 1.0
        again = index.search("turn text into a number", mode="dense")
        assert [(hit.location, hit.dense_score) for hit in again] == [
            (hit.location, hit.dense_score) for hit in expected
        ]


def test_a_matrix_says_what_is_wrong_with_it(tmp_path):
    model = Model("m", 4, "float16", "a.bin")
    with pytest.raises(DamagedIndexError, match="gone"):
        Matrix(tmp_path / "a.bin", model, 3)
    (tmp_path / "a.bin").write_bytes(bytes(16))
    with pytest.raises(DamagedIndexError, match="shorter"):
        Matrix(tmp_path / "a.bin", model, 3)
    with pytest.raises(DamagedIndexError, match="not what was written"):
        Matrix(tmp_path / "a.bin", model, 2).check([(0, 2, 1234)])
