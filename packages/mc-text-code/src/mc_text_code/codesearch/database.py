"""The SQLite file of an index: made, opened, emptied, replaced; and the errors that come of it.

Whatever changes is changed in a transaction, so that a process killed at any moment leaves the state before or after it. A header
says what made the index; with other settings, another chunker or another format it is emptied and filled anew, and a damaged
file is put aside, never read on.
"""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mc_core.errors import ConfigError, McError, RunError
from mc_core.files import explain_write_error
from mc_text_code.codesearch.chunking import CHUNKER, installed_grammars
from mc_text_code.codesearch.config import IndexConfig
from mc_text_code.codesearch.locks import FileLock

FORMAT = 1
FOLDER = ".mc-code"
DATABASE = "index.sqlite"

_APPLICATION = 0x6D636373
_MARK = "# an index of mc-text-code: made again when it is gone\n*\n"
_BUSY_SECONDS = 20.0
_CORRUPT = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_FORMAT, sqlite3.SQLITE_ERROR}

_SCHEMA = """
CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS files (
    id INTEGER PRIMARY KEY AUTOINCREMENT, path TEXT NOT NULL UNIQUE, size INTEGER NOT NULL, mtime_ns INTEGER NOT NULL,
    digest BLOB NOT NULL, language TEXT NOT NULL, reason TEXT NOT NULL, note TEXT NOT NULL,
    chunks INTEGER NOT NULL, embedded INTEGER NOT NULL DEFAULT 0
);
CREATE TABLE IF NOT EXISTS postings (file INTEGER PRIMARY KEY, data BLOB NOT NULL, crc INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS chunks (
    id INTEGER PRIMARY KEY, kind TEXT, name TEXT, qualified_name TEXT, line INTEGER, start_line INTEGER,
    end_line INTEGER, part INTEGER, parts INTEGER, trivial INTEGER, signature TEXT, docstring TEXT, code TEXT, code_digest BLOB,
    documentation_digest BLOB
);
CREATE TABLE IF NOT EXISTS terms (id INTEGER PRIMARY KEY, term TEXT NOT NULL UNIQUE);
CREATE TABLE IF NOT EXISTS places (file INTEGER PRIMARY KEY, rows BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS vectors (key BLOB PRIMARY KEY, row INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS blocks (start INTEGER PRIMARY KEY, count INTEGER NOT NULL, crc INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS retired (key BLOB PRIMARY KEY, vector BLOB NOT NULL, since INTEGER NOT NULL) WITHOUT ROWID;
"""
_LEXICAL = ("files", "postings", "chunks", "terms", "places")
DENSE = ("places", "vectors", "blocks", "retired")


class DamagedIndexError(McError):
    """The index on disk is not what was written; it has to be built anew."""


class ReplacedIndexError(DamagedIndexError):
    """Another process has put a new file in the place of the one that is open."""


class Database:
    """The file of an index, opened; made where there is none.

    Args:
        folder: of the index.
        config: what it holds.

    Attributes:
        rebuilt: why it was emptied when it was opened; else empty.

    Raises:
        ConfigError: the folder cannot be written, or holds other files.
    """

    def __init__(self, folder: Path, config: IndexConfig) -> None:
        self.folder = folder
        self.config = config
        self.rebuilt = ""
        self.writing = FileLock(folder / "write.lock")
        self.embedding = FileLock(folder / "embed.lock")
        self._claim()
        self._open()

    def _claim(self) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            mark = self.folder / ".gitignore"
            marked = mark.is_file() and mark.read_text("utf-8", "replace").startswith(_MARK.partition(":")[0])
            if not marked:
                if any(self.folder.iterdir()):
                    raise ConfigError(f"{self.folder} holds files that are no index; name an empty or a new folder")
                mark.write_text(_MARK, "utf-8")
        except FileExistsError as error:
            raise ConfigError(f"{self.folder} is a file; name a folder for the index") from error
        except OSError as error:
            raise explain_write_error(error, self.folder) from error

    def _open(self) -> None:
        path = self.folder / DATABASE
        try:
            if path.exists():
                self._connect(path)
                return
            with self._written():  # two processes that make it at once would get in each other's way
                self._connect(path)
        except DamagedIndexError as error:
            self.replace(str(error))

    def reopen(self) -> None:
        """Open the file that is there now."""
        self.connection.close()
        self._open()

    def _connect(self, path: Path) -> None:
        with self._sqlite():
            self.connection = sqlite3.connect(
                path, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False
            )
            try:
                self._prepare(path)
            except BaseException:
                self.connection.close()
                raise

    def _prepare(self, path: Path) -> None:
        run = self.connection.execute
        run("PRAGMA trusted_schema=OFF")  # the file may have come with somebody else's repository
        run("PRAGMA journal_mode=WAL")
        run("PRAGMA synchronous=NORMAL")
        self._inode = os.stat(path).st_ino
        application = run("PRAGMA application_id").fetchone()[0]
        if not application:
            if run("SELECT count(*) FROM sqlite_master").fetchone()[0]:
                raise DamagedIndexError("another program's file was in the place of the index")
            with self._transaction():
                run(f"PRAGMA application_id={_APPLICATION}")
                for statement in _SCHEMA.split(";"):
                    run(statement)
                self.set_meta(self._header())
        elif application != _APPLICATION:
            raise DamagedIndexError("another program's file was in the place of the index")
        found = self.meta()
        if {key: found.get(key) for key in self._header()} != self._header():
            self._empty(found)

    def _header(self) -> dict[str, str]:
        settings = self.config.model_dump(exclude={"vectors"})
        grammars = installed_grammars()
        return {
            "format": str(FORMAT),
            "chunker": json.dumps({"version": CHUNKER, "grammars": grammars, **settings}, sort_keys=True),
        }

    def _empty(self, found: dict[str, str]) -> None:
        """Another format, chunker or setting: chunks go; vectors stay, since they are kept under what they are of."""
        other_format = found.get("format") != str(FORMAT)
        with self._transaction():
            if other_format:
                tables = self.connection.execute(
                    "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%'"
                ).fetchall()
                for (name,) in tables:
                    self.connection.execute(f'DROP TABLE "{name}"')
                for statement in _SCHEMA.split(";"):
                    self.connection.execute(statement)
            else:
                for name in _LEXICAL:
                    self.connection.execute(f"DELETE FROM {name}")
            self.set_meta({**self._header(), "complete": "0"})
        self.rebuilt = "its format is another" if other_format else "it was made with other settings or grammars"

    def replace(self, reason: str) -> None:
        """Remove a damaged index and begin an empty one."""
        if hasattr(self, "connection"):
            self.connection.close()
        with self._written():
            try:
                for name in (DATABASE, f"{DATABASE}-wal", f"{DATABASE}-shm", f"{DATABASE}-journal"):
                    (self.folder / name).unlink(missing_ok=True)
                for path in self.folder.glob("vectors-*.bin"):
                    path.unlink(missing_ok=True)
                self._connect(self.folder / DATABASE)
            except OSError as error:
                raise explain_write_error(error, self.folder) from error
        self.rebuilt = reason

    @contextmanager
    def _written(self) -> Iterator[None]:
        """Under the lock of those who write."""
        if self.writing.held:
            yield
            return
        if not self.writing.acquire(_BUSY_SECONDS):
            raise RunError(f"{self.folder} is being written by another process; wait for it, or end it")
        try:
            yield
        finally:
            self.writing.release()

    def close(self) -> None:
        """Close the file."""
        self.connection.close()

    @contextmanager
    def _sqlite(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise self._explained(error) from error

    def _explained(self, error: sqlite3.Error) -> McError:
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        path = self.folder / DATABASE
        if code in _CORRUPT or str(error).startswith("Could not decode"):
            return DamagedIndexError(f"it was damaged ({error})")
        if code == sqlite3.SQLITE_FULL:
            return RunError(f"{path} could not be written (no space left); free space there, then run again")
        if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            return RunError(f"{path} is held by another process; wait for it, or end it")
        if code in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM):
            return ConfigError(f"{path} cannot be opened or written ({error}); choose another place for the index")
        return RunError(f"{path}: {error}")

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        run = self.connection.execute
        run("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            if self.connection.in_transaction:
                run("ROLLBACK")
            raise
        run("COMMIT")

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All or nothing. A file that another process has put in the place of ours is not written to.

        Raises:
            ReplacedIndexError: the file is another by now.
        """
        with self._sqlite():
            self._check_file()
            with self._transaction():
                yield

    def _check_file(self) -> None:
        try:
            inode = os.stat(self.folder / DATABASE).st_ino
        except FileNotFoundError as error:
            raise ReplacedIndexError("its file was removed") from error
        if inode != self._inode:
            raise ReplacedIndexError("another process has replaced it")

    @contextmanager
    def reading(self) -> Iterator[None]:
        """All reads inside see one moment."""
        with self._sqlite():
            self.connection.execute("BEGIN")
            try:
                yield
            finally:
                if self.connection.in_transaction:
                    self.connection.execute("ROLLBACK")

    def rows_of(self, statement: str, values: Sequence[Any] = ()) -> list[Any]:
        """All rows of a query."""
        with self._sqlite():
            return self.connection.execute(statement, values).fetchall()

    def meta(self) -> dict[str, str]:
        """The header, and notes of the last refresh."""
        return dict(self.rows_of("SELECT key, value FROM meta"))

    def set_meta(self, values: dict[str, str]) -> None:
        """Write into the header, inside a transaction."""
        self.connection.executemany("INSERT OR REPLACE INTO meta VALUES (?, ?)", values.items())

    def version(self) -> tuple[int, int]:
        """Changes whenever somebody has written, here or in another process.

        Raises:
            ReplacedIndexError: the file is another by now.
        """
        self._check_file()
        return int(self.rows_of("PRAGMA data_version")[0][0]), self.connection.total_changes
