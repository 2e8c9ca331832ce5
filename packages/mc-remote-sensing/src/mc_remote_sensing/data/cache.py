"""Where things derived from the user's files are kept, and under which name."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any


def cache_folder(cache: Path | None) -> Path:
    """``cache``; default ``$MC_CACHE``, else ``mc-remote-sensing`` in ``$XDG_CACHE_HOME`` or ``~/.cache``."""
    if cache is not None:
        return Path(cache)
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("MC_CACHE") or Path(home) / "mc-remote-sensing")


def file_state(path: str) -> dict[str, Any]:
    """What tells a file from a changed one without reading it: its absolute path, size and time of change."""
    found = Path(path)
    if not found.exists():
        return {"path": path}
    state = found.stat()
    return {"path": str(found.resolve()), "size": state.st_size, "changed": state.st_mtime_ns}


def digest(what: Any) -> str:
    """16 hexadecimal digits of anything JSON can hold."""
    return hashlib.blake2b(json.dumps(what, sort_keys=True, default=str).encode(), digest_size=8).hexdigest()
