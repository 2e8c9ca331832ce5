"""Official checkpoints of tasks: which kind one is, what it computes, back to its names, and what is wrong with a wrong one."""

import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from mc_core.errors import CheckpointError, ConfigError
from mc_vision_language.checkpoint import convert_albef, convert_albef_checkpoint, to_albef_names
from mc_vision_language.model import VisionLanguageModel
from mc_vision_language.tasks import EntailmentModel, VQAModel, load_task_model
from mc_vision_language.tasks.answering import AnswerTokens
from mc_vision_language.tasks.config import EntailmentConfig, TwoImageConfig
from mc_vision_language.tasks.nlvr2 import NLVR2, AssignmentModel, StatementModel
from mc_vision_language.tokenizers import train_tokenizer

albef = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("_official_albef.py"))))
SIZES = albef.SIZES
KINDS = {
    "pretraining": VisionLanguageModel,
    "retrieval": VisionLanguageModel,
    "vqa": VQAModel,
    "nlvr2": StatementModel,
    "assignment": AssignmentModel,
    "entailment": EntailmentModel,
}
TASKS = [name for name in KINDS if name not in ("pretraining", "retrieval")]
PARTS = [("student", ""), ("teacher", "_m")]
IDS = torch.tensor([2, 11, 30, 7])
MASK = torch.ones(1, 4, dtype=torch.long)


@pytest.fixture
def saved(tmp_path):
    """Writes a checkpoint of a kind, after changes by a function, and gives its path."""

    def write(layout, change=lambda found: None):
        found = albef.official(layout)
        change(found)
        path = tmp_path / f"{layout}.pth"
        torch.save({"model": found, "epoch": 4}, path)
        return path

    return write


def picture(seed):
    return torch.rand(3, albef.SIDE, albef.SIDE, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("layout", KINDS)
def test_the_kind_is_recognised(saved, layout):
    assert type(convert_albef(saved(layout), **SIZES)) is KINDS[layout]


@pytest.mark.parametrize(("part", "end"), PARTS)
def test_entailment_computes_what_the_names_say(saved, part, end):
    model = convert_albef(saved("entailment"), **SIZES, part=part)
    expected = albef.Literal(albef.official("entailment"), end).judged(IDS, picture(1))
    with torch.no_grad():
        found = model.net(picture(1)[None], IDS[None], MASK)[0][0]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("layout", "part", "end"), [("nlvr2", "student", ""), ("nlvr2", "teacher", "_m"), ("assignment", "student", "")]
)
def test_two_pictures_compute_what_the_names_say(saved, layout, part, end):
    """The first of each pair of layers looks at the first picture; to swap pictures or layers gives other logits."""
    model = convert_albef(saved(layout), **SIZES, part=part)
    reading = albef.Literal(albef.official(layout), end)
    first, second = picture(1), picture(2)
    with torch.no_grad():
        found = model.net(first[None], second[None], IDS[None], MASK)[0][0]
    torch.testing.assert_close(found, reading.judged(IDS, first, second), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(found, reading.judged(IDS, second, first), atol=1e-3)
    assert model.config.text.fusion_layers == albef.FUSION


@pytest.mark.parametrize(("part", "end"), PARTS)
def test_answers_are_as_likely_as_the_names_say(saved, part, end):
    model = convert_albef(saved("vqa"), **SIZES, part=part)
    answer = torch.tensor([2, 9, 31, 3])
    logits = albef.Literal(albef.official("vqa"), end).word_logits(picture(1), IDS, answer[:-1])
    expected = logits.log_softmax(1).gather(1, answer[1:, None]).sum()
    with torch.no_grad():
        states = model.net.question_states(picture(1)[None], IDS[None], MASK)
        keys = model.net.decoder.keys(states, MASK)
        found = model.net.log_likelihoods(keys, AnswerTokens(answer[None], torch.ones(1, 4, dtype=torch.long)))
    torch.testing.assert_close(found[0], expected, rtol=1e-4, atol=1e-5)
    assert model.config.decoder_layers == albef.DECODER


@pytest.mark.parametrize("layout", TASKS)
def test_names_go_there_and_back(saved, layout):
    """Every tensor that the kind has, the teacher's included, to the bit; and a teacher is read from what was given back."""
    model = convert_albef(saved(layout), **SIZES)
    given = albef.official(layout)
    teacher = None if layout == "assignment" else convert_albef(saved(layout), **SIZES, part="teacher").net
    made = to_albef_names(model, teacher)
    for name in [n for n in given if n == "temp" or "position_ids" in n or ("_m." in n and "predictions.decoder" in n)]:
        del given[name]
    assert made.keys() == given.keys()
    for name, tensor in given.items():
        assert torch.equal(made[name], tensor), name


@pytest.mark.parametrize("layout", TASKS)
def test_it_is_saved_and_loaded_and_two_conversions_are_equal(saved, layout, tmp_path):
    path = saved(layout)
    model = convert_albef(path, **SIZES)
    model.save(tmp_path / "model")
    torch.rand(3)  # what is drawn at random does not depend on what was drawn before
    for again in (load_task_model(tmp_path / "model"), convert_albef(path, **SIZES)):
        assert type(again) is type(model)
        torch.testing.assert_close(again.state_dict(), model.state_dict(), rtol=0, atol=0)


def test_pairs_of_layers_stay_one_tensor_and_start_the_next_stage(saved):
    stage = convert_albef(saved("assignment"), **SIZES)
    fusion = stage.net.backbone.fusion.layers
    assert fusion[0].cross_attention.key.weight is fusion[1].cross_attention.key.weight
    encoders = {name: getattr(stage.config, name) for name in ("image", "text", "dim")}
    model = StatementModel(TwoImageConfig(**encoders))
    model.start_from(stage)
    method = NLVR2(model.config, None, model)
    for ours, theirs in zip(method.net.backbone.parameters(), stage.net.backbone.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_questions_are_answered_from_the_list_that_is_given(saved):
    tokenizer = train_tokenizer(["is it red", "yes no"], vocabulary=40)
    model = convert_albef(saved("vqa"), **SIZES, tokenizer=tokenizer, answers=["yes", "no"])
    assert model.answer(picture(1)[None], ["is it red"])[0][0] in ("yes", "no")
    assert model.config.text.vocabulary == albef.WORDS
    with pytest.raises(ConfigError, match="is of visual entailment: a list of answers belongs to visual question"):
        convert_albef(saved("entailment"), **SIZES, answers=["yes"])


def test_larger_pictures(saved):
    model = convert_albef(saved("entailment"), **SIZES, image_size=48)
    assert model.net.backbone.image.grid == (6, 6)


class TestBadInput:
    @pytest.mark.parametrize(
        ("layout", "said"),
        [
            ("vqa", "visual question answering"),
            ("nlvr2", "NLVR2"),
            ("assignment", "text assignment, the stage before NLVR2"),
            ("entailment", "visual entailment"),
        ],
    )
    def test_another_kind_is_named(self, saved, layout, said):
        with pytest.raises(CheckpointError, match=f"is a checkpoint of {said}, not of pretraining or retrieval"):
            convert_albef_checkpoint(saved(layout), **SIZES)
        with pytest.raises(CheckpointError, match=r"is a checkpoint of pretraining, not of "):
            convert_albef(saved("pretraining"), **SIZES, only=[layout])

    @pytest.mark.parametrize(
        ("layout", "change", "message"),
        [
            ("vqa", lambda m: m.pop("text_decoder.cls.predictions.bias"), "lacks 1 tensors of ALBEF's visual question"),
            ("nlvr2", lambda m: m.pop("cls_head.0.bias"), "lacks 1 tensors of ALBEF's NLVR2, such as cls_head.0.bias"),
            (
                "entailment",
                lambda m: m.update({"cls_head.2.weight": torch.zeros(5, 16)}),
                "cls_head has 5 outputs; that of NLVR2 has 2, that of visual entailment 3",
            ),
            (
                "entailment",
                lambda m: m.update({"itm_head.bias": torch.zeros(2)}),
                "holds 1 tensors that are not of ALBEF's visual entailment, such as itm_head.bias",
            ),
            (
                "nlvr2",
                lambda m: m.update({"text_encoder.encoder.layer.3.crossattention.self.key.bias": torch.ones(16)}),
                r"layers 2 and 3 do not share crossattention.self.key.bias, as NLVR2 does",
            ),
            (
                "nlvr2",
                lambda m: [m.pop(name) for name in list(m) if "layer.7." in name],
                "NLVR2 has each fusion layer twice, this checkpoint has 5 of them",
            ),
            (
                "vqa",
                lambda m: m.update({"text_decoder.cls.predictions.bias": torch.zeros(3)}),
                r"text_decoder.cls.predictions.bias has shape \(3,\), .* needs \(40,\)",
            ),
            (
                "entailment",
                lambda m: [m.pop(name) for name in list(m) if "crossattention" in name],
                "its text encoder has no layer that looks at the image",
            ),
        ],
    )
    def test_tensors_that_do_not_fit(self, saved, layout, change, message):
        with pytest.raises(CheckpointError, match=message) as told:
            convert_albef(saved(layout, change), **SIZES)
        assert "\n" not in str(told.value)

    def test_another_image_encoder_has_no_official_names(self):
        image = {"image_size": 32, "patch_size": 8, "width": 12, "depth": 1, "stem": "convolution"}
        text = {"hidden_size": 16, "heads": 2, "text_layers": 1, "fusion_layers": 1, "vocabulary": 40}
        model = EntailmentModel(EntailmentConfig.model_validate({"image": image, "text": text, "dim": 8}))
        with pytest.raises(ConfigError, match="hold a plain vision transformer with patches and positions"):
            to_albef_names(model)

    def test_no_teacher(self, saved):
        with pytest.raises(CheckpointError, match="holds no teacher"):
            convert_albef(saved("assignment"), **SIZES, part="teacher")
