"""Official ALBEF checkpoints: a tiny one with the published names and layout is taken over, and given back."""

import pytest
import torch
from safetensors.torch import save_file

from mc_core.errors import CheckpointError, ConfigError
from mc_vision_language.checkpoint import convert_albef_checkpoint, resized_positions, to_albef_names
from mc_vision_language.methods.albef import ALBEF, ALBEFConfig

D, HIDDEN, WORDS, DEPTH, TEXT, FUSION, SIDE, PATCH, DIM = 12, 16, 40, 2, 2, 3, 32, 8, 6


def official(*, bert="bert.", heads=True, seed=0):
    """Names and shapes as the published checkpoints have them."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape):
        return torch.randn(*shape, generator=generator) * 0.2

    found = {}

    def linear(name, out, into):
        found[f"{name}.weight"], found[f"{name}.bias"] = random(out, into), random(out)

    def norm(name, width):
        found[f"{name}.weight"], found[f"{name}.bias"] = 1 + random(width), random(width)

    for end in ("", "_m"):
        vit, text = f"visual_encoder{end}", f"text_encoder{end}"
        found[f"{vit}.cls_token"] = random(1, 1, D)
        found[f"{vit}.pos_embed"] = random(1, 1 + (SIDE // PATCH) ** 2, D)
        found[f"{vit}.patch_embed.proj.weight"], found[f"{vit}.patch_embed.proj.bias"] = (
            random(D, 3, PATCH, PATCH),
            random(D),
        )
        for block in range(DEPTH):
            at = f"{vit}.blocks.{block}"
            norm(f"{at}.norm1", D)
            linear(f"{at}.attn.qkv", 3 * D, D)
            linear(f"{at}.attn.proj", D, D)
            norm(f"{at}.norm2", D)
            linear(f"{at}.mlp.fc1", 4 * D, D)
            linear(f"{at}.mlp.fc2", D, 4 * D)
        norm(f"{vit}.norm", D)
        at = f"{text}.{bert}embeddings"
        found[f"{at}.position_ids"] = torch.arange(20)[None]
        for name, count in (("word", WORDS), ("position", 20), ("token_type", 2)):
            found[f"{at}.{name}_embeddings.weight"] = random(count, HIDDEN)
        norm(f"{at}.LayerNorm", HIDDEN)
        for layer in range(TEXT + FUSION):
            at = f"{text}.{bert}encoder.layer.{layer}"
            parts = [("attention", HIDDEN)] + ([("crossattention", D)] if layer >= TEXT else [])
            for kind, width in parts:
                linear(f"{at}.{kind}.self.query", HIDDEN, HIDDEN)
                linear(f"{at}.{kind}.self.key", HIDDEN, width)
                linear(f"{at}.{kind}.self.value", HIDDEN, width)
                linear(f"{at}.{kind}.output.dense", HIDDEN, HIDDEN)
                norm(f"{at}.{kind}.output.LayerNorm", HIDDEN)
            linear(f"{at}.intermediate.dense", 4 * HIDDEN, HIDDEN)
            linear(f"{at}.output.dense", HIDDEN, 4 * HIDDEN)
            norm(f"{at}.output.LayerNorm", HIDDEN)
        if heads:
            at = f"{text}.cls.predictions"
            found[f"{at}.bias"] = random(WORDS)
            linear(f"{at}.transform.dense", HIDDEN, HIDDEN)
            norm(f"{at}.transform.LayerNorm", HIDDEN)
            found[f"{at}.decoder.weight"] = found[f"{text}.{bert}embeddings.word_embeddings.weight"]
            found[f"{at}.decoder.bias"] = found[f"{at}.bias"]
        linear(f"vision_proj{end}", DIM, D)
        linear(f"text_proj{end}", DIM, HIDDEN)
    linear("itm_head", 2, HIDDEN)
    found["temp"] = torch.tensor(0.05)
    found["image_queue"], found["text_queue"] = random(DIM, 32), random(DIM, 32)
    found["queue_ptr"] = torch.zeros(1, dtype=torch.long)
    return found


SIZES = {"image_heads": 2, "text_heads": 2}


@pytest.fixture
def pretrained(tmp_path):
    path = tmp_path / "ALBEF.pth"
    torch.save({"model": official(), "epoch": 29, "optimizer": {}}, path)
    return path


def literal(found, pixels, ids, end=""):
    """The official forward pass, from the tensors by their names: unit features and the logits of matching."""

    def linear(x, name):
        return x @ found[f"{name}.weight"].T + found[f"{name}.bias"]

    def norm(x, name, eps):
        return torch.nn.functional.layer_norm(x, x.shape[-1:], found[f"{name}.weight"], found[f"{name}.bias"], eps)

    def heads(x):
        return x.unflatten(-1, (2, -1)).transpose(0, 1)

    def attend(q, k, v):
        scores = heads(q) @ heads(k).transpose(1, 2) / (q.shape[-1] // 2) ** 0.5
        return (scores.softmax(-1) @ heads(v)).transpose(0, 1).flatten(1)

    vit, bert = f"visual_encoder{end}", f"text_encoder{end}.bert"
    mean = torch.tensor((0.48145466, 0.4578275, 0.40821073))[:, None, None]
    std = torch.tensor((0.26862954, 0.26130258, 0.27577711))[:, None, None]
    patches = ((pixels - mean) / std).unfold(1, PATCH, PATCH).unfold(2, PATCH, PATCH)
    patches = patches.permute(1, 2, 0, 3, 4).reshape(-1, 3 * PATCH * PATCH)
    kernel = found[f"{vit}.patch_embed.proj.weight"].reshape(D, -1)
    x = torch.cat([found[f"{vit}.cls_token"][0], patches @ kernel.T + found[f"{vit}.patch_embed.proj.bias"]])
    x = x + found[f"{vit}.pos_embed"][0]
    for block in range(DEPTH):
        at = f"{vit}.blocks.{block}"
        q, k, v = linear(norm(x, f"{at}.norm1", 1e-6), f"{at}.attn.qkv").chunk(3, -1)
        x = x + linear(attend(q, k, v), f"{at}.attn.proj")
        inner = torch.nn.functional.gelu(linear(norm(x, f"{at}.norm2", 1e-6), f"{at}.mlp.fc1"))
        x = x + linear(inner, f"{at}.mlp.fc2")
    image = norm(x, f"{vit}.norm", 1e-6)

    at = f"{bert}.embeddings"
    t = found[f"{at}.word_embeddings.weight"][ids] + found[f"{at}.position_embeddings.weight"][: len(ids)]
    t = norm(t + found[f"{at}.token_type_embeddings.weight"][0], f"{at}.LayerNorm", 1e-12)
    text = None
    for layer in range(TEXT + FUSION):
        at = f"{bert}.encoder.layer.{layer}"
        if layer == TEXT:
            text = t
        for kind, seen in [("attention", t)] + ([("crossattention", image)] if layer >= TEXT else []):
            seen = t if kind == "attention" else seen
            made = attend(
                linear(t, f"{at}.{kind}.self.query"),
                linear(seen, f"{at}.{kind}.self.key"),
                linear(seen, f"{at}.{kind}.self.value"),
            )
            t = norm(t + linear(made, f"{at}.{kind}.output.dense"), f"{at}.{kind}.output.LayerNorm", 1e-12)
        inner = torch.nn.functional.gelu(linear(t, f"{at}.intermediate.dense"))
        t = norm(t + linear(inner, f"{at}.output.dense"), f"{at}.output.LayerNorm", 1e-12)
    unit = torch.nn.functional.normalize
    z_v = unit(linear(image[0], f"vision_proj{end}"), dim=0)
    z_t = unit(linear(text[0], f"text_proj{end}"), dim=0)
    return z_v, z_t, linear(t[0], "itm_head")


@pytest.mark.parametrize(("part", "end"), [("student", ""), ("teacher", "_m")])
def test_it_computes_what_the_official_names_say(pretrained, part, end):
    model = convert_albef_checkpoint(pretrained, **SIZES, part=part)
    generator = torch.Generator().manual_seed(1)
    pixels = torch.rand(3, SIDE, SIDE, generator=generator)
    ids = torch.tensor([2, 11, 30, 7])
    z_v, z_t, logits = literal(official(), pixels, ids, end)
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
    torch.save({"model": {**official(bert="", heads=False), "idx_queue": torch.full((1, 32), -100)}}, path)
    model = convert_albef_checkpoint(path, **SIZES)
    other = tmp_path / "ALBEF.pth"
    torch.save({"model": official(bert="", heads=False)}, other)
    weight = official(bert="", heads=False)["text_encoder.encoder.layer.2.crossattention.self.key.weight"]
    assert torch.equal(model.backbone.fusion.layers[0].cross_attention.key.weight, weight)


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
            (lambda m: m.pop("itm_head.bias"), "lacks 1 tensors of ALBEF, such as itm_head.bias"),
            (
                lambda m: m.update({"cls_head.0.weight": torch.zeros(2)}),
                "that are not of ALBEF's pretraining .* cls_head.0.weight",
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
