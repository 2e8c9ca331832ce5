"""GrowCLIP's towers, objective and model: equations against their definition, growth of the whole, and what needs matching."""

from __future__ import annotations

import math
import runpy
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch.nn.functional import normalize

from mc_core.engine.method import Progress
from mc_core.errors import ConfigError, DataError
from mc_core.growth import Expansion, candidates, drawn, grow, largest
from mc_vision_language.evaluation.retrieval import retrieval
from mc_vision_language.evaluation.zero_shot import class_embeddings
from mc_vision_language.methods.growclip.loss import pair_loss, same_pairs
from mc_vision_language.methods.growclip.model import GrowCLIP, GrowCLIPModel
from mc_vision_language.model import VisionLanguageModel, load_vision_language_model
from mc_vision_language.search import SearchIndex
from mc_vision_language.tasks.grounding import ground

tiny = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("_tiny_grow.py"))))


def rows(count: int, seed: int, width: int = 5) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return normalize(torch.randn(count, width, generator=generator, dtype=torch.float64), dim=1)


def naive(image: torch.Tensor, text: torch.Tensor, scale: float, image_ids: list[int], text_ids: list[int]) -> float:
    """L by its definition, in Python numbers."""
    B = len(image)
    total = 0.0
    for i in range(B):
        same = [image_ids[i] == image_ids[j] or text_ids[i] == text_ids[j] for j in range(B)]
        for query, keys in ((image, text), (text, image)):
            logits = [math.exp(scale) * float(query[i] @ keys[j]) for j in range(B)]
            log_sum = math.log(sum(map(math.exp, logits)))
            total -= sum(logits[j] - log_sum for j in range(B) if same[j]) / sum(same)
    return total / (2 * B)


@pytest.mark.parametrize("text_ids", [[0, 1, 2, 3, 4], [0, 1, 1, 3, 0]])
def test_the_objective_is_that_of_its_definition(text_ids):
    image, text, scale = rows(5, 0), rows(5, 1), torch.tensor(1.2, dtype=torch.float64)
    image_ids = [0, 1, 2, 3, 3]
    same = same_pairs(torch.tensor(image_ids), torch.tensor(text_ids))
    found = pair_loss(image, text, scale, same)
    assert float(found) == pytest.approx(naive(image, text, 1.2, image_ids, text_ids), abs=1e-9)


def test_the_plain_objective_is_that_of_pairs_that_all_differ():
    image, text, scale = rows(5, 0), rows(5, 1), torch.tensor(0.7, dtype=torch.float64)
    ids = torch.arange(5)
    plain = pair_loss(image, text, scale)
    assert float(plain) == pytest.approx(naive(image, text, 0.7, [*range(5)], [*range(5)]), abs=1e-9)
    torch.testing.assert_close(pair_loss(image, text, scale, same_pairs(ids, ids)), plain, rtol=0, atol=1e-12)
    assert float(pair_loss(image, text, torch.tensor(-40.0, dtype=torch.float64))) == pytest.approx(
        math.log(5), abs=1e-9
    )


def test_the_objective_has_a_gradient_for_both_sides_and_the_temperature():
    image, text = (rows(4, seed).requires_grad_() for seed in (0, 1))
    scale = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    same = same_pairs(torch.arange(4), torch.tensor([0, 1, 1, 2]))
    assert torch.autograd.gradcheck(lambda u, v, s: pair_loss(u, v, s, same), (image, text, scale))
    pair_loss(image, text, scale).backward()
    for tensor in (image, text, scale):
        assert tensor.grad is not None
        assert float(tensor.grad.abs().sum()) > 0


@torch.no_grad()
def embedded(towers, batch, views=None) -> torch.Tensor:
    image = towers.embed_images(batch["view"], views)
    return torch.cat([image, towers.embed_tokens(batch["input_ids"], batch["attention_mask"], views)])


def test_shared_blocks_serve_both_streams_with_their_own_norms():
    towers, batch = tiny.towers(), tiny.batch()
    before = embedded(towers, batch)
    count = len(batch["view"])
    with torch.no_grad():
        towers.blocks["shared"][0].norm1["text"].weight.add_(1.0)
        after = embedded(towers, batch)
        assert torch.equal(after[:count], before[:count])
        assert not torch.allclose(after[count:], before[count:], atol=1e-3)
        towers.blocks["shared"][0].qkv.weight.mul_(2.0)
        again = embedded(towers, batch)
    for part in (slice(count), slice(count, None)):
        assert not torch.allclose(again[part], after[part], atol=1e-4)


@pytest.mark.parametrize("text", [{}, {"pooling": "eot", "add_sep": True}])
def test_a_row_depends_on_its_own_input_alone_and_not_on_padding(text):
    towers, batch = tiny.towers(text={"vocabulary": 64, "max_length": 12, **text}), tiny.batch()
    found = embedded(towers, batch)
    torch.testing.assert_close(found.norm(dim=1), torch.ones(len(found)), rtol=0, atol=1e-6)
    count = len(batch["view"])
    for row in range(count):
        length = int(batch["attention_mask"][row].sum())
        one = {name: batch[name][row : row + 1, :length] for name in ("input_ids", "attention_mask")}
        alone = embedded(towers, {"view": batch["view"][row : row + 1], **one})
        torch.testing.assert_close(alone, found[[row, count + row]], rtol=0, atol=1e-5)
        other = {**one, "input_ids": one["input_ids"].clone()}
        other["input_ids"][0, 1] += 1
        changed = embedded(towers, {"view": batch["view"][row : row + 1], **other})
        assert not torch.allclose(changed[1], alone[1], atol=1e-4)


def test_a_causal_text_is_read_at_its_last_token():
    towers, batch = (
        tiny.towers(text={"vocabulary": 64, "max_length": 12, "pooling": "eot", "add_sep": True}),
        tiny.batch(),
    )
    ids, mask = batch["input_ids"][:1], torch.ones(1, 6, dtype=torch.long)
    mask[0, 5] = 0
    pooled = towers.text_states(ids, mask)
    shorter = towers.text_states(ids[:, :5], mask[:, :5])
    torch.testing.assert_close(pooled, shorter, rtol=0, atol=1e-5)
    assert not torch.allclose(pooled, towers.text_states(ids[:, :4], mask[:, :4]), atol=1e-3)


@pytest.mark.parametrize("move", ["everything", "width", "image.blocks", "text.heads", "shared.hidden"])
def test_growth_of_the_whole_is_lossless(move):
    towers, batch = tiny.towers(), tiny.batch()
    spec = towers.spec
    space = candidates(spec, pairs=0)
    target = space.get(move, spec)
    if move in ("everything", "width"):
        target = replace(largest(list(space.values())) if move == "everything" else spec, width=20)
    grown = grow(towers, target, seed=3)
    assert sum(p.numel() for p in grown.parameters()) > sum(p.numel() for p in towers.parameters())
    assert float((embedded(grown, batch) - embedded(towers, batch)).abs().max()) <= 5e-6
    assert grown.config.arch() == target == grown.spec
    assert torch.equal(grown.logit_scale, towers.logit_scale)


def test_a_view_is_the_model_that_can_be_cut_out_of_the_supernet():
    towers, batch = tiny.towers(), tiny.batch()
    space = candidates(towers.spec, pairs=4, seed=1)
    supernet = grow(towers, largest(list(space.values())), seed=3)
    for spec in space.values():  # at birth all compute the same
        assert float((embedded(supernet, batch, spec.parts) - embedded(towers, batch)).abs().max()) <= 5e-6
    torch.manual_seed(5)
    with torch.no_grad():
        for parameter in supernet.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    whole = embedded(supernet, batch)
    for name, spec in space.items():
        alone = Expansion(drawn(towers, spec, 0), drawn(towers, supernet.spec, 0)).extracted(supernet)
        found = embedded(supernet, batch, spec.parts)
        torch.testing.assert_close(embedded(alone, batch), found, rtol=0, atol=5e-6, msg=name)
        assert not torch.allclose(found, whole, atol=1e-3)


def test_a_step_of_the_method_moves_its_average_and_keeps_the_temperature_in_bounds():
    torch.manual_seed(0)
    method = GrowCLIP(tiny.config(momentum=0.75))
    batch = tiny.batch()
    assert float(method.towers.logit_scale.detach()) == pytest.approx(math.log(1 / 0.07))
    output = method.training_step(batch, Progress())
    expected = pair_loss(output.features["query"], output.features["key"], method.towers.logit_scale)
    assert float(output.loss.detach()) != pytest.approx(
        float(expected.detach()), abs=1e-4
    )  # texts 0 and 3 are the same
    output.loss.backward()
    assert all(parameter.grad is not None for parameter in method.towers.parameters())
    before = {name: value.clone() for name, value in method.averaged.named_parameters()}
    with torch.no_grad():
        for parameter in method.towers.parameters():
            parameter.add_(1.0)
        method.towers.logit_scale.fill_(9.0)
        method.after_step(Progress())
    assert float(method.towers.logit_scale.detach()) == pytest.approx(math.log(100))
    for name, value in method.averaged.named_parameters():
        online = dict(method.towers.named_parameters())[name]
        torch.testing.assert_close(value, 0.75 * before[name] + 0.25 * online)
    with torch.no_grad():
        method.towers.logit_scale.fill_(-1.0)
        method.after_step(Progress())
    assert float(method.towers.logit_scale.detach()) == 0.0
    groups = method.parameter_groups(0.1, decay_1d=False)
    spared = {id(parameter) for parameter in groups[1]["params"]}
    for parameter in (method.towers.logit_scale, method.towers.image.cls_token, method.towers.text.pos_embed):
        assert id(parameter) in spared
    assert {id(p) for group in groups for p in group["params"]} == {id(p) for p in method.towers.parameters()}


@pytest.fixture(scope="module")
def grown() -> GrowCLIPModel:
    model = tiny.model()
    space = candidates(model.towers.spec, pairs=0)
    return GrowCLIPModel(model.config, model.tokenizer, towers=grow(model.towers, space["image.heads"], 1)).eval()


def test_a_grown_model_is_saved_and_loaded_at_its_size(grown, tmp_path):
    assert isinstance(grown, VisionLanguageModel)
    assert grown.config.image_part.heads == 2
    grown.save(tmp_path / "model")
    loaded = load_vision_language_model(tmp_path)
    pictures = tiny.pairs().images.array[:3]
    np.testing.assert_array_equal(loaded.encode_image(pictures), grown.encode_image(pictures))
    np.testing.assert_array_equal(loaded.encode_text(tiny.CAPTIONS[:4]), grown.encode_text(tiny.CAPTIONS[:4]))
    assert grown.tokenizer is not None
    assert loaded.words == len(grown.tokenizer)
    assert float(loaded.temperature.detach()) == pytest.approx(0.07)


def test_what_needs_two_embeddings_works_and_what_needs_matching_says_so(grown, tmp_path):
    held = tiny.pairs().part("test")
    found = retrieval(grown, held, draws=0)
    assert found.reranked is None
    index = SearchIndex.build(grown, held.images, tmp_path / "index")
    hits = index.search("a red dog", top=3)
    assert [hit.match for hit in hits] == [None] * 3
    cosines = grown.encode_image(held.images.array) @ grown.encode_text(["a red dog"])[0]
    assert [hit.row for hit in hits] == np.argsort(-cosines, kind="stable")[:3].tolist()
    assert class_embeddings(grown, ["dog", "cat"]).shape == (2, 8)
    for asked in (
        lambda: retrieval(grown, held, rerank=True, draws=0),
        lambda: index.search("a red dog", rerank=2),
        lambda: grown.match_scores(held.images.array[:1], ["a red dog"]),
    ):
        with pytest.raises(ConfigError, match="learned no matching"):
            asked()
    with pytest.raises(ConfigError, match="GrowCLIPModel shows no heat map"):
        ground(grown, held.images.read(0), "a red dog", mode="itc")


def test_settings_that_cannot_work_are_said():
    with pytest.raises(ConfigError, match="width 50 does not divide by the head width 16; take 48 or 64"):
        tiny.config(width=50, head_width=16, image_part={"blocks": 1})
    for changes, said in (
        ({"text": {"pooling": "eot"}}, "set add_sep"),
        ({"growth": {"image": {"blocks": 0}}}, r"growth.image.blocks 0 is smaller than the model, which has 1"),
        ({"growth": {"blocks": 0, "heads": 0, "hidden": 0}}, "nothing could grow"),
        ({"image": {"image_size": 20, "patch_size": 8}}, "does not divide into patches"),
        ({"image": {"image_size": 24, "patch_size": 6, "stem": "convolution"}}, "no power of 2"),
        ({"image_part": {"blocks": 0}, "shared_part": {"blocks": 0}}, "needs one at least"),
    ):
        with pytest.raises(ValidationError, match=said):
            tiny.config(**changes)
    with pytest.raises(DataError, match="takes \\(batch, 3, 16, 16\\)"):
        tiny.towers().embed_images(torch.rand(1, 3, 20, 20))
    with pytest.raises(DataError, match="texts of 13 tokens; this encoder takes 12"):
        tiny.towers().embed_tokens(torch.ones(1, 13, dtype=torch.long), torch.ones(1, 13, dtype=torch.long))
    with pytest.raises(ConfigError, match="1 pair per process"):
        GrowCLIP(tiny.config()).check(1)
