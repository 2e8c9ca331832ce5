"""What a model is to the map maker, and how it is run on windows of rasters.

Legend: B tiles, C image bands, h, w of a window, H, W of the scene.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from mc_core.errors import ConfigError, NonFiniteError
from mc_remote_sensing.data.grid import Grid
from mc_remote_sensing.inference.tiling import Tiling

_SAMPLED = 1 << 20
_SAMPLES = 16


class Segmenter(Protocol):
    """A model that maps windows.

    Attributes:
        stride: pixels of a cell of its coarsest feature map; windows start and end at multiples of it.
        receptive_field: side of the square of pixels that an output depends on; None for the whole tile.
    """

    @property
    def stride(self) -> int: ...

    @property
    def receptive_field(self) -> int | None: ...

    def __call__(self, image: Tensor | None, elevation: Tensor | None, image_valid: Tensor | None) -> Tensor:
        """(B, C, h, w) raw values, (B, 4, h, w) derivatives, (B, h, w) bool → (B, h, w) probabilities."""
        ...


class ImageReader(Protocol):
    """Windows of an image: what :class:`~mc_remote_sensing.data.raster.RasterSource` is."""

    @property
    def grid(self) -> Grid:
        """Where the pixels lie."""
        ...

    def read(self, row: int, col: int, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
        """(C, h, w) float32 and (h, w) bool."""
        ...


class ElevationReader(Protocol):
    """Windows of an elevation's derivatives: what :class:`~mc_remote_sensing.data.elevation.ElevationSource` is."""

    @property
    def grid(self) -> Grid:
        """The image's."""
        ...

    def read(self, row: int, col: int, height: int, width: int) -> np.ndarray:
        """(4, h, w) float32."""
        ...


class Inputs(NamedTuple):
    """One window as a model takes it.

    Attributes:
        image: (C, h, w) float32, 0 where invalid; None for a scene of elevation alone, which is valid where its elevation is.
        elevation: (4, h, w) float32, or None.
        valid: (h, w) bool.
    """

    image: np.ndarray | None
    elevation: np.ndarray | None
    valid: np.ndarray


def read_inputs(
    image: ImageReader | None, elevation: ElevationReader | None, row: int, col: int, height: int, width: int
) -> Inputs:
    """Read a window, which may reach beyond the scene; there it is invalid."""
    derived = None if elevation is None else elevation.read(row, col, height, width)
    if image is None:
        assert derived is not None
        return Inputs(None, derived, derived[3] > 0)
    values, valid = image.read(row, col, height, width)
    if not valid.all():
        values = np.where(valid, values, np.float32(0))
    return Inputs(values, derived, valid)


def grid_of(image: ImageReader | None, elevation: ElevationReader | None) -> Grid:
    """The image's grid, or that of an elevation without image.

    Raises:
        ConfigError: neither is given.
    """
    source = image if image is not None else elevation
    if source is None:
        raise ConfigError("give an image, an elevation model or both")
    return source.grid


class Runner:
    """Runs a model on batches of windows, in evaluation mode and in float32.

    Args:
        model: any :class:`Segmenter`; a module is moved to ``device`` and put into evaluation mode.
        device: default the GPU where there is one.
    """

    def __init__(self, model: Segmenter, device: str | torch.device | None = None) -> None:
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.model = model
        if isinstance(model, nn.Module):
            model.to(self.device).eval()

    @property
    def batch_size(self) -> int:
        """Tiles that are run together."""
        return 1 if self.device.type == "cpu" else 8

    def halo(self, tile: int) -> int:
        """Half the receptive field, but no more than an eighth of the tile."""
        field = self.model.receptive_field
        return tile // 8 if field is None else min(field // 2, tile // 8)

    @torch.inference_mode()
    def __call__(self, inputs: Sequence[Inputs]) -> np.ndarray:
        """(B, h, w) float32 probabilities of windows of one size.

        Raises:
            NonFiniteError: the model gives NaN or infinity.
        """
        image, elevation = self._stack([one.image for one in inputs]), self._stack([one.elevation for one in inputs])
        found = self.model(image, elevation, self._stack([one.valid for one in inputs])).float().cpu().numpy()
        if not np.isfinite(found).all():
            raise NonFiniteError(
                "the model gives NaN or infinite probabilities; was it trained on bands in other units?"
            )
        return found

    def _stack(self, arrays: Sequence[np.ndarray | None]) -> Tensor | None:
        known = [array for array in arrays if array is not None]
        if not known:
            return None
        return torch.from_numpy(known[0][None] if len(known) == 1 else np.stack(known)).to(self.device)


def predict_window(
    runner: Runner,
    image: ImageReader | None,
    elevation: ElevationReader | None,
    window: tuple[int, int, int, int],
    *,
    tile: int = 512,
    halo: int | None = None,
) -> np.ndarray:
    """Probabilities of one window, held in memory, with the ground around it in view.

    Args:
        runner: the model.
        image: of the scene, or None.
        elevation: of the scene, or None.
        window: row, column, height and width within the scene.
        tile: side of the tiles, a multiple of the model's stride.
        halo: pixels of context; default half the receptive field, at most an eighth of the tile.

    Returns:
        (h, w) float32, also where the image is invalid.
    """
    row, col, height, width = window
    grid, stride = grid_of(image, elevation), runner.model.stride
    halo = runner.halo(tile) if halo is None else halo
    top, bottom = _grown(row, height, grid.height, halo, stride)
    left, right = _grown(col, width, grid.width, halo, stride)
    tiling = Tiling(bottom - top, right - left, tile=tile, halo=halo, stride=stride)
    found = np.zeros((bottom - top, right - left), dtype=np.float32)
    tiles = list(tiling)
    for start in range(0, len(tiles), runner.batch_size):
        batch = tiles[start : start + runner.batch_size]
        inputs = [read_inputs(image, elevation, top + t.row, left + t.col, t.height, t.width) for t in batch]
        for t, probability in zip(batch, runner(inputs), strict=True):
            found[t.row : t.row + t.height, t.col : t.col + t.width] += t.weights * probability
    return found[row - top : row - top + height, col - left : col - left + width]


def _grown(start: int, length: int, scene: int, halo: int, stride: int) -> tuple[int, int]:
    padded = -(-scene // stride) * stride
    first = max(0, start - halo) // stride * stride
    return first, min(padded, -(-(start + length + halo) // stride) * stride)


def model_fingerprint(model: Segmenter) -> str:
    """16 hexadecimal digits of a model's class and weights."""
    digest = hashlib.sha256(type(model).__qualname__.encode())
    if isinstance(model, nn.Module):
        for name, tensor in sorted(model.state_dict().items()):
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


def data_fingerprint(source: object) -> str:
    """16 hexadecimal digits that tell a raster's file from another: its size and, of a large file, seventeen samples of a megabyte.

    A change elsewhere in a file of the same size goes unseen; reading terabytes to be sure of it would cost more than the map.
    """
    path = Path(str(getattr(source, "path", "")))
    if not getattr(source, "path", "") or not path.is_file():
        return hashlib.sha256(repr(source).encode()).hexdigest()[:16]
    size = path.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    with path.open("rb") as file:
        for k in range(_SAMPLES + 1):
            file.seek(max(0, (size - _SAMPLED) * k // _SAMPLES))
            digest.update(file.read(_SAMPLED))
            if size <= _SAMPLED:
                break
    return digest.hexdigest()[:16]
