"""The daemon: keeps an index warm, answers on its socket, is never stale, and cannot be confused."""

from __future__ import annotations

import json
import os
import runpy
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from mc_core.errors import ConfigError
from mc_text_code.codesearch import CodeIndex
from mc_text_code.codesearch.places import socket_path
from mc_text_code.codesearch.watch import Daemon, ask, ask_search, ask_stop

tools = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("_codesearch_tools.py"))))


@pytest.fixture
def project(tmp_path):
    return tools.write_project(tmp_path / "project")


@pytest.fixture
def daemon(project):
    running = Daemon(lambda: CodeIndex.open(project, encoder=tools.HashingEncoder()), interval=0.05)
    thread = threading.Thread(target=running.run)
    thread.start()
    yield running
    running.stop()
    thread.join(30)
    assert not thread.is_alive()


def eventually(condition, seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.02)


def test_it_answers_as_the_index_does(daemon, project):
    eventually(lambda: ask(daemon.folder, {"verb": "status"})["coverage"] == 1.0)
    answer = ask_search(daemon.folder, "sum of the prices", 3)
    with CodeIndex.open(project, encoder=tools.HashingEncoder()) as index:
        expected = index.search("sum of the prices", 3)
    assert answer.hits == expected.hits
    assert (answer.mode, answer.coverage, answer.chunks) == ("hybrid", 1.0, expected.chunks)
    some = ask_search(daemon.folder, "prices", mode="lexical", languages=["go"], paths=["server/"])
    assert {hit.language for hit in some} <= {"go"}


def test_the_first_answer_waits_for_the_first_look(daemon):
    assert ask_search(daemon.folder, "parse_price", 1)[0].symbol == "parse_price"


def test_it_sees_changes_by_itself(daemon, project):
    assert not [hit for hit in ask_search(daemon.folder, "zebra_crossing") if hit.symbol == "zebra_crossing"]
    (project / "new.py").write_text("def zebra_crossing(road):\n    return road.stripes\n")
    eventually(lambda: "zebra_crossing" in [hit.symbol for hit in ask_search(daemon.folder, "zebra_crossing")])
    eventually(lambda: ask_search(daemon.folder, "zebra_crossing", 1)[0].dense_rank is not None)


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        ({"verb": "search", "text": "", "k": 3}, "no letters"),
        ({"verb": "search", "text": "a", "k": 3, "mode": "both"}, "hybrid"),
        ({"verb": "search", "text": "a", "k": "many"}, "not .*understood|none that is understood"),
        ({"verb": "search", "text": "a", "k": 3, "refresh": True}, "none that is understood"),
        ({"verb": "search", "text": "a", "k": 3, "colour": "red"}, "none that is understood"),
        ({"verb": "dance"}, "none that is understood"),
        ({}, "none that is understood"),
        ([1, 2], "none that is understood"),
    ],
)
def test_nonsense_is_answered_and_survived(daemon, request_, words):
    with pytest.raises(ConfigError, match=words):
        ask(daemon.folder, request_)
    assert ask(daemon.folder, {"verb": "status"})["files"] >= 0


def test_what_is_no_request_at_all(daemon):
    for data in (b"\xff\xfe\n", b"not json\n", b"\n", b"", b"{" * 5000 + b"\n"):
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(10)
            connection.connect(str(daemon.path))
            connection.sendall(data)
            connection.shutdown(socket.SHUT_WR)
            answer = connection.makefile("rb").readline()
        assert "error" in json.loads(answer)
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(daemon.path))  # and goes away without a word
    assert ask(daemon.folder, {"verb": "status"}) is not None


def test_only_its_user_may_ask(daemon):
    assert stat.S_IMODE(daemon.path.stat().st_mode) == 0o600


def test_the_encoder_is_never_asked_by_two_threads_at_once(project):
    inside, most = [], []

    class Watched(tools.HashingEncoder):
        def _encode(self, texts):
            inside.append(1)
            most.append(len(inside))
            time.sleep(0.002)
            result = super()._encode(texts)
            inside.pop()
            return result

    encoder = Watched()
    tools.write_project(project, tools.many_files(40))
    running = Daemon(lambda: CodeIndex.open(project, encoder=encoder), interval=0.01)
    thread = threading.Thread(target=running.run)
    thread.start()
    for number in range(20):
        ask_search(running.folder, f"read the file {number}")
    running.stop()
    thread.join(30)
    assert max(most) == 1


def test_a_socket_of_somebody_else_is_not_asked(daemon, monkeypatch):
    assert ask(daemon.folder, {"verb": "status"}) is not None
    monkeypatch.setattr("mc_text_code.codesearch.watch.os.getuid", lambda: 12345)
    assert ask(daemon.folder, {"verb": "status"}) is None


def test_a_second_daemon_is_refused(daemon, project):
    with pytest.raises(ConfigError, match="already"):
        Daemon(lambda: CodeIndex.open(project))
    assert ask(daemon.folder, {"verb": "status"}) is not None


def test_without_a_daemon_there_is_no_answer(project):
    with CodeIndex.open(project) as index:
        assert ask_search(index.folder, "prices") is None
        assert ask_stop(index.folder) is False
        socket_path(index.folder).touch()
        assert ask_search(index.folder, "prices") is None


def test_it_ends_when_asked(project):
    running = Daemon(lambda: CodeIndex.open(project), interval=0.05)
    thread = threading.Thread(target=running.run)
    thread.start()
    eventually(lambda: ask(running.folder, {"verb": "status"}) is not None)
    assert ask_stop(running.folder)
    thread.join(30)
    assert not thread.is_alive()
    assert not running.path.exists()


def test_the_socket_of_one_that_was_killed_is_taken_over(project):
    script = (
        "import sys\nfrom mc_text_code.codesearch import CodeIndex\nfrom mc_text_code.codesearch.watch import Daemon\n"
        "Daemon(lambda: CodeIndex.open(sys.argv[1])).run()\n"
    )
    process = subprocess.Popen([sys.executable, "-c", script, str(project)])
    folder = project / ".mc-code"
    eventually(lambda: ask(folder, {"verb": "status"}) is not None)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert socket_path(folder).exists()
    assert ask_search(folder, "prices") is None
    running = Daemon(lambda: CodeIndex.open(project), interval=0.05)
    thread = threading.Thread(target=running.run)
    thread.start()
    assert ask_search(folder, "parse_price", 1)[0].symbol == "parse_price"
    running.stop()
    thread.join(30)


def test_a_long_path_has_its_socket_elsewhere(tmp_path, monkeypatch):
    runtime = tempfile.mkdtemp(prefix="mc-", dir="/tmp")
    monkeypatch.setenv("XDG_RUNTIME_DIR", runtime)
    deep = tmp_path / ("long-name-" * 8) / ("of-folders-" * 8)
    root = tools.write_project(deep)
    path = socket_path(root / ".mc-code")
    assert len(os.fsencode(path)) < 104
    assert path.is_relative_to(runtime)
    running = Daemon(lambda: CodeIndex.open(root), interval=0.05)
    thread = threading.Thread(target=running.run)
    thread.start()
    assert ask_search(running.folder, "parse_price", 1)[0].symbol == "parse_price"
    running.stop()
    thread.join(30)
    shutil.rmtree(runtime)


def test_trouble_with_the_files_does_not_end_it(daemon, project):
    ask_search(daemon.folder, "prices")
    hidden = project.with_name("hidden")
    project.rename(hidden)
    time.sleep(0.3)
    hidden.rename(project)
    (project / "late.py").write_text("def after_the_trouble(): return 1\n")
    eventually(lambda: "after_the_trouble" in [hit.symbol for hit in ask_search(daemon.folder, "after_the_trouble")])
