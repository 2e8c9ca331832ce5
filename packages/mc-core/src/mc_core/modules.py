"""Small things that several models need of ``nn.Module``."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

from torch import nn


@contextmanager
def evaluating(module: nn.Module) -> Generator[None]:
    """Evaluation mode, and each part's own mode again afterwards.

    >>> model = nn.Sequential(nn.Dropout(), nn.Dropout().eval())
    >>> with evaluating(model):
    ...     model[0].training
    False
    >>> [part.training for part in model]
    [True, False]
    """
    modes = {part: part.training for part in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for part, mode in modes.items():
            part.training = mode


class Shared:
    """A value that copies of a module share: a tokenizer has no weights, and copying one takes long.

    >>> import copy
    >>> words = Shared(["a"])
    >>> copy.deepcopy(words).value is words.value
    True
    """

    def __init__(self, value: Any) -> None:
        self.value = value

    def __deepcopy__(self, memo: dict[int, Any]) -> Shared:
        return self
