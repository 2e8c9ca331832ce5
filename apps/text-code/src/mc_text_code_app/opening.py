"""Opening what the commands work on: encoders and files of sentences, and splitting off what is held out."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mc_core.cli import Status
from mc_core.errors import ConfigError, DataError
from mc_core.files import read_jsonl, write_atomic
from mc_core.runs import pick_device
from mc_text_code.data.sentence_files import open_sentences
from mc_text_code.data.sentences import Sentences
from mc_text_code.data.stdlib import standard_library_sentences
from mc_text_code.saving import ForeignEncoder, SentenceEncoder, load_encoder

HELD_OUT = "held-out.jsonl"
"""In a run folder: the sentences it was not trained on, a JSON object each."""
STANDARD_LIBRARY = "stdlib"
_HELD_OUT, _FEWEST_HELD_OUT, _MOST_HELD_OUT, _GROUPS_HELD_OUT = 0.05, 20, 2_000, 0.15
_log = logging.getLogger("mc_core")

AnyEncoder = SentenceEncoder | ForeignEncoder


def open_corpus(corpus: Sequence[str], column: str | None = None, *, deduplicate: bool = True) -> Sentences:
    """The sentences of these files, or without any those of the standard library; what was left out is logged."""
    with Status("reading sentences"):
        found = (
            open_sentences(list(corpus), column=column, deduplicate=deduplicate)
            if corpus
            else standard_library_sentences()
        )
    if corpus:
        _log.info("%s", found.report())
    return found


def corpus_name(corpus: Sequence[str]) -> str:
    """A short name for run folders."""
    if not corpus:
        return STANDARD_LIBRARY
    return Path(corpus[0]).name.removesuffix(".gz").rpartition(".")[0] or Path(corpus[0]).name


@dataclass(frozen=True)
class Split:
    """Sentences to train on and sentences held out."""

    train: Sentences
    test: Sentences


def split(sentences: Sentences, holdout: float | None = None) -> Split:
    """Hold out a share of the sentences, or of whole groups where they have groups.

    Which ones follows their text (or their group's name) alone: adding sentences to a corpus moves none from one side to the
    other.

    Args:
        sentences: all.
        holdout: share in (0, 1). Default: 0.15 of groups; 0.05 of sentences, at most about 2,000, and of a small corpus more, as
            a handful says nothing.

    Raises:
        ConfigError: a share out of range.
        DataError: nothing left on one side.
    """
    if holdout is not None and not 0 < holdout < 1:
        raise ConfigError(f"--holdout {holdout}: give a share between 0 and 1, such as 0.05")
    if sentences.groups is not None:
        return Split(*sentences.split_by_group(holdout or _GROUPS_HELD_OUT))
    share = holdout or min(max(_HELD_OUT, _FEWEST_HELD_OUT / len(sentences)), _MOST_HELD_OUT / len(sentences), 0.2)
    place = (sentences.hashes.view(np.uint64) >> np.uint64(11)).astype(np.float64) / float(1 << 53)
    held = place < share
    if held.all() or not held.any():  # a corpus of a handful of sentences
        held = np.argsort(np.argsort(place, kind="stable")) < max(1, round(share * len(sentences)))
    if held.all():
        raise DataError(f"{sentences.source} has {len(sentences)} sentence: none is left to train on")
    return Split(sentences.select(np.flatnonzero(~held)), sentences.select(np.flatnonzero(held)))


def write_held_out(folder: Path, sentences: Sentences) -> None:
    """Keep the sentences held out with the run, for `evaluate` and `demo`."""
    groups = sentences.groups or [None] * len(sentences)
    rows = [{"sentence": text, "group": group} for text, group in zip(sentences.texts, groups, strict=True)]
    write_atomic(folder / HELD_OUT, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def read_held_out(folder: Path) -> Sentences | None:
    """The sentences that a run held out, or None where it says nothing of them."""
    file = folder / HELD_OUT
    if not file.is_file():
        return None
    rows = read_jsonl(file)
    groups = [str(row["group"]) for row in rows] if rows and rows[0].get("group") is not None else None
    return Sentences.of([str(row["sentence"]) for row in rows], groups=groups, source=str(file))


def evaluation_sentences(run: Path, corpus: Sequence[str], column: str | None) -> Sentences | None:
    """The corpus given, or what the run held out; None where there is neither."""
    return open_corpus(corpus, column) if corpus else read_held_out(run)


def open_encoder(folder: Path, device: str = "auto") -> AnyEncoder:
    """The encoder of a run, or of any SentenceTransformer folder, on its device."""
    with Status(f"opening {folder}"):
        encoder = load_encoder(folder)
        if isinstance(encoder, SentenceEncoder):
            encoder.to(pick_device(device))
        else:
            encoder.model.to(pick_device(device))
    return encoder


def newest_run(folder: Path = Path("runs")) -> Path | None:
    """The run with a model that was finished last, or None."""
    models = [path.parent.parent for path in folder.glob("*/model/modules.json")]
    return max(models, key=lambda run: (run / "model" / "modules.json").stat().st_mtime, default=None)


def chosen_run(run: Path | None) -> Path | None:
    """The run named, or the newest; which one is logged."""
    if run is not None:
        return run
    found = newest_run()
    if found is not None:
        _log.info("encoder: %s (name another with --run)", found)
    return found
