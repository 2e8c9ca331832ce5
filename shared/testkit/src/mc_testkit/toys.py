"""Tiny methods and data for the contract suite. Module-level, so that other processes can build them too."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from mc_core.accumulation import CachedGradients, cache_gradients, first_pass, replay
from mc_core.data import TensorData
from mc_core.distributed import gather_rows_with_grad, rank
from mc_core.engine import Method, Progress, StepOutput
from mc_core.losses import decoupled_info_nce, info_nce
from mc_core.momentum import MomentumEncoder
from mc_core.queue import FeatureQueue


def build_from(method: str, config: str, fields: dict[str, Any]) -> Method:
    """A method by the import paths of its class and its configuration class: ``"module:Name"``."""

    def load(target: str) -> Any:
        module, _, name = target.partition(":")
        return getattr(importlib.import_module(module), name)

    return load(method)(load(config).model_validate(fields))


def vector_pairs(count: int = 64, dim: int = 6, seed: int = 0) -> TensorData:
    """Pairs of noisy vectors around ``count`` different points: ``view_1``, ``view_2`` (count, dim), ``ids``, ``label``."""
    generator = torch.Generator().manual_seed(seed)
    center = torch.randn(count, dim, generator=generator)
    first, second = (center + 0.2 * torch.randn(count, dim, generator=generator) for _ in range(2))
    return TensorData(view_1=first, view_2=second, ids=torch.arange(count), label=torch.arange(count) % 4)


def image_pairs(count: int = 48, size: int = 16, seed: int = 0) -> TensorData:
    """Pairs of noisy coloured images: ``view_1``, ``view_2``, ``image`` (count, 3, size, size) and ``ids``."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(count, 3, 4, 4, generator=generator)
    scene = nn.functional.interpolate(coarse, size=(size, size), mode="bilinear")
    first, second = (scene + 0.3 * torch.randn(scene.shape, generator=generator) for _ in range(2))
    return TensorData(view_1=first, view_2=second, image=scene, ids=torch.arange(count))


class ToyEncoder(nn.Module):
    """A module that can be saved and loaded by its configuration."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        self.config = config
        self.layer = nn.Linear(2, int(config["width"]))

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> ToyEncoder:
        """The protocol of :func:`mc_core.export.load_model`."""
        return cls(config)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 2) → (B, width)."""
        return self.layer(x)


class ToyMoCo(Method):
    """Momentum contrast on vectors, in twenty lines: a network, its slow copy and a queue."""

    def __init__(self, dim: int = 6, queue_size: int = 24, momentum: float = 0.9) -> None:
        super().__init__()
        self.online = nn.Sequential(nn.Linear(dim, 16), nn.Tanh(), nn.Dropout(0.1), nn.Linear(16, 8))
        self.momentum_encoder = MomentumEncoder(self.online, momentum)
        self.queue = FeatureQueue(queue_size, 8, with_ids=True)
        self.keys: list[tuple[Tensor, Tensor]] = []

    def training_step(self, batch: dict[str, Any], progress: Progress, prepared: Any = None) -> StepOutput:
        """InfoNCE against the queue."""
        query = normalize(self.online(batch["view_1"]), dim=1)
        key = normalize(self.momentum_encoder(batch["view_2"]), dim=1)
        loss = info_nce(
            query, key, self.queue.features, temperature=0.2, query_ids=batch["ids"], negative_ids=self.queue.ids
        )
        self.keys.append((key, batch["ids"]))
        return StepOutput(loss, {"keys": float(len(self.queue))}, {"query": query, "key": key})

    def after_step(self, progress: Progress) -> None:
        """Moving average, then the step's keys."""
        self.momentum_encoder.update()
        self.queue.enqueue(torch.cat([k for k, _ in self.keys]), torch.cat([i for _, i in self.keys]))
        self.keys.clear()

    def encode(self, batch: dict[str, Any]) -> Tensor:
        """(B, 8) features of ``view_1``."""
        return self.online(batch["view_1"])

    def export_module(self) -> None:
        """Nothing to keep."""


def toy_moco() -> ToyMoCo:
    """Without dropout, so that processes can be compared."""
    method = ToyMoCo()
    method.online[2].p = 0.0  # type: ignore[assignment]
    method.momentum_encoder.module[2].p = 0.0  # type: ignore[index, union-attr]
    return method


def toy_moco_with_dropout() -> ToyMoCo:
    """With dropout: its masks must come back on resume."""
    return ToyMoCo()


class ToyDCL(Method):
    """Two-sided in-batch contrast, exact under accumulation by two passes."""

    def __init__(self, dropout: float = 0.2) -> None:
        super().__init__()
        self.online = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Dropout(dropout), nn.Linear(16, 8))

    def embed(self, batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """Unit embeddings of both views."""
        return normalize(self.online(batch["view_1"]), dim=1), normalize(self.online(batch["view_2"]), dim=1)

    def loss(self, a: Tensor, b: Tensor) -> tuple[Tensor, dict[str, Any]]:
        """DCL over all processes."""
        all_a, all_b = gather_rows_with_grad(a), gather_rows_with_grad(b)
        return decoupled_info_nce(a, b, all_a=all_a, all_b=all_b, offset=rank() * len(a), temperature=0.5), {}

    def prepare_step(self, micro_batches: Any, progress: Progress) -> CachedGradients:
        """The gradient of the whole batch at its embeddings."""
        embeddings = []
        for batch in micro_batches:
            with first_pass(self), replay(progress, batch):
                embeddings.append(self.embed(batch))
        return cache_gradients(embeddings, self.loss)

    def training_step(self, batch: dict[str, Any], progress: Progress, prepared: Any = None) -> StepOutput:
        """This micro-batch's share."""
        with replay(progress, batch):
            a, b = self.embed(batch)
        return StepOutput(
            prepared.surrogate(int(batch["micro"]), (a, b)), {}, {"query": a.detach(), "other": b.detach()}
        )

    def encode(self, batch: dict[str, Any]) -> Tensor:
        """(B, 8) features of ``view_1``."""
        return self.online(batch["view_1"])


def toy_dcl() -> ToyDCL:
    """Without dropout."""
    return ToyDCL(dropout=0.0)


def toy_dcl_with_dropout() -> ToyDCL:
    """With dropout, which both passes must draw alike."""
    return ToyDCL()


def signal_pairs(count: int = 48, seed: int = 0) -> TensorData:
    """Waves of a person's own rate, each time with another phase: ``view_1``, ``view_2``, ``signal`` (count, 2, 64), ``ids``."""
    generator = torch.Generator().manual_seed(seed)
    time = torch.arange(64) / 16.0
    rate = torch.linspace(0.5, 3.0, count)[:, None, None]

    def wave() -> Tensor:
        phase = 6.3 * torch.rand(count, 2, 1, generator=generator)
        noise = 0.1 * torch.randn(count, 2, 64, generator=generator)
        return torch.sin(6.2832 * rate * time + phase) + noise

    return TensorData(view_1=wave(), view_2=wave(), signal=wave(), ids=torch.arange(count) // 2)


def token_pairs(count: int = 48, vocabulary: int = 60, longest: int = 12, seed: int = 0) -> TensorData:
    """Rows of token ids, each also with its second token doubled: ``input_ids``, ``attention_mask`` (count, longest),
    ``positive_input_ids``, ``positive_attention_mask`` (count, longest + 1) and ``ids``. Id 0 pads, 1 begins and 2 ends a row.
    """
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, vocabulary, (count, longest), generator=generator)
    length = torch.randint(4, longest + 1, (count, 1), generator=generator)
    place = torch.arange(longest)
    ids = torch.where(place == length - 1, 2, ids).masked_fill(place >= length, 0)
    ids[:, 0] = 1
    doubled = torch.cat([ids[:, :2], ids[:, 1:]], dim=1)
    return TensorData(
        input_ids=ids,
        attention_mask=(ids > 0).long(),
        positive_input_ids=doubled,
        positive_attention_mask=(doubled > 0).long(),
        ids=torch.arange(count),
    )


def typed_token_pairs(count: int = 48, vocabulary: int = 60, longest: int = 12, seed: int = 0) -> TensorData:
    """Rows of token ids with a class for each, and beside each row one of its tokens in another order: ``code_input_ids``,
    ``code_attention_mask``, ``code_type_ids``, ``code_own_name`` (count, longest), ``query_input_ids``,
    ``query_attention_mask``, ``query_type_ids`` (count, longest − 2), ``code_ids`` and ``query_ids``. Id 0 pads, 1 begins and 2
    ends a row.
    """
    data = token_pairs(count, vocabulary, longest, seed)
    ids, mask = data.tensors["input_ids"], data.tensors["attention_mask"]
    inner = (ids > 2).to(torch.uint8)
    query = ids.flip(1)[:, 3:]  # of shorter rows the padding comes first: moved behind
    order = (query <= 2).to(torch.uint8).argsort(dim=1, stable=True)
    query = query.gather(1, order) * (query.gather(1, order) > 2)
    query = torch.cat([torch.ones(count, 1, dtype=torch.int64), query], dim=1)
    return TensorData(
        code_input_ids=ids,
        code_attention_mask=mask,
        code_type_ids=inner * (1 + ids % 12).to(torch.uint8),
        code_own_name=(torch.arange(longest) == 2).expand(count, longest) & (inner > 0),
        query_input_ids=query,
        query_attention_mask=(query > 0).long(),
        query_type_ids=(query > 2).to(torch.uint8),
        code_ids=torch.arange(count) << 8,
        query_ids=torch.arange(count),
    )


def image_text_pairs(count: int = 56, size: int = 16, longest: int = 10, seed: int = 0) -> TensorData:
    """Grey images and token rows that name what they show: ``view_1``, ``view_2`` (count, 1, size, size) in [0, 1], ``input_ids``,
    ``attention_mask`` (count, longest), ``study_ids`` and ``text_ids``. Rows 6n and 6n + 1 are of one study; rows 6n + 2 and
    6n + 3 say the same. Id 0 pads, 1 begins and 2 ends a row.
    """
    generator = torch.Generator().manual_seed(seed)
    number = torch.arange(count)
    said = torch.where(number % 6 == 3, number - 1, number)
    code = torch.stack([3 + said // 8 % 8, 11 + said % 8, 19 + said % 3], dim=1)
    length = 4 + said % (longest - 4)
    place = torch.arange(longest)
    ids = torch.cat([torch.ones(count, 1, dtype=torch.int64), code, 22 + place[4:].expand(count, -1)], dim=1)
    ids = torch.where(place == length[:, None] - 1, 2, ids).masked_fill(place >= length[:, None], 0)
    coarse = torch.rand(count, 1, 4, 4, generator=generator)[said]
    shown = nn.functional.interpolate(coarse, size=(size, size), mode="bilinear")
    first, second = ((shown + 0.1 * torch.randn(shown.shape, generator=generator)).clamp(0, 1) for _ in range(2))
    return TensorData(
        view_1=first,
        view_2=second,
        input_ids=ids,
        attention_mask=(place < length[:, None]).long(),
        study_ids=torch.where(number % 6 == 1, number - 1, number),
        text_ids=1000 + said,
    )


def captioned_images(count: int = 56, size: int = 16, longest: int = 10, seed: int = 0) -> TensorData:
    """Those of :func:`image_text_pairs` as colour images with captions: ``view`` (count, 3, size, size) in [0, 1], ``input_ids``,
    ``attention_mask`` (count, longest), ``image_ids`` and ``text_ids``. Rows 6n and 6n + 1 show the same; rows 6n + 2 and 6n + 3
    say the same. Id 0 pads, 1 begins and 2 ends a row.
    """
    found = image_text_pairs(count, size, longest, seed).tensors
    return TensorData(
        view=found["view_1"].expand(-1, 3, -1, -1).contiguous(),
        image_ids=found["study_ids"],
        **{name: found[name] for name in ("input_ids", "attention_mask", "text_ids")},
    )


def answered_images(count: int = 56) -> TensorData:
    """:func:`captioned_images` whose captions are also what a language model has to say: ``answer_ids``, ``answer_mask`` and
    ``target_mask`` (count, longest), all tokens but the first to be predicted; every second row has a question, ``question_ids``
    and ``question_mask`` (count, 4).
    """
    found = captioned_images(count).tensors
    mask = found["attention_mask"]
    asked = (torch.arange(count) % 2)[:, None].expand(-1, 4).contiguous()
    return TensorData(
        **found,
        answer_ids=found["input_ids"].clone(),
        answer_mask=mask.clone(),
        target_mask=mask * (torch.arange(mask.shape[1]) > 0),
        question_ids=found["input_ids"][:, :4] * asked,
        question_mask=asked,
    )


def judged_images(
    views: Sequence[str] = ("view",), labels: int = 2, count: int = 48, size: int = 16, seed: int = 0
) -> TensorData:
    """Colour images whose brightness tells the ``label``, with sentences of random words: ``views`` (count, 3, size, size) in
    [0, 1], ``input_ids`` and ``attention_mask`` (count, 6). Id 0 pads, 1 begins a row.
    """
    generator = torch.Generator().manual_seed(seed)
    label = torch.arange(count) % labels
    light = 0.7 * label[:, None, None, None] / max(labels - 1, 1)
    shown = {name: 0.3 * torch.rand(count, 3, size, size, generator=generator) + light for name in views}
    mask = torch.arange(6) < torch.randint(3, 7, (count, 1), generator=generator)
    ids = torch.randint(3, 60, (count, 6), generator=generator)
    ids[:, 0] = 1
    return TensorData(**shown, input_ids=ids.masked_fill(~mask, 0), attention_mask=mask.long(), label=label)


class AskedImages:
    """:func:`judged_images` with one or two answers a row instead of a label, all answers of a batch one after the other:
    ``answer_ids`` and ``answer_mask`` (A, 4), ``answer_of`` and ``answer_weights`` (A,). Id 1 begins and 2 ends an answer.
    """

    def __init__(self, count: int = 48) -> None:
        self.rows = dict(judged_images(labels=3, count=count).tensors)
        word = self.rows.pop("label") + 10
        one, two, none = torch.ones_like(word), torch.full_like(word, 2), torch.zeros_like(word)
        self.answers = torch.stack(
            [torch.stack([one, word, two, none], 1), torch.stack([one, word, word + 10, two], 1)], 1
        )

    def __len__(self) -> int:
        return len(self.answers)

    def get(self, index: int, rng: Any) -> dict[str, Any]:
        """One row without its answers."""
        return {name: tensor[index] for name, tensor in self.rows.items()}

    def get_batch(self, indices: Sequence[int], epoch: int, seed: int) -> dict[str, Tensor]:
        """Rows with their answers."""
        rows = torch.as_tensor(indices)
        counts = 1 + rows % 2
        ids = torch.cat([self.answers[row, :count] for row, count in zip(rows.tolist(), counts.tolist(), strict=True)])
        return {
            **{name: tensor[rows] for name, tensor in self.rows.items()},
            "answer_ids": ids,
            "answer_mask": (ids > 0).long(),
            "answer_of": torch.arange(len(rows)).repeat_interleave(counts),
            "answer_weights": (1 / counts).repeat_interleave(counts),
        }

    def describe(self) -> dict[str, Any]:
        """Kind and count."""
        return {"kind": "asked images", "count": len(self)}


def labelled_tiles(count: int = 32, size: int = 32, seed: int = 0) -> TensorData:
    """Tiles of three bands and an elevation of four channels, every third without target: ``image``, ``image_2`` (count, 3,
    size, size), ``elevation``, ``elevation_2`` (count, 4, size, size), ``image_valid`` and ``labels`` (count, size, size) of 0, 1
    and, in a corner, 255. The target is a disc: a weak tone in the image, a bowl in the elevation.
    """
    generator = torch.Generator().manual_seed(seed)
    at = torch.arange(size) + 0.5
    centre = size * (0.3 + 0.4 * torch.rand(count, 2, 1, 1, generator=generator))
    radius = size * (0.15 + 0.15 * torch.rand(count, 1, 1, generator=generator))
    distance = ((at[:, None] - centre[:, 0]) ** 2 + (at - centre[:, 1]) ** 2).sqrt()
    inside = (distance < radius) & (torch.arange(count) % 3 > 0)[:, None, None]
    labels = inside.to(torch.uint8)
    unknown = (at < size * (0.1 + 0.1 * (torch.arange(count) % 5))[:, None]).float()  # another share of each tile
    labels[torch.einsum("bh,bw->bhw", unknown, unknown) > 0] = 255
    valid = torch.ones(count, size, size, dtype=torch.bool)
    valid[:, : size // 8, : size // 8] = False
    views = []
    for _ in range(2):
        image = 0.5 * inside[:, None] + 0.4 * torch.randn(count, 3, size, size, generator=generator)
        relief = inside * (distance / radius - 1)
        noise = 0.05 * torch.randn(count, 3, size, size, generator=generator)
        channels = torch.stack([relief, 0.5 * inside, 0.2 * inside], dim=1) + noise
        elevation = torch.cat([channels, torch.ones(count, 1, size, size)], dim=1)
        views.append((100 + 20 * image, elevation))
    (image, elevation), (image_2, elevation_2) = views
    return TensorData(
        image=image,
        image_2=image_2,
        image_valid=valid,
        elevation=elevation,
        elevation_2=elevation_2,
        labels=labels,
        ids=torch.arange(count),
    )


def scene_pairs(count: int = 48, size: int = 32, seed: int = 0) -> TensorData:
    """Crops of places, two of each: ``image_1/2``, ``valid_1/2``, ``elevation_1/2`` and ``ids``."""
    generator = torch.Generator().manual_seed(seed)

    def smooth(channels: int) -> Tensor:
        coarse = torch.randn(count // 2, channels, 4, 4, generator=generator).repeat_interleave(2, 0)
        return nn.functional.interpolate(coarse, size=(size, size), mode="bilinear")

    def noisy(ground: Tensor) -> Tensor:
        return ground + 0.2 * torch.randn(ground.shape, generator=generator)

    image, relief = smooth(3), smooth(4)
    valid = torch.ones(count, size, size, dtype=torch.bool)
    valid[:, :2] = False
    return TensorData(
        image_1=noisy(image),
        image_2=noisy(image),
        valid_1=valid,
        valid_2=valid,
        elevation_1=noisy(relief),
        elevation_2=noisy(relief),
        ids=torch.arange(count) // 2,
    )
