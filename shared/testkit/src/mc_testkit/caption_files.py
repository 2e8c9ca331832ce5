"""Writes tiny files of every layout that captions are published in, with the names, keys and quirks of the originals."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

WORDS = (
    "A dog runs across the grass.",
    "Two dogs, one black-and-white, play!",
    "A <person> rides a bike/motorbike",
    'A sign says "stop" (red).',
    "Cats: three of them; asleep",
    "An empty street at night",
)


def picture(number: int, width: int = 40, height: int = 30) -> bytes:
    """A JPEG that no other number has."""
    rng = np.random.default_rng(number)
    small = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8))
    file = io.BytesIO()
    small.resize((width, height)).save(file, "JPEG", quality=80)
    return file.getvalue()


def pictures(folder: Path, count: int = 6, name: str = "{}.jpg") -> list[str]:
    """Writes pictures 0 … count − 1; returns their names."""
    folder.mkdir(parents=True, exist_ok=True)
    names = [name.format(number) for number in range(count)]
    for number, one in enumerate(names):
        (folder / one).write_bytes(picture(number))
    return names


def write_tar(path: Path, members: Mapping[str, bytes | str]) -> Path:
    """Members in the order given."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            content = data.encode() if isinstance(data, str) else data
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def write_json(path: Path, content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def coco(root: Path) -> Path:
    """``annotations/captions_val2017.json`` beside ``val2017/``, annotations in another order than images, ids not in a row."""
    names = pictures(root / "val2017", 4, "{:012d}.jpg")
    images = [
        {
            "license": 4,
            "file_name": name,
            "coco_url": f"http://images.cocodataset.org/{name}",
            "height": 30,
            "width": 40,
            "id": 100 + i,
        }
        for i, name in enumerate(names)
    ]
    notes = [{"image_id": 100 + i % 3, "id": 37 + i, "caption": WORDS[i]} for i in range(6)]
    content = {"info": {"year": 2017}, "licenses": [], "images": images, "annotations": notes}
    return write_json(root / "annotations" / "captions_val2017.json", content)


def karpathy_coco(root: Path) -> Path:
    """``dataset_coco.json``, whose pictures lie in ``train2014`` and ``val2014``."""
    train = pictures(root / "images" / "train2014", 1, "COCO_train2014_{:012d}.jpg")
    val = pictures(root / "images" / "val2014", 4, "COCO_val2014_{:012d}.jpg")
    splits = ("restval", "train", "val", "test")
    images = [
        {
            "filepath": "val2014",
            "sentids": [2 * i, 2 * i + 1],
            "filename": name,
            "imgid": i,
            "split": splits[i],
            "cocoid": 7 + i,
            "sentences": [
                {"tokens": text.lower().split(), "raw": text, "imgid": i, "sentid": 0} for text in WORDS[i : i + 2]
            ],
        }
        for i, name in enumerate(val)
    ]
    images.append(
        {
            "filepath": "train2014",
            "sentids": [9],
            "filename": train[0],
            "imgid": 4,
            "split": "train",
            "cocoid": 99,
            "sentences": [{"tokens": ["a"], "raw": WORDS[5], "imgid": 4, "sentid": 9}],
        }
    )
    return write_json(root / "dataset_coco.json", {"images": images, "dataset": "coco"})


def karpathy_flickr(root: Path) -> Path:
    """``dataset_flickr30k.json``: no ``filepath``."""
    names = pictures(root / "flickr30k-images", 3)
    images = [
        {
            "sentids": [i],
            "imgid": i,
            "split": ("train", "val", "test")[i],
            "filename": name,
            "sentences": [{"tokens": [], "raw": WORDS[i], "imgid": i, "sentid": i}],
        }
        for i, name in enumerate(names)
    ]
    return write_json(root / "dataset_flickr30k.json", {"images": images, "dataset": "flickr30k"})


def flickr_token(root: Path) -> Path:
    """``results_20130124.token``: name, ``#`` and a number, a tab, the caption."""
    names = pictures(root / "flickr30k-images", 3)
    lines = [f"{name}#{i}\t{WORDS[(row + i) % 6]}\n" for row, name in enumerate(names) for i in range(2)]
    (root / "results_20130124.token").write_text("".join(lines))
    return root / "results_20130124.token"


def flickr8k_txt(root: Path) -> Path:
    """``captions.txt`` beside ``Images/``: a header, and commas in captions that nobody quoted."""
    names = pictures(root / "Images", 3)
    rows = [f"{name},{text}" for name, text in zip(names, (WORDS[0], WORDS[1], '"Quoted, once"'), strict=True)]
    (root / "captions.txt").write_text("\n".join(["image,caption", *rows]) + "\n")
    return root / "captions.txt"


def flickr_results(root: Path) -> Path:
    """``results.csv``, bars between the cells, blanks after them."""
    names = pictures(root / "flickr30k_images", 3)
    rows = [f"{name}| {i}| {WORDS[i]}" for i, name in enumerate(names)]
    (root / "results.csv").write_text("\n".join(["image_name| comment_number| comment", *rows]) + "\n")
    return root / "results.csv"


def flickr_annotations(root: Path) -> Path:
    """``flickr_annotations_30k.csv``: lists of captions as JSON in a cell."""
    names = pictures(root / "flickr30k-images", 3)
    lines = ["raw,sentids,split,filename,img_id"]
    for i, name in enumerate(names):
        cell = json.dumps([WORDS[i], WORDS[i + 1]]).replace('"', '""')
        lines.append(f'"{cell}","[{i}, {i + 1}]",{("train", "val", "test")[i]},{name},{i}')
    (root / "flickr_annotations_30k.csv").write_text("\n".join(lines) + "\n")
    return root / "flickr_annotations_30k.csv"


def albef_train(root: Path) -> Path:
    """``flickr30k_train.json``: a caption a row, an ``image_id``, paths of the machine it was made on."""
    names = pictures(root / "here" / "train2014", 3)
    rows = [
        {
            "image": f"/export/share/datasets/vision/coco/images/train2014/{names[i % 3]}",
            "caption": WORDS[i],
            "image_id": f"coco_{i % 3}",
        }
        for i in range(6)
    ]
    return write_json(root / "coco_train.json", rows)


def albef_test(root: Path) -> Path:
    """``flickr30k_test.json``: lists of captions, no id."""
    names = pictures(root / "flickr30k-images", 3)
    return write_json(
        root / "flickr30k_test.json",
        [{"image": f"flickr30k-images/{name}", "caption": [WORDS[i], WORDS[i + 1]]} for i, name in enumerate(names)],
    )


def image_folder(root: Path) -> Path:
    """Hugging Face's layout: ``metadata.jsonl`` with ``file_name`` and ``text`` beside the pictures."""
    names = pictures(root, 3)
    (root / "metadata.jsonl").write_text(
        "".join(json.dumps({"file_name": name, "text": WORDS[i]}) + "\n" for i, name in enumerate(names))
    )
    return root


def web_dataset(root: Path) -> str:
    """Two shards as img2dataset writes them: ``.jpg``, ``.txt`` and ``.json`` of each sample."""
    for shard in range(2):
        members: dict[str, bytes | str] = {}
        for i in range(3):
            key = f"{shard:05d}{i:04d}"
            members[f"{key}.jpg"] = picture(3 * shard + i)
            members[f"{key}.txt"] = WORDS[3 * shard + i]
            members[f"{key}.json"] = json.dumps(
                {"caption": WORDS[3 * shard + i], "url": "http://x", "key": key, "status": "success"}
            )
        write_tar(root / f"{shard:05d}.tar", members)
    return str(root / "{00000..00001}.tar")


def table_of(folder: Path, rows: Sequence[str], header: str = "image,caption") -> Path:
    """``t.csv`` of lines as they are."""
    (folder / "t.csv").write_text("\n".join([header, *rows]) + "\n")
    return folder / "t.csv"
