"""HPCL-Net and scene contrast keep the contract of every method, at a tiny size."""

from functools import partial
from typing import ClassVar

from mc_testkit.contract import MethodCase, MethodContract
from mc_testkit.toys import build_from, labelled_tiles, scene_pairs

BANDS = {"names": ("red", "green", "blue"), "mean": (100.0, 100.0, 100.0), "std": (10.0, 10.0, 10.0)}
SMALL = {"backbone": "small-w4"}
PLAIN = {  # nothing looks at the rest of the batch
    "modality": "fused",
    "image": SMALL,
    "elevation": SMALL,
    "output_stride": 8,
    "width": 8,
    "rates": (1,),
    "dropout": 0.0,
    "reduction": 4,
    "detail_width": 4,
    "decoder_width": 8,
    "decoder_layers": 1,
    "norm": "layer",
}
NORMED = {**PLAIN, "norm": "batch", "dropout": 0.1}
HPCL = ("mc_remote_sensing.methods.hpcl_net.model:HPCLNet", "mc_remote_sensing.methods.hpcl_net.config:HPCLNetConfig")
SCENE = (
    "mc_remote_sensing.methods.scene_contrast.model:SceneContrast",
    "mc_remote_sensing.methods.scene_contrast.config:SceneContrastConfig",
)
CONTRAST = {
    "dim": 8,
    "queue_size": 110,  # two steps of keys fit, six do not
    "cells_per_class": 6,
    "background_cells": 3,
    "modality_dropout": 0.25,
    "momentum": {"momentum": 0.9},
    "weight": 0.5,
    "warmup": 0.1,
    "bands": BANDS,
}


def hpcl(name, network, *, exact=True, two=False, **fields):
    return MethodCase(
        name,
        partial(build_from, *HPCL, {**CONTRAST, "network": network, **fields}),
        labelled_tiles,
        learning={"optimizer": "adamw", "lr": 3e-3},
        same_on_two_processes=two,
        accumulation_is_exact=exact,
        keys_by_sample=False,
    )


def scene(name, *, exact=True, **fields):
    plain = {"image": SMALL, "elevation": SMALL, "output_stride": 8, "norm": "layer", "dim": 8, "queue_size": 32}
    return MethodCase(
        name,
        partial(build_from, *SCENE, {**plain, "momentum": {"momentum": 0.98}, "temperature": 0.1, **fields}),
        scene_pairs,
        learning={"optimizer": "adamw", "lr": 2e-3, "steps": 100},
        same_on_two_processes=False,  # would be, but starting two processes takes seconds, and its parts are the core's
        accumulation_is_exact=exact,
    )


class TestContract(MethodContract):
    cases: ClassVar = [
        hpcl("hpcl-net", PLAIN, two=True),
        hpcl("hpcl-net-normed", NORMED, exact=False),
        scene("scene-contrast"),
        scene("scene-contrast-dcl", norm="batch", modality="image", loss="dcl", exact=False),
    ]
