"""Files behind a URL, fetched into the cache folder because a call named them, whole or not at all."""

from __future__ import annotations

import os
import posixpath
import re
import time
import urllib.error
import urllib.parse
import urllib.request
from http.client import HTTPException
from pathlib import Path
from typing import Any

from mc_core.errors import DataError
from mc_core.files import explain_write_error, sync_folder
from mc_core.listing import cache_folder, fingerprint, log, size_text
from mc_core.locks import locked
from mc_core.optional import require

_BLOCK = 1 << 20
_TIMEOUT = 60.0
_TRIES = 4


def is_url(spec: str) -> bool:
    """Whether ``spec`` begins with a scheme.

    >>> is_url("https://example.org/a.tar"), is_url("C:/a.tar")
    (True, False)
    """
    return re.match(r"[a-zA-Z][a-zA-Z0-9+.-]+://", spec) is not None


def fetch(url: str, cache_dir: str | Path | None = None) -> Path:
    """The local copy of a file, fetched unless it is there; remove the copy to fetch it again.

    A fetch that was cut off goes on where it stopped if the server can and the file did not change. Of several
    processes one fetches, the others wait for it.

    Args:
        url: http(s), or any scheme that fsspec has a package for (``s3://``, ``gs://``, ``hf://`` …).
        cache_dir: see :func:`~mc_core.listing.cache_folder`.

    Raises:
        DataError: the server does not answer, refuses, or sends less than it announced; the partial file is kept.
    """
    folder = cache_folder(cache_dir, "remote")
    name = posixpath.basename(urllib.parse.urlsplit(url).path) or "file"
    target = folder / f"{fingerprint(url)[:12]}-{re.sub(r'[^A-Za-z0-9._-]', '_', name)}"
    if target.exists():
        return target
    with locked(target):
        if target.exists():
            return target
        part = target.with_name(target.name + ".part")
        transfer = _http if urllib.parse.urlsplit(url).scheme in ("http", "https") else _fsspec
        for attempt in range(_TRIES):
            try:
                transfer(url, part)
                break
            except _Interrupted as error:
                if attempt == _TRIES - 1:
                    have = size_text(part.stat().st_size) if part.exists() else "nothing"
                    raise DataError(f"{url}: {error}; {have} is kept, run again to go on from there") from error
                time.sleep(0.2 * 4**attempt)
        with part.open("rb+") as file:
            os.fsync(file.fileno())
        part.replace(target)
        sync_folder(folder)
        _validator(part).unlink(missing_ok=True)
    return target


class _Interrupted(Exception):
    """Worth another try."""


def _validator(part: Path) -> Path:
    """Holds what identifies the version of the file that ``part`` is the beginning of."""
    return part.with_name(part.name + ".version")


def _http(url: str, part: Path) -> None:
    have = part.stat().st_size if part.exists() else 0
    version = _validator(part).read_text() if have and _validator(part).exists() else ""
    request = urllib.request.Request(url, headers={"User-Agent": "momentum-contrast", "Accept-Encoding": "identity"})
    if have and version:
        request.add_header("Range", f"bytes={have}-")
        request.add_header("If-Range", version)  # another version comes whole instead
    try:
        with urllib.request.urlopen(request, timeout=_TIMEOUT) as response:
            resumed = response.status == 206
            announced = response.headers.get("Content-Length")
            start = have if resumed else 0
            total = start + int(announced) if announced is not None else None
            # a weak ETag does not promise equal bytes
            tags = (response.headers.get("ETag", ""), response.headers.get("Last-Modified", ""))
            _validator(part).write_text(next((tag for tag in tags if tag and not tag.startswith("W/")), ""))
            _copy(response, url, part, start, total)
    except urllib.error.HTTPError as error:
        with error:
            if error.code == 416:  # the partial file is no beginning of this file
                part.unlink(missing_ok=True)
            if error.code == 416 or error.code == 429 or error.code >= 500:
                raise _Interrupted(f"HTTP {error.code} {error.reason}") from error
        raise DataError(f"{url}: HTTP {error.code} {error.reason}; check the address") from error
    except (HTTPException, TimeoutError, ConnectionError) as error:
        raise _Interrupted(str(error) or type(error).__name__) from error
    except urllib.error.URLError as error:
        raise _Interrupted(f"no connection ({error.reason})") from error


def _fsspec(url: str, part: Path) -> None:
    fsspec = require("fsspec", extra="fsspec", purpose=f"fetch {url}")
    try:
        system, path = fsspec.core.url_to_fs(url)
        total = system.size(path)
        version = fingerprint(url, total, str(system.ukey(path)))
        start = part.stat().st_size if part.exists() and _validator(part).exists() else 0
        if start and (_validator(part).read_text() != version or start > (total or 0)):
            start = 0
        _validator(part).write_text(version)
        with system.open(path, "rb") as source:
            source.seek(start)
            _copy(source, url, part, start, total)
    except (ImportError, ValueError) as error:
        raise DataError(f"{url}: {error}") from error
    except FileNotFoundError as error:
        raise DataError(f"{url}: no such file; check the address") from error
    except PermissionError as error:
        raise DataError(f"{url}: access refused; check the credentials of this scheme") from error
    except OSError as error:
        raise _Interrupted(str(error) or type(error).__name__) from error


def _copy(source: Any, url: str, part: Path, start: int, total: int | None) -> None:
    begun = time.monotonic()
    said, done = begun, start
    known = size_text(total) if total is not None else "of unknown size"
    log.info("fetching %s (%s%s) into %s", url, known, f", {size_text(start)} are there" if start else "", part.parent)
    try:
        with part.open("r+b" if start else "wb") as sink:
            sink.seek(start)
            while block := source.read(_BLOCK):
                _write(sink, block, part)
                done += len(block)
                if time.monotonic() - said > 10:
                    said = time.monotonic()
                    log.info("%s of %s at %s/s", size_text(done), known, size_text((done - start) / (said - begun)))
    finally:
        if done == start == 0:
            part.unlink(missing_ok=True)
    if total is not None and done != total:
        raise _Interrupted(f"the connection ended after {done:,} of {total:,} bytes")


def _write(sink: Any, block: bytes, part: Path) -> None:
    try:
        sink.write(block)
    except OSError as error:  # here, so that a full disk is not taken for a broken connection
        raise explain_write_error(error, part) from error
