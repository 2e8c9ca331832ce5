"""The sources of the Python that runs: real code on every machine."""

from __future__ import annotations

import sysconfig
from pathlib import Path

from mc_core.errors import DataError
from mc_text_code.source.files import SourceListing, source_files

_LEFT_OUT = frozenset(("site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"))


def standard_library_files() -> SourceListing:
    """The Python files of the standard library, without its tests and without what is installed beside it.

    Raises:
        DataError: this Python came without the sources of its library.

    >>> listing = standard_library_files()
    >>> (
    ...     "argparse.py" in [file.path for file in listing.files],
    ...     any(file.path.startswith("test/") for file in listing.files),
    ... )
    (True, False)
    """
    root = Path(sysconfig.get_paths()["stdlib"])
    listing = source_files(root, folders_left_out=_LEFT_OUT, use_git=False)
    files = [file for file in listing.files if file.path.endswith(".py")]
    if not files:
        raise DataError(f"{root} holds no Python sources; name a folder of source code instead")
    return SourceListing(listing.root, files, listing.skipped, listing.examples)
