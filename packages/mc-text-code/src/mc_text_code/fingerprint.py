"""What a saved model is, as one hash. Imports no torch."""

from __future__ import annotations

import hashlib
from pathlib import Path

from mc_core.errors import CheckpointError

_MODEL_FILES = {".json", ".safetensors", ".bin", ".txt", ".model", ".tiktoken"}
_DERIVED = "onnx"  # a folder inside, made from the weights


def model_fingerprint(folder: str | Path) -> str:
    """A hash of the files that make a saved model what it is: configuration, weights, vocabulary; not its card.

    What was exported from it into its folder ``onnx`` does not count.

    Args:
        folder: of the model, such as a SentenceTransformer's.

    Raises:
        CheckpointError: no such files.
    """
    folder = Path(folder)
    files = sorted(
        path
        for path in folder.rglob("*")
        if path.suffix in _MODEL_FILES
        and path.is_file()
        and not path.name.startswith(".")
        and path.relative_to(folder).parts[0] != _DERIVED
    )
    if not files:
        raise CheckpointError(f"{folder} holds no saved model")
    whole = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
        whole.update(f"{path.relative_to(folder).as_posix()}\0{content}\n".encode())
    return whole.hexdigest()
