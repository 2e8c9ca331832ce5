"""Participant contrast keeps the contract of every method, at a tiny size, in all its frameworks."""

from functools import partial
from typing import ClassVar

import torch

from mc_core.data import TensorData
from mc_testkit.contract import MethodCase, MethodContract
from mc_testkit.toys import build_from

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


def signal_pairs(count: int = 48, seed: int = 0) -> TensorData:
    """Waves of a person's own rate, each time with another phase: ``view_1``, ``view_2``, ``signal`` (count, 2, 64), ``ids``."""
    generator = torch.Generator().manual_seed(seed)
    time = torch.arange(64) / 16.0
    rate = torch.linspace(0.5, 3.0, count)[:, None, None]

    def wave() -> torch.Tensor:
        phase = 6.3 * torch.rand(count, 2, 1, generator=generator)
        noise = 0.1 * torch.randn(count, 2, 64, generator=generator)
        return torch.sin(6.2832 * rate * time + phase) + noise

    return TensorData(view_1=wave(), view_2=wave(), signal=wave(), ids=torch.arange(count) // 2)


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
