"""Rows of tokens, groups of like length, tokenizers that come out the same, and models that cannot be reached."""

import json
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mc_core.errors import ConfigError
from mc_core.hub import reaching, transformer_folder
from mc_core.length_groups import length_groups
from mc_core.tokens import padded, ragged


@pytest.mark.parametrize("kind", ["wordpiece", "bpe"])
def test_the_same_texts_give_the_same_tokenizer_in_every_process(kind):
    """Told apart by processes, since the trainer's order of pieces comes from a hash that is new in each."""
    code = (
        "import sys, json; from mc_core.tokenizer_training import train_backend; "
        "texts = json.load(sys.stdin); print(train_backend(texts, 300, sys.argv[1]).to_str())"
    )
    texts = [f"{word}{i} Straße déjà vu" for i, word in enumerate(["alpha", "beta", "gamma", "naïve", "übung"] * 30)]
    outputs = {
        subprocess.run(
            [sys.executable, "-c", code, kind], input=json.dumps(texts), capture_output=True, text=True, check=True
        ).stdout
        for _ in range(3)
    }
    assert len(outputs) == 1


@given(st.lists(st.integers(1, 9), min_size=1, max_size=20), st.booleans())
def test_padding_and_taking_it_off(lengths, left):
    sizes = np.array(lengths)
    tokens = np.arange(1, sizes.sum() + 1)
    ids, mask = padded(tokens, sizes, 0)
    assert ids.shape == mask.shape == (len(sizes), sizes.max())
    if left:
        ids, mask = ids.flip(1), mask.flip(1)
        tokens = np.concatenate([part[::-1] for part in np.split(tokens, np.cumsum(sizes)[:-1])])
    assert [part.tolist() for part in ragged(ids, mask)] == [tokens.tolist(), sizes.tolist()]


@given(st.lists(st.integers(1, 40), min_size=1, max_size=80), st.integers(0, 200))
def test_length_groups_are_the_cheapest_division(lengths, call):
    lengths = np.array(lengths)
    groups = length_groups(lengths, call)
    assert sorted(np.concatenate([rows for rows, _, _ in groups]).tolist()) == list(range(len(lengths)))
    for rows, longest, exact in groups:
        assert longest == lengths[rows].max()
        assert exact == (lengths[rows].min() == longest)
    cost = sum(len(rows) * longest + call for rows, longest, _ in groups)
    assert cost <= len(lengths) * lengths.max() + call
    best = [0.0]
    ordered = np.sort(lengths)
    for end in range(1, len(ordered) + 1):
        best.append(min(best[start] + (end - start) * ordered[end - 1] + call for start in range(end)))
    assert cost == best[-1]


def test_a_transformer_is_looked_for_inside_a_sentence_transformer(tmp_path):
    (tmp_path / "modules.json").write_text(json.dumps([{"path": "0_Transformer"}, {"path": "1_Pooling"}]))
    assert transformer_folder(tmp_path) == tmp_path / "0_Transformer"
    assert transformer_folder("bert-base-uncased") == "bert-base-uncased"


def test_what_cannot_be_reached_says_what_to_give(tmp_path):
    nowhere = reaching("nowhere/none", download=False, option="--method.text.download")
    with pytest.raises(ConfigError, match="nor in the local cache.*or allow --method.text.download"), nowhere:
        raise OSError("no such model")
    damaged = reaching(str(tmp_path), download=False)
    with pytest.raises(ConfigError, match="holds no transformer that can be read \\(bad json\\)"), damaged:
        raise ValueError("bad json\nand more")
    with pytest.raises(ZeroDivisionError), reaching("anything", download=True):
        1 / 0
