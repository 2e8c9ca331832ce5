"""Checkpoints of the official ALBEF code (salesforce/ALBEF), taken over and given back.

Their names: ``visual_encoder.*`` (a timm vision transformer), ``text_encoder.bert.*`` (a BERT whose later layers have
``crossattention``), ``text_encoder.cls.*``, ``vision_proj``, ``text_proj``, ``itm_head``, ``temp``; the teacher's end in ``_m``. In
checkpoints fine-tuned for retrieval ``bert.`` and ``cls`` are missing. Queues are not taken over: they fill anew in a few steps.

Legend: P patches, D features of an image token.
"""

from __future__ import annotations

import math
import pickle
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from mc_core.errors import CheckpointError
from mc_core.files import StrPath
from mc_vision_language.backbone import Backbone
from mc_vision_language.encoders_config import ImageEncoderConfig, TextEncoderConfig, VisionLanguageConfig
from mc_vision_language.model import VisionLanguageModel
from mc_vision_language.model_base import with_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_HEAD = 64  # features of an attention head in ViT-B and BERT-base
_MAX_LENGTH = 30
_BERT_WORDS = 30_522
_BERT_IDS = {"pad_id": 0, "cls_id": 101, "sep_id": 102, "mask_id": 103}  # of bert-base-uncased
_LAYER = (  # of a fusion layer: their name, ours
    ("attention.self.query", "self_attention.query"),
    ("attention.self.key", "self_attention.key"),
    ("attention.self.value", "self_attention.value"),
    ("attention.output.dense", "self_attention.output"),
    ("attention.output.LayerNorm", "self_norm"),
    ("crossattention.self.query", "cross_attention.query"),
    ("crossattention.self.key", "cross_attention.key"),
    ("crossattention.self.value", "cross_attention.value"),
    ("crossattention.output.dense", "cross_attention.output"),
    ("crossattention.output.LayerNorm", "cross_norm"),
    ("intermediate.dense", "inner"),
    ("output.dense", "outer"),
    ("output.LayerNorm", "norm"),
)
_HEADS = (
    ("text_encoder.cls.predictions.transform.dense", "lm_head.dense"),
    ("text_encoder.cls.predictions.transform.LayerNorm", "lm_head.norm"),
    ("vision_proj", "image_projection"),
    ("text_proj", "text_projection"),
)
_WORDS = "text_encoder.bert.embeddings.word_embeddings.weight"
_POSITIONS = "visual_encoder.pos_embed"
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
# The decoder repeats the word embeddings; queues and counters are no weights.
_IGNORED = re.compile(r"(_queue|queue_ptr|ptr_queue|position_ids|cls\.predictions\.decoder\.(weight|bias)|_queue_m)$")


def convert_albef_checkpoint(
    path: StrPath,
    *,
    tokenizer: PreTrainedTokenizerFast | None = None,
    image_size: int | None = None,
    image_heads: int | None = None,
    text_heads: int | None = None,
    part: Literal["student", "teacher"] = "student",
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
        CheckpointError: no such file, no checkpoint of ALBEF, tensors that are missing or do not fit, or no teacher in it.
        ConfigError: a tokenizer that does not fit.
    """
    found = _canonical(_read(Path(path)), Path(path), part)
    config = _config_of(found, Path(path), image_size, image_heads, text_heads)
    model = VisionLanguageModel(config, load_pretrained=False)
    ours: dict[str, Tensor] = {}
    own = model.state_dict()
    pairs = dict(_names(model))
    pairs = {
        theirs: name for theirs, name in pairs.items() if theirs in found or not theirs.startswith("text_encoder.cls.")
    }
    if missing := sorted(set(pairs) - set(found)):
        raise CheckpointError(f"{path} lacks {len(missing)} tensors of ALBEF, such as {missing[0]}: is it complete?")
    if unknown := sorted(set(found) - set(pairs)):
        raise CheckpointError(
            f"{path} holds {len(unknown)} tensors that are not of ALBEF's pretraining or retrieval, such as {unknown[0]}: "
            "give a checkpoint of one of those"
        )
    for theirs, name in pairs.items():
        value = found[theirs]
        if theirs == _POSITIONS:
            value = resized_positions(value, own[name].shape[1] - 1)
        elif theirs == "temp":
            value = value.float().log()
        if value.shape != own[name].shape:
            raise CheckpointError(
                f"{path}: {theirs} has shape {tuple(value.shape)}, ALBEF of this size needs {tuple(own[name].shape)}"
            )
        ours[name] = value.to(own[name].dtype)
    model.load_state_dict({**own, **ours})
    if tokenizer is not None:
        text = with_tokenizer(model.config, tokenizer).text.model_copy(
            update={"vocabulary": model.config.text.vocabulary}
        )
        model.config = model.config.model_copy(update={"text": text})
        model.take_tokenizer(tokenizer)
    return model.eval()


def to_albef_names(model: VisionLanguageModel, teacher: Backbone | None = None) -> dict[str, Tensor]:
    """The weights of a model under the names of the official code, which ``{"model": …}`` makes a checkpoint of.

    Args:
        model: whose image encoder is a plain vision transformer.
        teacher: its moving average, if that is wanted too.
    """
    own = model.state_dict()
    made = {theirs: own[name] for theirs, name in _names(model)}
    made["temp"] = model.temperature.detach().clone()
    made["text_encoder.cls.predictions.decoder.weight"] = made[_WORDS]
    made["text_encoder.cls.predictions.decoder.bias"] = made["text_encoder.cls.predictions.bias"]
    if teacher is not None:
        followed = teacher.state_dict()
        for theirs, name in _names(model):
            if name.startswith("backbone."):
                made[_teachers_name(theirs)] = followed[name.removeprefix("backbone.")]
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


def _names(model: VisionLanguageModel) -> Iterator[tuple[str, str]]:
    """(their name, our name) of every tensor."""
    backbone = "backbone."
    fused = model.config.text.text_layers
    for name in model.state_dict():
        inner = name.removeprefix(backbone)
        if inner.startswith("image.backbone."):
            yield inner.replace("image.backbone", "visual_encoder", 1), name
        elif inner.startswith("text.transformer."):
            yield inner.replace("text.transformer", "text_encoder.bert", 1), name
        elif inner.startswith("fusion.layers."):
            place, _, rest = inner.removeprefix("fusion.layers.").partition(".")
            part, _, leaf = rest.rpartition(".")
            (theirs,) = (other for other, ours in _LAYER if ours == part)
            yield f"text_encoder.bert.encoder.layer.{fused + int(place)}.{theirs}.{leaf}", name
        elif inner == "lm_head.bias":
            yield "text_encoder.cls.predictions.bias", name
        elif name.startswith("itm_head."):
            yield name, name
        elif name == "log_temperature":
            yield "temp", name
        else:
            part, _, leaf = inner.rpartition(".")
            (theirs,) = (other for other, ours in _HEADS if ours == part)
            yield f"{theirs}.{leaf}", name


def _teachers_name(name: str) -> str:
    module, _, rest = name.partition(".")
    return f"{module}_m.{rest}"


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


def _canonical(tensors: Mapping[str, Tensor], path: Path, part: str) -> dict[str, Tensor]:
    """Those of the student or of the teacher, under the names of pretraining."""
    found: dict[str, Tensor] = {}
    teachers: dict[str, Tensor] = {}
    for name, value in tensors.items():
        if _IGNORED.search(name):
            continue
        module, _, rest = name.partition(".")
        if module.endswith("_m"):
            teachers[_with_bert(f"{module.removesuffix('_m')}.{rest}")] = value
        else:
            found[_with_bert(name)] = value
    if _WORDS not in found or _POSITIONS not in found:
        lacking = _WORDS if _WORDS not in found else _POSITIONS
        raise CheckpointError(f"{path} is no checkpoint of ALBEF: it has no {lacking}")
    if part == "teacher":
        if not teachers:
            raise CheckpointError(f"{path} holds no teacher (names that end in _m): take part='student'")
        found |= teachers
    return found


def _with_bert(name: str) -> str:
    return re.sub(r"^text_encoder\.(?=embeddings|encoder)", "text_encoder.bert.", name)


def _config_of(
    found: Mapping[str, Tensor], path: Path, image_size: int | None, image_heads: int | None, text_heads: int | None
) -> VisionLanguageConfig:
    try:
        width, patch = (
            found["visual_encoder.patch_embed.proj.weight"].shape[0],
            found["visual_encoder.patch_embed.proj.weight"].shape[-1],
        )
        dim = found["vision_proj.weight"].shape[0]
    except KeyError as error:
        raise CheckpointError(f"{path} is no checkpoint of ALBEF: it has no {error.args[0]}") from error
    words, hidden = found[_WORDS].shape
    layers = {int(m[1]) for name in found if (m := re.match(r"text_encoder\.bert\.encoder\.layer\.(\d+)\.", name))}
    fused = {
        int(m[1])
        for name in found
        if (m := re.match(r"text_encoder\.bert\.encoder\.layer\.(\d+)\.crossattention", name))
    }
    blocks = {int(m[1]) for name in found if (m := re.match(r"visual_encoder\.blocks\.(\d+)\.", name))}
    grid = math.isqrt(found[_POSITIONS].shape[1] - 1)
    image = ImageEncoderConfig(
        image_size=image_size or grid * patch,
        patch_size=patch,
        width=width,
        depth=len(blocks),
        heads=image_heads or max(1, width // _HEAD),
    )
    text = TextEncoderConfig(
        text_layers=len(layers - fused),
        fusion_layers=len(fused),
        max_length=min(_MAX_LENGTH, found["text_encoder.bert.embeddings.position_embeddings.weight"].shape[0]),
        vocabulary=words,
        hidden_size=hidden,
        heads=text_heads or max(1, hidden // _HEAD),
        positions=found["text_encoder.bert.embeddings.position_embeddings.weight"].shape[0],
    )
    if words == _BERT_WORDS:
        text = text.model_copy(update=_BERT_IDS)
    return VisionLanguageConfig(image=image, text=text, dim=dim)
