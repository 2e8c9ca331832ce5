"""``mc-vision-language search``: images by a sentence, or sentences by an image."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from mc_core.cli import Clock, Status, print_json, print_table
from mc_core.errors import DataError
from mc_core.listing import fingerprint
from mc_core.runs import pick_device
from mc_vision_language.data import read_image
from mc_vision_language.search import SearchIndex, captions_for
from mc_vision_language_app.embed import texts_of
from mc_vision_language_app.figures import image_row
from mc_vision_language_app.pair_options import PairOptions
from mc_vision_language_app.runs import ENDINGS, OpenedRun, open_images, open_run

_log = logging.getLogger("mc_core")


def run_search(
    run: Path,
    source: str,
    query: str,
    options: PairOptions,
    *,
    top: int,
    rerank: int | None,
    index: Path | None,
    out: Path | None,
    device: str,
    as_json: bool,
) -> None:
    """Do it, and print what was found, best first."""
    opened = open_run(run, pick_device(device))
    if Path(query).suffix.lower() in ENDINGS:
        _captions(opened, source, query, options, top=top, rerank=rerank, as_json=as_json)
        return
    images, _ = open_images(source, options)
    place = index or run / "index" / fingerprint(str(Path(source).absolute()))[:12]
    with Status("encoding images") as status:
        found = SearchIndex.build(
            opened.model, images, place, progress=lambda share: status.say(f"encoding images, {share:.0%}")
        )
    _tell(found)
    clock = Clock()
    hits = found.search(query, top=top, rerank=rerank)
    seconds = clock.seconds()
    if out is not None:
        titles = [_scores(hit) for hit in hits]
        image_row([read_image(images.read(_row(images, hit.name))) for hit in hits], titles, out, title=query)
    rows: list[dict[str, Any]] = [
        {"image": hit.name, "cosine": round(hit.cosine, 4), "match": None if hit.match is None else round(hit.match, 4)}
        for hit in hits
    ]
    if as_json:
        print_json({"query": query, "found": rows, "images": len(found), "seconds": round(seconds, 4), "run": str(run)})
        return
    print_table(
        f"“{query}” among {len(found):,} images, {seconds * 1000:.0f} ms",
        ["image", "cosine", "match"],
        [
            [one["image"], f"{one['cosine']:.3f}", "–" if one["match"] is None else f"{one['match']:+.2f}"]
            for one in rows
        ],
    )
    if out is not None:
        print(f"picture  {out}")


def _captions(
    opened: OpenedRun, source: str, query: str, options: PairOptions, *, top: int, rerank: int | None, as_json: bool
) -> None:
    if not Path(query).is_file():
        raise DataError(f"{query}: no such image; to search by words, leave the file ending away")
    texts = list(dict.fromkeys(texts_of(source, opened, options)))
    hits = captions_for(opened.model, query, texts, top, rerank=rerank)
    rows = [
        {"text": hit.text, "cosine": round(hit.cosine, 4), "match": None if hit.match is None else round(hit.match, 4)}
        for hit in hits
    ]
    if as_json:
        print_json({"query": query, "found": rows, "texts": len(texts)})
        return
    print_table(
        f"{query} among {len(texts):,} texts",
        ["text", "cosine", "match"],
        [[hit.text, f"{hit.cosine:.3f}", "–" if hit.match is None else f"{hit.match:+.2f}"] for hit in hits],
    )


def _tell(found: SearchIndex) -> None:
    if found.encoded:
        _log.info("%d of %d images encoded; the next search takes what is known", found.encoded, len(found))
    for error in found.left_out[:5]:
        _log.warning("left out: %s", error)
    if len(found.left_out) > 5:
        _log.warning("and %d more", len(found.left_out) - 5)


def _row(images: Any, name: str) -> int:
    return next(row for row in range(len(images)) if images.name(row) == name)


def _scores(hit: Any) -> str:
    return f"cosine {hit.cosine:.2f}" + ("" if hit.match is None else f", match {hit.match:+.1f}")
