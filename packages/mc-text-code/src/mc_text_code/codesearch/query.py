"""An index, opened: kept up to date, and asked.

>>> import tempfile
>>> from pathlib import Path
>>> with tempfile.TemporaryDirectory() as folder:
...     _ = (Path(folder) / "shop.py").write_text("def total_price(items):\\n    return sum(i.price for i in items)\\n")
...     with CodeIndex.open(folder) as index:
...         answer = index.search("price of all items")
...     [(hit.location, hit.symbol) for hit in answer]
[('shop.py:1', 'total_price')]
"""

from __future__ import annotations

import json
import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial, wraps
from pathlib import Path
from typing import Concatenate, ParamSpec, Self, TypeVar

import numpy as np

from mc_core.errors import ConfigError, DataError
from mc_core.files import StrPath
from mc_text_code.codesearch.answer import Answer, Hit
from mc_text_code.codesearch.arms import Arms, check_request, files_taken
from mc_text_code.codesearch.config import IndexConfig, Mode, RankingConfig
from mc_text_code.codesearch.database import FOLDER, DamagedIndexError, ReplacedIndexError
from mc_text_code.codesearch.embedding import CodeEncoder, Embedding, QueryEncoder, checked, embed_missing, place_known
from mc_text_code.codesearch.places import index_folder
from mc_text_code.codesearch.refresh import LOCK_SECONDS, Progress, Refresh, refresh
from mc_text_code.codesearch.showing import unit_at
from mc_text_code.codesearch.store import Snapshot, Store
from mc_text_code.codesearch.vectors import Matrix, Model, Vectors
from mc_text_code.source.files import SourceListing, source_files

_REMEMBERED = 256
_FEW_FILES = 256

Lister = Callable[[], SourceListing]
_P = ParamSpec("_P")
_R = TypeVar("_R")


@dataclass(frozen=True)
class Status:
    """What an index holds.

    Attributes:
        root: what is searched.
        folder: of the index.
        files: searched.
        chunks: pieces of code.
        languages: name → files.
        skipped: reason → files left out.
        complete: the last refresh came to its end.
        refreshed: when, in seconds since 1970; None where never.
        model: identity of the encoder whose vectors there are; None where there are none.
        dim: numbers of a vector.
        coverage: share of chunks that have their vectors.
        unused: share of vectors that no chunk needs.
        bytes: size of the index.
    """

    root: str
    folder: str
    files: int
    chunks: int
    languages: dict[str, int]
    skipped: dict[str, int]
    complete: bool
    refreshed: int | None
    model: str | None
    dim: int
    coverage: float
    unused: float
    bytes: int


@dataclass(frozen=True)
class _Loaded:
    version: tuple[int, int]
    snapshot: Snapshot
    model: Model | None
    matrix: Matrix | None


def _mended(
    method: Callable[Concatenate[CodeIndex, _P], _R],
) -> Callable[Concatenate[CodeIndex, _P], _R]:
    """One thread at a time; a damaged index is built anew and asked again."""

    @wraps(method)
    def wrapped(self: CodeIndex, *args: _P.args, **kwargs: _P.kwargs) -> _R:
        with self._lock:
            for _ in range(2):
                try:
                    return method(self, *args, **kwargs)
                except ReplacedIndexError:
                    self._store.reopen()
                except DamagedIndexError as error:
                    self._store.replace(str(error))
                self._loaded = None
            return method(self, *args, **kwargs)

    return wrapped


class CodeIndex:
    """The index of a folder of source code. One object serves several threads, one after the other.

    Use :meth:`open`.
    """

    def __init__(
        self,
        root: Path,
        store: Store,
        lister: Lister,
        encoder: CodeEncoder | None,
        ranking: RankingConfig,
        processes: int,
        queries: QueryEncoder | None = None,
    ) -> None:
        self.root = root
        self.encoder = encoder
        self.ranking = ranking
        self.processes = processes
        self.queries = queries
        self._store = store
        self._lister = lister
        self._loaded: _Loaded | None = None
        self._verified: tuple[str, int] = ("", 0)
        self._queries: OrderedDict[str, np.ndarray] = OrderedDict()
        self._lock = threading.RLock()

    @classmethod
    def open(
        cls,
        root: StrPath,
        *,
        encoder: CodeEncoder | None = None,
        queries: QueryEncoder | None = None,
        folder: StrPath | None = None,
        config: IndexConfig | None = None,
        ranking: RankingConfig | None = None,
        lister: Lister | None = None,
        processes: int = 1,
    ) -> Self:
        """Open the index of a folder; it is made where there is none. Nothing is read yet.

        Args:
            root: the folder to search.
            encoder: for the dense arm; without one, answers are lexical.
            queries: encodes what is asked instead, into the same space, such as the encoder's copy in int8.
            folder: of the index. Default: ``.mc-code`` in the root, or below the user's cache folder where the root cannot be
                written or is the standard library.
            config: how files are cut.
            ranking: how results are ordered.
            lister: gives the files. Default: :func:`~mc_text_code.source.files.source_files` of the root.
            processes: to parse with; 0: as many as there are processors (see :func:`mc_core.pool.map_items`).

        Raises:
            DataError: there is no such folder.
            ConfigError: the index cannot be written there.
        """
        given = Path(root)
        if not given.is_dir():
            what = (
                "is a file; name its folder, and the file as a path to search in" if given.is_file() else "is no folder"
            )
            raise DataError(f"{given} {what}")
        found = given.resolve()
        place = Path(folder) if folder is not None else index_folder(found)
        lister = lister or partial(source_files, found, folders_left_out=(FOLDER,))
        store = Store(place, config or IndexConfig())
        return cls(found, store, lister, encoder, ranking or RankingConfig(), processes, queries)

    @property
    def folder(self) -> Path:
        """Where the index is."""
        return self._store.folder

    def close(self) -> None:
        """Close its files."""
        self._loaded = None
        self._store.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @_mended
    def refresh(self, *, wait: float = LOCK_SECONDS, progress: Progress | None = None) -> Refresh:
        """Bring words and chunks up to date with the files. See :func:`~mc_text_code.codesearch.refresh.refresh`."""
        report = refresh(self._store, self._lister(), processes=self.processes, wait=wait, progress=progress)
        if 0 < report.added + report.changed <= _FEW_FILES:  # more are for `embed`
            place_known(self._store, report.added + report.changed)
        return report

    @_mended
    def embed(
        self,
        *,
        batch_size: int = 256,
        seconds: float | None = None,
        stop: Callable[[], bool] | None = None,
        progress: Progress | None = None,
    ) -> Embedding:
        """Embed what has no vector yet. See :func:`~mc_text_code.codesearch.embedding.embed_missing`.

        Raises:
            ConfigError: the index was opened without an encoder.
        """
        return embed_missing(
            self._store, self._encoder(), batch_size=batch_size, seconds=seconds, stop=stop, progress=progress
        )

    def _encoder(self) -> CodeEncoder:
        if self.encoder is None:
            raise ConfigError("no encoder: the dense arm needs one; name a model, or search with mode 'lexical'")
        return self.encoder

    @_mended
    def search(
        self,
        text: str,
        k: int = 10,
        *,
        mode: Mode = "hybrid",
        languages: Sequence[str] = (),
        paths: Sequence[str] = (),
        refresh: bool = True,
    ) -> Answer:
        """The pieces of code that fit a query best.

        Args:
            text: a name, or a description in words.
            k: most hits.
            mode: both arms, or one. ``hybrid`` is lexical as long as nothing is embedded.
            languages: only files of these.
            paths: only files that fit one of these patterns, which are those of ``.gitignore``: ``src/``, ``*_test.go``.
            refresh: bring the index up to date first.

        Raises:
            DataError: the query has no words, or is no query.
            ConfigError: no such mode or language; ``dense`` without an encoder.
        """
        check_request(text, k, mode, languages)
        if mode == "dense":
            self._encoder()
        notes: tuple[str, ...] = self.refresh().notes if refresh else ()
        start = time.perf_counter()
        loaded = self._load()
        matrix = None if mode == "lexical" else loaded.matrix
        vector = None if matrix is None else self._query_vector(text)
        if matrix is not None and vector is not None and len(vector) != matrix.model.dim:
            notes = (*notes, f"the encoder's query has {len(vector)} numbers, the index's vectors {matrix.model.dim}")
            matrix = None
        arms = Arms(self._store, loaded.snapshot, matrix, vector, self.ranking)
        answer = arms.answer(text, k, mode, files_taken(loaded.snapshot, languages, paths), root=self.root)
        if mode != "lexical" and self.encoder is not None:
            answer = replace(answer, coverage=0.0 if matrix is None else loaded.snapshot.coverage)
            if loaded.model is not None and loaded.model.identity != self.encoder.identity:
                notes = (*notes, "the vectors of the index are another model's, and are replaced when it is embedded")
        if not loaded.snapshot.paths:
            notes = (*notes, f"{self.root} has no source files that could be searched")
        elif self._store.meta().get("complete") != "1":
            notes = (*notes, f"the index is still being built; {len(loaded.snapshot.paths):,} files were searched")
        return replace(answer, notes=(*notes, *answer.notes), seconds=time.perf_counter() - start)

    def _load(self) -> _Loaded:
        version = self._store.version()
        if self._loaded is not None and self._loaded.version == version:
            return self._loaded
        with self._store.reading():
            snapshot = self._store.snapshot()
            model = Vectors(self._store).model()
            blocks = self._store.rows_of("SELECT start, count, crc FROM blocks ORDER BY start")
        self._loaded = _Loaded(version, snapshot, model, self._matrix(model, blocks))
        return self._loaded

    def _matrix(self, model: Model | None, blocks: list[tuple[int, int, int]]) -> Matrix | None:
        if model is None or not blocks or self.encoder is None or model.identity != self.encoder.identity:
            return None
        try:
            matrix = Matrix(self.folder / model.file, model, max(start + count for start, count, _ in blocks))
            name, rows = self._verified
            matrix.check(block for block in blocks if name != model.file or block[0] >= rows)
        except DamagedIndexError:
            if self._store.embedding.acquire():
                try:
                    if Vectors(self._store).model() == model:
                        Vectors(self._store).drop()
                finally:
                    self._store.embedding.release()
            return None
        self._verified = (model.file, matrix.rows)
        return matrix

    def _query_vector(self, text: str) -> np.ndarray:
        if text in self._queries:
            self._queries.move_to_end(text)
            return self._queries[text]
        encoder = self._encoder()
        vector = checked((self.queries or encoder).encode_queries([text]), 1, encoder)[0]
        vector = vector / max(float(np.linalg.norm(vector)), 1e-12)
        self._queries[text] = vector
        if len(self._queries) > _REMEMBERED:
            self._queries.popitem(last=False)
        return vector

    @_mended
    def unit_at(self, path: str, line: int, *, refresh: bool = True) -> Hit | None:
        """The function, method or class around a line of a file. See :func:`~mc_text_code.codesearch.showing.unit_at`."""
        if refresh:
            self.refresh()
        return unit_at(self._store, self.root, path, line)

    @_mended
    def indexed_paths(self) -> list[str]:
        """Files that are searched, relative to the root."""
        return [path for (path,) in self._store.rows_of("SELECT path FROM files WHERE reason = '' ORDER BY path")]

    @_mended
    def status(self) -> Status:
        """What the index holds."""
        store = self._store
        meta = store.meta()
        files, chunks, embedded = store.rows_of(
            "SELECT count(*), coalesce(sum(chunks), 0), coalesce(sum(embedded), 0) FROM files WHERE reason = ''"
        )[0]
        skipped = Counter(dict(store.rows_of("SELECT reason, count(*) FROM files WHERE reason != '' GROUP BY reason")))
        skipped.update({reason: count for reason, (count, _) in json.loads(meta.get("skipped", "{}")).items()})
        model = Vectors(store).model()
        used, unused = Vectors(store).unused()
        return Status(
            root=str(self.root),
            folder=str(self.folder),
            files=files,
            chunks=chunks,
            languages=dict(
                store.rows_of(
                    "SELECT language, count(*) FROM files WHERE reason = '' GROUP BY language ORDER BY count(*) DESC, language"
                )
            ),
            skipped=dict(skipped),
            complete=meta.get("complete") == "1",
            refreshed=int(meta["refreshed"]) if "refreshed" in meta else None,
            model=None if model is None else model.identity,
            dim=0 if model is None else model.dim,
            coverage=embedded / chunks if chunks and model is not None else 0.0,
            unused=unused / len(used) if len(used) else 0.0,
            bytes=sum(path.stat().st_size for path in self.folder.iterdir() if path.is_file()),
        )
