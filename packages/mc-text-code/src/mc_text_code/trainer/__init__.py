"""ESimCSE inside sentence-transformers' own trainer: a loss, a collator and a callback.

Public names load on first use; importing this package loads no torch.
"""

from typing import TYPE_CHECKING

from mc_core.lazy import attach

if TYPE_CHECKING:
    from mc_text_code.trainer.callback import ESimCSECallback
    from mc_text_code.trainer.collator import ESimCSECollator
    from mc_text_code.trainer.loss import ESimCSELoss

__all__ = ["ESimCSECallback", "ESimCSECollator", "ESimCSELoss"]

__getattr__, __dir__ = attach(
    __name__, {"callback": ["ESimCSECallback"], "collator": ["ESimCSECollator"], "loss": ["ESimCSELoss"]}
)
