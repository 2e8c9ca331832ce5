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
_NAMES: tuple[tuple[str, str], ...] = (
    ("Apache-2.0", r"(?:the )?apache(?: software)?(?: licen[cs]e)?,?(?: version)?[ -]v?2(?:\.0)?(?: licen[cs]e)?"),
    ("MIT", r"(?:the )?mit(?: licen[cs]e)?"),
    ("BSD-3-Clause", r"(?:new |modified )?bsd[ -]3[ -]clause(?: licen[cs]e)?|3-clause bsd(?: licen[cs]e)?"),
    ("BSD-2-Clause", r"(?:simplified )?bsd[ -]2[ -]clause(?: licen[cs]e)?|2-clause bsd(?: licen[cs]e)?"),
    ("PSF-2.0", r"python software foundation licen[cs]e|psf(?:[ -]2(?:\.0)?)?"),
    ("MPL-2.0", r"mozilla public licen[cs]e 2\.0 \(mpl 2\.0\)|mpl[ -]2\.0"),
    ("ISC", r"isc(?: licen[cs]e)?(?: \(iscl\))?"),
)
_HEAD = 20_000
_NAME = 300


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
    stated = (metadata.get("License-Expression") or metadata.get("License") or "").strip()
    if stated and stated.upper() != "UNKNOWN" and len(stated) < _NAME and "\n" not in stated:
        return _spdx(stated)
    if found := licence_of_text(stated):
        return found
    classifiers = [value for value in metadata.get_all("Classifier") or () if value.startswith("License ::")]
    return "; ".join(_spdx(value.rpartition("::")[2].strip()) for value in classifiers)


def _spdx(name: str) -> str:
    """What a package calls its licence, by its name of the SPDX list where there is no doubt."""
    return next((known for known, mark in _NAMES if re.fullmatch(mark, name, re.IGNORECASE)), name)
