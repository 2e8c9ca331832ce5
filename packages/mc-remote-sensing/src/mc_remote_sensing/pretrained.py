"""Encoders trained on scenes without labels: what a scene-contrast run saves, and how HPCL-Net starts from it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self

from torch import Tensor, nn

from mc_core.engine.config import StrictModel
from mc_core.errors import CheckpointError, ConfigError
from mc_core.export import load_model
from mc_core.files import StrPath
from mc_remote_sensing.encoders import Pyramid, build_pyramid
from mc_remote_sensing.encoders_config import ELEVATION_CHANNELS, BandsConfig, Norm, PyramidConfig
from mc_remote_sensing.methods.hpcl_net.network import SegmentationNetwork

Which = Literal["image", "elevation"]


class SceneEncodersConfig(StrictModel):
    """What is needed to build the encoders of a scene-contrast run again."""

    bands: BandsConfig
    """Bands of the image."""
    image: PyramidConfig | None = None
    """The image encoder, where it was trained."""
    elevation: PyramidConfig | None = None
    """The elevation encoder, where it was trained."""
    output_stride: Literal[4, 8, 16, 32] = 32
    """Pixels of a cell of the coarse map."""
    norm: Norm = "batch"
    """Normalisation of encoders ``small-wN``."""


class SceneEncoders(nn.Module):
    """Encoders of image and elevation, without heads.

    Args:
        config: see :class:`SceneEncodersConfig`.
        encoders: trained ones, by the names ``image`` and ``elevation``; default: new ones.
    """

    def __init__(self, config: SceneEncodersConfig, encoders: Mapping[str, Pyramid] | None = None) -> None:
        super().__init__()
        self.config = config
        if encoders is None:
            wanted = {"image": (config.image, config.bands.count), "elevation": (config.elevation, ELEVATION_CHANNELS)}
            encoders = {
                name: build_pyramid(of, channels, config.output_stride, norm=config.norm, load_pretrained=False)
                for name, (of, channels) in wanted.items()
                if of is not None
            }
        self.encoders = nn.ModuleDict(dict(encoders))

    @classmethod
    def from_config(cls, config: SceneEncodersConfig | Mapping[str, Any]) -> Self:
        """The same architecture with random weights, to be filled from a saved model."""
        return cls(SceneEncodersConfig.model_validate(config))

    def encoder(self, name: Which) -> Pyramid:
        """The encoder of this name; ConfigError where it was not trained."""
        if name not in self.encoders:
            raise ConfigError(f"there is no {name} encoder here, only: {', '.join(self.encoders)}")
        found = self.encoders[name]
        assert isinstance(found, Pyramid)
        return found

    def forward(self, name: Which, x_BCHW: Tensor) -> Tensor:
        """(B, out_channels) mean of the coarse map of normalised input."""
        return self.encoder(name)(x_BCHW)[1].mean((2, 3))


def load_scene_encoders(run: StrPath) -> SceneEncoders:
    """The encoders of a scene-contrast run.

    Args:
        run: the run folder, or its ``model``.

    Raises:
        CheckpointError: no such model there.
    """
    folder = Path(run)
    if (folder / "model").is_dir():
        folder = folder / "model"
    model = load_model(folder)
    if not isinstance(model, SceneEncoders):
        raise CheckpointError(f"{run} holds a {type(model).__name__}; give a run of scene-contrast")
    return model


def load_encoders(network: SegmentationNetwork, *, image: StrPath | None, elevation: StrPath | None) -> None:
    """Start the encoders of a segmentation network from scene-contrast runs.

    Args:
        network: whose encoders.
        image: run whose image encoder to take, or None.
        elevation: run whose elevation encoder to take, or None.

    Raises:
        CheckpointError: no such run, or one without this encoder.
        ConfigError: an encoder of another kind, or trained on other bands.
    """
    runs: list[tuple[Which, StrPath | None]] = [("image", image), ("elevation", elevation)]
    for name, run in runs:
        if run is None:
            continue
        source = load_scene_encoders(run)
        wanted = network.config.image if name == "image" else network.config.elevation
        given = source.config.image if name == "image" else source.config.elevation
        if given is None:
            raise CheckpointError(f"{run}: this run trained no {name} encoder")
        if given.backbone != wanted.backbone or (
            given.backbone.startswith("small-w") and source.config.norm != network.config.norm
        ):
            raise ConfigError(
                f"{run} trained {given.backbone} with norm {source.config.norm}, the network has {wanted.backbone} with norm "
                f"{network.config.norm}: set network.{name}.backbone and network.norm to what was trained"
            )
        if name == "image" and source.config.bands.names != network.bands.names:
            raise ConfigError(
                f"{run} was trained on the bands {', '.join(source.config.bands.names)}, the network is for "
                f"{', '.join(network.bands.names)}: give the same bands in the same order"
            )
        try:
            network.encoders[name].load_state_dict(source.encoder(name).state_dict())
        except RuntimeError as error:
            raise CheckpointError(
                f"{run}: its {name} encoder does not fit ({' '.join(str(error).split())[:200]})"
            ) from error
