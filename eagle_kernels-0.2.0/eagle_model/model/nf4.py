"""Weights of 4 bits (NF4) for a base that stays frozen under adapters: QLoRA.

    weight_FC = to_nf4(weight_FC)                # 4.1 bits a number; F.linear takes it, forward and backward
    weight_FC.to(torch.bfloat16)                 # what it stands for

Dims     C width in, F width out.
Formula  64 numbers at a time are divided by the largest magnitude among them and rounded to the nearest of 16 quantiles
         of a normal distribution. The magnitudes are kept in 8 bits, scaled 256 at a time.
Numbers  The error of normally distributed weights is 9.2 % of them, root mean square (a test). A weight is expanded to
         the dtype of its input whenever it is used, forward and backward; nothing else computes differently.
Source   Dettmers et al. 2023, arXiv:2305.14314; torchao's NF4Tensor, which is imported when first used.
"""

from __future__ import annotations

import math

from torch import Tensor, nn

from eagle_model.model.linear import Linear

BLOCK = 64  # numbers that share a magnitude, as in the paper
SCALER_BLOCK = 256  # magnitudes that share a scale, as in the paper


def to_nf4(weight_FC: Tensor) -> Tensor:
    """The weight in 4 bits, without a gradient; its dtype is what it expands to where none is asked for.

    Raises: ValueError unless its size is a multiple of 64; ModuleNotFoundError without torchao.
    """
    from torchao.quantization import NF4Tensor

    if weight_FC.numel() % BLOCK:
        raise ValueError(
            f"to_nf4: the weight is {tuple(weight_FC.shape)}, {weight_FC.numel()} numbers; needs a multiple of {BLOCK}."
        )
    num_blocks = weight_FC.numel() // BLOCK
    return NF4Tensor.from_tensor(weight_FC.detach().contiguous(), BLOCK, math.gcd(num_blocks, SCALER_BLOCK))


def is_nf4(weight: Tensor) -> bool:
    return type(weight).__name__ == "NF4Tensor"  # torchao, which is slow to import, need not be there to ask


def projections(module: nn.Module) -> list[str]:
    """The names of the weights of all projections in a module."""
    return [f"{name}.weight" for name, layer in module.named_modules() if isinstance(layer, Linear)]
