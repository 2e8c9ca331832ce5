"""A table of token vectors instead of an encoder: the mean of a text's tokens, looked up in microseconds.

Distilled as Model2Vec does (Tulkens & van Dongen 2024, github.com/MinishLab/model2vec): each entry of the vocabulary goes through
the encoder once, principal components are taken, and frequent tokens are held back by smooth inverse frequency (Arora, Liang & Ma
2017, ICLR), their frequencies estimated by Zipf's law or counted. The folder has Model2Vec's form, so that model2vec and
sentence-transformers read it, and folders of theirs are read here. Loading and encoding need no torch.

Legend: V entries of the vocabulary, D dimensions of the table, N texts.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from mc_core.errors import CheckpointError, ConfigError
from mc_core.files import StrPath, as_os_error, explain_write_error, read_json, sync_folder, write_atomic, write_json

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from torch import Tensor
    from transformers import PreTrainedTokenizerFast

WEIGHTS, TOKENIZER, CONFIG = "model.safetensors", "tokenizer.json", "config.json"
MAX_TOKENS = 512

_CARD = """---
library_name: model2vec
tags: [model2vec, static-embeddings, code-search]
---

# Static embeddings for code search

{vocabulary:,} tokens, {dim} dimensions, distilled from {name}. A text is the mean of its tokens' vectors, made unit length.

```python
from model2vec import StaticModel

model = StaticModel.from_pretrained("path/to/this/folder")
```

The method: Stephan Tulkens and Thomas van Dongen, Model2Vec, 2024, https://github.com/MinishLab/model2vec.
"""


class StaticEncoder:
    """A table of token vectors with its tokenizer; the same for queries and code.

    Args:
        table: (V, D) float.
        tokenizer: with V entries.
        max_tokens: longer texts are cut.
        name: what it was distilled from.
        settings: how, kept in the configuration.

    Raises:
        ConfigError: table and tokenizer do not belong together.
    """

    def __init__(
        self,
        table: np.ndarray,
        tokenizer: Tokenizer,
        *,
        max_tokens: int = MAX_TOKENS,
        name: str = "an encoder",
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        from tokenizers import Tokenizer

        size = tokenizer.get_vocab_size()
        if table.ndim != 2 or len(table) != size:
            raise ConfigError(
                f"a table of shape {table.shape} for a tokenizer of {size:,} entries; it needs a row for each"
            )
        self.table = np.ascontiguousarray(table, dtype=np.float32)
        self.max_tokens = max_tokens
        self.name = name
        self.settings = dict(settings or {})
        self._json = tokenizer.to_str()
        self._tokenizer = Tokenizer.from_str(self._json)  # a copy: others may go on changing theirs
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()

    @property
    def dim(self) -> int:
        """D."""
        return self.table.shape[1]

    @cached_property
    def identity(self) -> str:
        """A hash of table, tokenizer and length."""
        digest = hashlib.blake2b(self.table.data, digest_size=16)
        digest.update(f"{self.table.shape}{self.max_tokens}{self._json}".encode())
        return f"static-{digest.hexdigest()}"

    def encode_queries(self, texts: Sequence[str]) -> np.ndarray:
        """(N, D) float32 of length one; zeros for a text without tokens."""
        if not texts:
            return np.zeros((0, self.dim), np.float32)
        found = [
            encoding.ids[: self.max_tokens]
            for encoding in self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        ]
        # a mean differs from a sum by its length only; summing text by text is 15 times as fast as np.add.reduceat
        sums = np.stack([self.table[ids].sum(axis=0) for ids in found])
        norms = np.linalg.norm(sums, axis=1, keepdims=True)
        return np.divide(sums, norms, out=sums, where=norms > 0)

    encode_code = encode_queries

    def save(self, folder: StrPath) -> Path:
        """Write the folder that model2vec and sentence-transformers read.

        Raises:
            ConfigError: it cannot be written. RunError: the disk is full.
        """
        from safetensors import SafetensorError
        from safetensors.numpy import save

        folder = Path(folder)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / CONFIG).unlink(missing_ok=True)  # what makes it a model comes last
            write_atomic(folder / WEIGHTS, save({"embeddings": self.table}))
        except OSError as error:
            raise explain_write_error(error, folder) from error
        except SafetensorError as error:
            raise as_os_error(error) from error
        write_atomic(folder / TOKENIZER, self._json)
        modules = [
            {"idx": 0, "name": "0", "path": ".", "type": "sentence_transformers.models.StaticEmbedding"},
            {"idx": 1, "name": "1", "path": "1_Normalize", "type": "sentence_transformers.models.Normalize"},
        ]
        (folder / "1_Normalize").mkdir(exist_ok=True)
        write_json(folder / "modules.json", modules)
        card = _CARD.format(vocabulary=len(self.table), dim=self.dim, name=self.name)
        write_atomic(folder / "README.md", card)
        write_json(
            folder / CONFIG,
            {
                "model_type": "model2vec",
                "architectures": ["StaticModel"],
                "tokenizer_name": self.name,
                "apply_zipf": None,
                **self.settings,
                "hidden_dim": self.dim,
                "seq_length": 1_000_000,
                "max_tokens": self.max_tokens,
                "normalize": True,
                "embedding_dtype": "float32",
            },
        )
        sync_folder(folder)
        return folder

    @classmethod
    def load(cls, folder: StrPath) -> Self:
        """Read a folder of Model2Vec's form, ours or another's.

        Raises:
            CheckpointError: it is none, or damaged.
        """
        from safetensors import SafetensorError
        from safetensors.numpy import load_file
        from tokenizers import Tokenizer

        folder = Path(folder)
        missing = [name for name in (CONFIG, WEIGHTS, TOKENIZER) if not (folder / name).is_file()]
        if missing:
            raise CheckpointError(f"{folder} has no {missing[0]}; give the folder of a static table")
        config = read_json(folder / CONFIG)
        if not isinstance(config, dict) or config.get("model_type") != "model2vec":
            raise CheckpointError(
                f"{folder / CONFIG}: not of model type 'model2vec'; give the folder of a static table"
            )
        try:
            weights = load_file(folder / WEIGHTS)
            table = weights["embeddings"].astype(np.float32)
            if "mapping" in weights:
                table = table[weights["mapping"]]
            if "weights" in weights:
                table = table * weights["weights"].astype(np.float32)[:, None]
            tokenizer = Tokenizer.from_file(str(folder / TOKENIZER))
        except (SafetensorError, KeyError, IndexError, ValueError) as error:
            raise CheckpointError(f"{folder} is damaged ({error}); save it again") from error
        except Exception as error:  # tokenizers raises Exception itself
            raise CheckpointError(f"{folder / TOKENIZER} is no tokenizer ({error}); save it again") from error
        name, length = str(config.get("tokenizer_name", folder.name)), int(config.get("max_tokens", MAX_TOKENS))
        settings = {key: config[key] for key in ("apply_pca", "sif_coefficient") if key in config}
        try:
            return cls(table, tokenizer, max_tokens=length, name=name, settings=settings)
        except ConfigError as error:
            raise CheckpointError(f"{folder}: {error}") from error


def is_static_folder(folder: StrPath) -> bool:
    """Whether a folder holds such a table, going by its ``config.json``."""
    try:
        return json.loads((Path(folder) / CONFIG).read_bytes()).get("model_type") == "model2vec"
    except (OSError, ValueError, AttributeError):
        return False


def distil(
    vectors: np.ndarray,
    *,
    dim: int = 256,
    sif: float | None = 1e-4,
    frequencies: np.ndarray | None = None,
    unused: Sequence[int] = (),
) -> np.ndarray:
    """A static table from what an encoder makes of each token by itself.

    Args:
        vectors: (V, d).
        dim: principal components to keep; fewer where there are fewer. They are taken as Model2Vec does: centred.
        sif: a in the weight a / (a + p) of a token of probability p; None: all weigh the same.
        frequencies: (V,) how often each token occurs in a corpus. Default: Zipf's law over the order of the vocabulary, as
            tokenizers list frequent tokens first.
        unused: tokens that mean nothing, such as padding; their vectors are zero.

    Returns:
        (V, D) float32, D = min(dim, d).

    Raises:
        ConfigError: an argument is out of range.

    >>> table = distil(np.eye(4), dim=2, unused=[0])
    >>> table.shape, table[0].tolist()
    ((4, 2), [0.0, 0.0])
    """
    if dim < 1 or (sif is not None and not 0 < sif < 1):
        raise ConfigError(f"dim={dim}, sif={sif}: the table needs a dimension of 1 or more, and 0 < sif < 1 or None")
    if frequencies is not None and (frequencies.shape != vectors.shape[:1] or (frequencies < 0).any()):
        raise ConfigError(f"frequencies of shape {frequencies.shape} for {len(vectors)} tokens; give a count for each")
    kept = np.setdiff1d(np.arange(len(vectors)), np.asarray(unused, dtype=np.int64))
    table = np.zeros((len(vectors), min(dim, vectors.shape[1])))
    centred = vectors[kept].astype(np.float64) - vectors[kept].mean(axis=0, dtype=np.float64)
    _, axes = np.linalg.eigh(centred.T @ centred)
    axes = axes[:, ::-1][:, : table.shape[1]]
    largest = np.abs(axes).argmax(axis=0)
    axes = axes * np.where(axes[largest, np.arange(axes.shape[1])] < 0, -1, 1)  # the sign is free: fix it
    table[kept] = centred @ axes
    if sif is not None:
        shares = 1 / np.arange(2, len(vectors) + 2) if frequencies is None else frequencies.astype(np.float64)
        shares = shares / max(shares.sum(), 1e-12)
        table *= (sif / (sif + shares))[:, None]
    return table.astype(np.float32)


def token_vectors(
    forward: Callable[[Tensor, Tensor], Tensor],
    vocabulary: int,
    *,
    before: Sequence[int] = (),
    after: Sequence[int] = (),
    batch_size: int = 1024,
    device: str = "cpu",
) -> np.ndarray:
    """What an encoder makes of each token by itself, between the special tokens it is used to.

    Args:
        forward: token ids and attention mask (B, L) → (B, d); in evaluation mode.
        vocabulary: V.
        before: ids that every text begins with.
        after: ids that every text ends with.
        batch_size: B.
        device: of the encoder.

    Returns:
        (V, d) float32.
    """
    import torch

    parts = []
    with torch.inference_mode():
        for start in range(0, vocabulary, batch_size):
            ids = torch.arange(start, min(start + batch_size, vocabulary), device=device)[:, None]
            whole = torch.cat(
                [
                    torch.tensor(list(before), dtype=torch.int64, device=device).expand(len(ids), len(before)),
                    ids,
                    torch.tensor(list(after), dtype=torch.int64, device=device).expand(len(ids), len(after)),
                ],
                dim=1,
            )
            parts.append(forward(whole, torch.ones_like(whole)).float().cpu().numpy())
    return np.concatenate(parts)


def distil_encoder(
    forward: Callable[[Tensor, Tensor], Tensor],
    tokenizer: PreTrainedTokenizerFast,
    *,
    dim: int = 256,
    sif: float | None = 1e-4,
    corpus: Sequence[str] = (),
    name: str = "an encoder",
    device: str = "cpu",
) -> StaticEncoder:
    """A static table from a whole encoder.

    Args:
        forward: as in :func:`token_vectors`.
        tokenizer: of the encoder.
        dim: as in :func:`distil`.
        sif: as in :func:`distil`.
        corpus: texts in which tokens are counted; without, Zipf's law over the order of the vocabulary.
        name: of the encoder, for the model card.
        device: of the encoder.
    """
    backend = tokenizer.backend_tokenizer
    size = backend.get_vocab_size()
    around = tokenizer("a")["input_ids"]
    bare = tokenizer("a", add_special_tokens=False)["input_ids"]
    start = next((at for at in range(len(around)) if around[at : at + len(bare)] == bare), 0)
    vectors = token_vectors(forward, size, before=around[:start], after=around[start + len(bare) :], device=device)
    frequencies = None
    if corpus:
        frequencies = np.ones(size)  # nothing is impossible
        for encoding in backend.encode_batch_fast(list(corpus), add_special_tokens=False):
            np.add.at(frequencies, encoding.ids, 1)
    table = distil(vectors, dim=dim, sif=sif, frequencies=frequencies, unused=tokenizer.all_special_ids)
    settings = {"apply_pca": table.shape[1], "sif_coefficient": sif}
    return StaticEncoder(table, backend, name=name, settings=settings)
