"""Patch features and the two zero-shot evaluations: closed forms, float64 loops, invariances, controls, bad input."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from sklearn.metrics import average_precision_score, roc_auc_score

from mc_core.errors import ConfigError, DataError
from mc_vision.data.mask_layouts import open_masks
from mc_vision.data.masks import BACKGROUND, VOID, MaskedImages, MaskedScenes
from mc_vision.encoders import TimmEncoder
from mc_vision.encoders_config import EncoderConfig
from mc_vision.patch_evaluation import (
    THRESHOLDS,
    PatchProtocol,
    central_patches,
    connected_similarity,
    evaluate_patches,
)
from mc_vision.patch_evaluation.segmentation import (
    _GRID,
    SegmentationTally,
    drawn_patches,
    pixel_ious,
    rank_patches,
    threshold_ious,
)
from mc_vision.patch_evaluation.similarity import BINS, SimilarityTally
from mc_vision.patch_figures import similarity_histograms, threshold_curves
from mc_vision.patches import (
    MIXED,
    check_size,
    color_features,
    image_tensor,
    patch_features,
    patch_objects,
    patch_size,
    random_twin,
    similarity_matrix,
    token_lengths,
    without_patches,
)

PATCH, GRID = 4, 8
SIDE = PATCH * GRID


def vit(**options) -> TimmEncoder:
    torch.manual_seed(0)
    return TimmEncoder(EncoderConfig(backbone="moco-vit-tiny-8", image_size=32, **options)).eval()


def blocks(seed=0, void=False) -> np.ndarray:
    """(SIDE, SIDE) two to four objects of whole patches on a ground; with ``void`` also a void corner."""
    rng = np.random.default_rng(seed)
    labels = np.full((GRID, GRID), BACKGROUND)
    for k in range(rng.integers(2, 5)):
        row, column = rng.integers(0, GRID - 2, 2)
        labels[row : row + rng.integers(2, 4), column : column + rng.integers(2, 4)] = k
    if void:
        labels[-2:, -3:] = VOID
    labels = np.unique(labels, return_inverse=True)[1].reshape(labels.shape) - (2 if void else 1)
    return labels.astype(np.int32).repeat(PATCH, 0).repeat(PATCH, 1)


def owned(objects, **options):
    return patch_objects(objects, int(objects.max()) + 1, PATCH, **options)


def random_features(seed=0, dim=6):
    z = torch.randn(GRID, GRID, dim, generator=torch.Generator().manual_seed(seed))
    return F.normalize(z + 0.7, dim=2)


def cluster_features(labels, dim=8):
    """One axis for each label."""
    return F.one_hot(labels - labels.min(), dim).float()


def tallied(z, objects, **options):
    protocol = PatchProtocol(size=SIDE, **options)
    tally = SegmentationTally(protocol, "instance")
    patches = owned(objects)
    tally.add(similarity_matrix(z), patches, objects, name="a", group="a", categories=None)
    return tally.result()


def test_features_are_the_normalised_tokens():
    encoder = vit()
    x = torch.randn(2, 3, 32, 48)
    z = patch_features(encoder, x)
    assert z.shape == (2, 4, 6, 96)
    assert torch.allclose(z.norm(dim=3), torch.ones(2, 4, 6), atol=1e-6)
    with torch.no_grad():
        assert torch.equal(z.flatten(1, 2), F.normalize(encoder.forward_tokens(x), dim=2))
        assert torch.equal(patch_features(encoder, x, layer=3), z)
        # the last LayerNorm makes the difference between the last block's output and the tokens
        bare = patch_features(encoder, x, norm=False).flatten(1, 2)
        tokens = encoder.backbone.forward_intermediates(
            x, indices=1, norm=False, output_fmt="NLC", intermediates_only=True
        )
        assert torch.allclose(bare, F.normalize(tokens[0], dim=2))
        normed = patch_features(encoder, x, layer=1)
        assert not torch.allclose(normed, z, atol=1e-3)


def test_keys_are_those_of_the_attention():
    encoder = vit()
    x = torch.randn(1, 3, 32, 32)
    seen = []
    handle = encoder.backbone.blocks[2].register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        z = patch_features(encoder, x, layer=2, keys=True)
        handle.remove()
        block = encoder.backbone.blocks[2]
        weight, bias = (p.chunk(3)[1] for p in (block.attn.qkv.weight, block.attn.qkv.bias))
        keys = F.linear(block.norm1(seen[0]), weight, bias)[:, 1:]
    assert torch.allclose(z.flatten(1, 2), F.normalize(keys, dim=2), atol=1e-6)
    assert not block.attn.qkv._forward_hooks
    with pytest.raises(ConfigError, match="layer 4: backbone 'moco-vit-tiny-8' has the layers 0 to 3"):
        patch_features(encoder, x, layer=4)


@pytest.mark.parametrize("name", ["resnet10-w16", "test_convnext"])
def test_encoders_without_patch_tokens_say_what_they_serve(name):
    encoder = TimmEncoder(EncoderConfig(backbone=name, image_size=32)).eval()
    for wrong in (lambda: patch_size(encoder), lambda: evaluate_patches({"a": encoder}, MaskedScenes(1))):
        with pytest.raises(ConfigError, match=f"backbone '{name}' has no patch tokens .* pretrain, embed, export and"):
            wrong()
    with pytest.raises(ConfigError, match="encoder Flatten has no patch tokens"):
        patch_size(torch.nn.Flatten())


def test_images_become_squares():
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8))
    x = image_tensor([image, image.resize((9, 50))], 16, patch=8)
    assert x.shape == (2, 3, 16, 16)
    pixels = np.asarray(image.resize((16, 16), Image.Resampling.BILINEAR, reducing_gap=3.0)) / 255
    expected = (pixels - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    assert np.allclose(x[0].permute(1, 2, 0), expected, atol=1e-5)
    assert image_tensor([image], (8, 24), mean=(0.5,), std=(0.5,)).shape == (1, 1, 8, 24)
    with pytest.raises(DataError, match=r"b.png is 30×20 pixels, smaller than one patch \(32×32\)"):
        image_tensor([image], 64, patch=32, names=["b.png"])
    with pytest.raises(ConfigError, match="image size 480 is not filled by patches of 14 pixels: take 476 or 490"):
        check_size(480, 14)


def test_random_twin_is_untrained_and_leaves_the_random_state():
    encoder = vit()
    with torch.no_grad():
        encoder.backbone.norm.weight.add_(1)
    state = torch.random.get_rng_state()
    twin, same = random_twin(encoder, 1), random_twin(encoder, 1)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert (twin.backbone.norm.weight == 1).all()
    weights = [e.backbone.blocks[0].attn.qkv.weight for e in (twin, same, random_twin(encoder, 2), encoder)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    assert not torch.equal(weights[0], weights[3])


def test_color_features_by_loop():
    x = torch.randn(1, 3, 8, 12)
    z = color_features(x, 4)
    assert z.shape == (1, 2, 3, 6)
    for row in range(2):
        for column in range(3):
            patch = x[0, :, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4].flatten(1)
            expected = torch.cat([patch.mean(1), patch.std(1, correction=0)])
            assert torch.allclose(z[0, row, column], expected / expected.norm(), atol=1e-5)


def test_patches_of_objects_by_loop():
    rng = np.random.default_rng(1)
    for _ in range(20):
        objects = rng.integers(-2, 3, (SIDE // 2, SIDE // 2)).astype(np.int32).repeat(2, 0).repeat(2, 1)
        found = patch_objects(objects, 4, PATCH, least=3)
        labels = np.full((GRID, GRID), MIXED)
        for row in range(GRID):
            for column in range(GRID):
                patch = objects[PATCH * row : PATCH * (row + 1), PATCH * column : PATCH * (column + 1)]
                for value in (BACKGROUND, VOID, 3, 2, 1, 0):  # objects before the rest, the first before others
                    if (patch == value).mean() >= 0.5:
                        labels[row, column] = value
        sizes = [(labels == k).sum() for k in range(4)]
        kept = [k for k in range(4) if sizes[k] >= 3]
        assert found.kept.tolist() == kept
        assert found.skipped == 4 - len(kept)
        for k in range(4):
            if k not in kept:
                labels[labels == k] = MIXED
        for position, k in enumerate(kept):
            assert (found.members[position].numpy() == (labels == k)).all()
        assert ((found.labels < 0).numpy() == (labels < 0)).all()
        assert (found.labels.numpy()[labels < 0] == labels[labels < 0]).all()


def test_central_patch_by_loop():
    rng = np.random.default_rng(0)
    masks = torch.from_numpy(rng.random((30, 6, 7)) < rng.uniform(0.2, 1, (30, 1, 1)))
    masks[:, 2, 3] = True
    for mask, found in zip(masks, central_patches(masks).tolist(), strict=True):
        outside = [
            (i - 1, j - 1) for i in range(8) for j in range(9) if not (0 < i < 7 and 0 < j < 8 and mask[i - 1, j - 1])
        ]
        distance = {
            (i, j): min((i - a) ** 2 + (j - b) ** 2 for a, b in outside)
            for i in range(6)
            for j in range(7)
            if mask[i, j]
        }
        assert divmod(found, 7) == max(distance, key=lambda p: (distance[p], -p[0], -p[1]))


def test_drawn_prompts_lie_on_the_object_and_are_reproducible():
    member = owned(blocks(2)).members
    drawn = drawn_patches(member, 200, seed=1, name="a")
    for mask, prompts in zip(member.flatten(1), drawn, strict=True):
        assert mask[prompts].all()
        assert set(prompts.tolist()) == set(mask.nonzero()[:, 0].tolist())
    assert torch.equal(drawn[:, :5], drawn_patches(member, 5, seed=1, name="a"))
    assert not torch.equal(drawn, drawn_patches(member, 200, seed=2, name="a"))
    assert not torch.equal(drawn, drawn_patches(member, 200, seed=1, name="b"))


def naive_iou(s, member, counted, t):
    chosen = counted & (s > t)
    member = member & counted
    return (chosen & member).sum() / (chosen | member).sum()


@pytest.mark.parametrize("seed", range(4))
def test_scores_of_patches_by_loops(seed):
    """IoU at every threshold, the best of any, average precision and AUC; with ties, and with void patches."""
    objects = blocks(seed, void=True)
    patches = owned(objects)
    gram = similarity_matrix(random_features(seed)).mul(20 + seed).round().div(20 + seed)  # many ties
    member = patches.members.flatten(1)
    prompt = central_patches(patches.members)
    s, counted = gram[prompt], patches.labels.flatten() != VOID
    curves = threshold_ious(s, member, counted)
    ranked = rank_patches(s, member, counted, prompt)
    assert curves.dtype == torch.float64
    for row in range(len(s)):
        values, mask, kept = s[row].numpy(), member[row].numpy(), counted.numpy()
        for column, t in enumerate(THRESHOLDS):
            assert curves[row, column].item() == pytest.approx(naive_iou(values, mask, kept, t), abs=1e-12)
        cuts = [-2.0, *np.unique(values)]
        best = max(naive_iou(values, mask, kept, t) for t in cuts)
        assert ranked.oracle[row].item() == pytest.approx(best, abs=1e-12)
        others = kept.copy()
        others[prompt[row]] = False
        y, x = mask[others], values[others]
        assert ranked.average_precision[row].item() == pytest.approx(average_precision_score(y, x), abs=1e-12)
        wins = [(a > b) + 0.5 * (a == b) for a in x[y] for b in x[~y]]
        assert ranked.auc[row].item() == pytest.approx(np.mean(wins), abs=1e-12)
        assert ranked.auc[row].item() == pytest.approx(roc_auc_score(y, x), abs=1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_scores_of_pixels_by_loop(seed):
    objects = blocks(seed, void=True)
    objects[1, ::3] = VOID
    patches = owned(objects)
    s = similarity_matrix(random_features(seed))[central_patches(patches.members)].unflatten(1, (GRID, GRID))
    fine = pixel_ious(s, patches.kept, torch.from_numpy(objects))
    assert fine.shape == (len(s), 2001)
    assert np.allclose((_GRID - 1000) / 1000, THRESHOLDS)  # where the curve reads this grid
    large = F.interpolate(s[:, None].float(), size=(SIDE, SIDE), mode="bilinear", align_corners=False)[:, 0].numpy()
    for row, own in enumerate(patches.kept.tolist()):
        for level in range(0, 2001, 37):
            t = (level - 1000) / 1000
            if np.abs(large[row] - t).min() > 1e-6:  # else float32 may decide either way
                expected = naive_iou(large[row], objects == own, objects != VOID, t)
                assert fine[row, level].item() == pytest.approx(expected, abs=1e-12)


def test_limits_of_the_threshold():
    """Below every similarity the mask is everything; at 1 it is empty, even for the prompt itself."""
    objects = blocks(1)
    patches = owned(objects)
    member = patches.members.flatten(1)
    s = similarity_matrix(random_features(1))[central_patches(patches.members)].clamp(min=0)
    assert s.amax(1).tolist() == [1.0] * len(s)
    curves = threshold_ious(s, member, torch.ones(GRID**2, dtype=torch.bool))
    assert torch.allclose(curves[:, 0], member.double().mean(1))
    assert (curves[:, -1] == 0).all()
    fine = pixel_ious(s.unflatten(1, (GRID, GRID)), patches.kept, torch.from_numpy(objects))
    inside = torch.stack([torch.from_numpy(objects == k) for k in patches.kept.tolist()]).flatten(1)
    assert torch.allclose(fine[:, 900], inside.double().mean(1))
    assert (fine[:, -1] == 0).all()


def test_block_constant_features_are_segmented_exactly():
    """Each object has its own axis: IoU 1 for 0 ≤ t < 1, everything for t < 0."""
    objects = blocks(3)
    result = tallied(cluster_features(owned(objects).labels), objects)
    for scores in result.prompts.values():
        curve = dict(zip(THRESHOLDS, scores.patch.curve, strict=True))
        assert all(curve[t] == 1 for t in THRESHOLDS if 0 <= t < 1)
        assert curve[1.0] == 0
        assert curve[-0.02] < 1
        assert (scores.patch.best, scores.patch.oracle) == (1, 1)
        assert (scores.average_precision, scores.auc) == (1, 1)
        assert scores.pixel is not None
        assert 0.6 < scores.pixel.best < scores.pixel.oracle + 1e-9  # bilinear corners are round
    assert result.threshold == 0


def test_constant_features_know_nothing():
    objects = blocks(4)
    patches = owned(objects)
    result = tallied(torch.ones(GRID, GRID, 5), objects)
    share = patches.members.flatten(1).double().mean(1)
    for scores in result.prompts.values():
        assert scores.auc == 0.5
        expected = (share * GRID**2 - 1) / (GRID**2 - 1)  # the prompt is not counted
        assert scores.average_precision == pytest.approx(expected.mean().item())
        assert scores.patch.oracle == scores.patch.best == pytest.approx(share.mean().item())


def test_rotation_and_scale_change_nothing():
    objects, z = blocks(5), random_features(5)
    rotation = torch.linalg.qr(torch.randn(6, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64))[0]
    turned = (z.double() @ rotation) * 17.3
    for options in ({}, {"connected": True}):
        before, after = (tallied(features, objects, **options).to_dict() for features in (z.double(), turned))
        assert before["prompts"]["center"]["patch"] == after["prompts"]["center"]["patch"]
        assert before["prompts"]["random"]["auc"] == after["prompts"]["random"]["auc"]
        pixel = [np.array(r["prompts"]["center"]["pixel"]["curve"]) for r in (before, after)]
        assert np.allclose(*pixel, atol=1e-3)


@pytest.mark.parametrize("seed", range(4))
def test_curve_below_oracle(seed):
    result = tallied(random_features(seed), blocks(seed, void=seed % 2 == 0))
    for scores in result.prompts.values():
        for level in (scores.patch, scores.pixel):
            assert level is not None
            assert max(level.curve) == level.best <= level.oracle <= 1


def test_connected_similarity_is_the_component_at_every_threshold():
    s = similarity_matrix(random_features(7))[torch.tensor([9, 40])].unflatten(1, (GRID, GRID))
    found = connected_similarity(s, torch.tensor([9, 40]))
    for row, start in enumerate((9, 40)):
        for t in np.linspace(-0.3, 0.99, 9):
            chosen = s[row] > t
            todo, seen = [divmod(start, GRID)], set()
            while todo:
                i, j = todo.pop()
                if (i, j) in seen or not (0 <= i < GRID and 0 <= j < GRID) or not chosen[i, j]:
                    continue
                seen.add((i, j))
                todo += [(i + a, j + b) for a in (-1, 0, 1) for b in (-1, 0, 1)]
            assert {tuple(p) for p in (found[row] > t).nonzero().tolist()} == seen


def test_tuning_sees_other_images_and_classes_count_alike():
    protocol = PatchProtocol(size=SIDE, prompts=("center",), pixels=False, tuning_share=0.2)
    tally = SegmentationTally(protocol, "class region")
    per_image = []
    for i in range(10):
        objects, z = blocks(i), random_features(i)
        patches = owned(objects)
        categories = np.arange(int(objects.max()) + 1) % 3
        gram = similarity_matrix(z)
        tally.add(gram, patches, objects, name=str(i), group=f"g{i // 2}", categories=categories)
        prompt = central_patches(patches.members)
        curves = threshold_ious(gram[prompt], patches.members.flatten(1), torch.ones(GRID**2, dtype=torch.bool))
        per_image.append((f"g{i // 2}", curves.numpy(), categories[patches.kept.numpy()]))
    result = tally.result()
    assert (result.images, result.tuning_groups) == (10, 1)
    tuning_I, _ = tally._split()
    groups = [group for group, curves, _ in per_image for _ in curves]
    chosen = {group for group, tuned in zip(groups, tuning_I, strict=True) if tuned}
    assert len(chosen) == 1
    tuning = np.concatenate([c for g, c, _ in per_image if g in chosen])
    rest = np.concatenate([c for g, c, _ in per_image if g not in chosen])
    classes = np.concatenate([k for g, _, k in per_image if g not in chosen])
    at = tuning.mean(0).argmax()
    scores = result.prompts["center"].patch
    assert result.threshold == THRESHOLDS[at]
    assert scores.tuned == pytest.approx(rest[:, at].mean())
    assert scores.by_class["tuned"] == pytest.approx(
        np.mean([rest[classes == k, at].mean() for k in np.unique(classes)])
    )
    everything = np.concatenate([c for _, c, _ in per_image])
    assert scores.curve == pytest.approx(everything.mean(0).tolist())


def test_one_image_cannot_be_held_out():
    result = tallied(random_features(), blocks())
    assert result.tuning_groups == 0
    assert math.isnan(result.prompts["center"].patch.tuned)


def similarities(*images, background=False):
    tally = SimilarityTally(background=background)
    for z, objects in images:
        tally.add(similarity_matrix(z), owned(objects))
    return tally.result()


@pytest.mark.parametrize("background", [False, True])
def test_similarities_by_loops(background):
    images = [(random_features(i), blocks(i, void=i == 1)) for i in range(3)]
    intra, inter, pooled = [], [], ({}, {})
    for z, objects in images:
        labels = owned(objects).labels.flatten().tolist()
        if background:
            labels = [max(labels) + 1 if label == BACKGROUND else label for label in labels]
        gram = similarity_matrix(z).numpy()
        names = sorted({label for label in labels if label >= 0})
        where = {k: [p for p, label in enumerate(labels) if label == k] for k in names}
        for a in names:
            for b in names:
                if b < a:
                    continue
                pairs = [(p, q) for p in where[a] for q in where[b] if a != b or p < q]
                (intra if a == b else inter).append([gram[p, q] for p, q in pairs])
                for p, q in pairs:
                    apart = round(math.hypot(p // GRID - q // GRID, p % GRID - q % GRID))
                    pooled[a != b].setdefault(apart, []).append(gram[p, q])
    h_intra, h_inter = (
        np.mean([np.histogram(values, BINS, (-1, 1))[0] / len(values) for values in kind], axis=0)
        for kind in (intra, inter)
    )
    result = similarities(*images, background=background)
    assert np.allclose(result.intra_histogram, h_intra)
    assert np.allclose(result.inter_histogram, h_inter)
    assert (result.objects, result.pairs, result.images) == (len(intra), len(inter), 3)
    means = [np.mean([np.mean(values) for values in kind]) for kind in (intra, inter)]
    assert (result.mean_intra, result.mean_inter) == pytest.approx(means)
    assert result.gap == pytest.approx(means[0] - means[1])
    assert result.overlap == pytest.approx(np.minimum(h_intra, h_inter).sum())
    auc = sum(
        x * y * ((i > j) + 0.5 * (i == j)) for i, x in enumerate(h_intra) for j, y in enumerate(h_inter) if x and y
    )
    assert result.auc == pytest.approx(auc)
    shared = sorted(pooled[0].keys() & pooled[1].keys())
    weights = [min(len(pooled[0][d]), len(pooled[1][d])) for d in shared]
    gaps = [np.mean(pooled[0][d]) - np.mean(pooled[1][d]) for d in shared]
    assert result.matched_gap == pytest.approx(np.average(gaps, weights=weights))


def test_closed_forms_of_similarity():
    objects = blocks(6)
    same = similarities((torch.ones(GRID, GRID, 4), objects))
    assert (same.overlap, same.auc, same.gap) == (1, 0.5, 0)
    apart = similarities((cluster_features(owned(objects).labels), objects))
    assert (apart.overlap, apart.auc, apart.mean_intra, apart.mean_inter, apart.matched_gap) == (0, 1, 1, 0, 1)


def test_random_unit_features():
    """Both means are 0, the histograms meet, and similarities have a standard deviation of 1/√D."""
    dim = 64
    images = []
    for i in range(40):
        z = torch.randn(GRID, GRID, dim, generator=torch.Generator().manual_seed(i))
        images.append((z, blocks(i)))
    result = similarities(*images)
    assert abs(result.mean_intra) < 0.01
    assert abs(result.mean_inter) < 0.01
    assert result.overlap > 0.85  # → 1 with more pairs
    assert result.auc == pytest.approx(0.5, abs=0.02)
    centre = (np.arange(BINS) + 0.5) / (BINS / 2) - 1
    spread = math.sqrt(np.average(centre**2, weights=result.inter_histogram))
    assert spread == pytest.approx(1 / math.sqrt(dim), rel=0.05)


def test_similarity_needs_two_objects():
    one = np.full((SIDE, SIDE), BACKGROUND, np.int32)
    one[: 2 * PATCH, : 3 * PATCH] = 0
    with pytest.raises(DataError, match="needs an image with two objects"):
        similarities((random_features(), one))
    assert similarities((random_features(), one), background=True).pairs == 1


class Listed(MaskedImages):
    """Masked images from memory."""

    def __init__(self, items):
        super().__init__("memory", "instance", [str(i) for i in range(len(items))])
        self.items = items

    def _load(self, index):
        image, objects = self.items[index]
        return image, objects, np.arange(int(objects.max()) + 1), None


def test_evaluation_with_controls():
    data = MaskedScenes(6, size=64, digits=(2, 2), seed=1)
    protocol = PatchProtocol(size=64, batch_size=4, draws=2)
    calls = []
    results = evaluate_patches(
        {"trained": vit()}, data, protocol, progress=lambda done, total: calls.append((done, total))
    )
    assert list(results) == ["trained", "random init", "mean colour", "position only"]
    assert calls == [(4, 12), (6, 12), (10, 12), (12, 12)]
    counts = {(r.segmentation.objects, r.segmentation.skipped, r.similarity.pairs) for r in results.values()}
    assert len(counts) == 1
    assert json.loads(json.dumps(results["trained"].to_dict()))["segmentation"]["kind"] == "instance"
    # one at a time gives the same
    single = evaluate_patches(
        {"trained": vit()}, data, protocol.model_copy(update={"batch_size": 1, "controls": False})
    )
    assert list(single) == ["trained"]
    for kind in ("center", "random"):
        pair = [r["trained"].segmentation.prompts[kind] for r in (results, single)]
        assert pair[0].average_precision == pytest.approx(pair[1].average_precision, abs=1e-5)
    assert results["trained"].similarity.overlap == pytest.approx(single["trained"].similarity.overlap, abs=1e-2)


def test_colour_blocks_are_won_by_the_colour_control():
    items = []
    for i in range(4):
        objects = blocks(i).repeat(2, 0).repeat(2, 1)
        paint = np.random.default_rng(i).integers(0, 256, (int(objects.max()) + 2, 3), dtype=np.uint8)
        items.append((Image.fromarray(paint[objects + 1]), objects))
    protocol = PatchProtocol(size=64, prompts=("center",))
    results = evaluate_patches({"vit": vit()}, Listed(items), protocol)
    scores = {name: result.segmentation.prompts["center"] for name, result in results.items()}
    assert scores["mean colour"].patch.oracle > 0.95
    assert scores["mean colour"].auc > 0.98 > scores["position only"].auc
    assert results["mean colour"].similarity.mean_intra > 0.999


def test_position_only_is_the_mean_map():
    """With one image its own map is the mean, so the control equals the model."""
    pixels = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
    protocol = PatchProtocol(size=64, pixels=False, protocols=("prompt-segmentation",))
    results = evaluate_patches({"vit": vit()}, Listed([(Image.fromarray(pixels), blocks(1))]), protocol)
    model, position = (results[name].segmentation.prompts["center"].patch for name in ("vit", "position only"))
    assert position.oracle == model.oracle
    assert results["vit"].similarity is None


@pytest.mark.parametrize("layer", [-1, 1])
def test_lengths_of_tokens_are_those_before_the_last_norm(layer):
    encoder, x = vit(), torch.randn(2, 3, 32, 48)
    with torch.no_grad(), token_lengths(encoder, layer) as found:
        patch_features(encoder, x, layer=layer)
        tokens = encoder.backbone.forward_intermediates(
            x, indices=[layer % 4], norm=False, output_fmt="NLC", intermediates_only=True
        )
    torch.testing.assert_close(found[0], tokens[0].norm(dim=2))
    patch_features(encoder, x)
    assert len(found) == 2  # nothing is collected afterwards


def with_long_tokens(where_hw: torch.Tensor) -> TimmEncoder:
    """An encoder of which some patches' last tokens are 40 times as long, which its last LayerNorm hides."""
    encoder = vit()
    factor_N1 = torch.cat([torch.ones(1), 1 + 39 * where_hw.flatten().float()])[:, None]
    encoder.backbone.blocks[-1].register_forward_hook(lambda module, inputs, tokens: tokens * factor_N1)
    return encoder


def test_long_tokens_are_counted_or_left_out():
    where_hw = torch.zeros(8, 8, dtype=torch.bool)
    where_hw[2, 3:6] = where_hw[7, 0] = True
    generator = np.random.default_rng(0)
    images = [Image.fromarray(generator.integers(0, 256, (64, 64, 3), dtype=np.uint8)) for _ in range(3)]
    objects = [blocks(i).repeat(2, 0).repeat(2, 1) for i in range(3)]
    large = where_hw.numpy().repeat(8, 0).repeat(8, 1)
    protocol = PatchProtocol(size=64, controls=False)
    excluding = protocol.model_copy(update={"long_tokens": "exclude"})
    encoder = with_long_tokens(where_hw)
    counted = evaluate_patches({"a": encoder}, Listed(list(zip(images, objects, strict=True))), protocol)["a"]
    excluded = evaluate_patches({"a": encoder}, Listed(list(zip(images, objects, strict=True))), excluding)["a"]
    void = [np.where(large, VOID, o) for o in objects]
    expected = evaluate_patches({"a": vit()}, Listed(list(zip(images, void, strict=True))), protocol)["a"]
    assert counted.long_share == excluded.long_share == 4 / 64
    assert expected.long_share == 0
    for kind, scores in excluded.segmentation.prompts.items():
        assert scores.patch.curve == pytest.approx(expected.segmentation.prompts[kind].patch.curve, abs=1e-6)
        assert scores.pixel.curve == pytest.approx(expected.segmentation.prompts[kind].pixel.curve, abs=1e-3)
    assert excluded.similarity.mean_intra == pytest.approx(expected.similarity.mean_intra, abs=1e-6)
    assert excluded.segmentation.prompts["center"].patch.curve != counted.segmentation.prompts["center"].patch.curve
    plain = evaluate_patches({"a": vit()}, Listed(list(zip(images, objects, strict=True))), protocol)["a"]
    assert counted.similarity.mean_intra == pytest.approx(plain.similarity.mean_intra, abs=1e-6)


def test_controls_without_tokens_have_no_long_ones():
    data = MaskedScenes(6, size=64, digits=(2, 2), seed=1)
    protocol = PatchProtocol(size=64, pixels=False, long_from=1.0001)
    results = evaluate_patches({"trained": vit()}, data, protocol)
    assert {name for name, r in results.items() if r.long_share is None} == {"mean colour", "position only"}
    assert results["trained"].long_share == pytest.approx(0.5, abs=0.1)
    assert json.loads(json.dumps(results["trained"].to_dict()))["long_share"] == results["trained"].long_share


def test_objects_without_enough_patches_left_are_skipped():
    objects = patch_objects(np.repeat([[0] * 16 + [1] * 16 + [-1] * 4], 4, 0).astype(np.int32), 2, 4)
    left = without_patches(objects, objects.labels == 1)
    assert left.labels.tolist() == [[0, 0, 0, 0, VOID, VOID, VOID, VOID, BACKGROUND]]
    assert (left.kept.tolist(), left.skipped) == ([0], 1)
    some = without_patches(objects, torch.tensor([[True, True, False, False, False, False, False, False, False]]))
    assert some.labels.tolist() == [[VOID, VOID, MIXED, MIXED, 0, 0, 0, 0, BACKGROUND]]
    assert (some.kept.tolist(), some.skipped) == ([1], 1)


def test_settings_load_no_torch():
    code = "import sys, mc_vision.patch_evaluation.config; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_several_encoders_have_their_own_controls():
    torch.manual_seed(0)
    other = TimmEncoder(EncoderConfig(backbone="test_vit", image_size=64)).eval()
    data = MaskedScenes(2, size=64, digits=(2, 2))
    protocol = PatchProtocol(size=192, pixels=False, protocols=("object-similarity",))
    found = list(evaluate_patches({"a": vit(), "b": vit(), "c": other}, data, protocol))
    assert found[:3] == ["a", "b", "c"]
    assert found[3:] == [
        "random init, a",
        "random init, c",
        "mean colour, 8 pixels",
        "mean colour, 16 pixels",
        "position only, a",
        "position only, b",
        "position only, c",
    ]


def test_bad_input():
    scenes = MaskedScenes(2, size=32, digits=(1, 1))
    with pytest.raises(ConfigError, match="image size 100 is not filled by patches of 8 pixels: take 96 or 104"):
        evaluate_patches({"a": vit()}, scenes, PatchProtocol(size=100))
    tiny = Listed([(Image.new("RGB", (64, 64)), np.pad(np.zeros((4, 4), np.int32), (0, 60), constant_values=-1))])
    with pytest.raises(
        DataError, match=r"memory: no object has 3 patches of 8 pixels at image size 64 \(1 smaller ones in 1"
    ):
        evaluate_patches({"a": vit()}, tiny, PatchProtocol(size=64))
    small = Listed([(Image.new("RGB", (7, 9)), np.zeros((9, 7), np.int32))])
    with pytest.raises(DataError, match=r"0 is 7×9 pixels, smaller than one patch \(8×8\)"):
        evaluate_patches({"a": vit()}, small, PatchProtocol(size=64))
    with pytest.raises(DataError, match="0 encoders and 2 images"):
        evaluate_patches({}, scenes)
    with pytest.raises(ConfigError, match="an encoder is named 'random init', as is a control"):
        evaluate_patches({"random init": vit()}, scenes, PatchProtocol(size=32))


def test_figures(tmp_path):
    data = MaskedScenes(3, size=64, digits=(2, 2), seed=1)
    results = evaluate_patches({"trained": vit()}, data, PatchProtocol(size=64, draws=1))
    curves = threshold_curves(results, tmp_path / "new" / "curves.png", prompt="random", level="pixel")
    histograms = similarity_histograms(results, tmp_path / "histograms.png")
    for path in (curves, histograms):
        with Image.open(path) as image:
            assert image.format == "PNG"
            assert 900 < image.width < 2500
            assert 500 < image.height < 2500
            assert len(image.convert("RGB").getcolors(1 << 24)) > 50
    alone = evaluate_patches(
        {"a": vit()}, data, PatchProtocol(size=64, pixels=False, prompts=("center",), controls=False)
    )
    with pytest.raises(DataError, match="no result has pixel scores of the prompt 'center'"):
        threshold_curves(alone, tmp_path / "none.png", level="pixel")
    with pytest.raises(DataError, match="there is no histogram"):
        similarity_histograms({}, tmp_path / "none.png")
    assert not (tmp_path / "none.png").exists()


@pytest.mark.skipif("MC_DATA" not in os.environ, reason="MC_DATA names no folder of real data")
@pytest.mark.parametrize("name", ["vision/camvid-street-masks.tar", "vision/bsds500-segments.tar"])
def test_real_masks_are_won_by_colour_over_position(name, tmp_path):
    """On real photographs mean colour ranks the patches of an object better than where they are, in an untrained ViT."""
    file = Path(os.environ["MC_DATA"]) / name
    if not file.is_file():
        pytest.skip(f"{file} is not there")
    data = open_masks(file, cache_dir=tmp_path)
    few = Listed([(item.image, item.objects) for item in (data[i] for i in range(0, 24, 3))])
    results = evaluate_patches({"vit": vit()}, few, PatchProtocol(size=128, pixels=False, seed=3))
    for result in results.values():
        scores = result.segmentation.prompts["center"]
        assert 0 < scores.patch.tuned <= 1
        assert scores.patch.best <= scores.patch.oracle
        assert 0 < result.similarity.overlap < 1
    assert results["mean colour"].similarity.gap > 0.1
    assert results["mean colour"].similarity.matched_gap > 0
