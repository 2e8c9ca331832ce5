"""From what the user typed to an :class:`~mc_vision.data.source.ImageSource`."""

from __future__ import annotations

import os
import re
from glob import glob, has_magic
from pathlib import Path
from typing import Literal

from mc_core.errors import ConfigError, DataError
from mc_core.hub_data import SAVED_FILES
from mc_core.images.decoding import IMAGE_EXTENSIONS
from mc_core.listing import count_text, not_found
from mc_core.remote import is_url
from mc_core.shards import expand_braces
from mc_vision.data import hf, shards, table, torchvision_sets
from mc_vision.data.folder import PathSource, open_folder
from mc_vision.data.source import ImageSource, ReadOptions

UNDERSTOOD = (
    "a folder of images, an image, .txt .csv .tsv .parquet tables, .tar shards (also as URL, glob or {000..009}), "
    "a saved Hugging Face folder or .arrow file, hf:user/name:split, torchvision:Name?root=…"
)
_ARCHIVES = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst", ".zip", ".7z", ".rar")


def open_source(
    spec: str | Path,
    *,
    labels: Literal["auto", "folder", "none"] = "auto",
    image_column: str | None = None,
    label_column: str | None = None,
    class_column: str | None = None,
    id_column: str | None = None,
    channels: int | None = 3,
    min_side: int | None = None,
    cache_dir: str | Path | None = None,
) -> ImageSource:
    """Open images from wherever they are; the format follows from ``spec``.

    Args:
        spec: a folder, an image, a table (.txt, .csv, .tsv, .parquet), .tar shards, a glob, brace pattern or URL of
            them, a folder saved by Hugging Face `datasets`, ``hf:user/name:split``, or ``torchvision:Name?root=…``.
        labels: ``"auto"``: where there are any; ``"folder"``: the first folder below the root, or an error; ``"none"``.
        image_column: column of paths or bytes, or the ending of the image files in a shard (``"left.png"``).
        label_column: column, or JSON field in a shard, that holds the label.
        class_column: column or JSON field that holds the class name.
        id_column: column or JSON field that says what counts as the same thing.
        channels: 3, 1, or None for what each file holds.
        min_side: shorter side needed, in pixels; lets large JPEGs be decoded at a fraction of their size.
        cache_dir: where indexes and fetched shards go; default ``$MC_CACHE``, else ``~/.cache/momentum-contrast``.

    Raises:
        DataError: missing, empty, damaged or ambiguous data; the message says which file and what to do.
        ConfigError: an option that does not fit.
        MissingDependencyError: the format needs a package; the message names the extra.
    """
    options = ReadOptions(
        labels=labels,
        image_column=image_column,
        label_column=label_column,
        class_column=class_column,
        id_column=id_column,
        channels=channels,
        min_side=min_side,
        cache_dir=cache_dir,
    )
    text = os.fspath(spec)
    if not text:
        raise ConfigError(f"no data named; understood are {UNDERSTOOD}")
    if not re.match(r"(hf|torchvision):", text) and not is_url(text):
        text = os.path.expanduser(text)
    source = _open(text, options)
    if labels == "folder" and not (isinstance(source, PathSource) and source.kind == "folder"):
        raise ConfigError(f"labels='folder' is for folders of images, {text} is none: use 'auto' or 'none'")
    return source


def _open(spec: str, options: ReadOptions) -> ImageSource:
    if spec.startswith("torchvision:"):
        return torchvision_sets.open_torchvision(spec, options)
    if spec.startswith("hf:"):
        return hf.open_hub(spec, options)
    lower = spec.partition("?")[0].lower() if is_url(spec) else spec.lower()
    if is_url(spec):
        if lower.endswith(".tar"):
            return shards.open_shards(spec, options)
        raise DataError(f"{spec}: only .tar shards are read from URLs; fetch it first, then name the local file")
    if os.path.isdir(spec):
        return _open_folder(spec, options)
    if "::" in spec or ("{" in spec and not os.path.exists(spec)):
        return _open_pattern(spec, options)
    if os.path.exists(spec):
        return _open_file(spec, lower, options)
    if has_magic(spec):
        return _open_pattern(spec, options)
    folder = spec.rpartition(":")[0]
    if os.path.isdir(folder) and SAVED_FILES & set(os.listdir(folder)):
        return hf.open_saved(spec, options)
    raise DataError(not_found(spec))


def _open_file(spec: str, lower: str, options: ReadOptions) -> ImageSource:
    extension = os.path.splitext(lower)[1]
    if lower.endswith(_ARCHIVES):
        raise DataError(f"{spec} is a compressed archive: unpack it, or decompress it to a plain .tar")
    match extension:
        case ".tar":
            return shards.open_shards(spec, options)
        case ".parquet" | ".pq":
            return table.open_parquet([spec], options, location=spec)
        case ".csv" | ".tsv":
            return table.open_csv(spec, options)
        case ".txt" | ".lst":
            return table.open_list(spec, options)
        case ".arrow":
            return hf.open_saved(spec, options)
    if extension in IMAGE_EXTENSIONS:
        return PathSource([os.path.basename(spec)], os.path.dirname(spec), options, kind="file", location=spec)
    raise DataError(f"{spec} is of no kind known here; understood are {UNDERSTOOD}")


def _open_pattern(spec: str, options: ReadOptions) -> ImageSource:
    if spec.lower().endswith(".tar"):
        return shards.open_shards(spec, options)
    files = [path for name in expand_braces(spec) for path in sorted(glob(name)) or [name]]
    if missing := [path for path in files if not os.path.exists(path)]:
        raise DataError(f"nothing matches {missing[0]}")
    extensions = sorted({os.path.splitext(path)[1].lower() for path in files})
    if set(extensions) <= {".parquet", ".pq"}:
        return table.open_parquet(files, options, location=spec)
    if set(extensions) <= IMAGE_EXTENSIONS:
        return PathSource(files, "", options, kind="files", location=spec)
    raise DataError(
        f"{spec} matches files of the kinds {', '.join(extensions)}; a pattern is for .tar, .parquet or images"
    )


def _open_folder(folder: str, options: ReadOptions) -> ImageSource:
    try:
        names = sorted(name for name in os.listdir(folder) if not name.startswith("."))
    except OSError as error:
        raise DataError(f"cannot read the folder {folder} ({error.strerror})") from error
    if SAVED_FILES & set(names):
        return hf.open_saved(folder, options)
    extensions = {os.path.splitext(name)[1].lower() for name in names}
    if not extensions & IMAGE_EXTENSIONS:
        tables = [name for name in names if name.endswith(".parquet")]
        tars = [name for name in names if name.endswith(".tar")]
        if tables or tars:
            files = _one_set(folder, tables + tars)
            if files[0].endswith(".tar"):
                return shards.ShardSource(files, folder, options)
            return table.open_parquet(files, options, location=folder)
    return open_folder(folder, options)


def _one_set(folder: str, names: list[str]) -> list[str]:
    """Paths of the files, which must be the numbered parts of one set: train and test are not to be mixed unasked."""
    stems: dict[str, list[str]] = {}
    for name in names:
        stem, extension = os.path.splitext(name)
        stems.setdefault(re.sub(r"[-_.]?\d+([-_]of[-_]\d+)?$", "", stem) + "*" + extension, []).append(name)
    if len(stems) > 1:
        found = ", ".join(
            f"{pattern} ({count_text(len(members), 'file')})" for pattern, members in list(stems.items())[:6]
        )
        raise DataError(f"{folder} holds several sets: {found}; name one, {os.path.join(folder, next(iter(stems)))!r}")
    return [os.path.join(folder, name) for name in names]
