"""Opening runs: finished, unfinished, saved models, and folders that are none of these."""

from types import SimpleNamespace

import pytest
import torch

from mc_core.cli import value_of
from mc_core.engine.checkpoint import CheckpointFolder
from mc_core.errors import CheckpointError, ConfigError, DataError
from mc_core.export import save_model
from mc_core.runs import _without_pretrained, folder_name, need_run_folder, open_model, pick_device
from mc_testkit.toys import ToyEncoder


class Tables:
    """Stands for a package's methods: the recipe's configuration is the encoder's width."""

    def method_class(self, system):
        assert system == "toy"
        return Toy


class Toy(torch.nn.Module):
    def __init__(self, width):
        super().__init__()
        self.encoder = torch.nn.Linear(3, width)


def test_a_folder_that_is_no_run(tmp_path):
    with pytest.raises(DataError, match=r"nope: no such run folder; `mc-x pretrain` makes them"):
        need_run_folder(tmp_path / "nope", command="mc-x pretrain")
    with pytest.raises(DataError, match=r"neither a run folder .* nor a saved encoder"):
        open_model(tmp_path, None, Tables(), command="mc-x pretrain")
    with pytest.raises(CheckpointError, match=r"no model and no checkpoint yet: let `mc-x pretrain` go on"):
        open_model(tmp_path, SimpleNamespace(system="toy", method=2), Tables(), command="mc-x pretrain")


def test_an_unfinished_run_opens_at_its_newest_checkpoint(tmp_path):
    torch.manual_seed(0)
    method = Toy(2)
    folder = CheckpointFolder(tmp_path / "checkpoints")
    folder.save(7, {"method": method.state_dict(), "step": 7})
    found, step = open_model(tmp_path, SimpleNamespace(system="toy", method=2), Tables(), command="x")
    assert step == 7
    assert torch.equal(found.weight, method.encoder.weight)


def test_a_saved_model_opens_by_itself_and_as_that_of_a_run(tmp_path):
    model = ToyEncoder({"width": 3})
    save_model(model, tmp_path / "model")
    found, step = open_model(tmp_path / "model", None, Tables(), command="x")
    assert step is None
    assert torch.equal(found.layer.weight, model.layer.weight)
    CheckpointFolder(tmp_path / "checkpoints").save(12, {"step": 12})
    found, step = open_model(tmp_path, SimpleNamespace(system="toy", method=2), Tables(), command="x")
    assert step == 12
    assert torch.equal(found.layer.weight, model.layer.weight)


def test_what_follows_an_option():
    assert value_of(["a", "--recipe", "b"], "--recipe") == "b"
    assert value_of(["--recipe=c"], "--recipe") == "c"
    assert value_of(["--recipe"], "--recipe") is None
    assert value_of(["--recipes", "b"], "--recipe") is None


def test_the_device_asked_for():
    assert pick_device("cpu") == torch.device("cpu")
    assert pick_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")


def test_a_gpu_that_is_not_there_is_one_line(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match=r"'cuda:1'.*no GPU here; take cpu"):
        pick_device("cuda:1")


def test_settings_of_a_checkpoint_need_no_pretrained_file():
    from pydantic import BaseModel

    class Encoder(BaseModel):
        pretrained: str | bool = False
        width: int = 3

    class Method(BaseModel):
        encoder: Encoder = Encoder()

    assert _without_pretrained(Method(encoder=Encoder(pretrained="gone", width=5))) == Method(encoder=Encoder(width=5))
    assert _without_pretrained("of another kind") == "of another kind"


@pytest.mark.parametrize(
    ("text", "name"), [("hf:cifar 10", "hf-cifar-10"), ("a/b\\c", "a-b-c"), ("été", "t"), ("...", "run"), ("", "run")]
)
def test_a_folder_name_holds_nothing_that_a_path_would_read(text, name):
    assert folder_name(text) == name
