"""The contract suite on toy methods: what it proves of the engine here, it proves of every method elsewhere."""

from typing import ClassVar

from mc_testkit.contract import MethodCase, MethodContract
from mc_testkit.toys import toy_dcl, toy_dcl_with_dropout, toy_moco, toy_moco_with_dropout, vector_pairs


class TestContract(MethodContract):
    cases: ClassVar = [
        MethodCase("moco", toy_moco, vector_pairs, learning={"lr": 0.3, "steps": 160}, falls_by=0.04),
        MethodCase(
            "moco-dropout",
            toy_moco_with_dropout,
            vector_pairs,
            learning={"lr": 0.3, "steps": 160},
            falls_by=0.04,
            same_on_two_processes=False,
            accumulation_is_exact=False,
        ),
        MethodCase("dcl", toy_dcl, vector_pairs, learning={"lr": 0.3, "steps": 160}, falls_by=0.04),
        MethodCase(
            "dcl-dropout",
            toy_dcl_with_dropout,
            vector_pairs,
            learning={"lr": 0.3, "steps": 160},
            falls_by=0.04,
            same_on_two_processes=False,
            accumulation_is_exact=False,
        ),
    ]
