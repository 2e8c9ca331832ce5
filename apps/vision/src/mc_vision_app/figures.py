"""Pictures of a run for its report."""

from __future__ import annotations

import torch
from PIL import Image, ImageDraw
from torch.nn.functional import normalize

from mc_vision.evaluation import Encode, extract_features
from mc_vision.transforms import EvalDataset


def neighbour_sheet(
    encode: Encode,
    data: EvalDataset,
    *,
    queries: int = 6,
    neighbours: int = 7,
    cell: int = 80,
    device: torch.device | None = None,
) -> Image.Image:
    """Rows of a query and its nearest neighbours by cosine similarity of frozen features.

    With labels, a green frame marks a neighbour of the query's class and a red one another class.

    Args:
        encode: of the trained encoder.
        data: images to search in; the queries are spread evenly over it.
        queries: rows.
        neighbours: per row.
        cell: side of a picture in pixels.
        device: where ``encode`` works.
    """
    found = extract_features(encode, data, device=device)
    z = normalize(found.values, dim=1)
    count = len(z)
    rows = torch.linspace(0, count - 1, min(queries, count)).long().unique()
    similarity = z[rows] @ z.T
    similarity[torch.arange(len(rows)), rows] = -2.0
    nearest = similarity.topk(min(neighbours, count - 1), dim=1).indices
    gap, frame = 4, 3
    step = cell + 2 * frame + gap
    sheet = Image.new("RGB", (gap + step * (nearest.shape[1] + 1) + 2 * gap, gap + step * len(rows)), "white")
    draw = ImageDraw.Draw(sheet)

    def paste(position: int, left: int, top: int, color: str | None) -> None:
        if color:
            draw.rectangle((left, top, left + cell + 2 * frame - 1, top + cell + 2 * frame - 1), fill=color)
        picture = data.image(int(found.index[position])).convert("RGB")
        picture.thumbnail((cell, cell)) if max(picture.size) > cell else None
        scale = cell / max(picture.size)
        picture = picture.resize((max(1, round(picture.width * scale)), max(1, round(picture.height * scale))))
        sheet.paste(picture, (left + frame + (cell - picture.width) // 2, top + frame + (cell - picture.height) // 2))

    for row, query in enumerate(rows.tolist()):
        top = gap + step * row
        paste(query, gap, top, None)
        for column, neighbour in enumerate(nearest[row].tolist()):
            color = None
            if found.labels is not None:
                color = "#2e9e5b" if found.labels[neighbour] == found.labels[query] else "#cf4a3f"
            paste(neighbour, 3 * gap + step * (column + 1), top, color)
    return sheet
