"""Tokenizers of captions: that of a published text encoder, or one trained on the captions at hand."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from mc_core.errors import ConfigError
from mc_core.files import StrPath
from mc_core.hub import reaching, transformer_folder
from mc_core.tokenizer_training import SPECIAL_TOKENS, train_backend

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerFast

    from mc_core.tokens import Tokens

_POSITIONS = 512


def train_tokenizer(captions: Iterable[str], vocabulary: int = 8_000) -> PreTrainedTokenizerFast:
    """A WordPiece tokenizer trained on ``captions``, case folded: the same captions give the same tokenizer.

    Args:
        captions: texts.
        vocabulary: entries wanted, special tokens included; small corpora give fewer.

    Raises:
        DataError: no texts.

    >>> train_tokenizer(["a red house", "a red boat"], vocabulary=64).tokenize("A red boat")
    ['a', 'red', 'boat']
    """
    from transformers import PreTrainedTokenizerFast

    backend = train_backend(captions, vocabulary, "wordpiece")
    return PreTrainedTokenizerFast(tokenizer_object=backend, model_max_length=_POSITIONS, **SPECIAL_TOKENS["wordpiece"])


def load_tokenizer(name: StrPath, *, download: bool = False) -> PreTrainedTokenizerFast:
    """The tokenizer of a transformer by its folder or its name on the Hugging Face hub.

    Args:
        name: a folder, or a name that is in the local cache.
        download: fetch it from the hub when it is neither.

    Raises:
        ConfigError: it is not there, or is not a fast tokenizer; the message says what to give.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    place = transformer_folder(name)
    with reaching(str(name), download=download, option="--method.text.download"):
        tokenizer = AutoTokenizer.from_pretrained(str(place), local_files_only=not download)
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise ConfigError(f"{name}: its tokenizer has no tokenizer.json and cannot be converted: give a model with one")
    return tokenizer


def check_tokenizer(tokenizer: PreTrainedTokenizerFast, vocabulary: int) -> None:
    """Raise ConfigError unless the tokenizer fits a text encoder with this many token embeddings.

    Args:
        tokenizer: with ``[PAD]``, ``[CLS]`` and ``[MASK]``, or what it calls them.
        vocabulary: rows of the encoder's embedding table.

    >>> check_tokenizer(train_tokenizer(["a red house"], vocabulary=64), 64)
    """
    needed = {"padding": tokenizer.pad_token_id, "[CLS]": tokenizer.cls_token_id, "[MASK]": tokenizer.mask_token_id}
    missing = [name for name, number in needed.items() if number is None]
    if missing:
        raise ConfigError(
            f"the tokenizer has no {missing[0]} token, which the text encoder needs: give a BERT-style one"
        )
    largest = max(tokenizer.get_vocab().values())
    if largest >= vocabulary:
        raise ConfigError(
            f"the tokenizer numbers its tokens up to {largest}, the text encoder knows {vocabulary} (0 to {vocabulary - 1}): "
            "give the tokenizer that belongs to the encoder, or an encoder made for it"
        )


def with_sep(tokenizer: PreTrainedTokenizerFast, add_sep: bool) -> PreTrainedTokenizerFast:
    """A copy that puts ``[CLS]`` before each text, and ``[SEP]`` after it or nothing.

    ALBEF's own tokenizer adds no ``[SEP]``, though BERT's does.

    Args:
        tokenizer: with ``[CLS]`` and, if it is to be added, ``[SEP]``, or what it calls them.
        add_sep: whether ``[SEP]`` ends each text.

    Raises:
        ConfigError: the tokenizer lacks one of the two.

    >>> plain = with_sep(train_tokenizer(["a red house"], vocabulary=64), False)
    >>> plain.convert_ids_to_tokens(plain("red house").input_ids)
    ['[CLS]', 'red', 'house']
    """
    from tokenizers.processors import TemplateProcessing

    first, last = tokenizer.cls_token, tokenizer.sep_token
    if first is None or (add_sep and last is None):
        lacks = "[CLS]" if first is None else "[SEP]"
        raise ConfigError(f"the tokenizer has no {lacks} token, which the text encoder needs: give a BERT-style one")
    tokens = {first: tokenizer.cls_token_id} | ({last: tokenizer.sep_token_id} if add_sep else {})
    end = f" {last}" if add_sep else ""
    changed = copy.deepcopy(tokenizer)
    changed.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{first} $A{end}", pair=f"{first} $A{end} $B{end}", special_tokens=list(tokens.items())
    )
    return changed


def tokenize_texts(
    tokenizer: PreTrainedTokenizerFast, texts: Sequence[str], max_length: int, *, add_sep: bool = False
) -> Tokens:
    """Token ids of many texts: ``[CLS]`` first, then the text, cut to ``max_length`` tokens in all.

    Args:
        tokenizer: a fast one.
        texts: N of them.
        max_length: tokens of a text, special ones included.
        add_sep: see :func:`with_sep`.

    >>> tokenizer = train_tokenizer(["a red house"], vocabulary=64)
    >>> tokens = tokenize_texts(tokenizer, ["a red house", "red"], max_length=3)
    >>> tokenizer.convert_ids_to_tokens(tokens.ids.tolist()), tokens.lengths.tolist()
    (['[CLS]', 'a', 'red', '[CLS]', 'red'], [3, 2])
    """
    from mc_core.tokens import tokenize

    return tokenize(with_sep(tokenizer, add_sep), texts, max_length)


def encode_texts(
    tokenizer: PreTrainedTokenizerFast, texts: Sequence[str], max_length: int, *, add_sep: bool = False
) -> tuple[Tensor, Tensor]:
    """(N, L) int64 token ids and attention mask, padded on the right; see :func:`tokenize_texts`."""
    from mc_core.tokens import padded

    tokens = tokenize_texts(tokenizer, texts, max_length, add_sep=add_sep)
    return padded(tokens.ids, tokens.lengths, int(tokenizer.pad_token_id))
