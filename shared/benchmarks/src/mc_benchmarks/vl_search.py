"""Time of an answer of the search index: by cosine over all pictures, and with the best ranked again by matching."""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mc_benchmarks.contract import Report, Row, environment, median, paired, spread
from mc_benchmarks.vl_sizes import SIZES
from mc_core.cli import Status
from mc_vision_language.data.images import ArrayImages
from mc_vision_language.encoders_config import VisionLanguageConfig
from mc_vision_language.index_files import model_fingerprint, read_index, writing
from mc_vision_language.model import VisionLanguageModel
from mc_vision_language.sample import sample_scenes
from mc_vision_language.search import SearchIndex
from mc_vision_language.tokenizers import train_tokenizer

_log = logging.getLogger("mc_core")

COSINE_BAR, RERANK_BAR = 50.0, 1000.0  # milliseconds, on two cores
_ENCODED = 64  # pictures that are really encoded; the index repeats them
_QUERIES = (
    "two dogs on grass",
    "a small red three left of a large blue two",
    "an old man with a hat reads the newspaper at a table by the window",
    "the car",
)
COLUMNS = ["by cosine, ms", "top ranked again, ms", "encoding, ms per picture", "index, MB", "parameters, M"]


def run_vl_search(*, pictures: int, rerank: int, repeats: int, sizes: Sequence[str], device: str = "cpu") -> Report:
    """Ask an index of many pictures for each size of model.

    Args:
        pictures: in the index.
        rerank: how many are ranked again.
        repeats: rounds.
        sizes: of the models.
        device: where the model is.
    """
    place = torch.device(device)
    rows, met = [], []
    for size in sizes:
        with Status(f"{size}: {pictures:,} pictures"), tempfile.TemporaryDirectory() as folder:
            found = _measure(size, Path(folder) / "index", pictures, rerank, repeats, place)
        rows.append(Row(name=size, values=dict(zip(COLUMNS, found.values(), strict=True))))
        met.append(f"{size} {'meets' if found['cosine'] <= COSINE_BAR and found['rerank'] <= RERANK_BAR else 'misses'}")
        _log.info("%s: %s", size, found)
    report = Report(
        benchmark="vl_search" if device == "cpu" else f"vl_search_{device}",
        command="uv run mc-benchmark vl-search" + (f" --device {device}" if device != "cpu" else ""),
        question=f"Time of an answer from {pictures:,} pictures, the best {rerank} ranked again",
        settings={
            "pictures": pictures,
            "rerank": rerank,
            "repeats": repeats,
            "sizes": {size: SIZES[size] for size in sizes},
            "queries": list(_QUERIES),
        },
        environment=environment(place),
        columns=COLUMNS,
        rows=rows,
        reading=(
            f"Median over {repeats} rounds of {len(_QUERIES)} sentences each, text encoder included; the index is on disk, tokens "
            f"as bytes, read through the page cache. Weights are random and the index repeats {_ENCODED} encoded pictures: times "
            f"do not depend on either. Bars: {COSINE_BAR:.0f} ms and {RERANK_BAR:.0f} ms; {', '.join(met)} both."
        ),
    )
    report.save()
    report.show()
    return report


def _measure(
    size: str, folder: Path, pictures: int, rerank: int, repeats: int, device: torch.device
) -> dict[str, float]:
    torch.manual_seed(0)
    scenes = sample_scenes("test", count=_ENCODED)
    tokenizer = train_tokenizer([*scenes.captions, *_QUERIES], 2000)
    model = VisionLanguageModel(VisionLanguageConfig.model_validate(SIZES[size]), tokenizer).to(device).eval()
    images = ArrayImages(scenes.images)
    start = time.perf_counter()
    seed = SearchIndex.build(model, images, folder / "few")
    each = (time.perf_counter() - start) / _ENCODED
    index = SearchIndex(model, _repeated(seed, folder / "many", pictures))
    turn = iter(range(1 << 30))

    def ask(again: int) -> Any:
        return index.search(_QUERIES[next(turn) % len(_QUERIES)], top=10, rerank=again)

    seconds = paired(
        {
            "cosine": lambda: [ask(0) for _ in _QUERIES],
            "rerank": lambda: [ask(rerank) for _ in _QUERIES],
        },
        repeats=repeats,
        warmup=1,
        device=device,
    )
    milli = {name: [1000 * value / len(_QUERIES) for value in values] for name, values in seconds.items()}
    _log.info(
        "%s, interquartile ranges: %s ms", size, {name: round(spread(values), 1) for name, values in milli.items()}
    )
    stored = sum(path.stat().st_size for path in (folder / "many").iterdir())
    return {
        "cosine": round(median(milli["cosine"]), 2),
        "rerank": round(median(milli["rerank"]), 1),
        "encode": round(1000 * each, 1),
        "megabytes": round(stored / 1e6),
        "parameters": round(sum(p.numel() for p in model.parameters()) / 1e6, 1),
    }


def _repeated(seed: SearchIndex, folder: Path, pictures: int) -> Any:
    """The files of an index that holds the same pictures again and again, under names of their own."""
    files, digest = seed.files, model_fingerprint(seed.model)
    folder.mkdir(parents=True)
    # equal features would tie, and the same few pages of tokens would be read
    noise = np.random.default_rng(0)
    with writing(folder, files.stored, digest, {}) as writer:
        for first in range(0, pictures, len(files.names)):
            rows = np.arange(min(len(files.names), pictures - first))
            features, tokens, scales = files.rows_of(rows)
            features = features + noise.normal(0, 0.05, features.shape).astype(np.float32)
            features /= np.linalg.norm(features, axis=1, keepdims=True)
            names = [f"{first + int(row)}.jpg" for row in rows]
            writer.add(names, names, features, tokens, scales)
    return read_index(folder, digest)
