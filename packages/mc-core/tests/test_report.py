"""The page says what the files say, escapes everything, needs nothing from elsewhere, and survives what is missing."""

from __future__ import annotations

import base64
import io
import json
import math
import os
import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mc_core import report
from mc_core.errors import DataError, RunError
from mc_core.report import environment, write_report

GIF = base64.b64decode("R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7")
VOID = {"meta", "img", "source", "br", "link", "input", "hr"}
HOSTILE = "<script>alert(1)</script>\"'&\\ $x_{$ </style></pre></title>"
RESULT = {
    "metric": "knn_accuracy",
    "trained": 0.93,
    "baselines": {"raw_input": 0.61, "random_encoder": 0.55},
    "seconds": 97.2,
    "run": "runs/x",
}


class Page(HTMLParser):
    """A parsed page; parsing fails when tags do not match."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.sections: dict[str, str] = {}
        self._open: list[str] = []
        self._heading = ""
        self.text = ""
        self.feed(path.read_text(encoding="utf-8"))
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)
        if tag == "h2":
            self._heading = ""

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" in self._open or not data.strip():
            return
        self.text += data + "\n"
        if self._open[-1] == "h2":
            self._heading = data
        elif self._heading:
            self.sections[self._heading] = self.sections.get(self._heading, "") + data + "\n"

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def write_metrics(folder: Path, records: list[dict[str, Any]], tail: str = "") -> None:
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records) + tail)


def healthy(count: int = 60) -> list[dict[str, Any]]:
    records = []
    for i in range(count):
        record = {
            "step": 20 * (i + 1),
            "epoch": i / 10,
            "loss": 5.0 * math.exp(-i / 10) + 2 + 0.1 * math.sin(7.0 * i),
            "lr": 0.03 * (1 - i / count),
            "momentum": 0.999,
            "samples_per_second": 812.0,
            "health/spread": 0.8,
            "health/effective_rank": 31.2,
            "health/alignment": 0.4,
            "health/uniformity": -2.9,
            "health/drift": 0.01,
            "note": "not a number",
            "flag": True,
        }
        if i % 20 == 19:
            record["eval/knn_accuracy"] = 0.5 + i / 200
        records.append(record)
    return records


def pixels(png: bytes) -> np.ndarray:
    from matplotlib.image import imread

    assert png.startswith(b"\x89PNG\r\n\x1a\n")
    return imread(io.BytesIO(png), format="png")[..., :3]


def decoded(url: str | None) -> bytes:
    assert url is not None
    head, _, body = url.partition(",")
    assert re.fullmatch(r"data:image/(png|jpeg|gif|webp);base64", head)
    return base64.b64decode(body, validate=True)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run that has logged two metrics."""
    folder = tmp_path / "my-run"
    folder.mkdir()
    write_metrics(
        folder, [{key: record[key] for key in ("step", "loss", "health/effective_rank")} for record in healthy()]
    )
    (folder / "recipe.yaml").write_text("method: moco-v2\nfit:\n  lr: 0.03\n")
    (folder / "result.json").write_text(json.dumps(RESULT))
    return folder


class TestContents:
    def test_everything_is_on_the_page(self, run: Path) -> None:
        pytest.importorskip("matplotlib")
        path = write_report(run, title="MoCo on digits", bibtex="@article{he2020}\n")
        assert path == run / "report.html"
        page = Page(path)
        assert page.text.startswith("MoCo on digits\nMoCo on digits\nrun my-run · 1,200 steps · 1 min 37 s\n")
        assert list(page.sections) == [
            "Result",
            "Health",
            "Recipe",
            "Environment",
            "How to cite",
        ]
        for value in ("kNN accuracy", "0.93", "0.32 better than the best baseline (raw input, 0.61)", "random encoder"):
            assert value in page.sections["Result"]
        assert page.sections["Recipe"] == "method: moco-v2\nfit:\n  lr: 0.03\n"
        assert page.sections["How to cite"] == "@article{he2020}\n"
        assert "torch" in page.sections["Environment"]
        assert all(attributes["class"] != "note" for attributes in page.all("p") if attributes)

    def test_bars_are_in_proportion(self, run: Path) -> None:
        page = Page(write_report(run, title="t"))
        widths = [float((a["style"] or "")[6:-1]) for a in page.all("span") if "style" in a]
        assert widths == [100.0, pytest.approx(100 * 0.61 / 0.93, abs=0.1), pytest.approx(100 * 0.55 / 0.93, abs=0.1)]

    @pytest.mark.parametrize(
        ("changes", "text"),
        [
            ({"trained": 0.6}, "not better than the best baseline (raw input, 0.61)"),
            ({"lower_is_better": True, "trained": 0.5}, "0.05 better than the best baseline (random encoder, 0.55)"),
            ({"lower_is_better": True}, "not better than the best baseline (random encoder, 0.55)"),
            ({"lower_is_better": True}, "lower is better"),
            ({"baselines": {}}, "0.93\n."),
            ({"baselines": None}, "0.93\n."),
            ({"baselines": {"a": None, "b": 0.1}}, "0.83 better than the best baseline (b, 0.1)"),
            ({"trained": math.nan}, "nan"),
            ({"n_test": 12345}, "n test\n12,345"),
        ],
    )
    def test_the_headline_is_honest(self, run: Path, changes: dict[str, Any], text: str) -> None:
        page = Page(write_report(run, title="t", result={**RESULT, **changes}))
        assert text in page.sections["Result"]

    def test_a_result_without_comparison_is_a_table(self, run: Path) -> None:
        page = Page(write_report(run, title="t", result={"recall_at_1": 0.41, "pairs": 1000}))
        assert page.sections["Result"] == "recall at 1\n0.41\npairs\n1,000\n"

    def test_a_result_given_wins_over_the_file(self, run: Path) -> None:
        page = Page(write_report(run, title="t", result={**RESULT, "trained": 0.77}))
        assert "0.77" in page.sections["Result"]
        assert "0.93" not in page.sections["Result"]

    def test_the_environment_of_the_run_wins_over_that_of_the_reporter(self, run: Path) -> None:
        (run / "environment.json").write_text(json.dumps({"torch": "1.2.3-of-the-run"}))
        assert Page(write_report(run, title="t")).sections["Environment"] == "torch\n1.2.3-of-the-run\n"

    def test_environment_names_versions_and_hardware_but_no_host(self) -> None:
        import platform

        import torch

        found = environment()
        assert found["torch"] == torch.__version__.partition("+")[0] or found["torch"] == torch.__version__
        assert f"{os.cpu_count()} logical cores" in found["Processor"]
        assert platform.node() not in " ".join(found.values()).split()

    def test_nothing_comes_from_elsewhere_and_nothing_runs(self, run: Path) -> None:
        page = Page(write_report(run, title="t"))
        assert not {tag for tag, _ in page.tags} & {"script", "link", "iframe", "object", "base", "form"}
        for _, attributes in page.tags:
            assert not [name for name in attributes if name.startswith("on") or name == "href"]
            for name in ("src", "srcset"):
                assert (attributes.get(name) or "data:").startswith("data:")
        policies = [a["content"] for a in page.all("meta") if a.get("http-equiv") == "Content-Security-Policy"]
        assert policies == ["default-src 'none'; img-src data:; style-src 'unsafe-inline'"]
        style = (run / "report.html").read_text().partition("<style>")[2].partition("</style>")[0]
        assert "url(" not in style
        assert "@import" not in style
        assert "prefers-color-scheme: dark" in style


class TestCurves:
    def test_one_png_for_each_numeric_key(self, run: Path) -> None:
        pytest.importorskip("matplotlib")
        write_metrics(run, healthy())
        page = Page(write_report(run, title="t"))
        names = sorted(path.name for path in (run / "curves").iterdir())
        assert names == [
            "eval-knn-accuracy.png",
            "health-alignment.png",
            "health-drift.png",
            "health-effective-rank.png",
            "health-spread.png",
            "health-uniformity.png",
            "loss.png",
            "lr.png",
            "momentum.png",
            "samples-per-second.png",
        ]
        headings = re.findall("<h2>(.*?)</h2>", (run / "report.html").read_text())
        assert headings[2:6] == ["Training", "Evaluation", "Health over time", "Other"]
        alternatives = [a["alt"] for a in page.all("img")]
        assert alternatives[:2] == [
            "Training loss: 7 at the start, 1.914 at the end, 60 points",
            "Learning rate: 0.03 at the start, 0.0005 at the end, 60 points",
        ]
        assert alternatives[3] == "kNN accuracy: 0.595 at the start, 0.795 at the end, 3 points"

    def test_pictures_hold_a_line_in_light_and_dark(self, run: Path) -> None:
        pytest.importorskip("matplotlib")
        page = Page(write_report(run, title="t"))
        for image, source in zip(page.all("img"), page.all("source"), strict=True):
            light, dark = pixels(decoded(image["src"])), pixels(decoded(source["srcset"]))
            assert light.shape == dark.shape == (int(image["height"] or 0), int(image["width"] or 0), 3)
            assert source["media"] == "(prefers-color-scheme: dark)"
            assert light[0, 0].mean() > 0.95
            assert dark[0, 0].mean() < 0.15
            blue = (light[..., 2] - light[..., 0]) > 0.3
            assert blue.sum() > 100  # the line, in the only saturated colour
        assert (run / "curves/loss.png").read_bytes() == decoded(page.all("img")[0]["src"])

    def test_the_same_run_gives_the_same_bytes(self, run: Path) -> None:
        pytest.importorskip("matplotlib")
        first = write_report(run, title="t").read_bytes()
        assert write_report(run, title="t").read_bytes() == first

    def test_no_global_state_of_matplotlib_is_touched(self, run: Path) -> None:
        matplotlib = pytest.importorskip("matplotlib")
        before, pyplot = dict(matplotlib.rcParams), "matplotlib.pyplot" in sys.modules
        write_report(run, title="t")
        assert dict(matplotlib.rcParams) == before
        assert ("matplotlib.pyplot" in sys.modules) == pyplot

    def test_smoothing_is_a_centred_mean_that_skips_what_is_not_there(self) -> None:
        values = [float(i % 7) for i in range(200)]
        values[50] = math.nan
        half = 200 // 40
        expected = [
            np.nanmean(values[max(0, i - half) : i + half + 1])  # by definition
            for i in range(200)
        ]
        np.testing.assert_allclose(report._smoothed(values), expected)
        assert math.isnan(report._smoothed([1.0, math.nan, 1.0])[1])
        np.testing.assert_allclose(report._smoothed([2.0] * 100), 2.0)

    def test_points_are_sorted_and_the_last_word_on_a_step_counts(self, tmp_path: Path) -> None:
        write_metrics(
            tmp_path, [{"step": 2, "loss": 9.0}, {"step": 1, "loss": 3}, {"step": 2, "loss": 4.0, "lr": None}]
        )
        (series,) = report._read_series(tmp_path / "metrics.jsonl", [])
        assert (series.key, series.steps, series.values) == ("loss", [1.0, 2.0], [3.0, 4.0])

    def test_keys_with_the_same_file_name_get_two_files(self, tmp_path: Path) -> None:
        pytest.importorskip("matplotlib")
        write_metrics(tmp_path, [{"step": 1, "a/b": 1, "a_b": 2}])
        assert len(Page(write_report(tmp_path, title="t")).all("img")) == 2
        assert sorted(path.name for path in (tmp_path / "curves").iterdir()) == ["a-b-2.png", "a-b.png"]

    @pytest.mark.parametrize(
        ("key", "group", "labels"),
        [
            ("loss", "loss", ("Training loss", "loss")),
            ("loss/image_text", "loss", ("Training loss: image text", "loss")),
            ("koleo_loss", "loss", ("Koleo loss", "koleo loss")),
            ("lr", "lr", ("Learning rate", "learning rate")),
            ("health/drift/image", "health", ("Momentum encoder's distance: image", "‖θk − θq‖ / ‖θq‖")),
            ("health/loss", "health", ("Loss", "loss")),
            ("eval/retrieval/recall_at_1", "eval", ("Retrieval: recall at 1", "recall at 1")),
            ("grad_norm", "other", ("Grad norm", "grad norm")),
            ("healthy", "other", ("Healthy", "healthy")),
        ],
    )
    def test_grouping_and_labels(self, key: str, group: str, labels: tuple[str, str]) -> None:
        series = report._Series(key, [1.0], [1.0])
        assert (series.group, series.labels) == (group, labels)

    @pytest.mark.parametrize(
        "records", [[{"step": 5, "loss": 1.0}], [{"step": 1e9, "loss": 1e30}, {"step": 2e9, "loss": -1}]]
    )
    def test_few_and_extreme_points(self, tmp_path: Path, records: list[dict[str, Any]]) -> None:
        pytest.importorskip("matplotlib")
        write_metrics(tmp_path, records)
        write_report(tmp_path, title="t")
        assert pixels((tmp_path / "curves/loss.png").read_bytes()).std() > 0.02


class TestHealth:
    def verdicts(self, records: list[dict[str, Any]], folder: Path) -> list[tuple[str, str]]:
        write_metrics(folder, records)
        return report._verdicts({s.key: s for s in report._read_series(folder / "metrics.jsonl", [])})

    def test_a_healthy_run(self, tmp_path: Path) -> None:
        found = self.verdicts(healthy(), tmp_path)
        assert [state for state, _ in found] == ["good"] * 4
        assert found[0][1].startswith("The loss fell from 5.")
        assert "still falling" not in found[0][1]
        assert found[1][1] == "The features are spread out: 0.80, where 1 is even and 0 collapsed."

    def test_the_words_are_on_the_page(self, run: Path) -> None:
        assert (
            "About 31 directions of the feature space are in use."
            in Page(write_report(run, title="t")).sections["Health"]
        )

    @pytest.mark.parametrize(
        ("key", "values", "state", "words"),
        [
            ("health/spread", [0.9, 0.001], "bad", "The representation has collapsed"),
            ("health/spread", [0.9, 0.1], "warn", "crowd together: spread 0.10"),
            ("health/spread", [0.001, 0.9], "warn", "collapsed for a while (spread 0.0010 at step 0)"),
            ("health/effective_rank", [40.0, 1.5], "bad", "in use, down from 40."),
            ("health/effective_rank", [40.0, 15.0], "warn", "About 15 directions"),
            ("health/effective_rank", [40.0, 39.0], "good", "About 39 directions of the feature space are in use."),
            ("health/alignment", [0.1, 1.6], "warn", "1.60 apart"),
            ("health/queue_fill", [0.1, 0.4], "info", "The queue ended 40% full"),
            ("loss", [2.0, None], "bad", "not a finite number at 1 of 2 logged steps, first at 1."),
            ("loss", [2.0, 3.0], "warn", "rose from 2 to 3"),
            ("loss", [2.0, 2.0], "info", "The loss is 2."),
            ("loss", [5.0 - i / 100 for i in range(100)], "good", "still falling at the end"),
            ("loss", [5.0, 1.0], "info", "No health checks were logged"),
        ],
    )
    def test_each_verdict(self, tmp_path: Path, key: str, values: list[Any], state: str, words: str) -> None:
        found = self.verdicts([{"step": step, key: value} for step, value in enumerate(values)], tmp_path)
        assert [s for s, text in found if words in text] == [state]


class TestHostileAndMissing:
    def test_everything_is_escaped(self, tmp_path: Path) -> None:
        pytest.importorskip("matplotlib")
        folder = tmp_path / "run <b>x<i>"
        folder.mkdir()
        write_metrics(
            folder, [{"step": i, HOSTILE: i, "health/" + HOSTILE: 1.0, "漢字": 2, "../../up": 1} for i in range(3)]
        )
        (folder / "recipe.yaml").write_text(HOSTILE)
        (folder / "environment.json").write_text(json.dumps({HOSTILE: HOSTILE}))
        result = {"metric": HOSTILE, "trained": 1, "baselines": {HOSTILE: 0.5}, HOSTILE: HOSTILE}
        (folder / "one.gif").write_bytes(GIF)
        figures = [(HOSTILE, folder / "one.gif"), (HOSTILE, folder / HOSTILE[-9:])]
        page = Page(write_report(folder, title=HOSTILE, result=result, figures=figures, bibtex=HOSTILE))
        assert not {tag for tag, _ in page.tags} & {"script", "b", "i"}
        assert page.text.count(HOSTILE) >= 8
        assert page.text.count("alert(1)") >= 11
        assert HOSTILE in [a["alt"] for a in page.all("img")]
        assert page.sections["Recipe"].strip() == HOSTILE
        assert {p.parent for p in tmp_path.rglob("*.png")} == {folder / "curves"}
        assert not [p for p in tmp_path.iterdir() if p != folder]

    def test_braces_in_the_content_are_no_placeholders(self, run: Path) -> None:
        (run / "recipe.yaml").write_text("a: {title} {0} {{}}")
        page = Page(write_report(run, title="{body}"))
        assert page.sections["Recipe"] == "a: {title} {0} {{}}\n"
        assert page.text.startswith("{body}\n")

    def test_an_empty_folder_still_gives_a_page(self, tmp_path: Path) -> None:
        page = Page(write_report(tmp_path, title="t"))
        assert "There are no curves: the run has left no metrics.jsonl" in page.text
        assert "This folder has no recipe.yaml." in page.sections["Recipe"]
        assert "Result" not in page.sections
        assert sorted(path.name for path in tmp_path.iterdir()) == ["report.html"]

    def test_a_torn_last_line_is_left_out(self, run: Path) -> None:
        write_metrics(run, healthy(3), tail='{"step": 80, "lo')
        page = Page(write_report(run, title="t"))
        assert "60 steps" in page.text
        assert "There are no curves" not in page.text

    def test_broken_files_are_named(self, run: Path) -> None:
        (run / "metrics.jsonl").write_text('{"step": 1}\nbroken\n{"step": 2}\n')
        (run / "result.json").write_text("{")
        text = Page(write_report(run, title="t")).text
        assert "There are no curves: metrics.jsonl, line 2: not a JSON object" in text
        assert "result.json was left out: result.json, line 1, column 2: not JSON" in text
        assert str(run) not in text

    def test_metrics_without_numbers(self, run: Path) -> None:
        write_metrics(run, [{"step": 1, "loss": None}, {"loss": 3.0}, {"step": "x", "loss": 1.0}])
        assert "There are no curves: metrics.jsonl holds no numbers yet." in Page(write_report(run, title="t")).text

    def test_without_matplotlib_the_page_names_the_extra(self, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in [name for name in sys.modules if name.partition(".")[0] == "matplotlib"]:
            monkeypatch.delitem(sys.modules, name)
        monkeypatch.setitem(sys.modules, "matplotlib", None)
        page = Page(write_report(run, title="t"))
        assert 'pip install "mc-core[report]"' in page.text
        assert not page.all("img")
        assert "0.93" in page.sections["Result"]
        assert "The loss fell" in page.sections["Health"]
        assert not (run / "curves").exists()

    def test_pictures_are_embedded_and_what_is_none_is_named(self, run: Path) -> None:
        (run / "one.gif").write_bytes(GIF)
        (run / "bad.png").write_text("<svg onload=alert(1)>")
        figures = [("Nearest & dearest", run / "one.gif"), ("Bad", run / "bad.png"), ("Gone", run / "gone.png")]
        page = Page(write_report(run, title="t", figures=figures))
        (image,) = [a for a in page.all("img") if a["alt"] == "Nearest & dearest"]
        assert decoded(image["src"]) == GIF
        assert "Nearest & dearest" in page.sections["Pictures"]
        assert "bad.png is not shown: neither PNG, JPEG, GIF nor WebP" in page.sections["Pictures"]
        assert "gone.png is not shown: No such file or directory" in page.sections["Pictures"]

    def test_no_folder(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="absent is no folder of a run"):
            write_report(tmp_path / "absent", title="t")
        assert list(tmp_path.iterdir()) == []

    def test_a_full_disk_leaves_the_old_page(self, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (run / "metrics.jsonl").unlink()
        before = write_report(run, title="old").read_bytes()

        def full(*_: object) -> None:
            raise OSError(28, os.strerror(28))

        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(RunError, match=r"report\.html could not be written .*free space"):
            write_report(run, title="new")
        assert (run / "report.html").read_bytes() == before


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(97.2, ["1 min 37 s"]), (0.4, ["0.4 s"]), (3600, ["1 h"]), (9000.0, ["2 h 30 min"]), (None, []), (math.inf, [])],
)
def test_durations(seconds: float | None, text: list[str]) -> None:
    assert report._duration({"seconds": seconds}) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.123456, "0.1235"), (-0.5, "−0.5"), (1234567.8, "1,234,568"), (3.0, "3"), (math.inf, "inf"), (1e-7, "1e−07")],
)
def test_numbers(value: float, text: str) -> None:
    assert report._number(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (0.1 + 0.2, "0.3"),
        (-0.0025, "−0.0025"),
        (12000, "12k"),
        (-1500, "−1.5k"),
        (2e6, "2M"),
        (1e30, "1e+30"),
    ],
)
def test_tick_labels_fit_the_margin(value: float, text: str) -> None:
    assert report._short(value) == text
