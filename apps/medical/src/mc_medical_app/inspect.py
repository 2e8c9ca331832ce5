"""``mc-medical inspect``: how files are read, step by step."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from mc_core.cli import print_json, print_table
from mc_core.errors import BadSampleError, ConfigError, DataError
from mc_medical.data.image_config import ImageOptions
from mc_medical.data.inspection import Inspection, contact_sheet, inspect_image, inspection_figure
from mc_medical_app.zero_shot import radiograph_files

_MOST = 48
_log = logging.getLogger("mc_core")


def run_inspect(radiographs: Sequence[Path], *, out: Path | None, image: ImageOptions, as_json: bool) -> None:
    """Do it, print the steps, and leave a picture."""
    out = out or Path("inspect.png")
    if out.suffix != ".png":
        raise ConfigError(f"--out {out}: the picture is a PNG; let its name end in .png")
    files = radiograph_files(radiographs)
    if len(files) > _MOST:
        _log.info("the first %d of %d files", _MOST, len(files))
    found: list[tuple[Path, Inspection]] = []
    refused: list[tuple[str, str]] = []
    for file in files[:_MOST]:
        try:
            found.append((file, inspect_image(file, image)))
        except BadSampleError as error:
            refused.append((file.name, error.reason))
    if not found:
        raise DataError(
            f"{refused[0][0]}: {refused[0][1]}" + (f" (and {len(refused) - 1} more)" if refused[1:] else "")
        )
    if len(found) == 1:
        inspection_figure(found[0][1], out)
    else:
        contact_sheet([one for _, one in found], out)
    if as_json:
        print_json(
            {
                "picture": str(out),
                "files": [{"file": str(file), **one.describe()} for file, one in found],
                "refused": [{"file": name, "reason": reason} for name, reason in refused],
            }
        )
        return
    if len(found) == 1:
        _one(found[0][0], found[0][1])
    else:
        rows = [[file.name, *_facts(one)] for file, one in found]
        print_table("radiographs", ["file", "kind", "bits", "view", "size", "doubts"], rows)
    if refused:
        print_table("refused", ["file", "because"], [list(row) for row in refused])
    print(f"picture {out}")


def _facts(one: Inspection) -> list[str]:
    shot = one.radiograph
    height, width = shot.pixels.shape
    return [shot.modality, str(shot.bits), shot.view or "unknown", f"{width}×{height}", "; ".join(shot.notes)]


def _one(file: Path, one: Inspection) -> None:
    rows = []
    for step in one.steps:
        told = step.describe()
        low, high = (f"{value:g}" for value in told["declared"])
        found = "{:g} to {:g}".format(*told["found"])
        rows.append([step.name, f"{low} to {high}", found, f"{100 * told['share_used']:.0f} %", step.note])
    print_table(f"{file.name}: {', '.join(_facts(one)[:4])}", ["step", "declared", "found", "used", "note"], rows)
    for note in one.radiograph.notes:
        _log.warning("%s", note)
