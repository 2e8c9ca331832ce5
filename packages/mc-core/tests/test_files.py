"""Files are whole or absent, say which one is at fault, and bring back exactly what was put in."""

from __future__ import annotations

import errno
import json
import math
import os
import random
import signal
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mc_core import files
from mc_core.errors import CheckpointError, ConfigError, DataError, RunError
from mc_core.files import (
    JsonlWriter,
    atomic_path,
    load_state,
    read_json,
    read_jsonl,
    remove_partial,
    save_state,
    write_atomic,
    write_json,
)


def listing(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def run_python(code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True, timeout=120, check=False
    )


class TestAtomicPath:
    def test_writes_bytes_and_text_and_makes_the_folder(self, tmp_path: Path) -> None:
        write_atomic(tmp_path / "a/b/text.txt", "θ\n")
        write_atomic(tmp_path / "a/b/raw.bin", b"\x00\xff")
        assert (tmp_path / "a/b/text.txt").read_bytes() == "θ\n".encode()
        assert (tmp_path / "a/b/raw.bin").read_bytes() == b"\x00\xff"
        assert listing(tmp_path / "a/b") == ["raw.bin", "text.txt"]

    def test_readers_see_the_old_file_until_the_block_ends(self, tmp_path: Path) -> None:
        path = tmp_path / "file"
        write_atomic(path, "old")
        with atomic_path(path) as draft:
            assert draft.parent == tmp_path
            draft.write_text("new")
            assert path.read_text() == "old"
        assert path.read_text() == "new"

    @pytest.mark.parametrize("failure", [ValueError, KeyboardInterrupt])
    def test_an_error_in_the_block_passes_and_leaves_the_old_file(self, tmp_path: Path, failure: type) -> None:
        path = tmp_path / "file"
        write_atomic(path, "old")

        def write_half() -> None:
            with atomic_path(path) as draft:
                draft.write_text("half")
                raise failure("inside")

        with pytest.raises(failure, match="inside"):
            write_half()
        assert path.read_text() == "old"
        assert listing(tmp_path) == ["file"]

    def test_file_and_folder_are_synced_around_the_rename(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        events: list[str] = []
        real_sync, real_replace = os.fsync, os.replace

        def sync(handle: int) -> None:
            events.append("folder" if stat.S_ISDIR(os.fstat(handle).st_mode) else "file")
            real_sync(handle)

        def replace(source: Any, target: Any) -> None:
            events.append("rename")
            real_replace(source, target)

        monkeypatch.setattr(os, "fsync", sync)
        monkeypatch.setattr(os, "replace", replace)
        write_atomic(tmp_path / "file", "x")
        assert events == ["file", "rename", "folder"]

    def test_permissions_follow_the_umask_whoever_wrote_the_draft(self, tmp_path: Path) -> None:
        path = tmp_path / "file"
        (tmp_path / "plain").touch()
        with atomic_path(path) as draft:
            draft.unlink()
            os.close(os.open(draft, os.O_CREAT | os.O_WRONLY, 0o600))  # as safetensors does
        assert path.stat().st_mode == (tmp_path / "plain").stat().st_mode

    @pytest.mark.parametrize(
        ("number", "error", "advice"),
        [
            (errno.ENOSPC, RunError, "free space"),
            (errno.EDQUOT, RunError, "free space"),
            (errno.EROFS, ConfigError, "choose a folder you may write to"),
            (errno.EACCES, ConfigError, "choose a folder you may write to"),
        ],
    )
    @pytest.mark.parametrize("call", ["fsync", "replace"])
    def test_trouble_with_the_disk_is_explained_and_nothing_is_left(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, error: type, advice: str, call: str
    ) -> None:
        def fail(*_: object) -> None:
            raise OSError(number, os.strerror(number))

        path = tmp_path / "file"
        write_atomic(path, "old")
        monkeypatch.setattr(os, call, fail)
        with pytest.raises(error, match=advice) as caught:
            write_atomic(path, "new")
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)
        assert path.read_text() == "old"
        assert listing(tmp_path) == ["file"]

    def test_a_name_that_is_taken(self, tmp_path: Path) -> None:
        (tmp_path / "folder").mkdir()
        (tmp_path / "file").touch()
        with pytest.raises(ConfigError, match="choose another name"):
            write_atomic(tmp_path / "folder", "x")
        with pytest.raises(ConfigError, match="choose another name"):
            write_atomic(tmp_path / "file" / "below", "x")
        assert listing(tmp_path) == ["file", "folder"]

    @pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
    def test_a_real_read_only_folder(self, tmp_path: Path) -> None:
        folder = tmp_path / "locked"
        folder.mkdir(mode=0o555)
        with pytest.raises(ConfigError, match="choose a folder you may write to"):
            write_atomic(folder / "file", "x")

    def test_an_error_about_another_file_is_not_blamed_on_this_one(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError, match="elsewhere"), atomic_path(tmp_path / "file"):
            (tmp_path / "elsewhere").read_text()
        assert listing(tmp_path) == []

    @pytest.mark.skipif(os.name != "posix", reason="needs SIGKILL")
    def test_kill_during_a_write_leaves_the_old_file(self, tmp_path: Path) -> None:
        path = tmp_path / "file"
        write_atomic(path, "old")
        code = (
            "import os, signal, sys\nfrom mc_core.files import atomic_path\n"
            "with atomic_path(sys.argv[1]) as draft:\n"
            "    draft.write_text('half')\n    os.kill(os.getpid(), signal.SIGKILL)"
        )
        assert run_python(code, path).returncode == -signal.SIGKILL
        assert path.read_text() == "old"
        assert len(listing(tmp_path)) == 2
        (removed,) = remove_partial(tmp_path)
        assert removed.name.startswith(".file.")
        assert listing(tmp_path) == ["file"]


class TestJson:
    def test_round_trip(self, tmp_path: Path) -> None:
        value = {"metric": "knn_accuracy", "trained": 0.93, "n": 2**70, "nested": [None, True, {"θ": "ü"}]}
        write_json(tmp_path / "r.json", value)
        assert read_json(tmp_path / "r.json") == value

    def test_is_strict_and_knows_scalars_of_numpy_and_torch_and_paths(self, tmp_path: Path) -> None:
        value = {
            "nan": math.nan,
            "inf": -math.inf,
            "numpy": np.float32(0.5),
            "array": np.array([1.0, np.inf]),
            "torch": torch.tensor(3),
            "path": Path("runs/x"),
            1: (1, 2),
        }
        write_json(tmp_path / "r.json", value)

        def refuse(constant: str) -> None:
            pytest.fail(f"{constant} is not JSON")

        assert json.loads((tmp_path / "r.json").read_text(), parse_constant=refuse) == {
            "nan": None,
            "inf": None,
            "numpy": 0.5,
            "array": [1.0, None],
            "torch": 3,
            "path": "runs/x",
            "1": [1, 2],
        }

    def test_a_file_name_that_is_no_unicode_survives(self, tmp_path: Path) -> None:
        name = os.fsdecode(b"caf\xe9.png")
        write_json(tmp_path / "r.json", {"file": name})
        assert read_json(tmp_path / "r.json") == {"file": name}

    @pytest.mark.parametrize(
        ("content", "message"),
        [(b'{"a": 1,\n "b": }', "line 2, column 7: not JSON"), (b'"\xff"', "byte 1 is not UTF-8"), (b"", "not JSON")],
    )
    def test_broken_files_are_named_with_the_place(self, tmp_path: Path, content: bytes, message: str) -> None:
        (tmp_path / "r.json").write_bytes(content)
        with pytest.raises(DataError, match=message) as caught:
            read_json(tmp_path / "r.json")
        assert str(tmp_path / "r.json") in str(caught.value)

    def test_missing_file(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match=r"absent\.json: does not exist"):
            read_json(tmp_path / "absent.json")

    def test_an_object_json_does_not_know_leaves_no_file(self, tmp_path: Path) -> None:
        with pytest.raises(TypeError, match="not JSON serializable"):
            write_json(tmp_path / "r.json", {"x": object()})
        assert listing(tmp_path) == []


class TestJsonLines:
    def test_lines_are_on_disk_before_the_file_is_closed(self, tmp_path: Path) -> None:
        path = tmp_path / "run/metrics.jsonl"
        with JsonlWriter(path) as log:
            for step in range(3):
                log.append({"step": step, "loss": torch.tensor(0.5), "nan": math.nan})
                assert len(path.read_bytes().splitlines()) == step + 1
        assert read_jsonl(path) == [{"step": step, "loss": 0.5, "nan": None} for step in range(3)]

    def test_reopening_appends(self, tmp_path: Path) -> None:
        for step in range(3):
            with JsonlWriter(tmp_path / "m.jsonl") as log:
                log.append({"step": step})
        assert [record["step"] for record in read_jsonl(tmp_path / "m.jsonl")] == [0, 1, 2]

    @pytest.mark.parametrize("tail", [b'{"step": 3, "lo', b"{", b"\0" * 40, b'{"step": 3, "lo\n', b"17"])
    def test_a_torn_last_line_is_dropped_by_reader_and_writer(self, tmp_path: Path, tail: bytes) -> None:
        path = tmp_path / "m.jsonl"
        path.write_bytes(b'{"step": 1}\n{"step": 2}\n' + tail)
        assert read_jsonl(path) == [{"step": 1}, {"step": 2}]
        with JsonlWriter(path) as log:
            log.append({"step": 3})
        assert path.read_bytes() == b'{"step": 1}\n{"step": 2}\n{"step": 3}\n'

    def test_a_whole_last_line_without_its_end_is_kept(self, tmp_path: Path) -> None:
        path = tmp_path / "m.jsonl"
        path.write_bytes(b'{"step": 1}')
        assert read_jsonl(path) == [{"step": 1}]
        with JsonlWriter(path) as log:
            log.append({"step": 2})
        assert path.read_bytes() == b'{"step": 1}\n{"step": 2}\n'

    @pytest.mark.parametrize("content", [b"", b"\n", b"{"])
    def test_nothing_is_an_empty_list(self, tmp_path: Path, content: bytes) -> None:
        (tmp_path / "m.jsonl").write_bytes(content)
        assert read_jsonl(tmp_path / "m.jsonl") == []

    def test_a_broken_line_in_the_middle_is_named(self, tmp_path: Path) -> None:
        path = tmp_path / "m.jsonl"
        path.write_bytes(b'{"step": 1}\n{"st\n{"step": 3}\n')
        with pytest.raises(DataError, match="line 2: not a JSON object") as caught:
            read_jsonl(path)
        assert str(path) in str(caught.value)

    def test_keep_while_drops_everything_from_the_first_that_fails(self, tmp_path: Path) -> None:
        path = tmp_path / "m.jsonl"
        with JsonlWriter(path) as log:
            for step in (10, 20, 30, 15, 40):
                log.append({"step": step, "loss": 1 / 3})
            log.keep_while(lambda record: record["step"] <= 20)
            assert read_jsonl(path) == [{"step": 10, "loss": 1 / 3}, {"step": 20, "loss": 1 / 3}]
            log.append({"step": 25})
        assert [record["step"] for record in read_jsonl(path)] == [10, 20, 25]
        assert listing(tmp_path) == ["m.jsonl"]

    def test_keep_while_that_keeps_all_or_nothing(self, tmp_path: Path) -> None:
        path = tmp_path / "m.jsonl"
        with JsonlWriter(path) as log:
            log.keep_while(lambda record: True)
            log.append({"step": 1})
            log.keep_while(lambda record: True)
            assert path.read_bytes() == b'{"step": 1}\n'
            log.keep_while(lambda record: False)
            assert path.read_bytes() == b""
            log.append({"step": 2})
        assert read_jsonl(path) == [{"step": 2}]

    @pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_FSIZE")
    def test_a_full_disk_leaves_whole_lines(self, tmp_path: Path) -> None:
        code = (
            "import resource, sys\nfrom mc_core.errors import RunError\nfrom mc_core.files import JsonlWriter\n"
            "log = JsonlWriter(sys.argv[1])\nlog.append({'step': 1})\n"
            "resource.setrlimit(resource.RLIMIT_FSIZE, (20, 20))\n"
            "try:\n    log.append({'step': 2, 'loss': 0.125})\nexcept RunError as error:\n    print(error)"
        )
        done = run_python(code, tmp_path / "m.jsonl")
        assert str(tmp_path / "m.jsonl") in done.stdout, done.stderr
        assert "free space" in done.stdout
        assert (tmp_path / "m.jsonl").read_bytes() == b'{"step": 1}\n'


def same(a: Any, b: Any) -> bool:
    """Equal in value and type, tensors bit by bit, NaN equal to NaN."""
    if isinstance(a, torch.Tensor):
        return (
            isinstance(b, torch.Tensor)
            and a.dtype == b.dtype
            and a.shape == b.shape
            and torch.equal(a.contiguous().reshape(-1).view(torch.uint8), b.contiguous().reshape(-1).view(torch.uint8))
        )
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return list(a) == list(b) and all(type(k) is type(j) and same(a[k], b[j]) for k, j in zip(a, b, strict=True))
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, float):
        return repr(a) == repr(b)
    return bool(a == b)


DTYPES = ["float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool"]
DTYPES += ["uint16", "uint32", "uint64", "complex64", "complex128", "float8_e4m3fn", "float8_e5m2"]


class TestState:
    def round_trip(self, tree: Any, folder: Path) -> Any:
        save_state(tree, folder / "s.safetensors")
        assert listing(folder) == ["s.safetensors"]
        return load_state(folder / "s.safetensors")

    def test_structure_comes_back_exactly(self, tmp_path: Path) -> None:
        tree = {
            "none": None,
            "bools": [True, False],
            "ints": [0, -1, 2**53 - 1, 2**53, -(2**53), 2**64, 2**200, -(2**63)],
            "floats": [0.1, -0.0, 1e-310, 1.0, 1e22, math.inf, -math.inf, math.nan, 0.1 + 0.2],
            "text": ["", 'quote " and \\', "θ\n\0", "\udc80", "🦊"],
            "empty": [{}, [], ()],
            "tuple": (1, (2, [3])),
            7: "int key",
            "7": "str key",
            -1: {0: {"deep": ({"list": [()]},)}},
            "tensor": "a plain string",
            "dict": {"dict": [["a", 1]], "tuple": [1], "int": "5", "float": "nan"},
        }
        assert same(self.round_trip(tree, tmp_path), tree)

    @pytest.mark.parametrize("tree", [None, 3, "x", [], {}, (), torch.arange(3)])
    def test_any_root(self, tmp_path: Path, tree: Any) -> None:
        assert same(self.round_trip(tree, tmp_path), tree)

    @pytest.mark.parametrize("name", DTYPES)
    @pytest.mark.parametrize("shape", [(), (1,), (0, 3), (3, 2)])
    def test_every_dtype_and_shape(self, tmp_path: Path, name: str, shape: tuple[int, ...]) -> None:
        dtype = getattr(torch, name)
        size = torch.empty(shape, dtype=dtype).numel() * torch.empty((), dtype=dtype).element_size()
        high = 2 if name == "bool" else 256
        raw = torch.randint(0, high, (size,), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
        tensor = raw.view(dtype).reshape(shape)
        assert same(self.round_trip({"x": tensor}, tmp_path), {"x": tensor})

    def test_non_finite_values_and_nan_payloads_are_kept_bit_by_bit(self, tmp_path: Path) -> None:
        bits = torch.tensor([0x7F800001, 0x7FC00000, -8388608, 1], dtype=torch.int32)
        back = self.round_trip({"x": bits.view(torch.float32)}, tmp_path)["x"]
        assert torch.equal(back.view(torch.int32), bits)

    def test_strided_tensors(self, tmp_path: Path) -> None:
        base = torch.arange(24.0).reshape(4, 6)
        tree = {
            "transposed": base.T,
            "slice": base[1:3],
            "strided": base[::2, ::3],
            "expanded": torch.ones(1).expand(5),
            "channels_last": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
            "square": (square := torch.arange(9.0).reshape(3, 3)),
            "square_transposed": square.T,  # same memory and shape, other strides
            "conjugate": torch.view_as_complex(torch.randn(3, 2)).conj(),
        }
        assert same(self.round_trip(tree, tmp_path), {**tree, "conjugate": tree["conjugate"].resolve_conj()})

    def test_tied_tensors_are_stored_once_and_tied_again(self, tmp_path: Path) -> None:
        weight = torch.nn.Parameter(torch.randn(200, 100))
        tree = {"encoder": weight, "decoder": weight, "alias": weight.data, "list": [weight.detach().view(200, 100)]}
        back = self.round_trip(tree, tmp_path)
        assert back["encoder"] is back["decoder"] is back["alias"] is back["list"][0]
        assert torch.equal(back["encoder"], weight)
        assert type(back["encoder"]) is torch.Tensor
        assert (tmp_path / "s.safetensors").stat().st_size < 1.2 * 200 * 100 * 4

    def test_overlapping_views_are_kept_by_value(self, tmp_path: Path) -> None:
        base = torch.arange(10.0)
        tree = {"low": base[:6], "high": base[4:], "all": base, "as_int": base.view(torch.int32)}
        assert same(self.round_trip(tree, tmp_path), tree)

    def test_equal_values_in_different_memory_stay_apart(self, tmp_path: Path) -> None:
        back = self.round_trip([torch.ones(3), torch.ones(3), torch.empty(0), torch.empty(0)], tmp_path)
        back[0].zero_()
        assert torch.equal(back[1], torch.ones(3))
        assert back[2] is not back[3]

    def test_names_in_the_file_are_readable_and_never_collide(self, tmp_path: Path) -> None:
        from safetensors import safe_open

        tree = {
            "a/b": torch.tensor(0),
            "a": {"b": torch.tensor(1)},
            0: torch.tensor(2),
            "0": torch.tensor(3),
            "__structure__": torch.tensor(4),
            "θ": torch.tensor(5),
            "__metadata__": torch.tensor(6),
            "": torch.tensor(7),
        }
        assert same(self.round_trip(tree, tmp_path), tree)
        with safe_open(tmp_path / "s.safetensors", framework="pt") as file:
            assert {"a/b", "0"} <= set(file.keys())

    def test_the_same_state_gives_the_same_bytes(self, tmp_path: Path) -> None:
        tree = {name: torch.full((3,), i) for i, name in enumerate("zyxwv")}
        save_state(tree, tmp_path / "a")
        save_state(tree, tmp_path / "b")
        assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()

    def test_a_structure_too_large_for_the_header(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(files, "_HEADER_ROOM", 1000)
        tree = {"long": ["θ" * 50] * 50, "x": torch.arange(4), "__structure__": torch.ones(2)}
        assert same(self.round_trip(tree, tmp_path), tree)
        with (tmp_path / "s.safetensors").open("rb") as file:
            assert int.from_bytes(file.read(8), "little") < 2000

    def test_an_optimizer_continues_as_if_never_stopped(self, tmp_path: Path) -> None:
        def start() -> tuple[torch.nn.Linear, torch.optim.AdamW]:
            torch.manual_seed(0)
            model = torch.nn.Linear(4, 3)
            return model, torch.optim.AdamW(model.parameters(), lr=0.1)

        def step(model: torch.nn.Linear, optimizer: torch.optim.AdamW) -> None:
            optimizer.zero_grad()
            model(torch.ones(2, 4)).square().sum().backward()
            optimizer.step()

        model, optimizer = start()
        step(model, optimizer)
        states = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "random": random.getstate()}
        back = self.round_trip(states, tmp_path)
        assert same(back["random"], random.getstate())
        other, other_optimizer = start()
        other.load_state_dict(back["model"])
        other_optimizer.load_state_dict(back["optimizer"])
        for pair in ((model, optimizer), (other, other_optimizer)):
            step(*pair)
        assert torch.equal(model.weight, other.weight)

    def test_loaded_tensors_outlive_the_file(self, tmp_path: Path) -> None:
        back = self.round_trip({"x": torch.ones(100_000)}, tmp_path)
        with (tmp_path / "s.safetensors").open("r+b") as file:
            file.truncate(0)  # a mapped file would now kill the process
        assert back["x"].sum() == 100_000

    @pytest.mark.parametrize(
        ("tree", "message"),
        [
            ({"a": [1, {"b": object()}]}, "cannot save the state's a/1/b: builtins.object"),
            ({"rng": np.zeros(3)}, "the state's rng: numpy.ndarray"),
            ({"s": {1, 2}}, "the state's s: builtins.set"),
            ({"x": {(1, 2): 3}}, r"the state's x: its key \(1, 2\)"),
            ({True: 1}, "the state: its key True"),
            ({"x": torch.eye(3).to_sparse()}, "the state's x: torch.Tensor"),
            (object(), "cannot save the state: builtins.object"),
        ],
    )
    def test_what_cannot_be_saved_is_named_and_leaves_no_file(self, tmp_path: Path, tree: Any, message: str) -> None:
        with pytest.raises(CheckpointError, match=message):
            save_state(tree, tmp_path / "s.safetensors")
        assert listing(tmp_path) == []

    def test_every_truncation_is_noticed(self, tmp_path: Path) -> None:
        path = tmp_path / "s.safetensors"
        save_state({"x": torch.arange(8), "y": 3}, path)
        whole = path.read_bytes()
        for length in range(len(whole)):
            path.write_bytes(whole[:length])
            with pytest.raises(CheckpointError, match="cut off or damaged") as caught:
                load_state(path)
            assert str(path) in str(caught.value)

    def test_every_flipped_byte_of_the_data_is_noticed(self, tmp_path: Path) -> None:
        path = tmp_path / "s.safetensors"
        save_state({"x": torch.arange(4)}, path)
        whole = path.read_bytes()
        for position in range(len(whole) - 32, len(whole)):
            damaged = bytearray(whole)
            damaged[position] ^= 4
            path.write_bytes(damaged)
            with pytest.raises(CheckpointError, match="checksum of x does not match"):
                load_state(path)

    def test_a_damaged_header_never_raises_anything_else(self, tmp_path: Path) -> None:
        path = tmp_path / "s.safetensors"
        tree = {"x": torch.arange(4), "c": torch.ones(2, dtype=torch.complex128), "t": (1, 2.5)}
        save_state(tree, path)
        whole = path.read_bytes()
        header = int.from_bytes(whole[:8], "little")
        seen = 0
        for position in range(8 + header):
            damaged = bytearray(whole)
            damaged[position] ^= 1
            path.write_bytes(damaged)
            try:
                load_state(path)
            except CheckpointError:
                seen += 1
        assert seen > header // 2

    def test_other_files_are_refused(self, tmp_path: Path) -> None:
        from safetensors.torch import save_file

        save_file({"x": torch.ones(2)}, tmp_path / "other.safetensors")
        with pytest.raises(CheckpointError, match=r"other\.safetensors: a safetensors file, but not a state"):
            load_state(tmp_path / "other.safetensors")
        save_file({"x": torch.ones(2)}, tmp_path / "newer", metadata={"mc_state": '{"format":99,"tree":null}'})
        with pytest.raises(CheckpointError, match="state format 99, this version reads 1"):
            load_state(tmp_path / "newer")
        with pytest.raises(CheckpointError, match="absent: does not exist"):
            load_state(tmp_path / "absent")

    @pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_FSIZE")
    def test_a_full_disk_leaves_the_old_state(self, tmp_path: Path) -> None:
        path = tmp_path / "s.safetensors"
        save_state({"step": 1}, path)
        code = (
            "import resource, sys, torch\nfrom mc_core.errors import RunError\nfrom mc_core.files import save_state\n"
            "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
            "try:\n    save_state({'x': torch.ones(100_000)}, sys.argv[1])\nexcept RunError as error:\n    print(error)"
        )
        done = run_python(code, path)
        assert str(path) in done.stdout, done.stderr
        assert "free space" in done.stdout
        assert load_state(path) == {"step": 1}
        assert listing(tmp_path) == ["s.safetensors"]


def test_importing_files_loads_no_torch() -> None:
    done = run_python("import sys, mc_core.files; print('torch' in sys.modules, 'safetensors' in sys.modules)")
    assert done.stdout.split() == ["False", "False"], done.stderr
