"""MSD keeps the contract of every method, at a tiny size, with each kind of keys."""

from functools import partial
from typing import ClassVar

from mc_testkit.contract import MethodCase, MethodContract
from mc_testkit.toys import build_from, image_text_pairs

MSD = ("mc_medical.methods.msd.model:MSD", "mc_medical.methods.msd.config:MSDConfig")
TINY = {
    "image": {"image_size": 16, "width": 8, "stages": 2},
    "text": {"vocabulary": 64, "hidden_size": 16, "layers": 1, "heads": 2, "max_length": 16, "dropout": 0.0},
    "dim": 8,
    "temperature": 0.2,
    "horizon_share": 1.0,
    "horizon": 100.0,
}


def case(name, fields, *, two=True, exact=True, **more):
    return MethodCase(
        name,
        partial(build_from, *MSD, {**TINY, **fields}),
        image_text_pairs,
        learning={"optimizer": "adamw", "lr": 3e-3, "steps": 60},
        same_on_two_processes=two,
        accumulation_is_exact=exact,
        **more,
    )


class TestContract(MethodContract):
    cases: ClassVar = [
        case("msd", {}, two=False),
        case("msd-queue", {"queue_size": 20, "intra_modal": 0.5, "alpha": 0.0}, two=False),
        case("grad-cache", {"keys": "grad_cache"}, two=False),
        case("grad-cache-ema-targets", {"keys": "grad_cache+ema_targets"}),
        case("plain-accumulation", {"keys": "batch"}, two=False, exact=False),
    ]
