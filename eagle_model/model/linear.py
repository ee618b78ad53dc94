"""Linear layers: every projection of the model is one, and is called as a module.

    self.up = Linear(4 * 64, 128)                # (T, 256) -> (T, 128), with a bias
    self.down_proj = Linear(320, 128, bias=False)
    self.gate_up_proj = FusedLinear(128, 320 + 320, bias=False)      # two projections of one input in one matmul
    self.gate_up_proj.sizes = (320, 320)

What changes how projections compute or what they hold, as another number format or adapters do, finds them by this
class and replaces them; no code takes a weight out of one. The output head is none: see loss.py.
"""

from __future__ import annotations

from torch import nn


class Linear(nn.Linear):
    """torch's own, under a name that tells projections from an output head."""


class FusedLinear(Linear):
    """Several projections of one input; their rows one after another, `sizes` of each. Files hold them apart."""

    sizes: tuple[int, ...]  # set by who makes it
