"""A growth run of two steps on one of two gloo processes: ``python _grow_on_two.py RANK WORLD FOLDER``."""

import gc
import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist


def main(rank: int, world: int, folder: Path) -> None:
    sys.path.insert(0, str(Path(__file__).parent))
    import test_vl_grow_run as here

    from mc_vision_language.growing import running

    class Patch:
        @staticmethod
        def setattr(module, name, value):
            setattr(module, name, value)

    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    dist.init_process_group("gloo", init_method=f"file://{folder / 'rendezvous'}", rank=rank, world_size=world)
    found = None
    try:
        here.choose_the_dearest(Patch)
        found = running.run_growth(
            here.recipe(inherit=1.0, inherit_from="supernet"), here.slices(), folder / "run", measure=here.figures
        )
        state = {name: tensor.clone() for name, tensor in found.model.state_dict().items()}
        torch.save({"state": state, "specs": [step["spec"] for step in found.steps]}, folder / f"found-{rank}.pt")
    finally:
        found = None
        gc.collect()
        dist.destroy_process_group()
    os._exit(0)  # gloo's threads may abort an interpreter that is going (pytorch/pytorch#179291)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
