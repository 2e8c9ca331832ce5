"""Demographics beside embeddings: what is known of a person without any signal."""

from __future__ import annotations

import numpy as np
import pytest

from mc_wearables.evaluation import Features, probe
from mc_wearables.evaluation.comparison import DEMOGRAPHICS, compare_features

PEOPLE, EACH = 60, 3


def sides(**labels):
    """Noise as features of 60 people, 40 to train on; labels of each person repeated for their segments."""
    person = np.repeat(np.arange(PEOPLE), EACH)
    noise = np.random.default_rng(1).normal(size=(PEOPLE * EACH, 4)).astype(np.float32)
    columns = {name: np.asarray(column, dtype=np.float64)[person] for name, column in labels.items()}
    whole = Features(noise, person, tuple(f"p{i}" for i in range(PEOPLE)), np.arange(len(person)), columns)
    return whole.of_participants(range(40)), whole.of_participants(range(40, PEOPLE))


def compared(first, second, targets, demographics=("age", "sex", "bmi")):
    return compare_features({"noise": first}, {"noise": second}, targets, demographics=demographics, draws=50)


@pytest.fixture
def people():
    rng = np.random.default_rng(0)
    age, sex = rng.uniform(20, 80, PEOPLE), rng.integers(0, 2, PEOPLE).astype(float)
    return {"age": age, "sex": sex, "pressure": 90 + 0.5 * age + 8 * sex, "coin": rng.integers(0, 2, PEOPLE)}


def test_a_target_that_age_and_sex_tell_is_told(people):
    found = compared(
        *sides(**people), {"pressure": "participant", "coin": "participant", "pressure@segment": "segment"}
    )
    assert found.headline(DEMOGRAPHICS, "pressure")[1] > 0.999
    assert found.headline(DEMOGRAPHICS, "pressure@segment")[1] > 0.999
    assert found.headline("noise", "pressure")[1] < 0.3
    assert 0.2 < found.headline(DEMOGRAPHICS, "coin")[1] < 0.8
    assert set(found.to_dict()["probes"]) == {"noise", DEMOGRAPHICS}


def test_it_is_the_probe_of_the_labels_as_features(people):
    first, second = sides(**people)
    found = compared(first, second, {"pressure": "participant"})
    columns = [
        Features(
            np.stack([side.labels["age"], side.labels["sex"]], axis=1).astype(np.float32),
            side.participant,
            side.participant_keys,
            side.session,
            side.labels,
        )
        for side in (first, second)
    ]
    assert found.probes[DEMOGRAPHICS]["pressure"].metrics == probe(*columns, "pressure", draws=50).metrics


def test_a_demographic_is_told_from_the_others_and_never_from_itself(people):
    first, second = sides(**people)
    found = compared(first, second, {"age": "participant", "sex": "participant"})
    assert found.headline(DEMOGRAPHICS, "age")[1] < 0.5
    assert found.headline(DEMOGRAPHICS, "sex")[1] < 0.9
    alone = compared(*sides(age=people["age"], coin=people["coin"]), {"age": "participant", "coin": "participant"})
    assert not alone.has(DEMOGRAPHICS, "age")
    assert alone.has(DEMOGRAPHICS, "coin")
    assert alone.has("noise", "age")


def test_another_name_of_the_same_thing_tells_nothing(people):
    first, second = sides(Sex=people["sex"], gender=people["sex"], sex=people["sex"], coin=people["coin"])
    found = compared(first, second, {"Sex": "participant", "gender": "participant"}, ("sex", "gender"))
    assert set(found.probes) == {"noise"}


def test_classes_of_a_demographic_do_not_tell_each_other(people):
    three = np.arange(PEOPLE) % 3
    columns = {f"sex={word}": (three == k).astype(float) for k, word in enumerate(("female", "male", "other"))}
    first, second = sides(**columns, coin=people["coin"])
    found = compared(first, second, {"sex=male": "participant", "coin": "participant"})
    assert not found.has(DEMOGRAPHICS, "sex=male")
    assert found.has(DEMOGRAPHICS, "coin")


def test_unknown_cells_are_filled_and_unknown_columns_left_out(people):
    bmi = np.full(PEOPLE, np.nan)
    bmi[:40] = np.linspace(18, 35, 40)  # of nobody held out
    age = people["age"].copy()
    age[[3, 45]] = np.nan
    found = compared(
        *sides(age=age, bmi=bmi, sex=people["sex"], pressure=people["pressure"]), {"pressure": "participant"}
    )
    assert found.headline(DEMOGRAPHICS, "pressure")[1] > 0.7
    without = compared(*sides(bmi=bmi, pressure=people["pressure"]), {"pressure": "participant"})
    assert set(without.probes) == {"noise"}
    none = compared(*sides(**people), {"pressure": "participant"}, demographics=())
    assert set(none.probes) == {"noise"}
