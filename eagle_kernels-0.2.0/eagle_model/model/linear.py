"""Linear layers: every projection of the model is one, and is called as a module.

    self.up = Linear(4 * 64, 128)                # (T, 256) -> (T, 128), with a bias
    self.down_proj = Linear(320, 128, bias=False)
    self.gate_up_proj = FusedLinear(128, 320 + 320, bias=False)      # two projections of one input in one matmul
    self.gate_up_proj.sizes = (320, 320)

What changes how projections compute or what they hold finds them by this class; no code takes a weight out of one.
Another number format is a `product` that a projection is handed (fp8.py): its weight and its name stay as they are.
What changes what they hold, as adapters do, replaces them. The output head is none: see loss.py.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch.utils.checkpoint
from torch import Tensor, nn
from torch.nn import functional as F


class Product(Protocol):
    """How a projection computes, where it is not as torch does."""

    def __call__(self, x_TC: Tensor, weight_FC: Tensor, bias_F: Tensor | None) -> Tensor:
        """W x + b of each row, (T, F)."""

    def checkpoint(self, layer: nn.Module, *args: Any) -> Any:
        """`layer(*args)`, which holds such projections, to be computed again in backward."""


class Linear(nn.Linear):
    """torch's own, under a name that tells projections from an output head."""

    product: Product | None = None

    def forward(self, x_TC: Tensor) -> Tensor:
        if self.product is None:
            return F.linear(x_TC, self.weight, self.bias)
        return self.product(x_TC, self.weight, self.bias)


class FusedLinear(Linear):
    """Several projections of one input; their rows one after another, `sizes` of each. Files hold them apart."""

    sizes: tuple[int, ...]  # set by who makes it


def checkpoint(layer: nn.Module, *args: Any) -> Any:
    """`layer(*args)`, keeping its inputs alone and computing it again in backward; the gradients are the same numbers.

    Its projections' products say how, where they have any: another library's layers may have a way of their own.
    """
    products = (linear.product for linear in layer.modules() if isinstance(linear, Linear))
    product = next((product for product in products if product is not None), None)
    if product is not None:
        return product.checkpoint(layer, *args)
    return torch.utils.checkpoint.checkpoint(layer, *args, use_reentrant=False)
