"""What the three stages share: which parts are trained at which rate, where maps come from, how the model is saved."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from mc_core.engine.method import Batch, Method, Progress
from mc_core.errors import ConfigError
from mc_core.random import uniform
from mc_vision_language.methods.astrea.adapters import Maps
from mc_vision_language.methods.astrea.config import AstreaConfig
from mc_vision_language.methods.astrea.fusion import DRAWS, Draws, draw
from mc_vision_language.methods.astrea.model import AstreaFusion, AstreaModel

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

MAP = "map_"
"""A batch may hold kept maps instead of ``view``: ``map_detection`` (B, C, H, W) and so on."""
_ROUTER = "backbone.fusion.block.mix.router."
_SPARED = ("tag", "positions", "queries", "pos_embed", "cls_token")
_STREAM = 0xA57E  # of what chance decides for a sample
CITATION = """@article{astrea2025,
  title = {Astrea: A MOE-based Visual Understanding Model with Progressive Alignment},
  year = {2025},
  eprint = {2503.09445},
  archivePrefix = {arXiv}
}"""
_INTENDED = (
    "Sees a picture through several frozen experts, whose tokens a router weighs. Built after the abstract of Astrea, the only "
    "part of the paper that could be read: sizes, formulas and training are this project's own. It learns what its captions say, "
    "their habits, gaps and prejudices included: look at what it says before anyone relies on it. Whether weights may be passed "
    "on is for the licence of the training data to say."
)


class AstreaMethod(Method):
    """A stage of training.

    Args:
        config: see :class:`~mc_vision_language.methods.astrea.config.AstreaConfig`.
        tokenizer: of the captions.
        model: to train, such as that of the stage before, instead of the one that ``config`` describes.

    Attributes:
        model: :class:`~mc_vision_language.methods.astrea.model.AstreaModel`.

    Raises:
        ConfigError: settings that do not fit the model, or parts that cannot be had.
    """

    config: AstreaConfig

    def __init__(
        self,
        config: AstreaConfig,
        tokenizer: PreTrainedTokenizerFast | None = None,
        model: nn.Module | None = None,
    ) -> None:
        super().__init__()
        if model is not None and not isinstance(model, AstreaModel):
            raise ConfigError(f"{type(self).__name__} trains an AstreaModel, not a {type(model).__name__}")
        self.model: AstreaModel = AstreaModel(config, tokenizer) if model is None else model
        self.complete_model()
        self.config = self.model.adopt(config)

    @property
    def fusion(self) -> AstreaFusion:
        """What is trained on the experts' maps."""
        return self.model.fusion

    def complete_model(self) -> None:
        """Give the model the parts that this stage needs. Default: nothing."""

    def maps(self, batch: Batch) -> Maps:
        """The experts' maps of a batch: kept ones where it holds them, else of its views."""
        kept: dict[str, Tensor] = {kind: batch[MAP + kind] for kind in self.config.kinds if MAP + kind in batch}
        return kept if len(kept) == len(self.config.kinds) else self.model.own.maps(batch["view"])

    def draws(self, batch: Batch, progress: Progress) -> Draws | None:
        """What chance decides for each sample, a function of seed, epoch and sample; None where nothing is left to chance."""
        if not (self.config.residual.probability or self.config.expert_dropout):
            return None
        noise = uniform(progress.run_seed, int(batch["epoch"]), batch["index"], DRAWS, stream=_STREAM)
        return draw(noise, self.config)

    def rate_of(self, name: str) -> float:
        """The learning rate of a parameter of the model, as a share of the base rate; 0 where it stays as it is."""
        return self.config.router.lr_scale if name.startswith(_ROUTER) else 1.0

    def parameter_groups(self, weight_decay: float, *, decay_1d: bool = True) -> list[dict[str, Any]]:
        """By rate and decay. The router, tags, positions and learned queries never decay; biases and norms as asked."""
        return grouped(self.model, self.rate_of, weight_decay, decay_1d=decay_1d)

    def encode(self, batch: Batch) -> Tensor:
        """(B, e) unit rows of the pictures of a batch."""
        return self.fusion.embed_fused(self.model.own.fused(self.maps(batch)).tokens)

    def export_module(self) -> AstreaModel:
        """The trained model."""
        return self.model

    def save(self, folder: Path, card: Mapping[str, Any]) -> None:
        """The model with its tokenizers; see :func:`~mc_vision_language.methods.astrea.model.load_astrea`."""
        told = {"title": "Pictures seen by several experts", "description": _INTENDED, "citation": CITATION}
        self.model.save(folder, card={**told, **card})


def grouped(
    model: nn.Module, rate_of: Callable[[str], float], weight_decay: float, *, decay_1d: bool
) -> list[dict[str, Any]]:
    """Groups of an optimizer of the parameters that take gradient, full rate and decay first.

    Args:
        model: whose parameters have names.
        rate_of: name → share of the base rate, above 0.
        weight_decay: of what decays.
        decay_1d: whether biases and norms decay.
    """
    found: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        spared = name.startswith(_ROUTER) or name.rsplit(".", 1)[-1] in _SPARED or "position_embeddings" in name
        decays = not spared and (decay_1d or parameter.ndim > 1)
        found.setdefault((rate_of(name), decays), []).append(parameter)
    return [
        {"params": parameters, "weight_decay": weight_decay if decays else 0.0, "lr_scale": rate}
        for (rate, decays), parameters in sorted(found.items(), key=lambda item: item[0], reverse=True)
    ]
