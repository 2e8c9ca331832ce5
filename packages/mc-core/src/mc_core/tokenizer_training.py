"""Tokenizers trained on the texts at hand: the same texts give the same tokenizer. Needs the package ``tokenizers``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Literal, get_args

from mc_core.errors import ConfigError, DataError
from mc_core.optional import require

if TYPE_CHECKING:
    from tokenizers import Tokenizer

TokenizerKind = Literal["wordpiece", "bpe"]

_ALPHABET = 1000  # characters; rarer ones become unknown, as in BERT
_CHUNK = 4096
SPECIAL_TOKENS: dict[str, dict[str, str]] = {
    "wordpiece": {
        "pad_token": "[PAD]",
        "unk_token": "[UNK]",
        "cls_token": "[CLS]",
        "sep_token": "[SEP]",
        "mask_token": "[MASK]",
    },
    "bpe": {
        "cls_token": "<s>",
        "pad_token": "<pad>",
        "sep_token": "</s>",
        "unk_token": "<unk>",
        "mask_token": "<mask>",
    },
}


def train_backend(
    texts: Iterable[str],
    vocabulary: int = 16_000,
    kind: TokenizerKind = "wordpiece",
    *,
    lowercase: bool = True,
) -> Tokenizer:
    """A tokenizer trained on ``texts``, with the special tokens of its kind (:data:`SPECIAL_TOKENS`) around each.

    Args:
        texts: sentences.
        vocabulary: entries wanted, special tokens included; small corpora give fewer.
        kind: ``"wordpiece"`` as BERT's, ``"bpe"`` on bytes as RoBERTa's, which knows no unknown token.
        lowercase: for ``"wordpiece"``: fold case and accents first, as the uncased BERT does.

    Raises:
        ConfigError: an unknown kind.
        DataError: no texts.

    >>> train_backend(["a red house", "a red boat"], vocabulary=64).encode("A red boat").tokens
    ['[CLS]', 'a', 'red', 'boat', '[SEP]']
    """
    tk = require("tokenizers", extra="tokenizers", purpose="train a tokenizer")

    if kind not in get_args(TokenizerKind):
        raise ConfigError(f"tokenizer '{kind}': choose one of {', '.join(get_args(TokenizerKind))}")
    texts = texts if isinstance(texts, Sequence) else list(texts)
    if not any(text.strip() for text in texts):
        raise DataError("no text to train a tokenizer on: give sentences")
    special = SPECIAL_TOKENS[kind]
    if kind == "wordpiece":
        backend = tk.Tokenizer(tk.models.WordPiece(_wordpiece_vocabulary(texts, vocabulary, lowercase)))
        backend.normalizer = tk.normalizers.BertNormalizer(lowercase=lowercase)
        backend.pre_tokenizer = tk.pre_tokenizers.BertPreTokenizer()
        backend.decoder = tk.decoders.WordPiece()
    else:
        backend = tk.Tokenizer(tk.models.BPE())
        backend.pre_tokenizer = tk.pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = tk.decoders.ByteLevel()
        alphabet = tk.pre_tokenizers.ByteLevel.alphabet()
        trainer = tk.trainers.BpeTrainer(
            vocab_size=max(vocabulary, len(alphabet) + len(special)),
            special_tokens=list(special.values()),
            initial_alphabet=alphabet,
            show_progress=False,
        )
        backend.train_from_iterator(_chunks(texts), trainer)
    cls, sep = special["cls_token"], special["sep_token"]
    backend.post_processor = tk.processors.TemplateProcessing(
        single=f"{cls} $A {sep}",
        pair=f"{cls} $A {sep} $B {sep}",
        special_tokens=[(token, backend.token_to_id(token)) for token in (cls, sep)],
    )
    return backend


def _wordpiece_vocabulary(texts: Sequence[str], vocabulary: int, lowercase: bool) -> dict[str, int]:
    """Pieces and their ids.

    The trainer numbers continued characters in an order that changes from run to run; told all of them beforehand, it
    leaves nothing to chance.
    """
    tk = require("tokenizers", extra="tokenizers", purpose="train a tokenizer")

    normalizer = tk.normalizers.BertNormalizer(lowercase=lowercase)
    counts: Counter[str] = Counter()
    for chunk in _chunks(texts):
        counts.update("".join(chunk))
    folded: Counter[str] = Counter()
    for character, count in counts.items():
        folded.update(dict.fromkeys(normalizer.normalize_str(character), count))
    folded.pop(" ", None)
    alphabet = sorted(c for c, _ in sorted(folded.items(), key=lambda item: (-item[1], item[0]))[:_ALPHABET])
    fixed = [*SPECIAL_TOKENS["wordpiece"].values(), *alphabet, *(f"##{character}" for character in alphabet)]
    backend = tk.Tokenizer(tk.models.WordPiece())
    backend.normalizer = normalizer
    backend.pre_tokenizer = tk.pre_tokenizers.BertPreTokenizer()
    trainer = tk.trainers.WordPieceTrainer(
        vocab_size=max(vocabulary, len(fixed)), special_tokens=fixed, limit_alphabet=_ALPHABET, show_progress=False
    )
    backend.train_from_iterator(_chunks(texts), trainer)
    return backend.get_vocab(with_added_tokens=True)


def _chunks(texts: Sequence[str]) -> Iterator[list[str]]:
    for start in range(0, len(texts), _CHUNK):
        yield list(texts[start : start + _CHUNK])
