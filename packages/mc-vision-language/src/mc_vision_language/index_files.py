"""The files of a search index: which pictures, their unit rows, and their tokens for ranking again.

A folder holds ``index.json``, which names the other files and says which model they belong to. New files get their names first,
``index.json`` is replaced last, and what it no longer names is removed: a folder holds the old index or the new one, whole.

Legend: N pictures, T tokens of a picture, D their features, d width of the shared space, C pictures written together.
"""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from hashlib import blake2b, sha256
from pathlib import Path
from typing import Any, BinaryIO, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from mc_core.errors import BadSampleError, CheckpointError, DataError
from mc_core.files import atomic_path, read_json, write_json
from mc_vision_language.data.images import FileImages, ImageSet, StoredImages
from mc_vision_language.model import VisionLanguageModel

FORMAT = 1
INDEX_FILE = "index.json"
Stored = Literal["int8", "float16", "none"]
"""How tokens are kept: a byte for each feature with a scale for each token, two bytes, or not at all."""
_PARTS = ("pictures", "features", "tokens", "scales")
_OURS = re.compile(rf"({'|'.join(_PARTS)})-[0-9a-f]{{12}}\.(json|bin)")


class Parts(NamedTuple):
    """Some pictures as an index keeps them.

    Attributes:
        features: (C, d) float32.
        tokens: (C, T, D) int8 or float16, or None.
        scales: (C, T) float32, or None.
    """

    features: np.ndarray
    tokens: np.ndarray | None
    scales: np.ndarray | None


@dataclass(frozen=True)
class IndexFiles:
    """What an index folder holds; arrays stay on disk until they are used.

    Attributes:
        names: N paths or keys.
        identities: N texts that change when a picture does.
        features: (N, d) float32 unit rows.
        tokens: (N, T, D) int8 or float16; None where they are not kept.
        scales: (N, T) float32, by which int8 tokens are multiplied; None otherwise.
        stored: how tokens are kept.
        model: fingerprint.
    """

    names: tuple[str, ...]
    identities: tuple[str, ...]
    features: np.ndarray
    tokens: np.ndarray | None
    scales: np.ndarray | None
    stored: Stored
    model: str

    def rows_of(self, rows: np.ndarray) -> Parts:
        """These pictures, as they are kept."""
        tokens = None if self.tokens is None else self.tokens[rows]
        return Parts(self.features[rows], tokens, None if self.scales is None else self.scales[rows])

    def tokens_of(self, rows: np.ndarray) -> Tensor:
        """(C, T, D) float32 tokens of these pictures.

        Raises:
            DataError: tokens are not kept.
        """
        if self.tokens is None:
            raise DataError("this index keeps no tokens: build it with tokens='int8' to rank again")
        found = torch.from_numpy(np.array(self.tokens[rows])).float()
        return found if self.scales is None else found * torch.from_numpy(np.array(self.scales[rows]))[..., None]


def pack_tokens(tokens: Tensor, stored: Stored) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Tokens (C, T, D) as they are kept, and their scales where they are bytes.

    >>> packed, scales = pack_tokens(torch.tensor([[[0.5, -1.0]]]), "int8")
    >>> packed.tolist(), round(float(scales[0, 0]), 4)
    ([[[64, -127]]], 0.0079)
    """
    if stored == "none":
        return None, None
    tokens = tokens.float()
    if stored == "float16":
        return tokens.half().cpu().numpy(), None
    scales = tokens.abs().amax(-1) / 127
    packed = (tokens / scales.clamp(min=1e-12)[..., None]).round_().to(torch.int8)
    return packed.cpu().numpy(), scales.cpu().numpy()


def identities(images: ImageSet) -> tuple[list[str], list[str]]:
    """Names of pictures, and texts that change when a picture does.

    A file counts as changed when its size or its time of change differs; what lies in a tar, a table or in memory when its content
    does. A file that is missing has the identity ``""``.
    """
    names = [images.name(row) for row in range(len(images))]
    if isinstance(images, FileImages):
        return names, [_stamp(os.path.abspath(name)) for name in names]
    array = getattr(images, "array", None)
    content: Iterable[bytes | None]
    if array is not None:
        content = (f"{array.shape[1:]}".encode() + np.ascontiguousarray(picture).tobytes() for picture in array)
    else:
        content = (_content(images, row) for row in range(len(images)))
    return names, [
        f"{name}|{blake2b(one, digest_size=16).hexdigest()}" if one is not None else ""
        for name, one in zip(names, content, strict=True)
    ]


def model_fingerprint(model: VisionLanguageModel) -> str:
    """A hash of the model's configuration, weights and vocabulary."""
    state = sha256(model.config.model_dump_json().encode())
    for name, tensor in sorted(model.state_dict().items()):
        state.update(name.encode())
        state.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    if model.tokenizer is not None:
        state.update(model.tokenizer.backend_tokenizer.to_str().encode())
    return state.hexdigest()


def read_index(folder: Path, model: str | None = None) -> IndexFiles:
    """The index in a folder.

    Args:
        folder: made by :class:`Writer`.
        model: refuse an index of another model than this.

    Raises:
        CheckpointError: no index, a damaged one, or one of another model.
    """
    path = folder / INDEX_FILE
    if not path.is_file():
        raise CheckpointError(f"{folder} holds no index ({INDEX_FILE} is missing); build one there first")
    described = read_json(path)
    if not isinstance(described, dict) or described.get("format") != FORMAT:
        raise CheckpointError(f"{path} is no index of this version; build it again")
    if model is not None and described["model"] != model:
        raise CheckpointError(f"the index in {folder} was made by another model; build it again with this one")
    try:
        listed = read_json(folder / described["files"]["pictures"])
        arrays = {
            part: np.memmap(  # "c": torch reads what it could write to, and nothing would reach the file
                folder / described["files"][part], _dtype(part, described["stored"]), "c", shape=tuple(shape)
            )
            for part, shape in described["shapes"].items()
        }
        if len(listed["names"]) != len(arrays["features"]) or len(listed["identities"]) != len(arrays["features"]):
            raise ValueError(f"{len(listed['names'])} names for {len(arrays['features'])} pictures")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"the index in {folder} is damaged ({str(error).splitlines()[0]}); build it again"
        ) from error
    return IndexFiles(
        tuple(listed["names"]),
        tuple(listed["identities"]),
        arrays["features"],
        arrays.get("tokens"),
        arrays.get("scales"),
        described["stored"],
        described["model"],
    )


class Writer:
    """Takes the pictures of a new index, some at a time; see :func:`writing`."""

    def __init__(self, files: dict[str, BinaryIO], stored: Stored) -> None:
        self.files, self.stored = files, stored
        self.names: list[str] = []
        self.identities: list[str] = []
        self.shapes: dict[str, tuple[int, ...]] = {}

    def add(
        self,
        names: list[str],
        identities: list[str],
        features: np.ndarray,
        tokens: np.ndarray | None,
        scales: np.ndarray | None,
    ) -> None:
        """Pictures in the order of the index, with what :func:`pack_tokens` gave."""
        for part, rows in (("features", features), ("tokens", tokens), ("scales", scales)):
            if rows is not None:
                self.files[part].write(np.ascontiguousarray(rows, _dtype(part, self.stored)).data)
                self.shapes[part] = rows.shape[1:]
        self.names += names
        self.identities += identities


@contextmanager
def writing(folder: Path, stored: Stored, model: str, details: dict[str, Any]) -> Iterator[Writer]:
    """A :class:`Writer` whose pictures become the index of the folder when the block ends well.

    Raises:
        DataError: no picture was added. ConfigError: the folder cannot be written. RunError: the disk is full.
    """
    tag = secrets.token_hex(6)
    parts = ("features", *(("tokens",) if stored != "none" else ()), *(("scales",) if stored == "int8" else ()))
    files = {"pictures": f"pictures-{tag}.json", **{part: f"{part}-{tag}.bin" for part in parts}}
    try:
        with ExitStack() as stack:
            handles: dict[str, BinaryIO] = {}
            for part in parts:
                draft = stack.enter_context(atomic_path(folder / files[part]))
                handles[part] = stack.enter_context(draft.open("wb"))
            writer = Writer(handles, stored)
            yield writer
            if not writer.names:
                raise DataError("no picture could be read: there is nothing to index")
        write_json(folder / files["pictures"], {"names": writer.names, "identities": writer.identities})
        count = len(writer.names)
        write_json(
            folder / INDEX_FILE,
            {
                "format": FORMAT,
                "model": model,
                "count": count,
                "stored": stored,
                "files": files,
                "shapes": {part: [count, *writer.shapes[part]] for part in parts},
                **details,
            },
        )
    except BaseException:
        for name in files.values():
            (folder / name).unlink(missing_ok=True)
        raise
    for path in folder.iterdir():
        if _OURS.fullmatch(path.name) and path.name not in files.values():
            path.unlink(missing_ok=True)


def is_ours(name: str) -> bool:
    """Whether a file of this name belongs to an index."""
    return name in (INDEX_FILE, ".lock") or name.endswith(".part") or _OURS.fullmatch(name) is not None


def _dtype(part: str, stored: Stored) -> np.dtype[Any]:
    return np.dtype({"tokens": "i1" if stored == "int8" else "<f2"}.get(part, "<f4"))


def _content(images: ImageSet, row: int) -> bytes | None:
    try:
        return images.data(row) if isinstance(images, StoredImages) else images.read(row).tobytes()
    except BadSampleError:
        return None


def _stamp(path: str) -> str:
    try:
        found = os.stat(path)
    except (OSError, ValueError):  # ValueError: a NUL in the name
        return ""
    return f"{path}|{found.st_size}|{found.st_mtime_ns}"
