"""Labels: cells, uncertain policies, and what the rule labeller makes of sentences."""

from __future__ import annotations

import math
import os
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from mc_core.errors import ConfigError, DataError
from mc_medical.labels import COMPETITION, OBSERVATIONS, UNCERTAIN, label_report, read_labels, resolve_labels
from mc_medical.phantom import phantom_patient

NAN = float("nan")


def same(found, expected):
    return np.array_equal(np.asarray(found, dtype=float), np.asarray(expected, dtype=float), equal_nan=True)


class TestCells:
    @pytest.mark.parametrize(
        ("cell", "value"),
        [
            ("1", 1), ("1.0", 1), (1, 1), (1.0, 1), (True, 1), ("0.0", 0), (0, 0), (False, 0), ("-1", -1), ("-1.0", -1),
            (-1, -1), ("u", -1), ("", NAN), (None, NAN), (NAN, NAN), ("nan", NAN), (" ", NAN), ("True", 1),
        ],
    )  # fmt: skip
    def test_what_a_cell_means(self, cell, value):
        table = read_labels({"Edema": [cell]})
        assert not table.refused
        assert same(table.values, [[value]])
        assert table.values.dtype == np.float32

    @pytest.mark.parametrize("cell", ["2", "yes", 0.5, "-2", "present", "1;0", math.inf])
    def test_an_unknown_value_refuses_its_row_alone(self, cell):
        table = read_labels({"Edema": ["1", cell, "0"], "Fracture": ["0", "1", ""]})
        assert list(table.refused) == [1]
        assert "Edema" in table.refused[1]
        assert "1, 0, -1 or blank" in table.refused[1]
        assert same(table.values, [[1, 0], [NAN, NAN], [0, NAN]])

    def test_a_long_cell_is_cut_in_the_message(self):
        assert len(read_labels({"Edema": ["x" * 500]}).refused[0]) < 80

    def test_columns_of_different_lengths(self):
        with pytest.raises(DataError, match=r"lengths \[1, 2\]"):
            read_labels({"Edema": ["1"], "Fracture": ["1", "0"]})


class TestPolicies:
    def test_the_default_is_the_competitions(self):
        assert set(UNCERTAIN) == set(COMPETITION)
        found = resolve_labels(np.full((1, 14), -1.0), OBSERVATIONS)[0]
        expected = {"Atelectasis": 1, "Cardiomegaly": 0, "Consolidation": 0, "Edema": 1, "Pleural Effusion": 1}
        assert same(found, [expected.get(name, NAN) for name in OBSERVATIONS])

    @pytest.mark.parametrize(("policy", "value"), [("one", 1), ("zero", 0), ("ignore", NAN)])
    def test_one_policy_for_all_touches_only_the_uncertain(self, policy, value):
        found = resolve_labels(
            np.array([[-1.0, 1.0, 0.0, NAN]]), ["a", "b", "c", "d"], uncertain=policy, blank="ignore"
        )
        assert same(found, [[value, 1, 0, NAN]])

    def test_a_policy_for_one_observation_leaves_the_others(self):
        names = ["Edema", "Atelectasis"]
        assert same(resolve_labels(np.full((1, 2), -1.0), names, uncertain={"Edema": "zero"}), [[0, 1]])

    def test_blank_becomes_zero_and_uncertain_ignored_stays_out(self):
        found = resolve_labels(np.array([[NAN, -1.0]]), ["Fracture", "Fracture"], uncertain="ignore")
        assert same(found, [[0, NAN]])

    def test_bad_policies(self):
        with pytest.raises(ConfigError, match=r"'Edemma', which is no label here; closest: Edema"):
            resolve_labels(np.zeros((1, 1)), ["Edema"], uncertain={"Edemma": "one"})
        with pytest.raises(ConfigError, match=r"'maybe' of 'Edema' must be one, zero or ignore"):
            resolve_labels(np.zeros((1, 1)), ["Edema"], uncertain={"Edema": "maybe"})
        with pytest.raises(DataError, match=r"beside 1, 0, -1 and NaN"):
            resolve_labels(np.full((1, 1), 2.0), ["Edema"])
        with pytest.raises(DataError, match=r"\(1, 1\); 2 observations"):
            resolve_labels(np.zeros((1, 1)), ["Edema", "Fracture"])


class TestRules:
    @pytest.mark.parametrize(
        ("text", "labels"),
        [
            ("Small left pleural effusion.", {"Pleural Effusion": 1}),
            ("No pleural effusion or pneumothorax.", {"Pneumothorax": 0, "Pleural Effusion": 0, "No Finding": 1}),
            ("Possible edema.", {"Edema": -1}),
            ("Heart size is normal.", {"Cardiomegaly": 0, "No Finding": 1}),
            ("The heart is enlarged.", {"Cardiomegaly": 1}),
            ("The heart is not enlarged.", {"Cardiomegaly": 0, "No Finding": 1}),
            ("No edema. Severe edema.", {"Edema": 1}),
            ("No effusion, but consolidation is present.", {"Consolidation": 1, "Pleural Effusion": 0}),
            ("A left-sided pacemaker is in place.", {"Support Devices": 1, "No Finding": 1}),
            (
                "Clear of airspace disease, pneumothorax, or effusion.",
                {"Pneumothorax": 0, "Pleural Effusion": 0, "No Finding": 1},
            ),
            ("No suspicious pulmonary nodule.", {"Lung Lesion": 0, "No Finding": 1}),
            ("A nodule is suspicious.", {"Lung Lesion": -1}),
            ("A small effusion cannot be excluded.", {"Pleural Effusion": -1}),
            ("The trachea is midline.", {}),
            ("", {}),
        ],
    )
    def test_sentences(self, text, labels):
        assert label_report(text) == labels

    def test_it_reads_what_the_phantoms_say(self):
        """Templates are easy: it must agree on nearly all they mention."""
        right = mentioned = claimed = 0
        for patient in range(60):
            for image in phantom_patient(patient, size=16):
                truth, found = (
                    image.report.labels,
                    label_report(image.report.text.partition("FINDINGS")[2] or image.report.text),
                )
                mentioned, claimed = mentioned + len(truth), claimed + len(found)
                right += sum(found.get(name) == value for name, value in truth.items())
        assert right / mentioned > 0.9
        assert right / claimed > 0.85


@pytest.mark.skipif("MC_DATA" not in os.environ, reason="MC_DATA names no folder of real data")
@pytest.mark.parametrize(
    ("name", "term", "found", "right"),
    [
        ("Cardiomegaly", "cardiomegaly", 0.85, 0.85),
        ("Pleural Effusion", "pleural effusion", 0.75, 0.70),
        ("Atelectasis", "atelecta", 0.80, 0.90),
        ("Edema", "edema", 0.75, 0.50),
        ("Fracture", "fracture", 0.90, 0.75),
        ("Consolidation", "consolidation", 0.80, 0.70),
    ],
)
def test_rules_beside_the_indexing_of_real_reports(name, term, found, right):
    """Open-i reports were indexed by people: of what they index and of what the rules find, how much is in both."""
    rows = pq.read_table(Path(os.environ["MC_DATA"]) / "medical" / "openi-reports.parquet").to_pylist()
    indexed = np.array([term in (row["problems"] or "").lower() for row in rows])
    said = np.array(
        [label_report(f"{row['findings'] or ''}\n{row['impression'] or ''}").get(name) == 1 for row in rows]
    )
    assert (indexed & said).sum() / indexed.sum() > found
    assert (indexed & said).sum() / said.sum() > right
