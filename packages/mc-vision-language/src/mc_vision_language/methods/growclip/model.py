"""GrowCLIP: Deng et al. 2023 (ICCV), "GrowCLIP: Data-aware Automatic Model Growing for Large-scale Contrastive Language-Image
Pre-Training", arXiv:2308.11331.

Two towers are aligned by contrast; the upper blocks are shared by both, each stream with its own LayerNorms. As pairs arrive, the
towers grow (:mod:`mc_vision_language.growing`)::

    V  = shared( image blocks( patches, [CLS], positions ) )          u = n( W_v LN_v( V_[CLS] ) )
    T  = shared( text blocks( tokens, positions ) )                   v = n( W_t LN_t( T_pooled ) )
    L  = ½ [ CE( s·u·v over texts ) + CE( s·v·u over images ) ]       :mod:`mc_vision_language.methods.growclip.loss`
    then θ̄ ← μ θ̄ + (1 − μ) θ, from which the next growth starts      after_step

No official code was published. From the paper are the objective, the growth of data and model in steps, the shared encoder, and
inheriting with momentum; where the shared blocks stand, the towers, and every number are this project's.

Legend: B pairs, S side in pixels, P patches, L tokens, D width of the stream, d width of the shared space.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, cast

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from mc_core.engine.method import Batch, Method, Progress, StepOutput
from mc_core.errors import ConfigError, DataError
from mc_core.growth.blocks import Stack, stream_norm
from mc_core.growth.layout import Residual
from mc_core.growth.spec import ArchSpec, TowerSpec
from mc_core.momentum import MomentumEncoder
from mc_vision_language.backbone import Encoded, unit
from mc_vision_language.decay import spare_positions
from mc_vision_language.fusion import weight_std
from mc_vision_language.methods.growclip.config import PARTS, GrowCLIPConfig, PixelConfig, WordConfig
from mc_vision_language.methods.growclip.loss import SCALES, pair_loss, same_pairs
from mc_vision_language.model import VisionLanguageModel
from mc_vision_language.model_base import PictureTextModel, with_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

CITATION = """@inproceedings{deng2023growclip,
  title = {{GrowCLIP}: Data-aware Automatic Model Growing for Large-scale Contrastive Language-Image Pre-Training},
  author = {Deng, Xinchi and Shi, Han and Huang, Runhui and Li, Changlin and Xu, Hang and Han, Jianhua and Kwok, James and
    Zhao, Shen and Zhang, Wei and Liang, Xiaodan},
  booktitle = {Proceedings of the IEEE/CVF International Conference on Computer Vision},
  year = {2023}
}"""
_INTENDED = (
    "Finds images by words and words by images, and tells classes by sentences about them. It learns what its captions say, their "
    "habits, gaps and prejudices included: look at what it finds before anyone relies on it. Whether weights may be passed on is "
    "for the licence of the training data to say."
)
Views = Mapping[str, TowerSpec]
"""Part → the size at which it is computed, of the first blocks, heads and hidden units."""
_STREAMS = ("image", "text")


class Pixels(nn.Module):
    """Images (B, 3, S, S) in [0, 1] as tokens (B, 1 + P, D), the class token first."""

    mean: Tensor
    std: Tensor

    def __init__(self, config: PixelConfig, width: int) -> None:
        super().__init__()
        self.config, self.num_features = config, width
        self.grid = (config.image_size // config.patch_size,) * 2
        for name in ("mean", "std"):
            values = torch.tensor(getattr(config, name), dtype=torch.float64)[:, None, None]
            self.register_buffer(name, values.to(torch.get_default_dtype()), persistent=False)
        self.stem = nn.Sequential(*_stem_layers(config))
        # the last layer writes into the stream, linearly: growth in width extends it
        before, kernel = (config.stem_width, 1) if config.stem == "convolution" else (3, config.patch_size)
        self.patch = nn.Conv2d(before, width, kernel, stride=kernel)
        self.cls_token = nn.Parameter(torch.empty(1, 1, width))
        self.pos_embed = nn.Parameter(torch.empty(1, 1 + config.patches, width))
        nn.init.normal_(self.cls_token, std=weight_std(width))
        nn.init.normal_(self.pos_embed, std=weight_std(width))

    def forward(self, pixels: Tensor) -> Tensor:
        side = self.config.image_size
        if pixels.ndim != 4 or tuple(pixels.shape[1:]) != (3, side, side):
            raise DataError(
                f"images of shape {tuple(pixels.shape)}; this encoder takes (batch, 3, {side}, {side}): "
                "make the views of that size (augment.size and method.image.image_size)"
            )
        x_BPD = self.patch(self.stem((pixels - self.mean) / self.std)).flatten(2).transpose(1, 2)
        return torch.cat([self.cls_token.expand(len(x_BPD), -1, -1), x_BPD], dim=1) + self.pos_embed


def _stem_layers(config: PixelConfig) -> list[nn.Module]:
    if config.stem != "convolution":
        return []
    halvings = config.patch_size.bit_length() - 1
    layers: list[nn.Module] = []
    before = 3
    for place in range(halvings):
        width = max(16, config.stem_width >> (halvings - 1 - place))
        layers += [
            nn.Conv2d(before, width, 3, stride=2, padding=1),
            nn.GroupNorm(max(1, width // 16), width),
            nn.GELU(),
        ]
        before = width
    return layers


class Words(nn.Module):
    """Token ids (B, L) as tokens (B, L, D)."""

    def __init__(self, config: WordConfig, width: int) -> None:
        super().__init__()
        self.config, self.num_features = config, width
        self.word_embeddings = nn.Embedding(config.vocabulary, width)
        self.pos_embed = nn.Parameter(torch.empty(1, config.max_length, width))
        nn.init.normal_(self.word_embeddings.weight, std=weight_std(width))
        nn.init.normal_(self.pos_embed, std=weight_std(width))

    def forward(self, input_ids: Tensor) -> Tensor:
        length = input_ids.shape[1]
        if length > self.config.max_length:
            raise DataError(f"texts of {length} tokens; this encoder takes {self.config.max_length} (text.max_length)")
        return self.word_embeddings(input_ids) + self.pos_embed[:, :length]


class Towers(nn.Module):
    """Both towers, their projections and the temperature: what is averaged, and what grows.

    It has the names by which search, retrieval and embedding know a backbone. Nothing looks at the tokens that are not pooled, so
    an image is one token, and so is a text.

    Args:
        config: whose sizes it has.

    Attributes:
        spec: its sizes.
        image, text: tokens of both.
        blocks: the parts ``image``, ``text``, ``shared``.
        logit_scale: log s, of the cosines.

    >>> config = GrowCLIPConfig(image=PixelConfig(image_size=16, patch_size=8), width=16, head_width=8, dim=4)
    >>> towers = Towers(config)
    >>> towers.embed_images(torch.rand(2, 3, 16, 16)).shape
    torch.Size([2, 4])
    """

    def __init__(self, config: GrowCLIPConfig) -> None:
        super().__init__()
        self.config, self.spec = config, config.arch()
        width, parts = self.spec.width, self.spec.parts
        self.image, self.text = Pixels(config.image, width), Words(config.text, width)
        shared = parts["shared"].blocks
        self.blocks = nn.ModuleDict(
            {
                name: Stack(
                    parts[name],
                    width,
                    self.spec.head_width,
                    _STREAMS if name == "shared" else (name,),
                    depth=max(1, shared + (0 if name == "shared" else parts[name].blocks)),
                )
                for name in PARTS
            }
        )
        self.image_norm, self.text_norm = stream_norm(width), stream_norm(width)
        self.image_projection = nn.Linear(width, config.dim, bias=False)
        self.text_projection = nn.Linear(width, config.dim, bias=False)
        for projection in (self.image_projection, self.text_projection):
            nn.init.normal_(projection.weight, std=width**-0.5)
        self.logit_scale = nn.Parameter(torch.tensor(-math.log(config.temperature)))

    def resized(self, spec: ArchSpec) -> Towers:
        """Untrained towers of another size."""
        return Towers(self.config.at(spec))

    def residual(self) -> Residual:
        """Where the stream is written and read outside the blocks."""
        return Residual(
            stacks=tuple(f"blocks.{name}" for name in PARTS),
            writers={
                "image.patch.weight": 0,
                "image.patch.bias": 0,
                "image.cls_token": -1,
                "image.pos_embed": -1,
                "text.word_embeddings.weight": -1,
                "text.pos_embed": -1,
            },
            readers={"image_projection.weight": 1, "text_projection.weight": 1},
            norms=("image_norm", "text_norm"),
            joint={"image_projection.weight": 0, "text_projection.weight": 0},
        )

    def forward(self, pixels: Tensor, input_ids: Tensor, attention_mask: Tensor) -> Encoded:
        """Both towers at full size."""
        tokens, states = self.image_tokens(pixels), self.text_states(input_ids, attention_mask)
        return Encoded(tokens, states, self.embed_image_tokens(tokens), self.embed_text_states(states))

    def part(self, name: str, x: Tensor, stream: str, mask: Tensor | None, views: Views | None) -> Tensor:
        """(B, N, D): a stream after a part, as large as the views say."""
        stack = self.blocks[name]
        causal = stream == "text" and self.config.text.causal
        return stack(x, stream, mask, causal=causal, view=None if views is None else views[name])

    def pooled(self, x: Tensor, stream: str, mask: Tensor | None) -> Tensor:
        """(B, 1, D): the token that stands for an image or a text."""
        if stream == "image" or mask is None or not self.config.text.causal:
            return x[:, :1]
        last = mask.long().sum(1) - 1
        return x.take_along_dim(last[:, None, None].expand(-1, 1, x.shape[2]), dim=1)

    def image_tokens(self, pixels: Tensor, views: Views | None = None) -> Tensor:
        """(B, 1, D) of images (B, 3, S, S) in [0, 1]."""
        x = self.part("image", self.image(pixels), "image", None, views)
        return self.pooled(self.part("shared", x, "image", None, views), "image", None)

    def text_states(self, input_ids: Tensor, attention_mask: Tensor, views: Views | None = None) -> Tensor:
        """(B, 1, D) of ids (B, L) with their mask."""
        mask = attention_mask.bool()
        x = self.part("text", self.text(input_ids), "text", mask, views)
        return self.pooled(self.part("shared", x, "text", mask, views), "text", mask)

    def embed_image_tokens(self, tokens: Tensor) -> Tensor:
        """(B, d) unit rows of what :meth:`image_tokens` gives."""
        return unit(self.image_projection(self.image_norm(tokens[:, 0])))

    def embed_text_states(self, states: Tensor) -> Tensor:
        """(B, d) unit rows of what :meth:`text_states` gives."""
        return unit(self.text_projection(self.text_norm(states[:, 0])))

    def embed_images(self, pixels: Tensor, views: Views | None = None) -> Tensor:
        """(B, d) unit rows of images (B, 3, S, S) in [0, 1]."""
        return self.embed_image_tokens(self.image_tokens(pixels, views))

    def embed_tokens(self, input_ids: Tensor, attention_mask: Tensor, views: Views | None = None) -> Tensor:
        """(B, d) unit rows of token ids (B, L) with their mask."""
        return self.embed_text_states(self.text_states(input_ids, attention_mask, views))


class GrowCLIPModel(VisionLanguageModel):
    """Images and texts as unit vectors of one space, compared by their cosine.

    It can do what a :class:`~mc_vision_language.model.VisionLanguageModel` does with two embeddings: search, retrieval by cosine,
    zero-shot classification. It learns no matching, so nothing is ranked again.

    Args:
        config: whose sizes it has.
        tokenizer: of the captions; without one only token ids can be used.
        load_pretrained: of no use here, where nothing is published.
        towers: to use, of any size, instead of new ones; the configuration then says their size.

    Attributes:
        backbone: :class:`Towers`.

    Raises:
        ConfigError: a tokenizer that does not fit.
    """

    def __init__(
        self,
        config: GrowCLIPConfig,
        tokenizer: PreTrainedTokenizerFast | None = None,
        *,
        load_pretrained: bool = True,
        towers: Towers | None = None,
    ) -> None:
        PictureTextModel.__init__(self)
        if tokenizer is not None:
            config = cast(GrowCLIPConfig, with_tokenizer(cast(Any, config), tokenizer))
        self.config: Any = config if towers is None else config.at(towers.spec)
        self.backbone: Any = Towers(config) if towers is None else towers
        self.take_tokenizer(tokenizer)

    @classmethod
    def from_config(cls, config: Any) -> Self:
        """The same sizes with random weights, to be filled from a saved model."""
        return cls(GrowCLIPConfig.model_validate(config))

    @property
    def towers(self) -> Towers:
        """The backbone by its own type."""
        return self.backbone

    @property
    def shows_where(self) -> bool:
        """No: there is no fusion, and attention of the towers is not kept."""
        return False

    @property
    def temperature(self) -> Tensor:
        """τ = 1/s, a scalar with gradient."""
        return (-self.towers.logit_scale).exp()

    @torch.no_grad()
    def clamp_temperature(self) -> None:
        """Keep s between 1 and 100."""
        self.towers.logit_scale.clamp_(*SCALES)


class GrowCLIP(Method):
    """Contrast of pairs, with a moving average of the towers.

    Args:
        config: see :class:`~mc_vision_language.methods.growclip.config.GrowCLIPConfig`.
        tokenizer: of the captions.
        model: to train instead of the one that ``config`` describes, such as a grown one.

    Batches: ``view`` (B, 3, S, S) in [0, 1], ``input_ids`` and ``attention_mask`` (B, L), ``image_ids`` and ``text_ids`` (B,).

    Attributes:
        model: :class:`GrowCLIPModel`.
        average: θ̄, a :class:`~mc_core.momentum.MomentumEncoder` on its towers.
        start_from: puts the moments of an earlier optimizer into that of these towers, before the first step; None: a new one.

    >>> config = GrowCLIPConfig(
    ...     image=PixelConfig(image_size=16, patch_size=8),
    ...     width=16,
    ...     head_width=8,
    ...     dim=4,
    ...     text=WordConfig(vocabulary=32),
    ... )
    >>> batch = {"view": torch.rand(2, 3, 16, 16), "input_ids": torch.tensor([[2, 7], [2, 8]])}
    >>> batch |= {"attention_mask": torch.ones(2, 2), "image_ids": torch.arange(2), "text_ids": torch.arange(2)}
    >>> bool(GrowCLIP(config).training_step(batch, Progress()).loss > 0)
    True
    """

    def __init__(
        self,
        config: GrowCLIPConfig,
        tokenizer: PreTrainedTokenizerFast | None = None,
        model: VisionLanguageModel | None = None,
    ) -> None:
        super().__init__()
        if model is not None and not isinstance(model, GrowCLIPModel):
            raise ConfigError(f"GrowCLIP trains a GrowCLIPModel, not a {type(model).__name__}")
        self.model: GrowCLIPModel = GrowCLIPModel(config, tokenizer) if model is None else model
        self.config = config if model is None and tokenizer is None else self.model.config
        self.average = MomentumEncoder(self.model.towers, config.momentum)
        self.start_from: Callable[[Optimizer, Towers], None] | None = None

    @property
    def towers(self) -> Towers:
        """The towers that are trained."""
        return self.model.towers

    @property
    def averaged(self) -> Towers:
        """θ̄."""
        module = self.average.module
        assert isinstance(module, Towers)
        return module

    def start_optimizer(self, optimizer: Optimizer) -> None:
        """Take over the moments of the model that this one grew from, where ``start_from`` brings them."""
        if self.start_from is not None:
            self.start_from(optimizer, self.towers)

    def views(self, progress: Progress) -> Views | None:
        """At which size the towers are computed in this step; None: all of them."""
        return None

    def training_step(self, batch: Batch, progress: Progress, prepared: Any = None) -> StepOutput:
        """L of one micro-batch."""
        views, towers = self.views(progress), self.towers
        image = towers.embed_images(batch["view"], views)
        text = towers.embed_tokens(batch["input_ids"], batch["attention_mask"], views)
        same = same_pairs(batch["image_ids"], batch["text_ids"]) if self.config.ids else None
        loss = pair_loss(image, text, towers.logit_scale, same)
        metrics: dict[str, Tensor | float] = {"logit_scale": towers.logit_scale.detach()}
        return StepOutput(loss + _absent(towers, views), metrics, {"query": image, "key": text.detach()})

    def after_step(self, progress: Progress) -> None:
        """Keep s within its bounds, then move θ̄."""
        self.model.clamp_temperature()
        self.average.update()

    def encode(self, batch: Batch) -> Tensor:
        """(B, d) unit rows of the images of a batch."""
        return self.towers.embed_images(batch["view"])

    def export_module(self) -> GrowCLIPModel:
        """The trained model."""
        return self.model

    def save(self, folder: Path, card: Mapping[str, Any]) -> None:
        """The model with its tokenizer."""
        told = {"title": "Images and words in one space, grown", "description": _INTENDED, "citation": CITATION}
        self.model.save(folder, card={**told, **card})

    def check(self, micro_batch_size: int) -> None:
        """Refuse a batch of one, which has no negatives."""
        if micro_batch_size < 2:
            raise ConfigError(
                f"{micro_batch_size} pair per process and micro-batch has no other to be told from: take a larger "
                "fit.batch_size or a smaller fit.accumulation"
            )

    def parameter_groups(self, weight_decay: float, *, decay_1d: bool = True) -> list[dict[str, Any]]:
        """As every method's; without ``decay_1d`` class token and positions do not decay either, nor does the temperature."""
        return spare_positions(super().parameter_groups(weight_decay, decay_1d=decay_1d), self.model)


def _absent(towers: Towers, views: Views | None) -> Tensor | float:
    """0 with a gradient of 0 for blocks that a view leaves out: processes that exchange gradients expect one of each."""
    if views is None:
        return 0.0
    left_out = [
        parameter.sum()
        for name, view in views.items()
        for block in list(cast(nn.ModuleList, towers.blocks[name]))[view.blocks :]
        for parameter in block.parameters()
    ]
    return 0.0 * torch.stack(left_out).sum() if left_out else 0.0
