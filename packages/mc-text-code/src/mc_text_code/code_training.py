"""A whole run on pairs of question and code: tokenizer, type tokens, contrast, resumable, in one folder.

The folder holds what :func:`mc_core.fit` leaves, with ``model/`` as ``SentenceTransformer`` loads it, and besides::

    tokenizer/      the tokenizer with its type tokens, and the transformer's architecture
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from mc_core.data import StepPlan
from mc_core.engine.loop import Evaluator, RunResult
from mc_core.errors import ConfigError
from mc_core.files import StrPath
from mc_text_code.code_recipe import CodeRecipe
from mc_text_code.data.code_data import CodeData
from mc_text_code.data.code_pairs import CodePair
from mc_text_code.encoders import SentenceEncoder
from mc_text_code.encoders_config import EncoderConfig
from mc_text_code.saving import TOKENIZER_FOLDER
from mc_text_code.tokenizers import load_tokenizer, train_tokenizer
from mc_text_code.training import keep_tokenizer, train_encoder
from mc_text_code.type_tokens import add_type_tokens, start_type_rows

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

TOKENIZER_PAIRS = 20_000  # a new tokenizer is trained on the first so many pairs, which bounds its time and memory


def train_code(
    recipe: CodeRecipe[Any],
    pairs: Sequence[CodePair],
    run_dir: StrPath,
    *,
    processes: int = 1,
    evaluators: Sequence[Evaluator] = (),
    resume: Literal["auto", "never", "must"] = "auto",
) -> RunResult:
    """Train an encoder of questions and code as a recipe says. The same call made again goes on where the run was.

    Args:
        recipe: see :func:`mc_text_code.code_recipe.resolve_code_recipe`.
        pairs: to train on; a new encoder's tokenizer is trained on them too.
        run_dir: the run folder.
        processes: that parse; 0 for one on each processor where there are enough pairs.
        evaluators: see :func:`mc_core.fit`.
        resume: see :func:`mc_core.fit`.

    Returns:
        Of the run; ``method.encoder`` is the trained :class:`~mc_text_code.encoders.SentenceEncoder`.

    Raises:
        ConfigError: fewer pairs than a batch, an encoder that cannot be reached, or a combination that cannot work.
        CheckpointError, DataError, RunError: as :func:`mc_core.fit`.

    >>> import tempfile
    >>> from mc_text_code.code_recipe import resolve_code_recipe
    >>> pairs = [CodePair(f"adds {i}", f"def add_{i}(x): return x + {i}", "python", f"add_{i}") for i in range(32)]
    >>> small = {"encoder": {"hidden_size": 16, "heads": 2, "layers": 1}, "queue_size": 16}
    >>> recipe = resolve_code_recipe("cocosoda-laptop", {"method": small, "fit": {"steps": 2, "batch_size": 8}})
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     result = train_code(recipe, pairs, folder)
    >>> result.step, result.method.encoder.num_features
    (2, 16)
    """
    run_dir = Path(run_dir)
    encoder, data = prepare_code(recipe, pairs, run_dir, processes=processes)
    return train_encoder(recipe, encoder, data, run_dir, evaluators=evaluators, resume=resume)


def prepare_code(
    recipe: CodeRecipe[Any], pairs: Sequence[CodePair], run_dir: Path, *, processes: int = 1
) -> tuple[SentenceEncoder, CodeData]:
    """The encoder as it starts, from the recipe's seed, and the data; the run's tokenizer is written or taken up.

    Raises:
        ConfigError: an encoder that cannot be reached, or fewer pairs than a batch.
    """
    config: EncoderConfig = recipe.method.encoder
    StepPlan(len(pairs), recipe.fit.batch_size, 0)  # before anything is done
    place = run_dir / TOKENIZER_FOLDER
    tokenizer = _tokenizer(config, pairs, place)
    encoder = new_code_encoder(config, tokenizer, recipe.fit.seed)
    if recipe.batches.query_length > encoder.positions:
        raise ConfigError(
            f"batches.query_length {recipe.batches.query_length} is more than the {encoder.positions} tokens that the "
            "encoder takes"
        )
    data = CodeData(pairs, tokenizer, config.max_length, recipe.batches, processes=processes)
    keep_tokenizer(encoder, place)
    return encoder, data


def new_code_encoder(config: EncoderConfig, tokenizer: PreTrainedTokenizerFast, seed: int) -> SentenceEncoder:
    """The encoder as training finds it: with its published weights or random ones from the seed, and rows for type tokens."""
    torch.manual_seed(seed)
    encoder = SentenceEncoder(config, tokenizer)
    start_type_rows(encoder)
    return encoder


def _tokenizer(config: EncoderConfig, pairs: Sequence[CodePair], place: Path) -> PreTrainedTokenizerFast:
    if (place / "tokenizer.json").exists():
        return load_tokenizer(place)
    if config.name is not None:
        return add_type_tokens(load_tokenizer(config.name, download=config.download))
    some = pairs[:TOKENIZER_PAIRS]
    texts = list(chain.from_iterable((pair.query, pair.code) for pair in some))
    return add_type_tokens(train_tokenizer(texts, config.vocabulary, config.tokenizer, positions=config.positions))
