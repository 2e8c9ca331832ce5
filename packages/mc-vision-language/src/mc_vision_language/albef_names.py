"""Names of tensors in the checkpoints of the official ALBEF code (salesforce/ALBEF), and which kind of checkpoint they make.

All kinds share ``visual_encoder.*`` (a timm vision transformer) and ``text_encoder.*`` (a BERT whose later layers have
``crossattention``); what belongs to the teacher ends in ``_m`` before the first dot::

    pretraining   text_encoder.bert.*, text_encoder.cls.*, vision_proj, text_proj, itm_head, temp
    retrieval     the same without text_encoder.cls and without ``bert.``; also of grounding
    vqa           text_encoder.*, and text_decoder.bert.*, text_decoder.cls.*: a decoder that looks at the question's states
    nlvr2         text_encoder.* with every fusion layer twice, keys and values shared by the two; cls_head, 2 outputs
    assignment    the same with vision_proj, text_proj and ta_head, 3 outputs: the stage before nlvr2
    entailment    text_encoder.*; cls_head, 3 outputs

Here, names of the text encoder always have ``bert.``: see :func:`with_bert`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Literal, get_args

from torch import Tensor

from mc_vision_language.model import VisionLanguageModel
from mc_vision_language.tasks.entailment import EntailmentModel
from mc_vision_language.tasks.model import TaskModel
from mc_vision_language.tasks.nlvr2 import AssignmentModel, StatementModel
from mc_vision_language.tasks.vqa import VQAModel

Layout = Literal["pretraining", "retrieval", "vqa", "nlvr2", "assignment", "entailment"]
LAYOUTS: tuple[Layout, ...] = get_args(Layout)
SAID: dict[Layout, str] = {
    "pretraining": "pretraining",
    "retrieval": "retrieval or grounding",
    "vqa": "visual question answering",
    "nlvr2": "NLVR2",
    "assignment": "text assignment, the stage before NLVR2",
    "entailment": "visual entailment",
}
TASK_MODELS: dict[Layout, type[TaskModel]] = {
    "vqa": VQAModel,
    "nlvr2": StatementModel,
    "assignment": AssignmentModel,
    "entailment": EntailmentModel,
}
DOUBLED: tuple[Layout, ...] = ("nlvr2", "assignment")
WORDS = "text_encoder.bert.embeddings.word_embeddings.weight"
POSITIONS = "visual_encoder.pos_embed"
HEAD, ASSIGNMENT_HEAD = "cls_head.2.weight", "ta_head.weight"
OUTPUTS: dict[int, Layout] = {2: "nlvr2", 3: "entailment"}
_WORDS_HEAD = "text_encoder.cls."
_PROJECTIONS = ("vision_proj.", "text_proj.")
_LAYER = {  # of a fusion layer: our name, theirs
    "self_attention.query": "attention.self.query",
    "self_attention.key": "attention.self.key",
    "self_attention.value": "attention.self.value",
    "self_attention.output": "attention.output.dense",
    "self_norm": "attention.output.LayerNorm",
    "cross_attention.query": "crossattention.self.query",
    "cross_attention.key": "crossattention.self.key",
    "cross_attention.value": "crossattention.self.value",
    "cross_attention.output": "crossattention.output.dense",
    "cross_norm": "crossattention.output.LayerNorm",
    "inner": "intermediate.dense",
    "outer": "output.dense",
    "norm": "output.LayerNorm",
}
_WORD_HEAD = {"dense": "transform.dense", "norm": "transform.LayerNorm"}
# Decoders repeat the word embeddings; queues and counters are no weights.
_IGNORED = re.compile(r"(_queue|queue_ptr|ptr_queue|position_ids|cls\.predictions\.decoder\.(weight|bias)|_queue_m)$")


def is_weight(name: str) -> bool:
    """Whether a tensor is a weight of its own.

    >>> is_weight("image_queue"), is_weight("text_encoder.cls.predictions.decoder.weight"), is_weight("temp")
    (False, False, True)
    """
    return _IGNORED.search(name) is None


def with_bert(name: str) -> str:
    """The name of pretraining, where the text encoder is a part of a model that predicts words.

    >>> with_bert("text_encoder.encoder.layer.0.output.dense.bias")
    'text_encoder.bert.encoder.layer.0.output.dense.bias'
    """
    return re.sub(r"^text_encoder\.(?=embeddings|encoder)", "text_encoder.bert.", name)


def without_bert(name: str) -> str:
    """The reverse of :func:`with_bert`."""
    return re.sub(r"^text_encoder\.bert\.", "text_encoder.", name)


def teachers_name(name: str) -> str:
    """Of the same tensor of the teacher.

    >>> teachers_name("cls_head.0.weight")
    'cls_head_m.0.weight'
    """
    module, _, rest = name.partition(".")
    return f"{module}_m.{rest}"


def layout_of(found: Mapping[str, Tensor]) -> Layout:
    """Which kind of checkpoint these tensors make.

    Args:
        found: by names :func:`with_bert`, those of the teacher left out.

    Raises:
        ValueError: a head of sentences with another number of outputs; the message says what it has.
    """
    if any(name.startswith("text_decoder.") for name in found):
        return "vqa"
    if ASSIGNMENT_HEAD in found:
        return "assignment"
    if HEAD in found:
        outputs = len(found[HEAD])
        if outputs not in OUTPUTS:
            raise ValueError(f"cls_head has {outputs} outputs; that of NLVR2 has 2, that of visual entailment 3")
        return OUTPUTS[outputs]
    return "pretraining" if any(name.startswith(_WORDS_HEAD) for name in found) else "retrieval"


def may_lack(layout: Layout) -> tuple[str, ...]:
    """Beginnings of names that a checkpoint of this kind need not hold: parts that the task does not use."""
    if layout in TASK_MODELS:
        return (_WORDS_HEAD,) if layout == "assignment" else (_WORDS_HEAD, *_PROJECTIONS)
    return (_WORDS_HEAD,) if layout == "retrieval" else ()


def layout_of_model(model: VisionLanguageModel | TaskModel) -> Layout:
    """Which kind of checkpoint holds such a model; of a pretrained one ``pretraining``."""
    for layout, kind in TASK_MODELS.items():
        if isinstance(model, kind):
            return layout
    return "pretraining"


def official_names(model: VisionLanguageModel | TaskModel) -> Iterator[tuple[str, str]]:
    """(their name, our name) of every tensor of a model."""
    head = "ta_head" if isinstance(model, AssignmentModel) else "cls_head"
    for name in model.state_dict():
        part, _, rest = name.removeprefix("net.").partition(".")
        if part == "backbone":
            yield _of_backbone(rest, model.config.text.text_layers), name
        elif part == "decoder":
            yield _of_decoder(rest), name
        elif part == "head":
            yield f"{head}.{rest}", name
        elif part == "log_temperature":
            yield "temp", name
        else:
            yield name, name


def _of_backbone(name: str, first_fusion: int) -> str:
    part, _, rest = name.partition(".")
    if part == "image":
        return rest.replace("backbone", "visual_encoder", 1)
    if part == "text":
        return rest.replace("transformer", "text_encoder.bert", 1)
    if part == "fusion":
        return _of_layer("text_encoder", rest, first_fusion)
    if part == "lm_head":
        return _of_word_head("text_encoder", rest)
    return f"{'vision_proj' if part == 'image_projection' else 'text_proj'}.{rest}"


def _of_decoder(name: str) -> str:
    part, _, rest = name.partition(".")
    if part == "layers":
        return _of_layer("text_decoder", rest, 0)
    if part == "head":
        return _of_word_head("text_decoder", rest)
    return f"text_decoder.bert.{name}"


def _of_layer(module: str, name: str, first: int) -> str:
    place, _, rest = name.removeprefix("layers.").partition(".")
    part, _, leaf = rest.rpartition(".")
    return f"{module}.bert.encoder.layer.{first + int(place)}.{_LAYER[part]}.{leaf}"


def _of_word_head(module: str, name: str) -> str:
    part, _, leaf = name.rpartition(".")
    return ".".join(filter(None, [module, "cls.predictions", _WORD_HEAD.get(part, part), leaf]))
