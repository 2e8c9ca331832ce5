"""A saved model gives the same outputs and runs nobody's code; an ONNX file is kept only if it computes the same."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import pytest
import torch
import yaml
from pydantic import BaseModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mc_core import export
from mc_core.errors import CheckpointError, ConfigError, MissingDependencyError, RunError
from mc_core.export import export_onnx, load_model, save_model

HERE = __name__


class NetConfig(BaseModel):
    width: int = 6
    classes: tuple[int, ...] = (4, 3)


class Net(nn.Module):
    """Convolution, batch normalisation (buffers) and a tied pair of linear maps."""

    def __init__(self, config: NetConfig) -> None:
        super().__init__()
        self.config = config
        self.convolution = nn.Conv2d(3, config.width, 3)
        self.normalisation = nn.BatchNorm2d(config.width)
        self.encoder = nn.Linear(config.width, config.width, bias=False)
        self.decoder = nn.Linear(config.width, config.width, bias=False)
        self.decoder.weight = self.encoder.weight

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        return cls(NetConfig(**config))

    def forward(self, x_BCHW: Tensor) -> Tensor:
        x_BD = self.normalisation(self.convolution(x_BCHW)).relu().mean((2, 3))
        return self.decoder(self.encoder(x_BD))


class PlainNet(nn.Linear):
    """A class whose config is a dict."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__(config["in"], config["out"])
        self.config = config

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        return cls(config)


class Unsaveable(nn.Linear):
    pass


class NotAModule:
    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        return cls()


class Holder:
    """A class reached under a name that is not its own."""

    alias = PlainNet


NET, PLAIN = f"{HERE}:Net", f"{HERE}:PlainNet"


@pytest.fixture
def net() -> Net:
    torch.manual_seed(3)
    net = Net(NetConfig())
    net(torch.randn(8, 3, 9, 9))  # moves the running statistics
    return net


@pytest.fixture
def saved(net: Net, tmp_path: Path) -> Path:
    return save_model(net, tmp_path / "model")


def listing(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def edit(folder: Path, **changes: Any) -> None:
    description = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**description, **changes}))


class TestSaveAndLoad:
    def test_outputs_buffers_and_ties_come_back(self, net: Net, saved: Path) -> None:
        x = torch.randn(2, 3, 9, 9)
        back = load_model(saved, allow=[NET])
        assert isinstance(back, Net)
        assert not back.training
        assert torch.equal(back(x), net.eval()(x))
        assert back.encoder.weight is back.decoder.weight
        assert back.config == net.config
        assert {k: v.dtype for k, v in back.state_dict().items()} == {k: v.dtype for k, v in net.state_dict().items()}

    def test_the_folder_is_what_the_module_says(self, saved: Path) -> None:
        assert listing(saved) == ["README.md", "config.json", "model.safetensors"]
        assert listing(saved.parent) == ["model"]
        description = json.loads((saved / "config.json").read_text())
        assert description == {
            "format": 1,
            "class": NET,
            "config": {"width": 6, "classes": [4, 3]},
            "mc_core": description["mc_core"],
        }
        assert description["mc_core"][0].isdigit()
        names = load_file(saved / "model.safetensors").keys()
        assert len({"encoder.weight", "decoder.weight"} & names) == 1

    def test_a_dict_as_config_and_a_non_contiguous_weight(self, tmp_path: Path) -> None:
        model = PlainNet({"in": 4, "out": 3})
        model.weight = nn.Parameter(torch.randn(4, 3).T)
        back = load_model(save_model(model, tmp_path / "m"), allow=[PLAIN])
        assert torch.equal(back.get_parameter("weight"), model.weight)
        assert isinstance(back, PlainNet)
        assert back.config == {"in": 4, "out": 3}

    def test_loading_leaves_the_random_stream_alone(self, saved: Path) -> None:
        torch.manual_seed(0)
        expected = torch.rand(3)
        torch.manual_seed(0)
        load_model(saved, allow=[NET])
        assert torch.equal(torch.rand(3), expected)

    def test_a_whole_package_can_be_allowed(self, saved: Path) -> None:
        assert isinstance(load_model(saved, allow=[HERE.partition(".")[0]]), Net)
        assert isinstance(load_model(saved, allow=NET), Net)

    def test_renewing_a_folder_keeps_what_else_is_in_it(self, net: Net, saved: Path) -> None:
        (saved / "notes.txt").write_text("mine")
        with torch.no_grad():
            net.encoder.weight.zero_()
        save_model(net, saved)
        assert (saved / "notes.txt").read_text() == "mine"
        assert not load_model(saved, allow=[NET]).get_parameter("encoder.weight").any()
        assert listing(saved.parent) == ["model"]

    def test_interrupted_while_renewing_it_is_no_model_rather_than_a_mixture(
        self, net: Net, saved: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        real = Path.replace

        def fail_at_the_card(self: Path, target: Path) -> Path:
            if Path(target) == saved / "README.md":
                raise KeyboardInterrupt
            return real(self, target)

        monkeypatch.setattr(Path, "replace", fail_at_the_card)
        with pytest.raises(KeyboardInterrupt):
            save_model(net, saved)
        with pytest.raises(CheckpointError, match=r"has no config\.json"):
            load_model(saved, allow=[NET])
        assert listing(saved.parent) == ["model"]

    def test_an_error_while_writing_leaves_the_old_model(
        self, net: Net, saved: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        before = {path.name: path.read_bytes() for path in saved.iterdir()}

        def full(*_: object) -> None:
            raise OSError(28, os.strerror(28))

        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(RunError, match="free space") as caught:
            save_model(net, saved)
        assert str(saved / "model.safetensors") in str(caught.value)
        assert ".part" not in str(caught.value)
        assert {path.name: path.read_bytes() for path in saved.iterdir()} == before
        assert listing(saved.parent) == ["model"]

    def test_a_file_in_the_way(self, net: Net, tmp_path: Path) -> None:
        (tmp_path / "model").write_text("mine")
        with pytest.raises(ConfigError, match="is a file; choose another name"):
            save_model(net, tmp_path / "model")
        assert (tmp_path / "model").read_text() == "mine"

    def test_a_relative_folder(self, net: Net, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "here").mkdir()
        monkeypatch.chdir(tmp_path / "here")
        save_model(net, "a/b")
        save_model(net, ".")
        assert isinstance(load_model(".", allow=[NET]), Net)
        assert isinstance(load_model("a/b", allow=[NET]), Net)
        assert listing(tmp_path) == ["here"]

    def test_what_cannot_be_saved_is_said_before_anything_is_written(self, tmp_path: Path) -> None:
        class Local(PlainNet):
            pass

        with pytest.raises(ConfigError, match="Unsaveable cannot be saved: it needs an attribute config"):
            save_model(Unsaveable(2, 2), tmp_path / "m")
        with pytest.raises(ConfigError, match="define the class at the top of a module"):
            save_model(Local({"in": 1, "out": 1}), tmp_path / "m")
        with pytest.raises(ConfigError, match=r"PlainNet\.config cannot be saved as JSON: .*object"):
            save_model(PlainNet({"in": 1, "out": 1, "x": object()}), tmp_path / "m")
        with pytest.raises(ConfigError, match=r"PlainNet\.config cannot be saved as JSON"):
            save_model(PlainNet({"in": 1, "out": 1, "x": float("nan")}), tmp_path / "m")
        model = PlainNet({"in": 1, "out": 1})
        model.config = [1]  # type: ignore[assignment]
        with pytest.raises(ConfigError, match=r"PlainNet\.config is list"):
            save_model(model, tmp_path / "m")
        assert listing(tmp_path) == []


REFERENCES: list[Any] = ["os:system", "builtins:eval", "torch.nn:Linear", "mc_core.export:torch.nn.Linear", "", ":"]
REFERENCES += ["mc_core.export:load_model", "mc_core.errors:McError", "mc_core.errors:Absent", "mc_core.absent:X"]
REFERENCES += ["mc_core.__main__:X", "mc_core", "mc_core.errors:", "mc_core..x:Y", "..evil:X", None, ["mc_core"], 7]


class TestTrust:
    def test_a_class_that_is_not_ours_needs_permission_which_the_message_gives(self, saved: Path) -> None:
        with pytest.raises(CheckpointError, match="not from an installed mc_… package") as caught:
            load_model(saved)
        assert f"allow=['{NET}']" in str(caught.value)
        assert str(saved / "config.json") in str(caught.value)

    @pytest.mark.parametrize("name", ["evil", "mc_evil", "mc_core_evil"])
    def test_code_that_can_be_imported_but_is_not_installed_is_not(
        self, saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
    ) -> None:
        (tmp_path / f"{name}.py").write_text("raise SystemExit('this ran')")
        monkeypatch.syspath_prepend(tmp_path)
        edit(saved, **{"class": f"{name}:Net"})
        with pytest.raises(CheckpointError, match="not from an installed mc_… package"):
            load_model(saved)
        with pytest.raises(SystemExit, match="this ran"):
            load_model(saved, allow=[name])

    def test_a_command_of_ours_is_not_run_by_loading(self) -> None:
        assert export._is_ours("mc_core.export")
        assert not export._is_ours("mc_core.__main__")

    @pytest.mark.parametrize("reference", REFERENCES)
    def test_references_to_anything_but_a_model_class(self, saved: Path, reference: Any) -> None:
        edit(saved, **{"class": reference})
        with pytest.raises(CheckpointError, match=r"config\.json"):
            load_model(saved)

    @pytest.mark.parametrize("name", ["NotAModule", "Unsaveable", "nn.Linear", "Net.from_config", "Holder.alias"])
    def test_allowed_but_no_model_class(self, saved: Path, name: str) -> None:
        edit(saved, **{"class": f"{HERE}:{name}"})
        with pytest.raises(CheckpointError, match=r"is no nn\.Module class with from_config"):
            load_model(saved, allow=[f"{HERE}:{name}"])


class TestMisfits:
    def change(self, folder: Path, **tensors: Tensor | None) -> None:
        weights = load_file(folder / "model.safetensors")
        merged = {**weights, **{name.replace("__", "."): tensor for name, tensor in tensors.items()}}
        kept = {name: tensor.clone() for name, tensor in merged.items() if tensor is not None}
        save_file(kept, folder / "model.safetensors")

    def test_missing_unexpected_and_wrong_shapes_in_one_line(self, saved: Path) -> None:
        self.change(saved, convolution__bias=None, extra__weight=torch.ones(1), convolution__weight=torch.ones(2, 3))
        with pytest.raises(CheckpointError) as caught:
            load_model(saved, allow=[NET])
        text = str(caught.value)
        assert "\n" not in text
        assert str(saved / "model.safetensors") in text
        assert text.endswith(
            "does not fit Net: missing: convolution.bias; unexpected: extra.weight; "
            "wrong shape: convolution.weight is (2, 3), not (6, 3, 3, 3)"
        )

    def test_both_of_a_tied_pair_missing(self, saved: Path) -> None:
        self.change(saved, encoder__weight=None, decoder__weight=None)
        with pytest.raises(CheckpointError, match=r"missing: encoder\.weight, decoder\.weight$"):
            load_model(saved, allow=[NET])

    def test_long_lists_are_cut(self, saved: Path) -> None:
        self.change(saved, **{f"more{i}": torch.ones(1) for i in range(8)})
        with pytest.raises(CheckpointError, match="unexpected: more0, more1, more2, more3, more4 and 3 more"):
            load_model(saved, allow=[NET])

    def test_another_config(self, saved: Path) -> None:
        edit(saved, config={"width": "wide"})
        with pytest.raises(CheckpointError, match=r"does not accept its config .*width") as caught:
            load_model(saved, allow=[NET])
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            ("{", "line 1, column 2: not JSON"),
            ("[]", "not the configuration of a model"),
            ('{"class": "x"}', "not the configuration of a model"),
            ('{"format": 2, "class": "a:B", "config": {}}', "model format 2, this version reads 1"),
        ],
    )
    def test_broken_config_files(self, saved: Path, content: str, message: str) -> None:
        (saved / "config.json").write_text(content)
        with pytest.raises(CheckpointError, match=message):
            load_model(saved)

    def test_missing_and_damaged_files(self, saved: Path, tmp_path: Path) -> None:
        with pytest.raises(CheckpointError, match="absent is no folder"):
            load_model(tmp_path / "absent")
        (saved / "model.safetensors").write_bytes((saved / "model.safetensors").read_bytes()[:-3])
        with pytest.raises(CheckpointError, match=r"model\.safetensors: cannot be read, probably cut off"):
            load_model(saved, allow=[NET])
        (saved / "model.safetensors").unlink()
        with pytest.raises(CheckpointError, match=r"model\.safetensors: does not exist"):
            load_model(saved, allow=[NET])


class TestCard:
    def card(self, folder: Path) -> tuple[dict[str, Any], str]:
        _, front, body = (folder / "README.md").read_text().split("---\n", 2)
        return yaml.safe_load(front), body

    def test_front_matter_and_sections(self, net: Net, tmp_path: Path) -> None:
        front, body = self.card(
            save_model(
                net,
                tmp_path / "m",
                card={
                    "title": "Digits encoder",
                    "description": "Sees digits.",
                    "tags": ["moco-v2"],
                    "datasets": "mnist",
                    "citation": "@article{he2020, title={Momentum Contrast}}",
                    "epochs": 100,
                    "note": "a | b\n<script>",
                },
                license="cc-by-4.0",
            )
        )
        assert front == {
            "library_name": "mc-core",
            "license": "cc-by-4.0",
            "tags": ["momentum-contrast", "self-supervised-learning", "moco-v2"],
            "datasets": ["mnist"],
        }
        assert body.startswith("\n# Digits encoder\n\nSees digits.\n")
        parameters = sum(p.numel() for p in net.parameters())
        assert f"`{NET}` with {parameters} parameters" in body
        assert f'load_model("path/to/this/folder", allow=["{NET}"])' in body
        assert "| epochs | 100 |\n| note | a \\| b &lt;script> |" in body
        assert "```bibtex\n@article{he2020, title={Momentum Contrast}}\n```" in body

    def test_text_alone_or_nothing(self, net: Net, tmp_path: Path) -> None:
        _, body = self.card(save_model(net, tmp_path / "a", card="Only words."))
        assert "# Net\n\nOnly words.\n" in body
        front, body = self.card(save_model(net, tmp_path / "b"))
        assert front["license"] == "apache-2.0"
        assert "How it was trained" not in body
        assert "Citation" not in body

    def test_the_usage_in_the_card_runs(self, net: Net, saved: Path) -> None:
        code = (saved / "README.md").read_text().partition("```python\n")[2].partition("```")[0]
        scope: dict[str, Any] = {"batch": torch.ones(1, 3, 9, 9)}
        exec(code.replace("path/to/this/folder", str(saved)), scope)
        assert torch.equal(scope["output"], net.eval()(scope["batch"]))


class TwoInputs(nn.Module):
    def forward(self, a_BD: Tensor, b_BD: Tensor) -> dict[str, Tensor]:
        return {"sum": a_BD + b_BD, "product": (a_BD * b_BD).sum(-1)}


class Fixed(nn.Module):
    """Bakes the batch size into the graph."""

    def forward(self, x_BD: Tensor) -> Tensor:
        return x_BD * torch.tensor([float(i) for i in range(len(x_BD))])[:, None]


class Untraceable(nn.Module):
    def forward(self, x_BD: Tensor) -> Tensor:
        return x_BD if bool((x_BD > 0).any()) else -x_BD


class TestOnnx:
    @pytest.mark.parametrize("batch", [1, 2])
    def test_agrees_at_other_batch_sizes_and_restores_every_training_mode(
        self, net: Net, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batch: int
    ) -> None:
        onnxruntime = pytest.importorskip("onnxruntime")
        compared: list[int] = []
        real = export._compare

        def compare(path: Path, batches: Any, expected: Any) -> Any:
            compared.extend(len(x) for (x,) in batches)
            return real(path, batches, expected)

        monkeypatch.setattr(export, "_compare", compare)
        net.train()
        net.normalisation.eval()
        before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
        report = export_onnx(net, torch.randn(batch, 3, 9, 9), tmp_path / "deep/model.onnx")
        assert report.path == tmp_path / "deep/model.onnx"
        assert compared == [batch, batch + 1]
        assert report.max_abs_difference < 1e-5
        assert (report.opset, report.providers) == (20, ("CPUExecutionProvider",))
        assert listing(tmp_path / "deep") == ["model.onnx"]
        assert (net.training, net.normalisation.training, net.encoder.training) == (True, False, True)
        assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
        session = onnxruntime.InferenceSession(str(report.path), providers=["CPUExecutionProvider"])
        x = torch.randn(7, 3, 9, 9)
        (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
        with torch.no_grad():
            torch.testing.assert_close(torch.from_numpy(found), net.eval()(x), atol=1e-5, rtol=1e-5)

    def test_several_inputs_and_outputs_and_a_fixed_batch(self, tmp_path: Path) -> None:
        pytest.importorskip("onnxruntime")
        report = export_onnx(
            TwoInputs(), (torch.ones(2, 3), torch.randn(2, 3)), tmp_path / "m.onnx", dynamic_batch=False
        )
        assert report.max_abs_difference < 1e-6

    def test_a_batch_size_fixed_in_the_model_is_found_out(self, tmp_path: Path) -> None:
        pytest.importorskip("onnxruntime")
        with pytest.raises(RunError, match="try dynamic_batch=False"):
            export_onnx(Fixed(), torch.randn(2, 3), tmp_path / "m.onnx")
        assert listing(tmp_path) == []
        export_onnx(Fixed(), torch.randn(2, 3), tmp_path / "m.onnx", dynamic_batch=False)
        assert listing(tmp_path) == ["m.onnx"]

    @pytest.mark.parametrize("gap", [0.5, float("nan")])
    def test_a_difference_above_the_tolerance_leaves_no_file(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gap: float
    ) -> None:
        pytest.importorskip("onnxruntime")
        real = export._outputs
        monkeypatch.setattr(export, "_outputs", lambda output: [tensor + gap for tensor in real(output)])
        model = nn.Linear(3, 2)
        with pytest.raises(RunError, match=f"differ by {gap:.3g}, more than the tolerance 0.0001") as caught:
            export_onnx(model, torch.randn(2, 3), tmp_path / "m.onnx")
        assert str(tmp_path / "m.onnx") in str(caught.value)
        assert listing(tmp_path) == []
        assert model.training

    def test_a_model_that_cannot_be_exported_is_one_line(self, tmp_path: Path) -> None:
        pytest.importorskip("onnxruntime")
        with pytest.raises(RunError, match="Untraceable could not be exported to ONNX opset 20") as caught:
            export_onnx(Untraceable(), torch.randn(2, 3), tmp_path / "m.onnx")
        assert "\n" not in str(caught.value)
        assert listing(tmp_path) == []

    def test_weights_beyond_the_limit_go_to_a_file_beside_it(
        self, net: Net, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        pytest.importorskip("onnxruntime")
        monkeypatch.setattr(export, "_PROTOBUF_LIMIT", 10_000)
        model = nn.Linear(100, 100)
        report = export_onnx(model, torch.randn(2, 100), tmp_path / "m.onnx")
        assert listing(tmp_path) == ["m.onnx", "m.onnx.data"]
        difference, _ = export._compare(report.path, [(torch.ones(3, 100),)], [[model(torch.ones(3, 100)).detach()]])
        assert difference < 1e-4

    def test_the_extra_is_named_when_a_package_is_missing(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(sys.modules, "onnxscript", None)
        with pytest.raises(MissingDependencyError, match=r'pip install "mc-core\[export\]"'):
            export_onnx(nn.Linear(2, 2), torch.ones(1, 2), tmp_path / "m.onnx")
        assert listing(tmp_path) == []
