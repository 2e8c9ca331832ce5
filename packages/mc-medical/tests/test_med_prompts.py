"""Prompt sets: files, what is missing or too much, and the vector of an ensemble."""

from __future__ import annotations

import numpy as np
import pytest

from mc_core.errors import ConfigError, DataError
from mc_medical.labels import OBSERVATIONS, label_report
from mc_medical.prompts import Prompts, default_prompts, ensemble, load_prompts, prompt_vectors, prompts_of, resampled


def letters(phrases: list[str]) -> np.ndarray:
    """A bag of letters: deterministic, and independent of the batch."""
    return np.array([[1 + phrase.lower().count(c) for c in "abcdefghij"] for phrase in phrases], dtype=np.float32)


def test_the_default_speaks_of_every_observation_and_means_it():
    prompts = default_prompts()
    assert set(prompts.names) == set(OBSERVATIONS) == set(prompts.negative)
    for name in set(OBSERVATIONS) - {"No Finding", "Pneumonia", "Support Devices", "Pleural Other", "Fracture"}:
        assert all(label_report(phrase).get(name) == 1 for phrase in prompts.positive[name]), name
        assert all(label_report(phrase).get(name) == 0 for phrase in prompts.negative[name]), name
        assert len(set(prompts.positive[name])) == len(prompts.positive[name]) >= 3


def test_positive_and_negative_phrases_never_meet():
    for name, phrases in default_prompts().positive.items():
        assert not set(phrases) & set(default_prompts().negative[name])


class TestFiles:
    def test_both_shapes(self, tmp_path):
        (tmp_path / "p.yaml").write_text(
            "Edema: [pulmonary edema, fluid overload]\nFracture:\n  positive: rib fracture\n  negative: [intact]\n"
        )
        prompts = load_prompts(tmp_path / "p.yaml")
        assert prompts.positive == {"Edema": ("pulmonary edema", "fluid overload"), "Fracture": ("rib fracture",)}
        assert prompts.negative == {"Edema": ("No edema.",), "Fracture": ("intact",)}

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("[1, 2]", "must map findings to lists of phrases"),
            ("Edema: []", "'Edema' must be a list of one or more phrases"),
            ("Edema: [1]", "'Edema' holds an empty phrase, or something that is no text"),
            ("Edema: {negative: [a]}", "'Edema' needs the key positive"),
            ("Edema: {positive: [a], other: [b]}", "'Edema' needs the key positive"),
            ("Edema: {positive: [a], negative: ['']}", "'Edema' negative holds an empty phrase"),
            ("a: b: c", "no YAML, line 1"),
            ("", "must map findings"),
        ],
    )
    def test_bad_files_are_one_line(self, tmp_path, text, message):
        (tmp_path / "p.yaml").write_text(text)
        with pytest.raises(ConfigError) as error:
            load_prompts(tmp_path / "p.yaml")
        assert message in str(error.value)
        assert "\n" not in str(error.value)
        assert "p.yaml" in str(error.value)

    def test_no_file(self, tmp_path):
        with pytest.raises(ConfigError, match="no such file of prompts"):
            load_prompts(tmp_path / "none.yaml")


class TestNames:
    def test_prompts_for_a_class_that_is_not_there(self):
        prompts = prompts_of({"Pleural Efusion": ["effusion"]})
        with pytest.raises(
            ConfigError, match=r"mine.yaml has phrases for 'Pleural Efusion', .* closest: Pleural Effusion"
        ):
            prompts.check_labels(OBSERVATIONS, source="mine.yaml")
        default_prompts().check_labels(OBSERVATIONS)

    def test_a_label_without_prompts(self):
        with pytest.raises(ConfigError, match=r"no prompts for 'Covid', a label of the studies"):
            default_prompts().only(["Edema", "Covid"])

    def test_a_choice_keeps_its_order(self):
        prompts = default_prompts().only(["Edema", "Atelectasis"])
        assert prompts.names == ("Edema", "Atelectasis") == tuple(prompts.negative)


class TestEnsembles:
    def test_mean_of_normalised_vectors_normalised(self):
        vectors = np.random.default_rng(0).normal(size=(7, 5)) * np.arange(1, 8)[:, None]
        naive = sum(v / np.sqrt((v * v).sum()) for v in vectors) / 7
        naive /= np.sqrt((naive * naive).sum())
        assert np.allclose(ensemble(vectors), naive, atol=1e-15)

    def test_scale_of_single_phrases_does_not_count(self):
        vectors = np.random.default_rng(1).normal(size=(3, 4))
        assert np.allclose(ensemble(vectors), ensemble(vectors * [[1], [100], [0.01]]))

    def test_all_phrases_count_not_the_best_alone(self):
        vectors = np.eye(3)
        assert np.allclose(ensemble(vectors), 3**-0.5)

    @pytest.mark.parametrize(
        "bad", [np.zeros((2, 3)), np.array([[1.0, 0], [-1.0, 0]]), np.zeros((0, 3)), np.full((1, 2), np.nan)]
    )
    def test_nothing_to_point_with(self, bad):
        with pytest.raises(DataError):
            ensemble(bad)

    def test_phrases_are_encoded_once_and_found_again(self):
        calls = []

        def encode(phrases):
            calls.append(phrases)
            return letters(phrases)

        prompts = Prompts({"A": ("a bad", "cab"), "B": ("a bad",)}, {"A": ("cab",), "B": ("dig", "fig")})
        positive, negative = prompt_vectors(prompts, encode)
        assert [len(one) for one in calls] == [4]
        assert positive.dtype == negative.dtype == np.float32
        assert np.allclose(positive[0], ensemble(letters(["a bad", "cab"])), atol=1e-7)
        assert np.allclose(negative[1], ensemble(letters(["dig", "fig"])), atol=1e-7)
        assert np.allclose(np.linalg.norm([*positive, *negative], axis=1), 1, atol=1e-6)

    def test_an_encoder_that_loses_rows(self):
        with pytest.raises(DataError, match="one row each"):
            prompt_vectors(prompts_of({"A": ["a"]}), lambda phrases: np.ones((1, 3)))


class TestOtherWordings:
    vectors = np.random.default_rng(3).normal(size=(6, 5))

    def test_unit_and_around_the_ensemble(self):
        akin = self.vectors + 4
        found = resampled(akin, 4000)
        assert np.allclose(np.linalg.norm(found, axis=1), 1)
        middle = found.mean(axis=0)
        assert middle / np.linalg.norm(middle) == pytest.approx(ensemble(akin), abs=0.01)
        assert 0.02 < found.std(axis=0).max() < 0.2

    def test_each_is_an_ensemble_of_drawn_phrases(self):
        two = np.eye(2)
        possible = np.array([[1, 0], [0.5**0.5, 0.5**0.5], [0, 1]])
        found = resampled(two, 100)
        near = np.abs(found[:, None] - possible[None]).max(axis=2)
        assert (near.min(axis=1) < 1e-12).all()
        assert np.bincount(near.argmin(axis=1), minlength=3).tolist() == pytest.approx([25, 50, 25], abs=18)

    def test_one_phrase_leaves_nothing_to_draw(self):
        assert np.allclose(resampled(self.vectors[:1], 5), ensemble(self.vectors[:1]))

    def test_phrases_that_may_cancel_out(self):
        assert np.isfinite(resampled(np.array([[1.0, 0.01], [-1.0, 0.01]]), 50)).all()

    def test_the_seed_decides(self):
        assert np.array_equal(resampled(self.vectors, 9, seed=1), resampled(self.vectors, 9, seed=1))
        assert not np.array_equal(resampled(self.vectors, 9, seed=1), resampled(self.vectors, 9, seed=2))
