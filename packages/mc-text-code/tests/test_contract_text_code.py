"""ESimCSE and CoCoSoDa keep the contract of every method, at a tiny size, with and without their parts."""

from functools import partial
from typing import ClassVar

from mc_testkit.contract import MethodCase, MethodContract
from mc_testkit.toys import build_from, token_pairs, typed_token_pairs

ESIMCSE = ("mc_text_code.methods.esimcse.model:ESimCSE", "mc_text_code.methods.esimcse.config:ESimCSEConfig")
COCOSODA = ("mc_text_code.methods.cocosoda.model:CoCoSoDa", "mc_text_code.methods.cocosoda.config:CoCoSoDaConfig")
TINY = {
    "vocabulary": 64,
    "hidden_size": 32,
    "layers": 1,
    "heads": 2,
    "positions": 32,
    "max_length": 16,
    "dropout": 0.0,
    "pooling": "mean",
}
SMALL = {"momentum": {"momentum": 0.9}, "temperature": 0.2}


def case(name, fields, encoder=(), *, two=False, **more):
    return MethodCase(
        name,
        partial(build_from, *ESIMCSE, {**SMALL, **fields, "encoder": {**TINY, **dict(encoder)}}),
        token_pairs,
        fit={"lr": 0.02},
        learning={"optimizer": "adamw", "lr": 3e-4, "steps": 120},
        same_on_two_processes=two,
        **more,
    )


class TestContract(MethodContract):
    cases: ClassVar = [
        case("esimcse", {}, two=True),
        case("esimcse-dropout", {"queue_batches": 2.0}, {"dropout": 0.1}, accumulation_is_exact=False),
        case("random-copy", {"momentum_init": "random", "exclude_same": False}, {"pooling": "first-last"}, two=True),
        case("simcse", {"queue_batches": 0, "head": False}, two=True, falls_by=0.03),
    ]


def code_case(name, fields, **more):
    changes = {"queue_size": 16, "augment": {"token_ids": tuple(range(47, 60)), "hide_names": 0.5}, **SMALL, **fields}
    return MethodCase(
        name,
        partial(build_from, *COCOSODA, {**changes, "encoder": TINY}),
        typed_token_pairs,
        fit={"lr": 0.02},
        learning={"optimizer": "adamw", "lr": 3e-4, "steps": 120},
        **more,
    )


class TestCodeContract(MethodContract):
    cases: ClassVar = [
        code_case("cocosoda", {}),
        code_case("released", {"parity": "released", "temperature": 4.0, "queue_start": "empty"}),
        code_case("same-language", {"same_language": True, "intra_modal": False}),
        code_case("in-batch", {"queue_size": 0, "momentum_keys": False}, falls_by=0.02),
    ]
