"""What all command-line apps share: options from config models, one-line errors, results as a table or as JSON.

Imports neither torch nor the app's package, so that ``--help`` is immediate.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel
from rich.cells import cell_len
from rich.console import Console
from rich.logging import RichHandler
from rich.table import Table

from mc_core.errors import ConfigError, McError
from mc_core.files import write_json

_log = logging.getLogger("mc_core")


def given_fields(model: BaseModel | None) -> dict[str, Any]:
    """The fields of an option model that the user set on the command line, nested ones too.

    >>> from mc_core.engine.config import Fit
    >>> given_fields(Fit(lr=0.5))
    {'lr': 0.5}
    """
    if model is None:
        return {}
    given: dict[str, Any] = {}
    for name in model.model_fields_set:
        value = getattr(model, name)
        given[name] = given_fields(value) if isinstance(value, BaseModel) else value
    return given


def call_app(app: Any, arguments: Sequence[str]) -> Any:
    """Run a cyclopts app; what it refuses becomes a one-line :class:`~mc_core.errors.ConfigError`.

    Args:
        app: the :class:`cyclopts.App`.
        arguments: of the command line, without the program's name.
    """
    from cyclopts import CycloptsError
    from pydantic import ValidationError

    _refuse_values_of_flags(app, arguments)
    try:
        return app(list(arguments), exit_on_error=False, print_error=False)
    except CycloptsError as error:
        cause = error.__cause__ or error.__context__
        if isinstance(cause, ValidationError):
            raise ConfigError(_option_problem(cause, arguments)) from error
        raise ConfigError(f"{' '.join(str(error).split())} (see {_help_of(app, arguments)})") from error
    except ValidationError as error:
        raise ConfigError(_option_problem(error, arguments)) from error


def value_of(arguments: Sequence[str], option: str) -> str | None:
    """What follows ``option`` on a command line that is not parsed yet.

    >>> value_of(["pretrain", "--recipe", "moco-v2"], "--recipe"), value_of(["--recipe=dcl"], "--recipe")
    ('moco-v2', 'dcl')
    """
    for i, argument in enumerate(arguments):
        if argument == option and i + 1 < len(arguments):
            return arguments[i + 1]
        if argument.startswith(f"{option}="):
            return argument.partition("=")[2]
    return None


def _verbs_of(app: Any, arguments: Sequence[str]) -> list[str]:
    """The verbs that ``arguments`` begin with."""
    names: list[str] = []
    for argument in arguments:
        if argument.startswith("-") or argument not in set(app):
            break
        names.append(argument)
        app = app[argument]
    return names


def _help_of(app: Any, arguments: Sequence[str]) -> str:
    """The command whose help explains ``arguments``: verbs are followed down as far as they are typed."""
    return " ".join([app.name[0], *_verbs_of(app, arguments), "--help"])


def _refuse_values_of_flags(app: Any, arguments: Sequence[str]) -> None:
    """Say how to switch off an option without value that ``true`` or ``false`` follows: that would be taken for data.

    Raises:
        ConfigError: there is such a one.
    """
    typed = [(a, b) for a, b in pairwise(arguments) if a.startswith("--") and b.lower() in ("true", "false")]
    if not typed:
        return
    command = app
    for verb in _verbs_of(app, arguments):
        command = command[verb]
    known = command.assemble_argument_collection()
    flags = {name: one for one in known if bool in (one.hint, *get_args(one.hint)) for name in one.names}
    for option, value in typed:
        if option in flags:
            off = next(iter(flags[option].negatives), None)
            instead = f"say {off}" if off and value.lower() == "false" else "leave the value away"
            raise ConfigError(
                f"{option} takes no value, but {value!r} follows: {instead} (see {_help_of(app, arguments)})"
            )


def _option_problem(error: Any, arguments: Sequence[str]) -> str:
    """The first problem pydantic found, with the option as it was typed."""
    problem = error.errors()[0]
    field = ".".join(str(part) for part in problem["loc"])
    flag = field.replace("_", "-")
    typed = next(
        (a.partition("=")[0] for a in arguments if a.startswith("--") and a.partition("=")[0].endswith(flag)), field
    )
    message = str(problem["msg"]).removeprefix("Value error, ")
    given = problem.get("input")
    shown = f" (given {given!r})" if field and not isinstance(given, (dict, list)) else ""
    return f"{typed}: {message}{shown}" if typed else message


def run_app(run: Callable[[Sequence[str]], Any], arguments: Sequence[str] | None = None) -> int:
    """Run a command and turn what goes wrong into one line on standard error and an exit code.

    Args:
        run: takes the arguments and does the work.
        arguments: default: those of the process.

    Returns:
        0, or what the error asks for: 2 for input that cannot work, 1 for a failure while running, 130 when interrupted.
    """
    show_log()
    try:
        run(sys.argv[1:] if arguments is None else arguments)
    except McError as error:
        return _say(str(error), error.exit_code)
    except KeyboardInterrupt:
        return _say("interrupted", 130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the reader left; nothing more to say to it
        return 141
    except SystemExit as exit_:
        return exit_.code if isinstance(exit_.code, int) else int(exit_.code is not None)
    except OSError as error:
        if error.filename is None and error.errno is None:
            raise
        where = f" ({error.filename})" if error.filename else ""
        return _say(f"{error.strerror or error}{where}", 1)
    return 0


def keep_freed_memory() -> bool:
    """Let this process keep the memory its tensors free, for the next ones, instead of returning it to the system.

    A training step on a CPU frees and allocates the same hundreds of megabytes; returned pages come back as page faults,
    up to a tenth of the step's time. For programs, not libraries: it holds for the whole process. Does nothing where the
    C library is not glibc.

    Returns:
        Whether it was done.
    """
    import ctypes
    import platform

    if platform.libc_ver()[0] != "glibc":
        return False
    trim_threshold, mmap_threshold = -1, -3  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD of malloc.h
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(mmap_threshold, 1 << 30) and mallopt(trim_threshold, (1 << 31) - 1))


def _say(text: str, code: int) -> int:
    Console(stderr=True, soft_wrap=True).print(
        f"[bold red]error:[/] {_escape(' '.join(text.split()))}", highlight=False
    )
    return code


def _escape(text: str) -> str:
    from rich.markup import escape

    return escape(text)


def show_log(level: int = logging.INFO) -> None:
    """Send the project's log to standard error, in plain short lines."""
    if not any(isinstance(handler, RichHandler) for handler in _log.handlers):
        handler = RichHandler(
            console=Console(stderr=True, soft_wrap=True),
            show_time=False,
            show_path=False,
            show_level=False,
            markup=False,
        )
        _log.addHandler(handler)
        _log.propagate = False
    _log.setLevel(level)


class Status:
    """A line on standard error while something takes its time: ``with Status("reading"): …``. Silent without a terminal."""

    def __init__(self, text: str) -> None:
        self._text, self._console = text, Console(stderr=True)
        self._status: Any = None

    def __enter__(self) -> Status:
        if self._console.is_terminal:
            self._status = self._console.status(self._text)
            self._status.start()
        return self

    def say(self, text: str) -> None:
        """Another text from now on."""
        if self._status is not None:
            self._status.update(text)

    def __exit__(self, *_: object) -> None:
        if self._status is not None:
            self._status.stop()


class Result:
    """What a command found: shown as a table or as one JSON object, and written to ``result.json`` in the run folder.

    Args:
        metric: name of the headline figure.
        trained: its value for the trained model.
        baselines: the same figure for what it should beat.
        run: the run folder.
        lower_is_better: for errors and distances.
        more: further fields.
    """

    def __init__(
        self,
        metric: str,
        trained: float,
        baselines: Mapping[str, float],
        *,
        run: Path | str,
        seconds: float,
        lower_is_better: bool = False,
        more: Mapping[str, Any] | None = None,
    ) -> None:
        self.fields: dict[str, Any] = {
            "metric": metric,
            "trained": trained,
            "baselines": dict(baselines),
            "seconds": round(seconds, 1),
            "run": str(run),
        }
        if lower_is_better:
            self.fields["lower_is_better"] = True
        self.fields |= more or {}

    def write(self, folder: Path, name: str = "result.json") -> Path:
        """Write the fields into ``folder``."""
        path = folder / name
        write_json(path, self.fields)
        return path

    def show(self, *, as_json: bool, title: str) -> None:
        """Print to standard output."""
        if as_json:
            print_json(self.fields)
            return
        rows = [("trained", self.fields["trained"]), *self.fields["baselines"].items()]
        print_table(
            title, [self.fields["metric"], "value"], [(name.replace("_", " "), f"{value:.3f}") for name, value in rows]
        )


def print_json(fields: Mapping[str, Any]) -> None:
    """One JSON object on one line on standard output."""
    sys.stdout.write(json.dumps(fields) + "\n")
    sys.stdout.flush()


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A line of title and a table on standard output; the first column is text, the others are numbers.

    Words are shortened only in a terminal that is too narrow for them: elsewhere the table is as wide as they need, at least 100.
    """
    heads = [column.replace("_", " ") for column in columns]
    cells = list(zip(heads, *rows, strict=True))
    words = [max((cell_len(word) for cell in column for word in cell.split()), default=0) for column in cells]
    lines = [max(map(cell_len, column)) for column in cells]
    frame = 3 * len(heads) + 1
    console = Console(width=None if sys.stdout.isatty() else max(100, sum(words) + frame))
    widths = _widths(words, lines, console.width - frame)
    table = Table()
    for i, (head, width) in enumerate(zip(heads, widths, strict=True)):
        table.add_column(_escape(head), justify="left" if i == 0 else "right", width=width)
    for row in rows:
        table.add_row(*map(_escape, row))
    console.print(_escape(title), style="bold", highlight=False, soft_wrap=True)
    console.print(table)


def _widths(words: Sequence[int], lines: Sequence[int], room: int) -> Sequence[int | None]:
    """Widths of columns that no word is cut by, where rich, which narrows the widest columns first, would cut one.

    Args:
        words: longest word of each column.
        lines: longest cell of each column.
        room: for all of them.

    >>> _widths([3, 12], [24, 12], room=22), _widths([3, 4], [24, 12], room=22)
    ([10, 12], [None, None])
    """
    level = max((n for n in range(max(lines, default=0) + 1) if sum(min(line, n) for line in lines) <= room), default=0)
    if level >= max(words, default=0) or sum(words) > room:
        return [None] * len(words)
    while True:  # words need more than their share: the others get less
        found = [max(word, min(line, level)) for word, line in zip(words, lines, strict=True)]
        if sum(found) <= room:
            return found
        level -= 1


class Clock:
    """Seconds since it was made."""

    def __init__(self) -> None:
        self._start = time.perf_counter()

    def seconds(self) -> float:
        """Seconds so far."""
        return time.perf_counter() - self._start
