"""Models that are named by a folder or by their name on the Hugging Face hub: where they are, and what to say when they are not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from mc_core.errors import ConfigError
from mc_core.files import StrPath, read_json


def transformer_folder(name: StrPath) -> Path | str:
    """The folder of the transformer itself: in a SentenceTransformer folder its first module, else ``name`` as it is."""
    folder = Path(name)
    if not (folder / "modules.json").is_file():
        return folder if folder.is_dir() else str(name)
    first = read_json(folder / "modules.json")[0]
    return folder / first["path"]


class reaching:
    """Turns the many errors of a model that cannot be reached into one line that says which folder to give."""

    def __init__(self, name: str, *, download: bool, option: str = "--method.encoder.download") -> None:
        self.name, self.download, self.option = name, download, option

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
        then = "" if self.download else f", or allow {self.option}"
        raise ConfigError(
            f"encoder '{self.name}' is no folder here, {where}: give a folder with its config.json, model.safetensors and "
            f"tokenizer.json (elsewhere: hf download {self.name} --local-dir FOLDER){then}"
        ) from error
