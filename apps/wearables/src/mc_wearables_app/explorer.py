"""What the demo page asks: segments of people held out, their embeddings, what is near, and the map.

Legend: N segments, E width of the embedding, P participants.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from PIL import Image

from mc_core.cli import Status
from mc_core.errors import ConfigError, closest
from mc_core.optional import require
from mc_wearables.data.config import IngestOptions, read_options
from mc_wearables.data.opening import open_recordings
from mc_wearables.data.segmenter import segment_recordings
from mc_wearables.data.segments import Segments
from mc_wearables.embedding import embed_segments
from mc_wearables.features import detect_beats, heart_rate
from mc_wearables_app.figures import COLORS, plane
from mc_wearables_app.runs import Data, OpenedRun
from mc_wearables_app.signal_figures import Group, Row, embedding_map, signal_rows, signal_strips

PARTICIPANT = "participant"
"""What colours the map unless a label does."""
SHOWN = 2000
"""Segments at most: a map of more is a blot, and each click draws all of them."""
_NEIGHBOURS = 8
_PEOPLE = 12  # with a colour of their own, the picked one among them
_CLASSES = len(COLORS)
_UPLOADED = 5  # segments of an upload that are drawn
_LISTED = 200  # segments of an upload that are listed
_SAME, _OTHER = COLORS[0], "#777777"


@dataclass(frozen=True)
class Near:
    """A neighbour: its row, the cosine of the centred embeddings, and what it shares with the one asked about."""

    row: int
    similarity: float
    same_person: bool
    same_session: bool


@dataclass(frozen=True)
class Uploaded:
    """An upload: its segments, (N, E) embeddings, (P,) cosine to each person's mean, and (N,) nearest segments and cosines."""

    segments: Segments
    embeddings: np.ndarray
    people: np.ndarray
    nearest: np.ndarray
    similarity: np.ndarray
    seconds: float


class Explorer:
    """Segments of the people held out and their embeddings: what the page asks.

    Similarity is the cosine of embeddings from which the mean of all shown here is taken: without that, embeddings share a
    direction and all look alike.

    Args:
        opened: run or saved encoder.
        data: its ``test`` is shown; beyond ``limit`` segments an even choice of them.
        limit: segments.

    Attributes:
        segments: N of them.
        embeddings: (N, E).
        labels: names of labels that are known for some segment.
    """

    def __init__(self, opened: OpenedRun, data: Data, *, limit: int = SHOWN) -> None:
        self.opened, self.data = opened, data
        test = data.test
        chosen = np.unique(np.linspace(0, len(test) - 1, min(limit, len(test))).round().astype(np.int64))
        self.segments = test.where(chosen)
        with Status(f"embedding {len(self.segments):,} segments"):
            self.embeddings = embed_segments(opened.encoder, self.segments).values
        self._centre = self.embeddings.mean(axis=0)
        self._unit = self._directions(self.embeddings)
        self.people, self._person = np.unique(self.segments.participant, return_inverse=True)
        self._names = short_names([self.segments.participant_keys[code] for code in self.people])
        self._number = _places(self._person)
        self._session = _places_of_values(self._person, self.segments.session)
        self._means = np.stack([self._unit[self._person == person].mean(axis=0) for person in range(len(self.people))])
        self._means /= np.maximum(np.linalg.norm(self._means, axis=1, keepdims=True), 1e-12)
        self.labels = [name for name, column in self.segments.labels.items() if np.isfinite(column).any()]
        self._scores, self._channels = _of_store(data, chosen)
        self._planes: dict[str, np.ndarray] = {"PCA": plane(self.embeddings)}
        self._lock = threading.Lock()

    def _directions(self, values: np.ndarray) -> np.ndarray:
        centred = values - self._centre
        return centred / np.maximum(np.linalg.norm(centred, axis=1, keepdims=True), 1e-12)

    def name(self, row: int) -> str:
        """The short name of a segment's person."""
        return self._names[self._person[row]]

    def check_label(self, label: str) -> None:
        """Raise ConfigError when nobody shown here has this label."""
        if label not in self.labels:
            meant = f"did you mean {closest(label, self.labels)}?" if self.labels else "they have none"
            raise ConfigError(f"--label {label}: the people held out of {self.data.name} have no such label; {meant}")

    def persons(self) -> list[tuple[str, int]]:
        """(text, first row) of each person."""
        first = np.unique(self._person, return_index=True)[1]
        counts = np.bincount(self._person)
        return [
            (f"{name} ({count} segment{'s' if count > 1 else ''})", int(row))
            for name, count, row in zip(self._names, counts, first, strict=True)
        ]

    def first_of(self, row: int) -> int:
        """The first row of the same person."""
        return int(np.argmax(self._person == self._person[row]))

    def pieces(self, row: int) -> list[tuple[str, int]]:
        """(text, row) of all segments of the same person."""
        mine = np.flatnonzero(self._person == self._person[row])
        return [(self._piece(int(i)), int(i)) for i in mine]

    def _piece(self, row: int) -> str:
        quality = self.segments.quality[row]
        assessed = f" · quality {quality:.2f}" if np.isfinite(quality) else ""
        return f"#{self._number[row] + 1} · session {self._session[row] + 1}{assessed}"

    def signal_picture(self, row: int, beats: np.ndarray | None) -> Image.Image:
        """All channels, with beats marked at their seconds."""
        segments = self.segments
        return signal_strips(
            segments.rows([row])[0].numpy(),
            segments.sampling_rate,
            segments.kind,
            beats=beats,
            channels=self._channels[row] if self._channels else (),
        )

    def beats(self, row: int) -> tuple[np.ndarray, float]:
        """Seconds of the beats, and beats per minute (NaN with fewer than four)."""
        one = self.segments.where(np.array([row]))
        found = detect_beats(one)
        return found.of(0), float(heart_rate(one, beats=found).values[0, 0])

    def facts(self, row: int) -> str:
        """Markdown: quality and its parts where the store has them, and what is known of the segment."""
        lines = ["Quality: not assessed, these segments come from no store."]
        if self._scores:
            score = {name: float(column[row]) for name, column in self._scores.items()}
            cells = [f"**{score['quality']:.2f}**", f"{score['template']:.2f}", f"{score['agreement']:.2f}"]
            cells.append(f"{score['rate']:.0f} / min" if np.isfinite(score["rate"]) else "none")
            cells += [f"{100 * score['flat']:.1f} %", f"{100 * score['clipped']:.1f} %"]
            lines = [
                "| quality | beats like their mean | detectors agree | rate, when ingested | flat | clipped |",
                "|---|---|---|---|---|---|",
                f"| {' | '.join(cells)} |",
            ]
        known = [f"{name} **{self._told(name, row)}**" for name in self.labels if np.isfinite(self._value(name, row))]
        return "\n".join([*lines, "", " · ".join(known)])

    def _value(self, label: str, row: int) -> float:
        return float(self.segments.labels[label][row])

    def _told(self, label: str, row: int) -> str:
        classes = self._classes(label)
        value = self._value(label, row)
        return classes[int(value)] if classes else f"{value:.4g}"

    def _classes(self, label: str) -> tuple[str, ...]:
        return self.data.store.label_classes(label) if self.data.store is not None else ()

    def neighbours(self, row: int, *, count: int = _NEIGHBOURS, others: bool = False) -> list[Near]:
        """The most similar segments, best first, without itself.

        Args:
            row: the one asked about.
            count: at most.
            others: leave out segments of the same person.
        """
        similarity = self._unit @ self._unit[row]
        allowed = self._person != self._person[row] if others else np.arange(len(similarity)) != row
        order = np.argsort(-similarity, kind="stable")
        best = order[allowed[order]][:count]
        return [
            Near(
                int(i),
                float(similarity[i]),
                bool(self._person[i] == self._person[row]),
                bool(self._person[i] == self._person[row] and self.segments.session[i] == self.segments.session[row]),
            )
            for i in best
        ]

    def neighbour_picture(self, row: int, near: list[Near]) -> Image.Image:
        """The segment itself, and its neighbours below."""
        signals = self.segments.rows([row, *(n.row for n in near)]).numpy()
        rows = [Row(signals[0], "picked", f"{self.name(row)} #{self._number[row] + 1}")]
        for n, signal in zip(near, signals[1:], strict=True):
            whose = "same session" if n.same_session else "same person" if n.same_person else self.name(n.row)
            color = _SAME if n.same_person else _OTHER
            rows.append(Row(signal, f"{n.similarity:.3f}", f"{whose} #{self._number[n.row] + 1}", color))
        return signal_rows(rows, self.segments.sampling_rate, self.segments.kind)

    def neighbour_line(self, row: int, near: list[Near]) -> str:
        """How many neighbours are of the same person, beside chance."""
        if not near:
            return "There are no others."
        own = np.count_nonzero(self._person == self._person[row]) - 1
        found, close = sum(n.same_person for n in near), sum(n.same_session for n in near)
        chance = len(near) * own / max(1, len(self.segments) - 1)
        verb = "is" if found == 1 else "are"
        sitting = f", {close} of the same session" if close else ""
        return (
            f"**{found} of the {len(near)} nearest {verb} of the same person**{sitting}; by chance it would be {chance:.2g}. "
            "Click on a signal to pick it."
        )

    def plane(self, method: str) -> np.ndarray:
        """(N, 2) by ``"PCA"`` or ``"UMAP"``, computed once.

        Raises:
            MissingDependencyError: umap-learn is not installed.
        """
        with self._lock:
            if method not in self._planes:
                umap = require("umap", extra="umap-learn", purpose="draw this map")
                near = min(15, len(self._unit) - 1)
                made = umap.UMAP(n_neighbors=near, metric="cosine", random_state=0, n_jobs=1)
                self._planes[method] = np.asarray(made.fit_transform(self._unit), dtype=np.float64)
            return self._planes[method]

    def map_picture(self, row: int, color: str, method: str) -> Image.Image:
        """All embeddings in two dimensions, coloured by participant or by a label, ``row`` in a ring."""
        names = ("first principal component", "second") if method == "PCA" else ("UMAP", "")
        return embedding_map(self.plane(method), self._coloring(row, color), picked=row, title=color, names=names)

    def _coloring(self, row: int, color: str) -> list[Group] | np.ndarray:
        if color == PARTICIPANT:
            mine = self._person[row]
            others = [person for person in range(len(self.people)) if person != mine][: _PEOPLE - 1]
            # the picked person is black in every picture, whoever it is
            hues = (COLORS[-1], *(COLORS[i % (_CLASSES - 1)] for i in range(len(others))))
            marks = ("o", *("o^"[i // (_CLASSES - 1) % 2] for i in range(len(others))))
            return [
                Group(self._person == person, self._names[person], hue, mark)
                for person, hue, mark in zip((mine, *others), hues, marks, strict=True)
            ]
        values = self.segments.labels[color]
        present, counts = np.unique(values[np.isfinite(values)], return_counts=True)
        classes = self._classes(color)
        if not classes and len(present) > 2 and not (len(present) <= _CLASSES and (present % 1 == 0).all()):
            return values
        commonest = np.sort(present[np.argsort(-counts, kind="stable")[: _CLASSES - 1]])
        return [
            Group(values == value, classes[int(value)] if classes else f"{value:g}", hue)
            for value, hue in zip(commonest, COLORS, strict=False)
        ]

    def upload(self, path: str, rate: float | None, units: str, channels: str) -> Uploaded:
        """Cut and embed a file as the run's own segments were, and look for what is near.

        Args:
            path: of the file.
            rate: Hz; needed where the file does not say.
            units: of an ECG; needed where the file does not say.
            channels: names or numbers, separated by commas; empty: the usual ones.

        Raises:
            DataError: it cannot be read, or not one segment comes out.
            ConfigError: rate, units or channels have to be told.
        """
        kind = self.segments.kind
        read = read_options(
            signal=kind,
            fs=rate,
            units=units.strip() or ("any" if kind == "ppg" else None),
            channels=tuple(part.strip() for part in channels.split(",") if part.strip()),
            participant="uploaded",
            labels=(),
        )
        cut: dict[str, Any] = dict(self.data.store.manifest["geometry"]) if self.data.store is not None else {}
        same = {"seconds": self.segments.duration, "rate": self.segments.sampling_rate}
        options = IngestOptions.model_validate(cut | read.model_dump() | same)
        # beginning at zero, so that a segment's start is its place in the recording
        recordings = [replace(found, start=0.0) for found in open_recordings(path, signal=kind, options=options)]
        segments = segment_recordings(recordings, options)
        embeddings = embed_segments(self.opened.encoder, segments).values
        unit = self._directions(embeddings)
        similarity = unit @ self._unit.T
        nearest = similarity.argmax(axis=1)
        whole = unit.mean(axis=0)
        return Uploaded(
            segments,
            embeddings,
            self._means @ (whole / max(float(np.linalg.norm(whole)), 1e-12)),
            nearest,
            similarity[np.arange(len(nearest)), nearest],
            sum(recording.seconds for recording in recordings),
        )

    def upload_people(self, found: Uploaded) -> list[list[Any]]:
        """Rows of person, cosine to the mean of their embeddings, and how many of the segments have their nearest there."""
        votes = np.bincount(self._person[found.nearest], minlength=len(self.people))
        best = np.argsort(-found.people, kind="stable")[:_NEIGHBOURS]
        return [[self._names[person], f"{found.people[person]:.3f}", int(votes[person])] for person in best]

    def upload_segments(self, found: Uploaded) -> list[list[Any]]:
        """Rows of number, second in the recording, quality, nearest segment and its cosine."""
        return [
            [i + 1, f"{start:.1f}", f"{quality:.2f}", f"{self.name(row)} #{self._number[row] + 1}", f"{cosine:.3f}"]
            for i, (start, quality, row, cosine) in enumerate(
                zip(found.segments.start, found.segments.quality, found.nearest, found.similarity, strict=True)
            )
        ][:_LISTED]

    def upload_picture(self, found: Uploaded) -> Image.Image:
        """The first segments, and below each the nearest one."""
        count = min(_UPLOADED, len(found.segments))
        uploaded = found.segments.rows(range(count)).numpy()
        near = self.segments.rows(found.nearest[:count]).numpy()
        rows = []
        for i in range(count):
            row = int(found.nearest[i])
            rows.append(Row(uploaded[i], f"yours #{i + 1}", f"at {found.segments.start[i]:.0f} s"))
            note = f"{self.name(row)} #{self._number[row] + 1}"
            rows.append(Row(near[i], f"{found.similarity[i]:.3f}", note, _SAME))
        return signal_rows(rows, self.segments.sampling_rate, self.segments.kind)


def short_names(keys: list[str]) -> list[str]:
    """The ends of the keys, as long as it takes to tell them apart, and at least six characters.

    >>> short_names(["028341f676e3f142", "76ea653e95a3aa25"]), short_names(["simulated-test-00001"])
    (['e3f142', 'a3aa25'], ['00001'])
    """
    length = next((n for n in range(6, 64) if len({key[-n:] for key in keys}) == len(keys)), 64)
    return [key[-length:].lstrip("-") for key in keys]


def _places(codes: np.ndarray) -> np.ndarray:
    """(N,) the how-manieth row of its code each row is, from 0."""
    order = np.argsort(codes, kind="stable")
    ordered = codes[order]
    first = np.searchsorted(ordered, ordered)
    places = np.empty(len(codes), dtype=np.int64)
    places[order] = np.arange(len(codes)) - first
    return places


def _places_of_values(codes: np.ndarray, values: np.ndarray) -> np.ndarray:
    """(N,) the how-manieth distinct value of its code each row has, from 0."""
    pairs, inverse = np.unique(np.stack([codes, values], axis=1), axis=0, return_inverse=True)
    return _places(pairs[:, 0])[inverse.reshape(-1)]


def _of_store(data: Data, chosen: np.ndarray) -> tuple[dict[str, np.ndarray], list[tuple[str, ...]]]:
    """Scores and channel names of the rows ``chosen`` of ``data.test``; empty without a store."""
    if data.store is None:
        return {}, []
    table, whole = data.store.metadata, data.store.segments()
    rows = np.flatnonzero(np.isin(whole.participant, np.unique(data.test.participant)))[chosen]
    names = ("quality", "template", "agreement", "rate", "flat", "clipped")
    scores = {name: np.asarray(table[name].to_numpy(), dtype=np.float64)[rows] for name in names}
    return scores, [tuple((text or "").split(",")) for text in table["channels"].take(rows).to_pylist()]
