"""Encoders that leave a run: folders that plain ``SentenceTransformer(folder)`` loads, and the way back.

A folder holds the transformer and its tokenizer as Hugging Face saves them, and beside them what sentence-transformers reads:
``modules.json``, ``1_Pooling/config.json`` (for ``pooling: first-last`` also ``1_WeightedLayerPooling``, then ``2_Pooling``),
``sentence_bert_config.json``, ``config_sentence_transformers.json`` and a model card. The form is the one that its versions
since 2.2 understand.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
import yaml
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch.nn.functional import normalize as unit_rows

from mc_core.engine.checkpoint import CheckpointFolder
from mc_core.errors import CheckpointError, ConfigError, DataError
from mc_core.export import staging
from mc_core.files import StrPath, read_json, sync_folder, write_atomic, write_json
from mc_core.hub import reaching
from mc_text_code.encoders import SentenceEncoder, build_transformer, new_transformer, quiet_loading, without_pooler
from mc_text_code.encoders_config import EncoderConfig, Pooling
from mc_text_code.tokenizers import load_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

TOKENIZER_FOLDER = "tokenizer"  # of a run

CITATION = """@article{wu2021esimcse,
  title = {{ESimCSE}: Enhanced Sample Building Method for Contrastive Learning of Unsupervised Sentence Embedding},
  author = {Wu, Xing and Gao, Chaochen and Zang, Liangjun and Han, Jizhong and Wang, Zhongyuan and Hu, Songlin},
  journal = {arXiv preprint arXiv:2109.04380},
  year = {2021}
}

@article{gao2021simcse,
  title = {{SimCSE}: Simple Contrastive Learning of Sentence Embeddings},
  author = {Gao, Tianyu and Yao, Xingcheng and Chen, Danqi},
  journal = {arXiv preprint arXiv:2104.08821},
  year = {2021}
}"""

_USE = """```python
from sentence_transformers import SentenceTransformer

model = SentenceTransformer("path/to/this/folder")
embeddings = model.encode(["A sentence.", "Another one."])
print(model.similarity(embeddings, embeddings))
```"""


def save_sentence_transformer(
    encoder: SentenceEncoder,
    folder: StrPath,
    *,
    card: Mapping[str, Any] | None = None,
    license: str = "apache-2.0",
    citation: str = CITATION,
) -> Path:
    """Save an encoder as a folder that plain ``SentenceTransformer(folder)`` loads and that gives the same embeddings.

    The folder is complete before it gets its name. In a folder that exists, only the files of the model are replaced, those
    that make it one last: interrupted in between, it is no model rather than half of two.

    Args:
        encoder: with its tokenizer.
        folder: to make or to renew.
        card: what to list in the model card as how it was trained; ``title`` and ``description`` have their own places.
        license: identifier from the hub's list, for the weights.
        citation: of the method, for the model card.

    Raises:
        ConfigError: an encoder without tokenizer, or a folder that cannot be written.
        RunError: the disk is full.
    """
    if encoder.tokenizer is None:
        raise ConfigError("this encoder has no tokenizer, without which nobody could use it: give SentenceEncoder one")
    folder = Path(folder)
    with staging(folder) as stage:
        with quiet_loading():
            cast(Any, encoder.transformer).save_pretrained(stage)
        save_tokenizer(encoder, stage)
        pooling = _write_modules(encoder, stage)
        write_json(
            stage / "sentence_bert_config.json",
            {
                "max_seq_length": encoder.positions,
                "do_lower_case": False,
                **({"model_args": args} if (args := without_pooler(encoder.architecture)) else {}),
            },
        )
        versions = {name: metadata.version(name) for name in ("sentence-transformers", "transformers")}
        write_json(
            stage / "config_sentence_transformers.json",
            {
                "__version__": {name.replace("-", "_"): version for name, version in versions.items()}
                | {"pytorch": torch.__version__},
                "prompts": {},
                "default_prompt_name": None,
                "similarity_fn_name": "cosine",
            },
        )
        write_atomic(stage / "README.md", _card(encoder, pooling, card or {}, license, citation))
        if not folder.exists():
            stage.rename(folder)
        else:
            _renew(stage, folder)
        sync_folder(folder.parent)
    return folder


def _renew(stage: Path, folder: Path) -> None:
    last = ("config.json", "modules.json")
    for name in last:
        (folder / name).unlink(missing_ok=True)
    files = sorted(path.relative_to(stage) for path in stage.rglob("*") if path.is_file())
    for file in sorted(files, key=lambda file: last.index(file.name) if str(file) in last else -1):
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (stage / file).replace(folder / file)
    sync_folder(folder)


def save_tokenizer(encoder: SentenceEncoder, folder: Path) -> None:
    """Write the tokenizer, which cuts at the encoder's greatest length, in a form that older versions of transformers read."""
    assert encoder.tokenizer is not None
    encoder.tokenizer.save_pretrained(str(folder))
    file = folder / "tokenizer_config.json"
    config = read_json(file)
    config = {name: value for name, value in config.items() if name not in ("is_local", "local_files_only")}
    if config.get("tokenizer_class") == "TokenizersBackend":
        config["tokenizer_class"] = "PreTrainedTokenizerFast"
    write_json(file, {**config, "model_max_length": encoder.positions})


def _write_modules(encoder: SentenceEncoder, stage: Path) -> str:
    """``modules.json`` and the folders of pooling; a line that says in words how states are pooled."""
    kind, width = encoder.config.pooling, encoder.num_features
    modules = [("", "Transformer")]
    if kind == "first-last":
        config_file = stage / "config.json"
        write_json(config_file, {**read_json(config_file), "output_hidden_states": True})
        layers = int(encoder.architecture.num_hidden_layers)
        place = stage / "1_WeightedLayerPooling"
        place.mkdir()
        write_json(
            place / "config.json", {"word_embedding_dimension": width, "layer_start": 0, "num_hidden_layers": layers}
        )
        weights = torch.zeros(layers + 1)
        weights[0] = weights[-1] = 1.0
        save_file({"layer_weights": weights}, place / "model.safetensors")
        modules.append((place.name, "WeightedLayerPooling"))
    place = stage / f"{len(modules)}_Pooling"
    place.mkdir()
    write_json(
        place / "config.json",
        {
            "word_embedding_dimension": width,
            "pooling_mode_cls_token": kind == "cls",
            "pooling_mode_mean_tokens": kind != "cls",
            "pooling_mode_max_tokens": False,
            "pooling_mode_mean_sqrt_len_tokens": False,
        },
    )
    modules.append((place.name, "Pooling"))
    listed = [
        {"idx": number, "name": str(number), "path": path, "type": f"sentence_transformers.models.{name}"}
        for number, (path, name) in enumerate(modules)
    ]
    write_json(stage / "modules.json", listed)
    return {
        "cls": "the state of the first token",
        "mean": "the mean over tokens",
        "first-last": "the mean over tokens of the embedding layer and the last layer",
    }[kind]


def _card(encoder: SentenceEncoder, pooling: str, card: Mapping[str, Any], license: str, citation: str) -> str:
    given = dict(card)
    title = str(given.pop("title", "Sentence encoder"))
    description = str(given.pop("description", "")).strip()
    front = {
        "library_name": "sentence-transformers",
        "pipeline_tag": "sentence-similarity",
        "license": license,
        "tags": ["sentence-transformers", "sentence-similarity", "feature-extraction", "momentum-contrast"],
    }
    parameters = sum(parameter.numel() for parameter in encoder.parameters())
    rows = [f"| {_cell(name)} | {_cell(value)} |" for name, value in given.items()]
    trained = ["## How it was trained", "\n".join(["| | |", "|---|---|", *rows])] if rows else []
    about = (
        f"An embedding of {encoder.num_features} numbers for each sentence, {pooling} of a transformer with {parameters:,} "
        f"parameters that takes up to {encoder.positions} tokens. Compare embeddings by their cosine."
    )
    sections = [
        f"---\n{yaml.safe_dump(front, sort_keys=False)}---",
        f"# {_cell(title)}",
        description,
        about,
        "## Use",
        _USE,
        *trained,
        "## Citation",
        f"```bibtex\n{citation}\n```",
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _cell(value: Any) -> str:
    return " ".join(str(value).split()).replace("|", "\\|").replace("<", "&lt;")


class ForeignEncoder:
    """A SentenceTransformer whose modules are more than a transformer and its pooling, behind the same few names.

    Args:
        folder: that ``SentenceTransformer`` loads.

    Attributes:
        model: the SentenceTransformer.
        num_features: D, width of an embedding.
        positions: the most tokens it takes.
    """

    def __init__(self, folder: StrPath) -> None:
        from sentence_transformers import SentenceTransformer

        with quiet_loading():
            self.model = SentenceTransformer(str(folder), local_files_only=True)
        self.num_features = int(self.model.get_embedding_dimension() or 0)
        self.positions = int(self.model.max_seq_length or 0)

    @property
    def tokenizer(self) -> PreTrainedTokenizerFast:
        """Of its transformer."""
        return self.model.tokenizer

    def encode(self, texts: Sequence[str], *, batch_size: int = 64, normalize: bool = False) -> np.ndarray:
        """(N, D) float32 embeddings of N texts."""
        found = self.model.encode(list(texts), batch_size=batch_size, show_progress_bar=False, convert_to_tensor=True)
        found = found.float().reshape(len(texts), self.num_features)
        return (unit_rows(found, dim=1) if normalize else found).cpu().numpy()


def load_encoder(folder: StrPath) -> SentenceEncoder | ForeignEncoder:
    """An encoder in evaluation mode, from whatever a run or sentence-transformers left.

    Args:
        folder: a run, finished or not (then its newest checkpoint); a folder that ``SentenceTransformer`` loads; or a plain
            transformer, which is pooled by the mean as ``SentenceTransformer`` does.

    Returns:
        A :class:`~mc_text_code.encoders.SentenceEncoder`, or a :class:`ForeignEncoder` where the folder's modules are more
        than a transformer and its pooling. Both have ``encode``, ``num_features``, ``positions`` and ``tokenizer``.

    Raises:
        DataError: no such folder, or nothing of this kind in it.
        CheckpointError: a model that cannot be read.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; give a run, or a folder that SentenceTransformer loads")
    if (folder / "recipe.yaml").is_file():
        return _of_run(folder)
    if (folder / "modules.json").is_file():
        found = _of_modules(folder)
        return ForeignEncoder(folder) if found is None else found
    if (folder / "config.json").is_file():
        with reaching(str(folder), download=False):
            return SentenceEncoder(EncoderConfig(name=str(folder), pooling="mean", max_length=4)).eval()
    raise DataError(f"{folder} holds neither a run (no recipe.yaml) nor a model (no modules.json, no config.json)")


def _of_run(folder: Path) -> SentenceEncoder:
    model = folder / "model"
    if (model / "modules.json").is_file():
        found = _of_modules(model)
        if found is None:
            raise CheckpointError(f"{model} was changed since its run: load it with SentenceTransformer")
        return found
    state = CheckpointFolder(folder / "checkpoints").load_newest()
    place = folder / TOKENIZER_FOLDER
    if state is None or not (place / "config.json").is_file():
        raise CheckpointError(f"{folder} holds no model and no checkpoint yet: let its training go on for a while")
    recipe = yaml.safe_load((folder / "recipe.yaml").read_text(encoding="utf-8"))
    config = EncoderConfig.model_validate(recipe["method"]["encoder"])
    from transformers import AutoConfig

    transformer = new_transformer(AutoConfig.from_pretrained(str(place), local_files_only=True))
    encoder = SentenceEncoder(config, load_tokenizer(place), transformer=transformer)
    prefix = "online.encoder."
    encoder.load_state_dict(
        {name.removeprefix(prefix): value for name, value in state["method"].items() if name.startswith(prefix)}
    )
    return encoder.eval()


def _of_modules(folder: Path) -> SentenceEncoder | None:
    """The encoder of a SentenceTransformer folder, or None where its modules are others than ours."""
    modules = read_json(folder / "modules.json")
    names = [str(module["type"]).rpartition(".")[2] for module in modules]
    places = [folder / module["path"] for module in modules]
    if names not in (["Transformer", "Pooling"], ["Transformer", "WeightedLayerPooling", "Pooling"]):
        return None
    pooling = _pooling_of(read_json(places[-1] / "config.json"))
    if len(names) == 3 and pooling is not None:
        pooling = "first-last" if pooling == "mean" and _is_first_last(places[1]) else None
    if pooling is None:
        return None
    options = _options_of(places[0])
    with reaching(str(folder), download=False):
        config = EncoderConfig(name=str(folder), pooling=pooling, max_length=4)
        tokenizer = load_tokenizer(places[0])
        if limit := options.get("max_seq_length"):
            tokenizer.model_max_length = min(int(limit), int(tokenizer.model_max_length))
        transformer = build_transformer(config)
    encoder = SentenceEncoder(config, tokenizer, transformer=transformer)
    width = read_json(places[-1] / "config.json")
    stated = width.get("embedding_dimension", width.get("word_embedding_dimension"))
    if stated != encoder.num_features:
        raise CheckpointError(
            f"{places[-1] / 'config.json'} pools states of width {stated}, but the transformer in {places[0]} gives "
            f"{encoder.num_features}: the two do not belong together"
        )
    training = min(32, encoder.positions)
    encoder.config = config.model_copy(update={"max_length": training})
    return encoder.eval()


def _options_of(place: Path) -> dict[str, Any]:
    file = place / "sentence_bert_config.json"
    return read_json(file) if file.is_file() else {}


def _pooling_of(config: Mapping[str, Any]) -> Pooling | None:
    mode = config.get("pooling_mode")
    if mode is None:
        modes = [
            name.removeprefix("pooling_mode_") for name, on in config.items() if name.startswith("pooling_mode_") and on
        ]
        mode = modes[0] if len(modes) == 1 else None
    known: dict[Any, Pooling] = {"cls": "cls", "cls_token": "cls", "mean": "mean", "mean_tokens": "mean"}
    return known.get(mode) if isinstance(mode, str) else None


def _is_first_last(place: Path) -> bool:
    if read_json(place / "config.json").get("layer_start") != 0:
        return False
    try:
        weights = load_file(place / "model.safetensors")["layer_weights"]
    except (OSError, SafetensorError, KeyError):
        return False
    wanted = torch.zeros_like(weights)
    wanted[0] = wanted[-1] = weights[0]
    return bool(torch.equal(weights, wanted)) and float(weights[0]) > 0
