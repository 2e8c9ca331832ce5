"""The methods of this package keep the contract of every method, at a tiny size."""

from functools import partial
from typing import ClassVar

from mc_testkit.contract import MethodCase, MethodContract
from mc_testkit.toys import build_from, captioned_images

ALBEF = ("mc_vision_language.methods.albef.model:ALBEF", "mc_vision_language.methods.albef.config:ALBEFConfig")
TINY = {
    "image": {"image_size": 16, "patch_size": 8, "width": 16, "depth": 1, "heads": 2},
    "text": {
        "vocabulary": 64,
        "hidden_size": 16,
        "text_layers": 1,
        "fusion_layers": 1,
        "heads": 2,
        "max_length": 16,
        "dropout": 0.0,
        "cls_id": 1,
        "sep_id": 2,
        "mask_id": 63,
    },
    "dim": 8,
    "temperature": 0.2,
    "momentum": 0.9,
    "queue_size": 20,
}
CTP = ("mc_vision_language.methods.ctp.model:CTP", "mc_vision_language.methods.ctp.config:CTPConfig")
ITC_ALONE = {"itm": 0.0, "mlm": 0.0, "alpha": 0.0, "queue_size": 0, "momentum": 0.5}


def case(name, fields, method=ALBEF, **more):
    return MethodCase(
        name,
        partial(build_from, *method, {**TINY, **fields}),
        captioned_images,
        learning={"optimizer": "adamw", "lr": 3e-3, "steps": 60},
        same_on_two_processes=False,  # negatives of a process come from its own share
        accumulation_is_exact=False,
        **more,
    )


class TestContract(MethodContract):
    cases: ClassVar = [
        case("albef", {}),
        case("itc-alone", {**ITC_ALONE, "image": {**TINY["image"], "stem": "convolution"}}),
        case("ctp", {"momentum_first": 0.9}, CTP),
    ]
