"""A command in the test's own process, with its exit code and streams."""

from __future__ import annotations

import contextlib
import io
import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Done:
    """What a call left: exit code, standard output and standard error."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        """The one line that ``--json`` prints, of a call that succeeded."""
        assert self.code == 0, self.err
        (line,) = self.out.splitlines()
        return json.loads(line)


def call(run: Callable[[Sequence[str]], Any], *arguments: object) -> Done:
    """``run(ARGUMENTS)`` as an entry point does it; the project's logger is left as it was found."""
    from mc_core.cli import run_app

    log = logging.getLogger("mc_core")
    before = list(log.handlers), log.propagate, log.level
    out, err = io.StringIO(), io.StringIO()
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = run_app(run, [str(argument) for argument in arguments])
    finally:
        log.handlers[:], log.propagate = before[0], before[1]
        log.setLevel(before[2])
    return Done(code, out.getvalue(), err.getvalue())
