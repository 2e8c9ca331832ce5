"""One process, DDP or FSDP2: how a method is wrapped, and how its full state is read and written in each case."""

from __future__ import annotations

import atexit
import contextlib
import copy
import gc
from collections.abc import Iterator
from typing import Any

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.state import AcceleratorState, GradientState, PartialState
from torch import nn

from mc_core.distributed import exclude_from_ddp
from mc_core.engine.config import Fit
from mc_core.engine.method import Method
from mc_core.errors import ConfigError

_FSDP_UNIT = 1_000_000  # parameters; smaller blocks are sharded together with their parent


def make_accelerator(fit: Fit) -> Accelerator:
    """The accelerator of this run. Its state is a process-wide singleton, so what an earlier run left is cleared."""
    AcceleratorState._reset_state()
    GradientState._reset_state()
    PartialState._reset_state()
    if fit.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("fit.device is cuda, but this machine shows no CUDA device: use auto or cpu")
    if fit.device not in ("auto", "cpu", "cuda"):
        raise ConfigError(f"fit.device is {fit.device!r}: use auto, cpu or cuda")
    if fit.precision == "fp16" and (fit.device == "cpu" or not torch.cuda.is_available()):
        raise ConfigError("fit.precision fp16 needs a GPU: use bf16 or fp32 on a CPU")
    formed_before = torch.distributed.is_initialized()
    accelerator = Accelerator(
        cpu=fit.device == "cpu" or not torch.cuda.is_available(),
        mixed_precision="no" if fit.precision == "fp32" else fit.precision,
        kwargs_handlers=[DistributedDataParallelKwargs(gradient_as_bucket_view=True)],
    )
    if torch.distributed.is_initialized() and not formed_before:
        atexit.register(_leave_gloo)
    return accelerator


def _leave_gloo() -> None:
    """End gloo's threads while the interpreter still lives: one that drops a tensor later aborts the process.

    See https://github.com/pytorch/pytorch/pull/179291. NCCL's groups are left to the exit, where they harm nobody: to
    destroy one after an error in another process may wait for it.
    """
    if torch.distributed.is_initialized() and torch.distributed.get_backend() == "gloo":
        gc.collect()  # a wrapped model would keep the group alive
        torch.distributed.destroy_process_group()


def join_processes(fit: Fit) -> None:
    """Under torchrun or SLURM, form the process group; call it before building a method that asks how many there are."""
    make_accelerator(fit)


class Distribution:
    """Holds the wrapped method. ``call(phase, …)`` runs a phase of it under the wrapper's hooks and autocast."""

    def __init__(self, method: Method, fit: Fit, accelerator: Accelerator) -> None:
        self.accelerator = accelerator
        self.method_name = type(method).__name__  # sharding gives the object another class
        self.world_size, self.rank = accelerator.num_processes, accelerator.process_index
        self.device = accelerator.device
        self.fsdp = fit.strategy == "fsdp"
        self.method = method.to(self.device)
        self._plain: Method | None = None
        if self.fsdp:
            if self.world_size == 1 and not torch.distributed.is_initialized():
                raise ConfigError(
                    "fit.strategy fsdp needs several processes: start with torchrun --nproc-per-node N, or use auto"
                )
            self._plain = copy.deepcopy(self.method).to("cpu")
            _shard(self.method, fit)
            self.wrapped: nn.Module = self.method
        elif self.world_size > 1:
            exclude_from_ddp(self.method)
            ids = [self.device.index] if self.device.type == "cuda" else None
            self.wrapped = nn.parallel.DistributedDataParallel(
                self.method, device_ids=ids, gradient_as_bucket_view=True
            )
        else:
            self.wrapped = self.method
        if fit.compile:
            self.wrapped.compile()

    def call(self, phase: str, *args: Any) -> Any:
        """``method.<phase>(*args)`` under the wrapper and the run's precision."""
        with self.accelerator.autocast():
            return self.wrapped(phase, *args)

    @contextlib.contextmanager
    def last_backward(self, last: bool) -> Iterator[None]:
        """Exchange gradients between processes only in the last backward of a step."""
        if last or self.world_size == 1:
            yield
        elif self.fsdp:
            self.method.set_requires_gradient_sync(False)  # type: ignore[operator]
            yield
            self.method.set_requires_gradient_sync(True)  # type: ignore[operator]
        else:
            with self.wrapped.no_sync():  # type: ignore[operator]
                yield

    def any_process(self, flag: bool) -> bool:
        """Whether the flag is set in any process (collective)."""
        if self.world_size == 1:
            return flag
        return bool(self.accelerator.reduce(torch.tensor(float(flag), device=self.device), "sum") > 0)

    def state(self, optimizer: torch.optim.Optimizer) -> tuple[dict[str, Any], dict[str, Any]]:
        """Full state dicts of method and optimizer, the same whatever the number of processes (collective under FSDP2)."""
        if self.fsdp:
            return _sharded_state(self.method), _sharded_state(self.method, optimizer)
        return self.method.state_dict(), _by_name(self.method, optimizer, optimizer.state_dict())

    def load(
        self, optimizer: torch.optim.Optimizer, method_state: dict[str, Any], optimizer_state: dict[str, Any]
    ) -> None:
        """Load what :meth:`state` gave, on any number of processes and under any strategy."""
        if self.fsdp:
            _load_sharded(self.method, optimizer, method_state, optimizer_state)
        else:
            self.method.load_state_dict(method_state)
            optimizer.load_state_dict(_by_position(self.method, optimizer, optimizer_state))

    def for_evaluation(self) -> Method:
        """An unsharded method to encode with (collective under FSDP2)."""
        if self._plain is None:
            return self.method
        state = _sharded_state(self.method)
        if self.rank == 0:
            self._plain.load_state_dict(state)
        return self._plain


def _shard(method: Method, fit: Fit) -> None:
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    half = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(fit.precision)
    policy = MixedPrecisionPolicy(param_dtype=half, reduce_dtype=torch.float32, cast_forward_inputs=False)
    for module in method.modules():
        if isinstance(module, (nn.ModuleList, nn.Sequential)):
            for block in module:
                if sum(p.numel() for p in block.parameters()) >= _FSDP_UNIT:
                    fully_shard(block, mp_policy=policy)
    fully_shard(method, mp_policy=policy)


def _sharded_state(method: Method, optimizer: torch.optim.Optimizer | None = None) -> dict[str, Any]:
    """The full state dict of a sharded method, or of its optimizer, on the CPU of process 0 (collective)."""
    from torch.distributed.checkpoint import state_dict as sharded  # seconds to import, and only FSDP2 needs it

    options = sharded.StateDictOptions(full_state_dict=True, cpu_offload=True)
    if optimizer is None:
        return sharded.get_model_state_dict(method, options=options)
    return dict(sharded.get_optimizer_state_dict(method, optimizer, options=options))


def _load_sharded(
    method: Method, optimizer: torch.optim.Optimizer, method_state: dict[str, Any], optimizer_state: dict[str, Any]
) -> None:
    from torch.distributed.checkpoint import state_dict as sharded

    options = sharded.StateDictOptions(full_state_dict=True)
    sharded.set_model_state_dict(method, method_state, options=options)
    sharded.set_optimizer_state_dict(method, optimizer, optimizer_state, options=options)


def _names(method: Method, optimizer: torch.optim.Optimizer) -> list[str]:
    """Parameter names in the order of the optimizer's groups."""
    by_id = {id(parameter): name for name, parameter in method.named_parameters()}
    return [by_id[id(p)] for group in optimizer.param_groups for p in group["params"]]


def _by_name(method: Method, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> dict[str, Any]:
    """An optimizer's state dict with parameter names for positions: the form FSDP2 uses, so both kinds of runs can read it."""
    names = _names(method, optimizer)
    groups = [{**group, "params": [names[i] for i in group["params"]]} for group in state["param_groups"]]
    return {"state": {names[i]: value for i, value in state["state"].items()}, "param_groups": groups}


def _by_position(method: Method, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> dict[str, Any]:
    position = {name: i for i, name in enumerate(_names(method, optimizer))}
    groups = [{**group, "params": [position[name] for name in group["params"]]} for group in state["param_groups"]]
    return {"state": {position[name]: value for name, value in state["state"].items()}, "param_groups": groups}
