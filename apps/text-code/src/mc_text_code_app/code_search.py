"""What ``mc-text-code code`` does. Imports torch only where a model is named."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypedDict

import numpy as np

from mc_core.cli import Status, print_json, print_table
from mc_core.errors import ConfigError
from mc_text_code.codesearch.answer import Answer, Hit
from mc_text_code.codesearch.config import RankingConfig
from mc_text_code.codesearch.embedding import CodeEncoder, QueryEncoder
from mc_text_code.codesearch.query import CodeIndex
from mc_text_code.codesearch.watch import Daemon, ask_search, ask_stop
from mc_text_code.fingerprint import model_fingerprint
from mc_text_code_app.folders import model_folder, run_ranking

if TYPE_CHECKING:
    from mc_text_code_app.opening import AnyEncoder

NOTHING_FOUND = 1
_SHOWN_LINES = 4


def run_search(
    query: str,
    path: Path,
    *,
    k: int,
    mode: Literal["hybrid", "dense", "lexical"],
    languages: Sequence[str],
    paths: Sequence[str],
    model: Path | None,
    index: Path | None,
    device: str,
    full: bool,
    vimgrep: bool,
    as_json: bool,
) -> Answer:
    """Search and print; exit code 1 when nothing is found."""
    if sum((full, vimgrep, as_json)) > 1:
        raise ConfigError("--full, --vimgrep and --json are three ways to print: take one of them")
    if mode == "lexical" and model is not None:
        raise ConfigError("--mode lexical needs no --model: leave one of them out")
    encoders = code_encoders(model, device)
    with CodeIndex.open(path, **encoders, folder=index, processes=0) as opened:
        warm = None
        if model is None:
            warm = ask_search(opened.folder, query, k, mode=mode, languages=languages, paths=paths)
        if warm is None:
            with Status(f"indexing {path}") as shown:
                notes = opened.refresh(progress=_told(shown, f"indexing {path}")).notes
            if model is not None:
                with Status("embedding") as shown:
                    opened.embed(progress=_told(shown, "embedding"))
            answer = opened.search(query, k, mode=mode, languages=languages, paths=paths, refresh=False)
            answer = replace(answer, notes=(*notes, *answer.notes))
        else:
            answer = warm
    if as_json:
        print_json(answer.as_dict())
    else:
        write = _vimgrep if vimgrep else _full if full else _short
        sys.stdout.write("".join(map(write, answer)))
        for line in (*answer.notes, answer.coverage_line):
            if line:
                sys.stderr.write(f"{line}\n")
    if not len(answer):
        if not as_json:
            sys.stderr.write(f"nothing in {path} fits\n")
        sys.exit(NOTHING_FOUND)
    return answer


def _told(status: Status, text: str) -> Callable[[int, int], None]:
    return lambda done, of: status.say(f"{text}, {done:,} of {of:,}")


def _vimgrep(hit: Hit) -> str:
    return f"{hit.vimgrep()}\n"


def _full(hit: Hit) -> str:
    return f"{hit.location}  {hit.kind} {hit.symbol}\n{hit.text.rstrip()}\n\n"


def _short(hit: Hit) -> str:
    lines = hit.text.rstrip().splitlines()
    begins = max(0, hit.line - hit.start_line)
    shown = lines[begins : begins + _SHOWN_LINES]
    more = len(lines) - begins - len(shown)
    text = "".join(f"    {line}\n" for line in shown) + (f"    … {more} more lines\n" if more > 1 else "")
    return f"{hit.location}  {hit.kind} {hit.symbol}\n{text}\n"


def run_status(path: Path, *, index: Path | None, as_json: bool) -> dict[str, Any]:
    """Print what the index holds."""
    with CodeIndex.open(path, folder=index) as opened:
        found = asdict(opened.status())
    if as_json:
        print_json(found)
        return found
    rows: list[tuple[str, str]] = []
    for name, value in found.items():
        if isinstance(value, dict):
            rows += [(f"{name}: {key}", f"{count:,}") for key, count in value.items()]
        elif name == "coverage":
            rows.append(("dense coverage", f"{value:.0%}" if found["model"] else "no model"))
        elif name != "refreshed":
            rows.append((name, f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)))
    print_table(str(path), ["", ""], rows)
    return found


def run_watch(path: Path, *, model: Path | None, index: Path | None, device: str, stop: bool) -> None:
    """Serve searches of this folder until Ctrl-C."""
    if stop:
        with CodeIndex.open(path, folder=index) as found:
            if not ask_stop(found.folder):
                raise ConfigError(f"nothing watches {path}")
        return
    encoders = code_encoders(model, device)
    daemon = Daemon(lambda: CodeIndex.open(path, **encoders, folder=index, processes=0))
    sys.stdout.write(f"watching {path}; `mc-text-code code search` there is answered at once (Ctrl-C ends it)\n")
    sys.stdout.flush()
    try:
        daemon.run()
    finally:
        daemon.stop()


def run_serve(path: Path, *, mcp: bool, model: Path | None, index: Path | None, device: str) -> None:
    """Serve the Model Context Protocol over standard input and output."""
    if not mcp:
        raise ConfigError("say which protocol: code serve --mcp")
    from mc_text_code.codesearch.serve import build_server

    encoders = code_encoders(model, device)
    build_server(lambda: CodeIndex.open(path, **encoders, folder=index, processes=0)).run()


def run_mine(path: Path | None, *, stdlib: bool, out: Path, as_json: bool) -> None:
    """Mine pairs and write them."""
    from mc_text_code.data.code_files import write_pairs
    from mc_text_code.data.code_mining import mine, mine_standard_library

    if (path is None) == (not stdlib):
        raise ConfigError("name a folder with source code, or say --stdlib" + (", not both" if stdlib else ""))
    with Status("mining"):
        found = mine_standard_library() if path is None else mine(path)
    write_pairs(out, found.pairs)
    if as_json:
        print_json({**found.report.to_dict(), "out": str(out)})
        return
    print_table(
        str(path or "the standard library"), ["", ""], [(name, f"{count:,}") for name, count in found.report.rows()]
    )
    sys.stdout.write(f"{len(found):,} pairs → {out}\n")


class SentenceModel:
    """A model of sentences as the encoder of queries and of code.

    Args:
        load: gives the encoder of texts; called when one is first needed.
        identity: what its vectors depend on.
    """

    def __init__(self, load: Callable[[], AnyEncoder], identity: str) -> None:
        self._load = load
        self.identity = identity

    @cached_property
    def encoder(self) -> AnyEncoder:
        """The encoder itself."""
        return self._load()

    def encode_queries(self, texts: Sequence[str]) -> np.ndarray:
        """(N, D) embeddings."""
        return self.encoder.encode(list(texts))

    def encode_code(self, texts: Sequence[str]) -> np.ndarray:
        """(N, D) embeddings."""
        return self.encoder.encode(list(texts))


class Encoders(TypedDict):
    """What :meth:`CodeIndex.open` takes of a model."""

    encoder: CodeEncoder | None
    queries: QueryEncoder | None
    ranking: RankingConfig


def code_encoders(folder: Path | None, device: str) -> Encoders:
    """The static table or the model of sentences in a folder, and its copy for queries where it has one.

    With such a copy the model itself, and torch, is loaded only when there is something to embed.
    """
    if folder is None:
        return Encoders(encoder=None, queries=None, ranking=RankingConfig())
    place, ranking = model_folder(folder), run_ranking(folder)
    if (place / "onnx").is_dir():
        from mc_text_code.codesearch.onnx_queries import OnnxQueries

        identity = model_fingerprint(place)
        if (queries := OnnxQueries.beside(place, identity)) is not None:
            encoder = SentenceModel(lambda: _opened(folder, device), identity)
            return Encoders(encoder=encoder, queries=queries, ranking=ranking)
    return Encoders(encoder=code_encoder(folder, device), queries=None, ranking=ranking)


def code_encoder(folder: Path, device: str) -> CodeEncoder:
    """The static table or the model of sentences in a folder."""
    from mc_text_code.codesearch.static import StaticEncoder, is_static_folder

    if is_static_folder(folder):
        return StaticEncoder.load(folder)
    encoder = _opened(folder, device)  # first: it says best what is wrong with a folder
    return SentenceModel(lambda: encoder, model_fingerprint(model_folder(folder)))


def _opened(folder: Path, device: str) -> AnyEncoder:
    from mc_text_code_app.opening import open_encoder

    return open_encoder(folder, device)
