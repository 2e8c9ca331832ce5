"""Tokenizers: any of Hugging Face's by folder or name, or one trained on the corpus at hand."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from safetensors import SafetensorError

from mc_core.errors import ConfigError, DataError
from mc_core.files import StrPath, read_json

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

TokenizerKind = Literal["wordpiece", "bpe"]

_ALPHABET = 1000  # characters; rarer ones become unknown, as in BERT
_CHUNK = 4096
_SPECIAL: dict[str, dict[str, str]] = {
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
    import tokenizers as tk
    from transformers import PreTrainedTokenizerFast

    if kind not in get_args(TokenizerKind):
        raise ConfigError(f"tokenizer '{kind}': choose one of {', '.join(get_args(TokenizerKind))}")
    texts = texts if isinstance(texts, Sequence) else list(texts)
    if not any(text.strip() for text in texts):
        raise DataError("no text to train a tokenizer on: give sentences")
    special = _SPECIAL[kind]
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
    return PreTrainedTokenizerFast(tokenizer_object=backend, model_max_length=positions, **special)


def _wordpiece_vocabulary(texts: Sequence[str], vocabulary: int, lowercase: bool) -> dict[str, int]:
    """Pieces and their ids.

    The trainer numbers continued characters in an order that changes from run to run; told all of them beforehand, it
    leaves nothing to chance.
    """
    import tokenizers as tk

    normalizer = tk.normalizers.BertNormalizer(lowercase=lowercase)
    counts: Counter[str] = Counter()
    for chunk in _chunks(texts):
        counts.update("".join(chunk))
    folded: Counter[str] = Counter()
    for character, count in counts.items():
        folded.update(dict.fromkeys(normalizer.normalize_str(character), count))
    folded.pop(" ", None)
    alphabet = sorted(c for c, _ in sorted(folded.items(), key=lambda item: (-item[1], item[0]))[:_ALPHABET])
    fixed = [*_SPECIAL["wordpiece"].values(), *alphabet, *(f"##{character}" for character in alphabet)]
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


def transformer_folder(name: StrPath) -> Path | str:
    """The folder of the transformer itself: in a SentenceTransformer folder its first module, else ``name`` as it is."""
    folder = Path(name)
    if not (folder / "modules.json").is_file():
        return folder if folder.is_dir() else str(name)
    first = read_json(folder / "modules.json")[0]
    return folder / first["path"]


class reaching:
    """Turns the many errors of a model that cannot be reached into one line that says which folder to give."""

    def __init__(self, name: str, *, download: bool) -> None:
        self.name, self.download = name, download

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if not isinstance(error, (OSError, ValueError, KeyError, ImportError, RuntimeError, SafetensorError)):
            return
        if Path(self.name).is_dir():
            reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
            raise ConfigError(
                f"encoder '{self.name}': the folder holds no transformer that can be read ({reason}); it needs config.json, "
                "model.safetensors and tokenizer.json"
            ) from error
        where = "nor can it be fetched" if self.download else "nor in the local cache of the Hugging Face hub"
        then = "" if self.download else ", or allow --method.encoder.download"
        raise ConfigError(
            f"encoder '{self.name}' is no folder here, {where}: give a folder with its config.json, model.safetensors and "
            f"tokenizer.json (elsewhere: hf download {self.name} --local-dir FOLDER){then}"
        ) from error
