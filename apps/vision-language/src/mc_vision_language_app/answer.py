"""``mc-vision-language vqa`` and ``judge``: answers about images, and whether sentences about them are true."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mc_core.cli import print_json, print_table
from mc_core.errors import ConfigError
from mc_core.runs import pick_device
from mc_vision_language.data.questions import AnswerList
from mc_vision_language.tasks.config import ENTAILMENT_LABELS, STATEMENT_LABELS
from mc_vision_language.tasks.entailment import EntailmentModel
from mc_vision_language.tasks.nlvr2 import StatementModel
from mc_vision_language.tasks.training import load_task_model
from mc_vision_language.tasks.vqa import VQAModel
from mc_vision_language_app.runs import need_image

_LEAST = 0.001  # probability that is shown as a number


def run_vqa(
    run: Path,
    photo: Path,
    question: str,
    *,
    answers: Path | None,
    top: int,
    generate: bool,
    device: str,
    as_json: bool,
) -> None:
    """Answer, and print the answers with their probabilities."""
    model = load_task_model(run, device=pick_device(device))
    if not isinstance(model, VQAModel):
        raise ConfigError(f"{run} answers no questions: make a run that does with finetune --task vqa")
    image = need_image(photo)
    if generate:
        (text,) = model.generate([image], [question])
        if as_json:
            print_json({"question": question, "answer": text, "generated": True})
        else:
            print(text)
        return
    known = AnswerList.read(answers).answers if answers is not None else None
    (found,) = model.scored([image], [question], answers=known, top=top)
    rows = [{"answer": text, "probability": round(math.exp(score), 4)} for text, score in found]
    if as_json:
        print_json({"question": question, "answer": rows[0]["answer"], "answers": rows})
        return
    shown = [[text, f"{p:.3f}" if (p := math.exp(score)) >= _LEAST else f"below {_LEAST}"] for text, score in found]
    print_table(question, ["answer", "probability"], shown)


def run_judge(run: Path, sentence: str, photos: Sequence[Path], *, device: str, as_json: bool) -> None:
    """Say whether a sentence fits one image (entailment) or two (true, false)."""
    model = load_task_model(run, device=pick_device(device))
    images = [need_image(photo) for photo in photos]
    if isinstance(model, EntailmentModel):
        if len(images) != 1:
            raise ConfigError(f"{len(images)} images: this run judges one")
        chances, names = model.probabilities(images, [sentence]), ENTAILMENT_LABELS
    elif isinstance(model, StatementModel):
        if len(images) != 2:
            raise ConfigError(f"{len(images)} images: this run judges sentences about two")
        chances, names = model.probabilities(images[:1], images[1:], [sentence]), STATEMENT_LABELS
    else:
        raise ConfigError(f"{run} judges no sentences: make a run that does with finetune --task entailment or nlvr2")
    row = np.atleast_2d(np.asarray(chances))[0]
    if len(names) == 2 and len(row) == 1:  # of true
        row = np.array([1 - row[0], row[0]])
    best = names[int(row.argmax())]
    if as_json:
        chance = {name: round(float(p), 4) for name, p in zip(names, row, strict=True)}
        print_json({"sentence": sentence, "judgement": best, "probability": chance})
        return
    print_table(sentence, list(names), [[f"{p:.3f}" for p in row]])
