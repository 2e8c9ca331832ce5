"""Search over all vectors, and the folder that holds them: exact against sorting everything, whole or absent, never mixed."""

import logging
import os
import subprocess
import sys

import numpy as np
import pytest

from mc_core.errors import CheckpointError, ConfigError, DataError
from mc_core.files import read_json, write_json
from mc_text_code import SentenceIndex, search_lexical
from mc_text_code import search as search_module
from mc_text_code.fingerprint import model_fingerprint
from mc_text_code.search import corpus_fingerprint

TEXTS = [f"sentence {n}" for n in range(50)]


def hashed(dim=8, seed=0):
    def encode(texts):
        encode.asked += list(texts)
        return np.array([np.random.default_rng([seed, *text.encode()]).normal(size=dim) for text in texts])

    encode.asked = []
    return encode


def sorted_out(vectors, queries, k):
    """Every cosine, sorted: the nearest first, of equal ones the earlier row."""
    unit = queries / np.linalg.norm(queries, axis=1, keepdims=True)
    rows, scores = [], []
    for query in unit.astype(np.float32):
        cosine = vectors @ query
        order = np.lexsort((np.arange(len(cosine)), -cosine))[:k]
        rows.append(order)
        scores.append(cosine[order])
    return np.array(rows), np.array(scores)


@pytest.mark.parametrize("k", [1, 7, 64, 500])
@pytest.mark.parametrize("blocks", [(16, 3), (64, 100), (10_000, 10_000)])
def test_the_nearest_are_those_of_sorting_everything(monkeypatch, k, blocks):
    monkeypatch.setattr(search_module, "_ROWS", blocks[0])
    monkeypatch.setattr(search_module, "_QUERIES", blocks[1])
    rng = np.random.default_rng(0)
    index = SentenceIndex([str(n) for n in range(300)], _unit(rng.normal(size=(300, 8))))
    queries = rng.normal(size=(20, 8)) * rng.uniform(0.1, 9, (20, 1))
    hits = index.search(queries, k)
    rows, scores = sorted_out(index.vectors, queries, k)
    assert hits.scores == pytest.approx(scores, abs=1e-6)
    assert (hits.rows == rows).all()
    assert hits.rows.shape == (20, min(k, 300))


def _unit(vectors):
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def test_of_equal_sentences_the_first_comes_first(monkeypatch):
    monkeypatch.setattr(search_module, "_ROWS", 8)
    few = np.eye(4, dtype=np.float32)
    pick = np.random.default_rng(1).integers(0, 4, 100)
    hits = SentenceIndex([""] * 100, few[pick]).search(few[[2]], k=60)
    order = np.concatenate([np.flatnonzero(pick == 2), np.flatnonzero(pick != 2)])
    assert hits.rows[0].tolist() == order[:60].tolist()
    alike = SentenceIndex([""] * 100, few[np.zeros(100, dtype=int)]).search(few[[0, 1]], k=9)
    assert alike.rows.tolist() == [list(range(9))] * 2


def test_vectors_of_zeros_find_nothing_near():
    index = SentenceIndex.build(["a", "b"], lambda texts: np.array([[0.0, 0.0], [3.0, 4.0]]))
    assert index.vectors == pytest.approx(np.array([[0, 0], [0.6, 0.8]]))
    assert index.search(np.zeros((1, 2))).scores.tolist() == [[0.0, 0.0]]


def test_queries_that_do_not_fit_are_refused():
    index = SentenceIndex.build(TEXTS, hashed())
    with pytest.raises(DataError, match="8 dimensions"):
        index.search(np.ones((1, 9)))
    with pytest.raises(DataError, match="sentence 2 has NaN"):
        index.search(np.array([[1.0] * 8, [np.nan] * 8]))
    with pytest.raises(ConfigError, match="k=0"):
        index.search(np.ones((1, 8)), k=0)
    assert index.search(np.empty((0, 8)), k=3).rows.shape == (0, 3)
    with pytest.raises(DataError, match="no sentences"):
        SentenceIndex.build([], hashed())
    with pytest.raises(DataError, match="sentence 3 has NaN"):
        SentenceIndex.build(["a", "b", "c"], lambda texts: np.array([[1.0], [2.0], [np.inf]]))


def test_a_folder_holds_what_was_built(tmp_path):
    encode = hashed()
    texts = ["plain", "new\nline", "tab\t", "ünï 東京", "", "lone \udc80"]
    safe = lambda t: encode([text.encode("utf-8", "surrogatepass").hex() for text in t])  # noqa: E731
    index = SentenceIndex.open(tmp_path / "deep/index", texts, safe, model="m")
    built = SentenceIndex.build(texts, safe)
    assert (np.asarray(index.vectors) == built.vectors).all()
    assert isinstance(index.vectors, np.memmap)
    found = SentenceIndex.load(tmp_path / "deep/index")
    assert list(found.texts) == texts
    assert found.model == "m"
    assert (found.search(built.vectors, 2).rows == built.search(built.vectors, 2).rows).all()


def test_the_folder_is_used_again_only_for_the_same_model_and_corpus(tmp_path, caplog):
    encode = hashed()
    SentenceIndex.open(tmp_path, TEXTS, encode, model="one")
    assert encode.asked == TEXTS
    encode.asked.clear()
    with caplog.at_level(logging.INFO):
        again = SentenceIndex.open(tmp_path, TEXTS, encode, model="one")
    assert encode.asked == []
    assert caplog.messages == []

    other = hashed(dim=5, seed=3)
    with caplog.at_level(logging.INFO):
        changed = SentenceIndex.open(tmp_path, TEXTS, other, model="two")
    assert caplog.messages == [f"the index in {tmp_path} was made by another model; making it anew"]
    assert other.asked == TEXTS
    assert changed.vectors.shape == (50, 5)
    assert again.vectors[0] == pytest.approx(_unit(encode(TEXTS[:1]))[0])  # still open, still its own
    caplog.clear()

    other.asked.clear()
    longer = [*TEXTS[5:20][::-1], "a new one", *TEXTS[:5], "a new one"]
    with caplog.at_level(logging.INFO):
        found = SentenceIndex.open(tmp_path, longer, other, model="two")
    assert caplog.messages == [f"the index in {tmp_path} is of another corpus, of 50 sentences; making it anew"]
    assert other.asked == ["a new one"]
    assert np.asarray(found.vectors) == pytest.approx(_unit(other(longer)), abs=1e-7)
    assert sorted(path.name.split("-")[0] for path in tmp_path.iterdir()) == [
        ".lock",
        "index.json",
        "sentences",
        "vectors",
    ]


def test_loading_refuses_another_model_or_corpus(tmp_path):
    SentenceIndex.open(tmp_path, TEXTS, hashed(), model="one")
    assert len(SentenceIndex.load(tmp_path, model="one", texts=TEXTS)) == 50
    with pytest.raises(CheckpointError, match="made by another model"):
        SentenceIndex.load(tmp_path, model="two")
    for texts in (TEXTS[:-1], TEXTS[::-1], [*TEXTS[:-1], "x"]):
        with pytest.raises(CheckpointError, match="is of another corpus, of 50 sentences"):
            SentenceIndex.load(tmp_path, texts=texts)
    with pytest.raises(CheckpointError, match="holds no index"):
        SentenceIndex.load(tmp_path / "none")


def files_of(folder):
    description = read_json(folder / "index.json")
    return folder / description["vectors"], folder / description["texts"], folder / "index.json"


@pytest.mark.parametrize("which", [0, 1, 2])
@pytest.mark.parametrize("damage", ["cut", "gone", "other"])
def test_a_damaged_index_is_refused_and_made_anew(tmp_path, caplog, which, damage):
    SentenceIndex.open(tmp_path, TEXTS, hashed(), model="one")
    path = files_of(tmp_path)[which]
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-20])
    elif damage == "gone":
        path.unlink()
    else:
        path.write_bytes(b'{"format": 7}' if which == 2 else b"something else")
    with pytest.raises(CheckpointError) as caught:
        SentenceIndex.load(tmp_path)
    assert "\n" not in str(caught.value)
    encode = hashed()
    found = SentenceIndex.open(tmp_path, TEXTS, encode, model="one")
    assert np.asarray(found.vectors) == pytest.approx(_unit(encode(TEXTS)), abs=1e-7)
    SentenceIndex.open(tmp_path, ["x", *TEXTS], encode, model="one")
    assert list(SentenceIndex.load(tmp_path).texts) == ["x", *TEXTS]


def test_files_outside_the_folder_are_not_read(tmp_path):
    SentenceIndex.open(tmp_path / "index", TEXTS, hashed(), model="one")
    path = tmp_path / "index/index.json"
    write_json(path, {**read_json(path), "vectors": "../vectors.npy"})
    with pytest.raises(CheckpointError, match="outside its folder"):
        SentenceIndex.load(tmp_path / "index")


def test_objects_in_the_file_of_vectors_are_not_unpickled(tmp_path):
    SentenceIndex.open(tmp_path, TEXTS, hashed(), model="one")
    np.save(files_of(tmp_path)[0], np.array([object()], dtype=object), allow_pickle=True)
    with pytest.raises(CheckpointError, match="damaged"):
        SentenceIndex.load(tmp_path)


def test_a_folder_of_other_things_is_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(ConfigError, match="holds files but no index.json"):
        SentenceIndex.open(tmp_path, TEXTS, hashed(), model="one")
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]
    with pytest.raises(ConfigError, match="fingerprint of its model"):
        SentenceIndex.open(tmp_path, TEXTS, hashed(), model="")


def test_an_encoder_that_fails_leaves_the_old_index(tmp_path, monkeypatch):
    monkeypatch.setattr(search_module, "_ENCODED", 16)
    SentenceIndex.open(tmp_path, TEXTS, hashed(), model="one")

    def failing(texts):
        if "sentence 40" in texts:
            raise KeyboardInterrupt
        return hashed()(texts)

    with pytest.raises(KeyboardInterrupt):
        SentenceIndex.open(tmp_path, TEXTS, failing, model="two")
    assert len(SentenceIndex.load(tmp_path, model="one", texts=TEXTS)) == 50
    assert len(list(tmp_path.iterdir())) == 4
    growing = lambda texts: np.ones((len(texts), 3 if "sentence 40" in texts else 2))  # noqa: E731
    with pytest.raises(DataError, match="3 dimensions after 2"):
        SentenceIndex.open(tmp_path, TEXTS, growing, model="two")
    assert SentenceIndex.load(tmp_path).model == "one"


KILLED = """
import os, signal, sys
import numpy as np
from mc_text_code import search

texts = [f"sentence {n}" for n in range(50)]
search._ENCODED = 10
whole = search.write_json
kill = lambda: os.kill(os.getpid(), signal.SIGKILL)

def encode(some, until=None):
    if until in some:
        kill()
    return np.array([[len(text), 1.0] for text in some])

def scenario(folder, when, first):
    if first == "old":
        search.SentenceIndex.open(folder, texts, encode, model="one")
    def write(path, described):
        if when == "after":
            whole(path, described)
        kill()
    search.write_json = write
    until = "sentence 30" if when == "encoding" else None
    search.SentenceIndex.open(folder, texts[:40], lambda some: encode(some, until), model="two")

for case in sys.argv[2:]:
    child = os.fork()
    if not child:
        scenario(os.path.join(sys.argv[1], case), *case.split("-"))
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL, case
"""


@pytest.mark.skipif(os.name != "posix", reason="needs SIGKILL")
def test_killed_at_any_moment_it_is_the_old_index_or_the_new_one(tmp_path):
    cases = [f"{when}-{first}" for when in ("encoding", "before", "after") for first in ("old", "none")]
    command = [sys.executable, "-c", KILLED, str(tmp_path), *cases]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    for case in cases:
        folder = tmp_path / case
        if case.startswith("after"):
            assert len(SentenceIndex.load(folder, model="two", texts=TEXTS[:40])) == 40
        elif case.endswith("old"):
            assert len(SentenceIndex.load(folder, model="one", texts=TEXTS)) == 50
        else:
            with pytest.raises(CheckpointError, match="holds no index"):
                SentenceIndex.load(folder)
        SentenceIndex.open(folder, TEXTS, hashed(), model="three")
        assert len(list(folder.iterdir())) == 4  # nothing is left of either


def test_one_process_at_a_time_writes(tmp_path):
    def meanwhile(texts):
        with pytest.raises(ConfigError, match="another process is writing"):
            SentenceIndex.open(tmp_path, TEXTS, hashed(), model="two")
        return hashed()(texts)

    SentenceIndex.open(tmp_path, TEXTS, meanwhile, model="one")


def test_progress_is_told_and_memory_holds_a_block(tmp_path, monkeypatch):
    monkeypatch.setattr(search_module, "_ENCODED", 20)
    told, sizes = [], []

    def encode(texts):
        sizes.append(len(texts))
        return hashed()(texts)

    SentenceIndex.open(tmp_path, TEXTS, encode, model="one", progress=told.append)
    assert told == [0.4, 0.8, 1.0]
    assert sizes == [20, 20, 10]


def test_a_model_is_known_by_its_files_and_not_by_its_card(tmp_path):
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    (tmp_path / "1_Pooling/config.json").write_text('{"cls": true}')
    first = model_fingerprint(tmp_path)
    (tmp_path / "README.md").write_text("a card")
    assert model_fingerprint(tmp_path) == first
    seen = {first}
    for path, content in [("model.safetensors", "other"), ("1_Pooling/config.json", "{}"), ("vocab.txt", "a")]:
        (tmp_path / path).write_text(content)
        seen.add(model_fingerprint(tmp_path))
    assert len(seen) == 4
    with pytest.raises(CheckpointError, match="no saved model"):
        model_fingerprint(tmp_path / "none")


def test_the_fingerprint_of_a_corpus_tells_where_sentences_end():
    assert len({corpus_fingerprint(texts) for texts in (["ab", "c"], ["a", "bc"], ["abc"], ["c", "ab"], [])}) == 5
    many = [str(n) for n in range(9000)]
    assert corpus_fingerprint(many) == corpus_fingerprint(tuple(many)) != corpus_fingerprint([*many[:-1], "x"])


def test_lexical_search_ranks_by_bm25_and_the_earlier_first():
    texts = ["a dog", "red cat red", "a red cat", "a red cat", "nothing"]
    hits = search_lexical(texts, ["red cat", "dog"], k=4)
    assert hits.rows[0, :3].tolist() in ([1, 2, 3], [2, 3, 1])
    assert hits.rows[1].tolist() == [0, 1, 2, 3]
    assert hits.scores[1].tolist()[1:] == [0, 0, 0]
    assert (np.diff(hits.scores, axis=1) <= 0).all()
    assert search_lexical(texts, ["cat"], k=99).rows.shape == (1, 5)
    with pytest.raises(ConfigError, match="k=0"):
        search_lexical(texts, ["cat"], k=0)
