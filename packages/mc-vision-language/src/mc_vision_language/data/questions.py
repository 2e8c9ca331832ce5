"""Questions about pictures with the answers that people gave: VQA, Visual Genome, DAQUAR, one's own tables, digit scenes."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from mc_core.errors import DataError
from mc_core.files import read_json
from mc_vision_language.data.options import ReadOptions
from mc_vision_language.data.records import Record, field, need, read_records, text_list, understood
from mc_vision_language.data.task_rows import Pictures, TaskRows, split_name
from mc_vision_language.evaluation.answers import normalise_answer

GENOME_WEIGHT = 0.5  # of the single answer of Visual Genome, as in the official recipe


@dataclass(frozen=True)
class Questions(TaskRows):
    """Questions with answers; see :class:`~mc_vision_language.data.task_rows.TaskRows`.

    Attributes:
        texts: M questions as written.
        answers: M lists of answers as given, one for each person asked; empty where none are known.
        kinds: M kinds of question, empty where not said.
        weights: (M,) of a question in training, which its answers share.
        ids: M names of the questions, for files of results.
    """

    texts: tuple[str, ...]
    answers: tuple[tuple[str, ...], ...]
    kinds: tuple[str, ...]
    weights: np.ndarray
    ids: tuple[str, ...]

    columns: ClassVar[tuple[str, ...]] = ("texts", "answers", "kinds", "weights", "ids")

    def answered(self) -> Questions:
        """Those with at least one answer.

        Raises:
            DataError: none has.
        """
        rows = [row for row, given in enumerate(self.answers) if given]
        if not rows:
            raise DataError("no question has an answer: give the file of annotations too")
        return self if len(rows) == len(self) else self.take(rows)


@dataclass(frozen=True)
class _Question:
    record: Record
    images: tuple[str, ...]
    text: str
    answers: tuple[str, ...]
    kind: str = ""
    split: str = ""
    weight: float = 1.0
    id: str = ""


def open_questions(
    source: str | os.PathLike[str],
    *,
    images: str | os.PathLike[str] | None = None,
    annotations: str | os.PathLike[str] | None = None,
    read: ReadOptions = ReadOptions(),  # noqa: B008 - frozen
    split: str = "",
) -> Questions:
    """Questions from any layout understood.

    - VQA v2: the file of questions, and beside it, or as ``annotations``, that of the answers;
    - Visual Genome: ``question_answers.json``;
    - a tar of pictures with a list ``qa`` in the JSON beside each, such as DAQUAR;
    - a table (CSV, TSV, JSON, JSON lines, Parquet) with ``image``, ``question`` and ``answer`` or ``answers``; several are a
      list, or have ``|`` between them. ALBEF's own lists are of this kind.

    Args:
        source: the file.
        images: folder of the pictures; default: that of the file.
        annotations: of VQA v2.
        read: how many pictures may be missing.
        split: of rows that do not say theirs.

    Raises:
        DataError: a file that cannot be read or lacks a field, or more missing pictures than allowed.
    """
    source = Path(source)
    records = read_records(source, keys=("questions",))
    first = records[0].fields
    if records[0].picture is not None:
        found: Iterator[_Question] = _of_notes(records)
    elif "qas" in first:
        found = _of_genome(records)
    elif "question_id" in first and "image_id" in first and "image" not in first:
        found = _of_vqa(source, records, None if annotations is None else Path(annotations))
    else:
        found = _of_table(records)
    pictures = Pictures(
        Path(images) if images is not None else source if records[0].picture else source.parent, str(source), read
    )
    kept: list[_Question] = []
    rows: list[int] = []
    for one in found:
        row = pictures.row(*one.images)
        if not one.text:
            pictures.drop("empty question", one.record, "the question is empty")
        elif row is None:
            pictures.drop("missing image", one.record, f"there is no {pictures.root / one.images[0]}")
        else:
            kept.append(one)
            rows.append(row)
    image_set, image_ids = pictures.finished(len(kept))
    return Questions(
        image_set,
        image_ids,
        np.array(rows, dtype=np.int64),
        np.array([split_name(one.split or split) for one in kept]),
        pictures.dropped,
        pictures.examples,
        tuple(one.text for one in kept),
        tuple(one.answers for one in kept),
        tuple(one.kind for one in kept),
        np.array([one.weight for one in kept]),
        tuple(one.id or str(number) for number, one in enumerate(kept)),
    )


def _of_vqa(source: Path, records: Sequence[Record], annotations: Path | None) -> Iterator[_Question]:
    if annotations is None:
        beside = source.with_name(source.name.replace("OpenEnded_", "").replace("questions", "annotations"))
        annotations = beside if beside != source and beside.is_file() else None
    given: dict[Any, Record] = {}
    if annotations is not None:
        given = {need(one, "question_id"): one for one in read_records(annotations, keys=("annotations",))}
    content = read_json(source) if source.suffix == ".json" else {}
    part = str(content.get("data_subtype", "")) if isinstance(content, dict) else ""
    for record in records:
        with understood(record.place):
            number, name = int(need(record, "image_id")), need(record, "question_id")
        answer = given.get(name)
        if given and answer is None:
            raise DataError(
                f"{record.place}: question {name} has no entry in {annotations}; do the two files belong together?"
            )
        texts: tuple[str, ...] = ()
        if answer is not None:
            with understood(answer.place):
                texts = tuple(str(one["answer"]) for one in answer.fields.get("answers", []))
        file = f"COCO_{part}_{number:012d}.jpg"
        yield _Question(
            record,
            (file, f"{part}/{file}", f"{number:012d}.jpg", f"{part}/{number:012d}.jpg"),
            str(field(record, "question") or "").strip(),
            texts,
            "" if answer is None else str(answer.fields.get("question_type", "")),
            part.split("-")[0],
            id=str(name),
        )


def _of_genome(records: Sequence[Record]) -> Iterator[_Question]:
    for record in records:
        with understood(record.place):
            for one in record.fields["qas"]:
                file = f"{one.get('image_id', record.fields.get('id'))}.jpg"
                answer = str(one.get("answer", "")).strip()
                yield _Question(
                    record,
                    (file, f"VG_100K/{file}", f"VG_100K_2/{file}"),
                    str(one.get("question", "")).strip(),
                    (answer,) if answer else (),
                    weight=GENOME_WEIGHT,
                    id=str(one.get("qa_id", "")),
                )


def _of_notes(records: Sequence[Record]) -> Iterator[_Question]:
    for record in records:
        with understood(record.place):
            for number, one in enumerate(need(record, "qa", "questions")):
                answers = one.get("answers", one.get("answer", []))
                yield _Question(
                    record,
                    (str(record.picture),),
                    str(one.get("question", "")).strip(),
                    tuple(_spoken(answer) for answer in text_list(answers)),
                    split=str(record.fields.get("split", "")),
                    id=f"{record.picture}#{number}",
                )


def _of_table(records: Sequence[Record]) -> Iterator[_Question]:
    for record in records:
        genome = str(record.fields.get("dataset", "")) == "vg"
        yield _Question(
            record,
            (str(need(record, "image", "image_path", "path", "file")),),
            str(field(record, "question", "text") or "").strip(),
            tuple(text_list(field(record, "answers", "answer") or [])),
            str(field(record, "kind", "question_type") or ""),
            str(field(record, "split") or ""),
            GENOME_WEIGHT if genome else 1.0,
            str(field(record, "question_id", "id") or ""),
        )


def _spoken(answer: str) -> str:
    """DAQUAR writes ``coffee_table``."""
    return answer.replace("_", " ")


@dataclass(frozen=True)
class AnswerList:
    """What can be answered, each once and normalised, as answers are compared.

    Raises:
        DataError: none.

    >>> AnswerList.of([["Yes."], ["no"], ["yes", "a cat"]], most=2).answers
    ('yes', 'cat')
    """

    answers: tuple[str, ...]

    def __post_init__(self) -> None:
        known = tuple(dict.fromkeys(one for one in map(normalise_answer, self.answers) if one))
        if not known:
            raise DataError("the list holds no answers to choose from")
        object.__setattr__(self, "answers", known)

    def __len__(self) -> int:
        return len(self.answers)

    @classmethod
    def of(cls, answers: Sequence[Sequence[str]], most: int) -> AnswerList:
        """The most frequent answers, at most so many; a tie is decided by the alphabet.

        Raises:
            DataError: no answers.
        """
        counts = Counter(one for given in answers for one in map(normalise_answer, given) if one)
        if not counts:
            raise DataError("the training questions have no answers, so there is no list to choose from")
        return cls(tuple(sorted(counts, key=lambda answer: (-counts[answer], answer))[:most]))

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> AnswerList:
        """A list that was written down: a JSON list, or a text file with one answer on each line.

        Raises:
            DataError: missing, empty, or something else.
        """
        path = Path(path)
        if path.suffix == ".json":
            content = read_json(path)
            if not isinstance(content, list):
                raise DataError(f"{path}: a JSON list of answers is needed, this is a {type(content).__name__}")
            lines = [str(one) for one in content]
        else:
            try:
                lines = path.read_text(encoding="utf-8").splitlines()
            except (OSError, UnicodeDecodeError) as error:
                raise DataError(f"{path}: cannot be read as a list of answers ({error})") from error
        if not any(map(normalise_answer, lines)):
            raise DataError(f"{path} holds no answers")
        return cls(tuple(lines))

    def reachable(self, answers: Sequence[Sequence[str]]) -> np.ndarray:
        """(M,) bool: whether a question has an answer that is in the list."""
        known = set(self.answers)
        return np.array([any(normalise_answer(one) in known for one in given) for given in answers], dtype=bool)
