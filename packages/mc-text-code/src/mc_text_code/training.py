"""A whole run on sentences: tokenizer, warm start, contrast, each resumable, in one folder.

The folder holds what :func:`mc_core.fit` leaves, with ``model/`` as ``SentenceTransformer`` loads it, and besides::

    tokenizer/      the tokenizer, and the transformer's architecture
    warm-start/     the run of the warm start, where there was one
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from mc_core.data import StepPlan
from mc_core.engine.config import Fit
from mc_core.engine.loop import Evaluator, RunResult, fit
from mc_core.errors import ConfigError
from mc_core.export import staging
from mc_core.files import StrPath
from mc_text_code.augment import most_added
from mc_text_code.augment_config import AugmentConfig
from mc_text_code.data.pairs import SentenceData
from mc_text_code.data.sentences import Sentences
from mc_text_code.encoders import SentenceEncoder
from mc_text_code.encoders_config import EncoderConfig
from mc_text_code.methods import METHODS
from mc_text_code.methods.mlm.config import MaskedLMConfig
from mc_text_code.methods.mlm.model import MaskedLM
from mc_text_code.recipe import BatchOptions, Recipe, WarmStart
from mc_text_code.saving import TOKENIZER_FOLDER, save_tokenizer
from mc_text_code.tokenizers import load_tokenizer, train_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from mc_core.data import Dataset
    from mc_text_code.code_recipe import CodeRecipe

WARM_START_FOLDER = "warm-start"
_WARM_WINDOW = 50  # batches; what is predicted does not depend on who else is in the batch
_WARM_UP = 0.1  # of its steps


def pretrain_sentences(
    recipe: Recipe[Any],
    sentences: Sentences | Sequence[str],
    run_dir: StrPath,
    *,
    evaluators: Sequence[Evaluator] = (),
    resume: Literal["auto", "never", "must"] = "auto",
) -> RunResult:
    """Train an encoder of sentences as a recipe says. The same call made again goes on where the run was.

    Args:
        recipe: see :func:`mc_text_code.recipe.resolve_recipe`.
        sentences: to train on; a new encoder's tokenizer is trained on them too.
        run_dir: the run folder.
        evaluators: see :func:`mc_core.fit`; they run on the contrast, not on the warm start.
        resume: see :func:`mc_core.fit`.

    Returns:
        Of the contrast; ``method.encoder`` is the trained :class:`~mc_text_code.encoders.SentenceEncoder`.

    Raises:
        ConfigError: fewer sentences than a batch, an encoder that cannot be reached, or a combination that cannot work.
        CheckpointError, DataError, RunError: as :func:`mc_core.fit`.

    >>> import tempfile
    >>> from mc_text_code.recipe import resolve_recipe
    >>> texts = [f"sentence number {i} of {i % 7} kinds" for i in range(64)]
    >>> small = {"encoder": {"hidden_size": 16, "heads": 2, "layers": 1}}
    >>> recipe = resolve_recipe("esimcse-laptop", {"method": small, "warm_start": {"steps": 1}, "fit": {"steps": 2}})
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     result = pretrain_sentences(recipe, texts, folder)
    >>> result.step, result.method.encoder.num_features
    (2, 16)
    """
    run_dir = Path(run_dir)
    sentences = sentences if isinstance(sentences, Sentences) else Sentences.of(sentences)
    encoder, data = prepare(recipe, sentences, run_dir)
    if recipe.warm_start.steps:
        warm_start(encoder, data, recipe.warm_start, run_dir / WARM_START_FOLDER, recipe.fit)
    return train_encoder(recipe, encoder, data, run_dir, evaluators=evaluators, resume=resume)


def train_encoder(
    recipe: Recipe[Any] | CodeRecipe[Any],
    encoder: SentenceEncoder,
    data: Dataset,
    run_dir: Path,
    *,
    evaluators: Sequence[Evaluator] = (),
    resume: Literal["auto", "never", "must"] = "auto",
) -> RunResult:
    """Train ``encoder`` in place by the recipe's method; the run folder gets the recipe with every choice that was made.

    Args:
        recipe: names the method and its settings.
        encoder: as it starts.
        data: batches as the method takes them.
        run_dir: the run folder.
        evaluators: see :func:`mc_core.fit`.
        resume: see :func:`mc_core.fit`.

    Raises:
        ConfigError: a combination that cannot work.
        CheckpointError: the folder holds a run of other settings.
    """
    torch.manual_seed(recipe.fit.seed)
    method = METHODS.method_class(recipe.system)(recipe.method, encoder=encoder)
    resolved = recipe.model_copy(update={"method": method.config})
    return fit(
        method,
        data,
        fit=recipe.fit,
        run_dir=run_dir,
        evaluators=evaluators,
        resume=resume,
        recipe=resolved.model_dump(mode="json"),
    )


def keep_tokenizer(encoder: SentenceEncoder, place: Path) -> None:
    """Write the encoder's tokenizer and its transformer's architecture into a folder, whole or not at all; once."""
    if not place.exists():
        with staging(place) as stage:
            save_tokenizer(encoder, stage)
            encoder.architecture.save_pretrained(str(stage))
            stage.rename(place)


def prepare(recipe: Recipe[Any], sentences: Sentences, run_dir: Path) -> tuple[SentenceEncoder, SentenceData]:
    """The encoder as it starts, from the recipe's seed, and the data; the run's tokenizer is written or taken up.

    Raises:
        ConfigError: an encoder that cannot be reached, or fewer sentences than a batch.
    """
    config: EncoderConfig = recipe.method.encoder
    place = run_dir / TOKENIZER_FOLDER
    tokenizer = _tokenizer(config, sentences, place)
    data = SentenceData(sentences, tokenizer, recipe.augment, recipe.batches, config.max_length)
    StepPlan(len(data), recipe.fit.batch_size, 0)  # before anything is written
    torch.manual_seed(recipe.fit.seed)
    encoder = SentenceEncoder(config, tokenizer)
    longest = int(data.tokens.lengths.max())
    if (grown := longest + most_added(longest, recipe.augment)) > encoder.positions:
        raise ConfigError(
            f"sentences of up to {longest} tokens may grow to {grown} by repetition, more than the {encoder.positions} that the "
            f"encoder takes: give a method.encoder.max_length below {longest}; the paper's is 32"
        )
    keep_tokenizer(encoder, place)
    return encoder, data


def _tokenizer(config: EncoderConfig, sentences: Sentences, place: Path) -> PreTrainedTokenizerFast:
    if (place / "tokenizer.json").exists():
        return load_tokenizer(place)
    if config.name is not None:
        return load_tokenizer(config.name, download=config.download)
    return train_tokenizer(sentences.texts, config.vocabulary, config.tokenizer, positions=config.positions)


def warm_start(
    encoder: SentenceEncoder, data: SentenceData, options: WarmStart, run_dir: Path, fit_of_recipe: Fit
) -> RunResult:
    """Train ``encoder`` in place to predict masked tokens, as a run of its own.

    Args:
        encoder: with its tokenizer.
        data: of the contrast; its token ids are shared.
        options: how long and how.
        run_dir: of this stage.
        fit_of_recipe: where seed, precision and device come from.
    """
    if options.batch_size > len(data):
        raise ConfigError(
            f"warm_start.batch_size {options.batch_size} is larger than the data ({len(data)} sentences): "
            f"set it to {len(data)} or less, or give more sentences"
        )
    torch.manual_seed(fit_of_recipe.seed + 1)
    method = MaskedLM(MaskedLMConfig(encoder=encoder.config, rate=options.rate), encoder)
    steps_per_epoch = len(data) // options.batch_size
    settings = Fit(
        steps=options.steps,
        batch_size=options.batch_size,
        optimizer="adamw",
        lr=options.lr,
        weight_decay=0.01,
        decay_1d=False,
        clip_norm=1.0,
        schedule="linear",
        warmup_epochs=_WARM_UP * options.steps / steps_per_epoch,
        seed=fit_of_recipe.seed,
        precision=fit_of_recipe.precision,
        device=fit_of_recipe.device,
        strategy=fit_of_recipe.strategy,
        deterministic=fit_of_recipe.deterministic,
    )
    plain = data.again(AugmentConfig(kind="none"), BatchOptions(length_window=_WARM_WINDOW))
    return fit(method, plain, fit=settings, run_dir=run_dir)
