"""What the README shows runs, and its tables name what there is."""

import re
from pathlib import Path

from mc_core.recipes import recipe_names
from mc_testkit.files import write_image_folder
from mc_vision.encoders_config import EncoderConfig
from mc_vision.recipe import resolve_recipe

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


def test_the_python_block_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_image_folder(tmp_path / "photos", each=8)
    blocks = re.findall(r"^```python\n(.*?)^```", README, re.DOTALL | re.MULTILINE)
    assert len(blocks) == 1
    names: dict[str, object] = {"__name__": "readme"}
    exec(compile(blocks[0], "README.md", "exec"), names)
    assert names["encoder"].num_features == 128
    assert (tmp_path / "runs/photos/recipe.yaml").exists()


def test_every_recipe_is_in_the_table_and_the_reverse():
    rows = re.findall(r"^\| (`[^|]*)\|[^|]*\|([^|]*)\|$", README, re.MULTILINE)
    named = {name for first, _ in rows for name in re.findall(r"`([\w-]+)`", first)}
    laptop = next(differs for first, differs in rows if "-laptop" in first)
    named |= {f"{name}-laptop" for name in re.findall(r"`([\w-]+)`", laptop)}
    shipped = set(recipe_names("mc_vision"))
    assert shipped <= named
    assert {name for name in named if name.endswith("-laptop")} <= shipped


def test_own_backbones_are_those_of_the_configuration():
    text = EncoderConfig.model_fields["backbone"].description
    for name in re.findall(r"`((?:resnet10|moco-vit)-[\w-]+)`", text):
        assert f"`{name}`" in README, name


def test_what_the_recipe_table_says_of_numbers():
    assert resolve_recipe("moco-v1").method.temperature == 0.07
    assert resolve_recipe("moco-v2").method.temperature == 0.2
    assert resolve_recipe("moco-v1").method.queue_size == resolve_recipe("moco-v2").method.queue_size == 65536
    assert {resolve_recipe(name).fit.batch_size for name in ("moco-v3", "moco-v3-vit")} == {4096}
    assert {resolve_recipe(name).fit.precision for name in ("moco-v3", "moco-v3-vit")} == {"bf16"}
    assert resolve_recipe("moco-cifar10").method.split_bn == 8
    assert resolve_recipe("moco-v2").method.split_bn == resolve_recipe("moco-v1").method.split_bn == 8
