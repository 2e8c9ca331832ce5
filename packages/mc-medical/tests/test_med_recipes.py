"""Shipped recipes: they resolve, their parts fit each other, and what does not fit is said in a line."""

import pytest

from mc_core.errors import ConfigError
from mc_core.recipes import recipe_names
from mc_medical.methods import METHODS
from mc_medical.recipe import resolve_recipe, system_of

NAMES = recipe_names("mc_medical")


def test_the_published_system_and_a_small_one_are_there():
    assert {"msd", "msd-laptop"} <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_parts_fit_each_other(name):
    recipe = resolve_recipe(name)
    assert METHODS.config_class(system_of(name)) is type(recipe.method)
    assert recipe.augment.size == recipe.method.image.image_size
    assert recipe.augment.crop * recipe.image.size >= recipe.augment.size - 1  # views are not blown up
    assert not recipe.fit.decay_1d  # neither norms nor the temperature
    assert recipe.fit.clip_norm == 1.0
    assert recipe.augment.flip == "none"
    assert "ours" in recipe.source.lower()
    assert resolve_recipe(name, recipe.model_dump()) == recipe  # a resolved recipe can be read back


def test_the_laptop_learns_without_anything_published():
    recipe = resolve_recipe("msd-laptop")
    assert recipe.method.image.name is None
    assert recipe.method.text.name is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"augment": {"size": 48}}, r"augment.size 48 is not the 64 pixels .*method.image.image_size"),
        ({"method": {"keys": "moco"}}, r"method.keys.*'ema'"),
        ({"method": {"alhpa": 0.1}}, "did you mean alpha"),
    ],
)
def test_what_does_not_fit_is_said(changes, message):
    with pytest.raises(ConfigError, match=message):
        resolve_recipe("msd-laptop", changes)
