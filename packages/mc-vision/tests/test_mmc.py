"""MMC against loops in float64, closed forms, and what must not depend on how a step is divided."""

import copy
import math

import pytest
import torch
from pydantic import ValidationError

from mc_core.engine import Fit, Progress, fit
from mc_core.errors import ConfigError, DataError
from mc_core.export import load_model, save_model
from mc_core.random import BatchRandom
from mc_testkit.toys import image_pairs
from mc_vision.encoders import TimmEncoder
from mc_vision.encoders_config import EncoderConfig
from mc_vision.methods import METHODS
from mc_vision.methods.mmc.config import MMCConfig
from mc_vision.methods.mmc.loss import distillation
from mc_vision.methods.mmc.masking import (
    Corruption,
    block_masks,
    blocks_needed,
    corrupted,
    draw_corruption,
    noise_like,
    partner_shift,
    rows_from,
    token_mask,
)
from mc_vision.methods.mmc.model import MMC, TeacherCenter, reconstruction_loss
from mc_vision.methods.moco.config import MoCoV3Config
from mc_vision.methods.moco.model import MoCoV3
from mc_vision.recipe import resolve_recipe

ENCODER = {"backbone": "moco-vit-tiny-8", "image_size": 16}
SMALL = {"encoder": ENCODER, "dim": 8, "hidden_dim": 12, "contrast_hidden_dim": 12, "outputs": 10}
TEMPERATURES = {"student_temperature": 0.1, "teacher_temperature": 0.05}


def batch_of(count, seed=0, size=16, first=0):
    generator = torch.Generator().manual_seed(seed)
    views = {f"view_{i}": torch.randn(count, 3, size, size, generator=generator) for i in (1, 2)}
    return {**views, "index": torch.arange(first, first + count), "epoch": 0, "micro": 0}


def progress_at(step=0):
    return Progress(step, 100, 10, 6, run_seed=3)


def built(**fields):
    torch.manual_seed(0)
    method = MMC(MMCConfig.model_validate({**SMALL, **fields})).train()
    for parameter in method.parameters():  # a ViT starts with nearly equal features for all images: make them differ
        if parameter.ndim > 1:
            parameter.data.mul_(2)
    for parameter in method.teacher.parameters():
        parameter.data.add_(0.05 * torch.randn(parameter.shape))
    return method


def parts_of(batch, sizes):
    """The batch cut into micro-batches."""
    cut = {name: value.split(sizes) for name, value in batch.items() if isinstance(value, torch.Tensor)}
    return [{**batch, **{name: rows[i] for name, rows in cut.items()}, "micro": i} for i in range(len(sizes))]


# masking


def naive_mask(u_R4, target, height, width, max_side):
    mask = torch.zeros(height, width, dtype=torch.bool)
    sides = [max(1, int(max_side * side)) for side in (height, width)]
    if target == 0:
        return mask, mask
    for u in u_R4:
        tall, wide = 1 + int(u[0] * sides[0]), 1 + int(u[1] * sides[1])
        top, left = int(u[2] * (height + 1 - tall)), int(u[3] * (width + 1 - wide))
        before = mask.clone()
        mask[top : top + tall, left : left + wide] = True
        if mask.sum() >= target * height * width:
            break
    return mask, before


@pytest.mark.parametrize(("height", "width", "max_side"), [(32, 32, 0.3), (20, 37, 0.5), (4, 4, 0.3), (1, 3, 1.0)])
@pytest.mark.parametrize("ratio", [0.3, 0.5, 0.75, 0.8])
def test_masks_are_the_first_blocks_that_reach_the_target(height, width, max_side, ratio):
    rounds = blocks_needed(ratio, height, width, max_side)
    u = torch.rand(12, rounds, 4, generator=torch.Generator().manual_seed(1))
    target = torch.linspace(0.0, ratio, 12)
    masks = block_masks(u, target, height, width, max_side)
    for mask, blocks, share in zip(masks, u, target.tolist(), strict=True):
        expected, before = naive_mask(blocks, share, height, width, max_side)
        assert torch.equal(mask, expected)
        assert mask.sum() >= share * height * width
        assert before.sum() < share * height * width or share == 0


def test_masks_that_cannot_reach_their_target_use_all_blocks():
    u = torch.zeros(1, 62, 4)  # always the same single cell
    assert block_masks(u, torch.tensor([0.5]), 8, 8).sum() == 1


def test_the_share_that_is_corrupted_is_the_one_asked_for():
    random = BatchRandom(0, 0, torch.arange(400))
    drawn = draw_corruption(random, 32, 32, ratio=0.75, copy_p=0.5, copy_ratio=0.3)
    share = drawn.mask.float().mean((1, 2))
    assert 0.4 < drawn.copied.float().mean() < 0.6
    assert share[drawn.copied].min() >= 0.3
    assert share[drawn.copied].max() < 0.3 + 0.3**2
    masked = share[~drawn.copied]
    assert masked.min() >= 0.5
    assert masked.max() < 0.75 + 0.3**2
    assert 0.62 < masked.mean() < 0.68  # uniform between ½ and p, and half a block too much


def test_corruption_depends_on_seed_epoch_and_index_alone():
    def masks(seed, epoch, index):
        return draw_corruption(BatchRandom(seed, epoch, torch.tensor(index)), 32, 32)

    whole, part = masks(0, 0, [5, 6, 7, 8]), masks(0, 0, [7, 5])
    assert torch.equal(whole.mask[[2, 0]], part.mask)
    assert torch.equal(whole.copied[[2, 0]], part.copied)
    for other in (masks(1, 0, [7, 5]), masks(0, 1, [7, 5])):
        assert not torch.equal(part.mask, other.mask)


def test_aligned_blocks_hide_whole_patches():
    drawn = draw_corruption(BatchRandom(0, 0, torch.arange(8)), 32, 48, cell=(8, 16))
    cells = drawn.mask.unflatten(1, (4, 8)).unflatten(3, (3, 16))
    assert torch.equal(cells.amax((2, 4)), cells.amin((2, 4)))
    assert torch.equal(token_mask(drawn.mask, (8, 16)).view(8, 4, 3), cells.amax((2, 4)))


def test_partners_are_others_and_do_not_depend_on_micro_batches():
    rows = torch.arange(7)
    for step in range(30):
        shift = partner_shift(7, 0, step)
        partner = rows_from([rows], shift, 7)
        assert (partner != rows).all()
        assert torch.equal(partner.sort().values, rows)
        for sizes in ([3, 3, 1], [1, 6]):
            parts = rows.split(sizes)
            starts = [sum(sizes[:i]) for i in range(len(sizes))]
            cut = [rows_from(parts, start + shift, size) for start, size in zip(starts, sizes, strict=True)]
            assert torch.equal(torch.cat(cut), partner)
    assert {partner_shift(7, 0, step) for step in range(60)} == set(range(1, 7))


def test_an_image_is_masked_or_overlaid_but_not_both():
    x = torch.randn(4, 3, 8, 8)
    partner = x.roll(1, 0)
    mask = torch.rand(4, 8, 8) < 0.5
    copied = torch.tensor([True, False, True, False])
    result = corrupted(x, Corruption(mask, copied), partner)
    wide = mask[:, None].expand_as(x)
    assert torch.equal(result[~wide], x[~wide])
    assert torch.equal(result[copied][wide[copied]], partner[copied][wide[copied]])
    assert (result[~copied][wide[~copied]] == 0).all()
    noise = torch.full_like(x, 7.0)
    assert (corrupted(x, Corruption(mask, copied), partner, noise)[~copied][wide[~copied]] == 7).all()


def test_noise_is_standard_normal_and_another_for_each_view():
    noise = noise_like(torch.empty(8, 3, 64, 64), BatchRandom(0, 0, torch.arange(4)), 9)
    assert torch.isfinite(noise).all()
    assert abs(noise.mean()) < 0.01
    assert noise.std() == pytest.approx(1.0, abs=0.01)
    assert not torch.equal(noise[:4], noise[4:])


# distillation


def naive_distillation(z_s, w_s, z_t, w_t, center, tau_s, tau_t, weight=None):
    targets = ((z_t @ w_t.T - center) / tau_t).softmax(1)
    nll = -(targets * (z_s @ w_s.T / tau_s).log_softmax(1)).sum(1)
    return nll.mean() if weight is None else (nll * weight).sum()


def tokens(count=7, dim=4, classes=9, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    shapes = [(count, dim), (classes, dim), (count, dim), (classes, dim), (classes,)]
    return [torch.randn(shape, generator=generator, dtype=dtype) for shape in shapes]


@pytest.mark.parametrize("chunk", [None, 1, 3, 7])
@pytest.mark.parametrize("weighted", [False, True])
def test_distillation_is_the_dense_cross_entropy_with_its_gradient(chunk, weighted):
    z_s, w_s, z_t, w_t, center = tokens()
    weight = torch.rand(7, dtype=torch.float64) * torch.tensor([1, 1, 0, 1, 0, 1, 1]) if weighted else None
    found = []
    for dense in (True, False):
        a, b = z_s.clone().requires_grad_(), w_s.clone().requires_grad_()
        if dense:
            loss = naive_distillation(a, b, z_t, w_t, center, 0.1, 0.05, weight)
        else:
            loss, _ = distillation(a, b, z_t, w_t, center, **TEMPERATURES, row_weight_T=weight, chunk=chunk)
        (3 * loss).backward()
        found.append((loss.detach(), a.grad, b.grad))
    torch.testing.assert_close(found[1], found[0])


def test_distillation_is_at_least_the_teachers_entropy():
    z_s, w_s, z_t, w_t, center = tokens()
    loss, entropy = distillation(z_s, w_s, z_t, w_t, center, **TEMPERATURES)
    targets = ((z_t @ w_t.T - center) / 0.05).softmax(1)
    assert entropy == pytest.approx(float(-(targets * targets.log()).nan_to_num().sum(1).mean()))
    assert loss > entropy
    # equal if and only if the student's logits are the teacher's, temperatures and centre included
    same, own = distillation(2 * z_t, w_t, z_t, w_t, torch.zeros(9, dtype=z_t.dtype), **TEMPERATURES)
    torch.testing.assert_close(same, own)
    moved, own = distillation(2 * z_t, w_t, z_t, w_t, center, **TEMPERATURES)
    assert moved > own + 1e-3


def test_distillation_in_bfloat16_keeps_wide_softmaxes_and_small_gradients():
    inputs = [t.float() for t in tokens(count=64, dim=16, classes=512)]
    inputs[:4] = [torch.nn.functional.normalize(t, dim=1) for t in inputs[:4]]
    found = []
    for half in (False, True):
        z, w = inputs[0].clone().requires_grad_(), inputs[1].clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            loss, _ = distillation(z, w, *inputs[2:], **TEMPERATURES)
        assert loss.dtype == torch.float32
        loss.backward()
        found.append((loss.detach(), z.grad, w.grad))
    for exact, half in zip(*found, strict=True):
        assert (half - exact).norm() < 0.03 * exact.norm()


# the whole loss


def unit_rows(x):
    return x / x.norm(dim=-1, keepdim=True)


def naive_loss(method, batch, progress):
    """Everything again, image by image and in float64, from the networks' raw outputs."""
    config = method.config
    views = [batch["view_1"], batch["view_2"]]
    count, height = len(views[0]), method.patch[0]
    masks, corrupted_views = [], []
    random = BatchRandom(progress.run_seed, batch["epoch"], batch["index"])
    for v, x in enumerate(views, start=1):
        c = config.corruption
        drawn = draw_corruption(
            random, *x.shape[2:], cell=method.patch if config.aligned else (1, 1), ratio=c.ratio, stream=0xA0 + v
        )
        shift = partner_shift(count, progress.run_seed, progress.step, 0xC0 + v)
        images = []
        for i in range(count):
            image, hidden = x[i].clone(), drawn.mask[i]
            image[:, hidden] = x[(i + shift) % count][:, hidden] if drawn.copied[i] else 0.0
            images.append(image)
        masks.append(drawn.mask)
        corrupted_views.append(torch.stack(images))
    with torch.no_grad():
        student, teacher = method.online, method.teacher.module
        s = [student(x) for x in corrupted_views]
        t = [teacher(x) for x in views]
        found = {}
        if config.reconstruction_weight:
            total = pixels = 0.0
            for v in range(2):
                made = method.reconstruction(s[v].patches, 16 // height).double()
                for i in range(count):
                    for row, column in masks[v][i].nonzero().tolist():
                        error = made[i, :, row, column] - views[v][i, :, row, column].double()
                        total, pixels = total + float(error.abs().mean()), pixels + 1
            found["reconstruction"] = total / pixels
        tau_t = config.teacher_temperature_at(progress.epoch)
        w_s, w_t = (unit_rows(net.classes.weight.double()) if net.classes else None for net in (student, teacher))

        def cross_entropy(score_s, score_t, center):
            p = ((score_t - center.mean.double()) / tau_t).softmax(-1)
            return -float((p * (score_s / config.student_temperature).log_softmax(-1)).sum())

        if config.distillation_weight:
            total = 0.0
            for v in range(2):
                for i in range(count):
                    hidden = [
                        masks[v][i, 8 * (n // 2) : 8 * (n // 2) + 8, 8 * (n % 2) : 8 * (n % 2) + 8].any()
                        for n in range(4)
                    ]
                    chosen = [n for n in range(4) if config.distill_on == "all" or hidden[n]]
                    for n in chosen:
                        pair = w_s @ s[v].local[i, n].double(), w_t @ t[v].local[i, n].double()
                        total += cross_entropy(*pair, method.center) / max(len(chosen), 1) / (2 * count)
            found["distillation"] = total
        if config.global_to_local_weight:
            total = 0.0
            for v in range(2):
                for i in range(count):
                    mean = torch.stack([w_s @ s[v].local[i, n].double() for n in range(4)]).mean(0)
                    image = w_t @ t[1 - v].image[i].double()
                    total += cross_entropy(mean, image, method.image_center) / (2 * count)
            found["global_to_local"] = total
        if config.contrast_weight:
            total, tau = 0.0, config.contrast_temperature
            for q, k in ((s[0], t[1]), (s[1], t[0])):
                q, k = unit_rows(q.contrast.double()), unit_rows(k.contrast.double())
                for i in range(count):
                    logits = [float(q[i] @ k[j]) / tau for j in range(count)]
                    total -= 2 * tau * (logits[i] - math.log(sum(map(math.exp, logits)))) / count
            found["contrast"] = total
    weights = {name: getattr(config, f"{name}_weight") for name in found}
    return sum(weights[name] * value for name, value in found.items()), found


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"separate_heads": True, "global_to_local_weight": 0.7},
        {"distill_on": "masked", "reconstruction_weight": 5.0},
        {"contrast_weight": 0.0, "distillation_weight": 0.0, "global_to_local_weight": 1.0},
        {"distillation_weight": 0.0},
        {"reconstruction_weight": 0.0, "contrast_weight": 0.0, "corruption": {"ratio": 0.8}},
    ],
    ids=lambda fields: ",".join(fields) or "default",
)
def test_the_whole_loss_is_the_equations_image_by_image(fields):
    method = built(**fields).eval()  # BatchNorm fixed, so that images can be computed apart
    batch, progress = batch_of(5), progress_at(23)
    for center in (method.center, method.image_center):
        if center is not None:
            center.mean.copy_(0.1 * torch.randn(10))
    expected, parts = naive_loss(method, batch, progress)
    output = method.training_step(batch, progress, method.prepare_step([batch], progress))
    assert output.loss.item() == pytest.approx(expected, rel=2e-5)
    logged = {name.removeprefix("loss_"): float(v) for name, v in output.metrics.items() if name.startswith("loss_")}
    assert logged == pytest.approx(parts, rel=2e-5)


def test_the_contrast_is_moco_v3s():
    method = built()
    v3 = MoCoV3(MoCoV3Config(encoder=ENCODER, dim=8, hidden_dim=8, temperature=0.2))
    generator = torch.Generator().manual_seed(1)
    query, keys = (unit_rows(torch.randn(n, 8, generator=generator)) for n in (3, 9))
    theirs, _ = v3.contrast(query, keys, 4, None, None)
    torch.testing.assert_close(method.contrast(query, keys, 4, None, None), theirs, rtol=0, atol=0)


def test_keys_with_the_querys_id_are_no_negatives():
    method = built(exclude_same_id=True).eval()
    batch = {**batch_of(4), "ids": torch.tensor([1, 1, 1, 1])}
    output = method.training_step(batch, progress_at())
    assert float(output.metrics["loss_contrast"]) == 0.0


@pytest.mark.parametrize("off", ["reconstruction", "distillation", "contrast"])
def test_a_term_switched_off_is_not_built_and_leaves_the_others_alone(off):
    whole, batch = built(), batch_of(5)
    less = built(**{f"{off}_weight": 0.0})
    kept = {name: value for name, value in whole.state_dict().items() if name in less.state_dict()}
    assert len(kept) < len(whole.state_dict())
    less.load_state_dict(kept)
    left, right = (m.eval().training_step(batch, progress_at(15)) for m in (whole, less))
    names = {name for name in left.metrics if name.startswith("loss_")}
    assert {name for name in right.metrics if name.startswith("loss_")} == names - {f"loss_{off}"}
    for name in names - {f"loss_{off}"}:
        torch.testing.assert_close(left.metrics[name], right.metrics[name], rtol=1e-5, atol=0)
    torch.testing.assert_close(
        left.loss.detach() - left.metrics[f"loss_{off}"], right.loss.detach(), rtol=1e-5, atol=1e-6
    )


def test_reconstruction_alone_runs_no_teacher(monkeypatch):
    method = built(distillation_weight=0.0, contrast_weight=0.0)
    monkeypatch.setattr(type(method.teacher), "forward", lambda *_: pytest.fail("the teacher has nothing to say"))
    output = method.training_step(batch_of(3), progress_at())
    assert output.loss.item() == pytest.approx(float(output.metrics["loss_reconstruction"]))


def test_reconstruction_looks_at_corrupted_pixels_alone():
    made, clean = torch.randn(2, 3, 8, 8), torch.randn(2, 3, 8, 8)
    mask = torch.rand(2, 8, 8) < 0.4
    count = mask.sum()
    loss = reconstruction_loss(made, clean, mask, count)
    outside = torch.where(mask[:, None], made, torch.randn_like(made))
    torch.testing.assert_close(reconstruction_loss(outside, clean, mask, count), loss)
    assert reconstruction_loss(torch.where(mask[:, None], clean, made), clean, mask, count) == 0
    empty = torch.zeros_like(mask)
    assert reconstruction_loss(made, clean, empty, empty.sum()) == 0


def test_pixels_are_put_together_as_they_were_taken_apart():
    head = built().reconstruction
    x = torch.arange(2 * 3 * 16 * 24, dtype=torch.float32).view(2, 3, 16, 24)
    patches = x.unflatten(2, (2, 8)).unflatten(4, (3, 8)).permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)
    head.layers = torch.nn.Identity()
    torch.testing.assert_close(head(patches.reshape(2, 6, -1), 2), x, rtol=0, atol=0)


# teacher, centre, schedules


def test_the_teacher_sees_clean_views_and_gets_no_gradient(monkeypatch):
    method, batch, seen = built(global_to_local_weight=1.0), batch_of(4), []
    forward = method.teacher.module.forward
    monkeypatch.setattr(method.teacher.module, "forward", lambda x: (seen.append(x.clone()), forward(x))[1])
    method.training_step(batch, progress_at()).loss.backward()
    assert torch.equal(torch.cat(seen), torch.cat([batch["view_1"], batch["view_2"]]))
    assert all(p.grad is None for p in method.teacher.parameters())
    assert all(p.grad is not None for p in method.parameters() if p.requires_grad)


def test_the_centre_is_a_closed_form_and_moves_after_the_loss():
    method, batch = built(momentum={"momentum": 1.0}, global_to_local_weight=1.0).eval(), batch_of(4)
    output = method.teacher.module(torch.cat([batch["view_1"], batch["view_2"]]))
    scores = output.local @ method.teacher.module.classes.rows().T
    image_scores = output.image @ method.teacher.module.classes.rows().T
    for step in range(1, 6):
        before = method.center.mean.clone()
        method.training_step(batch, progress_at(step))
        assert torch.equal(method.center.mean, before)
        method.after_step(progress_at(step))
        torch.testing.assert_close(method.center.mean, (1 - 0.9**step) * scores.mean((0, 1)), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(
            method.image_center.mean, (1 - 0.9**step) * image_scores.mean(0), rtol=1e-4, atol=1e-5
        )
    method.after_step(progress_at())  # nothing was said since
    assert method.center.mean.norm() > 0
    center = TeacherCenter(2, 0.5)
    center.update(torch.tensor([1.0, 2.0]))
    assert center.mean.tolist() == [0.5, 1.0]


def test_the_teacher_follows_after_the_step_with_its_schedule():
    method = built(momentum={"momentum": 0.9, "schedule": "cosine"})
    progress = progress_at(50)  # half way: m = 0.95
    slow = copy.deepcopy(method.teacher.module)
    method.training_step(batch_of(4), progress)
    method.after_step(progress)
    triples = zip(method.teacher.module.parameters(), slow.parameters(), method.online.parameters(), strict=True)
    for now, before, online in triples:
        torch.testing.assert_close(now, 0.95 * before + 0.05 * online)


def test_the_teachers_temperature_rises_once_an_epoch():
    config = MMCConfig(teacher_temperature_epochs=30)
    values = [config.teacher_temperature_at(epoch) for epoch in range(40)]
    assert values[0] == 0.04
    assert values[1] == pytest.approx(0.04 + 0.03 / 29)
    assert values[29:] == [pytest.approx(0.07)] * 11
    assert MMCConfig(teacher_temperature_epochs=0).teacher_temperature_at(0) == 0.07
    assert MMCConfig(teacher_temperature_epochs=1).teacher_temperature_at(0) == 0.04


def test_the_last_layer_rests_for_an_epoch(tmp_path):
    data = image_pairs(16)
    torch.manual_seed(0)
    start = MMC(MMCConfig.model_validate(SMALL)).online.classes.weight.clone()
    for steps in (2, 3):  # two steps an epoch
        torch.manual_seed(0)
        method = MMC(MMCConfig.model_validate(SMALL))
        settings = Fit(steps=steps, batch_size=8, optimizer="adamw", lr=1e-3, weight_decay=0.1, workers=0, device="cpu")
        fit(method, data, fit=settings, run_dir=tmp_path / str(steps))
        assert torch.equal(method.online.classes.weight, start) == (steps == 2)


@pytest.mark.parametrize("fields", [{}, {"distill_on": "masked"}, {"corruption": {"fill": "noise"}}])
def test_accumulation_has_the_loss_gradient_and_centre_of_the_whole_step(fields):
    found = []
    for sizes in ([6], [2, 2, 2]):
        method, batch = built(global_to_local_weight=0.5, **fields).eval(), batch_of(6)
        parts, progress = parts_of(batch, sizes), progress_at(12)
        prepared = method.prepare_step(parts, progress)
        losses = [method.training_step(part, progress, prepared).loss / len(parts) for part in parts]
        torch.stack(losses).sum().backward()
        gradients = {name: p.grad for name, p in method.named_parameters() if p.requires_grad}
        method.after_step(progress)
        found.append((torch.stack(losses).sum().detach(), gradients, method.center.mean.clone()))
    torch.testing.assert_close(found[1][::2], found[0][::2], rtol=1e-4, atol=1e-6)
    for name, whole in found[0][1].items():
        assert (found[1][1][name] - whole).norm() <= 1e-4 * whole.norm(), name


# networks


def test_drop_path_is_the_students_alone():
    method = built(encoder={**ENCODER, "drop_path": 0.5})
    x = torch.randn(4, 3, 16, 16)
    torch.testing.assert_close(method.teacher(x).patches, method.teacher(x).patches, rtol=0, atol=0)
    assert not torch.equal(method.online(x).patches, method.online(x).patches)
    method.eval()
    assert torch.equal(method.online(x).patches, method.online(x).patches)


def test_drop_path_reaches_the_backbone_or_is_refused():
    timm_vit = TimmEncoder(EncoderConfig(backbone="vit_tiny_patch16_224", image_size=32, drop_path=0.2))
    assert timm_vit.backbone.blocks[-1].drop_path1.drop_prob == pytest.approx(0.2)
    with pytest.raises(ConfigError, match="'resnet10-w16' has no stochastic depth: leave drop_path at 0"):
        TimmEncoder(EncoderConfig(backbone="resnet10-w16", drop_path=0.1))


@pytest.mark.parametrize("keep", ["teacher", "student"])
def test_the_encoder_that_is_kept(keep, tmp_path):
    method = built(keep=keep).eval()
    assert method.encoder is method.encoders()[keep] is method.export_module()
    assert method.encoders()["teacher"] is not method.encoders()["student"]
    x = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        rows = method.encode({"image": x})
        torch.testing.assert_close(rows, method.encoders()[keep](x))
        for name, encoder in method.encoders().items():
            save_model(encoder, tmp_path / name)
            torch.testing.assert_close(load_model(tmp_path / name)(x), encoder(x))


@pytest.mark.parametrize(
    ("backbone", "size", "patches"),
    [("vit_tiny_patch16_224", 48, 9), ("vit_small_patch14_reg4_dinov2", 28, 4), ("vit_base_patch16_siglip_224", 32, 4)],
)
def test_any_transformer_at_any_size(backbone, size, patches):
    method = MMC(MMCConfig.model_validate({**SMALL, "encoder": {"backbone": backbone, "image_size": size}}))
    assert method.online(torch.zeros(2, 3, size, size)).local.shape == (2, patches, 8)
    output = method.training_step(batch_of(2, size=size), progress_at())
    assert torch.isfinite(output.loss)


def test_pooled_and_patch_features_are_those_of_separate_passes():
    encoder = TimmEncoder(EncoderConfig(backbone="vit_tiny_patch16_224", image_size=32)).eval()
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        pooled, patches = encoder.forward_both(x)
        torch.testing.assert_close(pooled, encoder(x))
        torch.testing.assert_close(patches, encoder.forward_tokens(x))


# what cannot work


@pytest.mark.parametrize("backbone", ["resnet10-w16", "resnet18", "swin_tiny_patch4_window7_224"])
def test_backbones_without_patches_are_refused(backbone):
    with pytest.raises(ConfigError, match=f"MMC needs patch tokens, which backbone '{backbone}' has not"):
        MMC(MMCConfig.model_validate({**SMALL, "encoder": {"backbone": backbone, "image_size": 224}}))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({f"{name}_weight": 0.0 for name in ("reconstruction", "distillation", "contrast")}, "all loss weights are 0"),
        (
            {"distillation_weight": 0, "contrast_weight": 0, "corruption": {"ratio": 0, "copy_p": 0}},
            "leaves nothing to reconstruct",
        ),
        ({"corruption": {"ratio": 0.95}}, "less than or equal to 0.8"),
        ({"distill_on": "some"}, "'all' or 'masked'"),
    ],
)
def test_settings_that_cannot_work(fields, message):
    with pytest.raises(ValidationError, match=message):
        MMCConfig.model_validate({**SMALL, **fields})


def test_views_of_two_sizes_and_single_images_are_refused(tmp_path):
    batch = {**batch_of(2), "view_2": torch.zeros(2, 3, 8, 8)}
    with pytest.raises(DataError, match=r"two views of one size, got \(2, 3, 16, 16\) and \(2, 3, 8, 8\)"):
        built().training_step(batch, progress_at())
    with pytest.raises(ConfigError, match="no negative in a batch of one image"):
        fit(built(), image_pairs(), fit=Fit(steps=1, batch_size=1, workers=0), run_dir=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_single_image_is_masked_and_never_its_own_partner():
    method = built(contrast_weight=0.0, corruption={"copy_p": 1.0})
    step = method.prepare_step([batch_of(1)], progress_at())
    assert not step.micro[0].corruption.copied.any()
    assert torch.isfinite(method.training_step(batch_of(1), progress_at()).loss)


def test_a_teacher_that_is_not_sharper_is_warned_of():
    assert built().advice(256, 1000) == []
    (text,) = built(teacher_temperature=0.1).advice(256, 1000)
    assert "temperature 0.1 is not below the student's 0.1" in text


@pytest.mark.parametrize("name", ["mmc", "mmc-laptop"])
def test_recipes_build_what_they_say(name):
    recipe = resolve_recipe(name)
    assert METHODS.config_class(recipe.system) is MMCConfig
    views = recipe.views.views().views
    assert {view.size for view in views} == {recipe.method.encoder.image_size}
    assert recipe.fit.clip_each
    assert recipe.fit.weight_decay_end == 0.4
    if name == "mmc":
        assert "only be read as an abstract" in recipe.source
        assert [(view.blur_p, view.solarize_p) for view in views] == [(1.0, 0.0), (0.1, 0.2)]
