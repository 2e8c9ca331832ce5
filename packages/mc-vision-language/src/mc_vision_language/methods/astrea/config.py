"""Settings of Astrea. Imports no torch.

Only the abstract of the paper (arXiv:2503.09445) could be read: it names four experts, a router with adapters, pre-alignment by
contrast, a residual that is switched on at random, adaptive weight allocators and momentum contrast. All numbers, and how each of
these is computed, are this project's choice.
"""

from __future__ import annotations

from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from mc_core.engine.config import Fit, StrictModel
from mc_vision_language.data.options import CaptionOptions
from mc_vision_language.encoders_config import TextEncoderConfig
from mc_vision_language.experts.config import KINDS, ExpertConfig, Kind
from mc_vision_language.language_config import LanguageConfig

Fusion = Literal["routed", "uniform", "concat", "single"]
ResidualSource = Literal["pre", "ema", "expert"]


class PictureConfig(StrictModel):
    """The view that all experts share; each resizes and normalises it by itself.

    >>> PictureConfig().image_size
    64
    """

    image_size: int = Field(default=64, ge=16)
    """Side of the views, in pixels."""


class RouterConfig(StrictModel):
    """How much each expert counts.

    >>> RouterConfig().floor, RouterConfig(top_k=2).top_k
    (0.05, 2)
    """

    per: Literal["token", "image"] = "token"
    """Weights for each place of the grid, or for the whole picture."""
    floor: float = Field(default=0.05, ge=0, lt=0.5)
    """ε: least weight of an expert, so that none dies."""
    temperature: float = Field(default=1.0, gt=0)
    """τ_g: logits are divided by it."""
    lr_scale: float = Field(default=0.1, gt=0)
    """The router's learning rate, as a share of the others'; at the full rate all weight goes to one expert."""
    top_k: int | None = Field(default=None, ge=1)
    """Keep the weights of so many experts, renormalised; default: all."""
    text: bool = False
    """Whether the router reads the question too, where there is one. Captions in contrast are never shown to it."""


class BalanceConfig(StrictModel):
    """What keeps experts in use: terms of the loss, or a bias that only changes which are selected.

    >>> BalanceConfig().loss, BalanceConfig(kind="bias").speed
    (0.01, 0.001)
    """

    kind: Literal["loss", "importance", "bias"] = "loss"
    """`loss`: E Σ f p̄, as in Switch and V-MoE; `importance`: squared variation of summed weights; `bias`: no loss, a bias on what
    is selected (needs `router.top_k`)."""
    loss: float = Field(default=0.01, ge=0)
    """λ_bal: weight of the balance loss; counts with a hard top-k or weights for each token alone."""
    z: float = Field(default=0.001, ge=0)
    """λ_z: weight of the squared log-sum of the router's logits."""
    speed: float = Field(default=1e-3, gt=0)
    """u: what the bias of an expert moves in a step."""


class ResidualConfig(StrictModel):
    """The shortcut that is switched on at random.

    >>> ResidualConfig().probability
    0.0
    """

    probability: float = Field(default=0.0, ge=0, le=1)
    """q: how often a sample has it in training, scaled by 1/q; evaluation always has it. 0: there is none; 1: a plain residual."""
    source: ResidualSource = "pre"
    """What is added: the mean over experts of their adapters as they were when joint training began (`pre`) or of their moving
    average (`ema`), or one expert at random (`expert`)."""


class PrealignConfig(StrictModel):
    """How adapters are aligned with texts before the router is trained.

    >>> PrealignConfig().mode
    'none'
    """

    mode: Literal["sequential", "parallel", "none"] = "none"
    """`sequential`: experts join one after another, from meaning to place; `parallel`: all at once, without the cross term."""
    cross: float = Field(default=0.5, ge=0)
    """λ_x: weight of the contrast of an expert with the mean of those before it."""
    expert: Kind | None = None
    """Which expert joins in this stage; filled in by the run of all stages. Default: the first."""
    joined_lr: float = Field(default=0.1, ge=0)
    """Rate of adapters that have joined, and of the text tower after the first expert, as a share of the others'."""


class InstructConfig(StrictModel):
    """How a language model learns to read the visual tokens.

    >>> InstructConfig().contrast
    0.1
    """

    contrast: float = Field(default=0.1, ge=0)
    """Weight of momentum contrast beside the language model's loss; 0: off."""
    projector_share: float = Field(default=0.1, ge=0, lt=1)
    """Share of the updates, the first ones, in which the projector alone moves."""
    fusion_lr: float = Field(default=0.1, ge=0)
    """Rate of adapters, fusion and pooling, as a share of the others'; 0: they stay as they are."""
    language_lr: float = Field(default=1.0, ge=0)
    """Rate of the language model, as a share of the projector's; 0: it stays as it is."""


class StageConfig(StrictModel):
    """What a stage trains otherwise than the recipe's ``fit``, which is that of joint training.

    >>> StageConfig(steps=100, lr=1e-3).fit(Fit(epochs=1, lr=2e-3)).steps
    100
    """

    epochs: int | None = Field(default=None, ge=1)
    """Passes over the data; replaces `fit.epochs` and `fit.steps`."""
    steps: int | None = Field(default=None, ge=1)
    """Optimizer steps; replaces `fit.epochs` and `fit.steps`."""
    lr: float | None = Field(default=None, gt=0)
    """Peak learning rate."""
    batch_size: int | None = Field(default=None, ge=1)
    """Samples of an optimizer step."""

    def fit(self, base: Fit) -> Fit:
        """``base`` with what is said here in its place."""
        changes = {name: value for name, value in self.model_dump().items() if value is not None}
        if "epochs" in changes or "steps" in changes:
            changes = {"epochs": None, "steps": None, **changes}
        return Fit.model_validate({**base.model_dump(), **changes})

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.epochs is not None and self.steps is not None:
            raise ValueError(f"give epochs ({self.epochs}) or steps ({self.steps}), not both")
        return self


class StagesConfig(StrictModel):
    """The stages beside joint training; those of experts and of pre-alignment hold for each expert."""

    experts: StageConfig = StageConfig()
    """Each expert on its own labels."""
    prealign: StageConfig = StageConfig()
    """The alignment of each expert, or of all where that is parallel."""
    instruct: StageConfig = StageConfig()
    """The language model."""


class AstreaConfig(StrictModel):
    """Astrea. Baselines are settings of ``fusion``.

    >>> config = AstreaConfig(expert_features={"detection": 8, "classification": 4})
    >>> config.kinds, config.tokens
    (('classification', 'detection'), 64)
    """

    matching: ClassVar[bool] = False

    experts: tuple[ExpertConfig, ...] = tuple(ExpertConfig(kind=kind) for kind in KINDS)
    """The experts, of different kinds."""
    expert_features: dict[Kind, int] = Field(default_factory=dict)
    """C_k: channels of each expert's map; filled in from the experts."""
    image: PictureConfig = PictureConfig()
    """The view that experts share."""
    grid: int = Field(default=8, ge=1)
    """G: maps are brought to G × G places."""
    width: int = Field(default=96, ge=4)
    """d: features of a fused visual token."""
    dim: int = Field(default=96, ge=2)
    """e: width of the space that pictures and texts share."""
    fusion: Fusion = "routed"
    """`routed`: weights by the router; baselines: `uniform` weights, channels side by side (`concat`), one expert (`single`)."""
    single: Kind | None = None
    """With `fusion: single`: which expert."""
    mlp_ratio: float = Field(default=2.0, gt=0)
    """Units of the fusion's MLP, in widths."""
    pool_queries: int = Field(default=4, ge=1)
    """Learned queries that pool the tokens."""
    pool_heads: int = Field(default=4, ge=1)
    """Attention heads of the pooling."""
    router: RouterConfig = RouterConfig()
    """Weights of experts."""
    balance: BalanceConfig = BalanceConfig()
    """What keeps all of them in use."""
    allocator: float = Field(default=0.0)
    """η: how far measured usefulness shifts the router's logits; above 0 it lifts experts that are used too little, below 0 it
    rewards useful ones. 0: off, usefulness is measured all the same."""
    residual: ResidualConfig = ResidualConfig()
    """The shortcut switched on at random."""
    expert_dropout: float = Field(default=0.0, ge=0, lt=1)
    """How often a sample is trained without one of its experts, so that any of them can be missing."""

    text: TextEncoderConfig = TextEncoderConfig()
    """The text tower: the text layers of a BERT-style transformer, without fusion layers."""
    captions: CaptionOptions = CaptionOptions()
    """What of a caption, or of a query, is kept."""
    language: LanguageConfig = LanguageConfig()
    """The language model that answers."""

    answers: bool = False
    """Whether there is a language model; filled in by instruction tuning."""

    temperature: float = Field(default=0.07, ge=0.01, le=1)
    """Where the temperature starts; it is learned, at least 0.01."""
    momentum: float = Field(default=0.995, ge=0, le=1)
    """m of the moving average that makes the keys."""
    queue_size: int = Field(default=16_384, ge=0)
    """Keys of earlier steps to contrast with, for pictures and for texts; 0: none."""
    ids: bool = True
    """Pairs with the same picture or the same words are positives of each other; off, a pair is its own positive alone."""
    soft_targets: float = Field(default=0.0, ge=0, le=1)
    """Share of the targets that comes from the moving average, as in ALBEF; 0: off."""

    prealign: PrealignConfig = PrealignConfig()
    """Pre-alignment."""
    instruct: InstructConfig = InstructConfig()
    """Instruction tuning."""
    stages: StagesConfig = StagesConfig()
    """How the other stages are trained."""

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """The experts in the order in which they are aligned; of ``single`` that one."""
        known = set(self.expert_features) or {one.kind for one in self.experts}
        return tuple(kind for kind in KINDS if kind in known and (self.fusion != "single" or kind == self.single))

    @property
    def tokens(self) -> int:
        """N: visual tokens of a picture."""
        return self.grid**2

    @property
    def routes(self) -> bool:
        """Whether there is a router."""
        return self.fusion == "routed"

    @property
    def biased(self) -> bool:
        """Whether experts are selected by a balancing bias."""
        return self.routes and self.balance.kind == "bias"

    @property
    def balance_weight(self) -> float:
        """λ_bal where it counts: with hard selection or weights for each token; else 0."""
        wanted = self.routes and not self.biased and (self.router.top_k is not None or self.router.per == "token")
        return self.balance.loss if wanted else 0.0

    @property
    def reference(self) -> bool:
        """Whether a second set of adapters is kept for the residual."""
        return self.residual.probability > 0 and self.residual.source != "expert"

    def only(self, kinds: tuple[Kind, ...]) -> AstreaConfig:
        """The same without the other experts."""
        features = {kind: count for kind, count in self.expert_features.items() if kind in kinds}
        experts = tuple(one for one in self.experts if one.kind in kinds)
        return AstreaConfig.model_validate({**self.model_dump(), "experts": experts, "expert_features": features})

    @model_validator(mode="after")
    def _check(self) -> Self:
        given = [one.kind for one in self.experts]
        if len(set(given)) < len(given):
            raise ValueError(f"experts are of the kinds {', '.join(given)}: each kind once")
        if not given and not self.expert_features:
            raise ValueError("experts is empty: give one at least")
        if (self.fusion == "single") != (self.single is not None):
            raise ValueError(
                f"fusion {self.fusion} and single {self.single}: name an expert in single exactly for fusion: single"
            )
        if not self.kinds:
            raise ValueError(f"single: there is no {self.single} expert, only {', '.join(given)}")
        if self.width % self.pool_heads:
            raise ValueError(f"width {self.width} does not divide into {self.pool_heads} pool_heads")
        count = len(self.kinds)
        if self.routes and self.router.floor * count >= 1:
            raise ValueError(
                f"router.floor {self.router.floor}: {count} experts leave room for less than {1 / count:g}"
            )
        if self.routes and self.router.top_k is not None and self.router.top_k > count:
            raise ValueError(f"router.top_k {self.router.top_k} is more than the {count} experts")
        if self.biased and self.router.top_k is None:
            raise ValueError("balance.kind: bias changes which experts are selected: set router.top_k")
        if self.fusion == "concat":
            if self.prealign.mode != "none":
                raise ValueError("fusion: concat has no adapters of single experts to align: set prealign.mode none")
            if self.residual.probability:
                raise ValueError("fusion: concat has no adapters of single experts to add: set residual.probability 0")
        return self
