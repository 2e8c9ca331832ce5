"""An ordered list of domains: from a file of the user, from P9D, or the embedded sample.

``TASKS.yaml`` is a list, the first task first::

    - {name: fashion, data: fashion.tar, columns: {caption: text}, category: articleType, where: {category: Apparel}}
    - {name: food, data: p9d:/data/P9D, where: {industry: Food}}

``where`` keeps the pictures with these values in these columns, so that one file can hold several domains; ``category`` is the
column that says which pictures are of one class, by default ``category``, and where there is none the task is one class.
"""

from __future__ import annotations

import copy
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import yaml
from pydantic import Field, ValidationError

from mc_core.engine.config import StrictModel
from mc_core.errors import ConfigError, DataError, closest
from mc_core.files import StrPath
from mc_core.samples.scenes import DIGITS, digit_scenes
from mc_core.shards import expand_braces
from mc_vision_language.data.columns import roles_of
from mc_vision_language.data.images import StoredImages
from mc_vision_language.data.opening import open_pairs
from mc_vision_language.data.options import CaptionOptions, ColumnOptions, ReadOptions, SplitOptions
from mc_vision_language.data.p9d import INDUSTRIES, P9D, Labelled
from mc_vision_language.data.pairs import Pairs, scene_pairs
from mc_vision_language.data.records import Record, read_records
from mc_vision_language.data.stored_images import TarImages
from mc_vision_language.sample import PLAIN_SCENE, PLAIN_SIZE

_log = logging.getLogger("mc_core")
SampleTasks = Literal["digits", "turns", "before"]
SAMPLE_TASKS: dict[SampleTasks, str] = {
    "digits": "five tasks of two digits",
    "turns": "five turns of digits",
    "before": "five turns of five other digits",
}
SAMPLE_COUNTS = {"train": 4000, "validation": 1000, "test": 1000}
"""Scenes of all five tasks together. Validation scenes are made of the scans of the training scenes, test scenes of those of other
writers."""
TURN_COUNTS = {"train": 5000, "validation": 1000, "test": 1000}
"""The same of turned digits."""
TURNS = (0, 30, 60, 90, 120)
"""Degrees of the five domains."""
TURNED, BEFORE = DIGITS[:5], DIGITS[5:]
"""Digits of the turned domains: few enough to be learned in half a minute, and none looks like another however it is turned. The
other five are what a model may have learned before."""
_P9D = "p9d:"
_CATEGORY = "category"
_PARTS = ("train", "test")
_NAMED = 4  # of categories in a line
_TABLES = (".csv", ".tsv", ".jsonl", ".ndjson", ".parquet", ".json")


class TaskSpec(StrictModel):
    """A row of ``TASKS.yaml``.

    >>> TaskSpec(name="food", data="food.csv").where
    {}
    """

    name: str = Field(min_length=1)
    """What to call the task."""
    data: str = Field(min_length=1)
    """Whatever `pretrain` takes, or `p9d:FOLDER`. A relative path is looked for beside the list first."""
    images: Path | None = None
    """Folder that image paths in a list are relative to; default: the list's own."""
    columns: ColumnOptions = ColumnOptions()
    """Names of columns, where the usual ones are not those meant."""
    category: str | None = None
    """Column of classes; default: `category` where there is one, else the task's name."""
    where: dict[str, str | list[str]] = Field(default_factory=dict)
    """Column → the value, or the values, that are kept."""
    split: SplitOptions | None = None
    """How its pictures are divided; default: as those of all tasks."""


@dataclass(frozen=True)
class TaskPairs:
    """A task.

    Attributes:
        name: its own in the sequence.
        pairs: N pictures with captions; splits ``train``, ``test`` and perhaps ``validation``.
        classes: (N,) names.
        queries, gallery: of retrieval by class, where they are not the test pictures themselves.
        notes: lines for people.
    """

    name: str
    pairs: Pairs
    classes: np.ndarray
    queries: Labelled | None = None
    gallery: Labelled | None = None
    notes: tuple[str, ...] = ()

    def part(self, name: str) -> Labelled:
        """The pictures of a split with their classes.

        Raises:
            DataError: there are none.
        """
        rows = np.flatnonzero(self.pairs.splits == name)
        if not len(rows):
            raise DataError(f"task '{self.name}': no pair in the split '{name}'; there are {self.pairs.split_counts()}")
        return Labelled(self.pairs.take(rows), self.classes[rows])


def read_tasks(
    source: StrPath,
    *,
    captions: CaptionOptions = CaptionOptions(),  # noqa: B008 - frozen
    read: ReadOptions = ReadOptions(),  # noqa: B008 - frozen
    split: SplitOptions = SplitOptions(),  # noqa: B008 - frozen
    reverse: bool = False,
) -> list[TaskPairs]:
    """The tasks of a list, or all industries of ``p9d:FOLDER`` in the published order.

    Args:
        source: a YAML file; see the module's text.
        captions: what of a caption is kept.
        read: how much may be missing.
        split: how pictures are divided where the data do not say it.
        reverse: the last task first.

    Raises:
        ConfigError: no such file, or rows that cannot be read; the message names file, row and field.
        DataError: a task without pairs to train on or to test with, or data that cannot be read.
    """
    text = os.fspath(source)
    if text.startswith(_P9D):
        folder = text.removeprefix(_P9D)
        names = {theirs: ours for ours, theirs in INDUSTRIES.items()}
        specs = [
            TaskSpec(name=names.get(industry, industry), data=text, where={"industry": industry})
            for industry in P9D(folder).industries
        ]
        base = Path()
    else:
        specs, base = _specs(Path(text).expanduser()), Path(text).expanduser().parent
    opened: dict[str, P9D] = {}
    tasks = [_read_task(spec, base, captions, read, split, opened) for spec in specs]
    checked(tasks)
    for line in shared_classes(tasks):
        _log.warning("%s", line)
    return tasks[::-1] if reverse else tasks


def checked(tasks: Sequence[TaskPairs]) -> None:
    """Refuse what cannot be trained or measured.

    Raises:
        ConfigError: no task, or two of one name. DataError: a task without pairs to train on, or to test with.
    """
    if not tasks:
        raise ConfigError("no tasks: give at least one")
    places: dict[str, int] = {}
    for number, task in enumerate(tasks, 1):
        if task.name in places:
            raise ConfigError(f"tasks {places[task.name]} and {number} are both named '{task.name}': rename one")
        places[task.name] = number
        for part in _PARTS:
            if not (task.pairs.splits == part).any():
                counts = (
                    ", ".join(f"{name} ({count})" for name, count in task.pairs.split_counts().items()) or "no pairs"
                )
                raise DataError(
                    f"task {number} '{task.name}' has no pairs in the split '{part}'; there are {counts}; to divide it anew give "
                    "split.own false (--split.no-own, or split: {own: false} in its row)"
                )


def shared_classes(tasks: Sequence[TaskPairs]) -> list[str]:
    """A line for classes that are in the same several tasks; each of them is one class wherever it occurs.

    >>> shared_classes([])
    []
    """
    found: dict[str, list[str]] = {}
    for task in tasks:
        for name in np.unique(task.classes).tolist():
            found.setdefault(name, []).append(task.name)
    together: dict[tuple[str, ...], list[str]] = {}
    for name, places in found.items():
        if len(places) > 1:
            together.setdefault(tuple(places), []).append(name)
    lines = []
    for places, names in together.items():
        where = f"in {len(places)} tasks ({', '.join(places)})"
        if len(names) == 1:
            lines.append(f"note: the category '{names[0]}' is {where} and counts as one")
        else:
            few = ", ".join(names[:_NAMED]) + (" …" if len(names) > _NAMED else "")
            lines.append(f"note: {len(names)} categories ({few}) are {where} and count as one each")
    return lines


def sample_tasks(
    kind: SampleTasks = "digits",
    *,
    seed: int = 0,
    counts: Mapping[str, int] | None = None,
    reverse: bool = False,
    held_out: int = 0,
) -> list[TaskPairs]:
    """The embedded sample: scenes of one digit, in five domains.

    Args:
        kind: ``digits``: two digits with their words in each task, of which the tasks before know nothing; ``turns``: the same
            five digits in each task, turned further from task to task, so that old and new have words and shapes in common;
            ``before``: the other five digits in the same turns, for a model to know before it comes to these.
        seed: another seed, other scenes.
        counts: scenes of each split in all tasks together. Default: :data:`SAMPLE_COUNTS`, or :data:`TURN_COUNTS`.
        reverse: the last task first.
        held_out: whose scans test scenes are made of, see :class:`~mc_core.samples.scenes.SceneConfig`.

    >>> few = {"train": 60, "validation": 20, "test": 20}
    >>> [task.name for task in sample_tasks("turns", counts=few)]
    ['upright', 'turned 30', 'turned 60', 'turned 90', 'turned 120']
    >>> tasks = sample_tasks(counts=few)
    >>> [task.name for task in tasks], sorted(set(tasks[1].classes.tolist()))
    (['zero and one', 'two and three', 'four and five', 'six and seven', 'eight and nine'], ['three', 'two'])
    """
    if kind == "digits":
        tasks = _digit_tasks(seed, counts or SAMPLE_COUNTS, held_out)
    else:
        tasks = _turned_tasks(seed, counts or TURN_COUNTS, held_out, before=kind == "before")
    return tasks[::-1] if reverse else tasks


def _plain_scenes(seed: int, counts: Mapping[str, int], place: int = 0, **changes: Any) -> Pairs:
    """Scenes of all splits; those of another place are others. ``changes`` are of how they look."""
    starts = {"train": 0, "validation": counts["train"], "test": 0}
    stride = counts["train"] + counts["validation"]
    scene = PLAIN_SCENE.model_copy(update=changes)
    return scene_pairs(
        {
            part: digit_scenes(
                count,
                size=PLAIN_SIZE,
                digits=(1, 1),
                seed=seed,
                split="test" if part == "test" else "train",
                start=place * stride + starts[part],
                config=scene,
            )
            for part, count in counts.items()
        }
    )


def _digit_of(pairs: Pairs) -> np.ndarray:
    return np.array([next(word for word in text.split() if word in DIGITS) for text in pairs.captions])


def _turned_tasks(seed: int, counts: Mapping[str, int], held_out: int, *, before: bool) -> list[TaskPairs]:
    each = {part: count // len(TURNS) for part, count in counts.items()}
    first, classes = (len(TURNS), BEFORE) if before else (0, TURNED)
    tasks = []
    for place, degrees in enumerate(TURNS, first):
        name = f"turned {degrees}" if degrees else "upright"
        pairs = _plain_scenes(seed, each, place, turn=degrees, classes=classes, held_out=held_out)
        tasks.append(TaskPairs(name, replace(pairs, location=name), _digit_of(pairs)))
    return tasks


def _digit_tasks(seed: int, counts: Mapping[str, int], held_out: int) -> list[TaskPairs]:
    pairs = _plain_scenes(seed, counts, held_out=held_out)
    words = _digit_of(pairs)
    tasks = []
    for first in range(0, len(DIGITS), 2):
        both = DIGITS[first : first + 2]
        rows = np.flatnonzero(np.isin(words, both))
        tasks.append(TaskPairs(" and ".join(both), replace(pairs.take(rows), location=" and ".join(both)), words[rows]))
    return tasks


def _specs(path: Path) -> list[TaskSpec]:
    if not path.is_file():
        raise ConfigError(
            f"{path}: {'a folder' if path.is_dir() else 'no such file'}; give a YAML list of tasks, each with name and data, or "
            "p9d:FOLDER"
        )
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is no YAML ({' '.join(str(error).split())})") from error
    if isinstance(content, Mapping) and set(content) == {"tasks"}:
        content = content["tasks"]
    if not isinstance(content, list) or not content:
        raise ConfigError(f"{path}: a list of tasks is needed, each with name and data")
    specs = []
    for number, row in enumerate(content, 1):
        try:
            specs.append(TaskSpec.model_validate(row))
        except ValidationError as error:
            problem = error.errors()[0]
            field = ".".join(map(str, problem["loc"])) or "the row"
            known = f"; fields are {', '.join(TaskSpec.model_fields)}" if problem["type"] == "extra_forbidden" else ""
            raise ConfigError(f"{path}, task {number}: {field}: {problem['msg']}{known}") from error
    return specs


def _read_task(
    spec: TaskSpec,
    base: Path,
    captions: CaptionOptions,
    read: ReadOptions,
    split: SplitOptions,
    opened: dict[str, P9D],
) -> TaskPairs:
    if spec.data.startswith(_P9D):
        return _p9d_task(spec, base, captions, read, opened)
    place = _beside(base, spec.data)
    folder = None if spec.images is None else _beside(base, os.fspath(spec.images))
    try:
        pairs = open_pairs(
            place, images=folder, columns=spec.columns, captions=captions, read=read, split=spec.split or split
        )
    except DataError as error:
        raise DataError(f"task '{spec.name}': {error}") from error
    fields = _Fields(place, pairs, spec.columns) if spec.where or spec.category or _has_fields(pairs, place) else None
    if spec.where:
        assert fields is not None
        keep = np.ones(len(pairs), dtype=bool)
        for column, wanted in spec.where.items():
            values, allowed = fields.column(column), [wanted] if isinstance(wanted, str) else wanted
            keep &= np.isin(values, allowed)
            if not keep.any():
                raise DataError(
                    f"task '{spec.name}' has no pairs: {column} is nowhere {' or '.join(map(repr, allowed))} in {place}; it has "
                    f"{closest(allowed[0], sorted(set(values.tolist()))) if allowed else 'other values'}"
                )
        rows = np.flatnonzero(keep)
        pairs = replace(pairs.take(rows), location=f"{pairs.location} ({spec.name})")
        fields = fields.take(rows)
    column = spec.category or (_CATEGORY if fields is not None and fields.has(_CATEGORY) else None)
    if column is None or fields is None:
        return TaskPairs(spec.name, pairs, np.full(len(pairs), spec.name))
    return TaskPairs(spec.name, pairs, fields.column(column))


def _p9d_task(
    spec: TaskSpec, base: Path, captions: CaptionOptions, read: ReadOptions, opened: dict[str, P9D]
) -> TaskPairs:
    if set(spec.where) != {"industry"} or not isinstance(spec.where["industry"], str):
        raise ConfigError(f"task '{spec.name}': say which industry of P9D it is, as where: {{industry: {spec.name}}}")
    folder = _beside(base, spec.data.removeprefix(_P9D))
    data = opened.setdefault(folder, P9D(folder))
    domain = data.domain(spec.where["industry"], captions=captions, read=read)
    return TaskPairs(spec.name, domain.products.pairs, domain.products.classes, domain.queries, domain.gallery)


def _beside(base: Path, place: str) -> str:
    """A relative path as it is beside the list, where there is something; else as given."""
    beside = base / place
    return os.fspath(beside) if not os.path.isabs(place) and os.path.exists(beside) else os.path.expanduser(place)


def _has_fields(pairs: Pairs, place: str) -> bool:
    return isinstance(pairs.images, TarImages) or place.lower().endswith(_TABLES)


class _Fields:
    """The other columns of where pairs come from, by picture: of tables and of the notes beside pictures in a tar."""

    def __init__(self, place: str, pairs: Pairs, columns: ColumnOptions) -> None:
        self.place = place
        images = pairs.images
        if not isinstance(images, StoredImages) or not _has_fields(pairs, place):
            raise ConfigError(
                f"{place}: where and category need a table (.csv, .tsv, .jsonl, .parquet, .json) or a .tar with a .json beside "
                "each picture; divide other data into one source for each task"
            )
        self.records = self._by_picture(place, images, columns)
        self.keys = [self._key(images.key(row)) for row in range(len(images))]

    @staticmethod
    def _key(name: str) -> str:
        return os.path.splitext(name.removeprefix("./"))[0]

    def _by_picture(self, place: str, images: StoredImages, columns: ColumnOptions) -> dict[str, Mapping[str, Any]]:
        files = images.shards if isinstance(images, TarImages) else expand_braces(place)
        found: dict[str, Mapping[str, Any]] = {}
        for file in files:
            for number, record in enumerate(read_records(file)):
                found.setdefault(self._picture(record, columns, file, number), record.fields)
        return found

    def _picture(self, record: Record, columns: ColumnOptions, file: str, number: int) -> str:
        if record.picture is not None:
            return self._key(record.picture)
        role = roles_of(list(record.fields), columns.model_copy(update={"caption": None}), record.place).get("image")
        value = record.fields.get(str(role)) if role is not None else None
        return self._key(value) if isinstance(value, str) else f"{file}, {number}"

    def take(self, rows: np.ndarray) -> _Fields:
        """The same of these pictures."""
        taken = copy.copy(self)
        taken.keys = [self.keys[row] for row in rows.tolist()]
        return taken

    def has(self, column: str) -> bool:
        """Whether all pictures have this column."""
        return all(self.records.get(key, {}).get(column) not in (None, "") for key in self.keys)

    def column(self, name: str) -> np.ndarray:
        """(N,) texts.

        Raises:
            ConfigError: no picture has this column.
        """
        values = [self.records.get(key, {}).get(name) for key in self.keys]
        if all(value is None for value in values):
            names = list(dict.fromkeys(one for record in self.records.values() for one in record))
            raise ConfigError(f"{self.place}: no column {name!r}; it has {closest(name, names) or 'none'}")
        return np.array(["" if value is None else str(value) for value in values])
