"""Search by meaning: the vectors of a corpus in a folder, and the nearest of them to a query, exactly.

An index folder holds ``index.json``, which says which model and which corpus it belongs to, and the two files that it names. It is
made whole or not at all: the new files get their names first, ``index.json`` is replaced last, what it no longer names is removed.
Vectors of two models or two corpora never meet in it.

Legend: N sentences, D dimensions, Q queries, K hits.
"""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mc_core.engine.run import locked
from mc_core.errors import CheckpointError, ConfigError, DataError
from mc_core.files import atomic_path, read_json, remove_partial, write_json
from mc_text_code.evaluation.vectors import Encode, encode_texts, normalized

FORMAT = 1
INDEX_FILE = "index.json"
_ENCODED = 16_384  # texts given to the encoder at a time, which may sort them by length
_ROWS, _QUERIES = 16_384, 256  # of a block of similarities
_OURS = re.compile(r"vectors-[0-9a-f]{12}\.npy|sentences-[0-9a-f]{12}\.parquet")
_log = logging.getLogger("mc_core")

Progress = Callable[[float], None]


@dataclass(frozen=True)
class Hits:
    """What :meth:`SentenceIndex.search` returns.

    Attributes:
        rows: (Q, K) int64, places in the corpus, the nearest first; of equally near ones the earlier first.
        scores: (Q, K) float32, cosines.
    """

    rows: np.ndarray
    scores: np.ndarray


@dataclass(frozen=True)
class SentenceIndex:
    """A corpus and its vectors.

    Attributes:
        texts: N sentences.
        vectors: (N, D) float32, of length one, in memory or mapped from the file; zeros where the encoder gave zeros.
        model: fingerprint of the encoder; see :func:`~mc_text_code.fingerprint.model_fingerprint`.

    >>> letters = lambda texts: np.array([[t.count(c) for c in "abc"] for t in texts], dtype=float)
    >>> index = SentenceIndex.build(["aab", "bbc", "c"], letters)
    >>> hits = index.search(letters(["b", "cc"]), k=2)
    >>> hits.rows.tolist(), hits.scores.round(2).tolist()
    ([[1, 0], [2, 1]], [[0.8899999856948853, 0.44999998807907104], [1.0, 0.44999998807907104]])
    """

    texts: Sequence[str]
    vectors: np.ndarray
    model: str = ""

    def __len__(self) -> int:
        return len(self.texts)

    @classmethod
    def build(
        cls, texts: Sequence[str], encode: Encode, *, model: str = "", progress: Progress | None = None
    ) -> SentenceIndex:
        """Encode a corpus into memory.

        Args:
            texts: N sentences.
            encode: sentences → dense vectors.
            model: fingerprint of the encoder.
            progress: called with the share done.

        Raises:
            DataError: no texts, or vectors that are not finite.
        """
        return cls(texts, np.concatenate(list(_encoded(texts, encode, progress))), model)

    @classmethod
    def open(
        cls,
        folder: str | Path,
        texts: Sequence[str],
        encode: Encode,
        *,
        model: str,
        progress: Progress | None = None,
    ) -> SentenceIndex:
        """The index of this corpus by this model in ``folder``, made anew unless the folder holds just that.

        Why it is made anew is logged in one line. Vectors go to the file as they come, so that memory holds a block of them;
        sentences that the folder's index has from the same model are not encoded again.

        Args:
            folder: to read or to make.
            texts: the corpus.
            encode: sentences → dense vectors.
            model: fingerprint of the encoder, from :func:`~mc_text_code.fingerprint.model_fingerprint`.
            progress: called with the share encoded.

        Raises:
            ConfigError: the folder cannot be written, holds something else, or another process writes to it.
            DataError: no texts, or vectors that are not finite.
            RunError: the disk is full.
        """
        folder = Path(folder)
        if not model:
            raise ConfigError(
                "an index in a folder needs the fingerprint of its model: give model=model_fingerprint(…)"
            )
        if not len(texts):
            raise DataError("there are no sentences to index")
        kept: SentenceIndex | None = None
        if (folder / INDEX_FILE).exists():
            try:
                return cls.load(folder, model=model, texts=texts)
            except CheckpointError as error:
                _log.info("%s; making it anew", error)
            try:
                kept = cls.load(folder, model=model)
            except CheckpointError:
                kept = None
        elif folder.is_dir() and any(not _is_ours(entry.name) for entry in folder.iterdir()):
            raise ConfigError(f"{folder} holds files but no {INDEX_FILE}: name an empty or a new folder for the index")
        with locked(folder):
            _write(folder, texts, encode, model, kept, progress)
        return cls.load(folder, model=model, texts=texts)

    @classmethod
    def load(cls, folder: str | Path, *, model: str | None = None, texts: Sequence[str] | None = None) -> SentenceIndex:
        """The index in ``folder``; the vectors stay on disk until they are used.

        Args:
            folder: made by :meth:`open`.
            model: refuse an index of another model than this.
            texts: refuse an index of another corpus than this.

        Raises:
            CheckpointError: no index, a damaged one, or one of another model or corpus.
        """
        folder = Path(folder)
        described = _description(folder)
        if model is not None and described["model"] != model:
            raise CheckpointError(f"the index in {folder} was made by another model")
        if texts is not None and (described["count"] != len(texts) or described["corpus"] != corpus_fingerprint(texts)):
            raise CheckpointError(f"the index in {folder} is of another corpus, of {described['count']:,} sentences")
        shape = described["count"], described["dim"]
        try:
            vectors = np.load(folder / described["vectors"], mmap_mode="r", allow_pickle=False)
            if vectors.shape != shape or vectors.dtype != np.float32:
                raise ValueError(f"shape {vectors.shape}")
            if texts is None:
                texts = _read_texts(folder / described["texts"])
            if len(texts) != shape[0]:
                raise ValueError(f"{len(texts)} sentences")
        except (OSError, ValueError) as error:
            raise CheckpointError(f"the index in {folder} is damaged ({str(error).splitlines()[0]})") from error
        return cls(texts, vectors, described["model"])

    def search(self, queries: np.ndarray, k: int = 10) -> Hits:
        """The ``k`` nearest sentences of each query by cosine, over the whole corpus.

        Args:
            queries: (Q, D) vectors of any length, from the encoder that made the index.
            k: K; fewer when the corpus has fewer sentences.

        Raises:
            DataError: vectors of another width, or not finite.

        >>> index = SentenceIndex(["a", "b"], np.eye(2, dtype=np.float32))
        >>> index.search(np.array([[0.1, 1.0]]), k=5).rows.tolist()
        [[1, 0]]
        """
        wanted = np.asarray(queries)
        if wanted.ndim != 2 or wanted.shape[1] != self.vectors.shape[1]:
            raise DataError(
                f"queries have shape {wanted.shape}; the index holds vectors of {self.vectors.shape[1]} dimensions"
            )
        wanted = _checked(wanted, 0)
        if k < 1:
            raise ConfigError(f"k={k}: ask for at least one sentence")
        k = min(k, len(self))
        found = [self._nearest(wanted[start : start + _QUERIES], k) for start in range(0, len(wanted), _QUERIES)]
        if not found:
            return Hits(np.empty((0, k), dtype=np.int64), np.empty((0, k), dtype=np.float32))
        return Hits(np.concatenate([rows for rows, _ in found]), np.concatenate([scores for _, scores in found]))

    def _nearest(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """(…, K) rows and cosines: a block of the corpus at a time, of which only what beats the K best so far is looked at."""
        query_QD = torch.from_numpy(queries)
        least_Q = torch.full((len(queries),), -torch.inf)
        query, row, score = (np.empty(0, dtype=kind) for kind in (np.int64, np.int64, np.float32))
        for start in range(0, len(self), _ROWS):
            block = torch.from_numpy(
                np.array(self.vectors[start : start + _ROWS])
            )  # a copy: a mapped file is read-only
            score_QN = query_QD @ block.T
            if start == 0 and len(block) > k:
                least_Q = score_QN.topk(k, dim=1).values[:, -1]
                hit_QN = score_QN >= least_Q[:, None]
            else:
                hit_QN = score_QN > least_Q[:, None]  # an equal one comes later, and so ranks behind
            q, n = hit_QN.nonzero(as_tuple=True)
            if not len(q):
                continue
            query = np.concatenate([query, q.numpy()])
            row = np.concatenate([row, n.numpy() + start])
            score = np.concatenate([score, score_QN[q, n].numpy()])
            order = np.lexsort((row, -score, query))
            query, row, score = query[order], row[order], score[order]
            place = np.arange(len(query)) - np.searchsorted(query, query)
            best = place < k
            query, row, score = query[best], row[best], score[best]
            last = place[best] == k - 1
            least_Q[torch.from_numpy(query[last])] = torch.from_numpy(score[last])
        return row.reshape(len(queries), k), score.reshape(len(queries), k)


def corpus_fingerprint(texts: Sequence[str]) -> str:
    """A hash of the sentences and their order."""
    whole = hashlib.sha256()
    for start in range(0, len(texts), 4096):
        some = [text.encode("utf-8", "surrogatepass") for text in texts[start : start + 4096]]
        whole.update(np.array([len(text) for text in some], dtype="<i8").tobytes())
        whole.update(b"".join(some))
    return whole.hexdigest()


def search_lexical(texts: Sequence[str], queries: Sequence[str], k: int = 10) -> Hits:
    """The ``k`` best sentences of each query by BM25, which needs no encoder; score 0 shares no word with the query.

    >>> search_lexical(["a red cat", "a dog", "red"], ["red cat"], k=2).rows.tolist()
    [[0, 2]]
    """
    from mc_text_code.evaluation.baselines import bm25_scores

    if k < 1:
        raise ConfigError(f"k={k}: ask for at least one sentence")
    k = min(k, len(texts))
    rows, scores = [], []
    for _, block in bm25_scores(queries, texts):
        for one in block:
            least = np.partition(one, len(one) - k)[len(one) - k]
            above = np.flatnonzero(one > least)
            best = np.concatenate([above, np.flatnonzero(one == least)[: k - len(above)]])
            best = best[np.lexsort((best, -one[best]))]
            rows.append(best)
            scores.append(one[best])
    shape = (len(queries), k)
    return Hits(np.array(rows, dtype=np.int64).reshape(shape), np.array(scores, dtype=np.float32).reshape(shape))


def _checked(vectors: Any, first: int) -> np.ndarray:
    """Rows of length one, float32; ``first`` numbers them in a message."""
    rows = np.ascontiguousarray(normalized(vectors), dtype=np.float32)
    finite = np.isfinite(rows).all(axis=1)
    if not finite.all():
        raise DataError(f"the vector of sentence {first + int((~finite).argmax()) + 1} has NaN or infinite values")
    return rows


def _encoded(
    texts: Sequence[str], encode: Encode, progress: Progress | None, kept: SentenceIndex | None = None
) -> Iterator[np.ndarray]:
    """Vectors of the texts in order, a block at a time; those of ``kept`` are taken from there."""
    if not len(texts):
        raise DataError("there are no sentences to index")
    known = {text: row for row, text in enumerate(kept.texts)} if kept is not None else {}
    for start in range(0, len(texts), _ENCODED):
        some = list(texts[start : start + _ENCODED])
        new = [text for text in dict.fromkeys(some) if text not in known]
        fresh = _checked(encode_texts(encode, new), start) if new else None
        width = fresh.shape[1] if fresh is not None else kept.vectors.shape[1] if kept is not None else 0
        if kept is not None and width != kept.vectors.shape[1]:
            raise DataError(
                f"the encoder gives {width} dimensions, its own index has {kept.vectors.shape[1]}: delete the index"
            )
        block = np.empty((len(some), width), dtype=np.float32)
        place = {text: row for row, text in enumerate(new)}
        if fresh is not None:
            at = [row for row, text in enumerate(some) if text in place]
            block[at] = fresh[[place[some[row]] for row in at]]
        if kept is not None:
            at = [row for row, text in enumerate(some) if text not in place]
            block[at] = kept.vectors[[known[some[row]] for row in at]]
        yield block
        if progress is not None:
            progress((start + len(some)) / len(texts))


def _write(
    folder: Path,
    texts: Sequence[str],
    encode: Encode,
    model: str,
    kept: SentenceIndex | None,
    progress: Progress | None,
) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    remove_partial(folder)
    corpus = corpus_fingerprint(texts)
    tag = hashlib.sha256(f"{model} {corpus}".encode()).hexdigest()[:12]
    vectors_file, texts_file = f"vectors-{tag}.npy", f"sentences-{tag}.parquet"
    blocks = _encoded(texts, encode, progress, kept)
    first = next(blocks)
    dim = first.shape[1]
    with atomic_path(folder / vectors_file) as draft, draft.open("wb") as file:
        header = {"descr": "<f4", "fortran_order": False, "shape": (len(texts), dim)}
        np.lib.format.write_array_header_1_0(file, header)
        file.write(first.data)
        for block in blocks:
            if block.shape[1] != dim:
                raise DataError(f"the encoder gave {block.shape[1]} dimensions after {dim}; an index holds one width")
            file.write(block.data)
    with atomic_path(folder / texts_file) as draft:
        column = pa.array([text.encode("utf-8", "surrogatepass") for text in texts], pa.large_binary())
        pq.write_table(pa.table({"sentence": column}), draft, compression="zstd")
    description = {
        "format": FORMAT,
        "model": model,
        "corpus": corpus,
        "count": len(texts),
        "dim": dim,
        "vectors": vectors_file,
        "texts": texts_file,
    }
    write_json(folder / INDEX_FILE, description)
    for path in folder.iterdir():
        if _OURS.fullmatch(path.name) and path.name not in (vectors_file, texts_file):
            path.unlink(missing_ok=True)


def _is_ours(name: str) -> bool:
    """A file that a writer cut short may have left in a folder that is no index yet, or a hidden one."""
    return name.startswith(".") or bool(_OURS.fullmatch(name))


def _description(folder: Path) -> dict[str, Any]:
    if not (folder / INDEX_FILE).is_file():
        raise CheckpointError(f"{folder} holds no index of sentences ({INDEX_FILE} is missing)")
    try:
        found = read_json(folder / INDEX_FILE)
    except DataError as error:
        raise CheckpointError(f"the index in {folder} is damaged ({error})") from error
    wanted = {"model": str, "corpus": str, "count": int, "dim": int, "vectors": str, "texts": str}
    if not isinstance(found, dict) or any(not isinstance(found.get(name), kind) for name, kind in wanted.items()):
        raise CheckpointError(f"{folder / INDEX_FILE} does not describe an index of sentences")
    if found.get("format") != FORMAT:
        raise CheckpointError(f"the index in {folder} has format {found.get('format')}, this version reads {FORMAT}")
    if any(Path(found[name]).name != found[name] for name in ("vectors", "texts")):
        raise CheckpointError(f"{folder / INDEX_FILE} names files outside its folder")
    return found


def _read_texts(path: Path) -> list[str]:
    import pyarrow.parquet as pq

    column = pq.read_table(path, columns=["sentence"], partitioning=None).column(0)
    return [text.decode("utf-8", "surrogatepass") for text in column.to_pylist()]
