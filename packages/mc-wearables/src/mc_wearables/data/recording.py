"""One stretch of signal from one person, as every reader yields it, and what readers share: channels, units, who it is.

Legend: C channels, T samples.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import NamedTuple

import numpy as np

from mc_core.errors import ConfigError, DataError
from mc_wearables.data.config import Kind, ReadOptions

# In order of preference: what monitors, wristbands and pulse oximeters call the raw wave; the leads of watches before others.
USUAL_CHANNELS: dict[Kind, tuple[str, ...]] = {
    "ppg": ("ppg", "bvp", "pleth", "green", "ir", "red", "spo2wave"),
    "ecg": ("i", "ecg", "ekg", "ecgi", "mli", "ii", "mlii", "ecgii", "v5", "mcl1", "v1", "v2", "v", "iii", "mliii"),
}
_LIGHTS = ("green", "ir", "red")
_VOLTS = {"v": 1e3, "mv": 1.0, "uv": 1e-3, "µv": 1e-3, "μv": 1e-3, "nv": 1e-6}
_NO_UNITS = {"", "nu", "adu", "a.u.", "au", "none", "unknown", "n/a", "-"}
_UNIT_IN_NAME = re.compile(r"\s*[\[(]\s*([nuµμm]?v)\s*[\])]$|(?:^|[\s_.]+)([nuµμm]v)$", re.IGNORECASE)
_PERSONAL = re.compile(
    r"(^|_)((first|last|full|given|family|middle|maiden|nick|user|patient|participant|subject|person)?_?names?|surname|"
    r"initials|\w*birth\w*|geburt\w*|dob|\w*e?mail|\w*phone\w*|mobile|\w*address|street|zip|postcode|mrn|"
    r"medical_record\w*|hospital_(no|number|id)|nhs|ssn|social_security\w*|national_id|insurance\w*|passport\w*|"
    r"comments?|notes?|remarks?|free_?text)($|_)"
)
_POSITIONS = ("index", "row", "segment", "segment_index", "window")  # where a recording lies in its file is no label
PARTICIPANT_NAMES = (
    "participant",
    "participant_id",
    "subject",
    "subject_id",
    "patient",
    "patient_id",
    "person",
    "person_id",
    "user",
    "user_id",
    "pid",
)
_IDS = (*PARTICIPANT_NAMES, "id", "uid", "uuid")
SESSION_NAMES = ("session", "session_id", "visit", "visit_id")

Label = float | str

UNMARKED_SECONDS = 1.0
"""How much of a segment a label that changes may leave open (ours): the first rhythm of a record is marked at its first beat."""


class Span(NamedTuple):
    """Seconds from the start of a recording in which a label has one value."""

    begin: float
    end: float
    value: Label


def value_within(spans: Sequence[Span], begin: float, end: float) -> Label | None:
    """The value that holds from ``begin`` to ``end``, but for at most a second; None where it changes or is not known.

    >>> spans = [Span(0.05, 40, "N"), Span(40, 90, "AFIB")]
    >>> [value_within(spans, at, at + 30) for at in (0, 30, 60, 90)]
    ['N', None, 'AFIB', None]
    """
    covered: dict[Label, float] = {}
    for span in spans:
        if (shared := min(span.end, end) - max(span.begin, begin)) > 0:
            covered[span.value] = covered.get(span.value, 0.0) + shared
    longest = max(covered, key=lambda value: covered[value], default=None)
    return longest if longest is not None and covered[longest] >= end - begin - UNMARKED_SECONDS else None


@dataclass(frozen=True, eq=False)
class Recording:
    """Signal on a regular time grid, NaN where samples are missing.

    Attributes:
        signal: (C, T) float32; ECG in mV, PPG in the units of its device.
        sampling_rate: Hz.
        participant: the raw id; it goes no further than the salted hash of the store.
        kind: ``"ppg"`` or ``"ecg"``.
        channels: C names.
        units: of the samples.
        start: UTC seconds since 1970 of the first sample, or None where the file does not say.
        device: its model, as far as known.
        session: recordings of one participant with the same text are one sitting.
        labels: what the file says of this recording or its participant; numbers and short texts.
        changing: labels that change within it, as spans in the order of time; where one says nothing the label is unknown.
        source: where it came from, for messages: file and row.
        notes: what was seen while reading, counted: ``duplicate_times``, ``clock_backwards``, ``daylight_saving``, ….

    Raises:
        DataError: shapes that do not fit, or a sampling rate that is not positive.
    """

    signal: np.ndarray
    sampling_rate: float
    participant: str
    kind: Kind
    channels: tuple[str, ...]
    units: str
    start: float | None = None
    device: str = "unknown"
    session: str = ""
    labels: Mapping[str, Label] = field(default_factory=dict)
    changing: Mapping[str, Sequence[Span]] = field(default_factory=dict)
    source: str = ""
    notes: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        where = self.source or "recording"
        if self.signal.ndim != 2 or len(self.signal) != len(self.channels):
            raise DataError(f"{where}: a signal of shape {self.signal.shape} for {len(self.channels)} channels (C, T)")
        if not (np.isfinite(self.sampling_rate) and self.sampling_rate > 0):
            raise DataError(f"{where}: sampling rate {self.sampling_rate:g} Hz; it must be above 0")

    @property
    def seconds(self) -> float:
        """Duration, holes included."""
        return self.signal.shape[1] / self.sampling_rate


@dataclass(frozen=True)
class Origin:
    """Where a reader is: the file as the user knows it, and what a table beside the files says of it.

    Attributes:
        name: path relative to the folder that was named, with forward slashes.
        folder: name of the folder that was named or holds the file.
        facts: column → cell of the table of records (``records.csv``).
    """

    name: str
    folder: str = ""
    facts: Mapping[str, str] = field(default_factory=dict)

    def participant(
        self, options: ReadOptions, known: str | None, *, record: str = "", columns: Sequence[str] = ()
    ) -> str:
        """The raw id: as given, from the place the options name, or as the file knows it.

        Args:
            options: how to read.
            known: what the file itself says.
            record: which recording of the file.
            columns: for the message: names of columns that could tell.

        Raises:
            ConfigError: nothing says whose the recording is; the message names the options.
        """
        if options.participant is not None:
            return options.participant.strip()
        rule = options.participant_from
        path = PurePosixPath(self.name)
        if rule == "file":
            return str(path.with_suffix(""))
        if rule == "record":
            return f"{self.name}#{record}"
        if rule == "folder":
            found = path.parts[0] if len(path.parts) > 1 else self.folder
            if found:
                return found
            raise ConfigError(
                f"{self.name} lies in no folder: participant_from=folder needs one folder per participant"
            )
        if rule is not None and rule.startswith("pattern:"):
            match = re.search(rule.removeprefix("pattern:"), self.name)
            if match and match[1]:
                return match[1]
            raise ConfigError(
                f"{self.name} does not match participant_from={rule}; each path must show its participant"
            )
        if rule is not None and (column := rule.removeprefix("column:")) in self.facts:
            known = self.facts[column]
        elif rule is not None and known is None:
            raise ConfigError(
                f"{self.name}: no column {rule.removeprefix('column:')!r}"
                + (f" among {', '.join(columns)}" if columns else "")
            )
        known = known or next((self.facts[name] for name in PARTICIPANT_NAMES if self.facts.get(name)), None)
        if known is None or not known.strip():
            raise ConfigError(
                f"{self.name} does not say whose it is: give --participant ID, or "
                "--participant-from folder|file|record|column:NAME|pattern:REGEX"
            )
        return known.strip()

    def session(self, options: ReadOptions, record: str = "", known: str | None = None) -> str:
        """Which sitting: a column if there is one, else the recording itself."""
        if known is None:
            for column in (options.session,) if options.session else SESSION_NAMES:
                known = known or self.facts.get(column or "")
        return known or f"{self.name}#{record}"

    def labels(self, options: ReadOptions, more: Mapping[str, object] | None = None) -> dict[str, Label]:
        """Labels from the table of records and from the file itself, which wins."""
        own = (
            *_IDS,
            *SESSION_NAMES,
            "record",
            "recording",
            "file",
            "filename",
            "path",
            *_POSITIONS,
            options.session or "",
        )
        if options.participant_from and options.participant_from.startswith("column:"):
            own += (options.participant_from.removeprefix("column:"),)
        hidden = {_plain(name) for name in own}
        facts = {name: value for name, value in {**self.facts, **(more or {})}.items() if _plain(name) not in hidden}
        return clean_labels(facts, options.labels)


def clean_labels(facts: Mapping[str, object], wanted: Sequence[str] | None) -> dict[str, Label]:
    """Numbers as float, texts up to 64 characters; nothing that names a person, unless it is asked for by name.

    >>> clean_labels({"Age": "25", "sex": "male", "dateOfBirth": "1.1.1980", "bmi": None}, None)
    {'age': 25.0, 'sex': 'male'}
    """
    found: dict[str, Label] = {}
    for name, value in facts.items():
        if wanted is not None and name not in wanted and name.lower() not in wanted:
            continue
        text = "" if value is None else str(value).strip()
        if not text or text.lower() in ("nan", "none", "null", "n/a") or len(text) > 64:
            continue
        if wanted is None and _PERSONAL.search(_words(name)):
            continue
        try:
            number = float(text)
            found[name.lower()] = number if np.isfinite(number) else text
        except ValueError:
            found[name.lower()] = text
    return {name: value for name, value in found.items() if value == value}


def _words(name: str) -> str:
    """
    >>> _words("dateOfBirth"), _words("Patient name")
    ('date_of_birth', 'patient_name')
    """
    return re.sub(r"[^a-z0-9]+", "_", re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower())


def _plain(name: str) -> str:
    """A name without case and punctuation: "Subject ID" and "subject_id" are one."""
    return re.sub(r"[^a-z0-9]", "", name.lower())


def pick_channels(names: Sequence[str], options: ReadOptions, where: str, *, alone: bool = False) -> list[int]:
    """Positions of the channels wanted among ``names``.

    Args:
        names: as the file has them.
        options: ``channels`` by name, in any case, or by number from 1; without them the first of the usual names.
        where: file, for the message.
        alone: a single channel without a telling name is the one.

    Raises:
        DataError: a channel is not there, or none has a usual name.

    >>> pick_channels(["II", "V", "PLETH"], ReadOptions(signal="ppg"), "a103l")
    [2]
    """
    plain = [_plain(_UNIT_IN_NAME.sub("", name) or name) for name in names]
    if options.channels:
        return [_named(wanted, names, plain, where) for wanted in options.channels]
    lights = [name for name in names if name.lower() in _LIGHTS] if options.signal == "ppg" else []
    for usual in USUAL_CHANNELS[options.signal]:
        if usual in plain and usual in _LIGHTS and len(lights) > 1:
            raise ConfigError(
                f"{where}: light of several colours ({', '.join(lights)}); say which to use with --channels"
            )
        if usual in plain:
            return [plain.index(usual)]
    prefix = "(ecg|ekg)" if options.signal == "ecg" else "(ppg|pleth|bvp)"
    for position, name in enumerate(plain):
        if re.match(prefix, name):
            return [position]
    if alone and len(names) == 1:
        return [0]
    raise DataError(
        f"{where}: no {options.signal.upper()} among the channels {', '.join(map(repr, names)) or '(none)'}; "
        "name the ones to use with --channels"
    )


def _named(wanted: str, names: Sequence[str], plain: Sequence[str], where: str) -> int:
    simple = _plain(wanted)
    if wanted in names:
        return list(names).index(wanted)
    if simple in plain:
        return list(plain).index(simple)
    if wanted.isdigit() and 1 <= int(wanted) <= len(names):
        return int(wanted) - 1
    raise DataError(f"{where}: no channel {wanted!r}, there are {', '.join(map(repr, names))}")


def units_in_names(names: Sequence[str], where: str) -> str | None:
    """The unit of voltage that names of columns end in; a bare V only in brackets, since it is also a lead.

    Raises:
        DataError: one column says another unit than the next, or none.

    >>> (
    ...     units_in_names(["ECG (mV)"], "a.csv"),
    ...     units_in_names(["I_uV", "II_uV"], "a.csv"),
    ...     units_in_names(["ecg_v"], "a.csv"),
    ... )
    ('mV', 'uV', None)
    """
    found = [match[1] or match[2] if (match := _UNIT_IN_NAME.search(name.strip())) else None for name in names]
    if len({unit and unit.lower() for unit in found}) > 1:
        raise DataError(f"{where}: the columns {', '.join(names)} are not in the same units; take one with --channels")
    return found[0] if found else None


def scale_to_units(kind: Kind, units: str | None, options: ReadOptions, where: str) -> tuple[float, str]:
    """The factor that brings samples into our units, and their name: mV for ECG, the device's own for PPG.

    A PPG has no physical unit: any is kept as it is. An ECG in unknown units is an error, because a lead in the wrong units
    looks the same and flat lines cannot be told.

    Raises:
        ConfigError: the units of an ECG are unknown, or are no voltage.

    >>> scale_to_units("ecg", "µV", ReadOptions(signal="ecg"), "ecg.csv")
    (0.001, 'mV')
    >>> scale_to_units("ecg", None, ReadOptions(signal="ecg", units="1000/mV"), "a.csv")
    (0.001, 'mV')
    """
    stated = (units or "").strip()
    if stated.lower() in _NO_UNITS:
        stated = (options.units or "").strip()
    elif options.units and (factor := _volts(options.units)) and (own := _volts(stated)) and factor != own:
        raise ConfigError(f"{where} is in {stated}, but --units says {options.units}: leave it out")
    if kind == "ppg":
        return 1.0, stated or "a.u."
    factor = _volts(stated)
    if factor is None:
        said = f"'{stated}' is no unit of voltage" if stated else "does not say its units"
        raise ConfigError(
            f"{where}: {said}; give --units V, mV, uV or nV, or counts per millivolt as in --units 1000/mV"
        )
    return factor, "mV"


def _volts(units: str) -> float | None:
    """mV per unit, or None."""
    text = units.strip().lower().replace(" ", "")
    if text in _VOLTS:
        return _VOLTS[text]
    match = re.fullmatch(r"([0-9.]+(?:e[0-9]+)?)/(n|u|µ|μ|m)?v", text)
    if match and (counts := float(match[1])) > 0:
        return _VOLTS[(match[2] or "") + "v"] / counts
    return None


def agreed_rate(stated: float | None, options: ReadOptions, where: str) -> float:
    """The sampling rate in Hz: as the file says, else as the options say. A file that says zero, or less, does not know it.

    Raises:
        ConfigError: neither says, or they differ by more than 2 %.
        DataError: the file says zero or less, and the options nothing.
    """
    if stated is not None and not (np.isfinite(stated) and stated > 0):
        if options.fs is None:
            raise DataError(
                f"{where}: sampling rate {stated:g} Hz; it must be above 0: give the true one in Hz, as in --fs 64"
            )
        stated = None
    if stated is None:
        if options.fs is None:
            raise ConfigError(f"{where} does not say its sampling rate: give it in Hz, as in --fs 64")
        return options.fs
    if options.fs is not None and abs(stated / options.fs - 1) > 0.02:
        raise ConfigError(
            f"{where} says {stated:g} Hz, but --fs says {options.fs:g}: leave it out, or read that file alone"
        )
    return stated
