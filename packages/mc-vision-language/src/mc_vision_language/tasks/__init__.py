"""What a pretrained model is trained further for: retrieval, questions, statements, entailment, grounding.

``finetune_task(task, model, rows, recipe, run_dir)`` trains and measures any of them. Public names load on first use; importing
this package loads no torch.
"""

from typing import TYPE_CHECKING, Any

from mc_core.lazy import attach
from mc_core.recipes import MethodTable

if TYPE_CHECKING:
    from mc_vision_language.tasks.entailment import EntailmentModel
    from mc_vision_language.tasks.grounding import Located, ground, heat_map, measure_grounding
    from mc_vision_language.tasks.measure import TaskScores, measure_judged, measure_vqa
    from mc_vision_language.tasks.nlvr2 import AssignmentModel, StatementModel
    from mc_vision_language.tasks.recipe import TaskRecipe, resolve_task_recipe, task_of
    from mc_vision_language.tasks.sample import sample_task_rows
    from mc_vision_language.tasks.training import TaskResult, finetune_task, load_task_model, measure_task
    from mc_vision_language.tasks.vqa import VQAModel

_PACKAGE = "mc_vision_language"

TASKS = MethodTable(
    {
        "vqa": (f"{_PACKAGE}.tasks.config:VQAConfig", f"{_PACKAGE}.tasks.vqa:VQA"),
        "assignment": (f"{_PACKAGE}.tasks.config:AssignmentConfig", f"{_PACKAGE}.tasks.nlvr2:TextAssignment"),
        "nlvr2": (f"{_PACKAGE}.tasks.config:TwoImageConfig", f"{_PACKAGE}.tasks.nlvr2:NLVR2"),
        "entailment": (f"{_PACKAGE}.tasks.config:EntailmentConfig", f"{_PACKAGE}.tasks.entailment:Entailment"),
        "retrieval": (f"{_PACKAGE}.methods.albef.config:ALBEFConfig", f"{_PACKAGE}.methods.albef.model:ALBEF"),
        "grounding": (f"{_PACKAGE}.methods.albef.config:ALBEFConfig", f"{_PACKAGE}.methods.albef.model:ALBEF"),
    }
)
"""Every task by name. ``assignment`` is the stage before ``nlvr2``; retrieval and grounding are learnt by contrast and matching."""

_NAMES = {
    "entailment": ["EntailmentModel"],
    "grounding": ["Located", "ground", "heat_map", "measure_grounding"],
    "measure": ["TaskScores", "measure_judged", "measure_vqa"],
    "nlvr2": ["AssignmentModel", "StatementModel"],
    "recipe": ["TaskRecipe", "resolve_task_recipe", "task_of"],
    "sample": ["sample_task_rows"],
    "training": ["TaskResult", "finetune_task", "load_task_model", "measure_task"],
    "vqa": ["VQAModel"],
}

__all__ = [
    "TASKS",
    "AssignmentModel",
    "EntailmentModel",
    "Located",
    "StatementModel",
    "TaskRecipe",
    "TaskResult",
    "TaskScores",
    "VQAModel",
    "finetune_task",
    "ground",
    "heat_map",
    "load_task_model",
    "measure_grounding",
    "measure_judged",
    "measure_task",
    "measure_vqa",
    "resolve_task_recipe",
    "sample_task_rows",
    "task_of",
]

_load, __dir__ = attach(__name__, _NAMES)


def __getattr__(name: str) -> Any:
    return _load(name)
