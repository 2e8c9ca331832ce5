"""``mc-text-code sentences dedup``: sentences that say the same, and one of each."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from mc_core.cli import Clock, Status, print_json
from mc_core.files import write_atomic
from mc_text_code.data.sentences import Sentences
from mc_text_code.dedup import Duplicates, find_duplicates
from mc_text_code_app.opening import chosen_run, open_corpus, open_encoder

_SHOWN, _OF_GROUP = 20, 6


def run_dedup(
    corpus: Sequence[str],
    *,
    run: Path | None,
    threshold: float,
    linkage: Literal["first", "chain"],
    column: str | None,
    out: Path | None,
    device: str,
    as_json: bool,
) -> Duplicates:
    """Find them, write the sentences kept where asked for, and show the groups."""
    clock = Clock()
    sentences = open_corpus(corpus, column, deduplicate=False)
    chosen = chosen_run(run)
    encoder = None if chosen is None else open_encoder(chosen, device)
    with Status(f"comparing {len(sentences):,} sentences"):
        found = find_duplicates(
            sentences.texts, None if encoder is None else encoder.encode, threshold=threshold, linkage=linkage
        )
    if out is not None:
        write_atomic(out, "".join(f"{sentences[int(row)]}\n" for row in found.kept))
    fields = {**found.to_dict(), "seconds": round(clock.seconds(), 1), "encoder": str(chosen) if chosen else None}
    if as_json:
        groups = [
            [
                {"line": int(row), "sentence": sentences[int(row)], "cosine": float(found.similarity[row])}
                for row in group
            ]
            for group in found.groups()
        ]
        print_json({**fields, "out": str(out) if out else None, "found": groups})
        return found
    sys.stdout.write(_shown(found, sentences))
    near = "" if encoder is None else f", {fields['near']:,} near ones at a cosine of {threshold:g}"
    sys.stdout.write(
        f"{len(sentences):,} sentences: {fields['equal']:,} equal to another{near}; {fields['kept']:,} are kept"
        + (f" → {out}" if out else " (write them with --out FILE)")
        + "\n"
    )
    if encoder is None:
        sys.stdout.write("Only equal sentences were looked for: name an encoder with --run to find near ones.\n")
    return found


def _shown(found: Duplicates, sentences: Sentences) -> str:
    groups = found.groups()
    largest = sorted(groups, key=lambda group: (-len(group), int(group[0])))[:_SHOWN]
    lines = []
    for group in largest:
        lines.append(f"      {sentences[int(group[0])]}")
        lines += [f" {found.similarity[row]:.2f} {sentences[int(row)]}" for row in group[1:_OF_GROUP]]
        if len(group) > _OF_GROUP:
            lines.append(f"      and {len(group) - _OF_GROUP:,} more")
        lines.append("")
    if len(groups) > _SHOWN:
        lines += [f"{len(groups) - _SHOWN:,} smaller groups are not shown; --json lists all.", ""]
    return "".join(f"{line}\n" for line in lines)
