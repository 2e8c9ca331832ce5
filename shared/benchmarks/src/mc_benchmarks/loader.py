"""Images per second from a folder of JPEGs to two augmented views, beside a plain torchvision folder loader."""

from __future__ import annotations

import io
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader

from mc_benchmarks.contract import Report, Row, environment, median, median_ratio, spread
from mc_core.data import StepPlan, finish_on_device, step_loader
from mc_vision.data import open_source
from mc_vision.transforms import ViewDataset
from mc_vision.transforms_config import views_preset


def write_photos(folder: Path, *, count: int, size: tuple[int, int], seed: int = 0) -> None:
    """JPEGs with the statistics of photographs as far as a decoder cares: smooth, with edges and some noise."""
    rng = np.random.default_rng(seed)
    (folder / "all").mkdir(parents=True)
    width, height = size
    for i in range(count):
        small = Image.fromarray(rng.integers(0, 256, (height // 32, width // 32, 3), dtype=np.uint8))
        image = np.asarray(small.resize(size, Image.Resampling.BICUBIC), dtype=np.float32)
        noisy = np.clip(image + rng.normal(0, 6, image.shape), 0, 255).astype(np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(noisy).save(buffer, "JPEG", quality=88)
        (folder / "all" / f"{i:05d}.jpg").write_bytes(buffer.getvalue())


class _TwoViews:
    """Module-level, so that loader workers can be given it."""

    def __init__(self, transform: Any) -> None:
        self.transform = transform

    def __call__(self, image: Image.Image) -> tuple[Any, Any]:
        return self.transform(image), self.transform(image)


def _torchvision_loader(folder: Path, size: int, batch_size: int, workers: int) -> DataLoader[Any]:
    from torchvision.datasets import ImageFolder
    from torchvision.transforms import v2

    transform = v2.Compose(
        [
            v2.RandomResizedCrop(size, scale=(0.2, 1.0)),
            v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=0.8),
            v2.RandomGrayscale(p=0.2),
            v2.RandomApply([v2.GaussianBlur(kernel_size=int(0.1 * size) // 2 * 2 + 1, sigma=(0.1, 2.0))], p=0.5),
            v2.RandomHorizontalFlip(),
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ]
    )
    return DataLoader(
        ImageFolder(folder, _TwoViews(transform)),
        batch_size=batch_size,
        shuffle=True,
        num_workers=workers,
        drop_last=True,
        persistent_workers=workers > 0,
    )


def run_loader(
    *, images: int = 256, batch_size: int = 32, size: int = 224, workers: int = 2, repeats: int = 5
) -> Report:
    """Measure, save, show."""
    rows = []
    torch.set_num_threads(1)
    for label, shape in (("500 × 375 px, as in ImageNet", (500, 375)), ("2000 × 1500 px, from a camera", (2000, 1500))):
        folder = Path(tempfile.mkdtemp())
        try:
            count = images if shape[0] < 1000 else images // 2
            write_photos(folder, count=count, size=shape)
            views = views_preset("moco-v2", size)
            seconds: dict[str, list[float]] = {"ours": [], "torchvision": []}
            plain = _torchvision_loader(folder, size, batch_size, workers)
            data = ViewDataset(open_source(folder, min_side=views.min_side), views, where="worker")
            steps = count // batch_size
            for round_ in range(repeats + 1):
                start = time.perf_counter()
                for _ in plain:
                    pass
                between = time.perf_counter()
                plan = StepPlan(len(data), batch_size, seed=round_)
                for batch in step_loader(data, plan, start=0, stop=steps, workers=workers):
                    finish_on_device(data, batch, 0)
                end = time.perf_counter()
                if round_:
                    seconds["torchvision"].append(between - start)
                    seconds["ours"].append(end - between)
            for name, found in seconds.items():
                speeds = [steps * batch_size / s for s in found]
                rows.append(
                    Row(
                        name=f"{'mc-vision' if name == 'ours' else 'torchvision ImageFolder + v2'}, {label}",
                        values={
                            "images/s (median)": median(speeds),
                            "IQR": spread(speeds),
                            "× torchvision": median_ratio(seconds["torchvision"], found),
                        },
                    )
                )
        finally:
            shutil.rmtree(folder)
    report = Report(
        benchmark="loader",
        command="uv run mc-benchmark loader",
        question=f"Two MoCo v2 views of {size} px per image, batch {batch_size}, {workers} workers, from JPEG files",
        settings={"images": images, "batch_size": batch_size, "size": size, "workers": workers, "repeats": repeats},
        environment=environment(),
        columns=["images/s (median)", "IQR", "× torchvision"],
        rows=rows,
        reading="Large JPEGs are decoded at the fraction of their size that the crop needs. "
        "Our figure includes starting the workers, torchvision's keep theirs between rounds.",
    )
    report.save()
    report.show()
    return report
