"""The model of Astrea (arXiv:2503.09445, of which only the abstract could be read; everything beyond it is this project's choice).

::

    F_k      = Expert_k( view )                                   frozen, in evaluation mode, without gradient
    Z_k      = A_k( F_k ) + τ_k + P                               methods.astrea.adapters
    w        = router( [F_1 ; … ; F_E] )                          methods.astrea.router
    z, y, ỹ  = Σ w_k Z_k,  z + MLP( LN z ),  y + R                methods.astrea.fusion
    v, t     = n( pool( ỹ + P ) ),  n( W_t h_text )               unit rows
    answers  = LM( projector( ỹ ), question )                     after instruction tuning

:class:`AstreaFusion` is what is trained, and what a moving average is a copy of; it never sees experts, only their maps, so that
kept maps work alike. :class:`AstreaModel` adds the experts, and finds, compares and answers.

Legend: B samples, S side of a view, G × G = N visual tokens, d their width, e width of the shared space, L tokens of a text, h
features of a text's state, E experts, h_l features of the language model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Self, cast

import torch
from torch import Tensor, nn

from mc_core.errors import CheckpointError, ConfigError, DataError
from mc_core.files import StrPath
from mc_core.modules import Shared, evaluating
from mc_vision_language.backbone import unit
from mc_vision_language.encoders import TextEncoder
from mc_vision_language.methods.astrea.adapters import Adapters, Maps, start_layers
from mc_vision_language.methods.astrea.config import AstreaConfig
from mc_vision_language.methods.astrea.fusion import Draws, Fused, FusionBlock, Pooling, RoutedMix
from mc_vision_language.methods.astrea.loss import SCALES
from mc_vision_language.methods.astrea.router import Router
from mc_vision_language.model import VisionLanguageModel, load_vision_language_model
from mc_vision_language.model_base import PictureTextModel, with_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from mc_vision_language.language import LanguageModel
    from mc_vision_language.language_text import LanguageText

FILLED = ("experts", "expert_features", "text", "language", "answers")
"""Settings that a model fills in, from what it is built of."""
SHAPES = ("image", "grid", "width", "dim", "fusion", "single", "mlp_ratio", "pool_queries", "pool_heads")
"""Settings that a model once built cannot change."""
_LANGUAGE_FOLDER = "language_tokenizer"


class Seen(NamedTuple):
    """What :meth:`AstreaFusion.forward` gives.

    Attributes:
        image: (B, e) unit rows v.
        text: (B, e) unit rows t.
        fused: visual tokens and weights.
    """

    image: Tensor
    text: Tensor
    fused: Fused


class AstreaFusion(nn.Module):
    """Adapters, router, fusion, pooling, text tower and temperature: what is trained, and what a moving average is a copy of.

    Args:
        config: with ``expert_features``.
        load_pretrained: load published weights of the text tower where the configuration asks for them.

    Attributes:
        block: :class:`~mc_vision_language.methods.astrea.fusion.FusionBlock`, from maps to tokens.
        text: :class:`~mc_vision_language.encoders.TextEncoder`.
        logit_scale: log s, of the cosines.

    Raises:
        ConfigError: no expert says how many channels its map has, or a text tower that cannot be had.

    >>> text = {"hidden_size": 16, "heads": 2, "text_layers": 1, "vocabulary": 64}
    >>> config = AstreaConfig(expert_features={"classification": 6, "detection": 5}, grid=2, width=8, dim=4, text=text)
    >>> fusion = AstreaFusion(config).eval()
    >>> maps = {"classification": torch.randn(3, 6, 4, 4), "detection": torch.randn(3, 5, 8, 8)}
    >>> fusion.embed(maps).shape, fusion.tokens(maps).weights.shape
    (torch.Size([3, 4]), torch.Size([3, 4, 2]))
    """

    def __init__(self, config: AstreaConfig, *, load_pretrained: bool = True) -> None:
        super().__init__()
        missing = [kind for kind in config.kinds if kind not in config.expert_features]
        if missing:
            raise ConfigError(
                f"expert_features lacks {', '.join(missing)}: say how many channels the map of each expert has"
            )
        self.config = config
        self.text = TextEncoder(config.text, load_pretrained=load_pretrained)
        self.text.pretrained = None  # there are no fusion layers
        self.block = FusionBlock(config, self.text.num_features)
        self.pooling = Pooling(config.width, config.dim, config.pool_queries, config.pool_heads)
        self.text_projection = nn.Linear(self.text.num_features, config.dim)
        start_layers(self.text_projection)
        self.logit_scale = nn.Parameter(-torch.tensor(config.temperature).log())

    @property
    def adapters(self) -> Adapters | None:
        """Those of all experts; None where channels are fused side by side."""
        return self.block.adapters

    @property
    def router(self) -> Router | None:
        """The router; None for the baselines."""
        return self.block.mix.router if isinstance(self.block.mix, RoutedMix) else None

    def forward(
        self,
        maps: Maps,
        input_ids: Tensor,
        attention_mask: Tensor,
        *,
        residual: Tensor | None = None,
        draws: Draws | None = None,
    ) -> Seen:
        """Pictures and texts of a batch, and the visual tokens on the way."""
        fused = self.tokens(maps, residual=residual, draws=draws)
        return Seen(self.embed_fused(fused.tokens), self.embed_text(input_ids, attention_mask), fused)

    def tokens(
        self, maps: Maps, text: Tensor | None = None, *, residual: Tensor | None = None, draws: Draws | None = None
    ) -> Fused:
        """(B, N, d) visual tokens and their weights; see :meth:`FusionBlock.forward`."""
        return self.block(maps, text, residual=residual, draws=draws)

    def embed(
        self, maps: Maps, text: Tensor | None = None, *, residual: Tensor | None = None, draws: Draws | None = None
    ) -> Tensor:
        """(B, e) unit rows v of maps."""
        return self.embed_fused(self.tokens(maps, text, residual=residual, draws=draws).tokens)

    def embed_fused(self, tokens: Tensor) -> Tensor:
        """(B, e) unit rows v of tokens (B, N, d)."""
        return unit(self.pool(tokens))

    def pool(self, tokens: Tensor) -> Tensor:
        """(B, e) of tokens (B, N, d), before they are normalised."""
        return self.pooling(tokens + self.block.positions)

    def embed_expert(self, kind: str, maps: Maps) -> Tensor:
        """(B, e) unit rows v^(k) of one expert alone: pool(Z_k), without router and MLP.

        Raises:
            ConfigError: a fusion without adapters of single experts.
        """
        if self.adapters is None:
            raise ConfigError("fusion: concat has no adapters of single experts")
        return self.embed_fused(self.adapters.one(kind, maps))

    def text_state(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """(B, h) h_text: the mean state of the tokens of ids (B, L) with their mask; zeros where there is no token.

        The first token's state alone is nearly the same for all texts in a new transformer, and queries that are all alike are
        told apart by the age of their keys: contrast with a queue then collapses.
        """
        return self.mean_state(self.text(input_ids, attention_mask), attention_mask)

    @staticmethod
    def mean_state(states: Tensor, mask: Tensor) -> Tensor:
        """(B, h) mean of states (B, L, h) where their mask (B, L) is 1; zeros where it nowhere is."""
        weight = mask.to(states.dtype)[..., None]
        return (states * weight).sum(1) / weight.sum(1).clamp_min(1.0)

    def embed_text(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """(B, e) unit rows t of ids (B, L) with their mask."""
        return self.embed_state(self.text_state(input_ids, attention_mask))

    def embed_state(self, state: Tensor) -> Tensor:
        """(B, e) unit rows t of states (B, h)."""
        return unit(self.text_projection(state))

    @torch.no_grad()
    def clamp_temperature(self) -> None:
        """Keep s between 1 and 100."""
        self.logit_scale.clamp_(*SCALES)


class AstreaBackbone(nn.Module):
    """Frozen experts and what is trained on their maps, with the names by which search and retrieval know a backbone.

    Args:
        config: of the model, with ``expert_features``.
        experts: kind → module with ``features(view) → (B, C, H, W)``; may lack what is never computed here, as with kept maps.
        load_pretrained: see :class:`AstreaFusion`.

    Attributes:
        experts: in evaluation mode, whatever the model's mode; without gradient.
        fusion: :class:`AstreaFusion`.
        reference: the adapters that the shortcut takes, without gradient; None where it takes none.
    """

    def __init__(self, config: AstreaConfig, experts: Mapping[str, nn.Module], *, load_pretrained: bool = True) -> None:
        super().__init__()
        self.experts = nn.ModuleDict({kind: experts[kind] for kind in config.kinds if kind in experts})
        self.experts.requires_grad_(False).eval()
        self.fusion = AstreaFusion(config, load_pretrained=load_pretrained)
        self.reference: Adapters | None = None
        if config.reference:
            self.take_reference()

    def take_reference(self) -> None:
        """Let the shortcut take the adapters as they are now."""
        adapters = self.fusion.adapters
        assert adapters is not None
        if self.reference is None:
            self.reference = Adapters(adapters.features, adapters.grid, self.fusion.config.width)
            self.reference.to(adapters.positions).requires_grad_(False)
        self.reference.load_state_dict(adapters.state_dict())

    @torch.no_grad()
    def follow(self, adapters: Adapters) -> None:
        """Let the shortcut take these adapters."""
        assert self.reference is not None
        ours: list[Tensor] = list(self.reference.parameters())
        torch._foreach_copy_(ours, list(adapters.parameters()))

    def train(self, mode: bool = True) -> Self:
        """Experts stay in evaluation mode."""
        super().train(mode)
        self.experts.eval()
        return self

    @torch.no_grad()
    def maps(self, view: Tensor) -> dict[str, Tensor]:
        """Kind → (B, C_k, H_k, W_k) of views (B, 3, S, S) in [0, 1].

        Raises:
            DataError: an expert is not here.
        """
        kinds = self.fusion.config.kinds
        missing = [kind for kind in kinds if kind not in self.experts]
        if missing:
            raise DataError(f"the {missing[0]} expert is not part of this model: give its maps instead of pictures")
        return {kind: cast(Any, self.experts[kind]).features(view) for kind in kinds}

    @torch.no_grad()
    def residual(self, maps: Maps) -> Tensor | None:
        """(B, N, d) R of the reference adapters; None where there are none."""
        return None if self.reference is None else self.reference(maps).mean(2)

    def fused(self, maps: Maps, text: Tensor | None = None, *, draws: Draws | None = None) -> Fused:
        """Visual tokens of maps, with their shortcut."""
        return self.fusion.tokens(maps, text, residual=self.residual(maps), draws=draws)

    @property
    def text(self) -> TextEncoder:
        """The text tower."""
        return self.fusion.text

    def image_tokens(self, pixels: Tensor) -> Tensor:
        """(B, 1, e): the pooled picture, all that search and retrieval look at."""
        return self.fusion.pool(self.fused(self.maps(pixels)).tokens)[:, None]

    def embed_image_tokens(self, tokens: Tensor) -> Tensor:
        """(B, e) unit rows of what :meth:`image_tokens` gives."""
        return unit(tokens[:, 0])

    def embed_images(self, pixels: Tensor) -> Tensor:
        """(B, e) unit rows of views (B, 3, S, S) in [0, 1]."""
        return self.embed_image_tokens(self.image_tokens(pixels))

    def text_states(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """(B, 1, h) of ids (B, L) with their mask: the state that stands for a text."""
        return self.fusion.text_state(input_ids, attention_mask)[:, None]

    def embed_text_states(self, states: Tensor) -> Tensor:
        """(B, e) unit rows of what :meth:`text_states` gives."""
        return self.fusion.embed_state(states[:, 0])

    def embed_tokens(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """(B, e) unit rows of ids (B, L) with their mask."""
        return self.fusion.embed_text(input_ids, attention_mask)


class AstreaModel(VisionLanguageModel):
    """Pictures and texts as unit vectors of one space; after instruction tuning also captions and answers.

    It can do what a :class:`~mc_vision_language.model.VisionLanguageModel` does with two embeddings: search, retrieval by cosine,
    zero-shot classification. It learns no matching, so nothing is ranked again.

    Args:
        config: with or without ``expert_features``, which are filled in.
        tokenizer: of the captions; without one only token ids can be used.
        load_pretrained: load published weights where the configuration asks for them.
        experts: trained ones by kind, instead of those that ``config.experts`` describes.

    Attributes:
        backbone: :class:`AstreaBackbone`.
        projector: linear, GELU, linear: visual tokens as input embeddings of the language model; None before instruction tuning.
        language: :class:`~mc_vision_language.language.LanguageModel`; None before instruction tuning.

    Raises:
        ConfigError: encoders that cannot be had, experts of other kinds, or a tokenizer that does not fit.
    """

    def __init__(
        self,
        config: AstreaConfig,
        tokenizer: PreTrainedTokenizerFast | None = None,
        *,
        load_pretrained: bool = True,
        experts: Mapping[str, nn.Module] | None = None,
    ) -> None:
        PictureTextModel.__init__(self)
        if tokenizer is not None:
            config = cast(AstreaConfig, with_tokenizer(cast(Any, config), tokenizer))
        made = experts_of(config, load_pretrained) if experts is None else dict(experts)
        config = with_experts(config, made)
        self.backbone: Any = AstreaBackbone(config, made, load_pretrained=load_pretrained)
        self.config: Any = config.model_copy(update={"text": self.backbone.text.config})
        self.projector: nn.Module | None = None
        self.language: LanguageModel | None = None
        self._language_text = Shared(None)
        self.take_tokenizer(tokenizer)
        if config.answers:
            self.add_language(load_pretrained=load_pretrained)

    @classmethod
    def from_config(cls, config: Any) -> Self:
        """The same sizes with random weights, to be filled from a saved model."""
        return cls(AstreaConfig.model_validate(config), load_pretrained=False)

    @property
    def own(self) -> AstreaBackbone:
        """The backbone by its own type."""
        return self.backbone

    @property
    def fusion(self) -> AstreaFusion:
        """What is trained on the experts' maps."""
        return self.backbone.fusion

    @property
    def image_size(self) -> int:
        """Side of the views, in pixels."""
        return self.config.image.image_size

    @property
    def shows_where(self) -> bool:
        """No: heat maps of a phrase need cross-attention. Weights of experts by place are :meth:`AstreaBackbone.fused`'s."""
        return False

    @property
    def temperature(self) -> Tensor:
        """τ = 1/s, a scalar with gradient."""
        return (-self.fusion.logit_scale).exp()

    @torch.no_grad()
    def clamp_temperature(self) -> None:
        """Keep s between 1 and 100."""
        self.fusion.clamp_temperature()

    def train_only(self, *parts: nn.Module | nn.Parameter) -> None:
        """From now on these parts take gradient, and nothing else does."""
        self.requires_grad_(False)
        for part in parts:
            part.requires_grad_(True)

    def adopt(self, config: AstreaConfig) -> AstreaConfig:
        """Go on under other settings, with what this model filled in; returns them.

        Raises:
            ConfigError: settings that the weights do not fit.
        """
        new = config.model_copy(update={name: getattr(self.config, name) for name in FILLED})
        ours = {name: getattr(self.config, name) for name in SHAPES} | {"routers": _router_shape(self.config)}
        theirs = {name: getattr(new, name) for name in SHAPES} | {"routers": _router_shape(new)}
        for name, value in theirs.items():
            if ours[name] != value:
                raise ConfigError(f"{name} {value} does not fit this model, which was built with {ours[name]}")
        self.config = new
        for part in (self.fusion, self.fusion.block, self.fusion.router):
            if part is not None:
                part.config = new
        if not new.reference:
            self.own.reference = None
        elif self.own.reference is None:
            self.own.take_reference()
        return new

    @property
    def answers(self) -> bool:
        """Whether there is a language model."""
        return self.language is not None

    def add_language(
        self, tokenizer: PreTrainedTokenizerFast | None = None, *, load_pretrained: bool = True
    ) -> LanguageModel:
        """Give the model its language model and the projector before it, with new weights but for published ones; returns it.

        Args:
            tokenizer: of the language model; default: that of ``config.language.name``, or without a name that of the captions.
            load_pretrained: load published weights where the configuration asks for them.

        Raises:
            ConfigError: a language model that cannot be had, or a tokenizer that does not fit.
        """
        from mc_vision_language.language import LanguageModel
        from mc_vision_language.language_text import with_language_ids

        described = self.config.language
        if tokenizer is None and described.name is None:
            tokenizer = self.tokenizer
        elif tokenizer is None and load_pretrained:
            from mc_vision_language.tokenizers import load_tokenizer

            tokenizer = load_tokenizer(described.name, download=described.download)
        if tokenizer is not None:
            described = with_language_ids(described, tokenizer)
        language = LanguageModel(described, load_pretrained=load_pretrained)
        width = language.num_features
        self.projector = nn.Sequential(nn.Linear(self.config.width, width), nn.GELU(), nn.Linear(width, width))
        self.language = language
        for part in (self.projector, language):
            part.to(self.device)
        self.config = self.config.model_copy(update={"language": language.config, "answers": True})
        self._take_language_tokenizer(tokenizer)
        return language

    @property
    def language_text(self) -> LanguageText:
        """Between texts and the ids of the language model.

        Raises:
            ConfigError: there is none, or it has no tokenizer.
        """
        self.need_answers()
        if self._language_text.value is None:
            raise ConfigError(
                "the language model has no tokenizer: give add_language one, or load the model from its run"
            )
        return self._language_text.value

    def need_answers(self) -> None:
        """Raise ConfigError where there is no language model."""
        if self.language is None:
            raise ConfigError(
                "this model has no language model, so that it finds and compares but answers nothing: train it further with "
                "instruction tuning (AstreaInstruct)"
            )

    def question_states(self, question_ids: Tensor | None, question_mask: Tensor | None) -> Tensor | None:
        """(B, h) what the router reads of questions, in the text tower's ids; None where it reads none.

        Rows of an empty question are zeros.
        """
        if not self.config.router.text or not self.config.routes or question_ids is None or question_mask is None:
            return None
        with torch.no_grad():
            # where there is no token the first place looks at itself, and its state is not counted
            looked_at = question_mask.clone()
            looked_at[:, 0] = 1
            states = self.fusion.text(question_ids, looked_at)
            return self.fusion.mean_state(states, question_mask)

    def prefix(self, tokens: Tensor) -> Tensor:
        """(B, N, h_l) input embeddings of the language model, of visual tokens (B, N, d)."""
        self.need_answers()
        assert self.projector is not None
        return self.projector(tokens)

    @torch.no_grad()
    def seen(self, images: Any, questions: Sequence[str] | None = None) -> Fused:
        """Visual tokens of pictures and the weights behind them, in evaluation mode.

        Args:
            images: paths, PIL images or arrays (H, W, 3); or (B, 3, H, W) in one array, uint8 or floats in [0, 1].
            questions: B of them, for a router that reads them; empty ones are none.

        Raises:
            BadSampleError: a file that is no image. DataError: another number of questions.
        """
        if questions is not None and len(questions) != len(images):
            raise DataError(f"{len(images)} images and {len(questions)} questions: give one question for each image")
        with evaluating(self):
            asked: tuple[Tensor | None, Tensor | None] = (None, None)
            if questions is not None and self.config.router.text:
                ids, mask = self.tokens_of(questions)
                there = torch.tensor([bool(one.strip()) for one in questions], device=mask.device)
                asked = ids, mask * there[:, None]
            return self.own.fused(self.own.maps(self.pixels_of(images)), self.question_states(*asked))

    def ask(self, images: Any, questions: Sequence[str], *, batch_size: int = 32) -> list[str]:
        """Answers to questions about the images in the same places; an empty question asks for a caption.

        Args:
            images: N, as for :meth:`seen`.
            questions: N.
            batch_size: questions answered together.

        Raises:
            ConfigError: there is no language model. DataError: another number of questions, or one that is too long.
        """
        if isinstance(questions, str):
            raise ConfigError("give a list of questions, not one question: put it into brackets")
        if len(images) != len(questions):
            raise DataError(f"{len(images)} images and {len(questions)} questions: give one question for each image")
        text = self.language_text
        assert self.language is not None
        answers: list[str] = []
        for first in range(0, len(questions), batch_size):
            part = slice(first, first + batch_size)
            with torch.no_grad(), evaluating(self):
                prefix = self.prefix(self.seen(images[part], questions[part]).tokens)
                ids, mask = (one.to(self.device) for one in text.prompts(list(questions[part])))
                answers += text.decode(self.language.generate(prefix, ids, mask, self.config.language.answer_length))
        return answers

    def caption(self, images: Any, *, batch_size: int = 32) -> list[str]:
        """A caption of each image; see :meth:`ask`."""
        return self.ask(images, [""] * len(images), batch_size=batch_size)

    def save_extras(self, folder: Path) -> None:
        """The tokenizer of a language model that has its own."""
        text = self._language_text.value
        if text is not None and self.config.language.name is not None:
            text.tokenizer.save_pretrained(folder / _LANGUAGE_FOLDER)

    def load_extras(self, folder: Path) -> None:
        """Read what :meth:`save_extras` wrote."""
        if not self.answers:
            return
        own = folder / _LANGUAGE_FOLDER
        tokenizer = self.tokenizer
        if own.is_dir():
            from mc_vision_language.tokenizers import load_tokenizer

            tokenizer = load_tokenizer(own)
        self._take_language_tokenizer(tokenizer)

    def _take_language_tokenizer(self, tokenizer: PreTrainedTokenizerFast | None) -> None:
        from mc_vision_language.language_text import LanguageText

        assert self.language is not None
        if tokenizer is not None:
            self._language_text = Shared(LanguageText(tokenizer, self.config.language, self.language.words))


def _router_shape(config: AstreaConfig) -> tuple[bool, bool, bool]:
    return config.routes, config.routes and config.router.text, config.biased


def experts_of(config: AstreaConfig, load_pretrained: bool) -> dict[str, nn.Module]:
    """The experts that a configuration describes: untrained, but for published weights."""
    from mc_vision_language.experts.base import build_expert

    wanted = [one for one in config.experts if one.kind in config.kinds]
    return {one.kind: build_expert(one, load_pretrained=load_pretrained) for one in wanted}


def with_experts(config: AstreaConfig, experts: Mapping[str, Any]) -> AstreaConfig:
    """With the settings of these experts, and the channels of their maps, filled in.

    Raises:
        ConfigError: an expert of which nobody says how many channels its map has.
    """
    features: dict[Any, int] = {}
    for kind in config.kinds:
        count = experts[kind].num_features if kind in experts else config.expert_features.get(kind)
        if count is None:
            raise ConfigError(f"there is no {kind} expert: give one, or the channels of its map in expert_features")
        features[kind] = count
    settings = tuple(getattr(experts.get(one.kind), "config", one) for one in config.experts if one.kind in features)
    return config.model_copy(update={"expert_features": features, "experts": settings})


def load_astrea(place: StrPath, *, device: str | torch.device = "cpu") -> AstreaModel:
    """A saved model, in evaluation mode.

    Args:
        place: its folder, or the folder of the run that made it.
        device: to put it on.

    Raises:
        CheckpointError: no such model, or a damaged one.
    """
    model = load_vision_language_model(place, device=device)
    if not isinstance(model, AstreaModel):
        raise CheckpointError(f"{place} holds a {type(model).__name__}, not an AstreaModel")
    return model
