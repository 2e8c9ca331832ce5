"""Real recordings, read as they are: who is it, how old, which sex, which rhythm, for people whom training did not see.

Every seed is another split of the people, and other weights and pairs. The recipes are the laptop's with its number of steps, and
nothing was chosen by looking at people held out.
"""

from __future__ import annotations

import os
import tarfile
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np

from mc_benchmarks.claims import Scores, kept, mean_and_spread, over_seeds, trained_on_segments, value
from mc_benchmarks.contract import Report, Row
from mc_benchmarks.wearables_cohort import CLASSICAL, RATE, UNTRAINED, WHO, Sides, baselines, for_identity
from mc_benchmarks.wearables_common import wearables_environment
from mc_core.errors import DataError
from mc_core.random import derive_seed
from mc_core.recipes import merge
from mc_wearables import (
    Features,
    IngestOptions,
    Segments,
    SegmentStore,
    SignalEncoder,
    embed_segments,
    ingest,
    reidentification,
    resolve_recipe,
)
from mc_wearables.evaluation.comparison import HEADLINE
from mc_wearables.evaluation.probes import Level, probe

TRAINED = "trained on other people"
ONE = "who is it from 1 segment each"
AGE, SEX, FIBRILLATION = "age R², person", "sex AUROC, person", "fibrillation AUROC"
COLUMNS = (WHO, ONE, AGE, SEX, FIBRILLATION)
HELD_OUT = 0.4
"""Share of the people."""
_SPLIT_STREAM = 0x5911
_ONE_DRAWS = 20
_LEAST_TRAINED = 8  # people
_WARMUP_STEPS = 10  # about an epoch of the simulated cohort that the recipes were made for


@dataclass(frozen=True)
class Study:
    """A set of recordings, and what is asked of it.

    Attributes:
        name: of its rows.
        file: below the folder of data.
        options: of ingest.
        raw_ids: lists the participants as the files name them, from the file or the unpacked folder.
        targets: column → label and level.
        halves: what re-identification keeps whole.
        rhythm: texts of ``label`` for (sinus, fibrillation), to become a label of 0 and 1.
        identify: whether people have several recordings.
    """

    name: str
    file: str
    options: IngestOptions
    raw_ids: Callable[[Path], Iterable[str]]
    targets: Mapping[str, tuple[str, Level]]
    halves: Literal["segment", "session"] = "segment"
    rhythm: tuple[str, str] | None = None
    identify: bool = True


def _of_npz(path: Path) -> list[str]:
    with np.load(path) as arrays:
        return [str(name) for name in np.unique(arrays["participant"])]


def _of_parquet(path: Path) -> list[str]:
    import pyarrow.parquet as pq

    return [str(name) for name in pq.read_table(path, columns=["record"])["record"].to_pylist()]


ECG_ID = Study(
    "ECG-ID",
    "ecg-id-wfdb.tar.gz",
    IngestOptions(signal="ecg", seconds=10, rate=64),
    lambda folder: (path.name for path in folder.iterdir() if path.is_dir()),
    {AGE: ("age", "participant"), SEX: ("sex", "participant")},
    halves="session",
)
PPG = Study(
    "PPG arrhythmia",
    "ppg-arrhythmia.npz",
    IngestOptions(signal="ppg", seconds=10, rate=32, units="counts"),
    _of_npz,
    {FIBRILLATION: ("fibrillation", "segment")},
    rhythm=("sinus rhythm", "atrial fibrillation"),
)
CINC = Study(
    "CinC 2017, encoder of ECG-ID",
    "cinc2017-af.parquet",
    IngestOptions(signal="ecg", seconds=10, rate=64, units="1000/mV", participant_from="column:record"),
    _of_parquet,
    {FIBRILLATION: ("fibrillation", "participant")},
    rhythm=("N", "A"),
    identify=False,
)


def run_wearables_real(
    *, data: str | None, seeds: int, keep: Path, steps: int | None = None, cinc: bool = True, draws: int = 1000
) -> Report:
    """Measure, save, show.

    Args:
        data: folder that holds ``wearables/``. Default: ``$MC_DATA``.
        seeds: splits, weights and pairs.
        keep: where finished runs are kept.
        steps: optimizer steps; default: the recipe's.
        cinc: also read the rhythm of the CinC records with the encoder of ECG-ID.
        draws: resamples for intervals, which are not shown.
    """
    root = Path(data or os.environ.get("MC_DATA", "")) / "wearables"
    studies = [ECG_ID, PPG, *([CINC] if cinc else [])]
    for study in studies:
        if not (root / study.file).exists():
            raise DataError(f"{root / study.file} is not there; name the folder that holds wearables/ with --data")
    with tempfile.TemporaryDirectory() as work:
        stores = {study.name: cache(lambda s=study: read_study(s, root, Path(work))) for study in studies}
        runs: list[Scores] = []
        for seed in range(seeds):
            for study in (ECG_ID, PPG):
                others = [CINC] if cinc and study is ECG_ID else []
                recipe = _recipe(study, seed, steps)
                settings = {
                    **recipe.model_dump(mode="json"),
                    "studies": [s.options.model_dump(mode="json") for s in (study, *others)],
                    "bytes": [(root / s.file).stat().st_size for s in (study, *others)],
                    "held out": HELD_OUT,
                    "warm-up steps": _WARMUP_STEPS,
                    "draws": draws,
                }

                def job(study: Study = study, others: Sequence[Study] = others, seed: int = seed) -> Scores:
                    tables = [(s, stores[s.name]()) for s in (study, *others)]
                    return _one_run(tables, seed, steps, draws)

                runs.append(kept(keep / "wearables-real", f"{study.name.split()[0].lower()}-{seed}", settings, job))
    return _report(runs, studies, seeds, steps)


def read_study(study: Study, root: Path, work: Path) -> Segments:
    """Ingested, with people and sessions numbered in the order of their names and files: a store's own order is salted."""
    source = root / study.file
    if source.name.endswith(".tar.gz"):
        folder = work / study.name
        with tarfile.open(source) as archive:
            archive.extractall(folder, filter="data")
        source = folder
    out = work / f"{study.name} store"
    ingest(source, out, study.options)
    store = SegmentStore.open(out)
    segments = store.segments()
    names = sorted(set(study.raw_ids(source)))
    code = store.participant_codes(names)
    names = [name for name, position in zip(names, code, strict=True) if position >= 0]
    place = np.full(len(segments.participant_keys), -1)
    place[code[code >= 0]] = np.arange(len(names))
    participant = place[segments.participant]
    if (participant < 0).any():
        raise DataError(f"{study.file}: {(participant < 0).sum()} segments are of people that its files do not name")
    _, first, session = np.unique(segments.session, return_index=True, return_inverse=True)
    labels = {name: column for name, column in segments.labels.items() if name in ("age", "sex")}
    if study.rhythm:
        classes = store.label_classes("label")
        kind = segments.labels["label"]
        sinus, fibrillation = (kind == classes.index(text) for text in study.rhythm)
        labels["fibrillation"] = np.where(fibrillation, 1.0, np.where(sinus, 0.0, np.nan))
    return replace(
        segments,
        signals=np.array(segments.signals),  # the store is temporary
        participant=participant,
        participant_keys=tuple(names),
        session=np.argsort(np.argsort(first))[session],
        labels=labels,
    )


def _recipe(study: Study, seed: int, steps: int | None, people: int | None = None) -> Any:
    """The laptop recipe in the shape of the data; a batch holds at most as many pairs as there are people."""
    options = study.options
    changes: dict[str, Any] = {
        "method": {
            "encoder": {"channels": 1, "sampling_rate": options.segment_rate, "seconds": options.segment_seconds}
        },
        "fit": {"seed": seed, "device": "cpu", "workers": 0, "stop_on_collapse": False},
    }
    if steps:
        changes = merge(changes, {"fit": {"steps": steps}})
    name = f"ahms-{options.signal}-laptop"
    if people is not None:
        batch = min(people, resolve_recipe(name).fit.batch_size)
        # an epoch is one batch of all people
        changes = merge(changes, {"fit": {"batch_size": batch, "warmup_epochs": _WARMUP_STEPS}})
    return resolve_recipe(name, changes)


def _one_run(tables: Sequence[tuple[Study, Segments]], seed: int, steps: int | None, draws: int) -> Scores:
    """Train on the first table's people, and measure people held out of every table."""
    (study, segments), *_ = tables
    train, _ = split_people(segments, seed)
    people = int((np.bincount(train.participant) > 1).sum())
    if people < _LEAST_TRAINED:
        raise DataError(f"{study.name}: {people} people to train on, at least {_LEAST_TRAINED} are needed")
    with tempfile.TemporaryDirectory() as folder:
        encoder = trained_on_segments(_recipe(study, seed, steps, people), train, Path(folder) / "run")
    scores: Scores = {}
    for study, segments in tables:
        for name, sides in _features(encoder, *split_people(segments, seed), calibration=train, seed=seed).items():
            scores[f"{study.name}: {name}"] = _scores(study, name, *sides, seed=seed, draws=draws)
    return scores


def split_people(segments: Segments, seed: int) -> tuple[Segments, Segments]:
    """Training people and those held out, in exact numbers: shares by hash, met on average, leave 13 or 26 of 39 to train on."""
    people = len(segments.participant_keys)
    order = np.random.Generator(np.random.Philox(derive_seed(seed, _SPLIT_STREAM))).permutation(people)
    cut = round((1 - HELD_OUT) * people)
    return segments.of_participants(order[:cut]), segments.of_participants(order[cut:])


def _features(
    encoder: SignalEncoder, train: Segments, test: Segments, *, calibration: Segments, seed: int
) -> dict[str, Sides]:
    found = {TRAINED: (embed_segments(encoder, train), embed_segments(encoder, test))}
    return found | baselines(encoder, train, test, calibration=calibration, seed=seed)


def _scores(study: Study, name: str, train: Features, test: Features, *, seed: int, draws: int) -> dict[str, float]:
    found: dict[str, float] = {}
    if study.identify:
        view = for_identity(name, train, test)
        found[WHO] = reidentification(view, halves=study.halves, draws=draws, seed=seed)[0].value
        found[ONE] = float(
            np.mean([one_each(view, halves=study.halves, seed=derive_seed(seed, i)) for i in range(_ONE_DRAWS)])
        )
    for column, (label, level) in study.targets.items():
        result = probe(train, test, label, level=level, draws=draws, seed=seed)
        found[column] = result.metrics[HEADLINE[result.task]].value
    return found


def one_each(features: Features, *, halves: Literal["segment", "session"], seed: int) -> float:
    """Re-identification when a half is a single segment, drawn for everybody (from two sessions, where halves are sessions)."""
    order = np.random.Generator(np.random.Philox(seed)).permutation(len(features))
    unit = features.session if halves == "session" else np.arange(len(features))
    _, first = np.unique(np.stack([features.participant, unit])[:, order], axis=1, return_index=True)
    rows = order[np.sort(first)]  # one of every unit, in random order
    place = np.argsort(features.participant[rows], kind="stable")
    person = features.participant[rows][place]
    begin = np.flatnonzero(np.diff(person, prepend=-1))
    rank = np.arange(len(person)) - np.repeat(begin, np.diff(begin, append=len(person)))
    return reidentification(features.where(rows[place][rank < 2]), halves=halves, draws=1, seed=seed)[0].value


def _report(runs: Sequence[Scores], studies: Sequence[Study], seeds: int, steps: int | None) -> Report:
    rows = over_seeds(runs)
    rows = [
        next(r for r in rows if r.name == f"{s.name}: {n}")
        for s in studies
        for n in (TRAINED, UNTRAINED, RATE, CLASSICAL)
    ]
    report = Report(
        benchmark="wearables_real",
        command="uv run mc-benchmark wearables-real",
        question=f"Real recordings, segments of 10 s, {100 * HELD_OUT:.0f} % of people held out: mean ± sd over {seeds} splits",
        settings={
            "seeds": seeds,
            "steps": steps,
            "held out": HELD_OUT,
            "warm-up steps": _WARMUP_STEPS,
            "runs": list(runs),
        },
        environment=wearables_environment(),
        columns=list(COLUMNS),
        rows=[
            Row(name=row.name, values={c: row.values.get(c) for c in COLUMNS if c in row.values})
            for row in mean_and_spread(rows)
        ],
        reading=" ".join(_directions(rows, study) for study in studies)
        + " Who is it: halves of a person find each other among all held out, of ECG-ID by whole recordings. Fibrillation against "
        "sinus rhythm: a segment of PPG, a whole record of CinC. Few people: age and sex say little.",
    )
    report.save()
    report.show()
    return report


def _directions(rows: Sequence[Row], study: Study) -> str:
    """Where the trained encoder is ahead in the mean."""
    columns = [*((WHO, ONE) if study.identify else ()), *study.targets]
    parts = []
    for other in (UNTRAINED, RATE, CLASSICAL):
        ahead = [
            c for c in columns if value(rows, f"{study.name}: {TRAINED}", c) > value(rows, f"{study.name}: {other}", c)
        ]
        parts.append(f"the {other} on {len(ahead)} of {len(columns)}" + (f" ({', '.join(ahead)})" if ahead else ""))
    return f"{study.name}: ahead of {'; '.join(parts)}."
