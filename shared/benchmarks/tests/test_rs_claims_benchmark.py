"""What the remote-sensing claims say of their rows: differences within a seed, whatever their sign."""

from __future__ import annotations

import pytest

from mc_benchmarks.rs_claims import reading, run_rs_landslides
from mc_core.errors import ConfigError


def row(*values):
    return [{"iou": iou, "boundary_f1": boundary} for iou, boundary in values]


def test_differences_are_taken_seed_by_seed_and_a_loss_is_said():
    found = {
        "image, cross-entropy": row((0.3, 0.4), (0.5, 0.6)),
        "fused, cross-entropy": row((0.8, 0.9), (1.0, 1.0)),
        "fused, contrast": row((0.7, 0.9), (0.9, 1.0)),
    }
    said = reading(found)
    assert "elevation beside the image: iou +0.500 ± 0.000, boundary f1 +0.450 ± 0.071" in said
    assert "contrast: iou -0.100 ± 0.000" in said
    assert "queue" not in said  # no such row


def test_one_seed_has_no_spread():
    found = {"image, cross-entropy": row((0.3, 0.4)), "image, contrast": row((0.35, 0.5))}
    assert "contrast: iou +0.050, boundary f1 +0.100" in reading(found)


def test_missing_tiles_are_named(tmp_path):
    with pytest.raises(ConfigError, match="nope.tar"):
        run_rs_landslides(data=tmp_path / "nope.tar", seeds=1, keep=tmp_path)
