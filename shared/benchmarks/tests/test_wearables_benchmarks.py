"""The benchmarks of wearables measure what they say: both sides do their work, controls are what they should be, runs are kept."""

import os
import tarfile
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from mc_benchmarks import contract, wearables_cohort, wearables_embedding, wearables_real, wearables_speed
from mc_benchmarks.claims import kept, mean_and_spread, over_seeds
from mc_benchmarks.contract import load_report
from mc_benchmarks.wearables_cohort import (
    CLASSICAL,
    RATE,
    SEGMENT,
    TRAINED,
    UNTRAINED,
    WHO,
    for_identity,
    run_wearables_cohort,
    standardised,
)
from mc_benchmarks.wearables_embedding import PlainConv1d, onnx_session
from mc_benchmarks.wearables_real import ECG_ID, PPG, one_each, read_study, run_wearables_real, split_people
from mc_benchmarks.wearables_speed import (
    CLEAN,
    OURS,
    PEAKS,
    PerSample,
    our_batch,
    run_wearables_speed,
    training_step,
)
from mc_core.errors import DataError
from mc_wearables import (
    EncoderConfig,
    Features,
    PairData,
    Segments,
    SignalEncoder,
    export_for_device,
    reidentification,
    resolve_recipe,
    simulate_cohort,
    untrained_like,
)
from mc_wearables.augment_config import AugmentConfig
from mc_wearables.data.segments import standardise


@pytest.fixture
def results(tmp_path, monkeypatch):
    monkeypatch.setattr(contract, "RESULTS", tmp_path / "results")
    (tmp_path / "results").mkdir()
    return tmp_path


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A folder like that of the real data, with fewer people and segments; their files as they are."""
    root = Path(os.environ.get("MC_DATA", "")) / "wearables"
    if not (root / ECG_ID.file).exists():
        pytest.skip("MC_DATA does not name the folder of real data")
    folder = tmp_path_factory.mktemp("data") / "wearables"
    folder.mkdir()
    with np.load(root / PPG.file) as arrays:
        whole = dict(arrays)
    unit = np.unique(np.char.add(whole["participant"], whole["label"].astype(str)), return_inverse=True)[1]
    order = np.argsort(unit, kind="stable")
    rank = np.arange(len(order)) - np.searchsorted(unit[order], unit[order])
    rows = np.sort(order[rank < 3])
    np.savez(folder / PPG.file, **{n: a[rows] if a.shape[:1] == unit.shape else a for n, a in whole.items()})
    with tarfile.open(root / ECG_ID.file) as source, tarfile.open(folder / ECG_ID.file, "w:gz") as target:
        people = sorted({Path(name).parent.name for name in source.getnames() if name.endswith(".hea")})[:24]
        for member in source.getmembers():
            path = Path(member.name)
            if path.name == "records.csv" or (path.parent.name in people and path.stem in ("rec_1", "rec_2")):
                target.addfile(member, source.extractfile(member))
    return folder.parent


def _people(count, each, dim=8, noise=0.0, seed=0):
    rng = np.random.default_rng(seed)
    person = np.repeat(np.arange(count), each)
    values = rng.normal(size=(count, dim))[person] + noise * rng.normal(size=(count * each, dim))
    session = np.arange(count * each) // 2
    return Features(values.astype(np.float32), person, tuple(map(str, range(count))), session)


def test_the_plain_encoder_is_the_same_function():
    cohort = simulate_cohort("ppg", participants=4, segments=2, seconds=10, sampling_rate=64, channels=2)
    encoder = untrained_like(
        SignalEncoder(EncoderConfig(channels=2, sampling_rate=64, seconds=10, width=36, expansion=2)), cohort.segments
    )
    plain = PlainConv1d(encoder)
    x = cohort.segments.rows(range(4))
    with torch.no_grad():
        torch.testing.assert_close(plain(x), encoder(x), rtol=1e-4, atol=1e-5)
    assert any(isinstance(m, torch.nn.Conv1d) for m in plain.modules())
    assert not any(isinstance(m, (torch.nn.Conv2d, torch.nn.BatchNorm2d)) for m in plain.modules())
    assert sum(p.numel() for p in plain.parameters()) == sum(p.numel() for p in encoder.parameters())


@pytest.mark.parametrize("kind", ["ppg", "ecg"])
def test_a_per_sample_loader_gives_two_cleaned_segments_of_one_person(kind):
    channels = 2 if kind == "ppg" else 1
    rate = 64 if kind == "ppg" else 128
    segments = simulate_cohort(
        kind, participants=3, segments=3, seconds=10, sampling_rate=rate, channels=channels
    ).segments
    for what in (CLEAN, PEAKS):
        peer = PerSample(segments, 3, what)
        assert len(peer) == 3
        views = peer[1]
        assert all(view.shape == (channels, 10 * rate) for view in views)
        assert not torch.equal(*views)
        for view in views:
            torch.testing.assert_close(view.mean(1), torch.zeros(channels), atol=1e-5, rtol=0)
            torch.testing.assert_close(view.std(1, correction=0), torch.ones(channels), atol=1e-4, rtol=0)


def test_our_batches_are_those_of_training():
    segments = simulate_cohort("ecg", participants=9, segments=2, seconds=10, sampling_rate=64).segments
    data = PairData(segments, augment=AugmentConfig.of_signal("ecg"))
    work = our_batch(data, 4)
    batches = [work() for _ in range(3)]
    assert all(batch["view_1"].shape == (4, 1, 640) for batch in batches)
    assert len(torch.cat([b["ids"] for b in batches[:2]]).unique()) == 8  # an epoch: nobody twice
    plain = segments.rows(batches[0]["segments"][:, 0].tolist())
    assert not torch.equal(plain, batches[0]["view_1"])  # augmented


def test_the_step_that_is_timed_trains():
    recipe = resolve_recipe("ahms-ecg-laptop", {"fit": {"device": "cpu", "batch_size": 4}})
    segments = simulate_cohort("ecg", participants=4, segments=2, seconds=10, sampling_rate=64).segments
    step = training_step(recipe, our_batch(PairData(segments, augment=recipe.augment), 4)())
    method = next(cell.cell_contents for cell in step.__closure__ if hasattr(cell.cell_contents, "momentum_encoder"))
    before = {name: value.clone() for name, value in method.state_dict().items()}
    step()
    step()
    changed = {n for n, v in method.state_dict().items() if not torch.equal(v, before[n])}
    assert any(n.startswith("online.encoder") and n.endswith("weight") for n in changed)
    assert any(n.startswith("momentum_encoder") and n.endswith("weight") for n in changed)


def test_a_heart_rate_identifies_by_how_it_is_spread():
    rates = np.repeat([50.0, 70.0, 90.0, 110.0], 4)[:, None].astype(np.float32)
    people = np.repeat(np.arange(4), 4)
    rates[0] = np.nan
    features = Features(rates, people, ("a", "b", "c", "d"), np.arange(16), names=("rate",))
    view = for_identity(RATE, features, features)
    assert np.isfinite(view.values).all()
    assert (view.values[0] == 0).all()
    assert reidentification(view, draws=10)[0].value == 1.0
    same = replace(features, values=np.full_like(rates, 60.0))
    assert reidentification(for_identity(RATE, same, same), draws=10)[0].value == 0.0


def test_classical_features_are_standardised_by_training_people_and_embeddings_are_not():
    train, test = _people(5, 4), _people(3, 4, seed=1)
    values = test.values.copy()
    values[0, 0] = np.nan
    test = replace(test, values=values)
    shown = for_identity(CLASSICAL, train, test)
    expected = (values - train.values.mean(0)) / train.values.std(0)
    expected[0, 0] = 0
    np.testing.assert_allclose(shown.values, expected, rtol=1e-4, atol=1e-5)
    constant = replace(train, values=np.ones_like(train.values))
    assert np.isfinite(standardised(constant, test).values).all()
    assert for_identity(TRAINED, train, test) is test


def test_one_segment_each_takes_one_row_of_two_units():
    features = _people(6, 6)
    assert one_each(features, halves="segment", seed=0) == 1.0
    noisy = _people(30, 12, noise=3.0)
    all_rows = reidentification(noisy, draws=1)[0].value
    single = np.mean([one_each(noisy, halves="segment", seed=i) for i in range(20)])
    assert single < all_rows  # a mean of six knows more than one
    # rows of a session are alike, sessions of a person are not: nobody can be found across sessions
    session_only = replace(features, values=_people(18, 2, seed=3).values)
    assert np.mean([one_each(session_only, halves="session", seed=i) for i in range(20)]) < 0.5


def test_means_and_spreads_are_shown_in_one_text():
    runs = [{"a": {"x": 0.5, "y": 1.0}}, {"a": {"x": 0.7, "y": 1.0}}]
    (row,) = mean_and_spread(over_seeds(runs))
    assert row.values == {"x": "0.60 ± 0.14", "y": "1.00 ± 0.00"}
    (row,) = mean_and_spread(over_seeds(runs[:1]))
    assert row.values == {"x": "0.50", "y": "1.00"}


def test_finished_runs_are_not_run_again(tmp_path, capsys):
    calls = []

    def work(found):
        calls.append(found)
        return {"row": {"x": found, "x low": 0.0}}

    for settings, found in (({"a": 1}, 1.0), ({"a": 1}, 2.0), ({"a": 2}, 3.0)):
        kept(tmp_path, "run", settings, partial(work, found))
    assert calls == [1.0, 3.0]
    assert "x 1.000" in capsys.readouterr().out


def test_onnx_computes_the_same(tmp_path):
    encoder = SignalEncoder(
        EncoderConfig(architecture="resnet", depth=4, channels=1, sampling_rate=32, seconds=4, width=8)
    )
    x = torch.from_numpy(standardise(np.random.default_rng(0).normal(size=(3, 1, 128)).astype(np.float32)))
    report = export_for_device(encoder.eval(), tmp_path / "tiny.onnx", Segments.of(x.numpy(), 32, "ecg", np.arange(3)))
    with torch.no_grad():
        np.testing.assert_allclose(onnx_session(report.path, threads=1)(x), encoder(x).numpy(), rtol=1e-3, atol=1e-5)


def test_speed_runs_end_to_end(results, monkeypatch):
    made = {}

    def export(encoder, path, segments, *, format="fp32"):
        made[path] = encoder
        return SimpleNamespace(path=path, cosine=0.9)

    monkeypatch.setattr(wearables_speed, "SHAPES", {"ppg": (2, 64.0, 10.0), "ecg": (1, 128.0, 10.0)})
    monkeypatch.setattr(wearables_embedding, "export_for_device", export)  # in the test above
    monkeypatch.setattr(wearables_embedding, "onnx_session", lambda path, _: made[path])
    loader, embedding = run_wearables_speed(repeats=1, threads=1, people=8, batch=4, segments=4)
    assert load_report("wearables_loader") == loader
    ours = [row for row in loader.rows if row.name.startswith(OURS)]
    assert [row.values["ours is faster by"] for row in ours] == [None, None]
    assert all(0 < row.values["share of a step"] < 1 for row in loader.rows if "laptop" in row.name)
    assert load_report("wearables_embedding").columns == embedding.columns
    assert {row.name.rpartition(": ")[2] for row in embedding.rows if row.name.startswith("paper")} == {
        "eager",
        "eager, plain Conv1d",
        "ONNX Runtime",
        "ONNX Runtime, 8 bits",
    }
    assert embedding.environment.packages["neurokit2"]


def test_cohort_runs_end_to_end_and_goes_on(results, monkeypatch):
    monkeypatch.setattr(wearables_cohort, "SEGMENTS", {"train": 3, "test": 3})
    monkeypatch.setattr(wearables_cohort, "_DRAWS", 20)
    arguments = {"seeds": 1, "keep": results / "kept", "signals": ("ecg",), "people": 80, "steps": 2}
    means, intervals = run_wearables_cohort(**arguments)
    assert [row.name for row in means.rows][:3] == [f"ECG: {name}" for name in (TRAINED, SEGMENT, UNTRAINED)]
    assert load_report("wearables_cohort") == means
    assert all("[" in str(text) for row in intervals.rows for text in row.values.values())
    monkeypatch.setattr(wearables_cohort, "simulate_cohort", None)  # nothing is done again
    again, _ = run_wearables_cohort(**arguments)
    assert again.rows == means.rows


def test_real_data_is_read_without_edits_and_in_an_order_of_its_own(data, tmp_path):
    first, second = (read_study(PPG, data / "wearables", tmp_path / name) for name in ("a", "b"))  # two salts
    assert first.participant_keys == second.participant_keys
    assert len(first.participant_keys) == 39
    np.testing.assert_array_equal(first.participant, second.participant)
    np.testing.assert_array_equal(first.signals, second.signals)
    known = first.labels["fibrillation"]
    assert (int((known == 1).sum()), int((known == 0).sum())) == (30 * 3, 39 * 3)


def test_people_are_held_out_in_exact_numbers():
    segments = simulate_cohort("ecg", participants=20, segments=1, seconds=4, sampling_rate=64).segments
    sides = [split_people(segments, seed) for seed in (0, 0, 1)]
    held = [set(test.participant.tolist()) for _, test in sides]
    assert [len(people) for people in held] == [8, 8, 8]
    assert held[0] == held[1] != held[2]
    assert held[0].isdisjoint(sides[0][0].participant.tolist())


def test_real_runs_end_to_end(data, results, monkeypatch):
    monkeypatch.setattr(wearables_real, "_ONE_DRAWS", 2)
    report = run_wearables_real(data=str(data), seeds=1, keep=results / "kept", steps=2, cinc=False, draws=10)
    rows = {row.name: row.values for row in report.rows}
    assert set(rows["ECG-ID: trained on other people"]) == {WHO, *list(wearables_real.COLUMNS)[1:4]}
    assert float(rows["ECG-ID: classical features"][WHO]) > 0.3  # 10 people: chance is 0.05
    assert float(rows["PPG arrhythmia: classical features"]["fibrillation AUROC"]) > 0.8


def test_missing_data_is_named(tmp_path):
    with pytest.raises(DataError, match=r"ecg-id-wfdb.tar.gz is not there; name the folder that holds wearables/"):
        run_wearables_real(data=str(tmp_path), seeds=1, keep=tmp_path)
