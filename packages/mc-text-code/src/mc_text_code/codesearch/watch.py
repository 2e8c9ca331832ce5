"""A daemon that keeps an index and its model warm, and answers queries on a Unix socket.

One line of JSON is asked, one line answered, one connection each. The daemon holds a lock for as long as it lives: a socket whose
daemon was killed is told from one that listens, and is taken over.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mc_core.errors import ConfigError, McError, RunError
from mc_text_code.codesearch.answer import Answer
from mc_text_code.codesearch.config import Mode
from mc_text_code.codesearch.keeper import open_kept
from mc_text_code.codesearch.locks import FileLock
from mc_text_code.codesearch.places import socket_path
from mc_text_code.codesearch.query import CodeIndex

INTERVAL = 2.0
LOCK = "daemon.lock"

_LONGEST_LINE = 1 << 20
_READ_SECONDS = 5.0
_ANSWER_SECONDS = 60.0
_LOOK_SECONDS = 0.2
_log = logging.getLogger("mc_core")


class Daemon:
    """Answers for one index until it is stopped.

    Args:
        open_index: opens it, with its encoder; called twice, since one of the two embeds in the background; the encoder of
            the first is used by both, so load it before and let both have the same one.
        interval: seconds between two looks for changes.

    Raises:
        ConfigError: another daemon serves the index.
    """

    def __init__(self, open_index: Callable[[], CodeIndex], *, interval: float = INTERVAL) -> None:
        self.index, self._keeper = open_kept(open_index, interval)
        self.folder = self.index.folder
        self._lock = FileLock(self.folder / LOCK)
        if not self._lock.acquire():
            self.index.close()
            self._keeper.index.close()
            raise ConfigError(f"a daemon serves {self.folder} already; end that one first")
        self._stop = threading.Event()
        self.path = socket_path(self.folder)
        try:
            self._socket = _listening(self.path)
        except OSError as error:
            self._lock.release()
            raise RunError(
                f"{self.path} could not be made ({error.strerror or error}); name another index folder"
            ) from error

    def run(self) -> None:
        """Serve until :meth:`stop` is called or somebody asks for it."""
        self._keeper.start()
        _log.info("%s: %s is kept warm", self.path, self.index.root)
        try:
            while not self._stop.is_set():
                try:
                    connection, _ = self._socket.accept()
                except TimeoutError:
                    continue
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()
        finally:
            self.path.unlink(missing_ok=True)
            self._socket.close()
            self._keeper.stop()
            self.index.close()
            self._lock.release()

    def stop(self) -> None:
        """End :meth:`run`."""
        self._stop.set()

    def _serve(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            connection.settimeout(_READ_SECONDS)
            try:
                answer: dict[str, Any] = {"ok": self._answer(_read_line(connection))}
            except McError as error:
                answer = {"error": str(error), "kind": type(error).__name__}
            except (ValueError, TypeError, KeyError) as error:
                answer = {"error": f"the request is none that is understood ({error})", "kind": "ConfigError"}
            connection.sendall(json.dumps(answer).encode() + b"\n")

    def _answer(self, line: bytes) -> dict[str, Any]:
        request = json.loads(line)
        verb = request.pop("verb") if isinstance(request, dict) else None
        if verb == "search":
            text, k = request.pop("text"), request.pop("k")
            if not isinstance(text, str) or not isinstance(k, int):
                raise ValueError("text and k are a string and a number")
            if not self._keeper.looked.is_set():
                self._keeper.looked.wait(_ANSWER_SECONDS / 2)
            return self.index.search(text, k, refresh=False, **request).as_dict()
        if verb == "status":
            return asdict(self.index.status()) | {"daemon": os.getpid()}
        if verb == "stop":
            self.stop()
            return {"daemon": os.getpid()}
        raise ValueError(f"verb {verb!r}")


def _listening(path: Path) -> socket.socket:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    if path.parent.stat().st_uid != os.getuid():
        raise PermissionError(1, f"{path.parent} belongs to somebody else")
    path.unlink(missing_ok=True)  # we hold the lock: nobody listens there
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    before = os.umask(0o177)
    try:
        listening.bind(str(path))
    finally:
        os.umask(before)
    listening.listen(16)
    listening.settimeout(_LOOK_SECONDS)
    return listening


def _read_line(connection: socket.socket) -> bytes:
    data = bytearray()
    while not data.endswith(b"\n"):
        some = connection.recv(1 << 16)
        if not some:
            break
        data += some
        if len(data) > _LONGEST_LINE:
            raise ValueError("it is longer than a megabyte")
    return bytes(data)


def ask(folder: Path, request: dict[str, Any], *, seconds: float = _ANSWER_SECONDS) -> dict[str, Any] | None:
    """Ask the daemon of an index.

    Args:
        folder: of the index.
        request: with its verb.
        seconds: to wait for the answer.

    Returns:
        Its answer; None where no daemon listens, or it does not answer in time.

    Raises:
        ConfigError, RunError: what the daemon refused.
    """
    path = socket_path(folder)
    try:
        if path.stat().st_uid != os.getuid():
            return None  # somebody else's: what it says is not to be relied upon
    except OSError:
        return None
    end = time.monotonic() + seconds
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(seconds)
            connection.connect(str(path))
            connection.sendall(json.dumps(request).encode() + b"\n")
            connection.settimeout(max(0.01, end - time.monotonic()))
            with connection.makefile("rb") as file:
                answer = json.loads(file.readline())
    except (OSError, ValueError):
        return None
    if "error" in answer:
        kind = RunError if answer.get("kind") == "RunError" else ConfigError
        raise kind(answer["error"])
    return answer["ok"]


def ask_search(
    folder: Path,
    text: str,
    k: int = 10,
    *,
    mode: Mode = "hybrid",
    languages: Sequence[str] = (),
    paths: Sequence[str] = (),
) -> Answer | None:
    """As :meth:`CodeIndex.search`, by the daemon of an index; None where there is none."""
    request = {
        "verb": "search",
        "text": text,
        "k": k,
        "mode": mode,
        "languages": list(languages),
        "paths": list(paths),
    }
    found = ask(folder, request)
    return None if found is None else Answer.from_dict(found)


def ask_stop(folder: Path) -> bool:
    """End the daemon of an index; whether there was one."""
    return ask(folder, {"verb": "stop"}) is not None
