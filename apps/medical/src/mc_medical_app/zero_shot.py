"""``mc-medical zero-shot``: findings in radiographs by their names alone."""

from __future__ import annotations

import csv
import io
import logging
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mc_core.cli import print_json, print_table
from mc_core.errors import BadSampleError, ConfigError, DataError
from mc_core.files import atomic_path, write_atomic
from mc_core.optional import require
from mc_core.runs import pick_device
from mc_medical.data.radiograph import read_radiograph, square
from mc_medical.inference import asked_prompts, zero_shot
from mc_medical.prompts import load_prompts
from mc_medical_app.runs import OpenedRun, open_run, tell_left_out

ENDINGS = (".dcm", ".dicom", ".png", ".jpg", ".jpeg")
_log = logging.getLogger("mc_core")


def run_zero_shot(
    run: Path,
    radiographs: Sequence[Path],
    *,
    findings: Sequence[str],
    prompts: Path | None,
    out: Path | None,
    device: str,
    as_json: bool,
) -> None:
    """Do it, and print the scores or write them."""
    if out is not None and out.suffix not in (".csv", ".parquet"):
        raise ConfigError(f"--out {out}: the name decides the format and must end in .csv or .parquet")
    files = radiograph_files(radiographs)
    ask = asked_prompts(findings, None if prompts is None else load_prompts(prompts))
    opened = open_run(run, pick_device(device))
    names, squares = read_squares(opened, files)
    scores = zero_shot(opened.model, squares, ask).probability
    if out is not None:
        _write(out, names, ask.names, scores)
    if as_json:
        rows = [
            {"file": name, **dict(zip(ask.names, row, strict=True))}
            for name, row in zip(names, scores.tolist(), strict=True)
        ]
        asked_with = {name: {"positive": ask.positive[name], "negative": ask.negative[name]} for name in ask.names}
        print_json({"run": str(run), "scores": rows, "prompts": asked_with})
    elif out is None:
        title = "softmax(κ [there is, there is no]); scores of a research model, no diagnosis"
        print_table(
            title, ["file", *ask.names], [[n, *(f"{p:.2f}" for p in row)] for n, row in zip(names, scores, strict=True)]
        )
    else:
        _log.info("%d radiographs, %d findings: %s", len(names), len(ask.names), out)


def radiograph_files(given: Sequence[Path]) -> list[Path]:
    """Files as given, and those of folders, in order.

    Raises:
        DataError: a path that is not there, or nothing that could be a radiograph.
    """
    files: list[Path] = []
    for path in given:
        if path.is_dir():
            files += sorted(p for p in path.rglob("*") if p.is_file() and (p.suffix.lower() in ENDINGS or not p.suffix))
        elif path.is_file():
            files.append(path)
        else:
            raise DataError(f"{path}: no such file or folder")
    if not files:
        raise DataError(f"no DICOM, PNG or JPEG file in {', '.join(map(str, given)) or 'what was given (nothing)'}")
    return files


def read_squares(opened: OpenedRun, files: Sequence[Path]) -> tuple[list[str], np.ndarray]:
    """Names of the files that could be read, and their pictures (N, S, S) uint8; the others are told.

    Raises:
        DataError: none could be read.
    """
    names, squares, dropped, examples = [], [], Counter[str](), {}
    notes: Counter[str] = Counter()
    for file in files:
        try:
            one = read_radiograph(file, opened.image)
        except BadSampleError as error:
            dropped[error.reason] += 1
            examples.setdefault(error.reason, str(error))
            continue
        notes.update(one.notes)
        names.append(str(file))
        squares.append(square(one.pixels, opened.image.size))
    if not names:
        raise DataError(f"none of {len(files)} files could be read: {next(iter(examples.values()))}")
    tell_left_out(dropped, examples, notes)
    return names, np.stack(squares)


def _write(out: Path, names: Sequence[str], findings: Sequence[str], scores: np.ndarray) -> None:
    if out.suffix == ".csv":
        text = io.StringIO()
        writer = csv.writer(text)
        writer.writerow(["file", *findings])
        writer.writerows([name, *(f"{p:.6f}" for p in row)] for name, row in zip(names, scores, strict=True))
        write_atomic(out, text.getvalue())
        return
    pa = require("pyarrow", extra="pyarrow", purpose="write Parquet files")
    pq = require("pyarrow.parquet", extra="pyarrow", purpose="write Parquet files")
    with atomic_path(out) as draft:
        pq.write_table(pa.table({"file": list(names), **dict(zip(findings, scores.T, strict=True))}), draft)
