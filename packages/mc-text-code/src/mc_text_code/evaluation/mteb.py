"""MTEB (Muennighoff et al. 2023, arXiv:2210.07316) through the package of that name, from the extra ``mc-text-code[mteb]``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mc_core.errors import ConfigError, closest
from mc_core.optional import require
from mc_text_code.evaluation.vectors import Encode, encode_texts, normalized


def evaluate_mteb(
    encode: Encode,
    tasks: Sequence[Any],
    *,
    name: str = "mc-text-code/encoder",
    download: bool = False,
    cache: str | Path | None = None,
) -> dict[str, float]:
    """The main score of each task of MTEB.

    MTEB fetches the data of a task from the Hugging Face hub on first use, under the licence of each data set, and keeps it in
    the hub's cache; some are gigabytes. With ``HF_HUB_OFFLINE=1`` in the environment only that cache is used.

    Args:
        encode: sentences → dense vectors.
        tasks: names such as ``"STS17"`` or ``"Banking77Classification"``; task objects of mteb are taken as they are.
        name: of the encoder in mteb's records, ``owner/model``.
        download: agree that data is fetched; needed for tasks given by name.
        cache: folder in which mteb keeps its records; default: none are kept.

    Returns:
        Task → main score, in mteb's units (0 to 1).

    Raises:
        MissingDependencyError: mteb is not installed.
        ConfigError: an unknown task, or ``download`` was not given.
    """
    mteb = require("mteb", extra="mc-text-code[mteb]", purpose="evaluate on MTEB")
    names = [task for task in tasks if isinstance(task, str)]
    if not len(tasks):
        raise ConfigError("no MTEB tasks were named; try STS17, or Banking77Classification")
    known = {task.metadata.name for task in mteb.get_tasks()} if names else set()
    for task in names:
        if task not in known:
            raise ConfigError(f"MTEB has no task {task!r}; closest: {closest(task, sorted(known))}")
    if names and not download:
        raise ConfigError(
            f"MTEB fetches the data of {', '.join(names)} from the Hugging Face hub: agree with download=True"
        )
    wanted = [task for task in tasks if not isinstance(task, str)] + list(mteb.get_tasks(tasks=names) if names else [])
    records = None if cache is None else mteb.cache.ResultCache(Path(cache))
    found = mteb.evaluate(_adapter(mteb, encode, name), wanted, cache=records, show_progress_bar=False)
    return {result.task_name: float(result.get_score()) for result in found.task_results}


def _adapter(mteb: Any, encode: Encode, name: str) -> Any:
    """An encoder in mteb's sense around a function."""

    class Adapter(mteb.models.abs_encoder.AbsEncoder):
        def __init__(self) -> None:
            self.mteb_model_meta = mteb.models.model_meta.ModelMeta.create_empty({"name": name, "revision": "local"})

        def encode(self, inputs: Any, **_: Any) -> np.ndarray:
            texts = [text for batch in inputs for text in batch["text"]]
            return np.asarray(normalized(encode_texts(encode, texts)), dtype=np.float32)

    return Adapter()
