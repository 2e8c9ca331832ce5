"""Participant contrast keeps the contract of every method, at a tiny size, in all its frameworks."""

from functools import partial
from typing import ClassVar

from mc_testkit.contract import MethodCase, MethodContract
from mc_testkit.toys import build_from, signal_pairs

GEOMETRY = {"channels": 2, "sampling_rate": 16.0, "seconds": 4.0}
PLAIN = {
    **GEOMETRY,
    "architecture": "vit",
    "width": 16,
    "depth": 2,
}  # LayerNorm only: nothing looks at the rest of the batch
NORMED = {**GEOMETRY, "width": 36, "expansion": 2, "downsample": 8}
PARTICIPANT = (
    "mc_wearables.methods.participant.model:ParticipantContrast",
    "mc_wearables.methods.participant.config:ParticipantConfig",
)
SMALL = {"dim": 8, "hidden_dim": 32, "dropout": 0.0, "temperature": 0.1, "momentum": {"momentum": 0.9}}


def case(name, fields, *, exact=True, two=False, **more):
    learning = {"optimizer": "adamw", "lr": 3e-3, "steps": 120}
    return MethodCase(
        name,
        partial(build_from, *PARTICIPANT, {**SMALL, **fields}),
        signal_pairs,
        learning={**learning, **more.pop("learning", {})},
        same_on_two_processes=two,
        accumulation_is_exact=exact,
        **more,
    )


class TestContract(MethodContract):
    cases: ClassVar = [
        case("momentum", {"encoder": PLAIN, "frozen_steps": 2}, two=True),
        case("momentum-efficientnet", {"encoder": NORMED, "dropout": 0.1}, exact=False),
        case("plain-info-nce", {"encoder": PLAIN, "within_view": False, "mask_same_participant": "within-view"}),
        case("simclr", {"encoder": PLAIN, "framework": "simclr", "joint_views": True}, two=True),
        case("byol", {"encoder": PLAIN, "framework": "byol", "koleo_weight": 0.0}, falls_by=0.01),
        case(
            "byol-normed", {"encoder": PLAIN, "framework": "byol", "head_norm": True, "koleo_weight": 0.0}, exact=False
        ),
    ]
