"""Heat maps against a literal Grad-CAM, and how boxes are measured."""

import runpy
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from mc_core.errors import ConfigError, DataError
from mc_core.modules import evaluating
from mc_vision_language.data.images import ArrayImages
from mc_vision_language.data.scene_tasks import scene_phrases
from mc_vision_language.encoders_config import VisionLanguageConfig
from mc_vision_language.model import VisionLanguageModel
from mc_vision_language.tasks import grounding
from mc_vision_language.tasks.grounding import (
    blind_boxes,
    grad_cam,
    ground,
    heat_map,
    measure_grounding,
    patch_maps,
    resized_map,
)

tiny = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("_tiny_tasks.py"))))
PHRASES = ["is it red", "what is it a large red three"]


def test_grad_cam_is_a_mean_of_attention_times_positive_gradient():
    generator = torch.Generator().manual_seed(0)
    attention, gradient = (torch.randn(2, 3, 4, 5, generator=generator) for _ in range(2))
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    found = grad_cam(attention, gradient, mask)
    for row in range(2):
        length = int(mask[row].sum())
        for column in range(5):
            expected = sum(
                float(attention[row, head, token, column]) * max(float(gradient[row, head, token, column]), 0.0)
                for head in range(3)
                for token in range(length)
            ) / (3 * length)
            assert float(found[row, column]) == pytest.approx(expected, abs=1e-5)


def nudged_score(model, pixels, ids, mask, layer, at, amount):
    """The logit of a match when one attention probability of one layer is changed by hand."""
    backbone = model.backbone
    keys = backbone.keys(backbone.image_tokens(pixels))
    states = backbone.text_states(ids, mask)
    own = mask.bool()[:, None, None]
    for place, (part, seen) in enumerate(zip(backbone.fusion.layers, keys.layers, strict=True)):
        attended = part.self_attention(states, part.self_attention.project(states), own)
        states = part.self_norm(states + attended)
        cross = part.cross_attention
        query = cross.query(states).unflatten(-1, (cross.heads, -1)).transpose(1, 2)
        weights = (query @ seen.key.transpose(2, 3) / query.shape[-1] ** 0.5).softmax(-1)
        if place == layer:
            weights = weights.clone()
            weights[at] += amount
        context = cross.output((weights @ seen.value).transpose(1, 2).flatten(2))
        states = part.cross_norm(states + context)
        states = part.norm(states + part.outer(torch.nn.functional.gelu(part.inner(states))))
        if place == layer:
            kept = weights
    return model.itm_head(states[:, 0])[:, 1], kept


@torch.no_grad()
def test_the_itm_map_by_finite_differences():
    """Every probability of the layer is nudged, the logit watched: no gradient of ours is trusted."""
    model = tiny.pretrained().double()
    ids, mask = model.tokens_of(PHRASES[:1])
    pixels = tiny.pixels(1).double()
    for layer in (0, 1):
        _, attention = nudged_score(model, pixels, ids, mask, layer, (0, 0, 0, 0), 0.0)
        heads, tokens, seen = attention.shape[1:]
        expected = torch.zeros(seen, dtype=torch.float64)
        for head in range(heads):
            for token in range(tokens):
                for column in range(seen):
                    up, down = (
                        nudged_score(model, pixels, ids, mask, layer, (0, head, token, column), step)[0]
                        for step in (1e-5, -1e-5)
                    )
                    slope = float((up - down) / 2e-5)
                    expected[column] += float(attention[0, head, token, column]) * max(slope, 0.0)
        expected = (expected / (heads * tokens))[1:].view(2, 2)
        found = patch_maps(model, pixels, ids, mask, layer=layer)[0]
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-9)
    default = patch_maps(model, pixels, ids, mask)
    torch.testing.assert_close(default, patch_maps(model, pixels, ids, mask, layer=0))  # the middle of two layers
    assert default.abs().max() > 0


def test_the_itc_map_takes_the_row_of_the_class_token():
    model = tiny.pretrained()
    ids, mask = model.tokens_of(PHRASES)
    pixels = tiny.pixels(2)
    tokens, attention = model.backbone.image(pixels, attention_of=-1)
    similarity = (model.backbone.embed_image_tokens(tokens) * model.backbone.embed_tokens(ids, mask)).sum()
    (gradient,) = torch.autograd.grad(similarity, attention)
    row = (attention * gradient.clamp_min(0))[:, :, 0].mean(1)[:, 1:]
    found = patch_maps(model, pixels, ids, mask, mode="itc")
    torch.testing.assert_close(found, row.view(2, 2, 2))
    assert found.abs().max() > 0


def test_without_a_layer_the_itc_map_is_of_the_last_block():
    given = tiny.encoders()
    torch.manual_seed(0)
    config = VisionLanguageConfig(**{**given, "image": given["image"].model_copy(update={"depth": 3})})
    model = VisionLanguageModel(config, tiny.tokenizer()).eval()
    ids, mask = model.tokens_of(PHRASES)
    maps = [patch_maps(model, tiny.pixels(2), ids, mask, mode="itc", layer=layer) for layer in (None, -1, 0, 1)]
    torch.testing.assert_close(maps[0], maps[1])
    assert not any(torch.allclose(maps[0], other) for other in maps[2:])


@pytest.mark.parametrize("mode", ["itm", "itc"])
def test_each_map_depends_on_its_own_pair_alone(mode):
    model = tiny.pretrained()
    ids, mask = model.tokens_of(PHRASES)
    together = patch_maps(model, tiny.pixels(2), ids, mask, mode=mode)
    for row, phrase in enumerate(PHRASES):
        alone = patch_maps(model, tiny.pixels(2)[row : row + 1], *model.tokens_of([phrase]), mode=mode)
        torch.testing.assert_close(alone[0], together[row], rtol=1e-4, atol=1e-7)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_modes_and_layers_that_do_not_exist():
    model = tiny.pretrained()
    ids, mask = model.tokens_of(PHRASES[:1])
    with pytest.raises(ConfigError, match="mode 'itx': choose itm or itc"):
        patch_maps(model, tiny.pixels(1), ids, mask, mode="itx")
    with pytest.raises(DataError, match="fusion layer 7"):
        patch_maps(model, tiny.pixels(1), ids, mask, layer=7)


def test_a_map_has_the_size_of_its_picture_and_is_nowhere_negative():
    model = tiny.pretrained()
    picture = np.random.default_rng(0).integers(0, 256, (30, 50, 3), dtype=np.uint8)
    heat = heat_map(model, picture, "is it red")
    assert heat.shape == (30, 50)
    assert heat.min() >= 0
    assert heat.dtype == np.float32
    found = ground(model, picture, "is it red")
    assert 0 <= found.box[0] < found.box[2] <= 50
    assert 0 <= found.box[1] < found.box[3] <= 30
    proposals = np.array([[0, 0, 10, 10], [5, 5, 40, 25]])
    assert list(ground(model, picture, "is it red", proposals=proposals).box) in proposals.tolist()
    assert not model.training


def test_a_map_is_resized_bicubically():
    patches = torch.tensor([[0.0, 1.0], [0.0, 0.0]])
    heat = resized_map(patches, (8, 6))
    assert heat.shape == (6, 8)
    assert np.unravel_index(heat.argmax(), heat.shape)[1] >= 5
    np.testing.assert_allclose(resized_map(torch.full((3, 3), 0.25), (9, 9)), 0.25, atol=1e-6)


def planted(monkeypatch, phrases, right):
    """A model that sees where things are: maps with the true box of some phrases, and something else for the others."""
    order = iter(range(len(phrases)))

    def maps(model, pixels, ids, mask, *, mode, layer):
        found = torch.zeros(len(pixels), 32, 32)
        for row in range(len(pixels)):
            number = next(order)
            x1, y1, x2, y2 = phrases.boxes[number].round().astype(int)
            if right[number]:
                found[row, y1:y2, x1:x2] = 1.0
            else:
                found[row, 0, 0] = 1.0
        return found

    monkeypatch.setattr(grounding, "patch_maps", maps)


def test_accuracy_counts_overlaps_of_a_half(monkeypatch):
    phrases = scene_phrases(tiny.scenes(6, 2)).part("train")
    right = np.arange(len(phrases)) % 3 > 0
    planted(monkeypatch, phrases, right)
    with evaluating(tiny.pretrained()):
        found = measure_grounding(tiny.pretrained(), phrases, batch_size=5)
    assert found.free_accuracy == pytest.approx(right.mean())
    assert found.pointing == pytest.approx(right.mean())
    assert found.accuracy >= right.mean()
    assert found.right[right].all()


def test_a_warm_point_finds_a_proposal_but_no_box_of_its_own(monkeypatch):
    phrases = scene_phrases(tiny.scenes(6, 2)).part("train")
    order = iter(range(len(phrases)))

    def points(model, pixels, ids, mask, *, mode, layer):
        found = torch.zeros(len(pixels), 32, 32)
        for row in range(len(pixels)):
            x, y = phrases.boxes[next(order)].reshape(2, 2).mean(0).astype(int)
            found[row, y, x] = 1.0
        return found

    monkeypatch.setattr(grounding, "patch_maps", points)
    found = measure_grounding(tiny.pretrained(), phrases)
    assert (found.accuracy, found.free_accuracy) == (1.0, 0.0)
    assert found.right.all()


def test_boxes_of_who_does_not_look():
    phrases = scene_phrases(tiny.scenes(8, 2)).part("train")
    found = blind_boxes(phrases)
    assert found["random_proposal"] == pytest.approx(0.5)  # two digits in each scene, apart
    assert found["whole_image"] == 0.0
    area = (phrases.boxes[:, 2:] - phrases.boxes[:, :2]).prod(1) / 32**2
    assert found["random_point"] == pytest.approx(area.mean())
    assert 0 <= found["centre_box"] <= 1
    assert ArrayImages is type(phrases.images)
