"""The same work on many items by several processes, in order and with bounded memory. Imports no torch."""

from __future__ import annotations

import multiprocessing
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from typing import TypeVar

from mc_core.errors import RunError

Item = TypeVar("Item")
Result = TypeVar("Result")

CHUNK = 16
FEWEST = 64  # items for which it pays to start processes


def available_processes() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def map_items(
    function: Callable[[Item], Result],
    items: Iterable[Item],
    *,
    processes: int = 1,
    chunk: int = CHUNK,
) -> Iterator[Result]:
    """``function`` of each item, in order. What is waiting to be read stays small however many items there are.

    Args:
        function: at the top level of a module, with what it takes and gives made for another process.
        items: any number.
        processes: 1 works here; 0 takes all processors where there are enough items. As always with processes that Python
            spawns, a script that asks for more than one must guard its main part by ``if __name__ == "__main__":``.
        chunk: items handed over at once.

    Raises:
        RunError: a process was killed, most often for memory.

    >>> list(map_items(len, ["a", "bb", ""]))
    [1, 2, 0]
    """
    source = iter(items)
    if processes == 0:
        first = list(islice(source, FEWEST))
        processes = available_processes() if len(first) == FEWEST else 1
        source = _chained(first, source)
    if processes <= 1:
        yield from map(function, source)
        return
    context = multiprocessing.get_context("spawn")  # a fork of a process with threads may hang
    with ProcessPoolExecutor(processes, mp_context=context) as pool:
        waiting: deque[Future[list[Result]]] = deque()
        try:
            while True:
                while len(waiting) < 3 * processes and (some := list(islice(source, chunk))):
                    waiting.append(pool.submit(_all, function, some))
                if not waiting:
                    return
                yield from waiting.popleft().result()
        except BrokenProcessPool as error:
            raise RunError(
                "a process ended while it worked on files, most often for lack of memory; ask for fewer processes"
            ) from error
        finally:
            for future in waiting:
                future.cancel()


def _all(function: Callable[[Item], Result], items: list[Item]) -> list[Result]:
    return [function(item) for item in items]


def _chained(first: list[Item], rest: Iterator[Item]) -> Iterator[Item]:
    yield from first
    yield from rest
