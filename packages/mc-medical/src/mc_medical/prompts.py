"""Prompts of zero-shot classification: the sentences that stand for a finding, and those that stand for its absence.

A prompt set names, for each finding, many phrases: severities × subtypes × places, as GLoRIA (Huang et al. 2021) and MedCLIP (Wang
et al. 2022) do; the phrases here are ours. The vector of a finding is the normalised mean of all its normalised phrase vectors.

Legend: P phrases, D dimensions.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import yaml

from mc_core.errors import ConfigError, DataError, closest

EncodeText = Callable[[list[str]], np.ndarray]
"""P phrases → (P, D) vectors."""


@dataclass(frozen=True)
class Prompts:
    """Phrases for findings.

    Attributes:
        positive: finding → phrases that say it is there.
        negative: finding → phrases that say it is not; for binary scores.
    """

    positive: dict[str, tuple[str, ...]]
    negative: dict[str, tuple[str, ...]]

    @property
    def names(self) -> tuple[str, ...]:
        """The findings."""
        return tuple(self.positive)

    def only(self, names: Sequence[str], *, of: str = "the studies") -> Prompts:
        """The prompts of ``names``, in their order.

        Raises:
            ConfigError: a name without prompts.

        >>> default_prompts().only(["Edema"]).names
        ('Edema',)
        """
        for name in names:
            if name not in self.positive:
                raise ConfigError(
                    f"no prompts for {name!r}, a label of {of}; prompts exist for {closest(name, self.positive)}; "
                    "add phrases for it to the file of prompts"
                )
        return Prompts({n: self.positive[n] for n in names}, {n: self.negative[n] for n in names})

    def check_labels(self, names: Sequence[str], *, source: str = "the prompts") -> None:
        """That every prompt belongs to a label.

        Raises:
            ConfigError: prompts for a class that is not there.
        """
        for name in self.positive:
            if name not in names:
                raise ConfigError(
                    f"{source} has phrases for {name!r}, which is no label of the studies; closest: {closest(name, names)}"
                )


def load_prompts(path: str | os.PathLike[str]) -> Prompts:
    """Prompts from YAML: ``finding: [phrases]``, or ``finding: {positive: [phrases], negative: [phrases]}``.

    Where nothing negative is given, ``No {finding}.`` stands.

    Raises:
        ConfigError: no such file, no YAML, or another shape, naming the finding.
    """
    name = os.fspath(path)
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{name}: no such file of prompts") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{name}: cannot be read ({type(error).__name__})") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        raise ConfigError(f"{name}: no YAML{f', line {mark.line + 1}' if mark else ''}") from None
    if not isinstance(content, dict) or not content:
        raise ConfigError(f"{name}: must map findings to lists of phrases, such as `Edema: [pulmonary edema]`")
    return prompts_of(content, source=name)


def prompts_of(content: Mapping[str, object], *, source: str = "prompts") -> Prompts:
    """Prompts from a mapping of the shape that :func:`load_prompts` reads.

    >>> prompts_of({"Edema": ["pulmonary edema"]}).negative
    {'Edema': ('No edema.',)}
    """
    positive: dict[str, tuple[str, ...]] = {}
    negative: dict[str, tuple[str, ...]] = {}
    for name, value in content.items():
        name = str(name)
        if isinstance(value, Mapping):
            unknown = set(value) - {"positive", "negative"}
            if unknown or "positive" not in value:
                raise ConfigError(
                    f"{source}: {name!r} needs the key positive, and may have negative; it has {sorted(value)}"
                )
            positive[name] = _phrases(value["positive"], f"{source}: {name!r} positive")
            given = value.get("negative")
        else:
            positive[name], given = _phrases(value, f"{source}: {name!r}"), None
        negative[name] = (f"No {name.lower()}.",) if given is None else _phrases(given, f"{source}: {name!r} negative")
    return Prompts(positive, negative)


def _phrases(value: object, where: str) -> tuple[str, ...]:
    phrases = [value] if isinstance(value, str) else value
    if not isinstance(phrases, list | tuple) or not phrases:
        raise ConfigError(f"{where} must be a list of one or more phrases")
    if not all(isinstance(one, str) and one.strip() for one in phrases):
        raise ConfigError(f"{where} holds an empty phrase, or something that is no text")
    return tuple(dict.fromkeys(one.strip() for one in phrases))


def _every(*parts: Sequence[str]) -> tuple[str, ...]:
    """All combinations, as sentences."""
    sentences = (" ".join(word for word in words if word) for words in itertools.product(*parts))
    return tuple(dict.fromkeys(f"{text[0].upper()}{text[1:]}." for text in sentences))


_BASES = ("", "at the right lung base", "at the left lung base", "at both lung bases")
_LOBES = (
    "",
    "in the right upper lobe",
    "in the right mid lung",
    "in the right lower lobe",
    "in the left upper lobe",
    "in the left mid lung",
    "in the left lower lobe",
)
_DEFAULT: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "Enlarged Cardiomediastinum": (
        (
            "Widened mediastinum.",
            "The cardiomediastinal silhouette is enlarged.",
            "Widening of the mediastinal contours.",
        ),
        ("Mediastinal contours are normal.", "The cardiomediastinal silhouette is within normal limits."),
    ),
    "Cardiomegaly": (
        (
            *_every(("", "mild", "moderate", "severe"), ("cardiomegaly", "enlargement of the cardiac silhouette")),
            "The heart is enlarged.",
            "There is cardiomegaly.",
        ),
        ("Heart size is normal.", "The heart is normal in size.", "No cardiomegaly."),
    ),
    "Lung Opacity": (
        _every(("", "focal", "patchy"), ("opacity", "airspace opacity"), _LOBES),
        ("The lungs are clear.", "Lungs are clear bilaterally.", "No focal opacity."),
    ),
    "Lung Lesion": (
        _every(("", "small", "large"), ("pulmonary nodule", "rounded lesion", "nodular opacity"), _LOBES),
        ("No suspicious pulmonary nodule.", "No lung nodule or mass."),
    ),
    "Edema": (
        (
            *_every(("", "mild", "moderate", "severe"), ("pulmonary edema", "interstitial pulmonary edema")),
            "Pulmonary vascular congestion with edema.",
            "Perihilar haze consistent with edema.",
        ),
        ("No pulmonary edema.", "There is no evidence of pulmonary edema.", "No vascular congestion or edema."),
    ),
    "Consolidation": (
        _every(("", "focal", "patchy", "dense"), ("consolidation", "airspace consolidation"), _LOBES),
        ("No focal consolidation.", "There is no focal consolidation.", "No evidence of consolidation."),
    ),
    "Pneumonia": (
        _every(("", "findings are concerning for", "possible"), ("pneumonia", "lobar pneumonia"), _LOBES),
        ("No radiographic evidence of pneumonia.", "No pneumonia."),
    ),
    "Atelectasis": (
        _every(("", "mild", "marked"), ("atelectasis", "linear atelectasis", "atelectasis with volume loss"), _BASES),
        ("No atelectasis.", "No evidence of atelectasis."),
    ),
    "Pneumothorax": (
        _every(("", "small", "moderate", "large"), ("", "right", "left", "apical"), ("pneumothorax",)),
        ("No pneumothorax.", "There is no evidence of pneumothorax."),
    ),
    "Pleural Effusion": (
        _every(("", "small", "moderate", "large"), ("", "right", "left", "bilateral"), ("pleural effusion",)),
        ("No pleural effusion.", "There is no pleural effusion.", "No effusion is seen."),
    ),
    "Pleural Other": (("Pleural thickening.", "Pleural plaques."), ("No pleural thickening.",)),
    "Fracture": (
        _every(("", "acute", "displaced"), ("rib fracture", "fracture")),
        ("No displaced rib fracture.", "No acute fracture is identified."),
    ),
    "Support Devices": (
        (
            "A left-sided pacemaker is in place.",
            "Endotracheal tube in standard position.",
            "Central venous catheter with tip in the SVC.",
            "Support devices are in place.",
        ),
        ("No support devices.", "No lines or tubes."),
    ),
    "No Finding": (
        ("No acute cardiopulmonary process.", "Normal chest radiograph.", "No acute cardiopulmonary abnormality."),
        ("Abnormal chest radiograph.", "Acute cardiopulmonary process."),
    ),
}


def default_prompts() -> Prompts:
    """Our phrases for CheXpert's observations.

    >>> "Moderate left pleural effusion." in default_prompts().positive["Pleural Effusion"]
    True
    """
    return Prompts({n: pos for n, (pos, _) in _DEFAULT.items()}, {n: neg for n, (_, neg) in _DEFAULT.items()})


def ensemble(vectors: np.ndarray) -> np.ndarray:
    """(D,) unit: the normalised mean of (P, D) vectors, each normalised before.

    Raises:
        DataError: not a matrix, no row, values that are not finite, a row without direction, or directions that cancel out.

    >>> ensemble(np.array([[2.0, 0.0], [0.0, 0.5]])).round(3).tolist()
    [0.707, 0.707]
    """
    vectors = np.asarray(vectors, dtype=np.float64)
    if vectors.ndim != 2 or not vectors.size or not np.isfinite(vectors).all():
        raise DataError(f"vectors of phrases have shape {vectors.shape}; (phrases, dimensions), finite, not empty")
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    if (length < 1e-12).any():
        raise DataError(f"{int((length < 1e-12).sum())} of {len(vectors)} phrases have a vector of length zero")
    mean = (vectors / length).mean(axis=0)
    size = np.linalg.norm(mean)
    if size < 1e-9:
        raise DataError(f"the vectors of {len(vectors)} phrases cancel out; no direction is left")
    return mean / size


def resampled(vectors: np.ndarray, draws: int, *, seed: int = 0) -> np.ndarray:
    """(draws, D) unit: what :func:`ensemble` would be for other choices of as many phrases, drawn with replacement.

    How far scores move with them says how much hangs on the wording.

    >>> resampled(np.array([[2.0, 0.0]]), 2).tolist()
    [[1.0, 0.0], [1.0, 0.0]]
    """
    vectors = np.asarray(vectors, dtype=np.float64)
    middle = ensemble(vectors)
    rng = np.random.Generator(np.random.Philox(seed))
    counts = rng.multinomial(len(vectors), np.full(len(vectors), 1 / len(vectors)), size=draws)
    mean = counts @ (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)) / len(vectors)
    size = np.linalg.norm(mean, axis=1, keepdims=True)
    return np.where(size > 1e-9, mean / np.maximum(size, 1e-9), middle)


def phrase_vectors(prompts: Prompts, encode_text: EncodeText) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Finding → (P, D) vectors of its phrases, and of those of its absence; each phrase is encoded once.

    Raises:
        DataError: the encoder gives another number of rows.
    """
    phrases = list(dict.fromkeys(itertools.chain(*prompts.positive.values(), *prompts.negative.values())))
    place = {phrase: row for row, phrase in enumerate(phrases)}
    vectors = np.asarray(encode_text(phrases))
    if vectors.ndim != 2 or len(vectors) != len(phrases):
        raise DataError(f"{len(phrases)} phrases gave vectors of shape {vectors.shape}; one row each is needed")
    positive, negative = (
        {name: vectors[[place[phrase] for phrase in side[name]]] for name in prompts.names}
        for side in (prompts.positive, prompts.negative)
    )
    return positive, negative


def prompt_vectors(prompts: Prompts, encode_text: EncodeText) -> tuple[np.ndarray, np.ndarray]:
    """(C, D) vectors of the findings and (C, D) of their absence, float32 of length one.

    Args:
        prompts: of C findings.
        encode_text: such as ``ImageTextModel.encode_text``.
    """
    positive, negative = (
        np.stack([ensemble(side[name]) for name in prompts.names]).astype(np.float32)
        for side in phrase_vectors(prompts, encode_text)
    )
    return positive, negative
