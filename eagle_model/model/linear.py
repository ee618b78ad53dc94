"""Linear layers: the one door through which every projection of the model is made.

    self.up = linear(4 * 64, 128)                         # (T, 256) -> (T, 128), with a bias
    self.gate_proj = linear(128, 320, bias=False)
    self.fc1 = linear(64, 256, skip_bias_add=True)        # gelu_bias(self.fc1(x), self.fc1.bias)

What changes how all of them compute or what they hold (another number format, adapters) belongs here; for that, every
layer calls them as modules and takes no weight out of them. The output head is no projection: see loss.py.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


def linear(in_features: int, out_features: int, *, bias: bool = True, skip_bias_add: bool = False) -> nn.Linear:
    """(..., in_features) -> (..., out_features).

    skip_bias_add: the layer owns its bias and leaves it out, for an op that adds it in the same pass as what follows.
    """
    kind = _SkipBiasAdd if skip_bias_add else nn.Linear
    return kind(in_features, out_features, bias=bias)


class _SkipBiasAdd(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight)
