"""Under which licence a folder or an installed package is, as a name of the SPDX list where it is plain to see."""

from __future__ import annotations

import re
from importlib.metadata import Distribution
from pathlib import Path
from typing import Any

_FILE_NAMES = re.compile(r"(?:un)?licen[cs]e.*|copying.*", re.IGNORECASE)
_MARKS: tuple[tuple[str, str], ...] = (
    ("AGPL-3.0", r"GNU AFFERO GENERAL PUBLIC LICENSE"),
    ("LGPL-3.0", r"GNU LESSER GENERAL PUBLIC LICENSE\s+Version 3"),
    ("LGPL-2.1", r"GNU LESSER GENERAL PUBLIC LICENSE"),
    ("GPL-3.0", r"GNU GENERAL PUBLIC LICENSE\s+Version 3"),
    ("GPL-2.0", r"GNU GENERAL PUBLIC LICENSE\s+Version 2"),
    ("Apache-2.0", r"Apache License,?\s+Version 2\.0|apache\.org/licenses/LICENSE-2\.0"),
    ("MPL-2.0", r"Mozilla Public License,?\s+(?:Version|v\.)\s*2\.0"),
    ("PSF-2.0", r"PYTHON SOFTWARE FOUNDATION LICENSE"),
    ("BSL-1.0", r"Boost Software License"),
    ("CC0-1.0", r"CC0 1\.0|Creative Commons Zero"),
    ("Unlicense", r"This is free and unencumbered software released into the public domain"),
    ("ISC", r"Permission to use, copy, modify, and/or distribute this software"),
    ("MIT", r"Permission is hereby granted, free of charge, to any person obtaining a copy"),
    (
        "BSD-3-Clause",
        r"Redistribution and use in source and binary forms[\s\S]*(?:Neither the name|may not be used to endorse)",
    ),
    ("BSD-2-Clause", r"Redistribution and use in source and binary forms"),
)
_HEAD = 20_000


def licence_of_text(text: str) -> str:
    """The name of the licence that a text states, or ``""``.

    >>> licence_of_text("                 Apache License\\n           Version 2.0, January 2004")
    'Apache-2.0'
    >>> licence_of_text("All rights reserved.")
    ''
    """
    return next((name for name, mark in _MARKS if re.search(mark, text[:_HEAD], re.IGNORECASE)), "")


def licence_of_folder(folder: Path) -> str:
    """The licence that a file such as ``LICENSE`` in a folder states; its name where that is not plain, ``""`` without one."""
    try:
        files = sorted(path for path in folder.iterdir() if path.is_file() and _FILE_NAMES.fullmatch(path.name))
    except OSError:
        return ""
    for path in files:
        try:
            if found := licence_of_text(path.read_text("utf-8", "replace")):
                return found
        except OSError:
            continue
    return f"see {files[0].name}" if files else ""


def licence_of_distribution(distribution: Distribution) -> str:
    """The licence that an installed package states in its metadata, or ``""``."""
    metadata: Any = distribution.metadata  # an email message, which its type does not tell
    for field in ("License-Expression", "License"):
        value = (metadata.get(field) or "").strip()
        if value and value.upper() != "UNKNOWN" and "\n" not in value and len(value) < 80:
            return value
    classifiers = [
        value.rpartition("::")[2].strip()
        for value in metadata.get_all("Classifier") or ()
        if value.startswith("License ::")
    ]
    return "; ".join(classifiers) or licence_of_text(metadata.get("License") or "")
