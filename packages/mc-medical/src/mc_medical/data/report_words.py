"""Words of radiology reports: headers of sections, blanks, dates, advice, comparisons. Imports no torch."""

from __future__ import annotations

import re

_SECTIONS = {
    "impression": "impression impressions imp conclusion conclusions opinion summary assessment interpretation "
    "final|impression impression|and|plan impression/plan",
    "findings": "findings finding result results description observations report|text findings/impression",
    "wet read": "wet|read preliminary|report preliminary|read",
    "indication": "indication indications ndication clinical|indication clinical|history history "
    "clinical|information reason|for|exam reason|for|examination reason|for|study clinical|data",
    "comparison": "comparison comparisons comparison|study comparison|studies prior|study prior|studies",
    "technique": "technique procedure procedure|comments exam examination exam|type study type|of|exam views",
    "recommendation": "recommendation recommendations recommendation(s) notification notifications",
    "other": "final|report addendum attending|radiologist radiologist dictated|by signed|by electronically|signed|by",
}
SYNONYMS = {name.replace("|", " "): section for section, names in _SECTIONS.items() for name in names.split()}
"""Header in lower case → section."""

NOT_CONTENT = frozenset(SYNONYMS[name] for name in ("indication", "comparison", "technique", "recommendation")) | {
    "other",
    "final report",
    "final addendum",
}
"""Sections that say nothing of the image."""

ABBREVIATIONS = frozenset(
    ["dr.", "mr.", "mrs.", "ms.", "vs.", "approx.", "e.g.", "i.e.", "resp.", "st.", "fig.", "ca.", "incl.", "cf."]
)
"""Words whose full stop ends no sentence, in lower case."""

BLANKS = re.compile(r"\[\*\*.*?\*\*\]|_{2,}|\bX{3,}\b(?:[-/]X{3,}\b)*|<(?:DATE|NAME|PHI|unk)>", re.DOTALL)
"""De-identification blanks: ``[**…**]`` and ``___`` of MIMIC, ``XXXX`` of Open-i."""

_MONTH = (
    r"(?:jan(?:uary)?|feb(?:ruary)?|mar(?:ch)?|apr(?:il)?|may|june?|july?|aug(?:ust)?|sept?(?:ember)?|oct(?:ober)?"
    r"|nov(?:ember)?|dec(?:ember)?)"
)
DATES = re.compile(
    rf"\b\d{{4}}[-/.]\d{{1,2}}[-/.]\d{{1,2}}\b|\b\d{{1,2}}[-/]\d{{1,2}}[-/](?:\d{{4}}|\d{{2}})\b"
    rf"|\b\d{{1,2}}\.\d{{1,2}}\.(?:\d{{4}}|\d{{2}})\b"
    rf"|\b{_MONTH}\.?\s+\d{{1,2}}(?:st|nd|rd|th)?,?\s+\d{{4}}\b|\b\d{{1,2}}\.?\s+{_MONTH}\.?,?\s+\d{{4}}\b"
    rf"|\b{_MONTH}\.?,?\s+(?:19|20)\d{{2}}\b"
    r"|\b\d{1,2}:\d{2}(?::\d{2})?(?:\s*(?:[ap]\.m\.|[ap]m\b|hours\b))?",
    re.IGNORECASE,
)
"""Dates and times of day, but not spans such as 2-3 or ratios of two numbers."""

LIST_NUMBER = re.compile(r"(?m)(?:^|(?<=[.;:!?]\s))\s*\(?\d{1,2}[.)]\s+(?=[^\W\d_])")
"""``1.`` and ``2)`` before an item."""

ADVICE = re.compile(
    r"\brecommend|\bsuggest(?:ed)? (?:follow|repeat|further|correlat)|\bfollow[- ]?up (?:is|with|ct|imaging|radiograph|chest|study)"
    r"|\b(?:is|are) (?:advised|suggested)\b|\badvise\b|\bcorrelat(?:e|ion) (?:clinically|with|is)|\bclinical correlation\b"
    r"|\b(?:discussed|communicated|conveyed|relayed|reported|telephoned|paged) (?:with|to|by|in|via|at)\b"
    r"|\bnotif(?:y|ied)\b|\btelephone\b|\b(?:was|were) (?:paged|called|notified)\b|\bconsider (?:ct|repeat|dedicated|further)",
    re.IGNORECASE,
)
"""Advice and notification."""

COMPARISON = re.compile(
    r"\bunchanged\b|\bstable\b|\binterval\b|\bcompar(?:ed|ison)\b|\bprevious(?:ly)?\b|\bprior\b|\bagain\b|\bsince\b"
    r"|\b(?:no|little|significant|slight) change\b|\bhas (?:resolved|improved|worsened|increased|decreased|been)\b"
    r"|\b(?:improv|worsen|resolv|persist|progress)(?:ed|ing|ent|es|s|ion|ement)?\b|\bnew(?:ly)?\b|\bremains?\b|\bno longer\b"
    r"|\b(?:increas|decreas)(?:ed|ing) (?:in|from|compared)",
    re.IGNORECASE,
)
"""Words of a comparison with an earlier study."""
