"""``mc-remote-sensing align``: do rasters and polygons fit together? Said in words and shown in a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mc_core.cli import Status, print_json
from mc_core.errors import ConfigError, DataError
from mc_remote_sensing.data import alignment_figure, check_alignment, open_scene
from mc_remote_sensing_app.scene_options import SceneOptions, scene_arguments


def run_align(options: SceneOptions, *, out: Path | None, as_json: bool) -> dict[str, Any]:
    """Print what was found, draw the picture; an error when something cannot work."""
    scenes = scene_arguments(options)
    if out is not None and out.suffix.lower() != ".png":
        raise ConfigError(f"--out {out}: the picture is a PNG; name it so")
    found: list[dict[str, Any]] = []
    errors: list[str] = []
    for i, scene in enumerate(scenes):
        name = Path(scene.get("image") or scene["elevation"]).name
        with Status(f"looking at {name}"):
            report = check_alignment(**scene)
        record = {"scene": name, **report.to_dict()}
        errors += [finding.message for finding in report.errors]
        if not report.errors:
            picture = _numbered(out or Path("align.png"), i, len(scenes))
            with Status(f"drawing {picture}"):
                alignment_figure(open_scene(**scene), picture)
            record["picture"] = str(picture)
        found.append(record)
    fields = {"scenes": found}
    if as_json:
        print_json(fields)
    else:
        for record in found:
            if not record["findings"]:
                print(f"{record['scene']}: nothing to remark")
            for finding in record["findings"]:
                if finding["level"] != "error":  # that comes as the last line, on standard error
                    print(f"{finding['level']:8} {finding['message']}")
            if "picture" in record:
                print(record["picture"])
    if errors:
        more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
        raise DataError(f"{errors[0]}{more}")
    return fields


def _numbered(path: Path, number: int, count: int) -> Path:
    return path if count == 1 else path.with_name(f"{path.stem}-{number + 1}{path.suffix}")
