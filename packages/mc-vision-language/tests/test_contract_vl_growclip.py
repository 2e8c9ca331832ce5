"""GrowCLIP keeps the contract of every method, at a tiny size; also a supernet in the course of a search."""

from functools import partial
from typing import ClassVar

from mc_core.growth import candidates, grow, largest
from mc_testkit.contract import MethodCase, MethodContract
from mc_testkit.toys import build_from, captioned_images
from mc_vision_language.growing.search import GrowthSearch
from mc_vision_language.methods.growclip.config import GrowCLIPConfig
from mc_vision_language.methods.growclip.model import GrowCLIPModel

GROWCLIP = (
    "mc_vision_language.methods.growclip.model:GrowCLIP",
    "mc_vision_language.methods.growclip.config:GrowCLIPConfig",
)
PART = {"blocks": 1, "heads": 2, "hidden": 24}
TINY = {
    "image": {"image_size": 16, "patch_size": 8, "stem": "convolution", "stem_width": 16},
    "text": {"vocabulary": 64, "max_length": 16, "cls_id": 1, "sep_id": 2, "mask_id": 63},
    "width": 16,
    "head_width": 8,
    "dim": 8,
    "temperature": 0.2,
    "momentum": 0.9,
    **{f"{name}_part": PART for name in ("image", "text", "shared")},
}


def searching() -> GrowthSearch:
    config = GrowCLIPConfig.model_validate({**TINY, "growth": {"evaluations": 2}})
    model = GrowCLIPModel(config)
    space = candidates(config.arch(), pairs=2)
    held = {name: column[:8] for name, column in captioned_images().tensors.items()}
    supernet = grow(model.towers, largest(list(space.values())), seed=1)
    return GrowthSearch(GrowCLIPModel(config, towers=supernet), space, [held, held], steps=6)


def case(name, build, **more):
    return MethodCase(
        name,
        build,
        captioned_images,
        fit={"lr": 0.02},
        learning={"optimizer": "adamw", "lr": 3e-3, "steps": 60},
        accumulation_is_exact=False,  # a micro-batch has negatives of its own
        **more,
    )


class TestContract(MethodContract):
    cases: ClassVar = [
        case("growclip", partial(build_from, *GROWCLIP, TINY)),
        case("growclip-search", searching, same_on_two_processes=False),  # built here, where no other process finds it
    ]
