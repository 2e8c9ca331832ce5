"""The shipped recipes: complete, honest about where their numbers come from, and buildable; settings cost no torch."""

import subprocess
import sys

import pytest
import torch

from mc_core.errors import ConfigError
from mc_core.recipes import recipe_names, to_yaml
from mc_remote_sensing.methods import METHODS
from mc_remote_sensing.recipe import resolve_recipe, system_of

NAMES = ["hpcl-net", "hpcl-net-laptop", "scene-contrast", "scene-contrast-laptop"]


def test_each_system_has_a_recipe_and_a_small_one():
    assert recipe_names("mc_remote_sensing") == NAMES
    assert METHODS.names == ["hpcl-net", "scene-contrast"]


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_is_complete_and_comes_back_from_its_own_yaml(name, tmp_path):
    recipe = resolve_recipe(name)
    assert recipe.system == system_of(name) == name.removesuffix("-laptop")
    (tmp_path / "mine.yaml").write_text(to_yaml(recipe), encoding="utf-8")
    assert resolve_recipe(tmp_path / "mine.yaml") == recipe
    assert "ours" in recipe.source.lower(), "no number of the paper is known"


def test_what_is_not_the_papers_is_not_said_to_be():
    source = resolve_recipe("hpcl-net").source
    assert "Every number here is ours" in source
    assert "could not be read" in source


@pytest.mark.parametrize("name", ["hpcl-net-laptop", "scene-contrast-laptop"])
def test_a_small_recipe_builds_a_small_network(name):
    recipe = resolve_recipe(name)
    torch.manual_seed(0)
    method = METHODS.method_class(recipe.system)(recipe.method)
    trained = sum(p.numel() for group in method.parameter_groups(0.1) for p in group["params"])
    assert trained < 200_000
    if recipe.system == "hpcl-net":
        model = method.export_module()
        assert model.receptive_field // 2 <= recipe.tiles.tile
        assert recipe.tiles.tile % model.stride == 0


def test_the_encoders_of_both_small_recipes_fit_each_other():
    scene, net = resolve_recipe("scene-contrast-laptop").method, resolve_recipe("hpcl-net-laptop").method
    assert (scene.image, scene.elevation, scene.norm) == (net.network.image, net.network.elevation, net.network.norm)
    scene, net = resolve_recipe("scene-contrast").method, resolve_recipe("hpcl-net").method
    assert (scene.image, scene.elevation) == (net.network.image, net.network.elevation)


def test_a_field_that_is_not_there_is_named_with_the_closest():
    with pytest.raises(ConfigError, match=r"method\.network\.fuse; did you mean"):
        resolve_recipe("hpcl-net", {"method": {"network": {"fuse": "position"}}})
    with pytest.raises(ConfigError, match="did you mean hpcl-net"):
        resolve_recipe("hpclnet")


def test_settings_load_without_torch():
    code = (
        "import sys; import mc_remote_sensing.recipe as r; r.resolve_recipe('hpcl-net'); "
        "import mc_remote_sensing.methods.scene_contrast.config; "
        "assert not {'torch', 'timm', 'rasterio'} & set(sys.modules), sorted(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
