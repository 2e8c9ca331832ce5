"""``mc-vision-language embed``: a unit vector for each image or each text, in a file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mc_core.cli import Status, print_json
from mc_core.embeddings import check_format, write_embeddings
from mc_core.errors import ConfigError, DataError
from mc_core.runs import pick_device
from mc_vision_language.gallery import Gallery
from mc_vision_language_app.pair_options import PairOptions
from mc_vision_language_app.runs import open_images, open_run


def run_embed(
    run: Path, source: str, options: PairOptions, *, what: str, out: Path, device: str, as_json: bool
) -> None:
    """Do it, and say where the vectors are."""
    check_format(out)
    opened = open_run(run, pick_device(device))
    columns: dict[str, Any]
    if what == "image":
        images, names = open_images(source, options)
        with Status("embedding"):
            vectors, columns = Gallery(opened.model, images).features, {"image": names}
    else:
        texts = texts_of(source, opened, options)
        with Status("embedding"):
            vectors, columns = opened.model.encode_text(texts), {"text": list(texts)}
    write_embeddings(out, vectors, columns)
    fields = {"out": str(out), "rows": len(vectors), "dimensions": int(vectors.shape[1]), "what": what}
    if as_json:
        print_json(fields)
    else:
        print(f"{len(vectors):,} vectors of {vectors.shape[1]} numbers: {out}")


def texts_of(source: str, opened: Any, options: PairOptions) -> Sequence[str]:
    """The lines of a .txt file, or the captions of a list of pairs."""
    path = Path(source)
    if path.suffix != ".txt":
        return opened.pairs(source, options, part="all")[0].captions
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{source} cannot be read: {error}") from error
    if not lines:
        raise ConfigError(f"{source} holds no text; give one text in each line")
    return lines
