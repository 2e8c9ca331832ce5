"""Every image method keeps the contract, at a tiny size."""

from functools import partial
from typing import ClassVar

from mc_testkit.contract import MethodCase, MethodContract
from mc_testkit.toys import build_from, image_pairs

PLAIN = {"backbone": "moco-vit-tiny-8", "image_size": 16}  # LayerNorm only: nothing looks at the rest of the batch
NORMED = {"backbone": "resnet10-w16", "image_size": 16}
MOCO = ("mc_vision.methods.moco.model:MoCo", "mc_vision.methods.moco.config:MoCoConfig")
MOCO_V3 = ("mc_vision.methods.moco.model:MoCoV3", "mc_vision.methods.moco.config:MoCoV3Config")
DCL = ("mc_vision.methods.dcl.model:DCL", "mc_vision.methods.dcl.config:DCLConfig")
DCL_QUEUE = ("mc_vision.methods.dcl.model:DCLQueue", "mc_vision.methods.dcl.config:DCLQueueConfig")
DCL_V3 = ("mc_vision.methods.dcl.model:DCLV3", "mc_vision.methods.dcl.config:DCLV3Config")
QUEUE = {"queue_size": 40, "dim": 16, "momentum": {"momentum": 0.97}}
V3 = {"dim": 16, "hidden_dim": 32, "momentum": {"momentum": 0.9, "schedule": "cosine"}}


def case(name, method, fields, **more):
    exact = fields["encoder"] is PLAIN and method not in (MOCO_V3, DCL_V3, DCL)  # those heads have BatchNorm
    learning = (
        {"optimizer": "adamw", "lr": 1e-3, "steps": 120} if method in (MOCO, DCL_QUEUE) else {"lr": 0.1, "steps": 80}
    )
    more = {"learning": learning, **more}
    return MethodCase(
        name,
        partial(build_from, *method, fields),
        image_pairs,
        same_on_two_processes=exact,
        accumulation_is_exact=exact,
        **more,
    )


class TestContract(MethodContract):
    cases: ClassVar = [
        case("moco-v1", MOCO, {"encoder": PLAIN, "projector": "linear", **QUEUE}),
        case("moco-v2", MOCO, {"encoder": PLAIN, **QUEUE, "exclude_same_id": True}),
        case("moco-v2-resnet", MOCO, {"encoder": NORMED, **QUEUE, "split_bn": 2, "symmetric": True}),
        case("moco-v3", MOCO_V3, {"encoder": PLAIN, **V3}),
        case("moco-v3-resnet", MOCO_V3, {"encoder": NORMED, **V3}),
        case("dcl", DCL, {"encoder": NORMED, "dim": 16, "hidden_dim": 32}),
        case("dclw", DCL, {"encoder": PLAIN, "dim": 16, "hidden_dim": 32, "loss": "dclw"}),
        case("simclr", DCL, {"encoder": PLAIN, "dim": 16, "hidden_dim": 32, "loss": "info_nce"}),
        case("dcl-queue", DCL_QUEUE, {"encoder": PLAIN, **QUEUE}),
        case("dcl-v3", DCL_V3, {"encoder": PLAIN, **V3}),
    ]
