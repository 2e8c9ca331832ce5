"""Open answers by a decoder that looks at the question after it has looked at the picture.

The question encoder is the whole pretrained stack: text layers, then fusion layers that look at the picture. The decoder looks at
its states, not at the picture::

    [CLS] w1 … wn [SEP]       log p(answer) = Σ_t log p(w_t | [CLS], w_1 … w_{t−1}, question, picture)

Ranking takes the answers whose first token is the most probable and scores each of those in full.

Source: ALBEF (Li et al. 2021, arXiv:2107.07651), section 4.

Legend: B questions, L tokens of a question, A answers, T tokens to predict of all of them, K answers ranked, N answers of the list,
h features, V words.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from mc_core.errors import ConfigError
from mc_vision_language.backbone import Backbone, WordHead
from mc_vision_language.fusion import FusionEncoder, ImageKeys
from mc_vision_language.tasks.config import VQAConfig
from mc_vision_language.tasks.model import pooled
from mc_vision_language.tasks.starting import load_backbone, load_decoder_layers, without_unused

RANKED = 128
_ROWS = 1024  # answers scored at once


class AnswerTokens(NamedTuple):
    """Answers as ids, with [CLS] before and [SEP] after each.

    Attributes:
        ids: (N, L) int64, padded on the right.
        mask: (N, L) int64, 1 for tokens.
    """

    ids: Tensor
    mask: Tensor

    def take(self, rows: Tensor) -> AnswerTokens:
        """Those of these rows, without columns that are all padding."""
        mask = self.mask[rows]
        width = int(mask.sum(1).max()) if len(rows) else 1
        return AnswerTokens(self.ids[rows, :width], mask[:, :width])


class Ranking(NamedTuple):
    """Answers of each question, best first.

    Attributes:
        rows: (B, K) int64, which answers of the list.
        scores: (B, K) their log-likelihoods.
    """

    rows: Tensor
    scores: Tensor


class AnswerDecoder(nn.Module):
    """Causal layers over the words of an answer, each looking at the states of the question; words are predicted by the embeddings.

    Args:
        backbone: whose embeddings, layers and head for words it starts from.
        layers: how many; the last fusion layers.

    Keys and values of the cross-attention start from those that look at image tokens, where these are as wide as text states.
    """

    def __init__(self, backbone: Backbone, layers: int) -> None:
        super().__init__()
        described = backbone.text.described
        hidden, eps = backbone.text.num_features, described["layer_norm_eps"]
        dropout = backbone.text.config.dropout
        self.embeddings = copy.deepcopy(backbone.text.transformer.embeddings)
        self.layers = FusionEncoder(
            hidden=hidden,
            heads=described["num_attention_heads"],
            intermediate=described["intermediate_size"],
            key_width=hidden,
            layers=layers,
            dropout=described["hidden_dropout_prob"] if dropout is None else dropout,
            eps=eps,
        )
        self.head = WordHead(hidden, described["vocab_size"], eps)
        self.start_from(backbone)

    def start_from(self, backbone: Backbone) -> None:
        """Take the weights of a pretrained backbone."""
        self.embeddings.load_state_dict(backbone.text.transformer.embeddings.state_dict())
        load_decoder_layers(self.layers, backbone.fusion)
        self.head.load_state_dict(backbone.lm_head.state_dict())

    def keys(self, states: Tensor, mask: Tensor) -> ImageKeys:
        """What the layers look at: states (B, L, h) of questions with their mask (B, L)."""
        return self.layers.keys(states, mask=mask)

    def forward(self, ids: Tensor, mask: Tensor, keys: ImageKeys) -> Tensor:
        """(A, L, h) states of answers (A, L) that begin with [CLS]; ``keys`` of A rows."""
        return self.layers(self.embeddings(input_ids=ids), mask, keys, causal=True)

    def words(self, states: Tensor) -> Tensor:
        """(…, V) logits of the token that follows states (…, h)."""
        return self.head(states, self.embeddings.word_embeddings.weight)


class VQANet(nn.Module):
    """Question encoder and answer decoder: what a teacher is a copy of.

    Args:
        config: of the task.

    Raises:
        ConfigError: more decoder layers than fusion layers.
    """

    def __init__(self, config: VQAConfig) -> None:
        super().__init__()
        layers = config.decoder_layers or config.text.fusion_layers
        if layers > config.text.fusion_layers:
            raise ConfigError(
                f"decoder_layers {layers} is more than the {config.text.fusion_layers} fusion layers that they start from"
            )
        backbone = Backbone(config, load_pretrained=False)
        self.backbone = without_unused(backbone, "lm_head", "image_projection", "text_projection")
        self.decoder = AnswerDecoder(self.backbone, layers)

    def start_from(self, backbone: Backbone, pieces: Sequence[Sequence[int]] = ()) -> None:
        """Take the weights of a pretrained backbone, for the question encoder and for the decoder."""
        load_backbone(self.backbone, backbone, pieces=pieces)
        self.decoder.start_from(self.backbone)

    def question_states(self, pixels: Tensor, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """(B, L, h) of questions (B, L) about images (B, 3, S, S) in [0, 1]."""
        keys = self.backbone.keys(self.backbone.image_tokens(pixels))
        return self.backbone.fuse(self.backbone.text_states(input_ids, attention_mask), attention_mask, keys)

    def forward(
        self, pixels: Tensor, input_ids: Tensor, attention_mask: Tensor, answers: AnswerTokens, answer_of: Tensor
    ) -> tuple[Tensor, Tensor]:
        """(T, V) logits of every token after [CLS] of all answers, in order, and (B, h) states of the questions, averaged.

        Args:
            pixels, input_ids, attention_mask: of B questions.
            answers: A of them.
            answer_of: (A,) int64, to which question each answer belongs.
        """
        states = self.question_states(pixels, input_ids, attention_mask)
        keys = self.decoder.keys(states, attention_mask).take(answer_of)
        made = self.decoder(answers.ids[:, :-1], answers.mask[:, :-1], keys)
        return self.decoder.words(made[answers.mask[:, 1:].bool()]), pooled(states, attention_mask)

    @torch.no_grad()
    def log_likelihoods(self, keys: ImageKeys, answers: AnswerTokens, *, double_count: bool = False) -> Tensor:
        """(A,) log p of each answer, in the row of its question in ``keys``."""
        follows = answers.mask[:, 1:].bool()
        states = self.decoder(answers.ids[:, :-1], answers.mask[:, :-1], keys)
        words = self.decoder.words(states[follows]).float().log_softmax(1)
        found = words.gather(1, answers.ids[:, 1:][follows][:, None])[:, 0]
        each = found.new_zeros(follows.shape).masked_scatter(follows, found)
        return each.sum(1) + each[:, 0] if double_count else each.sum(1)

    @torch.no_grad()
    def rank(self, keys: ImageKeys, answers: AnswerTokens, most: int, *, double_count: bool = False) -> Ranking:
        """The most likely answers of a list, best first.

        Args:
            keys: of B questions, see :meth:`AnswerDecoder.keys`.
            answers: the list, N.
            most: K, at most N; the rest is dropped by the probability of the first token alone.
            double_count: count the first token twice, as the official code does.

        Raises:
            ConfigError: K above N.
        """
        if most > len(answers.ids):
            raise ConfigError(f"rank {most}: the list holds {len(answers.ids)} answers; rank that many or fewer")
        questions = len(keys)
        device = answers.ids.device
        chosen = torch.arange(len(answers.ids), device=device).expand(questions, -1)
        if most < len(answers.ids):
            start = answers.ids[:1, :1].expand(questions, 1)
            first = self.decoder.words(self.decoder(start, torch.ones_like(start), keys)[:, 0]).float().log_softmax(1)
            chosen = first[:, answers.ids[:, 1]].topk(most, dim=1).indices.sort(1).values
        question_of = torch.arange(questions, device=device).repeat_interleave(most)
        flat = chosen.reshape(-1)
        scores = torch.cat(
            [
                self.log_likelihoods(keys.take(question_of[part]), answers.take(flat[part]), double_count=double_count)
                for part in (slice(at, at + _ROWS) for at in range(0, len(flat), _ROWS))
            ]
        ).view(questions, most)
        ordered = scores.sort(stable=True, dim=1, descending=True)
        return Ranking(chosen.gather(1, ordered.indices), ordered.values)

    @torch.no_grad()
    def generate(self, keys: ImageKeys, *, start: int, end: int, length: int) -> Tensor:
        """(B, ≤ length − 1) int64 ids of free answers, word by word the most probable; after ``end`` all is ``end``.

        Args:
            keys: of B questions.
            start: id of [CLS].
            end: id of [SEP].
            length: most tokens, ``start`` included.
        """
        device = keys.layers[0].key.device
        made = torch.full((len(keys), 1), start, device=device)
        done = torch.zeros(len(keys), dtype=torch.bool, device=device)
        while made.shape[1] < length and not bool(done.all()):
            states = self.decoder(made, torch.ones_like(made), keys)[:, -1]
            word = self.decoder.words(states).argmax(1).masked_fill(done, end)
            done |= word == end
            made = torch.cat([made, word[:, None]], 1)
        return made[:, 1:]
