"""P9D, a million Chinese product pictures with titles in nine industries (Zhu et al. 2023, arXiv:2308.07146), as published::

json/train.json                          industry → item → {title, cate_name, …}
json/test.json query.json gallery.json   item → {title, cate_name, industry_name, …}
train_images/ITEM.jpg                    of training items
gallery_images/ITEM.jpg                  of all others
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from mc_core.errors import ConfigError, DataError, closest
from mc_core.files import StrPath, read_json
from mc_vision_language.data.assembling import Found, assemble
from mc_vision_language.data.images import FileImages
from mc_vision_language.data.options import CaptionOptions, ReadOptions, SplitOptions
from mc_vision_language.data.pairs import Pairs

INDUSTRIES = {
    "Household": "家居用品",
    "Furnishings": "家装家饰",
    "Food": "食品/保健",
    "Beauty": "美容护理",
    "Clothing": "服饰鞋包",
    "Auto": "车品配件",
    "Parenting": "母婴",
    "Outdoors": "运动/户外",
    "Electronics": "3C数码",
}
"""In the published order: English name → as the files have it. The second order of the paper is the reverse."""
_FILES = ("train", "test", "query", "gallery")


@dataclass(frozen=True)
class Labelled:
    """Pairs with a class each.

    Attributes:
        pairs: N pictures with captions.
        classes: (N,) names.
    """

    pairs: Pairs
    classes: np.ndarray


@dataclass(frozen=True)
class P9DDomain:
    """One industry.

    Attributes:
        name: as the files have it.
        products: items to train on and to test cross-modal retrieval with; splits ``train`` and ``test``.
        queries, gallery: of retrieval by category with both picture and title.
    """

    name: str
    products: Labelled
    queries: Labelled
    gallery: Labelled


class P9D:
    """The data set, its four lists read once.

    Args:
        folder: with ``json``, ``train_images`` and ``gallery_images``.

    Attributes:
        industries: those of the training list, in the published order, then others as they come.

    Raises:
        DataError: a list is missing or of another form.
    """

    def __init__(self, folder: StrPath) -> None:
        self.folder = Path(folder).expanduser()
        if not self.folder.is_dir():
            raise DataError(
                f"{self.folder}: no such folder of P9D, which holds json/, train_images/ and gallery_images/"
            )
        self._lists: dict[str, dict[str, dict[str, Any]]] = {}
        for name in _FILES:
            path = self.folder / "json" / f"{name}.json"
            content = read_json(path)
            if not isinstance(content, dict):
                raise DataError(f"{path}: a mapping is needed, this is a {type(content).__name__}")
            self._lists[name] = content if name == "train" else _by_industry(content, path)
        known = [name for name in INDUSTRIES.values() if name in self._lists["train"]]
        self.industries = (*known, *(name for name in self._lists["train"] if name not in known))

    def domain(
        self,
        industry: str,
        *,
        captions: CaptionOptions = CaptionOptions(),  # noqa: B008 - frozen
        read: ReadOptions = ReadOptions(),  # noqa: B008 - frozen
    ) -> P9DDomain:
        """One industry, by its own or its English name. Pictures are not opened yet, only looked for.

        Args:
            industry: such as ``"食品/保健"`` or ``"Food"``.
            captions: what of a title is kept.
            read: how many pictures may be missing.

        Raises:
            ConfigError: no such industry. DataError: too many pictures are missing, or there is none.
        """
        name = INDUSTRIES.get(industry, industry)
        if name not in self._lists["train"]:
            raise ConfigError(f"{self.folder}: no industry {industry!r}; there are {closest(name, self.industries)}")
        parts = {part: self._lists[part].get(name, {}) for part in _FILES}
        products = self._labelled({"train": parts["train"], "test": parts["test"]}, name, captions, read)
        others = [self._labelled({"test": parts[part]}, name, captions, read) for part in ("query", "gallery")]
        return P9DDomain(name, products, *others)

    def _labelled(
        self, parts: Mapping[str, Mapping[str, Any]], name: str, captions: CaptionOptions, read: ReadOptions
    ) -> Labelled:
        """Items of some parts of one industry; an item is one picture, also where another has equal bytes."""
        rows = [
            (f"{'train' if part == 'train' else 'gallery'}_images/{item}.jpg", item, part, _text(about, "title"))
            for part, items in parts.items()
            for item, about in items.items()
        ]
        if not rows:
            raise DataError(f"{self.folder}: no item of {name!r} in {' and '.join(parts)}")
        paths, ids, splits, titles = zip(*rows, strict=True)
        found = Found(
            FileImages(paths, self.folder, location=str(self.folder)),
            titles,
            np.arange(len(rows)),
            lambda row: f"{self.folder}, item {ids[row]}",
            f"{self.folder}, {name}",
            {"image": "item.jpg", "caption": "title", "image_id": "item", "split": "lists"},
            ids,
            None,
        )
        by_name = read.model_copy(update={"duplicates": "name"})
        assembled = assemble(found, captions, by_name, SplitOptions(shares=(1.0, 0.0, 0.0), own=False))
        split_of = dict(zip(paths, splits, strict=True))
        class_of = {path: _text(parts[split][item], "cate_name") for path, item, split, _ in rows}
        assert isinstance(assembled.images, FileImages)
        kept = [assembled.images.key(row) for row in range(len(assembled))]
        pairs = _with_splits(assembled, np.array([split_of[path] for path in kept]))
        return Labelled(pairs, np.array([class_of[path] for path in kept]))


def _with_splits(pairs: Pairs, splits: np.ndarray) -> Pairs:
    return replace(pairs, splits=splits, columns={**pairs.columns, "split": "the lists of the data set"})


def _by_industry(content: dict[str, Any], path: Path) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for item, about in content.items():
        if not isinstance(about, dict) or "industry_name" not in about:
            raise DataError(f"{path}: item {item} has no industry_name")
        found.setdefault(about["industry_name"], {})[item] = about
    return found


def _text(about: Any, name: str) -> str:
    value = about.get(name) if isinstance(about, dict) else None
    return "" if value is None else str(value)
