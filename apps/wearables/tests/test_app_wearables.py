"""The whole way of a user: recordings, store, run, probe, embeddings, export; and what privacy promises."""

from __future__ import annotations

import json

import numpy as np
import pyarrow.parquet as pq
import pytest

from mc_core.files import read_json
from mc_wearables import SegmentStore, embed, load_encoder


def test_ingest_counts_everything_and_adds_only_what_is_new(recordings, store, ingest_options, command):
    segments = SegmentStore.open(store).segments()
    assert (len(segments), segments.channels, segments.samples) == (14 * 3 * 2, 1, 320)
    assert len(segments.participant_keys) == 14
    again = command("ingest", recordings / "data", "--out", store, *ingest_options, "--json").json
    assert (again["skipped"], again["read"], again["kept"], again["store_segments"]) == (42, 0, 0, 84)
    shown = command("inspect", store)
    assert shown.code == 0
    assert "participants" in shown.out
    assert "14" in shown.out


def test_no_name_reaches_the_store_or_the_run(recordings, store, trained, command):
    run, _ = trained
    done = command(
        "probe", run, "--labels", recordings / "labels.csv", "--target", "age", "--draws", 20, "--no-baselines"
    )
    assert done.code == 0, done.err
    for folder in (store, run):
        for path in folder.rglob("*"):
            assert "alice" not in path.name
            if path.is_file():
                assert b"alice" not in path.read_bytes(), path


def test_pretrain_writes_a_run_that_says_what_it_found(trained, store):
    run, fields = trained
    assert fields["metric"] == "reidentification_top1"
    assert set(fields["baselines"]) == {"untrained_encoder", "classical_features"}
    assert fields["participants"]["train"] + fields["participants"]["test"] == 14
    assert fields["segments"]["train"] + fields["segments"]["test"] == 84
    for name in (
        "result.json",
        "report.html",
        "views.png",
        "probes.png",
        "map.png",
        "recipe.yaml",
        "model/config.json",
    ):
        assert (run / name).stat().st_size > 100, name
    assert (run / "model-teacher" / "config.json").exists()
    assert read_json(run / "data.json") == {"signal": "ppg", "trained_on": str(store.resolve())}
    assert json.dumps(read_json(run / "result.json")) == json.dumps({k: v for k, v in fields.items() if k != "report"})


def test_the_same_command_again_goes_on_where_the_run_was(trained, store, tiny, command):
    run, fields = trained
    before = (run / "model" / "model.safetensors").read_bytes()
    again = command("pretrain", store, *tiny, "--out", run, "--json").json
    assert again["steps"] == fields["steps"] == 6
    assert again["trained"] == fields["trained"]
    assert (run / "model" / "model.safetensors").read_bytes() == before
    other = command("pretrain", store, *tiny, "--out", run, "--fit.lr", 0.5)
    assert other.code == 2
    assert "lr" in other.err


def test_probe_reads_a_table_and_keeps_people_apart(recordings, trained, command):
    run, fields = trained
    table = ("--labels", recordings / "labels.csv")
    found = command("probe", run, *table, "--draws", 50, "--json").json
    assert set(found["probes"]["trained"]) == {"age", "sex"}  # a text of many words is no target
    assert set(found["probes"]) == {
        "trained",
        "untrained_encoder",
        "heart_rate_only",
        "classical_features",
        "demographics",
    }
    age = found["probes"]["trained"]["age"]
    assert age["participants"] == fields["participants"]
    assert age["level"] == "participant"
    assert (run / "probe.png").stat().st_size > 1000
    shown = command("probe", run, *table, "--target", "sex", "--draws", 20, "--no-baselines")
    assert shown.code == 0
    assert "1 of 15 participants" in shown.err
    for metric in ("AUROC", "AUROC up to 10 % false", "AUPRC"):
        assert f"sex, {metric} per person" in " ".join(shown.out.replace("│", " ").split())


def test_evaluate_needs_no_labels(trained, command):
    run, _ = trained
    found = command("evaluate", run, "--draws", 20, "--json").json
    assert found["metric"] == "reidentification_top1"
    assert 0 <= found["trained"] <= 1
    assert found["identity"]["trained"]["dispersion_ratio"] > 0


def test_embed_gives_what_the_library_gives(recordings, trained, tmp_path, command):
    run, _ = trained
    csv = recordings / "data" / "alice-03" / "1.csv"
    out = tmp_path / "one.parquet"
    done = command("embed", run, csv, "--fs", 50, "--out", out)
    assert done.code == 0, done.err
    table = pq.read_table(out)
    values = np.stack(table["features"].to_pylist())
    assert values.shape == (2, 16)
    assert table["offset"].to_pylist() == [0.0, 10.0]
    signal = np.loadtxt(csv, skiprows=1)
    encoder = load_encoder(run / "model")
    np.testing.assert_allclose(  # the command goes through a store, in float16
        embed(signal, sampling_rate=50, encoder=encoder, kind="ppg"), values, rtol=1e-3, atol=1e-4
    )


def test_embed_a_store(trained, store, tmp_path, command):
    run, _ = trained
    fields = command("embed", run, store, "--out", tmp_path / "all.npz", "--json").json
    assert fields["segments"] == 84
    with np.load(tmp_path / "all.npz") as found:
        assert found["features"].shape == (84, 16)
        assert len(set(found["participant"].tolist())) == 14


@pytest.mark.parametrize("format", ["onnx", "int8"])
def test_export_runs_and_agrees(format, trained, store, tmp_path, command):
    runtime = pytest.importorskip("onnxruntime")
    run, _ = trained
    out = tmp_path / "encoder.onnx"
    fields = command("export", run, "--format", format, "--out", out, "--json").json
    assert fields["cosine"] > (0.9999 if format == "onnx" else 0.95)
    assert fields["megabytes"] == pytest.approx(out.stat().st_size / 1e6)
    session = runtime.InferenceSession(str(out), providers=["CPUExecutionProvider"])
    raw = 1000 + 7 * SegmentStore.open(store).segments().rows([0, 5, 9]).numpy()  # any unit: the z-score is inside
    (found,) = session.run(None, {session.get_inputs()[0].name: raw})
    expected = load_encoder(run / "model")(SegmentStore.open(store).segments().rows([0, 5, 9])).detach().numpy()
    tolerance = 1e-3 if format == "onnx" else 1.0
    np.testing.assert_allclose(found, expected, atol=tolerance * expected.std())
    assert list(tmp_path.iterdir()) == [out]


def test_ablation_runs_what_is_missing_and_prints_the_paper_beside(store, tiny, tmp_path, command):
    options = [store, "--recipe", "ahms-ppg-laptop", "--steps", 3, "--out", tmp_path / "ablation"]
    refused = command("ablate", *options, "--only", "no-kolio")
    assert refused.code == 2
    assert "no-koleo" in refused.err
    recipe = tmp_path / "small.yaml"
    recipe.write_text(command("pretrain", store, *tiny, "--print-recipe").out)
    options[2] = recipe
    first = command("ablate", *options, "--only", "full", "--only", "no-koleo", "--json").json
    assert set(first["rows"]) == {"full", "no-koleo"}
    assert "lower effective rank" in first["paper"]["no-koleo"]
    stamp = (tmp_path / "ablation" / "full-0" / "row.json").stat().st_mtime_ns
    shown = command("ablate", *options, "--only", "full", "--only", "segment-pairs")
    assert shown.code == 0, shown.err
    assert "segment-pairs" in shown.out
    assert (tmp_path / "ablation" / "full-0" / "row.json").stat().st_mtime_ns == stamp


def test_rows_of_an_ablation_share_a_batch_that_the_people_fill(store, tmp_path, command):
    out = tmp_path / "ablation"
    given = command("ablate", store, "--only", "full", "--steps", 2, "--batch-size", 6, "--out", out, "--json")
    assert given.code == 0, given.err
    assert read_json(out / "full-0" / "row.json")["recipe"]["fit"]["batch_size"] == 6
    other = command("ablate", store, "--only", "full", "--steps", 2, "--out", out)
    assert other.code == 2
    assert "other settings" in other.err
    rows = ("--only", "full", "--only", "session-pairs")
    fitting = command("ablate", store, *rows, "--steps", 2, "--out", tmp_path / "fitting")
    assert fitting.code == 0, fitting.err
    sizes = [
        read_json(tmp_path / "fitting" / f"{name}-0" / "row.json")["recipe"]["fit"]["batch_size"]
        for name in ("full", "session-pairs")
    ]
    assert sizes[0] == sizes[1] < 64  # the recipe's
    assert f"{sizes[0]} instead of 64" in fitting.err
    refused = command("ablate", store, "--only", "full", "--batch-size", 0, "--out", tmp_path / "none")
    assert refused.code == 2
    assert "batch_size" in refused.err
    assert not (tmp_path / "none").exists()
