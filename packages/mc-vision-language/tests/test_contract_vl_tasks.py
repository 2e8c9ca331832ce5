"""The tasks keep the contract of every method, at a tiny size."""

from functools import partial
from typing import ClassVar

from mc_testkit.contract import MethodCase, MethodContract
from mc_testkit.toys import AskedImages, build_from, captioned_images, judged_images

TASKS, CONFIG = "mc_vision_language.tasks", "mc_vision_language.tasks.config"
METHODS = {
    "vqa": (f"{TASKS}.vqa:VQA", f"{CONFIG}:VQAConfig"),
    "entailment": (f"{TASKS}.entailment:Entailment", f"{CONFIG}:EntailmentConfig"),
    "nlvr2": (f"{TASKS}.nlvr2:NLVR2", f"{CONFIG}:TwoImageConfig"),
    "assignment": (f"{TASKS}.nlvr2:TextAssignment", f"{CONFIG}:AssignmentConfig"),
}
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
}


def case(name, data, *, exact=True, two=False, **more):
    fields = {**TINY, **({} if name == "assignment" else {"momentum": 0.9})}
    return MethodCase(
        name,
        partial(build_from, *METHODS[name], fields),
        data,
        learning={"optimizer": "adamw", "lr": 3e-3, "steps": 60},
        same_on_two_processes=two,
        accumulation_is_exact=exact,
        **more,
    )


class TestTasksContract(MethodContract):
    cases: ClassVar = [
        case("vqa", AskedImages, two=True),
        case("entailment", partial(judged_images, labels=3)),
        case("nlvr2", partial(judged_images, views=("view_1", "view_2"))),
        case("assignment", captioned_images, exact=False, falls_by=0.0),  # wrong pictures come from the micro-batch
    ]
