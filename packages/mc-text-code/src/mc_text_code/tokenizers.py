"""Tokenizers: any of Hugging Face's by folder or name, or one trained on the corpus at hand."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from mc_core.errors import ConfigError
from mc_core.files import StrPath
from mc_core.hub import reaching, transformer_folder
from mc_core.tokenizer_training import SPECIAL_TOKENS, TokenizerKind, train_backend

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


def train_tokenizer(
    texts: Iterable[str],
    vocabulary: int = 16_000,
    kind: TokenizerKind = "wordpiece",
    *,
    lowercase: bool = True,
    positions: int = 512,
) -> PreTrainedTokenizerFast:
    """A tokenizer trained on ``texts``: the same texts give the same tokenizer.

    Args:
        texts: sentences.
        vocabulary: entries wanted, special tokens included; small corpora give fewer.
        kind: ``"wordpiece"`` as BERT's, ``"bpe"`` on bytes as RoBERTa's, which knows no unknown token.
        lowercase: for ``"wordpiece"``: fold case and accents first, as the uncased BERT does.
        positions: longest input of the model it is for, in tokens.

    Raises:
        ConfigError: an unknown kind.
        DataError: no texts.

    >>> tokenizer = train_tokenizer(["a red house", "a red boat"], vocabulary=64)
    >>> tokenizer.tokenize("A red boat")
    ['a', 'red', 'boat']
    """
    from transformers import PreTrainedTokenizerFast

    backend = train_backend(texts, vocabulary, kind, lowercase=lowercase)
    return PreTrainedTokenizerFast(tokenizer_object=backend, model_max_length=positions, **SPECIAL_TOKENS[kind])


def load_tokenizer(name: StrPath, *, download: bool = False) -> PreTrainedTokenizerFast:
    """The tokenizer of a transformer by its folder or its name on the Hugging Face hub.

    Args:
        name: a folder, or a name such as ``bert-base-uncased`` that is in the local cache.
        download: fetch it from the hub when it is neither.

    Raises:
        ConfigError: it is not there, or is not a fast tokenizer; the message says what to give.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    place = transformer_folder(name)
    with reaching(str(name), download=download):
        tokenizer = AutoTokenizer.from_pretrained(str(place), local_files_only=not download)
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise ConfigError(f"{name}: its tokenizer has no tokenizer.json and cannot be converted: give a model with one")
    return tokenizer
