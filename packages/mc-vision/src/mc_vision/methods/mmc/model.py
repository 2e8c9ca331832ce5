"""MMC: masked momentum contrastive learning (arXiv:2308.11448; journal version "… for Semantic Understanding by Observation").

Of the paper only the abstract could be read: a ViT learns from masked image modelling (local similarity), momentum distillation
(semantics from global to local features) and contrast of whole images. What follows is therefore the closest public form, from
the same group's SiT (Atito, Awais, Kittler 2021, arXiv:2104.03602: reconstruction, contrast), GMML and MC-SSL (Atito et al. 2021,
arXiv:2111.15340: group masking, distillation of patches), with our own choices where these differ; no number of the paper is
claimed. Ours are: equal weights, one trunk for image and patches as the way from global to local, all patches distilled, no
predictor, and BatchNorm of the contrast head over both views together.

In equations: student f_s is ``online``, teacher f_t ``teacher``, x_v the clean view v, x̃_v the corrupted one, M_v its corrupted
pixels, h the trunk, n(·) "divided by its norm", sg "no gradient"::

    L_M = Σ_v Σ_p M_v(p) |x̂_v(p) − x_v(p)| / Σ_v Σ_p M_v(p)                             x̂: from the student's patches of x̃_v
    a = W n(h(patch)), rows of W of norm 1
    L_D = −mean_{v,b,n} <T, S>,  T = sg softmax((a_t(x_v) − c)/τ_t),  S = log softmax(a_s(x̃_v)/τ_s)       same view and place
    c ← 0.9 c + 0.1 mean a_t                                                              after the loss, once per step
    L_G = −mean_{v,b} <sg softmax((a_t^image(x_{3−v}) − c^image)/τ_t), log softmax(mean_n a_s(x̃_v)/τ_s)>            off
    L_C = ctr(g_s(x̃_1), g_t(x_2)) + ctr(g_s(x̃_2), g_t(x_1)),  ctr(q, k) = 2τ · CE(n(q) n(k)ᵀ/τ, i)         MoCo v3's form
    L = λ_M L_M + λ_D L_D + λ_C L_C (+ λ_G L_G);   θ_t ← m θ_t + (1−m) θ_s after the optimizer step

A term of weight 0 is not computed and its head is not built. Means, keys, corrupted pixels and partners are those of the whole
optimizer step, so accumulation changes nothing but the groups that BatchNorm counts over.

Legend: B samples of this process and micro-batch, G of all, V = 2B views, C channels, H × W pixels, N patches, D features,
P trunk outputs, E classes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from timm.layers import DropPath
from torch import Tensor, nn

from mc_core.distributed import all_reduce_mean, all_reduce_sum, gather_rows, rank
from mc_core.engine.method import Batch, Progress, StepOutput
from mc_core.errors import ConfigError, DataError
from mc_core.momentum import MomentumEncoder
from mc_core.random import BatchRandom
from mc_vision.encoders import TimmEncoder
from mc_vision.methods.base import ImageMethod, contrast_of_step, detached, ids_of, sync_batchnorm, unit
from mc_vision.methods.mmc.config import MMCConfig
from mc_vision.methods.mmc.loss import distillation
from mc_vision.methods.mmc.masking import (
    Corruption,
    corrupted,
    draw_corruption,
    noise_like,
    partner_shift,
    rows_from,
    token_mask,
)
from mc_vision.methods.mmc.network import MMCNetwork, Reconstruction, UnitLinear

_MASKS, _NOISE, _PARTNERS = 0xA0, 0xB0, 0xC0  # streams of randomness; views 1 and 2 add their number


class TeacherCenter(nn.Module):
    """c: the running mean of the teacher's scores, which keeps any class from taking all patches (DINO, equation 4).

    Args:
        count: E.
        momentum: share of the old centre kept at each update.
    """

    replicated_buffers = True  # every process computes the same
    mean: Tensor

    def __init__(self, count: int, momentum: float) -> None:
        super().__init__()
        self.momentum = momentum
        self.register_buffer("mean", torch.zeros(count))

    @torch.no_grad()
    def update(self, mean_E: Tensor) -> None:
        """Move towards the mean of one optimizer step."""
        self.mean.lerp_(mean_E.to(self.mean.dtype), 1.0 - self.momentum)


def reconstruction_loss(made_VCHW: Tensor, clean_VCHW: Tensor, mask_VHW: Tensor, count: Tensor) -> Tensor:
    """L_M: ``Σ |x̂ − x|`` over the corrupted pixels, averaged over channels, divided by ``count`` (at least 1)."""
    error_VHW = (made_VCHW.to(clean_VCHW.dtype) - clean_VCHW).abs().mean(1)
    return (error_VHW * mask_VHW).sum() / count.clamp(min=1)


@dataclass(frozen=True)
class _Micro:
    """What belongs to one micro-batch."""

    start: int  # of its rows among this process's
    random: BatchRandom
    corruption: Corruption  # of both views, (V, …)
    local: Tensor | None  # (V, N, P) of the teacher
    image: Tensor | None  # (V, P) of the teacher


@dataclass(frozen=True)
class _Step:
    """What one optimizer step needs that looks beyond a micro-batch."""

    views: list[tuple[Tensor, Tensor]]  # of each micro-batch, clean: partners come from here
    shifts: tuple[int, int]  # to the partner, in each view
    micro: list[_Micro]
    pixels: Tensor  # corrupted ones, on average over micro-batches and processes
    keys: tuple[Tensor, Tensor] | None  # (G, P) of view 1 and of view 2
    ids: Tensor | None  # (G,)
    offset: int  # of this process's rows among the keys


class MMC(ImageMethod):
    """MMC: reconstruction of what is hidden, distillation of patches and contrast of images, with a momentum teacher.

    Args:
        config: see :class:`~mc_vision.methods.mmc.config.MMCConfig`.

    Batches need ``view_1`` and ``view_2``, (B, C, H, W) each of one size, clean and normalised: they are corrupted here, as a
    function of the run's seed, ``epoch`` and ``index``.

    Raises:
        ConfigError: a backbone without patch tokens.
    """

    config: MMCConfig

    def __init__(self, config: MMCConfig) -> None:
        super().__init__()
        self.config = config
        network = MMCNetwork(config)
        self.patch = _patch_size(network.encoder)
        self.online = sync_batchnorm(network) if config.sync_bn else network
        self.teacher = MomentumEncoder(self.online, config.momentum.at(0.0, 256), buffers="copy")
        for module in self.teacher.modules():
            if isinstance(module, DropPath):
                module.drop_prob = 0.0
        self.reconstruction: Reconstruction | None = None
        if config.reconstruction_weight > 0:
            self.reconstruction = Reconstruction(network.encoder.num_features, config.encoder.channels, self.patch)
        self.center: TeacherCenter | None = None
        if config.distillation_weight > 0:
            self.center = TeacherCenter(config.outputs, config.center_momentum)
        self.image_center: TeacherCenter | None = None
        if config.global_to_local_weight > 0:
            self.image_center = TeacherCenter(config.outputs, config.center_momentum)
        self._means: list[tuple[TeacherCenter, Tensor]] = []  # of the running step; the centres move after it

    @property
    def student_network(self) -> MMCNetwork:
        """The student with its heads: ``online``."""
        assert isinstance(self.online, MMCNetwork)
        return self.online

    @property
    def teacher_network(self) -> MMCNetwork:
        """The teacher with its heads."""
        assert isinstance(self.teacher.module, MMCNetwork)
        return self.teacher.module

    def encoders(self) -> dict[str, TimmEncoder]:
        """Both encoders, ``"teacher"`` and ``"student"``: the run keeps both."""
        return {"teacher": self.teacher_network.encoder, "student": self.student_network.encoder}

    @property
    def encoder(self) -> TimmEncoder:
        """The encoder that ``config.keep`` names: the one that is evaluated, and saved as the run's model."""
        return self.encoders()[self.config.keep]

    @torch.no_grad()
    def prepare_step(self, micro_batches: Sequence[Batch], progress: Progress) -> _Step:
        """Choose what is hidden in the whole step, and run the teacher over its clean views."""
        views = [_views(batch) for batch in micro_batches]
        count, start = sum(len(view) for view, _ in views), 0
        micro: list[_Micro] = []
        contrast: list[Tensor] = []
        for batch, pair in zip(micro_batches, views, strict=True):
            random = BatchRandom(progress.run_seed, int(batch.get("epoch", 0)), batch["index"])
            local = image = None
            if self.center or self.image_center or self.config.contrast_weight:
                _, local, image, key = self.teacher(torch.cat(pair))
                contrast += [] if key is None else [unit(key)]
            micro.append(_Micro(start, random, self._corruption(random, pair[0], count), local, image))
            start += len(pair[0])
        self._means = self._class_means(micro)
        pixels = sum(m.corruption.mask.sum() for m in micro) / torch.tensor(float(len(micro)))
        keys = [gather_rows(torch.cat(view)) for view in zip(*(key.chunk(2) for key in contrast), strict=True)]
        ids = [ids_of(batch) for batch in micro_batches] if self.config.exclude_same_id else []
        known = [i for i in ids if i is not None]
        shifts = [partner_shift(count, progress.run_seed, progress.step, _PARTNERS + view) for view in (1, 2)]
        return _Step(
            views,
            (shifts[0], shifts[1]),
            micro,
            all_reduce_mean(pixels),
            (keys[0], keys[1]) if keys else None,
            gather_rows(torch.cat(known)) if known else None,
            rank() * count,
        )

    def _corruption(self, random: BatchRandom, view_BCHW: Tensor, count: int) -> Corruption:
        """Of both views, view 1 first."""
        c = self.config.corruption
        drawn = [
            draw_corruption(
                random,
                *view_BCHW.shape[2:],
                cell=self.patch if self.config.aligned else (1, 1),
                ratio=c.ratio,
                max_side=c.max_side,
                copy_p=c.copy_p if count > 1 else 0.0,  # a single image has no partner
                copy_ratio=c.copy_ratio,
                stream=_MASKS + number,
            )
            for number in (1, 2)
        ]
        return Corruption(torch.cat([d.mask for d in drawn]), torch.cat([d.copied for d in drawn]))

    def _class_means(self, micro: Sequence[_Micro]) -> list[tuple[TeacherCenter, Tensor]]:
        """The teacher's mean scores over the step: those of its mean token, since scores are linear in it."""
        pairs = ((self.center, [m.local for m in micro]), (self.image_center, [m.image for m in micro]))
        found = []
        for center, tokens in pairs:
            if center is None:
                continue
            rows = [part.flatten(0, -2) for part in tokens if part is not None]
            total_P = torch.stack([part.sum(0) for part in rows]).sum(0)
            summed = all_reduce_sum(torch.cat([total_P, total_P.new_full((1,), sum(len(part) for part in rows))]))
            with torch.autocast(summed.device.type, enabled=False):
                found.append((center, _classes(self.teacher_network)(summed[:-1] / summed[-1])))
        return found

    def training_step(self, batch: Batch, progress: Progress, prepared: _Step | None = None) -> StepOutput:
        """L of one micro-batch, from corrupted views in the student and clean ones in the teacher."""
        config = self.config
        step = self.prepare_step([batch], progress) if prepared is None else prepared
        number = 0 if prepared is None else int(batch.get("micro", 0))
        micro = step.micro[number]
        clean_VCHW = torch.cat(step.views[number])
        patches_VND, local_VNP, _, contrast_VP = self.online(self._corrupted(clean_VCHW, step, micro))
        rows, columns = (side // patch for side, patch in zip(clean_VCHW.shape[2:], self.patch, strict=True))
        if patches_VND.shape[1] != rows * columns:
            raise _no_patches(self.encoder)
        losses: dict[str, tuple[float, Tensor]] = {}
        metrics = {"corrupted": step.pixels / micro.corruption.mask.numel()}

        if self.reconstruction is not None:
            made_VCHW = self.reconstruction(patches_VND, rows)
            value = reconstruction_loss(made_VCHW, clean_VCHW, micro.corruption.mask, step.pixels)
            losses["reconstruction"] = config.reconstruction_weight, value

        if local_VNP is not None:
            classes_EP = _classes(self.student_network).rows()
            temperature = config.teacher_temperature_at(progress.epoch)
            if self.center is not None:
                weight_T = None
                if config.distill_on == "masked":
                    hidden_VN = token_mask(micro.corruption.mask, self.patch).to(local_VNP.dtype)
                    weight_T = (hidden_VN / hidden_VN.sum(1, keepdim=True).clamp(min=1) / len(hidden_VN)).flatten()
                value, entropy = self.distill(local_VNP, classes_EP, micro.local, self.center, temperature, weight_T)
                losses["distillation"] = config.distillation_weight, value
                metrics["teacher_entropy"] = entropy
                metrics["teacher_kl_to_uniform"] = math.log(config.outputs) - entropy
            if self.image_center is not None and micro.image is not None:
                other_VP = micro.image.roll(len(micro.image) // 2, 0)  # of the other view
                value, _ = self.distill(local_VNP.mean(1), classes_EP, other_VP, self.image_center, temperature)
                losses["global_to_local"] = config.global_to_local_weight, value

        if step.keys is not None:
            query_1, query_2 = unit(contrast_VP).chunk(2)
            start = step.offset + micro.start
            ids = ids_of(batch) if config.exclude_same_id else None
            value = self.contrast(query_1, step.keys[1], start, ids, step.ids)
            value = value + self.contrast(query_2, step.keys[0], start, ids, step.ids)
            losses["contrast"] = config.contrast_weight, value
            features = {"query": query_1, "key": step.keys[1][start : start + len(query_1)]}
        else:
            features = {"query": unit((patches_VND if local_VNP is None else local_VNP).detach().mean(1))}

        loss = torch.stack([weight * value for weight, value in losses.values()]).sum()
        metrics |= {f"loss_{name}": value for name, (_, value) in losses.items()}
        return StepOutput(loss, detached(**metrics), features)

    def _corrupted(self, clean_VCHW: Tensor, step: _Step, micro: _Micro) -> Tensor:
        """x̃ of both views."""
        count = len(clean_VCHW) // 2
        partner = [
            rows_from([pair[view] for pair in step.views], micro.start + step.shifts[view], count) for view in (0, 1)
        ]
        fill = self.config.corruption.fill
        noise = noise_like(clean_VCHW, micro.random, _NOISE) if fill == "noise" else None
        return corrupted(clean_VCHW, micro.corruption, torch.cat(partner), noise)

    def distill(
        self,
        student: Tensor,
        classes_EP: Tensor,
        teacher: Tensor | None,
        center: TeacherCenter,
        temperature: float,
        weight_T: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """(loss, mean entropy of the teacher) of (…, P) unit trunk outputs."""
        assert teacher is not None
        return distillation(
            student.flatten(0, -2),
            classes_EP,
            teacher.flatten(0, -2),
            _classes(self.teacher_network).rows(),
            center.mean,
            student_temperature=self.config.student_temperature,
            teacher_temperature=temperature,
            row_weight_T=weight_T,
        )

    def contrast(self, query: Tensor, keys: Tensor, offset: int, ids: Tensor | None, key_ids: Tensor | None) -> Tensor:
        """ctr(q, k) of (B, P) unit queries against (G, P) unit keys, as in MoCo v3."""
        temperature = self.config.contrast_temperature
        return contrast_of_step(query, keys, offset, temperature=temperature, ids=ids, key_ids=key_ids)[0]

    def before_optimizer_step(self, progress: Progress) -> None:
        """Leave W as it is during the first epochs."""
        if self.student_network.classes is not None and progress.epoch < self.config.frozen_epochs:
            self.student_network.classes.weight.grad = None

    def after_step(self, progress: Progress) -> None:
        """Move the centres, by what the teacher of this step said, then the teacher."""
        for center, mean_E in self._means:
            center.update(mean_E)
        self._means = []
        self.teacher.update(self.config.momentum.at(progress.fraction, progress.batch_size))

    def check(self, micro_batch_size: int) -> None:
        """The contrast needs another image in the batch."""
        if self.config.contrast_weight and micro_batch_size < 2:
            raise ConfigError(
                "the contrast of MMC has no negative in a batch of one image (per process and micro-batch): "
                "raise --fit.batch-size, lower --fit.accumulation, or set --method.contrast-weight 0"
            )

    def advice(self, batch_size: int, data_size: int) -> list[str]:
        """Warn of a teacher that is not sharper than its student."""
        config = self.config
        warmest = max(config.teacher_temperature, config.teacher_temperature_start)
        if self.center is None or warmest < config.student_temperature:
            return []
        text = (
            f"the teacher's temperature {warmest:g} is not below the student's {config.student_temperature:g}: nothing "
            "keeps the distillation from going uniform; lower --method.teacher-temperature"
        )
        return [text]


def _classes(network: MMCNetwork) -> UnitLinear:
    assert network.classes is not None  # where anything is distilled
    return network.classes


def _views(batch: Batch) -> tuple[Tensor, Tensor]:
    first, second = batch["view_1"], batch["view_2"]
    if first.shape != second.shape:
        raise DataError(
            f"MMC takes two views of one size, got {tuple(first.shape)} and {tuple(second.shape)}: give both the same "
            "size (--views.size)"
        )
    return first, second


def _patch_size(encoder: TimmEncoder) -> tuple[int, int]:
    patch = getattr(getattr(encoder.backbone, "patch_embed", None), "patch_size", None)
    if patch is None or not hasattr(encoder.backbone, "num_prefix_tokens"):
        raise _no_patches(encoder)
    return (patch, patch) if isinstance(patch, int) else (int(patch[0]), int(patch[1]))


def _no_patches(encoder: TimmEncoder) -> ConfigError:
    return ConfigError(
        f"MMC needs patch tokens, which backbone '{encoder.config.backbone}' has not: take a vision transformer such as "
        "vit_small_patch16_224 (--method.encoder.backbone)"
    )
