"""Weights of 8 or 4 bits for a model that only answers: the language model's projections, as they are loaded.

    quantize = Quantize("int4")
    load(model, folder, dtype=torch.bfloat16, convert=quantize)     # one weight after another, never all of them whole
    quantize.error                                # 0.06: of products with random inputs, relative, root mean square

Dims     C width in, F width out.
Formula  int8: a scale a row. int4: a scale and a zero for each group of inputs. Products are computed in the model's
         dtype from expanded weights, by torchao's kernels. Embeddings, output head, norms and the vision tower stay.
Numbers  Of logits of a trained tiny model: cosine above 0.999 with int8 and above 0.99 with int4 (a test).
Source   torchao, which is imported when first used.
"""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Kind = Literal["int8", "int4"]
GROUP = 32  # inputs that share a scale: the fewest that torchao's kernels have; 5 bits a weight in all, in bf16
ROWS = 16  # int4 needs a multiple of so many outputs
NUM_PROBES = 8  # random inputs that the error is measured with


class Quantize:
    """`convert` of `eagle.load`. A weight whose shape the kernels do not take stays as it is, and is counted."""

    def __init__(self, kind: Kind) -> None:
        """Raises ValueError for another kind, ModuleNotFoundError without torchao."""
        if kind not in get_args(Kind):
            raise ValueError(f"Quantize: kind is {kind!r}; needs one of {', '.join(get_args(Kind))}.")
        import torchao.quantization

        self.kind = kind
        self.num_weights = self.num_left = 0
        self._squares = self._wanted = 0.0
        self._torchao: Any = torchao.quantization

    @property
    def error(self) -> float:
        """Of all products so far with random inputs: the norm of what is wrong over the norm of what is right."""
        return (self._squares / self._wanted) ** 0.5 if self._wanted else 0.0

    def __str__(self) -> str:
        left = f", {self.num_left} of other shapes left as they are" if self.num_left else ""
        return f"{self.num_weights} weights in {self.kind}{left}; relative error of a product {self.error:.2%}"

    def __call__(self, name: str, weight: Tensor) -> Tensor:
        """What a parameter becomes, by its name."""
        is_projection = name.startswith("llm.layers.") and name.endswith("_proj.weight")
        if not is_projection:
            return weight
        config = self._config(weight)
        if config is None:
            self.num_left += 1
            return weight
        linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
        linear.weight = nn.Parameter(weight, requires_grad=False)
        generator = torch.Generator().manual_seed(0)
        probes_XC = torch.randn(NUM_PROBES, weight.shape[1], generator=generator).to(weight)
        want_XF = F.linear(probes_XC, weight)
        self._torchao.quantize_(linear, config)
        wrong_XF = linear(probes_XC) - want_XF
        self.num_weights += 1
        self._squares += float(wrong_XF.float().square().sum())
        self._wanted += float(want_XF.float().square().sum())
        return linear.weight

    def _config(self, weight: Tensor) -> Any:
        if self.kind == "int8":
            return self._torchao.Int8WeightOnlyConfig()
        num_rows, width = weight.shape
        if width % GROUP or num_rows % ROWS:
            return None
        if weight.is_cuda:
            return self._torchao.Int4WeightOnlyConfig(group_size=GROUP, int4_packing_format="tile_packed_to_4d")
        from torchao.prototype.quantization.int4 import PrototypeInt4WeightOnlyConfig  # the CPU's packed kernel

        return PrototypeInt4WeightOnlyConfig(group_size=GROUP, set_inductor_config=False)
