"""From what the user typed to :class:`Pairs`."""

from __future__ import annotations

import os
from glob import glob, has_magic
from pathlib import Path
from typing import TYPE_CHECKING

from mc_core.errors import ConfigError, DataError
from mc_core.hub_data import SAVED_FILES
from mc_core.listing import not_found
from mc_core.remote import fetch, is_url
from mc_core.shards import expand_braces
from mc_vision_language.data.image_paths import is_tar
from mc_vision_language.data.options import CaptionOptions, ColumnOptions, ReadOptions, SplitOptions

if TYPE_CHECKING:
    from mc_vision_language.data.assembling import Found
    from mc_vision_language.data.pairs import Pairs

UNDERSTOOD = (
    "a table (.csv, .tsv, .jsonl, .parquet), a folder of pictures with captions beside them, .tar shards (also as URL, glob or "
    "{000..009}), the annotation files of COCO, Flickr30k, Karpathy and ALBEF, a saved Hugging Face folder, hf:user/name"
)
_TABLES = (".csv", ".tsv", ".jsonl", ".ndjson", ".txt", ".token")
_ARCHIVES = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst", ".zip", ".7z", ".rar")


def open_pairs(
    source: str | Path,
    *,
    images: str | Path | None = None,
    columns: ColumnOptions = ColumnOptions(),  # noqa: B008 - frozen
    captions: CaptionOptions = CaptionOptions(),  # noqa: B008 - frozen
    read: ReadOptions = ReadOptions(),  # noqa: B008 - frozen
    split: SplitOptions = SplitOptions(),  # noqa: B008 - frozen
) -> Pairs:
    """Pictures and captions from wherever they are; the format follows from ``source``.

    Pictures are not decoded yet: one that is no picture is met, counted and skipped in training. Rows that cannot be used are left
    out, counted in ``Pairs.dropped`` and shown in ``Pairs.examples``; what was taken for what is in ``Pairs.columns``.

    Args:
        source: a table (``.csv``, ``.tsv``, ``.jsonl``, ``.parquet``) of paths or encoded pictures with captions, of which a cell
            may hold a list; a folder of pictures with a ``.txt`` or ``.json`` of the same name, or with ``captions.csv``,
            ``metadata.jsonl`` … inside; WebDataset shards, as path, URL, glob or brace pattern; captions of COCO, Karpathy's
            ``dataset_*.json``, ``results_20130124.token``, ``captions.txt``, ALBEF's lists; a folder saved by Hugging Face
            `datasets`, or ``hf:user/name[:split]``.
        images: folder that paths are relative to, or a tar whose members they are; default: the folder of the table.
        columns: names of columns, where the usual ones are not those meant.
        captions: what of a caption is kept.
        read: how much may be missing, what is the same picture, where fetched files go.
        split: how pictures are divided where the data do not say it.

    Raises:
        DataError: missing, empty, damaged or ambiguous data, or too much that is missing; the message says which file and row.
        ConfigError: a column that was named is not there, or ``images`` for pictures that lie elsewhere.
        MissingDependencyError: Hugging Face data without the extra ``datasets``.
    """
    from mc_vision_language.data.assembling import assemble
    from mc_vision_language.data.images import FileImages

    text = os.fspath(source)
    if not text:
        raise ConfigError(f"no data named; understood are {UNDERSTOOD}")
    if not text.startswith("hf:") and not is_url(text):
        text = os.path.expanduser(text)
    folder = None if images is None else os.path.expanduser(os.fspath(images))
    if folder is not None and not os.path.isdir(folder) and not is_tar(folder):
        there = "a file, neither a folder nor a .tar" if os.path.exists(folder) else "no such folder"
        raise DataError(f"--images {folder}: {there}")
    found = _find(text, folder, columns, read)
    if folder is not None and not isinstance(found.images, FileImages) and found.images.location != folder:
        raise ConfigError(f"--images {folder}: the pictures are in {text} itself; leave the option out")
    return assemble(found, captions, read, split)


def _find(spec: str, images: str | None, columns: ColumnOptions, read: ReadOptions) -> Found:
    if spec.startswith("hf:"):
        from mc_vision_language.data.hub_pairs import find_hub

        return find_hub(spec, columns)
    if is_url(spec) and not spec.partition("?")[0].lower().endswith(".tar"):
        spec = os.fspath(fetch(spec, read.cache))
    if spec.partition("?")[0].lower().endswith(".tar"):
        from mc_vision_language.data.tar_pairs import find_in_shards

        return find_in_shards(spec, columns, read)
    if os.path.isdir(spec):
        return _find_in_folder(spec, images, columns, read)
    if not os.path.exists(spec) and ("{" in spec or has_magic(spec)):
        files = [path for name in expand_braces(spec) for path in sorted(glob(name)) or [name]]
        if missing := [path for path in files if not os.path.exists(path)]:
            raise DataError(f"nothing matches {missing[0]}")
        return _find_in_files(spec, files, images, columns, read)
    saved = spec.rpartition(":")[0]
    if not os.path.exists(spec) and os.path.isdir(saved) and SAVED_FILES & set(os.listdir(saved)):
        from mc_vision_language.data.hub_pairs import find_saved

        return find_saved(spec, columns)
    if not os.path.exists(spec):
        raise DataError(not_found(spec))
    return _find_in_files(spec, [spec], images, columns, read)


def _find_in_files(spec: str, files: list[str], images: str | None, columns: ColumnOptions, read: ReadOptions) -> Found:
    kinds = sorted({os.path.splitext(path)[1].lower() for path in files})
    if set(kinds) <= {".parquet", ".pq"}:
        from mc_vision_language.data.parquet_pairs import find_in_parquet

        return find_in_parquet(files, spec, images, columns, read)
    if len(files) > 1:
        raise DataError(
            f"{spec} matches {len(files)} files of the kinds {', '.join(kinds)}; a pattern is for .tar or .parquet"
        )
    lower = spec.lower()
    if lower.endswith(_ARCHIVES):
        raise DataError(f"{spec} is a compressed archive: unpack it, or decompress it to a plain .tar")
    if kinds[0] == ".arrow":
        from mc_vision_language.data.hub_pairs import find_saved

        return find_saved(spec, columns)
    if kinds[0] == ".json":
        from mc_vision_language.data.annotation_pairs import find_in_json

        return find_in_json(spec, images, columns)
    if kinds[0] in _TABLES:
        from mc_vision_language.data.table_pairs import find_in_table

        return find_in_table(spec, images, columns)
    raise DataError(f"{spec} is of no kind known here; understood are {UNDERSTOOD}")


def _find_in_folder(folder: str, images: str | None, columns: ColumnOptions, read: ReadOptions) -> Found:
    from mc_vision_language.data.folder_pairs import captions_file, find_beside

    names = sorted(name for name in os.listdir(folder) if not name.startswith("."))
    if SAVED_FILES & set(names):
        from mc_vision_language.data.hub_pairs import find_saved

        return find_saved(folder, columns)
    for ending in (".tar", ".parquet"):
        inside = [os.path.join(folder, name) for name in names if name.lower().endswith(ending)]
        if inside and ending == ".tar":
            from mc_vision_language.data.tar_pairs import find_in_shards

            return find_in_shards("::".join(inside), columns, read, location=folder)
        if inside:
            return _find_in_files(folder, inside, images, columns, read)
    table = captions_file(folder, names)
    if table is not None:
        return _find_in_files(table, [table], images or folder, columns, read)
    if images is not None and is_tar(images):
        raise DataError(f"{folder} holds no table of captions that names pictures of {images}")
    return find_beside(images or folder, columns)
