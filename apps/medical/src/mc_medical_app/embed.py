"""``mc-medical embed``: a vector for each radiograph or report, in a file."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np

from mc_core.cli import Status, print_json
from mc_core.embeddings import check_format, write_embeddings
from mc_core.errors import ConfigError
from mc_core.runs import pick_device
from mc_medical.measure import embed_cohort
from mc_medical_app.runs import open_run
from mc_medical_app.study_options import StudyOptions
from mc_medical_app.zero_shot import radiograph_files, read_squares

_log = logging.getLogger("mc_core")


def run_embed(
    run: Path, source: Path, studies: StudyOptions, *, what: str, out: Path, device: str, as_json: bool
) -> None:
    """Do it, and say where the vectors are."""
    check_format(out)
    opened = open_run(run, pick_device(device))
    columns: dict[str, Any]
    if source.is_dir():
        if what == "text":
            raise ConfigError(f"--what text needs studies with reports; {source} is a folder of radiographs")
        names, squares = read_squares(opened, radiograph_files([source]))
        with Status("embedding"):
            vectors = opened.model.encode_image(squares) if what == "image" else _features(opened.model, squares)
        columns = {"path": names}
    else:
        cohort, _ = opened.cohort(source, studies, part="all")
        with Status("embedding"):
            found = embed_cohort(opened.model, cohort)
        vectors = {"image": found.images, "text": found.texts, "features": found.features}[what]
        held = cohort.studies
        columns = {"row": held.rows, "patient": held.patients, "study": held.studies, "split": held.splits.tolist()}
    write_embeddings(out, vectors, columns)
    fields = {"out": str(out), "rows": len(vectors), "dimensions": int(vectors.shape[1]), "what": what}
    if as_json:
        print_json(fields)
    else:
        print(f"{len(vectors):,} vectors of {vectors.shape[1]} numbers: {out}")
    _log.info("an embedding can reveal who and what was seen: treat the file as you treat the images")


def _features(model: Any, squares: np.ndarray) -> np.ndarray:
    import torch

    from mc_core.modules import evaluating

    with evaluating(model), torch.inference_mode():
        parts = [model.image_features(model.prepare(squares[i : i + 32])) for i in range(0, len(squares), 32)]
        return torch.cat(parts).float().cpu().numpy()
