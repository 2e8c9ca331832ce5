"""Astrea keeps the contract of every method in each stage, at a tiny size, with small experts that nobody trained."""

from functools import partial
from typing import ClassVar

from mc_testkit.contract import MethodCase, MethodContract
from mc_testkit.toys import answered_images, build_from, captioned_images

FOLDER = "mc_vision_language.methods.astrea"
CONFIG = f"{FOLDER}.config:AstreaConfig"
JOINT = (f"{FOLDER}.joint:AstreaJoint", CONFIG)
INSTRUCTION = (f"{FOLDER}.instruct:AstreaInstruct", CONFIG)
PREALIGN = (f"{FOLDER}.prealign:AstreaPrealign", CONFIG)
LANGUAGE = {
    "vocabulary": 64,
    "hidden_size": 16,
    "heads": 2,
    "layers": 1,
    "positions": 64,
    "dropout": 0.0,
    "question_length": 8,
    "answer_length": 16,
}
EXPERT = {"image_size": 16, "width": 4, "stages": 2, "class_names": ["a", "b"]}
TINY = {
    "experts": [
        {"kind": "classification", **EXPERT},
        {"kind": "captioning", **EXPERT, "captioning": {"language": LANGUAGE}},
        {"kind": "segmentation", **EXPERT, "stem": 1},
    ],
    "image": {"image_size": 16},
    "grid": 4,
    "width": 16,
    "dim": 8,
    "text": {
        "vocabulary": 64,
        "hidden_size": 16,
        "text_layers": 1,
        "heads": 2,
        "max_length": 16,
        "dropout": 0.0,
        "cls_id": 1,
        "sep_id": 2,
        "mask_id": 63,
    },
    "language": LANGUAGE,
    "temperature": 0.2,
    "momentum": 0.99,
    "queue_size": 20,
}
EXACT = {"loss": 0.0}  # what balances is taken within each micro-batch and process
CHANCE = {
    "balance": EXACT,
    "residual": {"probability": 0.5, "source": "ema"},
    "expert_dropout": 0.3,
    "allocator": 5.0,
    "soft_targets": 0.3,
}
BIASED = {
    "balance": {"kind": "bias"},
    "router": {"top_k": 2},
    "residual": {"probability": 0.5, "source": "pre"},
    "ids": False,
}
INSTRUCT = {"router": {"text": True}, "instruct": {"projector_share": 0.3}}


def case(name, fields, method=JOINT, data=captioned_images, **more):
    return MethodCase(
        name,
        partial(build_from, *method, {**TINY, **fields}),
        data,
        learning={"optimizer": "adamw", "lr": 5e-3, "steps": 120},
        **more,
    )


class TestAstreaContract(MethodContract):
    cases: ClassVar = [
        case("joint", CHANCE),
        case("joint-biased", BIASED, falls_by=0.03),  # equal pictures and texts are told apart in vain
        case("concat", {"fusion": "concat"}),
        case(
            "prealign",
            {"prealign": {"mode": "sequential", "expert": "captioning"}},
            PREALIGN,
            accumulation_is_exact=False,  # a micro-batch has negatives of its own
        ),
        case(
            "instruct",
            INSTRUCT,
            INSTRUCTION,
            answered_images,
            same_on_two_processes=False,  # what balances, and the mean over words, are taken within a process
            accumulation_is_exact=False,
        ),
    ]
