"""Where an index is kept, and the socket of who keeps it warm."""

from __future__ import annotations

import hashlib
import os
import sysconfig
import tempfile
from pathlib import Path

from mc_text_code.codesearch.database import FOLDER

_LONGEST_SOCKET = 100  # the system's limit is 104 or 108 bytes


def index_folder(root: Path) -> Path:
    """Where the index of a folder is: ``.mc-code`` inside it; below the user's cache folder where it cannot be written, or is
    the standard library.

    >>> index_folder(Path(sysconfig.get_paths()["stdlib"]).resolve()).name.startswith("python")
    True
    """
    inside = root / FOLDER
    if inside.is_dir():
        return inside
    library = Path(sysconfig.get_paths()["stdlib"]).resolve()
    if root != library and os.access(root, os.W_OK):
        return inside
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "mc-text-code" / "code" / f"{root.name or 'root'}-{_short(root)}"


def socket_path(folder: Path) -> Path:
    """Where the daemon of an index listens; a long path goes into a private folder for temporary files."""
    inside = folder.resolve() / "daemon.sock"
    if len(os.fsencode(inside)) <= _LONGEST_SOCKET:
        return inside
    base = Path(os.environ.get("XDG_RUNTIME_DIR") or tempfile.gettempdir())
    return base / f"mc-text-code-{os.getuid()}" / f"{_short(folder.resolve())}.sock"


def _short(path: Path) -> str:
    return hashlib.sha256(os.fsencode(path)).hexdigest()[:12]
