"""Tokens that stand for the classes of source tokens, added to a tokenizer and to its encoder without harm to ordinary text.

The released code of CoCoSoDa adds its type names (``class``, ``string``, ``"``, …) as special tokens, which are then cut out of any
text they stand in: ``hostname`` loses its ``name``. Here they are ``<t:keyword>`` and the like, not special, and nothing that is
written in a program.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from mc_core.errors import ConfigError
from mc_text_code.encoders import SentenceEncoder
from mc_text_code.source.token_classes import TOKEN_CLASSES, TYPE_TOKENS

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

ENCODER_ONLY = "<encoder-only>"
"""UniXcoder's token that says how it is used; it reads ``<s> <encoder-only> </s> … </s>``."""


def add_type_tokens(tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    """The tokenizer with a token for each of the twelve classes; what it has already is left as it is.

    A tokenizer that knows ``<encoder-only>`` also puts UniXcoder's prefix before each text from now on.

    >>> from mc_text_code.tokenizers import train_tokenizer
    >>> tokenizer = add_type_tokens(train_tokenizer(["hostname = name"], 64))
    >>> tokenizer.tokenize("hostname <t:identifier>")
    ['hostname', '<t:identifier>']
    """
    from tokenizers import AddedToken

    tokenizer.add_tokens([AddedToken(text, special=False, normalized=False) for text in TYPE_TOKENS])
    if ENCODER_ONLY in tokenizer.get_vocab():
        return _with_prefix(tokenizer)
    return tokenizer


def _with_prefix(tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    cls, sep = tokenizer.cls_token, tokenizer.sep_token
    backend = tokenizer.backend_tokenizer
    names = [cls, ENCODER_ONLY, sep]
    cast(Any, backend).post_processor = TemplateProcessing(
        single=f"{cls} {ENCODER_ONLY} {sep} $A {sep}",
        pair=f"{cls} {ENCODER_ONLY} {sep} $A {sep} $B {sep}",
        special_tokens=[(name, backend.token_to_id(name)) for name in names],
    )
    special = {name: value for name, value in tokenizer.special_tokens_map.items() if isinstance(value, str) and value}
    # the class of a published tokenizer would put its own beginning back when it is loaded
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, model_max_length=tokenizer.model_max_length, padding_side="right", **special
    )


@torch.no_grad()
def start_type_rows(encoder: SentenceEncoder) -> None:
    """Room for the type tokens in the encoder's embeddings; each new row begins as the mean of those of its name's pieces.

    Rows that were trained before, such as those of an earlier run's encoder, stay as they are.

    Args:
        encoder: with a tokenizer that has them.
    """
    tokenizer = encoder.tokenizer
    assert tokenizer is not None
    transformer = cast(Any, encoder.transformer)
    before = encoder.embeddings.num_embeddings
    ids = type_token_ids(tokenizer)[1:].tolist()
    fresh = encoder.config.name is None or max(ids) >= before
    if len(tokenizer) > before:
        transformer.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    if not fresh:
        return
    weight = encoder.embeddings.weight
    for row, name in zip(ids, TOKEN_CLASSES, strict=True):
        pieces = tokenizer(f" {name}", add_special_tokens=False)["input_ids"]
        known = [piece for piece in pieces if piece not in ids]
        if known:
            weight[row] = weight[torch.tensor(known, device=weight.device)].mean(0)


def type_token_ids(tokenizer: PreTrainedTokenizerFast) -> Tensor:
    """(13,) int64: the ids of the mask token and of the type tokens.

    Raises:
        ConfigError: a tokenizer without mask token, or without type tokens.
    """
    if tokenizer.mask_token_id is None:
        raise ConfigError("soft augmentation needs a tokenizer with a mask token: take another encoder")
    vocabulary = tokenizer.get_vocab()
    missing = [text for text in TYPE_TOKENS if text not in vocabulary]
    if missing:
        raise ConfigError(f"the tokenizer lacks {missing[0]}: give it add_type_tokens(tokenizer) first")
    return torch.tensor([tokenizer.mask_token_id, *(vocabulary[text] for text in TYPE_TOKENS)])
