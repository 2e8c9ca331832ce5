"""Pictures that lie in tars, in Parquet files and in Hugging Face data sets.

Legend: N pictures.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Container, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np

from mc_core.errors import BadSampleError, DataError, closest
from mc_core.hub_data import require_datasets
from mc_core.images.decoding import read_file
from mc_core.images.formats import IMAGE_EXTENSIONS
from mc_core.images.parquet import ParquetCells, cell_sizes
from mc_core.listing import PackedStrings, fingerprint
from mc_core.shards import ShardFile, find_shards, image_ending, walk_shard
from mc_vision_language.data.images import StoredImages


class TarImages(StoredImages):
    """Members of tar files, read where they lie.

    Args:
        shards: local tar files.
        shard_of: (N,) which of them each picture lies in.
        members: N names of members.
        offsets: (N,) first byte of each.
        sizes: (N,) bytes of each.
        location: for reports.
    """

    kind = "tar"

    def __init__(
        self,
        shards: Sequence[str | Path],
        shard_of: np.ndarray,
        members: Sequence[str],
        offsets: np.ndarray,
        sizes: np.ndarray,
        *,
        location: str,
    ) -> None:
        self.shards = [os.fspath(shard) for shard in shards]
        self.shard_of, self.offsets, self.lengths = shard_of.astype(np.int32), offsets, sizes
        self.members = members if isinstance(members, PackedStrings) else PackedStrings(members)
        names = [os.path.basename(shard) for shard in self.shards]
        super().__init__(location, len(self.members), fingerprint(names, self.members, self.lengths))
        self._file = functools.lru_cache(maxsize=64)(ShardFile)

    @classmethod
    def of(cls, tar: str | Path, members: Sequence[str] | None = None) -> Self:
        """Pictures of one tar file: those named, in that order, or all.

        Raises:
            DataError: a member is not there, or the file is damaged.
        """
        path = os.fspath(tar)
        places = {f"{key}.{end}": at for key, ends in walk_shard(path).items() for end, at in ends.items()}
        if members is None:
            members = [name for name in places if os.path.splitext(name)[1] in IMAGE_EXTENSIONS]
        found = [places.get(member_name(name)) for name in members]
        if None in found:
            name = members[found.index(None)]
            raise DataError(f"{path} has no member {name!r}; it has {closest(name, places) or 'none'}")
        offsets, sizes = np.array(found, dtype=np.int64).reshape(-1, 2).T
        return cls([path], np.zeros(len(found), np.int32), members, offsets.copy(), sizes.copy(), location=path)

    @classmethod
    def named(cls, tar: str | Path, paths: Sequence[str]) -> Self:
        """Pictures of one tar file that a table names; one that is not there has no bytes, and is counted as missing.

        Of a path from elsewhere, leading folders are left away until a member is called like that.

        Raises:
            DataError: the tar is damaged, or holds none of them.
        """
        path = os.fspath(tar)
        places = {f"{key}.{end}": at for key, ends in walk_shard(path).items() for end, at in ends.items()}
        members = [_known_member(name, places) for name in paths]
        found = [places.get(member, (0, 0)) for member in members]
        if paths and not any(size for _, size in found):
            raise DataError(
                f"{path} has no member {members[0]!r}, nor any other that the table names; it has "
                f"{closest(members[0], places) or 'none'}"
            )
        offsets, sizes = np.array(found, dtype=np.int64).reshape(-1, 2).T
        return cls([path], np.zeros(len(found), np.int32), members, offsets.copy(), sizes.copy(), location=path)

    @classmethod
    def every(cls, pattern: str, cache: Path | None = None) -> Self:
        """The picture of each sample of WebDataset shards, with or without captions beside it.

        Args:
            pattern: a path, URL, glob or brace pattern; several joined by ``::``.
            cache: where shards behind URLs go.

        Raises:
            DataError: a shard is missing or damaged, or there is no picture.
        """
        shards = find_shards(pattern, cache)
        names: list[str] = []
        shard_of: list[int] = []
        places: list[tuple[int, int]] = []
        for number, shard in enumerate(shards):
            for key, ends in walk_shard(shard).items():
                end = image_ending(ends, None, f"{shard}/{key}")
                if end is not None:
                    names.append(f"{key}.{end}")
                    shard_of.append(number)
                    places.append(ends[end])
        if not names:
            raise DataError(f"{pattern} holds no picture ({', '.join(sorted(IMAGE_EXTENSIONS))})")
        offsets, sizes = np.array(places, dtype=np.int64).reshape(-1, 2).T
        return cls(shards, np.array(shard_of), names, offsets.copy(), sizes.copy(), location=pattern)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_file"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= state
        self._file = functools.lru_cache(maxsize=64)(ShardFile)

    def _name(self, i: int) -> str:
        return f"{self.shards[self.shard_of[i]]}/{self.members[i]}"

    def _key(self, i: int) -> str:
        return self.members[i]

    def head(self, row: int, size: int) -> bytes:
        """The first ``size`` bytes of one picture."""
        i = int(self.rows[row])
        return self._file(self.shards[self.shard_of[i]]).read(int(self.offsets[i]), min(size, int(self.lengths[i])))

    def _sizes(self) -> np.ndarray:
        return self.lengths

    def _data(self, i: int) -> bytes:
        size = int(self.lengths[i])
        data = self._file(self.shards[self.shard_of[i]]).read(int(self.offsets[i]), size)
        if len(data) != size:
            raise BadSampleError(self._name(i), "the tar became shorter since it was opened")
        return data


class ParquetImages(StoredImages):
    """Encoded images in a column of Parquet files.

    Args:
        files: with the same columns.
        column: of the images.
        location: for reports.
        cache: where a large column is unpacked to; see :func:`~mc_core.listing.cache_folder`.
    """

    kind = "parquet"

    def __init__(self, files: Sequence[str], column: str, *, location: str, cache: Path | None = None) -> None:
        self.cells = ParquetCells(files, column, cache_dir=cache)
        super().__init__(location, len(self.cells), self.cells.digest)

    def _name(self, i: int) -> str:
        return self.cells.name(i)

    def _key(self, i: int) -> str:
        return os.path.basename(self.cells.name(i))

    def _data(self, i: int) -> bytes:
        return self.cells.read(i)

    def _sizes(self) -> np.ndarray:
        return self.cells.sizes()


class HubImages(StoredImages):
    """The image column of a Hugging Face `datasets.Dataset`, memory-mapped.

    Args:
        data: the data set.
        column: of its images.
        location: for reports.
    """

    kind = "huggingface"

    def __init__(self, data: Any, column: str, location: str) -> None:
        datasets = require_datasets("mc-vision-language[datasets]")
        self.column = column
        super().__init__(location, len(data), fingerprint(data._fingerprint, len(data), column))
        self._dataset = (
            data.select_columns([column]).cast_column(column, datasets.Image(decode=False)).with_format(None)
        )

    def _name(self, i: int) -> str:
        return f"{self.location}[{i}]"

    def _data(self, i: int) -> bytes:
        cell = self._dataset[i][self.column]
        if cell is None or (cell["bytes"] is None and not cell["path"]):
            raise BadSampleError(self._name(i), "the image cell is empty")
        return cell["bytes"] if cell["bytes"] is not None else read_file(cell["path"], name=self._name(i))

    def _key(self, i: int) -> str:
        return str(i)

    def _sizes(self) -> np.ndarray:
        table = self._dataset.data.table if self._dataset._indices is None else None
        if table is not None:
            return cell_sizes(table.column(self.column).chunks)
        return np.fromiter((self._one_size(i) for i in range(len(self._dataset))), np.int64, len(self._dataset))

    def _one_size(self, i: int) -> int:
        try:
            return len(self._data(i))
        except BadSampleError:
            return -1


def tar_members(tar: str | Path) -> frozenset[str]:
    """Names of all members, as :func:`member_name` spells them.

    Raises:
        DataError: no such file, or a damaged one.
    """
    return frozenset(f"{key}.{end}" for key, ends in walk_shard(os.fspath(tar)).items() for end in ends)


def _known_member(name: str, places: Container[str]) -> str:
    """The member that a path of a table means; its own spelling where there is none."""
    spelled = member_name(name.replace("\\", "/"))
    parts = spelled.strip("/").split("/")
    shorter = ("/".join(parts[count:]) for count in range(len(parts)))
    return next((one for one in shorter if one in places), spelled)


def member_name(name: str) -> str:
    """A member's name as the walk over a tar spells it: without ``./``, the ending in lower case."""
    folder, base = os.path.split(name.removeprefix("./"))
    key, _, ending = base.partition(".")
    return os.path.join(folder, f"{key}.{ending.lower()}")
