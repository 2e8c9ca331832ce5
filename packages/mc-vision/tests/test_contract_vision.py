"""Every image method keeps the contract, at a tiny size."""

from dataclasses import replace
from functools import partial
from typing import ClassVar

from mc_core.data import TensorData
from mc_testkit.contract import MethodCase, MethodContract
from mc_testkit.toys import build_from, image_pairs

PLAIN = {"backbone": "moco-vit-tiny-8", "image_size": 16}  # LayerNorm only: nothing looks at the rest of the batch
NORMED = {"backbone": "resnet10-w16", "image_size": 16}
MOCO = ("mc_vision.methods.moco.model:MoCo", "mc_vision.methods.moco.config:MoCoConfig")
MOCO_V3 = ("mc_vision.methods.moco.model:MoCoV3", "mc_vision.methods.moco.config:MoCoV3Config")
DCL = ("mc_vision.methods.dcl.model:DCL", "mc_vision.methods.dcl.config:DCLConfig")
DCL_QUEUE = ("mc_vision.methods.dcl.model:DCLQueue", "mc_vision.methods.dcl.config:DCLQueueConfig")
DCL_V3 = ("mc_vision.methods.dcl.model:DCLV3", "mc_vision.methods.dcl.config:DCLV3Config")
SWAV = ("mc_vision.methods.swav.model:SwAV", "mc_vision.methods.swav.config:SwAVConfig")
CODES = {"dim": 16, "hidden_dim": 32, "prototypes": 6}
MMC = ("mc_vision.methods.mmc.model:MMC", "mc_vision.methods.mmc.config:MMCConfig")
TINY_MMC = {"encoder": PLAIN, "dim": 16, "hidden_dim": 32, "outputs": 32, "momentum": {"momentum": 0.9}}
# a distillation starts easy and grows harder, as the teacher's classes come apart: what must fall is the reconstruction
LOCAL_MMC = {"contrast_weight": 0.0, "reconstruction_weight": 10.0, "distillation_weight": 0.02}
QUEUE = {"queue_size": 40, "dim": 16, "momentum": {"momentum": 0.97}}
V3 = {"dim": 16, "hidden_dim": 32, "momentum": {"momentum": 0.9, "schedule": "cosine"}}


PAIRS = image_pairs().tensors
CROPS = partial(TensorData, **PAIRS, view_3=PAIRS["view_1"][..., 4:12, 4:12], view_4=PAIRS["view_2"][..., :8, :8])


def case(name, method, fields, **more):
    exact = fields["encoder"] is PLAIN and method not in (MOCO_V3, DCL_V3, DCL)  # those heads have BatchNorm
    learning = (
        {"optimizer": "adamw", "lr": 1e-3, "steps": 120} if method in (MOCO, DCL_QUEUE) else {"lr": 0.03, "steps": 60}
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
        replace(case("swav", SWAV, {"encoder": NORMED, **CODES, "freeze_prototypes_steps": 3}), data=CROPS),
        replace(
            case(
                "swav-queue",
                SWAV,
                {"encoder": PLAIN, "projector": "mlp", **CODES, "freeze_prototypes_steps": 2}
                | {"queue_size": 24, "queue_start_epoch": 0},
            ),
            data=CROPS,
        ),
        MethodCase(  # its contrast has BatchNorm, so only the undivided batch is the undivided batch
            "mmc",
            partial(build_from, *MMC, TINY_MMC),
            image_pairs,
            learning={"optimizer": "adamw", "lr": 1e-3, "steps": 120},
            same_on_two_processes=False,
            accumulation_is_exact=False,
        ),
        MethodCase(  # and copies come from the images of one process
            "mmc-local",
            partial(build_from, *MMC, {**TINY_MMC, **LOCAL_MMC, "corruption": {"copy_p": 0.0}}),
            image_pairs,
            learning={"optimizer": "adamw", "lr": 3e-3, "steps": 120},
        ),
    ]
