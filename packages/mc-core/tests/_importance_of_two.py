"""Importances of weights measured by one of several gloo processes: ``python _importance_of_two.py RANK WORLD FOLDER``."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import Tensor, nn

from mc_core.continual.importance import mean_gradient_power
from mc_core.distributed import own_rows, world_size

ROWS = 6


def measured(power: int) -> Tensor:
    """Of this process's rows of three batches."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    batches = torch.randn(3, ROWS, 3, dtype=torch.float64)
    own = [batch[own_rows(ROWS // world_size())] for batch in batches]
    return mean_gradient_power(lambda x: net(x).square().mean(), own, list(net.parameters()), power)


def main(rank: int, world: int, folder: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder / 'rendezvous'}", rank=rank, world_size=world)
    save_file({str(power): measured(power) for power in (1, 2)}, folder / f"{rank}.safetensors")
    dist.barrier()
    dist.destroy_process_group()
    os._exit(0)  # gloo's threads may abort an interpreter that is going (pytorch/pytorch#179291)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
