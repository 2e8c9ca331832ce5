"""What is where in the folder of a run. Imports no torch."""

from __future__ import annotations

import json
from pathlib import Path

from mc_core.errors import DataError
from mc_core.files import write_json
from mc_text_code.codesearch.config import RankingConfig

RANKING = "ranking.json"
"""In the folder of a run on code: how much its model counts beside words, chosen on the pairs of ``valid.jsonl``."""


def model_folder(run: Path) -> Path:
    """Where the encoder's own files are: of a run its ``model/``."""
    return run / "model" if (run / "model" / "modules.json").is_file() else run


def write_ranking(run: Path, ranking: RankingConfig) -> None:
    """Keep what was chosen, beside the run."""
    write_json(run / RANKING, ranking.model_dump(exclude_defaults=True))


def run_ranking(folder: Path | None) -> RankingConfig:
    """What was chosen for a run, or for the run whose ``model/`` this is; the defaults where nothing was.

    Raises:
        DataError: the file is damaged.
    """
    for place in () if folder is None else (folder, folder.parent) if folder.name == "model" else (folder,):
        if (place / RANKING).is_file():
            try:
                return RankingConfig.model_validate(json.loads((place / RANKING).read_text("utf-8")))
            except ValueError as error:
                raise DataError(
                    f"{place / RANKING} is damaged; delete it, and the model counts as much as words, or train again"
                ) from error
    return RankingConfig()
