"""Linear layers: every projection of the model is one, and is called as a module.

    self.up = Linear(4 * 64, 128)                # (T, 256) -> (T, 128), with a bias
    self.gate_proj = Linear(128, 320, bias=False)

What changes how projections compute or what they hold, as another number format or adapters do, finds them by this
class and replaces them; no code takes a weight out of one. The output head is none: see loss.py.
"""

from __future__ import annotations

from torch import nn


class Linear(nn.Linear):
    """torch's own, under a name that tells projections from an output head."""
