"""Splits by patient, and what crosses them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mc_core.errors import DataError
from mc_medical.data.cohort import Studies
from mc_medical.data.image_ref import ImageRef
from mc_medical.data.reports import text_key
from mc_medical.data.splits import SPLITS, check_splits, cross_split_duplicates, split_by_patient


def cohort(patients, splits, texts) -> Studies:
    n = len(patients)
    return Studies(
        images=tuple(ImageRef(f"{i}") for i in range(n)),
        reports=tuple(texts),
        patients=np.array(patients, dtype=np.int64),
        studies=np.arange(n),
        text_ids=np.array([text_key(t) for t in texts], dtype=np.int64),
        views=np.array([""] * n),
        splits=np.array(splits),
        rows=np.arange(2, n + 2),
        label_names=(),
        labels=np.zeros((n, 0), np.float32),
    )


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(0, 40), min_size=1, max_size=120),
    st.integers(0, 9),
    st.sampled_from([(0.7, 0.1, 0.2), (0.5, 0.5, 0.0), (1.0, 0.0, 0.0)]),
)
def test_patients_are_never_divided_and_shares_are_met(patients, seed, shares):
    people = len(set(patients))
    wanted = sum(share > 0 for share in shares)
    if people < wanted:
        with pytest.raises(DataError, match=f"{people} patients cannot be divided into {wanted} parts"):
            split_by_patient(patients, shares, seed)
        return
    found = split_by_patient(patients, shares, seed)
    of = {}
    for patient, split in zip(patients, found.tolist(), strict=True):
        assert of.setdefault(patient, split) == split
    for split, share in zip(SPLITS, shares, strict=True):
        count = sum(one == split for one in of.values())
        assert (count > 0) == (share > 0)
        assert abs(count - share * people) <= 2
    order = np.random.default_rng(0).permutation(len(patients))
    np.testing.assert_array_equal(split_by_patient(np.array(patients)[order], shares, seed), found[order])


def test_other_seeds_divide_otherwise_and_new_patients_move_few():
    patients = np.arange(1000) * 7919
    first = split_by_patient(patients, seed=0)
    assert (first != split_by_patient(patients, seed=1)).mean() > 0.3
    grown = split_by_patient(np.r_[patients, [1, 2, 3]], seed=0)[:1000]
    assert (grown != first).sum() <= 6
    assert abs((first == "train").mean() - 0.7) < 0.01


def test_a_patient_in_two_splits_is_an_error_without_a_name():
    studies = cohort([11, 11, 22, 33], ["train", "test", "train", "validation"], "abcd")
    with pytest.raises(DataError) as caught:
        check_splits(studies)
    assert str(caught.value) == (
        "1 of 3 patients are in several splits (test and train; 2 images, the first in row 2): give each patient one split, or "
        "leave the column out to divide anew"
    )
    check_splits(replace(studies, splits=np.array(["train", "train", "train", "validation"])))


def test_duplicates_across_splits():
    studies = cohort(
        [1, 2, 3, 4, 5, 6],
        ["train", "test", "train", "train", "test", "test"],
        ["same", "same", "own", "twice", "other", ""],
    )
    found = cross_split_duplicates(studies)
    assert found.describe() == {"texts": 1, "images_with_them": {"test": 1, "train": 1}, "pictures": 0}
    pixels = np.arange(6 * 4, dtype=np.uint8).reshape(6, 2, 2) + 1
    pixels[4] = pixels[2]  # train and test
    pixels[3] = pixels[0]  # both in train
    pixels[1] = pixels[5] = 0
    found = cross_split_duplicates(studies, pixels)
    assert found.images == 1
    assert found.image_rows.tolist() == [2, 4]
    none = cross_split_duplicates(replace(studies, splits=np.array(["train"] * 6)), pixels)
    assert none.describe() == {"texts": 0, "images_with_them": {}, "pictures": 0}
