"""``mc-medical retrieve``: radiographs by a phrase, or reports by a radiograph."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from mc_core.cli import Status, print_json, print_table
from mc_core.errors import ConfigError, DataError
from mc_core.runs import pick_device
from mc_medical.inference import nearest
from mc_medical_app import figures
from mc_medical_app.runs import open_run
from mc_medical_app.study_options import StudyOptions
from mc_medical_app.zero_shot import ENDINGS, read_squares

_LINE = 110


def run_retrieve(
    run: Path,
    query: str,
    source: Path | None,
    studies: StudyOptions,
    *,
    top: int,
    out: Path | None,
    device: str,
    as_json: bool,
) -> None:
    """Do it, and print what is nearest."""
    if top < 1:
        raise ConfigError(f"--top {top}: at least 1")
    by_image = Path(query).suffix.lower() in ENDINGS
    if by_image and not Path(query).is_file():
        raise DataError(f"{query}: no such file; a phrase does not end in {Path(query).suffix}")
    if not query.strip():
        raise ConfigError('the query is empty: give a phrase such as "left pleural effusion", or a file')
    if by_image and out is not None:
        raise ConfigError("--out draws radiographs found by a phrase; reports are printed")
    opened = open_run(run, pick_device(device))
    cohort = opened.cohort(source, studies, part="all")[0]
    held = cohort.studies
    texts: list[str] = []
    with Status("searching"):
        if by_image:
            texts = [text for text in dict.fromkeys(held.reports) if text]
            if not texts:
                raise DataError("the studies have no reports to find")
            asked = opened.model.encode_image(read_squares(opened, [Path(query)])[1])[0]
            candidates = opened.model.encode_text(texts)
        else:
            asked = opened.model.encode_text([query])[0]
            candidates = opened.model.encode_image(cohort.pixels.pixels)
        best, cosines = nearest(asked, candidates, top)
    near = list(zip(best.tolist(), cosines.tolist(), strict=True))
    if by_image:
        found = [{"report": texts[i], "cosine": cosine} for i, cosine in near]
        rows = [[f"{cosine:.3f}", _short(texts[i])] for i, cosine in near]
        columns = ["cosine", "report"]
    else:
        found = [
            {
                "row": int(held.rows[i]),
                "split": str(held.splits[i]),
                "report": held.reports[i],
                "cosine": cosine,
            }
            for i, cosine in near
        ]
        rows = [
            [str(held.rows[i]), str(held.splits[i]), f"{cosine:.3f}", _short(held.reports[i])] for i, cosine in near
        ]
        columns = [held.unit, "split", "cosine", "its report"]
        if out is not None:
            pictures = [cohort.pixels.rows(np.array([i]))[0] for i in best]
            figures.radiographs(pictures, [f"{held.unit} {held.rows[i]}, {cosine:.3f}" for i, cosine in near], out)
    if as_json:
        print_json({"query": query, "found": found, **({"picture": str(out)} if out is not None else {})})
    else:
        print_table(f"nearest to {query!r}", columns, rows)


def _short(text: str) -> str:
    return text if len(text) <= _LINE else text[: _LINE - 1] + "…"
