"""The part of the README on evaluation, search and duplicates runs as it stands."""

import re
from pathlib import Path

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


def test_the_block_on_evaluation_runs(tmp_path, monkeypatch, capsys):
    section = README.partition("## What is an encoder worth?")[2]
    block = re.search(r"^```python\n(.*?)^```", section, re.DOTALL | re.MULTILINE)
    animals, places = ("dog", "cat", "man", "girl"), ("park", "house", "street", "garden")
    lines = [f"a {one} runs in the {place} with a {two}" for one in animals for two in animals for place in places]
    (tmp_path / "corpus.txt").write_text("".join(f"{line}\n" for line in lines))
    rows = [f"{a}\t{b}\t{len(set(a.split()) & set(b.split())) / 2}\n" for a, b in zip(lines, lines[7:], strict=False)]
    (tmp_path / "STS").mkdir()
    (tmp_path / "STS/mine-test.tsv").write_text("sentence1\tsentence2\tscore\n" + "".join(rows))
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    exec(compile(block[1], "README.md", "exec"), names)
    assert names["baseline"].columns()["mine"] > names["report"].columns()["mine"] > 0
    assert len(names["hits"].rows[0]) == 3
    assert 0 < len(names["found"].kept) < len(lines)
    assert names["index"].texts == lines
    assert "mine" in capsys.readouterr().out
