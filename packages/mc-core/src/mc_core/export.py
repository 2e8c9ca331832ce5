"""Models that leave the project: as a folder any tool reads (never pickle), or as one ONNX file checked against torch.

A saveable model is an ``nn.Module`` with ``config`` (a pydantic model or a dict of plain JSON values) and the class
method ``from_config(config: dict)``, which builds the module without its weights. The folder holds::

    config.json          {"format": 1, "class": "mc_vision.encoders:TimmEncoder", "config": {…}, "mc_core": "0.1.0"}
    model.safetensors    the weights; tied ones once
    README.md            a model card with the front matter of the Hugging Face hub
"""

from __future__ import annotations

import importlib
import json
import logging
import os
import secrets
import shutil
import tempfile
import warnings
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
import yaml
from pydantic import BaseModel
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from safetensors.torch import save_model as save_weights
from torch import Tensor, nn

from mc_core.errors import CheckpointError, ConfigError, DataError, McError, RunError
from mc_core.files import (
    as_os_error,
    atomic_path,
    explain_write_error,
    read_json,
    sync_folder,
    write_atomic,
    write_json,
)
from mc_core.modules import evaluating
from mc_core.optional import require

FORMAT = 1
CONFIG_FILE, WEIGHTS_FILE, CARD_FILE = "config.json", "model.safetensors", "README.md"
_PROTOBUF_LIMIT = 2_000_000_000  # bytes of weights beyond which an ONNX file needs a second one beside it
_LISTED = 5

Card = Mapping[str, Any] | str


@dataclass(frozen=True)
class OnnxReport:
    """What :func:`export_onnx` wrote and measured.

    Attributes:
        path: of the ONNX file.
        max_abs_difference: between onnxruntime and torch, over all outputs and batch sizes tried.
        providers: of onnxruntime, that ran the comparison.
        opset: of the file.
    """

    path: Path
    max_abs_difference: float
    providers: tuple[str, ...]
    opset: int


def save_model(
    model: nn.Module, folder: str | os.PathLike[str], *, card: Card | None = None, license: str = "apache-2.0"
) -> Path:
    """Save a model as a folder with config, weights and model card.

    The folder is complete before it gets its name. In a folder that exists, only these three files are replaced, the
    configuration last and after the old one is gone: interrupted in between, it is no model rather than half of two.

    Args:
        model: with ``config`` and ``from_config``, see above.
        folder: to make or to renew.
        card: text that describes the model; or a mapping, of which ``title``, ``description``, ``tags``, ``datasets``
            and ``citation`` have their places in the card and all else is listed as how the model was trained.
        license: identifier from the hub's list, for the weights.

    Returns:
        The folder.

    Raises:
        ConfigError: the model does not follow the protocol, or the folder cannot be written.
        RunError: the disk is full.
    """
    folder = Path(folder)
    reference = _reference(model)
    description = {
        "format": FORMAT,
        "class": reference,
        "config": _plain_config(model),
        "mc_core": metadata.version("mc-core"),
    }
    with staging(folder) as stage:
        with atomic_path(stage / WEIGHTS_FILE) as draft:
            try:
                save_weights(model, str(draft), metadata={"format": "pt"})
            except (RuntimeError, ValueError, AttributeError) as error:
                raise ConfigError(f"{reference} cannot be saved as safetensors: {_one_line(error)}") from error
            except SafetensorError as error:
                raise as_os_error(error) from error
        write_atomic(stage / CARD_FILE, _card(model, reference, card, license))
        write_json(stage / CONFIG_FILE, description)
        if not folder.exists():
            stage.rename(folder)
        else:
            (folder / CONFIG_FILE).unlink(missing_ok=True)
            for name in (WEIGHTS_FILE, CARD_FILE, CONFIG_FILE):
                (stage / name).replace(folder / name)
            sync_folder(folder)
        sync_folder(folder.parent)
    return folder


def load_model(
    folder: str | os.PathLike[str], *, device: str | torch.device = "cpu", allow: Sequence[str] = ()
) -> nn.Module:
    """Rebuild a saved model, in evaluation mode, without running code that the folder brings.

    The class must come from an installed package of this project (``mc_…``) or be named in ``allow``.

    Args:
        folder: written by :func:`save_model`.
        device: to put the model on.
        allow: further classes, as ``"package.module:Class"``, or whole packages, as ``"package"``.

    Raises:
        CheckpointError: no saved model, a class that is not allowed or cannot be found, or weights that do not fit; the
            message lists missing, unexpected and wrongly shaped tensors.
    """
    folder = Path(folder)
    description = _read_description(folder)
    model_class = _resolve(description["class"], folder, allow)
    try:
        with torch.random.fork_rng(devices=[]):  # the fresh weights are thrown away; the caller's stream is not
            model = model_class.from_config(description["config"])
    except McError:
        raise
    except Exception as error:
        raise CheckpointError(
            f"{folder / CONFIG_FILE}: {description['class']} does not accept its config ({_one_line(error)}); "
            f"saved with mc-core {description.get('mc_core', 'unknown')}, this is {metadata.version('mc-core')}"
        ) from error
    _fill(model, folder / WEIGHTS_FILE)
    return model.to(device).eval()


def export_onnx(
    model: nn.Module,
    example: Tensor | tuple[Tensor, ...],
    path: str | os.PathLike[str],
    *,
    opset: int = 20,
    dynamic_batch: bool = True,
    tolerance: float = 1e-4,
) -> OnnxReport:
    """Export to ONNX and keep the file only if onnxruntime computes the same.

    The comparison runs on the example and, with ``dynamic_batch``, on a batch one larger. The model is exported in
    evaluation mode and gets its training modes back.

    Args:
        model: takes the example's tensors, returns a tensor or a tuple, list or dict of tensors.
        example: (B, …) inputs on the model's device.
        path: of the ``.onnx`` file; one file, except for weights beyond 2 GB, which go to ``<path>.data``.
        opset: ONNX operator set.
        dynamic_batch: leave the first dimension of every input free.
        tolerance: largest absolute difference accepted.

    Raises:
        MissingDependencyError: onnx, onnxscript or onnxruntime is not installed.
        RunError: the export failed or the outputs differ; no file is left.
        ConfigError: the place cannot be written.
    """
    onnx, *_ = [_require(name) for name in ("onnx", "onnxscript", "onnxruntime")]
    path = Path(path)
    inputs = (example,) if isinstance(example, Tensor) else tuple(example)
    batches = [inputs, tuple(torch.cat([x, x[:1]]) for x in inputs)] if dynamic_batch else [inputs]
    weights = sum(t.numel() * t.element_size() for t in model.state_dict().values() if isinstance(t, Tensor))
    with evaluating(model), _workspace(path) as work:
        draft = work / path.name
        # A batch of one would be taken for a constant by some operators, so trace the larger one.
        _trace(model, batches[-1], draft, opset=opset, dynamic=dynamic_batch, external_data=weights > _PROTOBUF_LIMIT)
        with torch.no_grad():
            expected = [_outputs(model(*batch)) for batch in batches]
        difference, providers = _compare(draft, batches, expected)
        header = onnx.load(str(draft), load_external_data=False)
        written_opset = next(entry.version for entry in header.opset_import if not entry.domain)
        if not difference <= tolerance:  # NaN must fail too
            raise RunError(
                f"{path} was not written: onnxruntime and torch differ by {difference:.3g}, more than the tolerance "
                f"{tolerance:g}; raise tolerance if that is acceptable, or try another opset than {opset}"
            )
        # Weights that lie beside the model go first, the model that names them last.
        for file in sorted(work.iterdir(), key=lambda file: file == draft):
            with atomic_path(path.parent / file.name) as target:
                file.replace(target)
    return OnnxReport(path, difference, providers, written_opset)


def _require(name: str) -> Any:
    return require(name, extra="mc-core[export]", purpose="export to ONNX")


def _reference(model: nn.Module) -> str:
    cls = type(model)
    name = f"{cls.__module__}:{cls.__qualname__}"
    if not hasattr(model, "config") or not callable(getattr(cls, "from_config", None)):
        raise ConfigError(
            f"{name} cannot be saved: it needs an attribute config and a class method from_config(config)"
        )
    if "<locals>" in cls.__qualname__:
        raise ConfigError(
            f"{name} cannot be saved: define the class at the top of a module, where it can be found again"
        )
    return name


def _plain_config(model: nn.Module) -> dict[str, Any]:
    config: Any = model.config
    plain = config.model_dump(mode="json") if isinstance(config, BaseModel) else config
    name = f"{type(model).__name__}.config"
    if not isinstance(plain, Mapping):
        raise ConfigError(f"{name} is {type(config).__name__}; a pydantic model or a dict is needed")
    try:
        json.dumps(plain, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{name} cannot be saved as JSON: {error}") from error
    return dict(plain)


@contextmanager
def staging(folder: Path) -> Generator[Path]:
    """A new folder beside ``folder``, to be renamed when it is complete; removed if it still has its name at the end.

    Raises:
        ConfigError: ``folder`` is a file, or cannot be written.
        RunError: the disk is full.
    """
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"{folder} is a file; choose another name for the model's folder")
    whole = Path(os.path.abspath(folder))
    stage = whole.with_name(f".{whole.name}.{secrets.token_hex(4)}.part")
    try:
        stage.mkdir(parents=True)
        yield stage
    except OSError as error:
        raise explain_write_error(error, folder) from error
    except (ConfigError, RunError) as error:
        raise type(error)(str(error).replace(str(stage), str(folder))) from error  # nobody knows the temporary name
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def _read_description(folder: Path) -> dict[str, Any]:
    file = folder / CONFIG_FILE
    if not file.is_file():
        what = "has no config.json" if folder.is_dir() else "is no folder"
        raise CheckpointError(f"{folder} {what}; give a folder written by save_model")
    try:
        description = read_json(file)
    except DataError as error:
        raise CheckpointError(str(error)) from error
    if (
        not isinstance(description, dict)
        or not isinstance(description.get("class"), str)
        or "config" not in description
    ):
        raise CheckpointError(f"{file}: not the configuration of a model saved by mc-core (no 'class' or 'config')")
    if description.get("format") != FORMAT:
        raise CheckpointError(
            f"{file}: model format {description.get('format')!r}, this version reads {FORMAT}; update mc-core"
        )
    return description


def _resolve(reference: str, folder: Path, allow: Sequence[str]) -> Any:
    """The class behind ``"module:Class"``, if it may be loaded."""
    place = folder / CONFIG_FILE
    module_name, _, class_name = reference.partition(":")
    allowed = {allow} if isinstance(allow, str) else set(allow)
    if not allowed & {reference, _top(reference)} and not _is_ours(module_name):
        raise CheckpointError(
            f"{place}: the class {reference!r} is not from an installed mc_… package; "
            f"if you trust it, load_model(…, allow=[{reference!r}])"
        )
    try:
        found: Any = importlib.import_module(module_name)
        for part in class_name.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError, ValueError) as error:
        raise CheckpointError(f"{place}: the class {reference!r} cannot be found ({_one_line(error)})") from error
    usable = isinstance(found, type) and issubclass(found, nn.Module) and callable(getattr(found, "from_config", None))
    if not usable or (found.__module__, found.__qualname__) != (module_name, class_name):
        raise CheckpointError(f"{place}: {reference!r} is no nn.Module class with from_config, defined in that module")
    return found


def _top(reference: str) -> str:
    return reference.partition(":")[0].partition(".")[0]


def _is_ours(module_name: str) -> bool:
    """Whether a module belongs to an installed package of this project, not merely to a file that can be imported."""
    top = _top(module_name)
    if not top.startswith("mc_") or "__main__" in module_name:  # importing a __main__ runs a command
        return False
    try:
        metadata.distribution(top.replace("_", "-"))
    except metadata.PackageNotFoundError:
        return False
    return True


def _fill(model: nn.Module, file: Path) -> None:
    """Load the weights, or say in one line all that does not fit."""
    try:
        with safe_open(file, framework="pt") as weights:
            shapes = {name: tuple(weights.get_slice(name).get_shape()) for name in weights.keys()}  # noqa: SIM118
        state = model.state_dict()
        filled = {
            tensor.data_ptr() for name, tensor in state.items() if name in shapes
        }  # of tied tensors, one is stored
        missing = [name for name, tensor in state.items() if name not in shapes and tensor.data_ptr() not in filled]
        unexpected = sorted(shapes.keys() - state.keys())
        wrong = [
            f"{name} is {shapes[name]}, not {tuple(tensor.shape)}"
            for name, tensor in state.items()
            if name in shapes and shapes[name] != tensor.shape
        ]
        problems = {"missing": missing, "unexpected": unexpected, "wrong shape": wrong}
        text = "; ".join(f"{what}: {_some(names)}" for what, names in problems.items() if names)
        if text:
            raise CheckpointError(f"{file} does not fit {type(model).__name__}: {text}")
        model.load_state_dict(load_file(file), strict=False)
    except FileNotFoundError as error:
        raise CheckpointError(f"{file}: does not exist") from error
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{file}: cannot be read, probably cut off or damaged ({error})") from error


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(names[:_LISTED]) + more


def _card(model: nn.Module, reference: str, card: Card | None, license: str) -> str:
    """The model card: YAML front matter, what it is, how it was trained, how to use it."""
    given: dict[str, Any] = {"description": card} if isinstance(card, str) else dict(card or {})
    title = given.pop("title", reference.rpartition(":")[2])
    description = str(given.pop("description", "")).strip()
    citation = str(given.pop("citation", "")).strip()
    ours = _is_ours(reference.partition(":")[0])
    front: dict[str, Any] = {
        "library_name": _top(reference).replace("_", "-") if ours else "mc-core",
        "license": license,
        "tags": list(dict.fromkeys(["momentum-contrast", "self-supervised-learning", *_listed(given.pop("tags", ()))])),
    }
    if datasets := _listed(given.pop("datasets", ())):
        front["datasets"] = datasets
    parameters = sum(parameter.numel() for parameter in model.parameters())
    saved_by = (
        f"`{reference}` with {parameters:,} parameters, saved by mc-core {metadata.version('mc-core')}. "
        "The weights are safetensors; loading runs no code from this folder."
    )
    allow = "" if ours else f', allow=["{reference}"]'
    use = f"""```python
import torch
from mc_core.export import load_model

model = load_model("path/to/this/folder"{allow})  # in evaluation mode
with torch.inference_mode():
    output = model(batch)
```"""
    sections = [
        f"---\n{yaml.safe_dump(front, sort_keys=False, allow_unicode=True)}---",
        f"# {_cell(title)}",
        description,
        saved_by,
        "## Use",
        use,
    ]
    if given:
        rows = [f"| {_cell(name)} | {_cell(value)} |" for name, value in given.items()]
        sections += ["## How it was trained", "\n".join(["| | |", "|---|---|", *rows])]
    if citation:
        sections += ["## Citation", f"```bibtex\n{citation.replace('```', '')}\n```"]
    return "\n\n".join(section for section in sections if section) + "\n"


def _listed(value: Any) -> list[str]:
    return [value] if isinstance(value, str) else [str(item) for item in value]


def _cell(value: Any) -> str:
    """One line of Markdown, safe inside a table."""
    return " ".join(str(value).split()).replace("|", "\\|").replace("<", "&lt;")


def _one_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {' '.join(lines)[:300]}" if lines else type(error).__name__


@contextmanager
def _workspace(path: Path) -> Generator[Path]:
    """A temporary folder on the file system of ``path``."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(
            dir=path.parent, prefix=f".{path.name}.", ignore_cleanup_errors=True
        ) as folder:
            yield Path(folder)
    except OSError as error:
        raise explain_write_error(error, path) from error


def _trace(
    model: nn.Module, inputs: tuple[Tensor, ...], path: Path, *, opset: int, dynamic: bool, external_data: bool
) -> None:
    shapes = tuple({0: torch.export.Dim.DYNAMIC} for _ in inputs) if dynamic else None
    told = logging.getLogger("onnxscript")
    level = told.level
    try:
        with torch.no_grad(), warnings.catch_warnings():
            # Its warnings are about its own internals (deprecated calls in onnxscript, lifted constants, axis names, folds that
            # it gives up); what matters, the numbers, is compared afterwards.
            warnings.simplefilter("ignore")
            told.setLevel(logging.CRITICAL)
            torch.onnx.export(
                model,
                inputs,
                path,
                dynamo=True,
                opset_version=opset,
                dynamic_shapes=shapes,
                external_data=external_data,
                verbose=False,
            )
    except OSError:
        raise
    except Exception as error:
        raise RunError(
            f"{type(model).__name__} could not be exported to ONNX opset {opset}: {_one_line(error)}"
            + ("; try dynamic_batch=False" if dynamic else "")
        ) from error
    finally:
        told.setLevel(level)


def _outputs(output: Any) -> list[Tensor]:
    if isinstance(output, Tensor):
        return [output]
    if isinstance(output, Mapping):
        output = output.values()
    return [tensor for item in output for tensor in _outputs(item)]


def _compare(
    path: Path, batches: Sequence[tuple[Tensor, ...]], expected: Sequence[list[Tensor]]
) -> tuple[float, tuple[str, ...]]:
    """The largest difference between onnxruntime on ``batches`` and ``expected``, and the providers that computed."""
    runtime = _require("onnxruntime")
    options = runtime.SessionOptions()
    options.log_severity_level = 3  # errors only: its hints about initializers and devices mean nothing here
    try:
        session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        names = [entry.name for entry in session.get_inputs()]
        found = [session.run(None, dict(zip(names, [x.numpy(force=True) for x in b], strict=True))) for b in batches]
    except Exception as error:
        raise RunError(f"onnxruntime cannot run the exported model: {_one_line(error)}") from error
    gaps = [torch.zeros((), dtype=torch.float64)]
    for ours, theirs in zip(expected, found, strict=True):
        for tensor, array in zip(ours, theirs, strict=True):
            other = torch.from_numpy(array)
            if tensor.shape != other.shape:
                raise RunError(
                    f"onnxruntime gives shape {tuple(other.shape)} where torch gives {tuple(tensor.shape)}: "
                    "the batch size is fixed inside the model; try dynamic_batch=False"
                )
            if tensor.numel():
                gaps.append((tensor.to("cpu", torch.float64) - other.to(torch.float64)).abs().max())
    return torch.stack(gaps).max().item(), tuple(session.get_providers())
