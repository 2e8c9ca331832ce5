"""Embeddings are written whole, in the format the name says, and read back as they were."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mc_core.embeddings import check_format, write_embeddings
from mc_core.errors import ConfigError

FEATURES = np.arange(12, dtype=np.float32).reshape(4, 3)


def test_parquet_holds_rows_and_columns(tmp_path):
    pq = pytest.importorskip("pyarrow.parquet")
    file = write_embeddings(tmp_path / "e.parquet", FEATURES, {"text": ["a", "b", "ü", ""], "row": np.arange(4)})
    table = pq.read_table(file)
    assert table.column_names == ["text", "row", "features"]
    assert table["text"].to_pylist() == ["a", "b", "ü", ""]
    np.testing.assert_array_equal(np.array(table["features"].to_pylist(), dtype=np.float32), FEATURES)


def test_npz_holds_no_objects(tmp_path):
    file = write_embeddings(tmp_path / "e.npz", FEATURES[:, :0], {"text": ["a", "b", "c", "d"]})
    with np.load(file, allow_pickle=False) as found:
        assert found["features"].shape == (4, 0)
        assert found["text"].tolist() == ["a", "b", "c", "d"]


def test_another_ending_is_refused_before_anything_is_written(tmp_path):
    for refused in (lambda: check_format(Path("x.csv")), lambda: write_embeddings(tmp_path / "x.csv", FEATURES)):
        with pytest.raises(
            ConfigError, match=r"x\.csv: the name decides the format and must end in \.parquet or \.npz"
        ):
            refused()
    assert list(tmp_path.iterdir()) == []
