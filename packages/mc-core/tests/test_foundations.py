"""Errors, optional imports, lazy names, recipes and the shared command-line parts."""

import json
import os
import platform
import subprocess
import sys

import pytest

from mc_core.cli import Result, call_app, given_fields, run_app
from mc_core.engine.config import Fit
from mc_core.errors import ConfigError, InterruptedRunError, MissingDependencyError, RunError, closest
from mc_core.optional import require
from mc_core.recipes import MethodTable, load_recipe, merge, recipe_names, to_yaml, validated


def _fresh(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def test_importing_the_core_loads_no_torch_and_no_optional_package():
    heavy = [
        "torch",
        "sklearn",
        "matplotlib",
        "onnx",
        "timm",
        "torchvision",
        "transformers",
        "accelerate",
        "tensorboard",
    ]
    code = (
        "import sys, mc_core, mc_core.cli, mc_core.recipes, mc_core.engine.config, mc_core.momentum_schedule, mc_core.files;"
        f"print([name for name in {heavy} if name in sys.modules])"
    )
    assert _fresh(code).strip() == "[]"


def test_importing_all_of_the_core_loads_no_optional_package():
    optional = [
        "sklearn",
        "matplotlib",
        "onnx",
        "onnxruntime",
        "timm",
        "torchvision",
        "transformers",
        "tensorboard",
        "scipy",
    ]
    code = (
        "import importlib, pkgutil, sys, mc_core\n"
        "for module in pkgutil.walk_packages(mc_core.__path__, 'mc_core.'):\n"
        "    importlib.import_module(module.name)\n"
        f"print([name for name in {optional} if name in sys.modules])"
    )
    assert _fresh(code).strip() == "[]"


def test_every_public_name_loads():
    import mc_core
    import mc_core.engine

    for module in (mc_core, mc_core.engine):
        for name in module.__all__:
            assert getattr(module, name) is not None
        assert set(module.__all__) - {"__version__"} <= set(dir(module))
        with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
            _ = module.nonsense


def test_a_missing_package_names_its_extra():
    with pytest.raises(
        MissingDependencyError, match=r"'no_such_thing' is needed to fly: pip install \"mc-core\[wings\]\""
    ):
        require("no_such_thing.inner", extra="mc-core[wings]", purpose="fly")
    with pytest.raises(ModuleNotFoundError, match="json.no_such_part"):
        require("json.no_such_part", extra="x", purpose="y")


def test_closest_names_come_first():
    assert closest("resnet5", ["vit_small", "resnet50", "resnet18"]).startswith("resnet50")


class TestRecipes:
    def test_merge_goes_down_level_by_level(self):
        base = {"a": {"b": 1, "c": {"d": 2}}, "e": [1]}
        assert merge(base, {"a": {"c": {"d": 3}}, "e": [2], "f": 4}) == {"a": {"b": 1, "c": {"d": 3}}, "e": [2], "f": 4}
        assert base["a"]["c"]["d"] == 2

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            ({"epoch": 3}, r"x.yaml: unknown field epoch; did you mean epochs\?"),
            ({"lr": -1}, r"x.yaml: lr: Input should be greater than 0 \(given -1\)"),
            ({"epochs": 2, "steps": 3}, r"give epochs \(2\) or steps \(3\), not both"),
            (
                {"batch_size": 10, "accumulation": 4},
                "batch_size 10 does not divide into 4 micro-batches; take a multiple of 4",
            ),
            ({"milestones": [0.5, 2]}, "milestones .* between 0 and 1"),
            ({"optimizer": "sdg"}, r"optimizer: Input should be 'sgd', .* \(given 'sdg'\)"),
        ],
    )
    def test_what_is_wrong_is_said_in_one_line(self, content, message):
        with pytest.raises(ConfigError, match=message) as caught:
            validated(Fit, content, source="x.yaml")
        assert "\n" not in str(caught.value)

    def test_files(self, tmp_path):
        path = tmp_path / "mine.yaml"
        path.write_text("fit: {lr: 0.1}\n")
        assert load_recipe("mc_core", path) == {"fit": {"lr": 0.1}}
        path.write_text("fit: {lr: 0.1\n")
        with pytest.raises(ConfigError, match=r"mine.yaml line \d: not valid YAML"):
            load_recipe("mc_core", path)
        path.write_text("- 1\n")
        with pytest.raises(ConfigError, match="a recipe is a mapping of fields, this is a list"):
            load_recipe("mc_core", path)
        with pytest.raises(ConfigError, match="cannot read the recipe"):
            load_recipe("mc_core", tmp_path / "absent.yaml")

    def test_shipped_recipes_by_name(self):
        assert "moco-v2" in recipe_names("mc_vision")
        with pytest.raises(ConfigError, match="no recipe named 'moco-v22': did you mean moco-v2"):
            load_recipe("mc_vision", "moco-v22")

    def test_yaml_round_trip(self):
        import yaml

        fit = Fit(epochs=3, betas=(0.8, 0.9))
        assert Fit.model_validate(yaml.safe_load(to_yaml(fit))) == fit

    def test_method_table(self):
        table = MethodTable({"a": ("mc_core.engine.config:Fit", "mc_core.errors:McError")})
        assert table.config_class("a") is Fit
        with pytest.raises(ConfigError, match="no method named 'b': did you mean a"):
            table.method_class("b")


class TestCommandLine:
    def test_given_fields_are_those_the_user_set(self):
        assert given_fields(Fit(lr=0.5, decay_1d=True)) == {"lr": 0.5, "decay_1d": True}
        assert given_fields(None) == {}

    @pytest.mark.parametrize(
        ("error", "code"),
        [
            (ConfigError("bad\nthing"), 2),
            (RunError("bad"), 1),
            (InterruptedRunError("bad"), 130),
            (KeyboardInterrupt(), 130),
        ],
    )
    def test_errors_are_one_line_and_an_exit_code(self, error, code, capsys):
        def fail(_):
            raise error

        assert run_app(fail, []) == code
        shown = capsys.readouterr()
        assert shown.out == ""
        assert shown.err.count("\n") == 1
        assert "Traceback" not in shown.err

    def test_surprises_keep_their_traceback(self):
        def fail(_):
            raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            run_app(fail, [])

    def test_refused_options_become_one_line(self):
        from typing import Annotated

        from cyclopts import App, Parameter

        app = App(name="tool")

        @app.command
        def go(*, fit: Annotated[Fit | None, Parameter(name="fit")] = None) -> None:
            """Go."""

        with pytest.raises(ConfigError, match=r"--fit.batch-size: .*valid integer.* \(given 'many'\)"):
            call_app(app, ["go", "--fit.batch-size", "many"])
        with pytest.raises(ConfigError, match=r"--fit.batchsize.*Did you mean.*batch-size.*\(see tool go --help\)"):
            call_app(app, ["go", "--fit.batchsize", "3"])
        with pytest.raises(ConfigError, match=r"give epochs \(1\) or steps \(2\), not both"):
            call_app(app, ["go", "--fit.epochs", "1", "--fit.steps", "2"])

    def test_a_switch_with_a_value_is_told_how_to_be_switched_off(self):
        from typing import Annotated

        from cyclopts import App, Parameter

        app, seen = App(name="tool"), []

        @app.command
        def go(
            data: str = "none",
            /,
            *,
            fit: Annotated[Fit | None, Parameter(name="fit")] = None,
            bare: Annotated[bool, Parameter(negative=())] = False,
        ) -> None:
            """Go."""
            seen.append((data, bare))

        with pytest.raises(
            ConfigError,
            match=r"--fit.decay-1d takes no value, but 'false' follows: say --fit.no-decay-1d \(see tool go",
        ):
            call_app(app, ["go", "--fit.decay-1d", "false"])
        with pytest.raises(ConfigError, match=r"--bare takes no value, but 'True' follows: leave the value away"):
            call_app(app, ["go", "x", "--bare", "True"])
        for typed in (["false", "--bare"], ["--fit.no-decay-1d", "--bare"], ["--fit.device", "false"]):
            with pytest.raises(SystemExit):
                call_app(app, ["go", *typed])
        assert seen == [("false", True), ("none", True), ("none", False)]

    def test_results(self, tmp_path, capsys):
        found = Result("knn_accuracy", 0.9, {"raw_input": 0.5}, run=tmp_path, seconds=1.234)
        assert json.loads(found.write(tmp_path).read_text()) == {
            "metric": "knn_accuracy",
            "trained": 0.9,
            "baselines": {"raw_input": 0.5},
            "seconds": 1.2,
            "run": str(tmp_path),
        }
        found.show(as_json=True, title="t")
        assert json.loads(capsys.readouterr().out)["trained"] == 0.9
        found.show(as_json=False, title="t")
        table = capsys.readouterr().out
        assert "raw input" in table
        assert "0.900" in table
        assert Result("mae", 1.0, {}, run="r", seconds=0, lower_is_better=True).fields["lower_is_better"] is True

    def test_a_closed_pipe_is_no_error(self, tmp_path):
        script = (
            "from mc_core.cli import run_app, print_json; import sys; "
            "sys.exit(run_app(lambda a: [print_json({'a': 'x' * 1000}) for _ in range(500)], []))"
        )
        done = subprocess.run(
            f'{sys.executable} -c "{script}" | head -1 > {os.devnull}',
            shell=True,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.stderr == ""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can be told to keep freed memory")
def test_kept_memory_comes_back_without_page_faults():
    program = """
import resource, torch
from mc_core.cli import keep_freed_memory
assert keep_freed_memory()
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        torch.ones(50_000_000)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults()
print(faults())
"""
    assert int(_fresh(program)) < 10_000  # each of the ten is 48,829 pages of 4 KiB
