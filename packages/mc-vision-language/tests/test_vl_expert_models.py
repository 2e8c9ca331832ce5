"""The four experts: what they learn from, what they say, and that they are saved, loaded and trained further to the same bits."""

import math
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from mc_core.data import finish_on_device
from mc_core.engine.config import Fit
from mc_core.engine.method import Progress
from mc_core.errors import BadSampleError, CheckpointError, ConfigError, DataError
from mc_vision_language.augment_config import AugmentConfig
from mc_vision_language.data.annotated import AnnotatedPairs
from mc_vision_language.encoders_config import ImageEncoderConfig, TextEncoderConfig, VisionLanguageConfig
from mc_vision_language.experts import (
    KINDS,
    NEEDS,
    ExpertConfig,
    ExpertMethod,
    build_expert,
    expert_class,
    load_expert,
    trainable_kinds,
)
from mc_vision_language.experts.captioning import caption_targets
from mc_vision_language.experts.classification import most_likely, one_loss, several_loss
from mc_vision_language.experts.config import CaptionHead, ClassificationHead, SegmentationHead
from mc_vision_language.experts.detection import Detections
from mc_vision_language.experts.evaluating import measure_expert
from mc_vision_language.experts.sample import EXPERTS, sample_fit
from mc_vision_language.experts.segmentation import pixel_loss
from mc_vision_language.experts.training import expert_data, expert_for, train_expert
from mc_vision_language.language_config import LanguageConfig
from mc_vision_language.model import VisionLanguageModel
from mc_vision_language.staged.sample import staged_sample

SIDE = 32
COUNTS = {"train": 12, "test": 6}
FIT = Fit(
    steps=4, batch_size=4, optimizer="adamw", lr=1e-3, checkpoint_every=2, keep_checkpoints=4, log_every=1, workers=0
)


def config(kind, **given) -> ExpertConfig:
    language = LanguageConfig(
        hidden_size=16, heads=2, layers=1, positions=48, question_length=4, answer_length=16, vocabulary=100
    )
    tiny = {
        "width": 8,
        "stages": 2,
        "stem": 4,
        "captioning": CaptionHead(language=language),
        "segmentation": SegmentationHead(width=8, depth=1),
    }
    return ExpertConfig(kind=kind, image_size=SIDE, **{**tiny, **given})


@pytest.fixture(scope="module")
def scenes() -> AnnotatedPairs:
    return staged_sample(counts=COUNTS)


def batch_of(expert, scenes, rows=(0, 1, 2, 3), augment=None):
    data = expert_data(expert, scenes, augment)
    return finish_on_device(data, {**data.get_batch(list(rows), 0, 0), "index": torch.tensor(rows), "epoch": 0}, 0)


@pytest.mark.parametrize("kind", KINDS)
def test_every_weight_learns_and_the_map_is_the_same_every_time(kind, scenes):
    expert = expert_for(config(kind), scenes.part("train"))
    batch = batch_of(expert, scenes)
    loss, metrics = expert.train().loss(batch)
    assert loss.ndim == 0
    assert loss.isfinite()
    assert metrics
    loss.backward()
    without = [
        name for name, p in expert.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())
    ]
    assert not [name for name in without if not name.endswith("bias")]
    expert.eval()
    with torch.no_grad():
        one, two = expert.features(batch["view"]), expert.features(batch["view"])
    assert torch.equal(one, two)
    assert one.shape == (4, expert.num_features, *expert.grid)
    torch.testing.assert_close(expert.features(batch["view"][2:]), one[2:], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_without_what_is_learnt_from_is_refused(kind, scenes):
    expert = expert_for(config(kind), scenes)
    with pytest.raises(
        DataError, match=rf"a {kind} expert learns from .*{expert.needs[0]}.*: give pictures with {NEEDS[kind]}"
    ):
        expert.loss({"view": torch.rand(2, 3, SIDE, SIDE)})


@pytest.mark.parametrize("kind", KINDS)
def test_predictions_from_files_arrays_and_after_saving(kind, scenes, tmp_path):
    expert = expert_for(config(kind), scenes, seed=3)
    pixels = scenes.pairs.images.array[:5]
    for row in range(5):
        Image.fromarray(pixels[row].transpose(1, 2, 0)).save(tmp_path / f"{row}.png")
    expert.train()
    found = expert.predict(pixels, batch_size=2)
    assert expert.training  # as it was
    assert not expert.state_dict().keys() - load_after_saving(expert, tmp_path).state_dict().keys()
    others = [
        expert.predict([str(tmp_path / f"{row}.png") for row in range(5)]),
        expert.predict(torch.from_numpy(pixels).float() / 255, batch_size=5),
        load_expert(tmp_path / "model").predict(pixels),
    ]
    for other in others:
        assert type(other) is type(found)
        if kind == "captioning":
            assert other == found
            assert len(found) == 5
            assert all(isinstance(text, str) for text in found)
            continue
        for a, b in zip(
            [found] if torch.is_tensor(found) else found, [other] if torch.is_tensor(other) else other, strict=True
        ):
            torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)
    if kind == "classification":
        assert found.shape == (5, 10)
        assert ((found > 0) & (found < 1)).all()
        assert len(most_likely(found, expert.class_names)[0]) == 3
    elif kind == "segmentation":
        assert found.shape == (5, SIDE, SIDE)
        assert found.dtype == torch.int64
    elif kind == "detection":
        assert isinstance(found, Detections)
    (alone,) = [expert.predict(tmp_path / "0.png")]
    assert len(alone[0] if isinstance(alone, tuple) else alone) == 1
    with pytest.raises(BadSampleError, match="missing"):
        expert.predict([tmp_path / "missing.png"])
    with pytest.raises(DataError, match="no pictures"):
        expert.predict([])


def load_after_saving(expert, folder):
    expert.save(folder / "model", card={"title": "one"})
    return load_expert(folder / "model")


@pytest.mark.parametrize("kind", KINDS)
def test_training_resumes_to_the_same_bits(kind, scenes, tmp_path):
    augment = AugmentConfig(size=SIDE, scale=(0.6, 1.0), flip=0.5).still()
    train = scenes.part("train")
    whole = train_expert(config(kind), train, tmp_path / "whole", fit_config=FIT, augment=augment)
    shutil.copytree(tmp_path / "whole", tmp_path / "stopped")
    checkpoints = sorted((tmp_path / "stopped" / "checkpoints").iterdir())
    assert len(checkpoints) >= 2
    for late in checkpoints[1:]:
        shutil.rmtree(late) if late.is_dir() else late.unlink()
    shutil.rmtree(tmp_path / "stopped" / "model")
    again = train_expert(config(kind), train, tmp_path / "stopped", fit_config=FIT, augment=augment)
    wanted, found = (run.method.export_module().state_dict() for run in (whole, again))
    assert all(torch.equal(wanted[name], found[name]) for name in wanted)
    saved = load_expert(tmp_path / "stopped")
    assert saved.kind == kind
    assert all(torch.equal(wanted[name], value) for name, value in saved.state_dict().items())
    start = expert_for(config(kind), train).state_dict()
    assert any(not torch.equal(wanted[name], value) for name, value in start.items())


def test_a_folder_that_holds_something_else(tmp_path):
    with pytest.raises(CheckpointError, match=r"is no folder"):
        load_expert(tmp_path / "nothing")
    encoders = {"image": ImageEncoderConfig(image_size=16, width=8, depth=1, heads=2), "dim": 4}
    text = TextEncoderConfig(text_layers=1, fusion_layers=1, hidden_size=8, heads=2, vocabulary=32)
    VisionLanguageModel(VisionLanguageConfig(**encoders, text=text)).save(tmp_path / "other")
    with pytest.raises(CheckpointError, match="holds a VisionLanguageModel, not a vision expert"):
        load_expert(tmp_path / "other")


def test_kinds_and_classes_are_checked():
    with pytest.raises(ConfigError, match=r"no expert 'depth': choose classification, captioning"):
        expert_class("depth")
    with pytest.raises(ConfigError, match="a configuration of a detection expert for a segmentation expert"):
        expert_class("segmentation")(config("detection", class_names=("a",)))
    with pytest.raises(ConfigError, match="a detection expert without class_names"):
        build_expert(config("detection"))
    assert [expert_class(kind).kind for kind in KINDS] == list(KINDS)


def test_a_map_that_does_not_fit_the_language_model(scenes):
    with pytest.raises(ConfigError, match=r"a map of 16 × 16 places .* raise captioning.language.positions"):
        expert_for(config("captioning", stem=1, stages=2), scenes)


# what can be trained


def test_what_cannot_be_trained_is_said(scenes):
    kinds, lines = trainable_kinds(scenes)
    assert (kinds, lines) == (KINDS, [])
    kinds, lines = trainable_kinds(scenes.pairs)
    assert kinds == ("captioning",)
    assert [line.split(":")[0] for line in lines] == [
        "no classification expert",
        "no detection expert",
        "no segmentation expert",
    ]
    assert "has no picture with boxes" in lines[1]
    known = scenes.boxes.known.copy()
    known[:4] = False
    some = AnnotatedPairs(
        scenes.pairs, type(scenes.boxes)(*_without(scenes.boxes, known)), class_names=scenes.class_names
    )
    kinds, lines = trainable_kinds(some)
    assert kinds == ("classification", "captioning", "detection")
    assert lines[1] == "the detection expert learns from 14 of 18 pictures, which have boxes"
    with pytest.raises(DataError, match="no picture has masks; there are captions, labels, boxes"):
        train_expert(config("segmentation"), some, "unused", fit_config=FIT)


def _without(boxes, known):
    kept = known[boxes.picture]
    counts = np.where(known, np.diff(boxes.box_offsets), 0)
    offsets = np.concatenate([[0], np.cumsum(counts)])
    return boxes.all_boxes[kept], boxes.box_class[kept], offsets, known, boxes.crowd[kept]


# losses


def test_losses_of_labels_are_their_definition():
    torch.manual_seed(0)
    logits = torch.randn(5, 4, dtype=torch.float64)
    labels = torch.randint(-1, 2, (5, 4)).double()
    loss, right = several_loss(logits, labels)
    wanted, hits, count = 0.0, 0, 0
    for s, y in zip(logits.flatten().tolist(), labels.flatten().tolist(), strict=True):
        if y >= 0:
            p = 1 / (1 + math.exp(-s))
            wanted -= math.log(p if y else 1 - p)
            hits += (s > 0) == bool(y)
            count += 1
    assert loss.item() == pytest.approx(wanted / count)
    assert right.item() == pytest.approx(hits / count)
    one_hot = torch.eye(4, dtype=torch.float64)[[1, 3, 0, 2, 2]]
    one_hot[3] = -1  # not known
    loss, _ = one_loss(logits, one_hot)
    rows = [0, 1, 2, 4]
    wanted = -sum(math.log(logits[r].softmax(0)[c]) for r, c in zip(rows, (1, 3, 0, 2), strict=True)) / 4
    assert loss.item() == pytest.approx(wanted)
    assert several_loss(logits, torch.full((5, 4), -1.0))[0].item() == 0.0
    assert one_loss(logits, torch.zeros(5, 4))[0].item() == 0.0


@pytest.mark.parametrize("pool", ["mean", "max"])
def test_pooling_of_a_classification_expert(pool):
    expert = build_expert(
        config("classification", class_names=("a", "b"), classification=ClassificationHead(pool=pool, loss="one"))
    )
    features = torch.randn(3, expert.num_features, 4, 4)
    at_each = torch.stack([expert.head(features[:, :, i, j]) for i in range(4) for j in range(4)])
    wanted = at_each.mean(0) if pool == "mean" else at_each.amax(0)
    torch.testing.assert_close(expert.head_outputs(features), wanted)
    torch.testing.assert_close(expert.predicted(features).sum(1), torch.ones(3))


def test_the_loss_of_pixels_is_its_definition():
    torch.manual_seed(0)
    logits = torch.randn(2, 3, 4, 5, dtype=torch.float64)
    mask = torch.randint(-1, 3, (2, 4, 5))
    weights = torch.tensor([0.3, 1.0, 2.0])
    loss, metrics = pixel_loss(logits, mask, weights)
    total = weight = right = known = 0.0
    for b in range(2):
        for i in range(4):
            for j in range(5):
                y = int(mask[b, i, j])
                if y >= 0:
                    total -= float(weights[y]) * math.log(logits[b, :, i, j].softmax(0)[y])
                    weight += float(weights[y])
                    right += int(logits[b, :, i, j].argmax()) == y
                    known += 1
    assert loss.item() == pytest.approx(total / weight, rel=1e-6)
    assert metrics["accuracy"].item() == pytest.approx(right / known)
    nothing, _ = pixel_loss(logits.requires_grad_(), torch.full_like(mask, -1), weights)
    nothing.backward()
    assert nothing.item() == 0.0
    assert (logits.grad == 0).all()


def test_captions_are_learnt_to_their_end_whether_it_is_written_or_not(scenes):
    expert = expert_for(config("captioning"), scenes).eval()
    batch = batch_of(expert, scenes)
    end = expert.language.config.end_id
    assert (batch["input_ids"] != end).all()
    loss, metrics = expert.loss(batch)
    text = caption_targets(batch["input_ids"], batch["attention_mask"], expert.language.config)
    assert (text.ids.gather(1, batch["attention_mask"].sum(1, keepdim=True)) == end).all()
    assert text.wanted.sum() == batch["attention_mask"].sum()  # all but the first, and the end
    ended = {**batch, "input_ids": text.ids, "attention_mask": text.mask}
    torch.testing.assert_close(expert.loss(ended)[0], loss)
    wide = {name: torch.nn.functional.pad(batch[name], (0, 3)) for name in ("input_ids", "attention_mask")}
    torch.testing.assert_close(expert.loss({**batch, **wide})[0], loss)
    visual = expert.head_outputs(expert.features(batch["view"]))
    torch.testing.assert_close(expert.language.loss(visual, text.ids, text.mask, text.wanted), loss)
    assert 0 <= metrics["token_accuracy"] <= 1


# measuring


class Knowing:
    """Says what is there, instead of an expert's own head."""

    def __init__(self, expert, truth):
        self.truth, self.at = truth, 0
        expert.predicted = self.say

    def say(self, features):
        rows = slice(self.at, self.at + len(features))
        self.at += len(features)
        return type(self.truth)(*(t[rows] for t in self.truth)) if isinstance(self.truth, tuple) else self.truth[rows]


def test_pixels_of_no_class_weigh_as_asked():
    head = SegmentationHead(width=8, depth=1, background=0.3)
    expert = build_expert(config("segmentation", segmentation=head, class_names=("a", "b"))).eval()
    view, mask = torch.rand(2, 3, SIDE, SIDE), torch.randint(-1, 3, (2, SIDE, SIDE))
    loss, _ = expert.loss({"view": view, "mask": mask})
    logits = torch.nn.functional.interpolate(
        expert.head_outputs(expert.features(view)), (SIDE, SIDE), mode="bilinear", align_corners=False
    )
    each = -logits.detach().double().log_softmax(1)
    total = weight = 0.0
    for picture, row, column in (mask >= 0).nonzero().tolist():
        there = int(mask[picture, row, column])
        share = 0.3 if there == 0 else 1.0
        total += share * float(each[picture, there, row, column])
        weight += share
    assert loss.item() == pytest.approx(total / weight, rel=1e-5)


@pytest.mark.parametrize("kind", ["classification", "detection", "segmentation"])
def test_who_knows_everything_scores_one_and_who_does_not_look_less(kind, scenes):
    test = scenes.part("test")
    expert = expert_for(config(kind), scenes)
    data, train = expert_data(expert, test, None), expert_data(expert, scenes.part("train"), None)
    boxes, classes, _ = test.boxes.padded(np.arange(len(test)))
    truths = {
        "classification": torch.from_numpy(test.labels).float(),
        "detection": Detections(torch.from_numpy(boxes), torch.from_numpy(classes), torch.ones(classes.shape)),
        "segmentation": torch.from_numpy(test.masks.array).long(),
    }
    Knowing(expert, truths[kind])
    scores = measure_expert(expert, data, train=train, batch_size=4, backend="own")
    assert scores.value == pytest.approx(1.0)
    assert scores.pictures == 6
    (blind,) = scores.baselines.values()
    assert blind < 0.8
    if kind == "classification":
        frequency = scenes.part("train").labels.mean(0)
        known = [k for k in range(10) if test.labels[:, k].any()]
        assert blind == pytest.approx(test.labels[:, known].mean(0).mean())
        assert scores.details["blind_accuracy"] == pytest.approx(((frequency > 0.5) == test.labels).mean())


def test_captions_are_measured_beside_the_usual_words(scenes):
    train, test = scenes.part("train"), scenes.part("test")
    expert = expert_for(config("captioning"), train)
    scores = measure_expert(
        expert, expert_data(expert, test, None), train=expert_data(expert, train, None), batch_size=4
    )
    assert scores.metric == "token_accuracy"
    ids = [[*expert.tokenizer(text).input_ids] for text in train.pairs.captions]
    wanted = [[*expert.tokenizer(text).input_ids] for text in test.pairs.captions]
    right = count = 0
    for row in wanted:
        for place, token in enumerate(row):
            if place == 0:
                continue
            there = [one[place] for one in ids if len(one) > place]
            usual = min(set(there), key=lambda t: (-there.count(t), t)) if there else -1
            right += usual == token
            count += 1
    assert scores.details["tokens"] == count
    assert scores.baselines["usual_word"] == pytest.approx(right / count)


def test_measuring_asks_for_what_it_needs(scenes):
    expert = expert_for(config("segmentation"), scenes)
    with pytest.raises(ConfigError, match="without random changes"):
        measure_expert(expert, expert_data(expert, scenes, AugmentConfig(size=SIDE, rand_augment=0)))
    data = expert_data(expert, scenes, None)
    data.pairs = AnnotatedPairs(scenes.pairs, scenes.boxes, class_names=scenes.class_names)
    with pytest.raises(DataError, match="no picture has masks, which a segmentation expert is measured by"):
        measure_expert(expert, data)


def test_the_method_is_the_experts_loss(scenes):
    expert = expert_for(config("detection"), scenes).eval()
    method = ExpertMethod(expert)
    batch = batch_of(expert, scenes)
    out = method.training_step(batch, Progress())
    torch.testing.assert_close(out.loss, expert.loss(batch)[0])
    torch.testing.assert_close(method.encode(batch), expert.features(batch["view"]).mean((2, 3)))
    groups = method.parameter_groups(0.1)
    assert sum(len(group["params"]) for group in groups) == len(list(expert.parameters()))
    assert all(p.ndim < 2 for p in groups[1]["params"])


def test_the_sample_experts_are_of_each_kind_and_no_two_alike():
    assert tuple(EXPERTS) == KINDS
    built = {kind: build_expert(one.model_copy(update={"class_names": ("a", "b")})) for kind, one in EXPERTS.items()}
    assert len({(e.grid, e.num_features) for e in built.values()}) == 4
    assert all(sample_fit(kind).steps == sample_fit(kind).steps for kind in KINDS)
