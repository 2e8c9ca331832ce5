"""Which classes a picture shows: one of several yes-or-no questions each, or one class of all.

::

    s_c = w_c · mean_p f_p + b_c    or    max_p (w_c · f_p + b_c)
    L   = mean over known (picture, class) of BCE(σ(s_c), y_c)                  several classes in a picture
        = mean over pictures of −log softmax(s)_y                              one class in a picture

Legend: B pictures, C classes, H × W places p of a map f.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mc_core.engine.method import Batch
from mc_vision_language.experts.base import Expert, Metrics
from mc_vision_language.experts.heads import need_classes

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


class ClassificationExpert(Expert):
    """Classes of whole pictures; :meth:`predict` gives (B, C) probabilities.

    Batches: ``labels`` (B, C), 1 for a class that is there, 0 for one that is not, −1 where it is not known.
    """

    kind = "classification"
    needs = ("labels",)

    def make_head(self, tokenizer: PreTrainedTokenizerFast | None) -> None:
        """A linear map of features to classes."""
        self.head = nn.Linear(self.num_features, need_classes(self.config))
        nn.init.trunc_normal_(self.head.weight, std=0.02)
        nn.init.zeros_(self.head.bias)

    def head_outputs(self, features: Tensor) -> Tensor:
        """(B, C) logits."""
        if self.config.classification.pool == "mean":
            return self.head(features.mean((2, 3)))
        return self.head(features.permute(0, 2, 3, 1)).amax((1, 2))

    def head_loss(self, features: Tensor, batch: Batch) -> tuple[Tensor, Metrics]:
        """See the module's text."""
        logits = self.head_outputs(features).float()
        if self.config.classification.loss == "several":
            loss, right = several_loss(logits, batch["labels"])
        else:
            loss, right = one_loss(logits, batch["labels"])
        return loss, {"accuracy": right}

    def predicted(self, features: Tensor) -> Tensor:
        """(B, C) probabilities; those of one class in a picture sum to 1."""
        logits = self.head_outputs(features).float()
        return logits.sigmoid() if self.config.classification.loss == "several" else logits.softmax(1)


def several_loss(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Mean binary cross-entropy over what is known, and the share that is right.

    Args:
        logits: (B, C).
        labels: (B, C) of 1, 0 and −1.

    >>> loss, right = several_loss(torch.zeros(1, 3), torch.tensor([[1.0, 0.0, -1.0]]))
    >>> round(loss.item(), 4), right.item()
    (0.6931, 0.5)
    """
    known = labels >= 0
    count = known.sum().clamp(min=1)
    target = labels.clamp(min=0).to(logits.dtype)
    each = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    right = ((logits > 0) == (target > 0.5)) & known
    return each.masked_fill(~known, 0).sum() / count, (right.sum() / count).detach()


def one_loss(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Mean cross-entropy over the pictures whose class is known, and the share that is right.

    Args:
        logits: (B, C).
        labels: (B, C), 1 at the class; a row without a 1 is not known.
    """
    known = (labels > 0.5).any(1)
    count = known.sum().clamp(min=1)
    target = labels.argmax(1).masked_fill(~known, -100)
    loss = F.cross_entropy(logits, target, reduction="sum") / count
    return loss, (((logits.argmax(1) == target) & known).sum() / count).detach()


def most_likely(probabilities: Tensor, names: tuple[str, ...], most: int = 3) -> list[list[tuple[str, float]]]:
    """The most likely classes of each picture with their probabilities, for people.

    >>> most_likely(torch.tensor([[0.2, 0.9]]), ("cat", "dog"), 1)
    [[('dog', 0.9)]]
    """
    values, places = torch.topk(probabilities, min(most, len(names)), dim=1)
    rows: Any = zip(values.tolist(), places.tolist(), strict=True)
    return [[(names[c], round(v, 4)) for v, c in zip(v_row, c_row, strict=True)] for v_row, c_row in rows]
