"""What the benchmarks of wearables share."""

from __future__ import annotations

from importlib.metadata import version

from mc_benchmarks.contract import Environment, environment


def wearables_environment() -> Environment:
    """The machine and versions, with those of the packages that signals go through."""
    found = environment()
    more = {name: version(name) for name in ("mc-wearables", "neurokit2", "scipy", "onnxruntime")}
    return found.model_copy(update={"packages": {**found.packages, **more}})


def reached(true: bool) -> str:
    """For a sentence about a bar."""
    return "reached" if true else "not reached"
