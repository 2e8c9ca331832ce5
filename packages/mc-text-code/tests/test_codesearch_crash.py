"""Killed at any moment, damaged, foreign, or used by several processes at once: the index is whole afterwards, or made anew."""

from __future__ import annotations

import os
import random
import runpy
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from mc_core.errors import ConfigError, RunError
from mc_text_code.codesearch import CodeIndex
from mc_text_code.codesearch.database import DATABASE
from mc_text_code.codesearch.locks import FileLock
from mc_text_code.codesearch.vectors import Vectors

tools = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("_codesearch_tools.py"))))
WORKER = Path(__file__).with_name("_codesearch_worker.py")
QUERIES = ("read the file number 3", "merge_table_4_1", "draw the image")


def start(root: Path, *, pause: float = 0.0, rounds: int = 1) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, str(WORKER), str(root), str(pause), str(rounds)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def answers(index: CodeIndex) -> list:
    return [
        [(hit.location, hit.score, hit.lexical_score, hit.dense_score) for hit in index.search(query, 20)]
        for query in QUERIES
    ]


def expected(root: Path, folder: Path) -> list:
    with CodeIndex.open(root, folder=folder, encoder=tools.HashingEncoder()) as index:
        index.refresh()
        index.embed()
        return answers(index)


def assert_whole(root: Path, folder: Path) -> None:
    """What is on disk is consistent, and ends in what an index made anew gives."""
    with CodeIndex.open(root, encoder=tools.HashingEncoder()) as index:
        store = index._store
        assert store.rows_of("PRAGMA integrity_check") == [("ok",)]
        index.refresh()
        index.embed()
        assert answers(index) == expected(root, folder)
        used, _ = Vectors(store).unused()
        assert len(used) * 128 <= next(index.folder.glob("vectors-*.bin")).stat().st_size
        assert index.status().coverage == 1.0


@pytest.mark.parametrize("seed", range(4))
def test_kill_9_at_any_moment(tmp_path, seed):
    root = tools.write_project(tmp_path / "many", tools.many_files(60))
    rng = random.Random(seed)
    for _ in range(3):
        process = start(root, pause=0.02)
        assert process.stdout is not None
        for _ in range(rng.randrange(1, 6)):
            process.stdout.readline()
        time.sleep(rng.random() * 0.05)
        process.kill()
        process.communicate()
        for number in rng.sample(range(60), 5):
            path = root / f"pkg{number % 7}/module_{number}.py"
            path.write_text(path.read_text() + f"\n\ndef later_{seed}_{rng.randrange(1000)}():\n    return {number}\n")
    assert_whole(root, tmp_path / "new")


def test_ctrl_c_keeps_what_is_done(tmp_path):
    root = tools.write_project(tmp_path / "many", tools.many_files(60))
    process = start(root, pause=0.05)
    assert process.stdout is not None
    while not process.stdout.readline().startswith("embedded"):
        pass
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode != 0
    with CodeIndex.open(root, encoder=tools.HashingEncoder()) as index:
        assert 0 < index.status().coverage < 1
    assert_whole(root, tmp_path / "new")


def test_two_processes_at_once(tmp_path):
    root = tools.write_project(tmp_path / "many", tools.many_files(60))
    processes = [start(root, rounds=3) for _ in range(3)]
    for number in range(12):
        time.sleep(0.1)
        path = root / f"pkg{number % 7}/module_{number}.py"
        path.write_text(path.read_text() + f"\n\ndef added_{number}(value):\n    return value - {number}\n")
    for process in processes:
        out, err = process.communicate(timeout=240)
        assert process.returncode == 0, err
        assert out.endswith("done\n")
    assert_whole(root, tmp_path / "new")


def test_threads_share_one_index(tmp_path):
    root = tools.write_project(tmp_path / "many", tools.many_files(30))
    with CodeIndex.open(root, encoder=tools.HashingEncoder()) as index:
        found, problems = [], []

        def work() -> None:
            try:
                for _ in range(5):
                    found.append([hit.location for hit in index.search("read the file number 3")])
            except Exception as error:
                problems.append(error)

        threads = [threading.Thread(target=work) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert problems == []
        assert all(one == found[0] for one in found)


def test_while_another_process_writes_what_there_is_is_searched(tmp_path):
    root = tools.write_project(tmp_path / "p")
    with CodeIndex.open(root, encoder=tools.HashingEncoder()) as index:
        index.refresh()
        (root / "new.py").write_text("def brand_new(): return 1\n")
        lock = FileLock(index.folder / "write.lock")
        assert lock.acquire()
        report = index.refresh(wait=0.05)
        assert report.busy
        assert any("another process" in note for note in report.notes)
        assert index.search("total price", refresh=False).hits
        lock.release()
        assert index.refresh().added == 1
        embedding = FileLock(index.folder / "embed.lock")
        assert embedding.acquire()
        assert index.embed().busy
        embedding.release()
        assert not index.embed().busy


def break_file(path: Path, how: str) -> None:
    data = path.read_bytes()
    if how == "empty":
        path.write_bytes(b"")
    elif how == "text":
        path.write_text("this is no database\n" * 50)
    elif how == "half":
        path.write_bytes(data[: len(data) // 2])
    elif how == "noise":
        noise = random.Random(0).randbytes(len(data) - 4096)
        path.write_bytes(data[:4096] + noise)
    elif how == "header":
        path.write_bytes(b"\xff" * 100 + data[100:])
    elif how == "gone":
        path.unlink()
    elif how == "foreign":
        path.unlink()
        with sqlite3.connect(path) as other:
            other.execute("CREATE TABLE recipes (name TEXT)")
            other.execute("INSERT INTO recipes VALUES ('soup')")
        other.close()
    elif how == "table":
        with sqlite3.connect(path) as ours:
            ours.execute("DROP TABLE chunks")
        ours.close()
    elif how == "format":
        with sqlite3.connect(path) as ours:
            ours.execute("UPDATE meta SET value = '999' WHERE key = 'format'")
        ours.close()
    elif how == "chunker":
        with sqlite3.connect(path) as ours:
            ours.execute("UPDATE meta SET value = '{}' WHERE key = 'chunker'")
        ours.close()
    elif how == "postings":
        with sqlite3.connect(path) as ours:
            ours.execute("UPDATE postings SET data = zeroblob(length(data))")
        ours.close()


@pytest.mark.parametrize(
    "how",
    ["empty", "text", "half", "noise", "header", "gone", "foreign", "table", "format", "chunker", "postings"],
)
def test_a_damaged_or_foreign_index_is_made_anew(tmp_path, how):
    root = tools.write_project(tmp_path / "many", tools.many_files(30))
    with CodeIndex.open(root, encoder=tools.HashingEncoder()) as index:
        index.refresh()
        index.embed()
        before = answers(index)
    break_file(root / ".mc-code" / DATABASE, how)
    with CodeIndex.open(root, encoder=tools.HashingEncoder()) as index:
        report = index.refresh()
        first = index.search(QUERIES[0])
        notes = [*report.notes, *first.notes]
        if how not in ("empty", "gone"):
            assert any("built anew" in note for note in notes), notes
        index.embed()
        assert answers(index) == before
        assert not any("built anew" in note for note in index.search(QUERIES[0]).notes)


def test_an_index_that_is_replaced_while_it_is_open_is_opened_again(tmp_path):
    root = tools.write_project(tmp_path / "p")
    with CodeIndex.open(root, encoder=tools.HashingEncoder()) as index:
        index.refresh()
        index.embed()
        with CodeIndex.open(root) as other:
            other._store.replace("a test asks for it")
            other.refresh()
        (root / "new.py").write_text("def brand_new(): return 1\n")
        assert index.search("brand_new")[0].symbol == "brand_new"
        assert index.status().coverage == 0.0
        assert index.embed().coverage == 1.0
    with CodeIndex.open(root) as index:
        assert "new.py" in index.indexed_paths()


def test_an_index_copied_from_another_project_is_brought_to_this_one(tmp_path):
    first = tools.write_project(tmp_path / "first", tools.many_files(10))
    with CodeIndex.open(first) as index:
        index.refresh()
    second = tools.write_project(tmp_path / "second")
    (first / ".mc-code").rename(second / ".mc-code")
    with CodeIndex.open(second) as index:
        report = index.refresh()
        assert (report.added, report.removed) == (len(tools.FILES), 10)
        assert not any(path.startswith("pkg") for path in index.indexed_paths())


def test_a_full_disk_is_one_clear_line_and_leaves_the_index_whole(tmp_path, monkeypatch):
    root = tools.write_project(tmp_path / "many", tools.many_files(30))
    with CodeIndex.open(root, encoder=tools.HashingEncoder()) as index:
        index.refresh()
        before = index.search(QUERIES[0], refresh=False).hits
        index._store.connection.execute("PRAGMA max_page_count = 1")
        for number in range(20):
            (root / f"new_{number}.py").write_text("x = 1\n" * 2000)
        with pytest.raises(RunError, match="no space left") as error:
            index.refresh()
        assert "\n" not in str(error.value)
        assert index.search(QUERIES[0], refresh=False).hits == before
        index._store.connection.execute("PRAGMA max_page_count = 100000")

        def full(*_):
            raise OSError(28, os.strerror(28))

        with monkeypatch.context() as patch:
            patch.setattr("mc_text_code.codesearch.vectors.os.fsync", full)
            with pytest.raises(RunError, match="free space"):
                index.embed()
    assert_whole(root, tmp_path / "new")


def test_files_of_somebody_else_are_never_removed(tmp_path):
    root = tools.write_project(tmp_path / "p")
    kept = tmp_path / "mine"
    kept.mkdir()
    (kept / DATABASE).write_text("my own file")
    with pytest.raises(ConfigError, match="no index"):
        CodeIndex.open(root, folder=kept)
    assert (kept / DATABASE).read_text() == "my own file"


def test_a_lock_dies_with_its_process(tmp_path):
    script = (
        "import sys, time\nfrom pathlib import Path\nfrom mc_text_code.codesearch.locks import FileLock\n"
        "lock = FileLock(Path(sys.argv[1]))\nassert lock.acquire()\nprint('held', flush=True)\ntime.sleep(60)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", script, str(tmp_path / "a.lock")], stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    lock = FileLock(tmp_path / "a.lock")
    assert not lock.acquire(0.1)
    process.kill()
    process.communicate()
    assert lock.acquire(5.0)
    lock.release()
