"""Checkpoints of the official ALBEF code (salesforce/ALBEF), taken over and given back.

All kinds that its code writes: of pretraining, of retrieval and grounding, of visual question answering, of text assignment and
NLVR2, of visual entailment; their names are in :mod:`mc_vision_language.albef_names`. Queues are not taken over: they fill anew
in a few steps.

Legend: P patches, D features of an image token.
"""

from __future__ import annotations

import math
import pickle
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from mc_core.errors import CheckpointError, ConfigError
from mc_core.files import StrPath
from mc_vision_language.albef_names import (
    DOUBLED,
    POSITIONS,
    SAID,
    TASK_MODELS,
    WORDS,
    Layout,
    is_weight,
    layout_of,
    layout_of_model,
    may_lack,
    official_names,
    teachers_name,
    with_bert,
    without_bert,
)
from mc_vision_language.encoders_config import ImageEncoderConfig, TextEncoderConfig, VisionLanguageConfig
from mc_vision_language.model import VisionLanguageModel
from mc_vision_language.model_base import with_tokenizer
from mc_vision_language.tasks.model import TaskModel
from mc_vision_language.tasks.vqa import VQAModel

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_HEAD = 64  # features of an attention head in ViT-B and BERT-base
_MAX_LENGTH = 30
_BERT_WORDS = 30_522
_BERT_IDS = {"pad_id": 0, "cls_id": 101, "sep_id": 102, "mask_id": 103}  # of bert-base-uncased
_UNREADABLE = (  # what bytes that are no checkpoint make torch and safetensors raise
    OSError,
    RuntimeError,
    EOFError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    pickle.UnpicklingError,
    SafetensorError,
)
_LAYER = re.compile(r"text_(encoder|decoder)\.bert\.encoder\.layer\.(\d+)\.(crossattention)?")
_PATCHES = "visual_encoder.patch_embed.proj.weight"
_BLOCK = re.compile(r"visual_encoder\.blocks\.(\d+)\.")
Part = Literal["student", "teacher"]


def convert_albef_checkpoint(
    path: StrPath,
    *,
    tokenizer: PreTrainedTokenizerFast | None = None,
    image_size: int | None = None,
    image_heads: int | None = None,
    text_heads: int | None = None,
    part: Part = "student",
) -> VisionLanguageModel:
    """The model of an official checkpoint, of pretraining or fine-tuned for retrieval, in evaluation mode.

    Args:
        path: a ``.pth`` (read without running code) or ``.safetensors`` file.
        tokenizer: of the text encoder, that of ``bert-base-uncased`` for the published ones; without one only token ids can be
            used.
        image_size: side of the images, in pixels; position tables are resized bicubically. Default: that of the checkpoint.
        image_heads: attention heads of the image encoder. Default: one for every 64 features, as in the published ones.
        text_heads: the same of text encoder and fusion layers.
        part: the trained weights, or those of the moving average.

    Raises:
        CheckpointError: no such file, no checkpoint of ALBEF or one of another task, tensors that are missing or do not fit, or no
            teacher in it.
        ConfigError: a tokenizer that does not fit.
    """
    model = convert_albef(
        path,
        only=("pretraining", "retrieval"),
        tokenizer=tokenizer,
        image_size=image_size,
        image_heads=image_heads,
        text_heads=text_heads,
        part=part,
    )
    assert isinstance(model, VisionLanguageModel)
    return model


def convert_albef(
    path: StrPath,
    *,
    only: Collection[Layout] = (),
    answers: Sequence[str] = (),
    tokenizer: PreTrainedTokenizerFast | None = None,
    image_size: int | None = None,
    image_heads: int | None = None,
    text_heads: int | None = None,
    part: Part = "student",
) -> VisionLanguageModel | TaskModel:
    """The model of any official checkpoint, in evaluation mode: of which kind it is shows in its names.

    Parts of our task models that a task does not use (the head for words, the projections) are no part of its checkpoint; they are
    drawn at random, the same every time.

    Args:
        path: a ``.pth`` (read without running code) or ``.safetensors`` file.
        only: kinds to accept; default: all.
        answers: of visual question answering: the list to choose from, which a checkpoint does not hold.
        tokenizer, image_size, image_heads, text_heads, part: as for :func:`convert_albef_checkpoint`.

    Returns:
        A :class:`~mc_vision_language.model.VisionLanguageModel`, or the model of a task.

    Raises:
        CheckpointError: no such file, no checkpoint of ALBEF or of a kind not in ``only``, tensors that are missing or do not fit,
            or no teacher in it.
        ConfigError: a tokenizer that does not fit, or answers for another kind of checkpoint.
    """
    path = Path(path)
    found = _canonical(_read(path), path, part)
    layout = _layout(found, path, only)
    if answers and layout != "vqa":
        raise ConfigError(f"{path} is of {SAID[layout]}: a list of answers belongs to visual question answering")
    encoders = _config_of(found, path, layout, image_size, image_heads, text_heads)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = _empty(layout, encoders, found)
    _fill(model, found, path, layout)
    if isinstance(model, VQAModel):
        model.answers = tuple(answers)
    if tokenizer is not None:
        text = with_tokenizer(model.config, tokenizer).text.model_copy(
            update={"vocabulary": model.config.text.vocabulary}
        )
        model.config = model.config.model_copy(update={"text": text})
        model.take_tokenizer(tokenizer)
    return model.eval()


def to_albef_names(model: VisionLanguageModel | TaskModel, teacher: nn.Module | None = None) -> dict[str, Tensor]:
    """The weights of a model under the names of the official code, which ``{"model": …}`` makes a checkpoint of.

    Args:
        model: whose image encoder is a plain vision transformer; pretrained, or of any task.
        teacher: its moving average, if that is wanted too: of ``model.backbone``, or of ``model.net``.

    Raises:
        ConfigError: another image encoder.
    """
    layout = layout_of_model(model)
    spelled = without_bert if isinstance(model, TaskModel) else str
    unused = may_lack(layout)
    pairs = [(theirs, ours) for theirs, ours in official_names(model) if not theirs.startswith(unused)]
    own = model.state_dict()
    made = {spelled(theirs): own[ours] for theirs, ours in pairs}
    if _PATCHES not in made or POSITIONS not in made:
        raise ConfigError(
            "official checkpoints hold a plain vision transformer with patches and positions: this image encoder is another "
            "(image.name, or image.stem: convolution)"
        )
    if isinstance(model, VisionLanguageModel):
        made["temp"] = model.temperature.detach().clone()
    for module, words in (("text_encoder", WORDS), ("text_decoder", WORDS.replace("encoder", "decoder", 1))):
        if (bias := f"{module}.cls.predictions.bias") in made:
            made[f"{module}.cls.predictions.decoder.weight"] = made[words]
            made[f"{module}.cls.predictions.decoder.bias"] = made[bias]
    if teacher is not None:
        prefix = "net." if isinstance(model, TaskModel) else "backbone."
        followed = teacher.state_dict()
        made |= {
            teachers_name(spelled(theirs)): followed[ours.removeprefix(prefix)]
            for theirs, ours in pairs
            if ours.startswith(prefix)
        }
    return made


def resized_positions(table: Tensor, patches: int) -> Tensor:
    """(1, 1 + P′, D) of a position table (1, 1 + P, D) of a square grid, interpolated bicubically; the class token's is kept.

    >>> resized_positions(torch.zeros(1, 17, 8), 64).shape
    torch.Size([1, 65, 8])
    """
    if table.shape[1] == patches + 1:
        return table
    before, after = math.isqrt(table.shape[1] - 1), math.isqrt(patches)
    grid = table[:, 1:].unflatten(1, (before, before)).permute(0, 3, 1, 2).float()
    grid = F.interpolate(grid, (after, after), mode="bicubic", align_corners=False)
    return torch.cat([table[:, :1].float(), grid.flatten(2).transpose(1, 2)], dim=1)


def _read(path: Path) -> dict[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            content: Any = load_file(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: no such file; give an ALBEF checkpoint (.pth or .safetensors)") from error
    except _UNREADABLE as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise CheckpointError(f"{path} cannot be read as a checkpoint ({reason})") from error
    if isinstance(content, Mapping) and isinstance(content.get("model"), Mapping):
        content = content["model"]
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path} holds a {type(content).__name__}, not a checkpoint")
    return {str(name): value for name, value in content.items() if isinstance(value, Tensor)}


def _canonical(tensors: Mapping[str, Tensor], path: Path, part: Part) -> dict[str, Tensor]:
    """Those of the student or of the teacher, under the names of pretraining."""
    found: dict[str, Tensor] = {}
    teachers: dict[str, Tensor] = {}
    for name, value in tensors.items():
        if not is_weight(name):
            continue
        module, _, rest = name.partition(".")
        if module.endswith("_m"):
            teachers[with_bert(f"{module.removesuffix('_m')}.{rest}")] = value
        else:
            found[with_bert(name)] = value
    if WORDS not in found or POSITIONS not in found:
        lacking = WORDS if WORDS not in found else POSITIONS
        raise CheckpointError(f"{path} is no checkpoint of ALBEF: it has no {lacking}")
    if part == "teacher":
        if not teachers:
            raise CheckpointError(f"{path} holds no teacher (names that end in _m): take part='student'")
        found |= teachers
    return found


def _layout(found: dict[str, Tensor], path: Path, only: Collection[Layout]) -> Layout:
    """Which kind it is; what a kind holds without need is taken out."""
    try:
        layout = layout_of(found)
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from error
    if only and layout not in only:
        wanted = " or ".join(SAID[one] for one in only)
        raise CheckpointError(f"{path} is a checkpoint of {SAID[layout]}, not of {wanted}")
    if layout == "assignment":
        found.pop("temp", None)
    return layout


def _empty(
    layout: Layout, encoders: VisionLanguageConfig, found: Mapping[str, Tensor]
) -> VisionLanguageModel | TaskModel:
    if layout not in TASK_MODELS:
        return VisionLanguageModel(encoders, load_pretrained=False)
    given = {name: getattr(encoders, name) for name in VisionLanguageConfig.model_fields}
    if layout == "vqa":
        given["decoder_layers"] = len(_layers(found, "decoder")[0])
    kind = TASK_MODELS[layout]
    return kind(kind.Config(**given))


def _fill(model: VisionLanguageModel | TaskModel, found: Mapping[str, Tensor], path: Path, layout: Layout) -> None:
    pairs = {
        theirs: ours
        for theirs, ours in official_names(model)
        if theirs in found or not theirs.startswith(may_lack(layout))
    }
    if missing := sorted(set(pairs) - set(found)):
        raise CheckpointError(
            f"{path} lacks {len(missing)} tensors of ALBEF's {SAID[layout]}, such as {missing[0]}: is it complete?"
        )
    if unknown := sorted(set(found) - set(pairs)):
        raise CheckpointError(
            f"{path} holds {len(unknown)} tensors that are not of ALBEF's {SAID[layout]}, such as {unknown[0]}: "
            "give a checkpoint as the authors publish them"
        )
    own = model.state_dict()
    ours: dict[str, Tensor] = {}
    for theirs, name in pairs.items():
        value = found[theirs]
        if theirs == POSITIONS:
            value = resized_positions(value, own[name].shape[1] - 1)
        elif theirs == "temp":
            value = value.float().log()
        if value.shape != own[name].shape:
            raise CheckpointError(
                f"{path}: {theirs} has shape {tuple(value.shape)}, ALBEF of this size needs {tuple(own[name].shape)}"
            )
        ours[name] = value.to(own[name].dtype)
    model.load_state_dict({**own, **ours})


def _config_of(
    found: Mapping[str, Tensor],
    path: Path,
    layout: Layout,
    image_size: int | None,
    image_heads: int | None,
    text_heads: int | None,
) -> VisionLanguageConfig:
    try:
        patches = found[_PATCHES]
        positions = found["text_encoder.bert.embeddings.position_embeddings.weight"].shape[0]
        dim = None if "vision_proj." in may_lack(layout) else found["vision_proj.weight"].shape[0]
    except KeyError as error:
        raise CheckpointError(f"{path} is no checkpoint of ALBEF: it has no {error.args[0]}") from error
    width, patch = patches.shape[0], patches.shape[-1]
    words, hidden = found[WORDS].shape
    layers, fused = _layers(found, "encoder")
    if not fused or not layers - fused:
        lacking = "no layer that looks at the image" if not fused else "no layer that reads text alone"
        raise CheckpointError(f"{path} is no checkpoint of ALBEF: its text encoder has {lacking}")
    blocks = {int(place[1]) for name in found if (place := _BLOCK.match(name))}
    image = ImageEncoderConfig(
        image_size=image_size or math.isqrt(found[POSITIONS].shape[1] - 1) * patch,
        patch_size=patch,
        width=width,
        depth=len(blocks),
        heads=image_heads or max(1, width // _HEAD),
    )
    text = TextEncoderConfig(
        text_layers=len(layers - fused),
        fusion_layers=_pairs(found, path, layout, sorted(fused)) if layout in DOUBLED else len(fused),
        max_length=min(_MAX_LENGTH, positions),
        vocabulary=words,
        hidden_size=hidden,
        heads=text_heads or max(1, hidden // _HEAD),
        positions=positions,
    )
    if words == _BERT_WORDS:
        text = text.model_copy(update=_BERT_IDS)
    config = VisionLanguageConfig(image=image, text=text)
    return config if dim is None else config.model_copy(update={"dim": dim})


def _layers(found: Mapping[str, Tensor], module: str) -> tuple[set[int], set[int]]:
    """Places of all layers, and of those with cross-attention."""
    places = [place for name in found if (place := _LAYER.match(name)) and place[1] == module]
    return {int(place[2]) for place in places}, {int(place[2]) for place in places if place[3]}


def _pairs(found: Mapping[str, Tensor], path: Path, layout: Layout, fused: list[int]) -> int:
    """How many pairs of fusion layers; the two of each share keys and values."""
    if len(fused) % 2:
        raise CheckpointError(
            f"{path}: {SAID[layout]} has each fusion layer twice, this checkpoint has {len(fused)} of them"
        )
    for first, second in zip(fused[::2], fused[1::2], strict=True):
        for name in ("key.weight", "key.bias", "value.weight", "value.bias"):
            one, other = (
                found.get(f"text_encoder.bert.encoder.layer.{layer}.crossattention.self.{name}")
                for layer in (first, second)
            )
            if one is not None and other is not None and not torch.equal(one, other):
                raise CheckpointError(
                    f"{path}: layers {first} and {second} do not share crossattention.self.{name}, as {SAID[layout]} does"
                )
    return len(fused) // 2
