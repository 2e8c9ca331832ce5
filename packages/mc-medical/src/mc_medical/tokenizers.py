"""Tokenizers of reports: that of a published text encoder, or one trained on the reports at hand."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from mc_core.errors import ConfigError
from mc_core.files import StrPath
from mc_core.hub import reaching, transformer_folder
from mc_core.tokenizer_training import SPECIAL_TOKENS, train_backend

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_POSITIONS = 512


def train_tokenizer(texts: Iterable[str], vocabulary: int = 8_000) -> PreTrainedTokenizerFast:
    """A WordPiece tokenizer trained on ``texts``, case folded: the same texts give the same tokenizer.

    Args:
        texts: reports or sentences.
        vocabulary: entries wanted, special tokens included; small corpora give fewer.

    Raises:
        DataError: no texts.

    >>> train_tokenizer(["left pleural effusion", "no effusion"], vocabulary=64).tokenize("No effusion")
    ['no', 'effusion']
    """
    from transformers import PreTrainedTokenizerFast

    backend = train_backend(texts, vocabulary, "wordpiece")
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
