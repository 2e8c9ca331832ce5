"""Reports of phantoms: what a radiologist would dictate of given findings, and the labels that its words amount to.

Each phrase carries the observations it mentions, in the way the CheXpert labeller reads them: 1 said to be there, 0 said not to be,
−1 uncertain; what no phrase mentions stays blank.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from mc_medical.labels import OBSERVATIONS
from mc_medical.phantom.findings import Finding
from mc_medical.phantom.phrases import (
    DISTRACTORS,
    FINDING_PHRASES,
    IMPRESSION_NORMAL,
    INDICATIONS,
    NEGATIONS,
    NORMAL_SENTENCES,
    PNEUMONIA_AFTER,
    RECOMMENDATIONS,
    SEVERITY_WORDS,
    SIDED_WORDS,
    UNCERTAIN_PHRASES,
    ZONE_WORDS,
)

Labels = dict[str, float]


@dataclass(frozen=True)
class Report:
    """What was dictated.

    Attributes:
        text: with section headers, as it would be stored.
        labels: observation → 1, 0 or −1; those not mentioned are left out.
    """

    text: str
    labels: Labels


def write_report(
    findings: Sequence[Finding],
    rng: np.random.Generator,
    *,
    view: str = "PA",
    earlier: bool = False,
    hazy: bool = False,
) -> Report:
    """A report of ``findings``, worded at random.

    Args:
        findings: of the study.
        rng: chooses the words.
        view: of the image.
        earlier: whether the patient has an earlier study to be compared with.
        hazy: whether the lungs are little inflated.

    >>> from mc_medical.phantom.findings import Finding
    >>> effusion = Finding("Pleural Effusion", "left", "lower", 2)
    >>> report = write_report([effusion], np.random.default_rng(0))
    >>> report.labels["Pleural Effusion"], "left" in report.text.lower()
    (1.0, True)
    """
    pick = partial(_pick, rng)
    words = [pick(SEVERITY_WORDS[f.name][f.severity - 1]) if f.name in SEVERITY_WORDS else "" for f in findings]
    said = [_sentence(finding, word, pick) for finding, word in zip(findings, words, strict=True)]
    said += _negations({finding.name for finding in findings}, pick, rng)
    order = rng.permutation(len(said))
    body = [said[i] for i in order]
    body += [(pick(group), {}) for group in DISTRACTORS if rng.random() < 0.28]
    if hazy and rng.random() < 0.7:
        body.insert(0, (pick(("Lung volumes are low.", "Low lung volumes.", "The lungs are underinflated.")), {}))
    if earlier and rng.random() < 0.6:
        body.insert(int(rng.integers(len(body) + 1)), (pick(_COMPARISONS), {}))
    concluded = _impression(findings, words, pick, rng)
    labels = _merged([label for _, label in (*body, *concluded)])
    sections = []
    if rng.random() < 0.7:
        sections.append(
            ("EXAMINATION", pick((f"CHEST ({view})", f"Chest radiograph, {view} view", "CHEST (SINGLE VIEW)")))
        )
    if rng.random() < 0.8:
        sections.append(("INDICATION", pick(INDICATIONS)))
    if rng.random() < 0.6:
        sections.append(("COMPARISON", pick(("Chest radiograph of ___.", "___.")) if earlier else "None."))
    spoken = " ".join(text for text, _ in body)
    ending = " ".join(text for text, _ in concluded)
    if len(concluded) > 1 and rng.random() < 0.4:
        ending = "\n".join(f"{number}. {text}" for number, (text, _) in enumerate(concluded, start=1))
    form = rng.random()
    if form < 0.85:
        sections += [("FINDINGS", spoken), ("IMPRESSION", ending)]
    elif form < 0.95:
        sections += [("FINDINGS", spoken)]
        labels = _merged([label for _, label in body])
    else:
        sections += [("IMPRESSION", f"{ending} {spoken}")]
    return Report("\n\n".join(f"{name}: {text}" for name, text in sections), with_no_finding(labels))


def with_no_finding(labels: Mapping[str, float]) -> Labels:
    """``labels`` with ``No Finding``: 1 where nothing but devices is there or possible, else blank, as CheXpert does.

    >>> with_no_finding({"Edema": 0.0}), with_no_finding({"Edema": -1.0})
    ({'Edema': 0.0, 'No Finding': 1.0}, {'Edema': -1.0})
    """
    found = {name: value for name, value in labels.items() if name != "No Finding"}
    if not any(value for name, value in found.items() if name != "Support Devices"):
        found["No Finding"] = 1.0
    return found


_COMPARISONS = (
    "No significant interval change.",
    "Compared to the prior study, there has been no relevant change.",
    "Findings are similar to the previous examination.",
    "As compared to ___, the appearance is stable.",
)


def _pick(rng: np.random.Generator, choices: Sequence[str]) -> str:
    return choices[int(rng.integers(len(choices)))]


def _sentence(finding: Finding, word: str, pick: partial[str]) -> tuple[str, Labels]:
    """One sentence about a finding; ``word`` is its severity."""
    name, both = finding.name, finding.side == "both"
    table = FINDING_PHRASES if finding.certain else UNCERTAIN_PHRASES
    choices = table[(name, finding.kind)] if (name, finding.kind) in table else table[(name, "")]
    text, extra = _split(pick(choices))
    place = (finding.side, finding.zone)
    text = text.format(
        severity=word,
        side="bilateral" if both else finding.side,
        sided=pick(SIDED_WORDS[finding.side]) if finding.side else "",
        zone=pick(ZONE_WORDS[place]) if place in ZONE_WORDS else "",
        s="s" if both else "",
        is_="are" if both else "is",
        a="" if both else "an" if word[:1] in ("a", "e", "i", "o", "u") else "a",
        base="both lung bases" if both else f"the {finding.side} lung base",
    )
    text = " ".join(text.split())
    return text[0].upper() + text[1:], {name: 1.0 if finding.certain else -1.0, **extra}


def _split(phrase: str) -> tuple[str, Labels]:
    """A phrase and the observations named after ``|``: ``text | Lung Opacity=1``."""
    text, _, rest = phrase.partition("|")
    pairs = (part.split("=") for part in rest.split(";") if part.strip())
    return text.strip(), {name.strip(): float(value) for name, value in pairs}


def _negations(present: set[str], pick: partial[str], rng: np.random.Generator) -> list[tuple[str, Labels]]:
    """Sentences about what is not there: each names at most what is absent."""
    opaque = present & {"Consolidation", "Atelectasis", "Edema", "Lung Lesion", "Pleural Effusion"}
    absent = set(OBSERVATIONS) - present - ({"Lung Opacity"} if opaque else set())
    if "Cardiomegaly" in present:
        absent -= {"Enlarged Cardiomediastinum"}
    if opaque & {"Consolidation"}:
        absent -= {"Pneumonia"}
    found: list[tuple[str, Labels]] = []
    said: set[str] = set()
    for group, chance in NORMAL_SENTENCES if not opaque and "Pneumothorax" not in present else NORMAL_SENTENCES[1:]:
        if rng.random() < chance:
            text, labels = _split(pick(group))
            if set(labels) <= absent:
                found.append((text, labels))
                said |= set(labels)
    for index in rng.permutation(len(NEGATIONS)):
        text, labels = _split(NEGATIONS[int(index)])
        if set(labels) <= absent and not set(labels) & said and rng.random() < 0.30:
            found.append((text, labels))
            said |= set(labels)
    return found


def _impression(
    findings: Sequence[Finding], words: Sequence[str], pick: partial[str], rng: np.random.Generator
) -> list[tuple[str, Labels]]:
    medical = [(f, word) for f, word in zip(findings, words, strict=True) if f.name != "Support Devices"]
    if not medical:
        return [_split(pick(IMPRESSION_NORMAL))]
    found = [_sentence(finding, word, pick) for finding, word in medical]
    if any(finding.name == "Consolidation" and finding.certain for finding, _ in medical) and rng.random() < 0.5:
        found.append(_split(pick(PNEUMONIA_AFTER)))
    if rng.random() < 0.2:
        found.append((pick(RECOMMENDATIONS), {}))
    return found


def _merged(parts: Iterable[Labels]) -> Labels:
    """What all phrases together say: there, before uncertain, before not there."""
    rank = {1.0: 2, -1.0: 1, 0.0: 0}
    found: Labels = {}
    for part in parts:
        for name, value in part.items():
            if name not in found or rank[value] > rank[found[name]]:
                found[name] = value
    return found
