"""Which vision expert: its backbone, its head, what it learns from. Imports no torch.

The abstract of Astrea names four experts, their models and sizes are nowhere said: everything here is ours.
"""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from mc_core.engine.config import StrictModel
from mc_vision_language.encoders_config import Three
from mc_vision_language.language_config import LanguageConfig

Kind = Literal["classification", "captioning", "detection", "segmentation"]
KINDS: tuple[Kind, ...] = ("classification", "captioning", "detection", "segmentation")
"""All kinds, from what a picture means to where its parts lie: the order in which Astrea aligns them."""
NEEDS: dict[Kind, str] = {
    "classification": "labels",
    "captioning": "captions",
    "detection": "boxes",
    "segmentation": "masks",
}
"""What pictures must be annotated with for an expert to be trained; see
:class:`~mc_vision_language.data.annotated.AnnotatedPairs`."""


class ClassificationHead(StrictModel):
    """From the map to the classes of the whole picture.

    >>> ClassificationHead().loss
    'several'
    """

    loss: Literal["several", "one"] = "several"
    """`several`: any number of classes in a picture, each is yes or no; `one`: a picture has one class, they exclude each other."""
    pool: Literal["mean", "max"] = "mean"
    """`mean`: classes of the mean over the map; `max`: of every place, of which each class takes its clearest, better for small
    things."""


class CaptionHead(StrictModel):
    """A small language model that reads the map as visual tokens.

    >>> CaptionHead().language.layers
    2
    """

    language: LanguageConfig = LanguageConfig(answer_length=32)
    """The language model; `answer_length` is the most tokens of a caption that is written."""


class DetectionHead(StrictModel):
    """A class and a box at every place of the map, without anchors.

    >>> DetectionHead().radius
    1.5
    """

    width: int = Field(default=64, ge=4)
    """Channels of the head."""
    depth: int = Field(default=2, ge=0)
    """Convolutions before the outputs."""
    radius: float = Field(default=1.5, gt=0)
    """Places this near to a box's centre, in cells of the map and within the box, learn it; the cell of the centre always does."""
    scale: float = Field(default=0.25, gt=0, le=1)
    """Width and height of a box, as shares of the picture, where outputs are 0."""
    focal_alpha: float = Field(default=0.25, ge=0, le=1)
    """Weight of positives in the focal loss of classes."""
    focal_gamma: float = Field(default=2.0, ge=0)
    """Exponent that leaves the easy places out."""
    box_weight: float = Field(default=1.0, ge=0)
    """Weight of the loss of boxes beside that of classes."""
    score_threshold: float = Field(default=0.05, ge=0, lt=1)
    """Least score of a box that is reported."""
    overlap: float = Field(default=0.6, gt=0, le=1)
    """Of two boxes of one class that overlap more than this, the weaker is dropped."""
    most: int = Field(default=100, ge=1)
    """Most boxes of a picture."""
    candidates: int = Field(default=300, ge=1)
    """Most boxes of a picture before overlapping ones are dropped."""


class SegmentationHead(StrictModel):
    """From the map to a class at every pixel.

    >>> SegmentationHead().width
    64
    """

    width: int = Field(default=64, ge=4)
    """Channels of the decoder."""
    depth: int = Field(default=2, ge=0)
    """Convolutions before the classes."""
    upsample: int = Field(default=2, ge=1)
    """The decoder works on a map this many times finer; the rest is interpolated."""
    background: float = Field(default=1.0, gt=0)
    """Weight of pixels of no class in the loss; below 1 where they are nearly all."""


class ExpertConfig(StrictModel):
    """One expert. ``backbone`` names any model of timm whose features keep their place; without, a small one of ours.

    >>> ExpertConfig(kind="detection").grid_size, ExpertConfig(kind="captioning", image_size=32, stages=2).grid_size
    (8, 8)
    """

    kind: Kind
    """What it is trained for."""
    image_size: int = Field(default=64, ge=16)
    """Side of the pictures it looks at, in pixels; views of another size are resized."""
    mean: Three | None = None
    """Subtracted from pixels in [0, 1]; default: the constants of the timm model, of ours 0.5. Filled in."""
    std: Three | None = None
    """Pixels are divided by it; default: the constants of the timm model, of ours 0.25. Filled in."""

    backbone: str | None = None
    """A timm name, such as `resnet50`, `convnext_tiny`, `swin_tiny_patch4_window7_224` or `vit_base_patch16_clip_224`."""
    pretrained: bool | str = False
    """With `backbone`: start from published weights (downloaded by timm), or from a `.safetensors` or `.pth` file of that model."""
    levels: int = Field(default=1, ge=1, le=4)
    """Stages whose maps are used, the last ones: resized to the finest of them and concatenated. 1: the last alone."""
    drop_path: float = Field(default=0.0, ge=0, lt=1)
    """Stochastic depth."""

    family: Literal["resnet", "convnext", "vit"] = "resnet"
    """Without `backbone`: residual convolutions with batch norm, ConvNeXt blocks, or a vision transformer."""
    width: int = Field(default=32, ge=4)
    """Without `backbone`: channels of the first stage, which each stage doubles; of a token in a transformer."""
    depth: int = Field(default=1, ge=1)
    """Without `backbone`: blocks of each stage; layers of a transformer."""
    stages: int = Field(default=3, ge=1, le=5)
    """Without `backbone`: stages, each after the first halves the map; a transformer has one."""
    stem: int = Field(default=2, ge=1)
    """Without `backbone`: stride of the first convolution, a power of 2; side of a patch in a transformer."""
    heads: int = Field(default=4, ge=1)
    """Without `backbone`: attention heads of a transformer."""

    lr_scale: float = Field(default=1.0, gt=0)
    """Its learning rate, as a share of that of the experts' stage: a language model from scratch wants a lower one than
    convolutions, or it never begins to look at the picture."""

    class_names: tuple[str, ...] = ()
    """Classes of classification, detection and segmentation; filled in from the data."""
    classification: ClassificationHead = ClassificationHead()
    """Head of a classification expert."""
    captioning: CaptionHead = CaptionHead()
    """Head of a captioning expert."""
    detection: DetectionHead = DetectionHead()
    """Head of a detection expert."""
    segmentation: SegmentationHead = SegmentationHead()
    """Head of a segmentation expert."""

    @property
    def needs(self) -> str:
        """What pictures must be annotated with: labels, captions, boxes or masks."""
        return NEEDS[self.kind]

    @property
    def grid_size(self) -> int | None:
        """Side of the map in places; None where that is for timm to say."""
        if self.backbone is not None:
            return None
        if self.family == "vit":
            return self.image_size // self.stem
        return -(-self.image_size // self.stem) >> max(self.stages - self.levels, 0)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.std is not None and min(self.std) <= 0:
            raise ValueError(f"std {self.std} must be above 0")
        if self.backbone is not None:
            return self
        if self.pretrained:
            raise ValueError("pretrained needs the name of a timm model as backbone, such as resnet50")
        if self.family == "vit":
            if self.image_size % self.stem:
                raise ValueError(f"image_size {self.image_size} does not divide into patches of {self.stem} (stem)")
            if self.width % self.heads:
                raise ValueError(f"width {self.width} does not divide into {self.heads} heads")
            if self.levels > 1:
                raise ValueError(f"levels {self.levels}: our transformer has one level; take 1, or another family")
        elif self.stem & (self.stem - 1):
            raise ValueError(f"stem {self.stem} is no power of 2")
        elif self.levels > self.stages:
            raise ValueError(f"levels {self.levels} are more than the {self.stages} stages")
        grid = self.grid_size
        if grid is not None and grid < 2:
            raise ValueError(
                f"image_size {self.image_size} leaves a map of one place: take fewer stages, a smaller stem or larger pictures"
            )
        return self
