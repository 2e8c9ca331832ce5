"""Official ALBEF checkpoints: a tiny one with the published names and layout is taken over, and given back."""

import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file

from mc_core.errors import CheckpointError, ConfigError
from mc_vision_language.checkpoint import convert_albef_checkpoint, resized_positions, to_albef_names
from mc_vision_language.methods.albef import ALBEF, ALBEFConfig

albef = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("_official_albef.py"))))
D, WORDS, DIM, SIDE, SIZES = albef.D, albef.WORDS, albef.DIM, albef.SIDE, albef.SIZES
official = albef.official


@pytest.fixture
def pretrained(tmp_path):
    path = tmp_path / "ALBEF.pth"
    torch.save({"model": official(), "epoch": 29, "optimizer": {}}, path)
    return path


@pytest.mark.parametrize(("part", "end"), [("student", ""), ("teacher", "_m")])
def test_it_computes_what_the_official_names_say(pretrained, part, end):
    model = convert_albef_checkpoint(pretrained, **SIZES, part=part)
    generator = torch.Generator().manual_seed(1)
    pixels = torch.rand(3, SIDE, SIDE, generator=generator)
    ids = torch.tensor([2, 11, 30, 7])
    z_v, z_t, logits = albef.Literal(official(), end).contrast_and_match(pixels, ids)
    mask = torch.ones(1, 4, dtype=torch.long)
    with torch.no_grad():
        image, text = model(pixels[None], ids[None], mask)
        found = model.match_logits(model.backbone.image_tokens(pixels[None]), ids[None], mask)
    torch.testing.assert_close(image[0], z_v, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(text[0], z_t, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found[0], logits, rtol=1e-4, atol=1e-5)
    assert float(model.temperature.detach()) == pytest.approx(0.05)


def test_sizes_are_read_off(pretrained):
    config = convert_albef_checkpoint(pretrained, **SIZES).config
    assert (config.image.image_size, config.image.patch_size, config.image.width, config.image.depth) == (32, 8, 12, 2)
    assert (config.text.text_layers, config.text.fusion_layers, config.text.vocabulary) == (2, 3, 40)
    assert (config.dim, config.text.positions, config.text.hidden_size) == (6, 20, 16)


def test_names_go_there_and_back(pretrained, tmp_path):
    """Every tensor but queues and counters, the teacher's included, to the bit."""
    model = convert_albef_checkpoint(pretrained, **SIZES)
    teacher = convert_albef_checkpoint(pretrained, **SIZES, part="teacher").backbone
    given, made = official(), to_albef_names(model, teacher)
    for name in [n for n in given if "queue" in n or "position_ids" in n or ("_m." in n and "decoder" in n)]:
        del given[name]
    assert made.keys() == given.keys()
    for name, tensor in given.items():
        torch.testing.assert_close(made[name], tensor, rtol=0, atol=1e-8 if name == "temp" else 0)
    path = tmp_path / "back.safetensors"
    save_file({name: tensor.contiguous().clone() for name, tensor in made.items()}, path)
    again = convert_albef_checkpoint(path, **SIZES)
    for left, right in zip(model.parameters(), again.parameters(), strict=True):
        torch.testing.assert_close(left, right, rtol=0, atol=1e-7)


def test_a_checkpoint_of_retrieval_has_other_names(tmp_path):
    """There the text encoder is a BertModel: no ``bert.``, no head for words, and a queue of ids."""
    path = tmp_path / "flickr30k.pth"
    torch.save({"model": official(albef.RETRIEVAL)}, path)
    model = convert_albef_checkpoint(path, **SIZES)
    weight = official(albef.RETRIEVAL)["text_encoder.encoder.layer.2.crossattention.self.key.weight"]
    assert torch.equal(model.backbone.fusion.layers[0].cross_attention.key.weight, weight)
    again = convert_albef_checkpoint(path, **SIZES)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))


def test_another_image_size_resizes_the_positions(pretrained):
    model = convert_albef_checkpoint(pretrained, **SIZES, image_size=48)
    table = official()["visual_encoder.pos_embed"]
    assert model.backbone.image.grid == (6, 6)
    found = model.backbone.image.backbone.pos_embed
    assert torch.equal(found[:, :1], table[:, :1])
    torch.testing.assert_close(found, resized_positions(table, 36))
    with torch.no_grad():
        assert model.backbone.image_tokens(torch.rand(1, 3, 48, 48)).shape == (1, 37, D)


def test_a_constant_table_stays_constant():
    table = torch.arange(5.0).expand(1, 17, 5)
    torch.testing.assert_close(resized_positions(table, 49), torch.arange(5.0).expand(1, 50, 5))
    assert resized_positions(table, 16) is table


def test_positions_are_resized_bicubically():
    """As by Catmull-Rom's relative with a = −0.75, which torch uses: a ramp stays a ramp inside, a step overshoots."""
    step = torch.tensor([0.0, 0.0, 1.0, 1.0]).repeat(4, 1)
    table = torch.cat([torch.zeros(1), step.flatten()])[None, :, None]
    found = resized_positions(table, 64)[0, 1:, 0].view(8, 8)
    assert found.min() < -0.02
    assert found.max() > 1.02
    # between the second and third place, a quarter of the way: weights of the kernel at 1.25, 0.25, 0.75 and 1.75
    t = torch.tensor([1.25, 0.25, 0.75, 1.75], dtype=torch.float64)
    a = -0.75
    near, far = (a + 2) * t**3 - (a + 3) * t**2 + 1, a * t**3 - 5 * a * t**2 + 8 * a * t - 4 * a
    weights = torch.where(t <= 1, near, far)
    assert found[4, 3].item() == pytest.approx(float(weights[2] + weights[3]), abs=1e-6)


def test_it_can_be_trained_on_and_saved(pretrained, tmp_path):
    from mc_vision_language.model import load_vision_language_model

    model = convert_albef_checkpoint(pretrained, **SIZES)
    method = ALBEF(ALBEFConfig(queue_size=16), model=model)
    assert method.config.text.fusion_layers == 3
    for ours, theirs in zip(method.teacher.parameters(), model.backbone.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    model.save(tmp_path / "model")
    again = load_vision_language_model(tmp_path / "model")
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))


def test_with_a_tokenizer_it_reads_text(pretrained, tmp_path):
    from mc_vision_language.tokenizers import train_tokenizer

    tokenizer = train_tokenizer(["a red dog"], vocabulary=40)
    model = convert_albef_checkpoint(pretrained, **SIZES, tokenizer=tokenizer)
    assert model.config.text.vocabulary == WORDS
    assert model.encode_text(["a red dog", "a dog"]).shape == (2, DIM)
    large = train_tokenizer(["abcdefghijklmnopqrstuvwxyz"], vocabulary=80)
    with pytest.raises(ConfigError, match="the text encoder knows 40"):
        convert_albef_checkpoint(pretrained, **SIZES, tokenizer=large)


class TestBadInput:
    def test_no_file(self, tmp_path):
        with pytest.raises(CheckpointError, match="no such file"):
            convert_albef_checkpoint(tmp_path / "none.pth")

    def test_no_checkpoint(self, tmp_path):
        path = tmp_path / "notes.pth"
        path.write_text("hello")
        with pytest.raises(CheckpointError, match="cannot be read as a checkpoint"):
            convert_albef_checkpoint(path)

    def test_code_is_not_run(self, tmp_path):
        path = tmp_path / "evil.pth"
        torch.save({"model": TestBadInput}, path)
        with pytest.raises(CheckpointError, match="cannot be read as a checkpoint"):
            convert_albef_checkpoint(path)

    def test_another_model(self, tmp_path):
        path = tmp_path / "other.pth"
        torch.save({"model": {"fc.weight": torch.zeros(2, 2)}}, path)
        with pytest.raises(CheckpointError, match="is no checkpoint of ALBEF: it has no text_encoder.bert"):
            convert_albef_checkpoint(path)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda m: m.pop("itm_head.bias"), "lacks 1 tensors of ALBEF's pretraining, such as itm_head.bias"),
            (
                lambda m: m.update({"cls_head.0.weight": torch.zeros(2)}),
                "that are not of ALBEF's pretraining, such as cls_head.0.weight",
            ),
            (
                lambda m: m.update({"vision_proj.bias": torch.zeros(2)}),
                r"vision_proj.bias has shape \(2,\), .* needs \(6,\)",
            ),
        ],
    )
    def test_tensors_that_do_not_fit(self, tmp_path, change, message):
        found = official()
        change(found)
        path = tmp_path / "changed.pth"
        torch.save({"model": found}, path)
        with pytest.raises(CheckpointError, match=message):
            convert_albef_checkpoint(path, **SIZES)

    def test_no_teacher(self, tmp_path):
        path = tmp_path / "student.pth"
        torch.save({"model": {name: value for name, value in official().items() if "_m." not in name}}, path)
        with pytest.raises(CheckpointError, match="holds no teacher"):
            convert_albef_checkpoint(path, **SIZES, part="teacher")
