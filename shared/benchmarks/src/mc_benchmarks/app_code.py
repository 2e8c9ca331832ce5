"""The commands of ``mc-benchmark`` about source code. Imports no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

Device = Literal["cpu", "cuda"]


def code_step(*, repeats: int = 11, seconds: float = 30.0, device: Device = "cpu") -> None:
    """A training step of CoCoSoDa beside in-batch contrast, and the share of its soft augmentations.

    Args:
        repeats: Rounds.
        seconds: Of each size, after which three rounds are enough.
        device: Where.
    """
    from mc_benchmarks.code_step import run_code_step

    run_code_step(repeats=repeats, seconds=seconds, device=device)


def code_source(*, repeats: int = 5, megabytes: float = 6.0) -> None:
    """Source code into tokens and units, beside tree-sitter's parser alone.

    Args:
        repeats: Rounds.
        megabytes: Of source code in each round.
    """
    from mc_benchmarks.code_source import run_code_source

    run_code_source(repeats=repeats, megabytes=megabytes)


def code_lexical(*folders: Path, pairs: int = 5_000, seed: int = 0, processes: int = 0) -> None:
    """Functions found by their documentation with BM25 alone, in the standard library and in folders of source code.

    Args:
        folders: Of source code, such as a virtual environment.
        pairs: Drawn from each.
        seed: Of the draw.
        processes: That parse; 0 for all.
    """
    from mc_benchmarks.code_source import run_code_lexical

    run_code_lexical(folders=folders, pairs=pairs, seed=seed, processes=processes)


def code_search_speed(*, repeats: int = 5, queries: int = 200, processes: int = 0) -> None:
    """Code search over the standard library: index, refresh, queries warm and from a cold process; bm25s beside it.

    Args:
        repeats: Of everything but queries.
        queries: Asked in each mode.
        processes: That parse; 0 for all.
    """
    from mc_benchmarks.code_search_speed import run_code_search_speed

    run_code_search_speed(repeats=repeats, queries=queries, processes=processes)


def code_query_speed(*, queries: int = 100, processes: int = 0) -> None:
    """A query over the standard library's code with a transformer as encoder: in PyTorch, and its int8 copy in ONNX Runtime.

    Args:
        queries: Asked of each size and form.
        processes: That parse; 0 for all.
    """
    from mc_benchmarks.code_query_speed import run_code_query_speed

    run_code_query_speed(queries=queries, processes=processes)


def code_index_memory(*, lines: int = 2_000_000, source: Path | None = None, processes: int = 0) -> None:
    """Peak memory of indexing, embedding and asking a tree of two million lines.

    Args:
        lines: Of source code.
        source: Folder that the tree is made from. Default: the installed packages.
        processes: That parse; 0 for all.
    """
    from mc_benchmarks.code_index_memory import run_code_index_memory

    run_code_index_memory(lines=lines, source=source, processes=processes)


def code_search_signals(*, folder: Path | None = None, queries: int = 1500, seed: int = 0) -> None:
    """What each signal of the order of results is worth: functions looked up by their documentation and by their names.

    Args:
        folder: Of source code. Default: the standard library.
        queries: Of each kind.
        seed: Of the draw.
    """
    from mc_benchmarks.code_search_signals import run_code_search_signals

    run_code_search_signals(folder=folder, queries=queries, seed=seed)


def code_search_claims(
    *,
    root: tuple[Path, ...] = (),
    pairs: int = 5_000,
    seeds: int = 3,
    steps: int | None = None,
    batch_size: int | None = None,
    device: Device = "cpu",
    keep: Path = Path("runs/benchmarks"),
) -> None:
    """The parts of CoCoSoDa one after the other on real code, measured on unseen packages, beside split BM25.

    Args:
        root: Folders of Python code; may be given several times. Default: the standard library and what is installed beside it.
        pairs: Of the test part.
        seeds: Runs of each.
        steps: Optimizer steps of each run. Default: the recipe's.
        batch_size: Pairs of a step. Default: the recipe's.
        device: Where to train.
        keep: Folder of finished runs; those that are there are not run again.
    """
    from mc_benchmarks.code_claims import run_code_claims

    run_code_claims(roots=root, pairs=pairs, seeds=seeds, steps=steps, batch_size=batch_size, device=device, keep=keep)


CODE_COMMANDS = (
    code_step,
    code_source,
    code_lexical,
    code_search_speed,
    code_query_speed,
    code_index_memory,
    code_search_signals,
    code_search_claims,
)
