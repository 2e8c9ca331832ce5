"""How a run is trained: one pydantic model, shared by YAML recipes, command options and Python callers. Imports no torch."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator


class StrictModel(BaseModel):
    """Base of every configuration model: frozen, unknown keys are errors, attribute docstrings are the help texts."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, validate_default=True)


class Fit(StrictModel):
    """Everything the engine needs to know about a training run. Give ``epochs`` or ``steps``, not both.

    ``batch_size`` counts the samples of one optimizer step over all processes and micro-batches together, so that a recipe
    means the same on one laptop and on sixteen GPUs.

    >>> Fit(epochs=10, batch_size=64).lr_at_batch()
    0.03
    >>> Fit(epochs=10, batch_size=512, lr=0.3, lr_scaling="linear").lr_at_batch()
    0.6
    """

    epochs: int | None = Field(default=None, ge=1)
    """Passes over the data. Default 100 when `steps` is not given either."""
    steps: int | None = Field(default=None, ge=1)
    """Optimizer steps, instead of epochs."""
    batch_size: int = Field(default=256, ge=1)
    """Samples per optimizer step, over all processes and micro-batches."""
    accumulation: int = Field(default=1, ge=1)
    """Micro-batches per optimizer step and process."""

    optimizer: Literal["sgd", "lars", "adam", "adamw"] = "sgd"
    """SGD with momentum, LARS (large batches), Adam or AdamW."""
    lr: float = Field(default=0.03, gt=0)
    """Peak learning rate; see `lr_scaling` for the batch size it belongs to."""
    lr_scaling: Literal["none", "linear", "sqrt"] = "none"
    """`none`: `lr` as it is; `linear`: `lr`·batch/256; `sqrt`: `lr`·√(batch/256)."""
    momentum: float = Field(default=0.9, ge=0, lt=1)
    """Momentum of SGD and LARS."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Betas of Adam and AdamW."""
    weight_decay: float = Field(default=1e-4, ge=0)
    """Weight decay."""
    weight_decay_end: float | None = Field(default=None, ge=0)
    """Where the weight decay arrives at the end of the run, along half a cosine; default: it stays."""
    decay_1d: bool = True
    """Also decay biases and normalisation weights (LARS only with `adapt_1d`)."""
    trust_coefficient: float = Field(default=0.001, gt=0)
    """Trust coefficient of LARS."""
    adapt_1d: bool = False
    """LARS also scales and decays biases and normalisation weights, as SwAV's LARC does; MoCo v3's and SimCLR's does not."""
    schedule: Literal["cosine", "linear", "step", "constant"] = "cosine"
    """Learning-rate schedule after warm-up."""
    schedule_every: Literal["step", "epoch"] = "step"
    """Whether the rate moves every optimizer step or once an epoch (the MoCo v1/v2 scripts do the latter)."""
    warmup_epochs: float = Field(default=0.0, ge=0)
    """Linear warm-up, in epochs (fractions allowed)."""
    warmup_from: float = Field(default=0.0, ge=0, le=1)
    """Share of the peak rate at which the warm-up begins."""
    decay_to: float = Field(default=0.0, ge=0, le=1)
    """Share of the peak rate at which `schedule: cosine` or `linear` ends."""
    milestones: tuple[float, ...] = (0.6, 0.8)
    """For `schedule: step`: fractions of the run at which the rate is multiplied by `decay_factor`."""
    decay_factor: float = Field(default=0.1, gt=0, le=1)
    """For `schedule: step`."""
    clip_norm: float | None = Field(default=None, gt=0)
    """Clip the gradient norm to this value."""
    clip_each: bool = False
    """Clip the norm of each parameter's gradient by itself, not that of all together (DINO's code and its descendants)."""

    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Autocast precision; fp16 brings a loss scaler."""
    strategy: Literal["auto", "ddp", "fsdp"] = "auto"
    """How several processes share the work; `auto` is DDP when there are several, `fsdp` is FSDP2."""
    device: str = "auto"
    """`auto` (a GPU if there is one), `cpu`, or `cuda`."""
    compile: bool = False
    """torch.compile the training step."""
    deterministic: bool = True
    """Ask cuDNN for deterministic kernels, so that a resumed run is bit-identical also on a GPU."""

    seed: int = Field(default=0, ge=0)
    """Seed of everything random."""
    workers: int | None = Field(default=None, ge=0)
    """Loader processes; default: none when samples come from memory, else one per spare core (at most 8)."""
    max_bad: float = Field(default=0.01, ge=0, le=1)
    """Unreadable samples are skipped and counted; beyond this share of the data the run stops."""

    log_every: int = Field(default=20, ge=1)
    """Steps between lines in metrics.jsonl."""
    checkpoint_every: int | None = Field(default=None, ge=1)
    """Steps between checkpoints; default: at the end of an epoch, when the last is at least half a minute old."""
    checkpoint_minutes: float = Field(default=10.0, gt=0)
    """Also save a checkpoint when this much time has passed since the last."""
    keep_checkpoints: int = Field(default=2, ge=1)
    """How many checkpoints to keep."""
    evaluate_every: int | None = Field(default=None, ge=1)
    """Epochs between runs of the evaluators; default: only at the end."""
    health_every: int = Field(default=50, ge=1)
    """Steps between health checks (feature spread, effective rank, alignment, uniformity, drift)."""
    stop_on_collapse: bool = True
    """Stop the run when the representation has collapsed; otherwise only warn."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.epochs is not None and self.steps is not None:
            raise ValueError(f"give epochs ({self.epochs}) or steps ({self.steps}), not both")
        if self.batch_size % self.accumulation:
            raise ValueError(
                f"batch_size {self.batch_size} does not divide into {self.accumulation} micro-batches; "
                f"take a multiple of {self.accumulation}"
            )
        if self.weight_decay_end is not None and self.weight_decay == 0:
            raise ValueError("weight_decay_end needs a weight_decay above 0 to start from")
        if self.clip_each and self.clip_norm is None:
            raise ValueError("clip_each needs a clip_norm, such as 3.0")
        if not all(0 < m < 1 for m in self.milestones):
            raise ValueError(f"milestones {self.milestones} are fractions of the run, each between 0 and 1")
        return self

    def lr_at_batch(self) -> float:
        """The peak learning rate at this batch size."""
        if self.lr_scaling == "linear":
            return self.lr * self.batch_size / 256
        if self.lr_scaling == "sqrt":
            return self.lr * (self.batch_size / 256) ** 0.5
        return self.lr
