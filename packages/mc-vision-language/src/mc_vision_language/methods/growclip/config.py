"""Settings of GrowCLIP: its two towers, how they may grow, and how growth is chosen. Imports no torch."""

from __future__ import annotations

from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from mc_core.engine.config import StrictModel
from mc_core.growth.spec import ArchSpec, TowerSpec, heads_of
from mc_vision_language.data.options import CaptionOptions
from mc_vision_language.encoders_config import Three

PARTS = ("image", "text", "shared")
"""Blocks that images pass through alone, texts alone, and both."""
Pooling = Literal["cls", "eot"]


class PixelConfig(StrictModel):
    """How an image becomes tokens.

    >>> PixelConfig(image_size=32, patch_size=8).patches
    16
    """

    image_size: int = Field(default=224, ge=16)
    """Side of the images it takes, in pixels."""
    patch_size: int = Field(default=16, ge=2)
    """Side of a patch, in pixels."""
    stem: Literal["patch", "convolution"] = "patch"
    """How a patch becomes a token. `convolution`: by convolutions of stride 2, which learn from fewer images."""
    stem_width: int = Field(default=64, ge=16)
    """Features of the last of those convolutions; halved towards the first. Growth does not change it."""
    mean: Three = (0.48145466, 0.4578275, 0.40821073)
    """Subtracted from pixels in [0, 1]; the constants are CLIP's."""
    std: Three = (0.26862954, 0.26130258, 0.27577711)
    """Pixels are divided by it."""

    @property
    def patches(self) -> int:
        """Patches of an image."""
        return (self.image_size // self.patch_size) ** 2

    @model_validator(mode="after")
    def _check(self) -> Self:
        if min(self.std) <= 0:
            raise ValueError(f"std {self.std} must be above 0")
        if self.image_size % self.patch_size:
            raise ValueError(f"image_size {self.image_size} does not divide into patches of {self.patch_size}")
        if self.stem == "convolution" and self.patch_size & (self.patch_size - 1):
            raise ValueError(
                f"stem: convolution halves the image again and again: patch_size {self.patch_size} is no power of 2"
            )
        if self.stem_width % 16:
            raise ValueError(f"stem_width {self.stem_width} is no multiple of 16")
        return self


class WordConfig(StrictModel):
    """How a text becomes tokens, and which of them stands for it. Ids of special tokens are filled in from the tokenizer.

    >>> WordConfig().causal, WordConfig(pooling="eot", add_sep=True).causal
    (False, True)
    """

    name: ClassVar[None] = None
    download: ClassVar[bool] = False

    vocabulary: int = Field(default=8_000, ge=8)
    """Entries of the tokenizer that is trained on the captions; small corpora give fewer."""
    max_length: int = Field(default=77, ge=4)
    """Tokens of a text, special ones included; what is longer is cut."""
    add_sep: bool = False
    """End each text with [SEP]."""
    pooling: Pooling = "cls"
    """`cls`: the first token stands for the text and sees all of it; `eot`: the last one does, and each token sees those before
    it alone, as in CLIP."""

    pad_id: int = Field(default=0, ge=0)
    """Id of [PAD], filled in."""
    cls_id: int = Field(default=2, ge=0)
    """Id of [CLS], filled in."""
    sep_id: int = Field(default=3, ge=0)
    """Id of [SEP], filled in."""
    mask_id: int = Field(default=4, ge=0)
    """Id of [MASK], filled in."""

    @property
    def causal(self) -> bool:
        """Whether a token sees those before it alone."""
        return self.pooling == "eot"

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.pooling == "eot" and not self.add_sep:
            raise ValueError("pooling: eot reads the last token, which must be the same for every text: set add_sep")
        return self


class PartConfig(StrictModel):
    """A row of equal transformer blocks."""

    blocks: int = Field(default=1, ge=0)
    """Blocks."""
    heads: int | None = Field(default=None, ge=1)
    """Attention heads of each block. Default: width / head_width."""
    hidden: int | None = Field(default=None, ge=1)
    """Units of each block's MLP. Default: four times the width."""


class LimitConfig(StrictModel):
    """The largest that a part may become; what is not named is free."""

    blocks: int | None = Field(default=None, ge=0)
    """Blocks."""
    heads: int | None = Field(default=None, ge=1)
    """Attention heads of each block."""
    hidden: int | None = Field(default=None, ge=1)
    """Units of each block's MLP."""


class GrowthConfig(StrictModel):
    """How a step of growth is searched for. All numbers are this project's choice: the paper's were not to be had.

    >>> GrowthConfig().search_steps(600), GrowthConfig().search_steps(20)
    (60, 5)
    """

    search_share: float = Field(default=0.1, gt=0, lt=1)
    """Share of a step's updates that train the supernet, from which candidates are judged; the rest train the one chosen."""
    smallest_every: int = Field(default=4, ge=1)
    """Each so many updates of the supernet train its smallest candidate, the others one at random."""
    evaluations: int = Field(default=5, ge=1)
    """How often candidates are measured on pairs held out, evenly spaced in the search."""
    batches: int = Field(default=4, ge=2)
    """Batches of held-out pairs that they are measured on, of the size of a training batch each."""
    blocks: int = Field(default=2, ge=0)
    """Blocks that a move adds to a part; 0: no such move."""
    heads: float = Field(default=0.5, ge=0)
    """Share of its heads that a move adds to a part; 0: no such move."""
    hidden: float = Field(default=0.5, ge=0)
    """Share of its MLP that a move adds to a part; 0: no such move."""
    pairs: int = Field(default=14, ge=0)
    """Candidates that make two moves at once, drawn at random."""
    budget: float = Field(default=1.0, ge=1)
    """What the first growth may cost, in costs of the first model, before `beta` raises it."""
    beta: float = Field(default=0.5, ge=0)
    """The budget grows as the data do to this power."""
    selector: Literal["score", "largest"] = "score"
    """Which candidate is taken. `score`: by held-out loss against cost, after a search; `largest`: what the budget allows, without
    one."""
    least_gain: float = Field(default=0.002, ge=0, lt=1)
    """Share by which a candidate's held-out loss must lie below that of no growth."""
    inherit: float = Field(default=0.9, ge=0, le=1)
    """m: share of the grown average in the new model's weights; the rest is drawn anew. 1: the same function as before."""
    inherit_from: Literal["average", "supernet"] = "average"
    """What is inherited: the average of the model before, grown; or what the search trained at the size chosen, so that its updates
    are not lost."""
    warmup: float = Field(default=0.05, ge=0, lt=1)
    """Share of a search's and of a training's updates in which the rate rises; in place of `fit.warmup_epochs`."""
    optimizer: Literal["reset", "expanded"] = "reset"
    """What becomes of the optimizer's moments at a growth."""
    image: LimitConfig = LimitConfig()
    """The largest image part."""
    text: LimitConfig = LimitConfig()
    """The largest text part."""
    shared: LimitConfig = LimitConfig()
    """The largest shared part."""

    def search_steps(self, steps: int) -> int:
        """Updates of a search in a step of so many, at least one for each evaluation."""
        return max(self.evaluations, round(self.search_share * steps))


class GrowCLIPConfig(StrictModel):
    """GrowCLIP. The sizes are those that it starts with.

    >>> GrowCLIPConfig(width=96, head_width=16).arch().parts["shared"]
    TowerSpec(blocks=2, heads=6, hidden=384)
    """

    matching: ClassVar[bool] = False

    image: PixelConfig = PixelConfig()
    """Images as tokens."""
    text: WordConfig = WordConfig()
    """Texts as tokens."""
    width: int = Field(default=512, ge=8)
    """Features of a token, the same in all parts."""
    head_width: int = Field(default=64, ge=2)
    """Features of an attention head, which no growth changes."""
    image_part: PartConfig = PartConfig(blocks=8)
    """Blocks of images alone."""
    text_part: PartConfig = PartConfig(blocks=6)
    """Blocks of texts alone."""
    shared_part: PartConfig = PartConfig(blocks=2)
    """Blocks of both, with LayerNorms of each."""
    dim: int = Field(default=512, ge=2)
    """Width of the shared space."""
    captions: CaptionOptions = CaptionOptions()
    """What of a caption, or of a query, is kept."""
    temperature: float = Field(default=0.07, ge=0.01, le=1)
    """Where the temperature starts; it is learned, between 0.01 and 1."""
    ids: bool = True
    """Pairs with the same picture or the same words are positives of each other."""
    momentum: float = Field(default=0.999, ge=0, le=1)
    """μ: of the moving average that the next growth starts from and that candidates are judged by."""
    growth: GrowthConfig = GrowthConfig()
    """How it grows."""

    def arch(self) -> ArchSpec:
        """The sizes as growth sees them."""
        parts = {name: getattr(self, f"{name}_part") for name in PARTS}
        return ArchSpec(
            width=self.width,
            joint=self.dim,
            parts={
                name: TowerSpec(
                    part.blocks, part.heads or heads_of(self.width, self.head_width), part.hidden or 4 * self.width
                )
                for name, part in parts.items()
            },
            head_width=self.head_width,
        )

    def at(self, spec: ArchSpec) -> GrowCLIPConfig:
        """The same settings with other sizes."""
        parts = {
            f"{name}_part": PartConfig(blocks=one.blocks, heads=one.heads, hidden=one.hidden)
            for name, one in spec.parts.items()
        }
        return self.model_copy(update={"width": spec.width, "dim": spec.joint, "head_width": spec.head_width, **parts})

    @model_validator(mode="after")
    def _check(self) -> Self:
        spec = self.arch()
        for side in ("image", "text"):
            if not spec.parts[side].blocks + spec.parts["shared"].blocks:
                raise ValueError(f"{side}_part and shared_part have no block: an {side} needs one at least")
        if self.growth.inherit_from == "supernet" and self.growth.optimizer == "expanded":
            raise ValueError(
                "growth.optimizer expanded takes moments from the model before, growth.inherit_from supernet weights from the "
                "search: set one of them back (optimizer reset, or inherit_from average)"
            )
        if not self.growth.blocks and not self.growth.heads and not self.growth.hidden:
            raise ValueError("growth.blocks, growth.heads and growth.hidden are all 0: nothing could grow")
        for name in PARTS:
            limit, part = getattr(self.growth, name), spec.parts[name]
            for size in ("blocks", "heads", "hidden"):
                most = getattr(limit, size)
                if most is not None and most < getattr(part, size):
                    raise ValueError(
                        f"growth.{name}.{size} {most} is smaller than the model, which has {getattr(part, size)}: a model can "
                        "only grow"
                    )
        return self
