"""Linear layers: every projection of the model is one of these two, and is called as a module.

    self.up = Linear(4 * 64, 128)                # (T, 256) -> (T, 128), with a bias
    self.gate_proj = Linear(128, 320, bias=False)
    self.fc1 = LinearSkipBiasAdd(64, 256)        # gelu_bias(self.fc1(x), self.fc1.bias)

What changes how projections compute or what they hold, as another number format or adapters do, finds them by these
classes and replaces them; no code takes a weight out of them. The output head is none of them: see loss.py.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class Linear(nn.Linear):
    """torch's own, under a name that tells projections from an output head."""


class LinearSkipBiasAdd(nn.Linear):
    """Owns its bias and leaves it out, for an op that adds it in the same pass as what follows."""

    def forward(self, x: Tensor) -> Tensor:
        """(..., in_features) -> (..., out_features), without the bias."""
        return F.linear(x, self.weight)
