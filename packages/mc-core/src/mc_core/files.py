"""Files that matter: written under a temporary name, synced, renamed; read back with errors that name the file.

Nothing here unpickles: a checkpoint is one safetensors file whose header also holds the nested structure as JSON.
Importing this module loads no torch.
"""

from __future__ import annotations

import errno
import json
import math
import os
import secrets
import stat
import zlib
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from mc_core.errors import CheckpointError, ConfigError, DataError, McError, RunError

if TYPE_CHECKING:
    from torch import Tensor

StrPath = str | os.PathLike[str]

STATE_FORMAT = 1
_HEADER_ROOM = 16 << 20  # safetensors refuses headers above 100 MB; JSON inside JSON nearly doubles
_STRUCTURE = "__structure__"
_RESERVED = {_STRUCTURE, "__metadata__"}  # the second is safetensors' own
_PARTIAL = ".part"
_EXACT = 1 << 53  # other readers of JSON take integers for float64
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_DENIED = {errno.EROFS, errno.EACCES, errno.EPERM}
_WRONG_KIND = {errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG}


def explain_write_error(error: OSError, path: StrPath) -> McError:
    """The error for people behind a failed write to ``path``: what happened, and what to do."""
    what = f"{path} could not be written ({error.strerror or error})"
    if error.errno in _FULL:
        return RunError(f"{what}; free space there or choose another folder, then run again")
    if error.errno in _DENIED:
        return ConfigError(f"{what}; choose a folder you may write to")
    if error.errno in _WRONG_KIND:
        return ConfigError(f"{what}; choose another name")
    return RunError(what)


def as_os_error(error: Exception) -> Exception:
    """safetensors hides the system's error number in its text."""
    for number in _FULL | _DENIED:
        if f"(os error {number})" in str(error):
            return OSError(number, os.strerror(number))
    return error


@contextmanager
def atomic_path(path: StrPath) -> Generator[Path]:
    """A temporary path beside ``path`` that becomes ``path`` when the block ends well and is removed otherwise.

    The file is synced before the rename and the folder after it: a crash at any moment leaves the old file or the new
    one, whole. Parent folders are made. The temporary file exists, empty, when the block starts.

    Raises:
        RunError: the disk or the quota is full.
        ConfigError: the folder is read-only, or the name belongs to something else.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with atomic_path(f"{folder}/a.txt") as draft:
    ...         _ = draft.write_text("whole")
    ...     [p.name for p in Path(folder).iterdir()]
    ['a.txt']
    """
    path = Path(path)
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}{_PARTIAL}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        draft.touch(exist_ok=False)
        mode = stat.S_IMODE(draft.stat().st_mode)
    except OSError as error:
        raise explain_write_error(error, path) from error
    try:
        yield draft
        draft.chmod(mode)  # safetensors puts a file in its place that only the owner can read
        with draft.open("rb+") as file:
            os.fsync(file.fileno())
        draft.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        if error.filename not in (None, str(draft)):
            raise  # about another file, which the block reads
        raise explain_write_error(error, path) from error
    finally:
        draft.unlink(missing_ok=True)


def remove_partial(folder: StrPath) -> list[Path]:
    """Remove what a killed process left of :func:`atomic_path` in ``folder``; for its only writer, before it writes."""
    left = [
        path for pattern in (f".*{_PARTIAL}", ".tmp??????") for path in Path(folder).glob(pattern) if path.is_file()
    ]
    for path in left:
        path.unlink(missing_ok=True)
    return left


def sync_folder(folder: StrPath) -> None:
    """Make renames in ``folder`` durable, where the system can."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def write_atomic(path: StrPath, data: bytes | str) -> None:
    """Write bytes, or text as UTF-8, all or nothing; see :func:`atomic_path` for what it raises."""
    with atomic_path(path) as draft:
        draft.write_bytes(_encode(data) if isinstance(data, str) else data)


def write_json(path: StrPath, obj: Any) -> None:
    """Write strict JSON, indented, all or nothing. NaN and infinity become null, NumPy and torch values numbers."""
    write_atomic(path, json.dumps(_plain(obj), indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: StrPath) -> Any:
    """Read a JSON file.

    Raises:
        DataError: the file is missing, or not JSON (with line and column).
    """
    try:
        return json.loads(_read_bytes(path))
    except json.JSONDecodeError as error:
        raise DataError(f"{path}, line {error.lineno}, column {error.colno}: not JSON ({error.msg})") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not JSON (byte {error.start} is not UTF-8)") from error


def read_jsonl(path: StrPath) -> list[dict[str, Any]]:
    """The records of a JSON-lines file. A torn last line, as ``kill -9`` leaves it, is dropped.

    Raises:
        DataError: the file is missing, or a line before the last is not a JSON object.
    """
    lines = _read_bytes(path).rstrip(b"\n").split(b"\n")
    records = [_record(line) for line in lines]
    if records[-1] is None:
        records.pop()
    for number, record in enumerate(records, start=1):
        if record is None:
            raise DataError(f"{path}, line {number}: not a JSON object: {lines[number - 1][:60]!r}; remove the line")
    return [record for record in records if record is not None]


class JsonlWriter:
    """Appends records to a JSON-lines file, each handed to the system at once: a killed process loses at most one.

    Opening drops a torn last line. Values become JSON as in :func:`write_json`.

    Args:
        path: of the file; parent folders are made.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder, JsonlWriter(f"{folder}/metrics.jsonl") as log:
    ...     for step in (10, 20, 30):
    ...         log.append({"step": step})
    ...     log.keep_while(lambda record: record["step"] <= 20)
    ...     read_jsonl(log.path)
    [{'step': 10}, {'step': 20}]
    """

    def __init__(self, path: StrPath) -> None:
        self.path = Path(path)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._open()
            self._drop_torn_line()
        except OSError as error:
            raise explain_write_error(error, self.path) from error

    def _open(self) -> None:
        self._file = self.path.open("ab+", buffering=0)

    def _drop_torn_line(self) -> None:
        self._file.seek(0)
        data = self._file.read()
        body = data.rstrip(b"\n")
        start = body.rfind(b"\n") + 1
        if body and _record(body[start:]) is None:
            self._file.truncate(start)
        elif body and body == data:  # whole, only its end of line is missing
            self._file.write(b"\n")

    def append(self, record: Mapping[str, Any]) -> None:
        """Add one record as one line, or nothing.

        Raises:
            RunError: the disk is full; the file ends with the last whole line.
        """
        line = _encode(json.dumps(_plain(record), ensure_ascii=False, allow_nan=False)) + b"\n"
        end = self._file.seek(0, os.SEEK_END)
        try:
            if self._file.write(line) != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            self._file.truncate(end)
            raise explain_write_error(error, self.path) from error

    def keep_while(self, predicate: Callable[[dict[str, Any]], bool]) -> None:
        """Keep the leading records for which ``predicate`` holds; drop the first that fails and all after, atomically.

        A resumed run drops what was logged after its checkpoint: ``keep_while(lambda r: r["step"] <= step)``.
        """
        records = read_jsonl(self.path)
        kept = next((i for i, record in enumerate(records) if not predicate(record)), len(records))
        if kept < len(records):
            lines = self.path.read_bytes().split(b"\n")[:kept]
            self._file.close()  # before the rename: Windows replaces no open file
            try:
                write_atomic(self.path, b"".join(line + b"\n" for line in lines))
            finally:
                self._open()

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def save_state(tree: Any, path: StrPath) -> None:
    """Write a nested state to one safetensors file, atomically and without pickle.

    Tensors may have any device, dtype and strides. The same tensor in two places (tied weights, or an alias with the
    same memory, shape and strides) is stored once. Each tensor's CRC-32 is kept, so that damage is noticed. Contiguous
    CPU tensors are written where they lie, others are copied to the CPU once.

    Args:
        tree: dict with str or int keys, list, tuple, None, bool, int of any size, float (also infinite or NaN), str and
            ``torch.Tensor``, nested. ``requires_grad`` and the subclass ``nn.Parameter`` are not kept.
        path: of the file.

    Raises:
        CheckpointError: something else is in the tree; the message says where.
        RunError: the disk is full. ConfigError: the folder is read-only. Nothing is left behind.
    """
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    packer = _Packer()
    structure = json.dumps({"format": STATE_FORMAT, "tree": packer.pack(tree, ())}, separators=(",", ":"))
    metadata = {"mc_state": structure}
    if len(structure) > _HEADER_ROOM:
        packer.tensors[_STRUCTURE] = torch.frombuffer(bytearray(structure, "ascii"), dtype=torch.uint8)
        metadata = {"mc_state": _STRUCTURE}
    with atomic_path(path) as draft:
        try:
            save_file(packer.tensors, draft, metadata=metadata)
        except SafetensorError as error:
            raise as_os_error(error) from error


def load_state(path: StrPath) -> Any:
    """Read what :func:`save_state` wrote: same nesting, types, values and dtypes, on the CPU, contiguous.

    A tensor that was shared comes back as one tensor object in all its places. The tensors own their memory: the file
    may be replaced or removed afterwards.

    Raises:
        CheckpointError: the file is missing, cut off, damaged, or of another kind.

    >>> import tempfile, torch
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_state({"step": 3, 7: (torch.ones(2), float("inf"))}, f"{folder}/state.safetensors")
    ...     load_state(f"{folder}/state.safetensors")
    {'step': 3, 7: (tensor([1., 1.]), inf)}
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            structure = (file.metadata() or {}).get("mc_state")
            if structure is None:
                raise CheckpointError(f"{path}: a safetensors file, but not a state written by mc-core")
            if structure == _STRUCTURE:
                structure = file.get_tensor(_STRUCTURE).numpy().tobytes().decode("ascii")
            parsed = json.loads(structure)
            if parsed["format"] != STATE_FORMAT:
                raise CheckpointError(f"{path}: state format {parsed['format']}, this version reads {STATE_FORMAT}")
            return _Unpacker(file).unpack(parsed["tree"])
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: does not exist") from error
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, RuntimeError, AttributeError) as error:
        raise CheckpointError(f"{path}: cannot be read, probably cut off or damaged ({error})") from error


class _Packer:
    """Turns a tree into JSON values, and collects its tensors under readable names."""

    def __init__(self) -> None:
        import torch

        self.torch = torch
        self.tensors: dict[str, Tensor] = {}
        self._nodes: dict[tuple[Any, ...], dict[str, Any]] = {}
        self._owners: dict[int, str] = {}

    def pack(self, value: Any, where: tuple[Any, ...]) -> Any:
        if value is None or isinstance(value, (bool, str)):
            return value
        if isinstance(value, int):
            return value if abs(value) < _EXACT else {"int": str(value)}
        if isinstance(value, float):
            return float(value) if math.isfinite(value) else {"float": repr(float(value))}
        if isinstance(value, list):
            return [self.pack(item, (*where, i)) for i, item in enumerate(value)]
        if isinstance(value, tuple):
            return {"tuple": [self.pack(item, (*where, i)) for i, item in enumerate(value)]}
        if isinstance(value, Mapping):
            return {"dict": [[self._key(key, where), self.pack(item, (*where, key))] for key, item in value.items()]}
        if type(value) in (self.torch.Tensor, self.torch.nn.Parameter) and value.layout == self.torch.strided:
            return self._tensor(value.detach().resolve_conj().resolve_neg(), where)
        raise CheckpointError(
            f"cannot save {_place(where)}: {type(value).__module__}.{type(value).__qualname__} is none of dict, list, "
            "tuple, None, bool, int, float, str and (dense, unsharded) torch.Tensor; convert it first"
        )

    @staticmethod
    def _key(key: Any, where: tuple[Any, ...]) -> str | int:
        if isinstance(key, bool) or not isinstance(key, (str, int)):
            raise CheckpointError(f"cannot save {_place(where)}: its key {key!r} is neither str nor int")
        return key

    def _tensor(self, tensor: Tensor, where: tuple[Any, ...]) -> dict[str, Any]:
        alias = (tensor.device, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())
        if tensor.numel() and alias in self._nodes:
            return self._nodes[alias]
        name = plain = "/".join(map(str, where)).encode("ascii", "backslashreplace").decode() or "value"
        while name in self.tensors or name in _RESERVED:  # the keys 0 and "0", or "a/b" beside "a" → "b"
            name = f"{plain}#{len(self.tensors)}"
        stored = tensor.to("cpu").contiguous()
        if self._owners.setdefault(stored.untyped_storage().data_ptr(), name) != name:
            stored = stored.clone()  # another view of memory that is stored already; safetensors refuses overlaps
        node: dict[str, Any] = {"tensor": name}
        if str(tensor.dtype) not in _NATIVE:
            node |= {"dtype": str(tensor.dtype).removeprefix("torch."), "shape": list(tensor.shape)}
            stored = stored.reshape(-1).view(self.torch.uint8)
        self.tensors[name] = stored
        node["crc32"] = _crc32(stored)
        self._nodes[alias] = node
        return node


class _Unpacker:
    """The reverse of :class:`_Packer`, on an open safetensors file."""

    def __init__(self, file: Any) -> None:
        import torch

        self.torch = torch
        self.file = file
        self._loaded: dict[str, Tensor] = {}

    def unpack(self, node: Any) -> Any:
        if isinstance(node, list):
            return [self.unpack(item) for item in node]
        if not isinstance(node, dict):
            return node
        match node:
            case {"dict": items}:
                return {key: self.unpack(value) for key, value in items}
            case {"tuple": items}:
                return tuple(self.unpack(item) for item in items)
            case {"int": text}:
                return int(text)
            case {"float": text}:
                return float(text)
            case {"tensor": name}:
                if name not in self._loaded:
                    self._loaded[name] = self._tensor(node)
                return self._loaded[name]
        raise ValueError(f"unknown entry {sorted(node)}")

    def _tensor(self, node: dict[str, Any]) -> Tensor:
        stored = self.file.get_tensor(node["tensor"]).clone()  # what safetensors gives is the mapped file
        if _crc32(stored) != node["crc32"]:
            raise ValueError(f"the checksum of {node['tensor']} does not match")
        if "dtype" in node:
            return stored.view(getattr(self.torch, node["dtype"])).reshape(node["shape"])
        return stored


# What every supported version of safetensors stores under its own name; the rest is stored as bytes beside its dtype.
_NATIVE = {
    f"torch.{name}"
    for name in ("float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool")
}


def _crc32(tensor: Tensor) -> int:
    import torch

    return zlib.crc32(tensor.reshape(-1).view(torch.uint8).numpy().data)


def _place(where: tuple[Any, ...]) -> str:
    return "the state's " + "/".join(map(str, where)) if where else "the state"


def _encode(text: str) -> bytes:
    # A file name that is not Unicode reaches us with lone surrogates; "\udc80" is also how JSON escapes one.
    return text.encode("utf-8", "backslashreplace")


def _read_bytes(path: StrPath) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        reason = "does not exist" if isinstance(error, FileNotFoundError) else f"cannot be read ({error.strerror})"
        raise DataError(f"{path}: {reason}") from error


def _record(line: bytes) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) else None


def _plain(obj: Any) -> Any:
    """``obj`` as values that strict JSON has."""
    if isinstance(obj, Mapping):
        return {str(key): _plain(value) for key, value in obj.items()}
    if isinstance(obj, (list, tuple)):
        return [_plain(value) for value in obj]
    if isinstance(obj, float):
        return float(obj) if math.isfinite(obj) else None
    if isinstance(obj, os.PathLike):
        return os.fspath(obj)
    if hasattr(obj, "tolist"):  # NumPy and torch, scalars and arrays
        return _plain(obj.tolist())
    return obj
